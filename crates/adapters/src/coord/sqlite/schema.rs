//! What the file holds, and how it comes into being.
//!
//! A new database is made whole beside its place and then linked into it, so nobody ever sees half
//! of one, and of two sitters that start at the same time one makes it and the other uses it.

use super::failure::Failure;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// "MNTE", in the header of the file: it is one of ours.
pub(super) const APPLICATION_ID: i64 = 0x4d4e_5445;

/// The schema below.
pub(super) const SCHEMA_VERSION: i64 = 1;

/// The stored cluster state is the newest row of `history`, so that both are one insert. The
/// sequence of a session is its registration's: AUTOINCREMENT never gives one out twice. A deadline
/// is in milliseconds of the boot clock of the boot named beside it.
const SCHEMA: &str = "
    CREATE TABLE history (
        shard      TEXT    NOT NULL,
        version    INTEGER NOT NULL,
        time       TEXT    NOT NULL,
        generation INTEGER NOT NULL,
        json       TEXT    NOT NULL,
        PRIMARY KEY (shard, version)
    ) STRICT;
    CREATE TABLE session (
        sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
        shard      TEXT    NOT NULL,
        peer       TEXT    NOT NULL,
        boot       TEXT    NOT NULL,
        deadline   INTEGER NOT NULL
    ) STRICT;
";

/// No URI (a path is a path), no mutex (one thread has it), and never made by opening it.
fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// Makes the database unless something is there already.
pub(super) fn create_unless_there(path: &Path) -> Result<(), Failure> {
    let io = |action| move |source| Failure::Io { action, path: path.to_owned(), source };
    if path.try_exists().map_err(io("look for"))? {
        return Ok(());
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".new-{}", uuid::Uuid::new_v4()));
    let draft = Path::new(&draft);
    let made = build(draft).map_err(io("create")).and_then(|()| fill(draft)).and_then(|()| {
        match fs::hard_link(draft, path) {
            // Somebody else was faster; theirs is used.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(io("create")),
        }
    });
    match fs::remove_file(draft) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        removed => removed.map_err(io("remove the draft of"))?,
    }
    made?;
    // The name must survive a power loss as the content does.
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io("flush the directory of"))
}

/// An empty file that only its owner can use; SQLite gives its companions the same mode.
fn build(draft: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(draft).map(drop)
}

fn fill(draft: &Path) -> Result<(), Failure> {
    let connection = Connection::open_with_flags(draft, flags())?;
    require_wal(&connection, draft)?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = FULL; BEGIN; {SCHEMA}
         PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    ))?;
    // Closing the only connection moves the log into the file, flushed, and removes it.
    connection.close().map_err(|(_, error)| error.into())
}

/// Opens a database that is there, if it is one of ours.
pub(super) fn open(path: &Path, patience: Duration) -> Result<Connection, Failure> {
    let owned = || path.to_owned();
    let connection = Connection::open_with_flags(path, flags())?;
    connection.busy_timeout(patience)?;
    // The last connection to close would move the log into the file and remove it *by name*. What
    // is refused below is left as it is; and if the file was replaced while it was open, that name
    // is the log of the new one. So the log stays; it is used again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let number = |pragma| {
        connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(|error| {
            match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => Failure::NotADatabase(owned()),
                _ => error.into(),
            }
        })
    };
    let application_id = number("application_id")?;
    if number("page_count")? == 0 {
        return Err(Failure::Empty(owned()));
    }
    if application_id != APPLICATION_ID {
        let path = owned();
        return Err(Failure::Foreign { path, application_id });
    }
    let found = number("user_version")?;
    if found > SCHEMA_VERSION {
        return Err(Failure::Newer { path: owned(), found, known: SCHEMA_VERSION });
    }
    // SQLite opens what it may not write without a word.
    if connection.is_readonly(MAIN_DB)? {
        return Err(Failure::ReadOnly(owned()));
    }
    require_wal(&connection, path)?;
    Ok(connection)
}

fn require_wal(connection: &Connection, path: &Path) -> Result<(), Failure> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode == "wal" {
        Ok(())
    } else {
        let path = path.to_owned();
        Err(Failure::NoWal { path, mode })
    }
}
