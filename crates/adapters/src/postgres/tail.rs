//! What a standby received beyond what it could replay: half a record, or WAL that is damaged.
//!
//! WAL is sent in whole pages as well as in whole records, so that what was received may end in the middle of
//! a record. Nobody's commit was acknowledged for that, and a promotion discards it. A whole record that is
//! not replayed is something else: it, and all after it, may have been acknowledged.
//!
//! What is told by is the length that each record begins with. Where it is received at all, it says how far the
//! record reaches. A record that a crash of the sender cut off looks like any other half one, until the sender
//! goes on at the next page and says so there, whereupon PostgreSQL passes over it.

use super::{Inner, PgCause, session::Session, timelines::segment_of};
use cluster::Lsn;
use std::{ffi::OsStr, fs, io, os::unix::fs::FileExt, path::Path};

/// What a record has at least, and what PostgreSQL can read at most, in bytes.
const LENGTHS: std::ops::Range<u32> = 24..1 << 30;
/// The bytes of a record's length, with which it begins.
const LENGTH: u64 = 4;

/// In which pieces WAL is written, in bytes.
#[derive(Debug, Clone, Copy)]
struct Layout {
    segment: u64,
    page: u64,
}

impl Layout {
    /// The header of the page that begins here: a longer one at the beginning of a file.
    fn header(self, page: u64) -> u64 {
        if page.is_multiple_of(self.segment) { 40 } else { 24 }
    }

    /// Where the record begins that comes after this position.
    fn next(self, at: u64) -> u64 {
        if at.is_multiple_of(self.page) { at + self.header(at) } else { at }
    }

    /// Where a record of this length ends that begins there.
    fn end(self, begin: u64, length: u32) -> u64 {
        let (mut at, mut left) = (begin, u64::from(length));
        loop {
            let room = self.page - at % self.page;
            if left <= room {
                return at + left;
            }
            left -= room;
            at = self.next(at + room);
        }
    }

    /// Whether WAL received up to here ends in the middle of the record after what was replayed, which begins
    /// with this length.
    fn is_half(self, replayed: u64, received: u64, length: Option<u32>) -> bool {
        let begin = self.next(replayed);
        let length = length.filter(|length| LENGTHS.contains(length));
        received < begin + LENGTH || length.is_some_and(|length| self.end(begin, length) > received)
    }
}

impl Inner {
    /// That what was received beyond what can be replayed is no more than half a record.
    pub async fn is_half_a_record(
        &self,
        session: &Session,
        replayed: Lsn,
        received: Lsn,
    ) -> Result<(), PgCause> {
        let size = async |name: &str| {
            let sql = format!("select pg_size_bytes(current_setting('{name}'))");
            let text = session.value(&sql).await?;
            text.parse().map_err(|_| PgCause::Answer(text))
        };
        let (segment, page) = (size("wal_segment_size").await?, size("wal_block_size").await?);
        let layout = Layout { segment, page };
        let directory = self.data.join("pg_wal");
        let lengths = lengths_at(&directory, segment, layout.next(replayed.byte()));
        let mut lengths = lengths.map_err(PgCause::file(&directory))?;
        // Where the file is missing as well.
        lengths.push(None);
        let is_half = |length| layout.is_half(replayed.byte(), received.byte(), length);
        match lengths.into_iter().any(is_half) {
            true => Ok(()),
            false => Err(PgCause::Unreplayable { replayed, received }),
        }
    }
}

/// The lengths that stand at this position: on each timeline of which the file is here, as it is not known from
/// which the server reads.
fn lengths_at(directory: &Path, segment: u64, at: u64) -> io::Result<Vec<Option<u32>>> {
    let mut lengths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(OsStr::to_str);
        let begin = name.and_then(|name| segment_of(name, segment));
        let offset = begin.and_then(|(_, begin)| at.checked_sub(begin.byte()));
        if let Some(offset) = offset.filter(|offset| *offset < segment) {
            let mut bytes = [0; LENGTH as usize];
            let read = fs::File::open(&path)?.read_exact_at(&mut bytes, offset);
            lengths.push(read.is_ok().then(|| u32::from_ne_bytes(bytes)));
        }
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;
    const PAGE: u64 = 8192;
    const LAYOUT: Layout = Layout { segment: SEGMENT, page: PAGE };

    #[test]
    fn a_record_begins_after_the_header_of_a_page_and_goes_on_after_the_next() {
        for (at, begin) in [
            (SEGMENT, SEGMENT + 40),
            (SEGMENT + PAGE, SEGMENT + PAGE + 24),
            (SEGMENT + 48, SEGMENT + 48),
        ] {
            assert_eq!(LAYOUT.next(at), begin);
        }
        let last = 2 * SEGMENT - 8;
        for (begin, length, end) in [
            (SEGMENT + 40, 26, SEGMENT + 66),
            (SEGMENT + 40, 8152, SEGMENT + PAGE),
            (SEGMENT + 40, 8153, SEGMENT + PAGE + 24 + 1),
            (SEGMENT + 40, 8152 + 8168 + 1, SEGMENT + 2 * PAGE + 24 + 1),
            (last, 30, 2 * SEGMENT + 40 + 22),
        ] {
            assert_eq!(LAYOUT.end(begin, length), end, "{length}");
        }
    }

    #[test]
    fn only_what_ends_within_a_record_is_half_of_one() {
        let at = SEGMENT + PAGE - 64;
        let page = SEGMENT + PAGE;
        for (replayed, received, length, expected) in [
            // Whole pages were sent.
            (at, page, Some(65), true),
            (at, page, Some(100_000), true),
            (at, page, Some(64), false),
            (at, page + PAGE, Some(64 + 8168), false),
            (at, page + PAGE, Some(64 + 8169), true),
            // It goes on in the next page, after a header.
            (at, page + 24 + 36, Some(100), false),
            (at, page + 24 + 35, Some(100), true),
            // Nothing of it is there, or not even how long it is.
            (page, page + 24, None, true),
            (page, page + 27, Some(0), true),
            (page, page + 28, Some(30), true),
            (at, at + 1, None, true),
            // No record begins so.
            (at, page, Some(0), false),
            (at, page, Some(23), false),
            (at, page, Some(u32::MAX), false),
            (at, page, None, false),
        ] {
            let told = LAYOUT.is_half(replayed, received, length);
            assert_eq!(told, expected, "{length:?} of {} bytes", received - replayed);
        }
    }

    #[test]
    fn lengths_are_read_from_every_timeline() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| {
            fs::write(directory.path().join(name), bytes).expect("a file");
        };
        write("000000010000000000000001", &[&[0; 8][..], &77_u32.to_ne_bytes()].concat());
        write("000000020000000000000001", &[0; 10]);
        write("000000020000000000000002", &[1; 100]);
        write("00000002.history", &[1; 100]);
        let mut found = lengths_at(directory.path(), SEGMENT, SEGMENT + 8).expect("files");
        found.sort_unstable();
        assert_eq!(found, [None, Some(77)]);
    }
}
