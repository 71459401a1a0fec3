//! Storage: the dataset that holds a database in `data`, how it is filled from a peer, and how what
//! is in the way is kept.

mod dir;

pub use dir::Dir;

use crate::exec::{ExecError, OsUser};
use crate::postgres::PgCause;
use async_trait::async_trait;
use cluster::PeerId;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::sync::watch;

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The name of the backend.
    pub backend: &'static str,
    /// Whether it has snapshots of its own: without them there is no going back to an earlier
    /// state, and data travels only as base backups of a running PostgreSQL.
    pub snapshots: bool,
}

/// A PostgreSQL to take a base backup from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedSource {
    /// Who it is.
    pub peer: PeerId,
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// What is to be fetched, and how.
#[derive(Debug, Clone)]
pub struct SeedRequest {
    /// Tried in this order until one succeeds.
    pub sources: Vec<SeedSource>,
    /// The replication role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The program.
    pub pg_basebackup: PathBuf,
    /// Who owns the database; `None` for our own user.
    pub os_user: Option<OsUser>,
}

/// What a seed is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SeedPhase {
    /// Removing the remains of earlier ones, asking the source, waiting for its checkpoint.
    #[default]
    Preparing,
    /// Data comes in.
    Receiving,
    /// All is here; it is being checked and written out.
    Finishing,
    /// The database is in its place.
    Done,
}

/// How far a seed is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeedProgress {
    /// Received so far.
    pub bytes_done: u64,
    /// The source's estimate of all, which may be exceeded.
    pub bytes_total: Option<u64>,
    /// Where from.
    pub source: Option<PeerId>,
    /// What is being done.
    pub phase: SeedPhase,
}

/// A database that has been fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeded {
    /// Where from.
    pub source: PeerId,
    /// The database's identity.
    pub system_identifier: u64,
    /// The timeline of the backup.
    pub timeline: u32,
}

/// A failed operation on a dataset.
#[derive(Debug, thiserror::Error)]
#[error("dataset {}: cannot {operation}", dataset.display())]
pub struct StorageError {
    /// Its mount point.
    pub dataset: PathBuf,
    /// What was being done.
    pub operation: &'static str,
    /// Why it failed.
    #[source]
    pub cause: StorageCause,
}

/// Why an operation on a dataset failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageCause {
    /// A database is there, and is never overwritten.
    #[error("{} is in the way and is never overwritten: set it aside", .0.display())]
    InTheWay(PathBuf),
    /// There is no database.
    #[error("there is no {}", .0.display())]
    NoDatabase(PathBuf),
    /// No source was named.
    #[error("no peer was named to fetch the database from")]
    NoSource,
    /// No source gave a database; why, each.
    #[error("no source gave a database: {}", describe(.0))]
    AllFailed(Vec<(PeerId, Box<StorageCause>)>),
    /// Not enough room.
    #[error("{needed} bytes are needed and {free} are free: free some space")]
    NoSpace {
        /// What the source estimates.
        needed: u64,
        /// What an unprivileged user may take.
        free: u64,
    },
    /// The file system became full; the source's estimate had not come yet, or was too low.
    #[error("no space is left in the dataset: free some")]
    Full(#[source] ExecError),
    /// What came is no complete database.
    #[error("what {peer} sent is not complete: {problem}")]
    Incomplete {
        /// Who.
        peer: PeerId,
        /// What is missing.
        problem: String,
    },
    /// A reason that cannot be part of a file name.
    #[error("{0:?} cannot be part of a file name: use letters, digits and dashes")]
    BadReason(String),
    /// A server runs in it.
    #[error("a PostgreSQL server runs in {} (process {pid}): stop it first", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
        /// One of its processes.
        pid: u32,
    },
    /// A command failed.
    #[error(transparent)]
    Command(#[from] ExecError),
    /// A file of the database.
    #[error(transparent)]
    Database(#[from] PgCause),
    /// A file.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn describe(failures: &[(PeerId, Box<StorageCause>)]) -> String {
    let each = failures.iter().map(|(peer, cause)| {
        let mut text = format!("{peer}: {cause}");
        let mut source = std::error::Error::source(cause.as_ref());
        while let Some(error) = source {
            text += &format!(": {error}");
            source = error.source();
        }
        text
    });
    each.collect::<Vec<_>>().join("; ")
}

/// A dataset on some kind of storage.
#[async_trait]
pub trait Storage: Send + Sync {
    /// What this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// Its mount point.
    fn dataset(&self) -> &Path;

    /// Fills the empty dataset with a standby's copy of a source's database, from the first source
    /// that gives one. Dropping the future stops the transfer; nothing that could be started is
    /// left then, and what is left is removed by the next seed.
    async fn seed(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageError>;

    /// Renames the database out of the way; where to. Nothing is deleted.
    async fn set_aside(&self, reason: &str) -> Result<PathBuf, StorageError>;

    /// Deletes the oldest of the databases that were set aside, all but `keep`; which.
    async fn prune_aside(&self, keep: usize) -> Result<Vec<PathBuf>, StorageError>;
}
