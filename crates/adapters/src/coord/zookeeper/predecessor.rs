//! Which session this peer had before: a restarted sitter takes the registration over that the one
//! before it left behind, instead of standing in the list twice until that one expires.
//!
//! The id of each session is written down before it registers. A registration that goes with a
//! session that stands here is one of a sitter of this very dataset; and that one has ended, since
//! it held the dataset's lock, which we hold now. No password is needed or kept: the new session
//! registers first and then deletes the old node, so that the peer is never seen to be gone.

use super::failure::Failure;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The session that is written down in this file.
pub(super) fn read(path: &Path) -> Result<Option<i64>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            // A file that was cut short by a crash names nobody: that registration expires.
            let hex = text.trim().strip_prefix("0x");
            Ok(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()).map(u64::cast_signed))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Io { action: "read", path: path.to_owned(), source }),
    }
}

/// Writes a session down in the place of the one before.
pub(super) fn write(path: &Path, session: i64) -> Result<(), Failure> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let mut options = std::fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&new)
        .and_then(|mut file| writeln!(file, "{:#x}", session.cast_unsigned()))
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|source| Failure::Io { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("session");
        assert_eq!(read(&path).expect("read"), None);
        for session in [0x1_0000_0000_0001, -5, i64::MAX] {
            write(&path, session).expect("written");
            assert_eq!(read(&path).expect("read"), Some(session));
        }
        std::fs::write(&path, "0x1zz").expect("written");
        assert_eq!(read(&path).expect("read"), None);
    }
}
