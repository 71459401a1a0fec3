//! Storage: the dataset that holds a database in `data`, how it is filled from a peer, how what is in
//! the way is kept, and, where the file system has them, its snapshots and how they travel.
//!
//! Two traits: [`Storage`] is what a sitter needs of any backend; [`Snapshots`] is what file systems
//! with snapshots can do beyond it. A [`Volume`] is a [`Storage`] on one of the latter.

mod arrival;
mod aside;
mod basebackup;
mod btrfs;
mod dir;
mod error;
mod incoming;
mod mounts;
mod names;
mod plan;
mod prune;
mod retention;
mod snapshots;
mod volume;
mod zfs;

pub use btrfs::{Adopted, Btrfs};
pub use dir::Dir;
pub use error::{StorageCause, StorageError};
pub use incoming::{DatabaseFacts, Expected, Incoming, examine};
pub use names::{BadName, DatasetName, Guid, HoldTag, Purpose, SnapshotName};
pub use plan::{Base, Mark, Receivable, SendConflict, SendPlan, Sendable, Unfinished, plan_send};
pub use retention::superfluous;
pub use snapshots::{
    Dataset, ReceiveStream, ResumeToken, SendFrom, SendStream, Size, Snapshot, Snapshots,
};
pub use volume::{KEPT, Volume};
pub use zfs::Zfs;

use crate::exec::OsUser;
use async_trait::async_trait;
use cluster::PeerId;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The name of the backend.
    pub backend: &'static str,
    /// Whether it has snapshots of its own: without them there is no going back to an earlier
    /// state, and data travels only as base backups of a running PostgreSQL.
    pub snapshots: bool,
    /// Whether a receive that broke off can go on where it was.
    pub resume: bool,
    /// Whether a snapshot that is gone can still be sent from, by a bookmark of it.
    pub bookmarks: bool,
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
    /// MiB a second that the backup is not to exceed.
    pub rate_mib: Option<u64>,
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

/// What became of databases that were to be deleted: directories, or names of datasets and snapshots.
#[derive(Debug, Default)]
pub struct Pruned {
    /// These are gone.
    pub gone: Vec<PathBuf>,
    /// These, or some of what is here, are not, and why.
    pub left: Vec<(PathBuf, StorageCause)>,
}

impl Pruned {
    fn note(&mut self, path: PathBuf, ended: Result<(), StorageCause>) {
        match ended {
            Ok(()) => self.gone.push(path),
            Err(cause) => self.left.push((path, cause)),
        }
    }
}

/// A dataset on some kind of storage.
#[async_trait]
pub trait Storage: Send + Sync {
    /// What this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// Where the database lies, in `data`: its mount point.
    fn dataset(&self) -> &Path;

    /// Sees to it that the dataset is there, mounted where it belongs. Changes nothing where it is.
    /// Without this, a file system that is not mounted would look like a database that is lost.
    async fn prepare(&self) -> Result<(), StorageError>;

    /// The dataset with its snapshots, where the backend has them.
    fn volume(&self) -> Option<&Volume> {
        None
    }

    /// Fills the empty dataset with a standby's copy of a source's database, from the first source
    /// that gives one. Dropping the future stops the transfer; nothing that could be started is
    /// left then, and what is left is removed by the next seed.
    async fn seed(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageError>;

    /// Renames the database out of the way; where to: a directory, or the name of a dataset. Nothing
    /// is deleted.
    async fn set_aside(&self, reason: &str) -> Result<PathBuf, StorageError>;

    /// Keeps the database as it is now, whose server must be stopped, and leaves it where it is; what
    /// keeps it: a directory, or the name of a snapshot. Cheap where there are snapshots, a copy where
    /// there are none.
    async fn keep(&self, reason: &str) -> Result<PathBuf, StorageError>;

    /// Deletes the oldest of the databases that were set aside or kept, all but `keep`. One that cannot be
    /// deleted keeps no other one from going.
    async fn prune_aside(&self, keep: usize) -> Result<Pruned, StorageError>;
}
