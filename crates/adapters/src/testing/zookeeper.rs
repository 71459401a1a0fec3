//! A private ZooKeeper: one server or several, from Debian's packages.

use super::Host;
use super::servers::{Servers, StartError, exchange, find};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where Debian has the server.
const JAR: &str = "/usr/share/java/zookeeper.jar";
/// Where Debian has what the server needs to log, and to speak TLS.
const JARS: &str = "/usr/share/java";
/// As short as keeps an ensemble on a busy machine together. A session is at least two of them.
const TICK: u32 = 500;

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
    places: Vec<Place>,
    class_path: String,
    syncs: bool,
    servers: Servers,
}

/// Where a server is.
#[derive(Debug)]
struct Place {
    host: Host,
    directory: PathBuf,
    port: u16,
    secure_port: u16,
}

impl Ensemble {
    /// Starts this many servers with their files in `directory`, and waits until all serve.
    ///
    /// # Errors
    /// When ZooKeeper is not installed, or does not serve in time.
    pub fn start(directory: &Path, count: usize) -> Result<Ensemble, StartError> {
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
    ) -> Result<Ensemble, StartError> {
        if !Path::new(JAR).exists() {
            return Err(StartError::Missing(JAR, "zookeeper"));
        }
        let ports = super::free_ports(4 * count);
        let ports = ports.map_err(|error| StartError::Ports("ZooKeeper", error))?;
        let ports: Vec<&[u16]> = ports.chunks(4).collect();
        let mut places = Vec::new();
        for (index, own) in ports.iter().enumerate() {
            let directory = directory.join(format!("zookeeper-{index}"));
            write_files(&directory, index, &ports, options)
                .map_err(|source| StartError::Files { path: directory.clone(), source })?;
            let (port, secure_port) = (own[0], own[3]);
            let host = options.host(index);
            places.push(Place { host, directory, port, secure_port });
        }
        let logs = places.iter().map(|place| place.directory.join("log"));
        let servers = Servers::new("ZooKeeper", logs);
        let (class_path, syncs) = (class_path(), options.syncs);
        let ensemble = Ensemble { places, class_path, syncs, servers };
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
        self.servers.count()
    }

    /// Where a server takes clients.
    pub fn address(&self, index: usize) -> SocketAddr {
        (self.places[index].host.ip, self.places[index].port).into()
    }

    /// The port of a server that `{secure_port}` stood for.
    pub fn secure_address(&self, index: usize) -> SocketAddr {
        (self.places[index].host.ip, self.places[index].secure_port).into()
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
        exchange(self.address(index), command)
    }

    /// The same from one that is busy, and answers as soon as it can. `None` when it does not in time.
    pub fn ask(&self, index: usize, command: &str) -> Option<String> {
        find(|| self.four_letters(index, command).ok())
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

    /// Waits for a leader: a server that is busy does not say at once that it is one. `None` when there is none
    /// in time.
    pub fn wait_for_leader(&self) -> Option<usize> {
        find(|| self.leader())
    }

    /// Kills a server, if it runs, as a power failure would.
    pub fn kill(&self, index: usize) {
        self.servers.kill(index);
    }

    /// Starts a server that was killed; does not wait until it serves.
    ///
    /// # Errors
    /// When Java cannot be started.
    pub fn launch(&self, index: usize) -> Result<(), StartError> {
        let Place { host, directory, .. } = &self.places[index];
        let class_path = format!("{}:{}", directory.display(), self.class_path);
        let sync = if self.syncs { "yes" } else { "no" };
        self.servers.launch(index, |exec| {
            exec.args(&host.enter)
                .arg("java")
                .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                .args([
                    "-Dzookeeper.admin.enableServer=false",
                    "-Dzookeeper.4lw.commands.whitelist=*",
                ])
                .arg(format!("-Dzookeeper.forceSync={sync}"))
                .args(["-cp", &class_path, "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
                .arg(directory.join("zoo.cfg"))
        })
    }

    /// Waits until a server serves.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_serving(&self, index: usize) -> Result<(), StartError> {
        self.servers.wait(index, || self.mode(index).is_some())
    }

    /// Lets a server stand still: it keeps its connections and answers nothing.
    pub fn freeze(&self, index: usize) {
        self.servers.freeze(index);
    }

    /// Lets it go on.
    pub fn thaw(&self, index: usize) {
        self.servers.thaw(index);
    }

    /// The process of a server; `None` when it was killed.
    pub fn process(&self, index: usize) -> Option<u32> {
        self.servers.process(index)
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
        "maxSessionTimeout=600000".to_owned(),
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
