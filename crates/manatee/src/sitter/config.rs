//! The sitter's file: TOML, every field with a default but the few that nobody else can know.
//!
//! `etc/sitter.toml` in the repository shows every field with its default and unit; a test reads
//! it, so that it stays true.

use anyhow::{Context, Result, bail};
use cluster::{DeposedPolicy, Millis, PeerIdent};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};
use toml::Spanned;

/// A sitter's configuration, validated.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of the shard.
    pub shard: String,
    /// Where the peers of the shard meet: `zk://host:port,host:port/root`,
    /// `etcd://host:port,host:port/root` or `sqlite:/path`.
    pub coordination: String,
    /// Who we are to a ZooKeeper ensemble.
    #[serde(default)]
    pub zookeeper: AccessConfig,
    /// Who we are to an etcd.
    #[serde(default)]
    pub etcd: AccessConfig,
    /// The directory of this peer: what belongs to it, and the database (in `data/`), unless
    /// [`Config::storage`] puts that on a file system of its own.
    pub dataset: PathBuf,
    /// What holds the database.
    #[serde(default)]
    pub storage: StorageConfig,
    /// The address that other peers reach this one at; part of its name.
    pub ip: IpAddr,
    /// The zone or host that operators name this peer by.
    pub zone: Option<String>,
    /// Serve alone.
    #[serde(default)]
    pub one_node_write_mode: bool,
    /// How a deposed peer comes back.
    #[serde(default)]
    pub deposed: Deposed,
    /// After how long without contact the session expires.
    #[serde(default = "Seconds::of::<60>")]
    pub session_timeout: Spanned<Seconds>,
    /// How long one proof lets a primary serve; the session timeout where it is not given.
    pub lease: Option<Spanned<Seconds>>,
    /// How long a call to the coordination may take.
    #[serde(default = "Seconds::plain::<10>")]
    pub coordination_timeout: Seconds,
    /// How many databases that were replaced are kept aside.
    #[serde(default = "default_keep_aside")]
    pub keep_aside: usize,
    /// The server.
    #[serde(default)]
    pub postgres: PostgresConfig,
    /// The role that standbys stream as.
    pub replication: ReplicationConfig,
    /// The backup service.
    #[serde(default)]
    pub backup: BackupConfig,
    /// The certificates of the shard; without them the backup service speaks plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Periodic snapshots.
    #[serde(default)]
    pub snapshots: SnapshotsConfig,
    /// The status endpoint.
    #[serde(default)]
    pub status: StatusConfig,
    /// How PostgreSQL is watched.
    #[serde(default)]
    pub health: HealthConfig,
    /// What is written down.
    #[serde(default)]
    pub log: LogConfig,
}

/// See [`DeposedPolicy`].
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deposed {
    /// By itself.
    #[default]
    Auto,
    /// By an operator.
    Manual,
}

/// The server of this peer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// Its port; part of the peer's name.
    pub port: u16,
    /// What it listens on; the peer's address where it is not given.
    pub listen: Option<String>,
    /// Where its programs are; looked for where it is not given.
    pub bin_dir: Option<PathBuf>,
    /// The user that it runs as when the sitter is root.
    pub os_user: String,
    /// The database superuser.
    pub superuser: String,
    /// Its password for connections over TCP; without one it is reached by the socket only.
    pub superuser_password: Option<String>,
    /// Where its socket is; `run/` in the dataset where it is not given.
    pub socket_dir: Option<PathBuf>,
    /// Lines of `pg_hba.conf` for clients.
    pub client_access: Vec<String>,
    /// How much WAL a replication slot may hold back, in MiB.
    pub slot_keep_mib: u64,
    /// How much WAL is kept for standbys without a slot, in MiB.
    pub wal_keep_mib: u64,
    /// How long a start may take, crash recovery included.
    pub start_timeout: Seconds,
    /// How long an orderly stop may take before it becomes an immediate one.
    pub stop_timeout: Seconds,
    /// How long a query of the sitter may take.
    pub query_timeout: Seconds,
    /// Settings of PostgreSQL, as in `postgresql.conf`.
    pub settings: BTreeMap<String, toml::Value>,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        PostgresConfig {
            port: 5432,
            listen: None,
            bin_dir: None,
            os_user: "postgres".to_owned(),
            superuser: "postgres".to_owned(),
            superuser_password: None,
            socket_dir: None,
            client_access: vec!["host all all all scram-sha-256".to_owned()],
            slot_keep_mib: 16 * 1024,
            wal_keep_mib: 1024,
            start_timeout: Seconds(300.0),
            stop_timeout: Seconds(60.0),
            query_timeout: Seconds(5.0),
            settings: BTreeMap::new(),
        }
    }
}

/// The role that standbys stream as; the same on all peers of a shard.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicationConfig {
    /// Its name.
    #[serde(default = "default_replication_user")]
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// A file that holds it, instead.
    pub password_file: Option<PathBuf>,
}

/// The status endpoint.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusConfig {
    /// Its port; the one after PostgreSQL's where it is not given.
    pub port: Option<Spanned<u16>>,
    /// What it listens on; the peer's address where it is not given.
    pub listen: Option<IpAddr>,
}

/// How PostgreSQL is watched.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// How often it is asked.
    pub interval: Seconds,
    /// How long it may fail before a primary or sync gives up its session.
    pub give_up: Seconds,
    /// The first delay before a failed operation is tried again; doubled each time.
    pub retry_min: Seconds,
    /// The longest.
    pub retry_max: Seconds,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig {
            interval: Seconds(1.0),
            give_up: Seconds(30.0),
            retry_min: Seconds(0.5),
            retry_max: Seconds(30.0),
        }
    }
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged to stderr: `error`, `warn`, `info`, `debug`, or a filter by module.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// How large the trace of events and actions grows before it is begun anew, in MiB; 0: none.
    pub trace_mib: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".to_owned(), json: false, trace_mib: 64 }
    }
}

/// A length of time as it is written in the file: seconds, with or without a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Seconds(f64);

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        if (0.001..=31_536_000.0).contains(&seconds) {
            Ok(Seconds(seconds))
        } else {
            Err(format!("{seconds} is no length of time from 0.001 seconds to a year"))
        }
    }
}

impl Seconds {
    fn plain<const N: u32>() -> Self {
        Seconds(f64::from(N))
    }

    fn of<const N: u32>() -> Spanned<Self> {
        Spanned::new(0..0, Self::plain::<N>())
    }

    /// In the unit of the machine.
    pub fn millis(self) -> Millis {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded above
        Millis((self.0 * 1000.0).round() as u64)
    }
}

fn default_keep_aside() -> usize {
    2
}

fn default_replication_user() -> String {
    "manatee_replication".to_owned()
}

impl Config {
    /// Reads and validates a sitter's file.
    ///
    /// # Errors
    /// Names the file, and the line where there is one.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let mut config: Config =
            toml::from_str(&text).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        config.check(&text).map_err(|problem| anyhow::anyhow!("{name}: {problem}"))?;
        if let Some(file) = &config.replication.password_file {
            let password = fs::read_to_string(file).with_context(|| {
                format!("{name}: replication.password_file: cannot read {}", file.display())
            })?;
            config.replication.password = Some(password.trim_end_matches('\n').to_owned());
        }
        if config.replication.password.as_deref().is_none_or(str::is_empty) {
            bail!(
                "{name}: replication: give password or password_file, not empty: standbys need it"
            );
        }
        Ok(config)
    }

    /// The port of the status endpoint.
    pub fn status_port(&self) -> u16 {
        self.status.port.as_ref().map_or(self.postgres.port.wrapping_add(1), |port| *port.get_ref())
    }

    /// Who this peer is. Its registration also says where its status is to be had.
    pub fn ident(&self) -> Result<PeerIdent> {
        let zone = match &self.zone {
            Some(zone) => zone.clone(),
            None => rustix::system::uname()
                .nodename()
                .to_str()
                .context("the name of this host is not UTF-8: give `zone`")?
                .to_owned(),
        };
        let ip = self.ip.to_string();
        let mut peer = PeerIdent::new(&ip, self.postgres.port, self.backup.port, &zone);
        let host = if self.ip.is_ipv6() { format!("[{ip}]") } else { ip };
        let status = format!("http://{host}:{}", self.status_port());
        peer.extra.insert("statusUrl".to_owned(), status.into());
        Ok(peer)
    }

    /// Who we are to the coordination. `file` is the one that this was read from, for messages.
    ///
    /// # Errors
    /// As [`AccessTables::access`].
    pub fn access(&self, file: &Path) -> Result<adapters::coord::Access> {
        let (zookeeper, etcd) = (self.zookeeper.clone(), self.etcd.clone());
        let tables = AccessTables { zookeeper, etcd, file: file.to_owned() };
        Ok(tables.access(&self.coordination)?)
    }

    /// How the deposed come back, as the machine has it.
    pub fn deposed_policy(&self) -> DeposedPolicy {
        match self.deposed {
            Deposed::Auto => DeposedPolicy::Auto,
            Deposed::Manual => DeposedPolicy::Manual,
        }
    }

    /// How long one proof lets a primary serve.
    pub fn lease(&self) -> Millis {
        self.lease.as_ref().unwrap_or(&self.session_timeout).get_ref().millis()
    }

    /// Settings of PostgreSQL as text.
    ///
    /// # Errors
    /// When one is a table or a list.
    pub fn user_settings(&self) -> Result<BTreeMap<String, String>> {
        let text = |value: &toml::Value| match value {
            toml::Value::String(text) => Some(text.clone()),
            toml::Value::Boolean(on) => Some(if *on { "on" } else { "off" }.to_owned()),
            toml::Value::Integer(number) => Some(number.to_string()),
            toml::Value::Float(number) => Some(number.to_string()),
            _ => None,
        };
        let given = self.postgres.settings.iter().map(|(name, value)| match text(value) {
            Some(value) => Ok((name.clone(), value)),
            None => bail!("postgres.settings.{name}: give a text, a number or a boolean"),
        });
        let given = given.collect::<Result<BTreeMap<_, _>>>()?;
        let mut settings = self.storage.settings();
        settings.retain(|name, _| !given.keys().any(|given| given.eq_ignore_ascii_case(name)));
        settings.extend(given);
        Ok(settings)
    }
}

pub use adapters::coord::{AccessConfig, AccessTables};
mod backup;
mod check;
pub use backup::{BackupConfig, SnapshotsConfig, TlsConfig};
mod storage;
pub use storage::{Backend, StorageConfig};

#[cfg(test)]
mod tests;
