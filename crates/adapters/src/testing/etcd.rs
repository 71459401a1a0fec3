//! A private etcd: one server or several, from Debian's package.

use super::servers::{Servers, StartError, exchange};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

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
    servers: Servers,
}

impl Etcd {
    /// Starts this many servers with their files in `directory`, and waits until all serve.
    ///
    /// # Errors
    /// When etcd is not installed, or does not serve in time.
    pub fn start(directory: &Path, count: usize) -> Result<Etcd, StartError> {
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
    ) -> Result<Etcd, StartError> {
        let ports = super::free_ports(3 * count);
        let ports = ports.map_err(|error| StartError::Ports("etcd", error))?;
        let logs = (0..count).map(|index| directory.join(format!("etcd-{index}.log")));
        let etcd = Etcd {
            directory: directory.to_owned(),
            options,
            ports: ports.chunks(3).map(|ports| [ports[0], ports[1], ports[2]]).collect(),
            servers: Servers::new("etcd", logs),
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
        self.servers.count()
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
        exchange(address, &format!("GET {path} HTTP/1.0\r\n\r\n")).ok()
    }

    /// Kills a server, if it runs, as a power failure would.
    pub fn kill(&self, index: usize) {
        self.servers.kill(index);
    }

    /// Starts a server that was killed, with the data that it had; does not wait until it serves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&self, index: usize) -> Result<(), StartError> {
        let url = |port: u16| format!("http://{}", SocketAddr::from((self.options.ip, port)));
        let [mut client, peer, metrics] = self.ports[index].map(url);
        if self.options.secure {
            client = client.replace("http://", "https://");
        }
        let member = |(number, ports): (usize, &[u16; 3])| format!("s{number}={}", url(ports[1]));
        let members: Vec<_> = self.ports.iter().enumerate().map(member).collect();
        self.servers.launch(index, |exec| {
            exec.arg("etcd")
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
        })
    }

    /// Waits until a server serves and knows a leader.
    ///
    /// # Errors
    /// When it does not in time, or ends.
    pub fn wait_serving(&self, index: usize) -> Result<(), StartError> {
        self.servers.wait(index, || self.serves(index))
    }

    /// Lets a server stand still: it keeps its connections and answers nothing.
    pub fn freeze(&self, index: usize) {
        self.servers.freeze(index);
    }

    /// Lets it go on.
    pub fn thaw(&self, index: usize) {
        self.servers.thaw(index);
    }
}
