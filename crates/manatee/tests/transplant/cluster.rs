//! A Patroni cluster on this machine, with an etcd of its own, to be moved away from.

use adapters::{
    exec::{Exec, OsUser},
    postgres,
    service::quote,
    testing::{Etcd, free_ports},
};
use anyhow::{Context, Result, ensure};
use manatee::shard::{Donor, commands};
use serde_json::{Value, json};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{certificates::Certificates, harness::wait};

/// Who may change things over the REST API.
const API_USER: &str = "patroni";
const API_PASSWORD: &str = "it's a secret: yes";
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The cluster; the first node is its leader.
pub struct Cluster {
    directory: PathBuf,
    bin_dir: PathBuf,
    user: Option<OsUser>,
    pub nodes: Vec<Node>,
    /// The certificate of the authority, where the REST API talks TLS.
    ca: Option<PathBuf>,
    _etcd: Etcd,
}

/// A member, with its server.
pub struct Node {
    pub name: &'static str,
    pub home: PathBuf,
    port: u16,
    api: u16,
}

impl Node {
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }
}

impl Cluster {
    /// Makes and starts one of as many nodes below this directory, and executes the statements `setup`. Its
    /// REST API talks TLS where certificates are given.
    pub fn make(
        directory: &Path,
        setup: &str,
        nodes: usize,
        settings: Value,
        certificates: Option<&Certificates>,
    ) -> Result<Cluster> {
        let directory = directory.join("patroni");
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let root = rustix::process::geteuid().is_root();
        let ports = free_ports(2 * nodes)?;
        let nodes =
            ["one", "two", "three"].into_iter().zip(ports.chunks(2)).map(|(name, ports)| Node {
                name,
                home: directory.join(name),
                port: ports[0],
                api: ports[1],
            });
        let etcd_directory = directory.join("etcd");
        fs::create_dir(&etcd_directory)?;
        let cluster = Cluster {
            bin_dir: postgres::programs(None)?.0,
            user: root.then(|| OsUser::find("postgres")).transpose()?,
            nodes: nodes.collect(),
            ca: certificates.map(|_| directory.join("ca.pem")),
            _etcd: Etcd::start(&etcd_directory, 1)?,
            directory,
        };
        fs::write(cluster.password_file(), format!("{API_PASSWORD}\n"))?;
        for name in ["ca.pem", "server.pem", "server.key"] {
            let Some(certificates) = certificates else { break };
            let path = cluster.directory.join(name);
            fs::copy(certificates.path(name), &path)?;
            if let Some(user) = &cluster.user {
                chown(&path, Some(user.uid), Some(user.gid))?;
            }
        }
        for node in &cluster.nodes {
            fs::create_dir(&node.home)?;
            if let Some(user) = &cluster.user {
                chown(&node.home, Some(user.uid), Some(user.gid))?;
            }
            fs::write(node.home.join("patroni.yml"), cluster.node_file(node, &settings)?)?;
            cluster.service(node, "start")?;
            // The first one makes the database, then the roles, and is the leader.
            let started = cluster.wait_member(node, |member| {
                let roles = "select count(*) from pg_roles where rolname in ('standby', 'rewind')";
                member["state"] == "running" && cluster.sql(roles).is_ok_and(|count| count == "2")
            });
            started.with_context(|| cluster.logs())?;
        }
        cluster.sql(setup)?;
        cluster.wait_streaming()?;
        Ok(cluster)
    }

    /// Where the password for the REST API is.
    pub fn password_file(&self) -> PathBuf {
        self.directory.join("password")
    }

    /// The file of a Patroni; JSON is YAML.
    fn node_file(&self, node: &Node, settings: &Value) -> Result<String> {
        let address = |port: u16| format!("{}:{port}", Ipv4Addr::LOCALHOST);
        let mut dynamic = json!({ "ttl": 20, "loop_wait": 1, "retry_timeout": 3,
            "postgresql": { "use_pg_rewind": true, "parameters": { "max_connections": 50 } } });
        for (name, value) in settings.as_object().context("settings")? {
            dynamic[name] = value.clone();
        }
        let superuser = self.superuser()?;
        let hba = [
            "local all all peer".to_owned(),
            "host replication standby samehost scram-sha-256".to_owned(),
            "host all all samehost scram-sha-256".to_owned(),
        ];
        let mut file = json!({
            "scope": "moved",
            "name": node.name,
            "restapi": {
                "listen": address(node.api),
                "connect_address": address(node.api),
                "authentication": { "username": API_USER, "password": API_PASSWORD },
            },
            "etcd3": { "host": self._etcd.address(0).to_string() },
            "bootstrap": { "dcs": dynamic, "initdb": ["data-checksums", { "encoding": "UTF8" }] },
            "postgresql": {
                "listen": address(node.port),
                "connect_address": address(node.port),
                "data_dir": node.data(),
                "bin_dir": self.bin_dir,
                "authentication": {
                    "superuser": { "username": superuser, "password": "super" },
                    "replication": { "username": "standby", "password": "follow" },
                    "rewind": { "username": "rewind", "password": "rewind" },
                },
                "parameters": { "unix_socket_directories": node.home },
                "pg_hba": hba,
                // Its own: by default all of a user share one, and take it from each other.
                "pgpass": node.home.join("pgpass"),
                "basebackup": { "checkpoint": "fast" },
            },
        });
        if let Some(ca) = &self.ca {
            file["restapi"]["certfile"] = json!(self.directory.join("server.pem"));
            file["restapi"]["keyfile"] = json!(self.directory.join("server.key"));
            // Its members ask each other.
            file["ctl"] = json!({ "cacert": ca });
        }
        Ok(serde_json::to_string_pretty(&file)?)
    }

    /// What the Patroni and the server of a node told.
    pub fn log(&self, node: &Node) -> String {
        fs::read_to_string(node.home.join("patroni.log")).unwrap_or_default()
    }

    /// What each Patroni and its server told last.
    pub fn logs(&self) -> String {
        let tail = |node: &Node| {
            let log = self.log(node);
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            format!("{}:\n{}\n", node.name, lines.join("\n"))
        };
        self.nodes.iter().map(tail).collect()
    }

    fn superuser(&self) -> Result<String> {
        match &self.user {
            Some(user) => Ok(user.name.clone()),
            None => Ok(OsUser::own_name()?),
        }
    }

    /// What starts and what stops the Patroni of a node, and nothing else, for a shell.
    fn commands(&self, node: &Node) -> [String; 2] {
        let word = |name: &str| quote(&node.home.join(name).display().to_string());
        let (file, log, pid) = (word("patroni.yml"), word("patroni.log"), word("patroni.pid"));
        let runs = format!("[ -e {pid} ] && kill -0 \"$(cat {pid})\" 2>/dev/null");
        let start = format!(
            "{runs} || {{ setsid patroni {file} >>{log} 2>&1 </dev/null & echo $! >{pid}; }}"
        );
        let stop = format!(
            "[ -e {pid} ] || exit 0; kill -TERM \"$(cat {pid})\" 2>/dev/null; n=0; \
             while {runs}; do sleep 0.05; n=$((n+1)); [ $n -lt 1200 ] || exit 1; done; rm -f {pid}"
        );
        [start, stop].map(|command| match &self.user {
            Some(user) => format!("su -s /bin/sh {} -c {}", quote(&user.name), quote(&command)),
            None => command,
        })
    }

    /// Starts or stops a Patroni, behind the back of whoever moves it.
    pub fn service(&self, node: &Node, verb: &str) -> Result<()> {
        let [start, stop] = self.commands(node);
        let command = if verb == "start" { start } else { stop };
        Exec::new("sh").args(["-c", &command]).run_briefly()?;
        Ok(())
    }

    /// The address of a member's REST API.
    fn url(&self, node: &Node) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", Ipv4Addr::LOCALHOST, node.api)
    }

    /// Asks or tells a member.
    pub fn api(&self, node: &Node, method: &str, path: &str, body: Value) -> Result<String> {
        let ca = self.ca.iter().flat_map(|ca| [Path::new("--cacert"), ca]);
        let url = format!("{}{path}", self.url(node));
        let output = Exec::new("curl")
            .args(ca)
            .args(["-sS", "-u", &format!("{API_USER}:{API_PASSWORD}"), "-m"])
            .args([&LIMIT.as_secs().to_string(), "-X", method])
            .args(["-H", "Content-Type: application/json", "-d", &body.to_string(), &url])
            .run_briefly()?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// What a member says of itself.
    pub fn member(&self, node: &Node) -> Result<Value> {
        Ok(serde_json::from_str(&self.api(node, "GET", "/patroni", json!({}))?)?)
    }

    pub fn wait_member(&self, node: &Node, is: impl Fn(&Value) -> bool) -> Result<()> {
        wait(node.name, || match self.member(node) {
            Ok(member) if is(&member) => Ok(()),
            Ok(member) => Err(member.to_string()),
            Err(error) => Err(format!("{error:#}")),
        })
    }

    /// Every node but the leader streams from it.
    pub fn wait_streaming(&self) -> Result<()> {
        let names = self.nodes[1..].iter().map(|node| node.name);
        let mut expected: Vec<&str> = names.collect();
        expected.sort_unstable();
        wait("the standbys", || {
            let streams = "select application_name from pg_stat_replication \
                where state = 'streaming' and usename = 'standby' order by 1";
            let streams = self.sql(streams).map_err(|error| format!("{error:#}"))?;
            let names: Vec<&str> = streams.lines().collect();
            if names == expected { Ok(()) } else { Err(format!("{names:?}")) }
        })
    }

    /// Makes another node the leader. What is said of it does not matter: Patroni waits only so long for what
    /// it ordered, and orders nothing while the new one is slow to answer.
    pub fn switch_over(&self, from: &Node, to: &Node) -> Result<()> {
        let order = json!({ "leader": from.name, "candidate": to.name });
        wait("a switchover", || {
            let cluster = self.cluster(to).map_err(|error| format!("{error:#}"))?;
            let mut members = cluster["members"].as_array().into_iter().flatten();
            if members.any(|member| member["role"] == "leader" && member["name"] == to.name) {
                return Ok(());
            }
            let said = self.api(from, "POST", "/switchover", order.clone());
            let said = said.unwrap_or_else(|error| format!("{error:#}"));
            Err(format!("{said}; before that {cluster}"))
        })
    }

    /// What a node says of all.
    fn cluster(&self, node: &Node) -> Result<Value> {
        Ok(serde_json::from_str(&self.api(node, "GET", "/cluster", json!({}))?)?)
    }

    /// The cluster is as it was: not paused, the first node leads, the others follow.
    pub fn check_whole(&self) -> Result<()> {
        let cluster = self.cluster(&self.nodes[0])?;
        ensure!(cluster["pause"] != json!(true), "{cluster}");
        let members = cluster["members"].as_array().context("members")?;
        let leader = members.iter().find(|member| member["role"] == "leader");
        ensure!(leader.is_some_and(|leader| leader["name"] == self.nodes[0].name), "{cluster}");
        ensure!(members.len() == self.nodes.len(), "{cluster}");
        self.wait_streaming()
    }

    /// What these statements give at a node.
    pub fn sql_at(&self, node: &Node, sql: &str) -> Result<String> {
        let output = Exec::new(self.bin_dir.join("psql"))
            .as_user(self.user.as_ref())
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-p"])
            .arg(node.port.to_string())
            .arg("-h")
            .arg(&node.home)
            .args(["-U", &self.superuser()?, "-c", sql])
            .run_briefly()?;
        Ok(String::from_utf8_lossy(&output).trim_end().to_owned())
    }

    /// Whether the server of a node runs.
    pub fn runs(&self, node: &Node) -> bool {
        self.sql_at(node, "select 1").is_ok()
    }
}

impl Donor for Cluster {
    fn inventory(&self) -> Result<toml::Table> {
        let leader = &self.nodes[0];
        let service = |node: &Node| {
            let [start, stop] = self.commands(node);
            commands(start, stop)
        };
        let text = |text: &Path| toml::Value::from(text.display().to_string());
        let standbys = self.nodes[1..].iter().map(|node| {
            let mut standby = toml::Table::new();
            standby.insert("name".to_owned(), node.name.into());
            standby.insert("data_dir".to_owned(), text(&node.data()));
            standby.insert("service".to_owned(), service(node).into());
            toml::Value::from(standby)
        });
        // Any member may be asked; while the donor is stopped this one is.
        let asked = self.nodes.last().context("a node")?;
        let mut patroni = toml::Table::new();
        patroni.insert("url".to_owned(), format!("{}/", self.url(asked)).into());
        patroni.extend(self.ca.iter().map(|ca| ("ca".to_owned(), text(ca))));
        patroni.insert("user".to_owned(), API_USER.into());
        patroni.insert("password_file".to_owned(), text(&self.password_file()));
        let mut donor = toml::Table::new();
        let mut set = |name: &str, value: toml::Value| donor.insert(name.to_owned(), value);
        set("kind", "patroni".into());
        set("address", Ipv4Addr::LOCALHOST.to_string().into());
        set("port", i64::from(leader.port).into());
        set("data_dir", text(&leader.data()));
        set("bin_dir", text(&self.bin_dir));
        set("socket_dir", text(&leader.home));
        set("superuser", self.superuser()?.into());
        set("os_user", self.superuser()?.into());
        set("service", service(leader).into());
        set("standbys", standbys.collect::<Vec<_>>().into());
        set("patroni", patroni.into());
        Ok(donor)
    }

    fn servers(&self) -> Vec<(String, (IpAddr, u16))> {
        let server = |node: &Node| (node.name.to_owned(), (Ipv4Addr::LOCALHOST.into(), node.port));
        self.nodes.iter().map(server).collect()
    }

    fn sql(&self, sql: &str) -> Result<String> {
        self.sql_at(&self.nodes[0], sql)
    }
}
