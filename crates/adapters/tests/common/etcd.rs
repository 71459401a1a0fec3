//! Real etcd servers on loopback, each under control by its number, and a way to each that can be cut.

use super::proxy::Proxy;
use super::{Backend, CALL};
use adapters::clock;
use adapters::coord::Coordination;
use adapters::coord::etcd::EtcdCoord;
use adapters::coord::memory::LostPut;
use cluster::Millis;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often other ports are tried when somebody took ours before the servers did.
const ATTEMPTS: usize = 5;

/// The servers of one etcd, from 0.
pub struct Etcd {
    directory: tempfile::TempDir,
    clients: Vec<SocketAddr>,
    peers: Vec<SocketAddr>,
    running: Vec<Mutex<Option<Child>>>,
    proxies: Vec<Proxy>,
}

impl Etcd {
    /// This many servers, which have a leader.
    pub fn start(count: usize) -> Self {
        for _ in 0..ATTEMPTS {
            let clients = free_ports(count);
            let etcd = Etcd {
                directory: tempfile::tempdir().expect("a directory"),
                peers: free_ports(count),
                running: (0..count).map(|_| Mutex::default()).collect(),
                proxies: clients.iter().copied().map(Proxy::to).collect(),
                clients,
            };
            (0..count).for_each(|server| etcd.spawn(server));
            if (0..count).all(|server| etcd.is_up(server)) {
                return etcd;
            }
        }
        panic!("no etcd after {ATTEMPTS} attempts: is etcd-server installed (tools/need.sh etcd)?");
    }

    /// Where the servers are.
    pub fn outside(&self) -> Vec<String> {
        self.clients.iter().map(ToString::to_string).collect()
    }

    /// The ways to them that can be cut.
    pub fn inside(&self) -> Vec<String> {
        self.proxies.iter().map(|proxy| proxy.address().to_string()).collect()
    }

    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    fn log(&self, server: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("{server}.log"))
    }

    fn spawn(&self, server: usize) {
        let url = |address: SocketAddr| format!("http://{address}");
        let (client, peer) = (url(self.clients[server]), url(self.peers[server]));
        let cluster: Vec<_> =
            self.peers.iter().enumerate().map(|(n, at)| format!("s{n}={}", url(*at))).collect();
        let log = |path: &Path| File::options().create(true).append(true).open(path);
        let log = log(&self.log(server)).expect("a log");
        let child = Command::new("etcd")
            .args(["--name", &format!("s{server}")])
            .args([
                "--data-dir",
                &format!("{}", self.directory.path().join(format!("{server}")).display()),
            ])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            // Leases of one second, and a new leader soon.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-level", "warn"])
            .stdout(Stdio::from(log.try_clone().expect("a descriptor")))
            .stderr(Stdio::from(log))
            .stdin(Stdio::null())
            .spawn()
            .expect("etcd (package etcd-server): tools/need.sh etcd installs it");
        *self.child(server) = Some(child);
    }

    fn child(&self, server: usize) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.running[server].lock().expect("no test panics here")
    }

    /// Waits until this server serves, with a leader; false when it ended.
    fn is_up(&self, server: usize) -> bool {
        let begin = clock::now();
        loop {
            if health(self.clients[server]).is_some_and(|health| health.contains(r#""true""#)) {
                return true;
            }
            if let Some(child) = &mut *self.child(server)
                && child.try_wait().expect("our child").is_some()
            {
                return false;
            }
            let log = std::fs::read_to_string(self.log(server)).unwrap_or_default();
            assert!(clock::now() - begin < Millis(20_000), "etcd {server} does not serve: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a crash of its host would.
    pub fn kill(&self, server: usize) {
        let mut child = self.child(server).take().expect("a running server");
        child.kill().expect("to kill our child");
        child.wait().expect("our child");
    }

    /// Starts it again with the data that it had. Does not wait until it serves.
    pub fn restart(&self, server: usize) {
        assert!(self.child(server).is_none(), "etcd {server} runs");
        self.spawn(server);
    }

    /// Waits until it serves and knows a leader.
    pub fn wait_until_up(&self, server: usize) {
        let log = || std::fs::read_to_string(self.log(server)).unwrap_or_default();
        assert!(self.is_up(server), "etcd {server} ended: {}", log());
    }

    /// Stops it where it is: it accepts connections and never answers.
    pub fn freeze(&self, server: usize) {
        self.signal(server, Signal::STOP);
    }

    /// The end of [`Etcd::freeze`].
    pub fn thaw(&self, server: usize) {
        self.signal(server, Signal::CONT);
    }

    fn signal(&self, server: usize, signal: Signal) {
        let child = self.child(server);
        let pid = Pid::from_child(child.as_ref().expect("a running server"));
        kill_process(pid, signal).expect("to signal our child");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &self.running {
            if let Ok(Some(mut child)) = child.lock().map(|mut child| child.take()) {
                // It may have ended by itself.
                let _ = (child.kill(), child.wait());
            }
        }
    }
}

fn free_ports(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("an address")).collect()
}

/// What `/health` says.
fn health(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A shard in an etcd of `N` servers.
pub struct EtcdOf<const N: usize> {
    pub servers: Etcd,
}

fn coord(servers: &[String]) -> Arc<dyn Coordination> {
    Arc::new(EtcdCoord::new(servers, "/manatee", "1.example", CALL))
}

impl<const N: usize> Backend for EtcdOf<N> {
    fn new() -> Self {
        EtcdOf { servers: Etcd::start(N) }
    }
    fn client(&self) -> Arc<dyn Coordination> {
        coord(&self.servers.inside())
    }
    fn outside(&self) -> Arc<dyn Coordination> {
        coord(&self.servers.outside())
    }
    fn cut(&self) {
        self.servers.proxies().iter().for_each(Proxy::cut);
    }
    fn heal(&self) {
        self.servers.proxies().iter().for_each(Proxy::open);
    }
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send + '_>> {
        for proxy in self.servers.proxies() {
            match fate {
                // Only a put names a key of the history.
                LostPut::NotStored => proxy.cut_at(b"/history/"),
                LostPut::Stored => proxy.lose_answers_after(b"/history/"),
            }
        }
        Some(Box::new(Heal(self)))
    }
}

struct Heal<'a, const N: usize>(&'a EtcdOf<N>);

impl<const N: usize> Drop for Heal<'_, N> {
    fn drop(&mut self) {
        self.0.heal();
    }
}
