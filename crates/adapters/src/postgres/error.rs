//! What can go wrong with a PostgreSQL, and what to do about it.

use super::Refusal;
use crate::exec::ExecError;
use cluster::{Lsn, Millis, PeerId};
use std::{io, path::PathBuf};

/// A failed operation on the PostgreSQL of a dataset.
#[derive(Debug, thiserror::Error)]
#[error("PostgreSQL in {}: cannot {operation}", data.display())]
pub struct PgError {
    /// Its data directory.
    pub data: PathBuf,
    /// What was being done: `start the server`.
    pub operation: &'static str,
    /// Why it failed.
    #[source]
    pub cause: PgCause,
}

/// Why an operation on PostgreSQL failed. Each message ends with what to do, where there is
/// something to be done.
#[derive(Debug, thiserror::Error)]
pub enum PgCause {
    /// No usable server programs.
    #[error(
        "no PostgreSQL 13 or later in {searched}: install the server package or set its bin directory"
    )]
    MissingBinaries {
        /// Where they were looked for.
        searched: String,
    },
    /// The database was made by another major version.
    #[error("the database is of version {found}, the programs in {} are of version {binaries}: install PostgreSQL {found}, or give its bin directory (`postgres.bin_dir`) where it is installed; or run pg_upgrade", bin.display())]
    ForeignVersion {
        /// What `PG_VERSION` says.
        found: String,
        /// The major version of the programs.
        binaries: u32,
        /// Where the programs are.
        bin: PathBuf,
    },
    /// A setting that cannot be what it is.
    #[error("{what}: {remedy}")]
    Settings {
        /// Which, and how it is set.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// There is no database.
    #[error("there is no database: create one or seed it from a peer")]
    NoDatabase,
    /// There is something where a database was to be created.
    #[error("{} is in the way and is never overwritten: move it aside", path.display())]
    InTheWay {
        /// What is there.
        path: PathBuf,
    },
    /// Another process holds the port or the socket.
    #[error(
        "port {port} is in use by another process: stop it or configure another port; the log ends: {log}"
    )]
    PortInUse {
        /// Ours.
        port: u16,
        /// The end of the server's log.
        log: String,
    },
    /// The file system is full.
    #[error("no space is left on the device: free some; the log ends: {log}")]
    NoSpace {
        /// The end of the server's log.
        log: String,
    },
    /// The server ended while it was starting.
    #[error("the server ended ({status}) before it was ready; the log ends: {log}")]
    CannotStart {
        /// How the process ended.
        status: String,
        /// The end of the server's log.
        log: String,
    },
    /// A standby can never come to where its database is whole.
    #[error("it cannot start as a standby: {refusal}; the log ends: {log}")]
    CannotRecover {
        /// By its log.
        refusal: Refusal,
        /// The end of the server's log.
        log: String,
    },
    /// It is not promoted: it has less than the generation began with.
    #[error(
        "its WAL ends at {position}, and all that was acknowledged before ends at {needed}: it is not promoted, as \
         it would lose that; its log says why it recovers no further (a file in pg_wal of a timeline that it did \
         not get all of can be moved aside, with the history file of that timeline)"
    )]
    Behind {
        /// Where it ends.
        position: Lsn,
        /// Where it must come to.
        needed: Lsn,
    },
    /// A primary on a timeline that it has been promoted from.
    #[error(
        "it writes timeline {timeline}, and was to be promoted to {needed}: others may have gone on from there; \
         it was stopped, and is promoted when it is started again"
    )]
    OldTimeline {
        /// The one that it writes.
        timeline: u32,
        /// The one that it was to write.
        needed: u32,
    },
    /// A standby cannot replay what it received.
    #[error(
        "WAL was received up to {received} and can be replayed only up to {replayed}: nobody takes over from \
         this database, as what lies between may have been acknowledged; look in its log for what is wrong, \
         and bring the primary back, with its disk as it was"
    )]
    Unreplayable {
        /// The end of what can be replayed.
        replayed: Lsn,
        /// The end of what was received.
        received: Lsn,
    },
    /// It ended while it was needed.
    #[error("the server is not running")]
    NotRunning,
    /// A server runs where none may.
    #[error("its server still runs (process {pid}): stop it first")]
    StillRunning {
        /// Its process.
        pid: u32,
    },
    /// It was a standby's, and only a primary's will do.
    #[error(
        "it was a standby's, which does not say where the WAL that it received ends, so that it cannot be \
         known whether that diverged: copy the database instead"
    )]
    Standby,
    /// Only a primary will do.
    #[error("{peer} is not a primary")]
    NotAPrimary {
        /// Who.
        peer: PeerId,
    },
    /// Another database is there, not another history of this one.
    #[error("{peer} has another database, not another history of this one")]
    AnotherDatabase {
        /// Who.
        peer: PeerId,
    },
    /// It took longer than it may.
    #[error("{what} did not happen within {} ms", limit.0)]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Millis,
    },
    /// A fence overtook the operation.
    #[error("fenced: the server was stopped while this was going on")]
    Fenced,
    /// A setting of ours is overridden by something else.
    #[error(
        "{setting} is {found:?} and not {wanted:?} as in manatee.conf: look for it in postgresql.auto.conf (ALTER SYSTEM) and in what postgresql.conf includes, and remove it there"
    )]
    Overridden {
        /// Its name.
        setting: String,
        /// The value in force.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// The server refused a configuration file.
    #[error("the server cannot read its configuration: {0}: correct the setting that it names")]
    Rejected(String),
    /// A query failed.
    #[error("query failed: {}", database_message(.0))]
    Query(tokio_postgres::Error),
    /// The server answered with something that cannot be understood.
    #[error("the server answered {0:?}, which makes no sense here: report this")]
    Answer(String),
    /// A file of the dataset.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of ours holds something else.
    #[error("{} is not what it should be ({problem}): remove it", path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A command failed.
    #[error(transparent)]
    Command(#[from] ExecError),
    /// The operating system refused to signal or watch a process.
    #[error("process {pid}")]
    Process {
        /// Its id.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the server said, in its own words: the crate's own text is only "db error".
fn database_message(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{}: {}", said.severity(), said.message()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

// The message says it all, so the error is not a source as well.
impl From<tokio_postgres::Error> for PgCause {
    fn from(error: tokio_postgres::Error) -> PgCause {
        PgCause::Query(error)
    }
}

impl PgCause {
    /// A failed operation on this file.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> PgCause {
        let path = path.into();
        move |source| match source.raw_os_error() {
            Some(code) if code == rustix::io::Errno::NOSPC.raw_os_error() => {
                PgCause::NoSpace { log: format!("writing {}", path.display()) }
            }
            _ => PgCause::File { path, source },
        }
    }

    /// A setting that is wrong, and the remedy.
    pub(crate) fn settings(what: impl Into<String>, remedy: impl Into<String>) -> PgCause {
        PgCause::Settings { what: what.into(), remedy: remedy.into() }
    }
}
