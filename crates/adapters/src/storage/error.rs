//! Why operations on datasets fail.

use super::BadName;
use crate::{exec::ExecError, postgres::PgCause};
use cluster::PeerId;
use std::{
    io,
    path::{Path, PathBuf},
};

/// A failed operation on a dataset.
#[derive(Debug, thiserror::Error)]
#[error("dataset {}: cannot {operation}", dataset.display())]
pub struct StorageError {
    /// Its mount point, or its name.
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
    /// There is no dataset of this name.
    #[error("there is no dataset {0}")]
    NoDataset(String),
    /// A dataset of this name is there already.
    #[error("{0} exists and is never overwritten: rename or destroy it first")]
    Exists(String),
    /// There is no snapshot of this name.
    #[error("there is no snapshot {0}")]
    NoSnapshot(String),
    /// The dataset is mounted, and this can only be done while it is not.
    #[error("{dataset} is mounted at {}: unmount it first", at.display())]
    Mounted {
        /// What.
        dataset: String,
        /// Where.
        at: PathBuf,
    },
    /// Something lies where it is to be mounted.
    #[error("{} is not empty and nothing is ever mounted over it: move away what lies there", .0.display())]
    MountpointNotEmpty(PathBuf),
    /// Another file system is mounted there.
    #[error("{} has another file system mounted on it ({other}): unmount that first", path.display())]
    MountpointTaken {
        /// Where.
        path: PathBuf,
        /// What.
        other: String,
    },
    /// The snapshot is held.
    #[error("snapshot {snapshot} is held ({tags}): release it first")]
    Held {
        /// Which.
        snapshot: String,
        /// By whom, as far as that is known.
        tags: String,
    },
    /// Datasets were cloned from the snapshot.
    #[error(
        "snapshot {snapshot} is what {} cloned from: destroy or promote that first",
        are(clones)
    )]
    ClonedFrom {
        /// Which.
        snapshot: String,
        /// What was cloned from it.
        clones: Vec<String>,
    },
    /// Going back to a snapshot would destroy later ones.
    #[error("going back to {snapshot} would destroy what came after it ({}): keep that as a dataset of \
             its own, or destroy those snapshots first", later.join(", "))]
    LaterSnapshots {
        /// Where to.
        snapshot: String,
        /// What came after it.
        later: Vec<String>,
    },
    /// The dataset was written to since the snapshot that a stream continues.
    #[error(
        "{dataset} has changed since its snapshot {snapshot}: a stream continues only what is \
             unchanged, and nothing is ever rolled back by force"
    )]
    Modified {
        /// What.
        dataset: String,
        /// Since when.
        snapshot: String,
    },
    /// A stream does not continue the newest snapshot of the dataset that it was to go into.
    #[error("what came does not continue the newest snapshot of {dataset}")]
    WrongBase {
        /// What.
        dataset: String,
    },
    /// A stream ended before it was complete.
    #[error("the stream ended before it was complete; nothing of it can be used")]
    Truncated,
    /// A stream broke off.
    #[error("the stream broke off")]
    Stream(#[source] io::Error),
    /// This backend, or this version of it, cannot do it.
    #[error("{backend} cannot {what} here")]
    Unsupported {
        /// The backend.
        backend: &'static str,
        /// What.
        what: String,
    },
    /// What was received is not the database that is wanted.
    #[error("{} is not the database that is wanted: {problem}", path.display())]
    NotTheDatabase {
        /// Where it was looked at.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that no dataset, snapshot or hold can have.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A command answered in a way that is not understood.
    #[error("{command} answered in a way that is not understood: {answer:?}")]
    Answer {
        /// What was run.
        command: String,
        /// Its answer.
        answer: String,
    },
    /// It lies at the top and has no place beside it.
    #[error("{0}: give a name with something above it, so that it can be renamed aside")]
    NoPlace(String),
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

/// A failed operation on this file.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> StorageCause {
    let path = path.to_owned();
    move |source| StorageCause::File { path, source }
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

fn are(clones: &[String]) -> String {
    let verb = if clones.len() == 1 { "was" } else { "were" };
    format!("{} {verb}", clones.join(", "))
}
