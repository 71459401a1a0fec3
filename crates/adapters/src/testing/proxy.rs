//! A way to a server that can be cut, for established connections as well.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What becomes of what goes through a [`Proxy`].
#[derive(Clone, Copy)]
pub enum Way {
    /// Everything is passed on.
    Open,
    /// Connections are closed, and new ones as soon as they come.
    Closed,
    /// Connections stay and new ones are taken, but nothing is passed on: what was sent meanwhile
    /// goes on its way when it is open again.
    Silent,
    /// Open until a client sends something for which this says so: that is passed on, and nothing
    /// is ever answered on that connection any more.
    NoAnswerTo(fn(&[u8]) -> bool),
}

/// A port of loopback that leads to a server.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    way: Way,
    dropped: bool,
    /// Both ends of each connection.
    connections: BTreeMap<u64, (TcpStream, TcpStream)>,
    next: u64,
}

impl Shared {
    /// Each change of the state is whole, so that a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// A way to this server, open.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(server: SocketAddr) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = State { way: Way::Open, dropped: false, connections: BTreeMap::new(), next: 0 };
        let shared = Arc::new(Shared { server, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = shared.clone();
        std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.state().dropped {
                    return;
                }
                // A server that is away is a connection that is closed.
                drop(carry(&accepting, client));
            }
        })?;
        Ok(Proxy { shared, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, way: Way) {
        let mut state = self.shared.state();
        state.way = way;
        if matches!(way, Way::Closed) {
            state.close_all();
        }
        self.shared.changed.notify_all();
    }
}

impl State {
    fn close_all(&mut self) {
        for (client, server) in std::mem::take(&mut self.connections).into_values() {
            // One that is closed already is what is wanted.
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.dropped = true;
        state.way = Way::Closed;
        state.close_all();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

fn carry(shared: &Arc<Shared>, client: TcpStream) -> io::Result<()> {
    if matches!(shared.state().way, Way::Closed) {
        return Ok(());
    }
    let server = TcpStream::connect(shared.server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let kept = (client.try_clone()?, server.try_clone()?);
    let mut state = shared.state();
    if matches!(state.way, Way::Closed) {
        return Ok(());
    }
    let number = state.next;
    state.next += 1;
    state.connections.insert(number, kept);
    drop(state);
    let swallow = Arc::new(Mutex::new(false));
    let ways = [(client.try_clone()?, server.try_clone()?, true), (server, client, false)];
    for (from, to, is_request) in ways {
        let (shared, swallow) = (shared.clone(), swallow.clone());
        std::thread::spawn(move || {
            pass(&shared, &from, &to, is_request, &swallow);
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            shared.state().connections.remove(&number);
        });
    }
    Ok(())
}

/// Passes on until either end closes.
fn pass(
    shared: &Shared,
    mut from: &TcpStream,
    mut to: &TcpStream,
    is_request: bool,
    swallow: &Mutex<bool>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let data = &buffer[..length];
        let mut state = shared.state();
        while matches!(state.way, Way::Silent) {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut swallow = swallow.lock().unwrap_or_else(PoisonError::into_inner);
        match state.way {
            Way::Closed => return,
            Way::NoAnswerTo(is_it) if is_request && is_it(data) => *swallow = true,
            _ => {}
        }
        let lost = *swallow && !is_request;
        drop((swallow, state));
        if !lost && to.write_all(data).is_err() {
            return;
        }
    }
}
