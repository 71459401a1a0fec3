//! PostgreSQL of one dataset: create, configure, start, watch, promote, stop, fence.
//!
//! Contract: [`Postgres::apply`] brings the server to exactly one configuration, and when it
//! returns that configuration is *in force*, not merely written. At no moment, outside
//! [`cluster::Counts::Alone`], can a commit be acknowledged by this server by itself.
//! [`Postgres::fence`] waits for nothing and nobody.

mod error;
mod probe;

pub use error::{PgCause, PgError};
pub use probe::{Probe, Receiver, Sender};

use crate::exec::OsUser;
use crate::storage::{SeedRequest, SeedSource};
use cluster::{Lsn, Millis, PeerId, PgConfig};
use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
};
use tokio::sync::watch;

/// How PostgreSQL is run on this host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the server programs are; `None` for the newest of the usual places.
    pub bin_dir: Option<PathBuf>,
    /// The mount point of the dataset; the database lives in `data` in it.
    pub dataset: PathBuf,
    /// Where the Unix socket is made.
    pub socket_dir: PathBuf,
    /// This peer: its `application_name` as a standby.
    pub me: PeerId,
    /// `listen_addresses`.
    pub listen: String,
    /// The TCP port, also part of the socket's name.
    pub port: u16,
    /// Who runs PostgreSQL when the sitter runs as root; `None` is `postgres`.
    pub os_user: Option<String>,
    /// The database superuser.
    pub superuser: String,
    /// Lets the superuser in over TCP, with this password; without it only over the Unix socket.
    pub superuser_password: Option<String>,
    /// The role that standbys connect as.
    pub replication_user: String,
    /// Its password.
    pub replication_password: String,
    /// Lines of `pg_hba.conf` for clients, before our last one.
    pub client_hba: Vec<String>,
    /// The operator's settings of `postgresql.conf`.
    pub user_settings: BTreeMap<String, String>,
    /// `max_slot_wal_keep_size` in MiB: what a slot may hold back.
    pub slot_keep_size: u64,
    /// `wal_keep_size` in MiB: what is kept without a slot.
    pub wal_keep_size: u64,
    /// How often a standby reports, at least; rounded up to whole seconds.
    pub status_interval: Millis,
    /// How long a start, a promotion or a standstill of replay may take.
    pub start_timeout: Millis,
    /// How long an orderly shutdown may take.
    pub stop_timeout: Millis,
    /// How long a query or a reload may take.
    pub query_timeout: Millis,
}

/// What kind of database a dataset holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// None at all.
    None,
    /// Created here, never served.
    Prepared,
    /// One that may hold somebody's data.
    Established,
}

/// What a dataset holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its database.
    pub database: Database,
    /// Whether its server runs.
    pub running: bool,
    /// What the running server was last brought to; `None` when that is not known for certain.
    pub applied: Option<PgConfig>,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are cut, the last WAL goes to the standbys, no recovery at the next start.
    Fast,
    /// At once, as in a crash.
    Immediate,
}

/// A configuration that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The WAL position, read after the configuration was in force.
    pub position: Lsn,
}

/// The server ended, and nobody here had asked it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerExit {
    /// The process that ended.
    pub pid: u32,
    /// How it ended; not known of a server that an earlier sitter started.
    pub status: Option<String>,
    /// The end of its log.
    pub log: String,
}

/// The PostgreSQL of one dataset.
pub struct Postgres {
    settings: Settings,
}

#[expect(
    clippy::unused_async,
    clippy::missing_errors_doc,
    missing_docs,
    unused_variables,
    clippy::todo
)]
impl Postgres {
    pub fn open(settings: Settings) -> Result<Postgres, PgError> {
        todo!()
    }
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
    pub fn data(&self) -> &Path {
        todo!()
    }
    pub fn os_user(&self) -> Option<&OsUser> {
        todo!()
    }
    pub async fn inspect(&self) -> Result<Found, PgError> {
        todo!()
    }
    pub async fn create_database(&self) -> Result<(), PgError> {
        todo!()
    }
    pub async fn apply(&self, config: &PgConfig) -> Result<Applied, PgError> {
        todo!()
    }
    pub async fn stop(&self, mode: StopMode) -> Result<(), PgError> {
        todo!()
    }
    /// The synchronous part (no apply goes on, SIGQUIT sent) is done when this returns; the future
    /// resolves when no process of the server is left.
    pub fn fence(&self) -> impl Future<Output = Result<(), PgError>> + Send + 'static {
        async { todo!() }
    }
    pub async fn probe(&self) -> Result<Probe, PgError> {
        todo!()
    }
    pub fn exits(&self) -> watch::Receiver<Option<ServerExit>> {
        todo!()
    }
    /// What a storage backend needs to seed this dataset from these.
    pub fn seed_request(&self, sources: Vec<SeedSource>) -> SeedRequest {
        todo!()
    }
}
