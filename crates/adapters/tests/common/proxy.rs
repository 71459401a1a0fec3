//! A way through TCP that a test can cut, silence, or make lose an answer, for connections that stand
//! already as well as for new ones.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What becomes of what comes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections are closed, and new ones as soon as they were made.
    Cut,
    /// Connections are kept, and nothing gets through until the way is open again.
    Silent,
    /// Open, until somebody asks for something with these bytes in it. Then what is asked gets through,
    /// but no answer any more.
    DeafAfter(Vec<u8>),
    Deaf,
    /// Open, until somebody asks for something with these bytes in it. That closes the connection.
    CutAt(Vec<u8>),
    Ended,
}

struct Shared {
    mode: Mutex<Mode>,
    changed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().expect("no test panics here")
    }

    fn set(&self, mode: Mode) {
        *self.mode() = mode;
        self.changed.notify_all();
    }

    fn close_all(&self) {
        for stream in self.streams.lock().expect("no test panics here").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The way to one address. It ends when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Open),
            changed: Condvar::new(),
            streams: Mutex::default(),
        });
        let ours = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, target, &ours));
        Proxy { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn open(&self) {
        self.shared.set(Mode::Open);
    }

    pub fn cut(&self) {
        self.shared.set(Mode::Cut);
        self.shared.close_all();
    }

    pub fn silence(&self) {
        self.shared.set(Mode::Silent);
    }

    pub fn cut_at(&self, asked: &[u8]) {
        self.shared.set(Mode::CutAt(asked.to_vec()));
    }

    pub fn lose_answers_after(&self, asked: &[u8]) {
        self.shared.set(Mode::DeafAfter(asked.to_vec()));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.set(Mode::Ended);
        self.shared.close_all();
        // Wakes the thread that accepts, so that it sees the end.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { return };
        match *shared.mode() {
            Mode::Ended => return,
            Mode::Cut => continue,
            _ => {}
        }
        // A server that is down refuses; here the connection ends in the same moment.
        let Ok(server) = TcpStream::connect(target) else { continue };
        let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        let streams = [clone(&client), clone(&server)];
        shared.streams.lock().expect("no test panics here").extend(streams);
        let (client_again, server_again) = (clone(&client), clone(&server));
        let (asks, answers) = (Arc::clone(shared), Arc::clone(shared));
        std::thread::spawn(move || pump(client, server, &asks, true));
        std::thread::spawn(move || pump(server_again, client_again, &answers, false));
        // A cut that came in between has not seen these.
        if matches!(*shared.mode(), Mode::Cut | Mode::Ended) {
            shared.close_all();
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, asks: bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !wait_for_way(shared, &buffer[..length], asks)
            || to.write_all(&buffer[..length]).is_err()
        {
            break;
        }
    }
    // Either may be closed already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Whether these bytes may pass, now or after a while.
fn wait_for_way(shared: &Shared, bytes: &[u8], asks: bool) -> bool {
    let asked = |wanted: &[u8]| asks && bytes.windows(wanted.len()).any(|part| part == wanted);
    let mut mode = shared.mode();
    loop {
        match &*mode {
            Mode::Open => return true,
            Mode::Cut | Mode::Ended => return false,
            Mode::CutAt(wanted) => return !asked(wanted),
            Mode::DeafAfter(wanted) => {
                if asked(wanted) {
                    *mode = Mode::Deaf;
                }
                return true;
            }
            Mode::Deaf if asks => return true,
            Mode::Deaf | Mode::Silent => mode = shared.changed.wait(mode).expect("no test panics"),
        }
    }
}
