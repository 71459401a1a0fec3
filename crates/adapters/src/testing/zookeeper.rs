//! A private ZooKeeper: one server or several, from Debian's packages.

use super::Host;
use crate::clock;
use crate::exec::{Exec, ExecError};
use cluster::Millis;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where Debian has the server.
const JAR: &str = "/usr/share/java/zookeeper.jar";
/// Where Debian has what the server needs to log, and to speak TLS.
const JARS: &str = "/usr/share/java";
/// As short as keeps an ensemble on a busy machine together. A session is at least two of them.
const TICK: u32 = 500;
/// How long all servers may take to serve. On a quiet machine it is two seconds.
const START_LIMIT: Millis = Millis(60_000);
/// Between two questions whether a server serves.
const POLL: Duration = Duration::from_millis(50);
/// How long a server may take to answer such a question.
const ANSWER_LIMIT: Duration = Duration::from_millis(1000);

/// An ensemble that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EnsembleError {
    /// It is not installed.
    #[error("there is no {JAR}: install the package zookeeper")]
    Missing,
    /// A file of it.
    #[error("cannot prepare {path}")]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No port.
    #[error("no ports for ZooKeeper")]
    Ports(#[source] io::Error),
    /// Java.
    #[error("cannot start ZooKeeper")]
    Start(#[source] ExecError),
    /// It does not serve.
    #[error("ZooKeeper does not serve after {limit} ms; the log of server {server} ends: {log}", limit = START_LIMIT.0)]
    NotServing {
        /// Which of them.
        server: usize,
        /// What it said last.
        log: String,
    },
}

/// What an ensemble is to be like.
#[derive(Debug, Clone, Default)]
pub struct EnsembleOptions {
    /// Lines for `zoo.cfg`; `{secure_port}` stands for a free port of each server.
    pub lines: Vec<String>,
    /// Wait for the disk at every write, as a server does that has to outlive a power failure. One
    /// that is only killed loses nothing without it, and is not held up by whoever else writes.
    pub syncs: bool,
    /// Where each server lives; all on this machine where there are none.
    pub hosts: Vec<Host>,
}

impl EnsembleOptions {
    fn host(&self, index: usize) -> Host {
        self.hosts.get(index).cloned().unwrap_or_else(Host::local)
    }
}

/// What a server is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The only one.
    Standalone,
    /// Leads.
    Leader,
    /// Follows.
    Follower,
}

/// A private ensemble. Dropping it kills it; its directory stays.
#[derive(Debug)]
pub struct Ensemble {
    servers: Vec<Server>,
    class_path: String,
    syncs: bool,
    keeper: Keeper,
}

/// A thread that starts the servers and lives as long as they may: the kernel kills them when it
/// ends, also when this process is killed.
#[derive(Debug)]
struct Keeper(Sender<Order>);

/// What to start, where its output goes, and where to answer.
type Order = (Exec, File, Sender<Result<Child, ExecError>>);

impl Keeper {
    fn start() -> Self {
        let (orders, received) = channel::<Order>();
        std::thread::spawn(move || {
            for (exec, log, answer) in received {
                // Whoever ordered waits for the answer.
                let _ = answer.send(exec.child(&log));
            }
        });
        Keeper(orders)
    }

    fn launch(&self, exec: Exec, log: File) -> Result<Child, EnsembleError> {
        let (answer, answered) = channel();
        let sent = self.0.send((exec, log, answer)).ok();
        let child = sent.and_then(|()| answered.recv().ok());
        child.expect("the keeper lives as long as its ensemble").map_err(EnsembleError::Start)
    }
}

#[derive(Debug)]
struct Server {
    host: Host,
    directory: PathBuf,
    port: u16,
    secure_port: u16,
    process: Mutex<Option<Child>>,
}

impl Server {
    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ensemble {
    /// Starts this many servers with their files in `directory`, and waits until all serve.
    ///
    /// # Errors
    /// When ZooKeeper is not installed, or does not serve in time.
    pub fn start(directory: &Path, count: usize) -> Result<Ensemble, EnsembleError> {
        Ensemble::start_with(directory, count, &EnsembleOptions::default())
    }

    /// As [`Ensemble::start`].
    ///
    /// # Errors
    /// As [`Ensemble::start`].
    pub fn start_with(
        directory: &Path,
        count: usize,
        options: &EnsembleOptions,
    ) -> Result<Ensemble, EnsembleError> {
        if !Path::new(JAR).exists() {
            return Err(EnsembleError::Missing);
        }
        let ports = super::free_ports(4 * count).map_err(EnsembleError::Ports)?;
        let ports: Vec<&[u16]> = ports.chunks(4).collect();
        let mut servers = Vec::new();
        for (index, own) in ports.iter().enumerate() {
            let directory = directory.join(format!("zookeeper-{index}"));
            write_files(&directory, index, &ports, options)
                .map_err(|source| EnsembleError::Files { path: directory.clone(), source })?;
            let (port, secure_port) = (own[0], own[3]);
            let (host, process) = (options.host(index), Mutex::default());
            servers.push(Server { host, directory, port, secure_port, process });
        }
        let ensemble = Ensemble {
            servers,
            class_path: class_path(),
            syncs: options.syncs,
            keeper: Keeper::start(),
        };
        for index in 0..count {
            ensemble.launch(index)?;
        }
        for index in 0..count {
            ensemble.wait_serving(index)?;
        }
        Ok(ensemble)
    }

    /// How many servers it has, up or down.
    pub fn count(&self) -> usize {
        self.servers.len()
    }

    /// Where a server takes clients.
    pub fn address(&self, index: usize) -> SocketAddr {
        (self.servers[index].host.ip, self.servers[index].port).into()
    }

    /// The port of a server that `{secure_port}` stood for.
    pub fn secure_address(&self, index: usize) -> SocketAddr {
        (self.servers[index].host.ip, self.servers[index].secure_port).into()
    }

    /// The address of all servers, with nothing about a root.
    pub fn url(&self) -> String {
        let servers: Vec<_> = (0..self.count()).map(|i| self.address(i).to_string()).collect();
        format!("zk://{}", servers.join(","))
    }

    /// What a server answers to one of its commands of four letters.
    ///
    /// # Errors
    /// When it does not answer within a second.
    pub fn four_letters(&self, index: usize, command: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(index), ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(command.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What a server is now; `None` when it does not serve.
    pub fn mode(&self, index: usize) -> Option<Mode> {
        let answer = self.four_letters(index, "srvr").ok()?;
        match answer.lines().find_map(|line| line.strip_prefix("Mode: "))? {
            "standalone" => Some(Mode::Standalone),
            "leader" => Some(Mode::Leader),
            "follower" => Some(Mode::Follower),
            _ => None,
        }
    }

    /// The server that leads, or is the only one; `None` while there is none.
    pub fn leader(&self) -> Option<usize> {
        let leads = |mode| matches!(mode, Some(Mode::Leader | Mode::Standalone));
        (0..self.count()).find(|&index| leads(self.mode(index)))
    }

    /// Kills a server, if it runs, as a power failure would.
    pub fn kill(&self, index: usize) {
        if let Some(mut child) = self.servers[index].process().take() {
            // It is our child, not waited for yet: the id is its own. A frozen one dies as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a server that was killed; does not wait until it serves.
    ///
    /// # Errors
    /// When Java cannot be started.
    pub fn launch(&self, index: usize) -> Result<(), EnsembleError> {
        let server = &self.servers[index];
        let files = |source| EnsembleError::Files { path: server.directory.clone(), source };
        let log = OpenOptions::new().create(true).append(true).open(server.directory.join("log"));
        let class_path = format!("{}:{}", server.directory.display(), self.class_path);
        let exec = Exec::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(&server.host.enter)
            .arg("java")
            .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-Dzookeeper.admin.enableServer=false", "-Dzookeeper.4lw.commands.whitelist=*"])
            .arg(format!("-Dzookeeper.forceSync={}", if self.syncs { "yes" } else { "no" }))
            .args(["-cp", &class_path, "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
            .arg(server.directory.join("zoo.cfg"));
        let child = self.keeper.launch(exec, log.map_err(files)?)?;
        *server.process() = Some(child);
        Ok(())
    }

    /// Waits until a server serves.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_serving(&self, index: usize) -> Result<(), EnsembleError> {
        let begin = clock::now();
        while self.mode(index).is_none() {
            if clock::now() - begin >= START_LIMIT {
                let log = fs::read_to_string(self.servers[index].directory.join("log"));
                let log = log.unwrap_or_else(|error| error.to_string());
                let lines: Vec<_> = log.lines().rev().take(20).collect();
                let log = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(EnsembleError::NotServing { server: index, log });
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

    /// The process of a server; `None` when it was killed.
    pub fn process(&self, index: usize) -> Option<u32> {
        self.servers[index].process().as_ref().map(Child::id)
    }

    fn signal(&self, index: usize, signal: Signal) {
        let process = self.servers[index].process();
        let pid = process.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It is our child, not waited for yet: the id is its own.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for index in 0..self.count() {
            self.kill(index);
        }
    }
}

/// The server and, where they are installed, the libraries that its own manifest does not name.
fn class_path() -> String {
    let is_netty = |name: &str| name.starts_with("netty-") && !name.contains(".Final");
    let wanted = |name: &str| is_netty(name) || name == "slf4j-simple.jar";
    let names = fs::read_dir(JARS).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let jars = names.filter(|name| wanted(name) && name.ends_with(".jar"));
    let jars = jars.map(|name| format!("{JARS}/{name}"));
    std::iter::once(JAR.to_owned()).chain(jars).collect::<Vec<_>>().join(":")
}

fn write_files(
    directory: &Path,
    index: usize,
    ports: &[&[u16]],
    options: &EnsembleOptions,
) -> io::Result<()> {
    fs::create_dir_all(directory.join("data"))?;
    let mut lines = vec![
        format!("tickTime={TICK}"),
        format!("dataDir={}", directory.join("data").display()),
        format!("clientPortAddress={}", options.host(index).ip),
        format!("clientPort={}", ports[index][0]),
        "maxClientCnxns=0".to_owned(),
        "maxSessionTimeout=120000".to_owned(),
    ];
    if ports.len() > 1 {
        lines.extend(["initLimit=20".to_owned(), "syncLimit=10".to_owned()]);
        for (number, ports) in ports.iter().enumerate() {
            let ip = options.host(number).ip;
            lines.push(format!("server.{}={ip}:{}:{}", number + 1, ports[1], ports[2]));
        }
        fs::write(directory.join("data/myid"), format!("{}\n", index + 1))?;
    }
    let secure_port = ports[index][3].to_string();
    lines.extend(options.lines.iter().map(|line| line.replace("{secure_port}", &secure_port)));
    fs::write(directory.join("zoo.cfg"), lines.join("\n") + "\n")
}
