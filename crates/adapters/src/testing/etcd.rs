//! A private etcd: one server or several, from Debian's package.

use crate::clock;
use crate::exec::{Exec, ExecError};
use cluster::Millis;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long all servers may take to serve. On a quiet machine it is two seconds.
const START_LIMIT: Millis = Millis(60_000);
/// Between two questions whether a server serves.
const POLL: Duration = Duration::from_millis(20);
/// How long a server may take to answer such a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Servers that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The log of a server.
    #[error("cannot open {path}")]
    Log {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No port.
    #[error("no ports for etcd")]
    Ports(#[source] io::Error),
    /// It is not installed.
    #[error("cannot start etcd: install the package etcd-server")]
    Start(#[source] ExecError),
    /// It does not serve.
    #[error("etcd does not serve after {limit} ms; the log of server {server} ends: {log}", limit = START_LIMIT.0)]
    NotServing {
        /// Which of them.
        server: usize,
        /// What it said last.
        log: String,
    },
}

/// What an etcd is to be like.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// The address of this machine that it is at.
    pub ip: IpAddr,
    /// Whether it talks TLS to clients; the arguments say with which certificates.
    pub secure: bool,
    /// More arguments of each server.
    pub arguments: Vec<String>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        EtcdOptions { ip: Ipv4Addr::LOCALHOST.into(), secure: false, arguments: Vec::new() }
    }
}

/// A private etcd. Dropping it kills it; its directory stays.
#[derive(Debug)]
pub struct Etcd {
    directory: PathBuf,
    options: EtcdOptions,
    /// Of each server for clients, for the other servers, and for whoever asks how it is.
    ports: Vec<[u16; 3]>,
    processes: Vec<Mutex<Option<Child>>>,
}

impl Etcd {
    /// Starts this many servers with their files in `directory`, and waits until all serve.
    ///
    /// # Errors
    /// When etcd is not installed, or does not serve in time.
    pub fn start(directory: &Path, count: usize) -> Result<Etcd, EtcdError> {
        Etcd::start_with(directory, count, EtcdOptions::default())
    }

    /// As [`Etcd::start`].
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_with(
        directory: &Path,
        count: usize,
        options: EtcdOptions,
    ) -> Result<Etcd, EtcdError> {
        let ports = super::free_ports(3 * count).map_err(EtcdError::Ports)?;
        let etcd = Etcd {
            directory: directory.to_owned(),
            options,
            ports: ports.chunks(3).map(|ports| [ports[0], ports[1], ports[2]]).collect(),
            processes: (0..count).map(|_| Mutex::default()).collect(),
        };
        for index in 0..count {
            etcd.launch(index)?;
        }
        for index in 0..count {
            etcd.wait_serving(index)?;
        }
        Ok(etcd)
    }

    /// How many servers it has, up or down.
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// Where a server takes clients.
    pub fn address(&self, index: usize) -> SocketAddr {
        (self.options.ip, self.ports[index][0]).into()
    }

    /// The address of all servers, with nothing about a root.
    pub fn url(&self) -> String {
        let servers: Vec<_> = (0..self.count()).map(|i| self.address(i).to_string()).collect();
        format!("etcd://{}", servers.join(","))
    }

    /// Whether a server serves, with a leader.
    pub fn serves(&self, index: usize) -> bool {
        self.ask(index, "/health").is_some_and(|health| health.contains(r#""true""#))
    }

    /// How many calls of this kind a server has answered, well or not, since it was started.
    pub fn answered(&self, index: usize, method: &str) -> u64 {
        let metrics = self.ask(index, "/metrics").unwrap_or_default();
        let kind = format!("grpc_method=\"{method}\"");
        let counts = metrics
            .lines()
            .filter(|line| line.starts_with("grpc_server_handled_total{") && line.contains(&kind));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// What a server says of itself, in plain text and to anybody.
    fn ask(&self, index: usize, path: &str) -> Option<String> {
        let address = (self.options.ip, self.ports[index][2]).into();
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT).ok()?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Kills a server, if it runs, as a power failure would.
    pub fn kill(&self, index: usize) {
        if let Some(mut child) = self.process(index).take() {
            // It is our child, not waited for yet: the id is its own. A frozen one dies as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a server that was killed, with the data that it had; does not wait until it serves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&self, index: usize) -> Result<(), EtcdError> {
        let path = self.log(index);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|source| EtcdError::Log { path, source })?;
        let url = |port: u16| format!("http://{}", SocketAddr::from((self.options.ip, port)));
        let [mut client, peer, metrics] = self.ports[index].map(url);
        if self.options.secure {
            client = client.replace("http://", "https://");
        }
        let member = |(number, ports): (usize, &[u16; 3])| format!("s{number}={}", url(ports[1]));
        let members: Vec<_> = self.ports.iter().enumerate().map(member).collect();
        let child = Exec::new("etcd")
            .args(["--name", &format!("s{index}"), "--data-dir"])
            .arg(self.directory.join(format!("etcd-{index}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &members.join(",")])
            .args(["--listen-metrics-urls", &metrics])
            // Leases of one second, and a new leader soon.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-level", "warn"])
            .args(&self.options.arguments)
            .child(&log)
            .map_err(EtcdError::Start)?;
        *self.process(index) = Some(child);
        Ok(())
    }

    /// Waits until a server serves and knows a leader.
    ///
    /// # Errors
    /// When it does not in time, or ends.
    pub fn wait_serving(&self, index: usize) -> Result<(), EtcdError> {
        let begin = clock::now();
        while !self.serves(index) {
            let ended = match &mut *self.process(index) {
                Some(child) => matches!(child.try_wait(), Ok(Some(_))),
                None => true,
            };
            if ended || clock::now() - begin >= START_LIMIT {
                let log = std::fs::read_to_string(self.log(index));
                let log = log.unwrap_or_else(|error| error.to_string());
                let lines: Vec<_> = log.lines().rev().take(20).collect();
                let log = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(EtcdError::NotServing { server: index, log });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Lets a server stand still: it keeps its connections and answers nothing.
    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        if let Some(child) = &*self.process(index) {
            // It is our child, not waited for yet: the id is its own.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn log(&self, index: usize) -> PathBuf {
        self.directory.join(format!("etcd-{index}.log"))
    }

    fn process(&self, index: usize) -> MutexGuard<'_, Option<Child>> {
        self.processes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for index in 0..self.count() {
            self.kill(index);
        }
    }
}
