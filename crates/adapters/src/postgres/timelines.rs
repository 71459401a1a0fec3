//! Numbers of timelines, each used by one promotion only (SPEC.md D7).
//!
//! PostgreSQL gives a promotion the number after the newest timeline that it knows of, which it
//! finds by looking for the history files of one number after the other. Two peers that are promoted
//! from one timeline, the second without ever having heard of the first, would give two histories one
//! name, and nobody could tell them apart afterwards. So a promotion for generation G begins a
//! timeline of the number that the state of the shard gives it: those before it are *reserved* by history files
//! that name no ancestor.
//!
//! What a reservation does to PostgreSQL, and what follows:
//! - A standby asks its upstream for the history of every number between its own and the upstream's,
//!   and gives up when one is missing: so a server has a file for every number below its own.
//! - A standby that finds a reservation to be the newest number, when it starts, takes it for the
//!   timeline to recover to, and ends because that is none of its own: so those above the newest real
//!   one are taken away before each start as a standby. They are there if a promotion, or the
//!   fetching of histories, was interrupted.

use super::{Inner, PgCause, files};
use cluster::Lsn;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The whole content of a reservation. PostgreSQL passes over comments.
const RESERVED: &str = "# reserved by Manatee: no timeline of this shard has this number\n";

impl Inner {
    fn history_file(&self, timeline: u32) -> PathBuf {
        self.data.join(format!("pg_wal/{timeline:08X}.history"))
    }

    /// Makes sure that the next promotion takes a number of at least `timeline`.
    pub fn reserve_timelines(&self, timeline: u32) -> Result<(), PgCause> {
        self.reserve_below(timeline)
    }

    /// Makes sure that a standby of this server finds a history for every number; the number of its own.
    pub async fn fill_timelines(&self) -> Result<u32, PgCause> {
        let timeline = self.ask().await?.timeline;
        self.reserve_below(timeline)?;
        Ok(timeline)
    }

    /// Takes away the history that an attempt to begin this timeline has left here.
    pub fn forget_timeline(&self, timeline: u32) -> Result<(), PgCause> {
        files::remove(&self.history_file(timeline)).map(drop)
    }

    fn reserve_below(&self, timeline: u32) -> Result<(), PgCause> {
        // Timeline 1 has no history.
        for number in 2..timeline {
            let file = self.history_file(number);
            if !file.exists() {
                files::write(&file, RESERVED, self.user.as_ref())?;
            }
        }
        Ok(())
    }

    /// The newest timeline of which there is WAL here: that of a segment, which is there only if some
    /// of it was received or written here. A history file proves no such thing. 0 without any.
    pub fn newest_segment(&self) -> Result<u32, PgCause> {
        let directory = self.data.join("pg_wal");
        let mut newest = 0;
        for entry in fs::read_dir(&directory).map_err(PgCause::file(&directory))? {
            let name = entry.map_err(PgCause::file(&directory))?.file_name();
            let segment = name.to_str().and_then(|name| segment_of(name, 0));
            newest = newest.max(segment.map_or(0, |(timeline, _)| timeline));
        }
        Ok(newest)
    }
}

/// Takes away the reservations above the newest timeline that is real in this data directory: a server that
/// is to recover to the newest one must be started without them.
///
/// # Errors
/// When its files cannot be read or removed.
pub fn drop_reservations(data: &Path) -> Result<(), PgCause> {
    let directory = data.join("pg_wal");
    let mut reserved = Vec::new();
    let mut newest = 0;
    let entries = fs::read_dir(&directory).map_err(PgCause::file(&directory))?;
    for entry in entries {
        let path = entry.map_err(PgCause::file(&directory))?.path();
        let Some(number) = number_of(&path) else { continue };
        if files::read(&path)?.as_deref() == Some(RESERVED) {
            reserved.push((number, path));
        } else {
            newest = newest.max(number);
        }
    }
    for (number, path) in reserved {
        if number > newest {
            fs::remove_file(&path).map_err(PgCause::file(&path))?;
        }
    }
    Ok(())
}

/// The timeline whose WAL is in the segment of this name, and the position that it begins with, where segments
/// are of so many bytes. `None` for the name of something else.
pub fn segment_of(name: &str, bytes: u64) -> Option<(u32, Lsn)> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let part = |from: usize| u32::from_str_radix(&name[from..from + 8], 16).ok();
    let begin = (u64::from(part(8)?) << 32) + u64::from(part(16)?) * bytes;
    Some((part(0)?, Lsn::new(begin)))
}

/// The timeline whose history this file is.
fn number_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(".history")?;
    (name.len() == 8).then(|| u32::from_str_radix(name, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_history_files_are_taken_for_such() {
        for (name, number) in [
            ("00000002.history", Some(2)),
            ("0000001F.history", Some(31)),
            ("00000002.history.ready", None),
            ("2.history", None),
            ("0000000X.history", None),
            ("000000010000000000000001", None),
        ] {
            assert_eq!(number_of(&Path::new("/pg_wal").join(name)), number, "{name}");
        }
    }

    #[test]
    fn only_segments_are_taken_for_such() {
        for (name, bytes, expected) in [
            ("0000001F0000000000000001", 16 << 20, Some((31, 16 << 20))),
            ("00000001000000070000000A", 1 << 20, Some((1, (7 << 32) + (10 << 20)))),
            ("0000001F0000000000000001.partial", 16 << 20, None),
            ("0000001F0000000000000001.00000028.backup", 16 << 20, None),
            ("0000001F.history", 16 << 20, None),
            ("xlogtemp.1234", 16 << 20, None),
            ("0000001F000000000000000X", 16 << 20, None),
        ] {
            let expected = expected.map(|(timeline, begin)| (timeline, Lsn::new(begin)));
            assert_eq!(segment_of(name, bytes), expected, "{name}");
        }
    }
}
