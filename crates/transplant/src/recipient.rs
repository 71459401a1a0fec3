//! A peer of the recipient: told by its own program on its own host (`manatee transplant peer …`), and
//! asked over its own socket.

pub use crate::donor::Control;
use crate::{RecipientPeer, donor::psql_args};
use adapters::{exec::Exec, service::Order};
use anyhow::{Context, Result, bail};
use cluster::{ClusterState, Lsn, Millis, PeerIdent};
use saga::Tell;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// How long a question may take.
const QUERY_LIMIT: Millis = Millis(60_000);

/// Settings of which a standby needs at least as much as its primary, with PostgreSQL's defaults.
pub const REPLICATED: [(&str, u64); 5] = [
    ("max_connections", 100),
    ("max_locks_per_transaction", 64),
    ("max_prepared_transactions", 0),
    ("max_wal_senders", 10),
    ("max_worker_processes", 8),
];

/// What a peer is, by its sitter's file and by what lies on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerFacts {
    /// Its name and addresses.
    pub peer: PeerIdent,
    /// The shard.
    pub shard: String,
    /// Where the shard's peers meet.
    #[serde(default)]
    pub coordination: String,
    /// What kind of storage it has.
    pub storage: String,
    /// The major version of its server programs.
    pub version: u32,
    /// Whether it has a database.
    pub has_database: bool,
    /// Whether a sitter runs.
    pub sitter_runs: bool,
    /// Its data directory.
    pub data_dir: String,
    /// Where its server programs are.
    pub bin_dir: String,
    /// Where its socket is.
    pub socket_dir: String,
    /// Its port.
    pub port: u16,
    /// Who runs its server.
    pub os_user: Option<String>,
    /// The database superuser.
    pub superuser: String,
    /// The role that standbys stream as.
    pub replication_user: String,
    /// Its replication slot at its upstream.
    pub slot: String,
    /// What its server will have of each of the settings of which a standby needs at least as much as its
    /// primary ([`REPLICATED`]).
    pub replicated: BTreeMap<String, u64>,
    /// What its sitter's file says of the libraries that its server loads.
    #[serde(default)]
    pub library_settings: BTreeMap<String, String>,
    /// Why its server could not run there, where that was asked for.
    #[serde(default)]
    pub hindrances: Vec<Hindrance>,
    /// Free space where the database goes, in bytes.
    pub free_bytes: u64,
    /// What there is of the place for the backup, where it was asked for.
    #[serde(default)]
    pub backup: Option<BackupPlace>,
    /// The cluster state of the shard, if there is one.
    pub state: Option<serde_json::Value>,
}

/// Why the server, or the sitter, of a peer could not run where it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hindrance {
    /// An address that cannot be listened on: for what, which one, and why.
    Address(String, String, String),
    /// A directory that the database cannot be put into, and why.
    Directory(String, String),
}

/// A directory that a backup is to lie in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupPlace {
    /// Why it is no such place.
    pub problem: Option<String>,
    /// Free space, in bytes.
    pub free_bytes: u64,
    /// Whether the peer's database takes from that space, too.
    pub beside_database: bool,
}

/// How far a copy is, as `peer receive` prints it line by line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Bytes that came.
    pub bytes_done: u64,
    /// An estimate of all.
    pub bytes_total: Option<u64>,
    /// Bytes a second since it began.
    pub rate: Option<u64>,
    /// How long it will still take at that rate, in seconds.
    pub remaining: Option<u64>,
}

impl Progress {
    /// After this time.
    pub fn after(took: Millis, bytes_done: u64, bytes_total: Option<u64>) -> Progress {
        let rate = bytes_done * 1000 / took.0.max(1);
        let left = bytes_total.map(|total| total.saturating_sub(bytes_done));
        let remaining = left.filter(|_| rate > 0).map(|left| left / rate);
        Progress { bytes_done, bytes_total, rate: Some(rate), remaining }
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.bytes_done >> 20)?;
        if let Some(total) = self.bytes_total {
            write!(f, " of {} MiB", total.max(self.bytes_done) >> 20)?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", {} MiB/s", rate >> 20)?;
        }
        self.remaining.map_or(Ok(()), |seconds| write!(f, ", {seconds} s left"))
    }
}

/// A peer.
#[derive(Debug, Clone)]
pub(crate) struct Recipient {
    pub config: RecipientPeer,
    pub facts: PeerFacts,
    pub limit: Millis,
}

/// A verb of `manatee transplant peer`, for a peer's host.
fn command<'a>(config: &'a RecipientPeer, verb: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let mut command = vec![config.manatee.as_str(), "transplant", "peer"];
    command.extend(verb.split(' '));
    command.extend(["--config", &config.config]);
    command.extend(args);
    command
}

/// Runs one there.
fn verb(config: &RecipientPeer, verb: &str, args: &[&str]) -> Result<Exec> {
    Ok(config.host.exec(None, &command(config, verb, args))?)
}

impl Recipient {
    /// A verb as a command that takes long.
    pub fn exec(&self, name: &str, args: &[&str]) -> Result<Exec> {
        Ok(self.config.host.exec_alone(None, &command(&self.config, name, args))?)
    }
}

/// What a peer says of itself.
///
/// # Errors
/// When it cannot be asked.
async fn facts(config: &RecipientPeer, args: &[&str]) -> Result<PeerFacts> {
    let output = verb(config, "facts", args)?.limit(QUERY_LIMIT).run().await?.stdout;
    parse(&output)
}

/// What it says, and what would hinder it, while nothing of it runs.
///
/// # Errors
/// When it cannot be asked.
pub(crate) async fn look(config: &RecipientPeer, backup: Option<&str>) -> Result<PeerFacts> {
    let backup = backup.map(|dir| ["--backup-dir", dir]);
    let args = backup.iter().flatten().copied().chain(["--hindrances"]);
    facts(config, &args.collect::<Vec<_>>()).await
}

fn parse<T: DeserializeOwned>(output: &[u8]) -> Result<T> {
    let text = String::from_utf8_lossy(output);
    serde_json::from_str(&text).with_context(|| format!("it answers something unexpected: {text}"))
}

impl Recipient {
    pub fn zone(&self) -> &str {
        &self.facts.peer.zone_id
    }

    fn told(&self, what: &str) -> String {
        format!("{} ({}) on {}: {what}", self.zone(), self.facts.peer.id, self.config.host)
    }

    /// Runs a verb to its end.
    pub async fn verb<T: DeserializeOwned>(&self, name: &str, args: &[&str]) -> Result<T> {
        let told = || self.told(&format!("`manatee transplant peer {name}` failed"));
        let output = verb(&self.config, name, args)?.run().await.with_context(told)?;
        parse(&output.stdout).with_context(told)
    }

    /// Runs a verb that tells how far it is.
    pub async fn long_verb<T: DeserializeOwned>(
        &self,
        name: &str,
        args: &[&str],
        tell: &dyn Tell,
    ) -> Result<T> {
        let told = || self.told(&format!("`manatee transplant peer {name}` failed"));
        let on_line = |line: &str| {
            if let Ok(progress) = serde_json::from_str::<Progress>(line) {
                tell.tell(&progress.to_string());
            } else if let Ok(what) = serde_json::from_str::<String>(line) {
                tell.tell(&what);
            }
        };
        let exec = self.config.host.exec_alone(None, &command(&self.config, name, args))?;
        let output = exec.run_with(on_line).await.with_context(told)?;
        parse(&output.stdout).with_context(told)
    }

    /// An operator's command about its shard.
    pub async fn adm(&self, args: &[&str]) -> Result<String> {
        let command = [self.config.manatee.as_str(), "adm", "--config", &self.config.config];
        let exec = self.config.host.exec(None, &[&command, args].concat())?;
        let output = exec.limit(QUERY_LIMIT).run().await;
        let output = output.with_context(|| self.told(&format!("`manatee adm {}`", args[0])))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The cluster state of the shard.
    pub async fn state(&self) -> Result<Option<ClusterState>> {
        let facts = facts(&self.config, &[]).await?;
        facts.state.map(ClusterState::from_value).transpose().map_err(Into::into)
    }

    /// What the last of these statements gives.
    pub async fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("postgres", sql, None).await
    }

    /// The same in another database, and within another time.
    pub async fn sql_in(&self, database: &str, sql: &str, limit: Option<Millis>) -> Result<String> {
        let facts = &self.facts;
        let (psql, port) = (format!("{}/psql", facts.bin_dir), facts.port.to_string());
        let args = psql_args(&facts.socket_dir, &port, &facts.superuser, database);
        let command: Vec<&str> =
            std::iter::once(psql.as_str()).chain(args.iter().map(String::as_str)).collect();
        let exec = self.config.host.exec(facts.os_user.as_deref(), &command)?;
        let output = exec.limit(limit.unwrap_or(QUERY_LIMIT)).stdin(sql).run().await;
        let output = output.with_context(|| self.told("its server does not answer as asked"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Its control file; of a running server what it last wrote there.
    pub async fn control(&self) -> Result<Control> {
        self.verb("control", &[]).await
    }

    /// Up to where it has received and replayed, while it follows.
    pub async fn replayed(&self) -> Result<Lsn> {
        let text = self.sql("select pg_last_wal_replay_lsn()").await?;
        text.parse().map_err(|_| anyhow::anyhow!(self.told(&format!("no position: {text:?}"))))
    }

    /// Tells the service of its sitter.
    pub async fn tell(&self, order: Order) -> Result<()> {
        let told = self.config.service.tell(&self.config.host, order, self.limit).await;
        told.with_context(|| self.told(&format!("its service cannot be told to {order:?}")))
    }

    /// Whether its sitter runs.
    pub async fn sitter_runs(&self) -> Result<bool> {
        Ok(facts(&self.config, &[]).await?.sitter_runs)
    }

    /// Stops its server, which no sitter acts on.
    pub async fn rest(&self) -> Result<()> {
        let _: serde_json::Value = self.verb("rest", &[]).await?;
        Ok(())
    }

    /// Stops its sitter, and with it its server.
    pub async fn stop(&self) -> Result<()> {
        self.tell(Order::Stop).await?;
        if self.sitter_runs().await? {
            bail!(self.told("its service says that its sitter was stopped, and it runs"));
        }
        Ok(())
    }
}

#[cfg(test)]
impl PeerFacts {
    /// Of a peer that has nothing yet.
    pub(crate) fn example(version: u32) -> PeerFacts {
        let facts = serde_json::json!({
            "peer": {
                "id": "10.0.0.1:5432:12345", "zoneId": "amber", "ip": "10.0.0.1",
                "pgUrl": "tcp://postgres@10.0.0.1:5432/postgres",
                "backupUrl": "http://10.0.0.1:12345",
            },
            "shard": "1", "storage": "dir", "version": version, "hasDatabase": false,
            "sitterRuns": false, "dataDir": "/d", "binDir": "/b", "socketDir": "/s", "port": 5432,
            "osUser": null, "superuser": "postgres", "replicationUser": "r", "slot": "s",
            "replicated": {}, "freeBytes": 0, "state": null,
        });
        serde_json::from_value(facts).expect("facts of a peer")
    }
}
