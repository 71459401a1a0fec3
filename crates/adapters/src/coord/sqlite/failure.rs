//! Why a call on the database failed.

use rusqlite::ErrorCode;
use std::path::PathBuf;

/// Why a call on the database failed, with what an operator can do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {0} ms")]
    TimedOut(u64),
    #[error("it could not be begun or committed before its time was up; nothing was stored")]
    TooLate,
    #[error("the thread that works on the database has ended")]
    Ended,
    #[error("a session needs a timeout of at least 1 ms")]
    NoTimeout,
    #[error(
        "{0} is gone although this process had it open: put it back; it is not made anew, because \
         an empty one would forget the shard"
    )]
    Missing(PathBuf),
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0} is empty: if nothing was ever kept in it, delete it and start again")]
    Empty(PathBuf),
    #[error("{0} is no SQLite database: give the path of a new file or of a shard database")]
    NotADatabase(PathBuf),
    #[error(
        "{path} is an SQLite database of something else (application id {application_id:#x}): give \
         the path of a new file or of a shard database"
    )]
    Foreign { path: PathBuf, application_id: i64 },
    #[error(
        "{path} has schema {found}, this version knows up to {known}: run the version that wrote \
         it, or a newer one"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{0} can only be read by this user: run as its owner, on a writable file system")]
    ReadOnly(PathBuf),
    #[error("{path} cannot keep a write-ahead log (journal mode {mode}): use a local file system")]
    NoWal { path: PathBuf, mode: String },
    #[error("another process holds the write lock")]
    Locked(#[source] rusqlite::Error),
    #[error("SQLite gave an error")]
    Sqlite(#[source] rusqlite::Error),
    #[error("a stored {what} cannot be read")]
    Content { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot watch {path} for changes (are the inotify limits of this user used up?)")]
    Inotify { path: PathBuf, source: std::io::Error },
}

impl Failure {
    /// Whether the connection is as good as before. After any other failure it is opened anew.
    pub(super) fn leaves_connection_sound(&self) -> bool {
        matches!(self, Failure::TooLate | Failure::Missing(_) | Failure::Locked(_))
    }

    pub(super) fn content(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        Failure::Content { what, source }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::Locked(error),
            _ => Failure::Sqlite(error),
        }
    }
}
