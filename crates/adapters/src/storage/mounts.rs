//! What is mounted where, as this process sees it.

use super::{StorageCause, error::at};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is mounted on exactly this directory, as this process sees it.
pub(super) fn mounted_on(at: &Path) -> Result<Option<String>, StorageCause> {
    let (mounts, at) = (mounts()?, resolved(at));
    // The last one covers the others.
    let found = mounts.into_iter().rev().find(|(on, _, _)| *on == at);
    Ok(found.map(|(_, kind, source)| format!("{kind} {source}")))
}

/// A directory as the kernel names what is mounted on it: without links. One that is not there has
/// nothing mounted on it.
pub(super) fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Where what is mounted, in the order of mounting: the directory, the kind, the source.
pub(super) fn mounts() -> Result<Vec<(PathBuf, String, String)>, StorageCause> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(at(path))?;
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let on = unescape(before.split(' ').nth(4)?);
        Some((PathBuf::from(on), after.next()?.to_owned(), unescape(after.next()?)))
    };
    Ok(text.lines().filter_map(mount).collect())
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        let proc = mounted_on(Path::new("/proc")).expect("the table");
        assert!(proc.is_some_and(|what| what.starts_with("proc ")));
        assert_eq!(mounted_on(Path::new("/proc/self")).expect("the table"), None);
    }
}
