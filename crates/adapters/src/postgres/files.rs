//! The files that Manatee keeps beside and in a data directory.

use super::{PgCause, process::ProcessId};
use crate::exec::OsUser;
use cluster::PgConfig;
use rustix::fs::{Gid, Uid, chown};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Says whether the database in a dataset has ever served; lies beside `data`.
pub(crate) const MARKER: &str = "manatee.json";
/// Says what a running server was brought to; lies in the host's own directory.
pub(super) const APPLIED: &str = "manatee-applied.json";
/// Makes PostgreSQL start as a standby.
pub(crate) const STANDBY_SIGNAL: &str = "standby.signal";

/// What [`MARKER`] holds. Without it, or when it speaks of another database, the database counts
/// as established: an operator may have put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    pub database: Served,
    pub system_identifier: u64,
}

/// Whether a database has ever served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Served {
    Prepared,
    Established,
}

/// What [`APPLIED`] holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AppliedRecord {
    /// The server that this speaks of.
    pub server: ProcessId,
    /// What it was brought to; `None` while it is being brought to something else.
    pub config: Option<PgConfig>,
    /// Whether it is proven that commits wait (see `force`).
    pub waits: bool,
    /// `synchronous_standby_names`.
    pub names: String,
}

/// Writes a file as a whole: after a crash there is the old or the new one. Only its owner can
/// read it.
pub(crate) fn write(path: &Path, text: &str, owner: Option<&OsUser>) -> Result<(), PgCause> {
    let beside = path.with_extension("manatee-new");
    let result = (|| {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        give(&beside, owner)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_parent(path)
    })();
    result.map_err(PgCause::file(path))
}

/// Makes a rename or removal in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// Gives a file to the user that runs PostgreSQL.
pub(crate) fn give(path: &Path, owner: Option<&OsUser>) -> io::Result<()> {
    let Some(owner) = owner else {
        return Ok(());
    };
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    chown(path, Some(uid), Some(gid)).map_err(io::Error::from)
}

/// Makes a directory of this mode for the user that runs PostgreSQL; one that exists is given to
/// that user.
pub(crate) fn directory(path: &Path, mode: u32, owner: Option<&OsUser>) -> Result<(), PgCause> {
    let result = match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    result.and_then(|()| give(path, owner)).map_err(PgCause::file(path))
}

/// The text of a file; `None` when it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PgCause> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PgCause::file(path)(error)),
    }
}

/// Reads a file of ours; `None` when it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, PgCause> {
    let parse = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| PgCause::Corrupt { path: path.to_owned(), problem: error.to_string() })
    };
    read(path)?.map(parse).transpose()
}

/// Writes a file of ours.
pub(crate) fn write_json<T: Serialize>(
    path: &Path,
    value: &T,
    owner: Option<&OsUser>,
) -> Result<(), PgCause> {
    let text = serde_json::to_string(value)
        .map_err(|error| PgCause::Corrupt { path: path.to_owned(), problem: error.to_string() })?;
    write(path, &text, owner)
}

/// Removes a file, durably; whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, PgCause> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true).map_err(PgCause::file(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PgCause::file(path)(error)),
    }
}

/// The identity of the database in this data directory: the first eight bytes of its control
/// file, in every version.
pub(crate) fn system_identifier(data: &Path) -> Result<u64, PgCause> {
    let path = data.join("global/pg_control");
    let mut bytes = [0; 8];
    File::open(&path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(PgCause::file(&path))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// How much of the end of a log is looked at, in bytes.
const LONGEST: u64 = 3000;

/// The last lines of a log, from this byte on, as one line; at most 3000 bytes of it.
pub(super) fn log_tail(path: &Path, from: u64) -> String {
    match read_tail(path, from) {
        Ok((_, text)) => text.trim().replace('\n', " | "),
        Err(error) => format!("({} cannot be read: {error})", path.display()),
    }
}

/// The lines among these that are there from their beginning; none when it cannot be read.
pub(super) fn last_lines(path: &Path, from: u64) -> Vec<String> {
    let Ok((is_cut, text)) = read_tail(path, from) else {
        return Vec::new();
    };
    text.lines().skip(usize::from(is_cut)).map(str::to_owned).collect()
}

/// The end of a log; whether some of it, after this byte, is left out.
fn read_tail(path: &Path, from: u64) -> io::Result<(bool, String)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = if from > length { 0 } else { from };
    let begin = from.max(length.saturating_sub(LONGEST));
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok((begin > from, String::from_utf8_lossy(&bytes).into_owned()))
}

/// What comes to a log, line by line.
#[derive(Debug)]
pub(super) struct LogReader {
    path: PathBuf,
    at: u64,
}

impl LogReader {
    /// Reads on from this byte, or from its present end.
    pub fn from(path: PathBuf, at: u64) -> LogReader {
        let length = fs::metadata(&path).map_or(0, |found| found.len());
        LogReader { path, at: at.min(length) }
    }

    /// The lines that have come to an end since; none when it cannot be read.
    pub fn new_lines(&mut self) -> Vec<String> {
        const MOST: u64 = 1 << 20;
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.take(MOST).read_to_end(&mut bytes)
        });
        let ended = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        // A line longer than that is none that anybody looks for.
        let ended = if ended == 0 && bytes.len() as u64 == MOST { bytes.len() } else { ended };
        if read.is_err() {
            return Vec::new();
        }
        self.at += ended as u64;
        String::from_utf8_lossy(&bytes[..ended]).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_by_whole_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let add = |text: &str| {
            let file = File::options().append(true).create(true).open(&path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a line");
        };
        assert_eq!(LogReader::from(path.clone(), 0).new_lines(), [""; 0]);
        add("old\n");
        let mut new = LogReader::from(path.clone(), u64::MAX);
        let mut all = LogReader::from(path.clone(), 0);
        add("one\ntwo\nthr");
        assert_eq!(new.new_lines(), ["one", "two"]);
        add("ee\n");
        assert_eq!(new.new_lines(), ["three"]);
        assert_eq!(new.new_lines(), [""; 0]);
        assert_eq!(all.new_lines(), ["old", "one", "two", "three"]);
        assert_eq!(last_lines(&path, 4), ["one", "two", "three"]);
        assert_eq!(log_tail(&path, 4), "one | two | three");
        // What is left of a line says nothing: it may be a client's from a part on that it chose.
        add(&format!("{}\nlast\n", "x".repeat(3000)));
        assert_eq!(last_lines(&path, 0), ["last"]);
        assert!(last_lines(&directory.path().join("none"), 0).is_empty());
    }
}
