//! Names of datasets, snapshots and holds, parsed once at the edge.
//!
//! A snapshot's name says when and why it was taken: 13 digits are the milliseconds since the epoch of
//! a periodic one, as the original names them; `-` and a word follow for every other purpose. Whatever
//! else is found is somebody else's, and left alone.

use std::{borrow::Borrow, fmt};

/// What names may be long, in bytes: with a parent and a suffix it must fit into 255.
const LONGEST: usize = 120;
/// Digits of the time in a name. They suffice until the year 2286, and order names by time.
const DIGITS: usize = 13;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no name of a {what}: give 1 to {LONGEST} letters, digits, dots, dashes and underscores, the first a letter or a digit"
)]
pub struct BadName {
    name: String,
    what: &'static str,
}

fn checked(name: &str, what: &'static str) -> Result<String, BadName> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.len() <= LONGEST && name.chars().all(plain) {
        return Ok(name.to_owned());
    }
    Err(BadName { name: name.to_owned(), what })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            #[doc = concat!("This name of a ", $what, ".")]
            ///
            /// # Errors
            /// When it holds anything but letters, digits, dots, dashes and underscores, or is too long.
            pub fn new(name: &str) -> Result<Self, BadName> {
                checked(name, $what).map($type)
            }

            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A dataset, below the parent that its backend was opened with.
    DatasetName,
    "dataset"
);
name!(
    /// A snapshot of a dataset.
    SnapshotName,
    "snapshot"
);
name!(
    /// Who holds a snapshot, and why.
    HoldTag,
    "hold"
);

/// What a snapshot was taken for, as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Every so often.
    Periodic,
    /// For this.
    For(&'a str),
    /// Not ours.
    Foreign,
}

impl SnapshotName {
    /// The name of a periodic snapshot that is taken now, in milliseconds since the epoch.
    pub fn periodic(now: u64) -> Self {
        SnapshotName(format!("{now:0DIGITS$}"))
    }

    /// The name of a snapshot that is taken then, in milliseconds since the epoch, for some purpose.
    ///
    /// # Errors
    /// When the purpose cannot be part of a name.
    pub fn for_purpose(now: u64, purpose: &str) -> Result<Self, BadName> {
        checked(purpose, "purpose of a snapshot")?;
        SnapshotName::new(&format!("{now:0DIGITS$}-{purpose}"))
    }

    /// The name of a snapshot that is taken now for some purpose, by the wall clock.
    ///
    /// # Errors
    /// When the purpose cannot be part of a name.
    pub fn now(purpose: &str) -> Result<Self, BadName> {
        let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        SnapshotName::for_purpose(now, purpose)
    }

    /// When it was taken, in milliseconds since the epoch, as its name says; `None` when it is not
    /// one of ours.
    pub fn time(&self) -> Option<u64> {
        let (digits, rest) = self.0.split_at_checked(DIGITS)?;
        let ours = digits.bytes().all(|byte| byte.is_ascii_digit());
        let ends = rest.is_empty() || rest.strip_prefix('-').is_some_and(|word| !word.is_empty());
        if ours && ends { digits.parse().ok() } else { None }
    }

    /// What it was taken for.
    pub fn purpose(&self) -> Purpose<'_> {
        match self.time() {
            None => Purpose::Foreign,
            Some(_) if self.0.len() == DIGITS => Purpose::Periodic,
            Some(_) => Purpose::For(&self.0[DIGITS + 1..]),
        }
    }
}

/// What a snapshot and its copies on other hosts have in common, and nothing else has. Opaque: ZFS
/// gives a number, btrfs the UUID of the subvolume that was first sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(String);

impl Guid {
    /// As the backend, or a peer, has it.
    pub fn new(text: impl Into<String>) -> Self {
        Guid(text.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_when_and_why() {
        let check = |name: &str, time, purpose| {
            let name = SnapshotName::new(name).expect(name);
            assert_eq!((name.time(), name.purpose()), (time, purpose), "{name}");
        };
        check("1445212345678", Some(1_445_212_345_678), Purpose::Periodic);
        check("1445212345678-diverged", Some(1_445_212_345_678), Purpose::For("diverged"));
        check("1445212345678-a-b", Some(1_445_212_345_678), Purpose::For("a-b"));
        for foreign in ["144521234567", "14452123456789", "1445212345678-", "daily-1", "x"] {
            check(foreign, None, Purpose::Foreign);
        }
        assert_eq!(SnapshotName::periodic(5).as_str(), "0000000000005");
        let named = SnapshotName::for_purpose(1_445_212_345_678, "seed").expect("a name");
        assert_eq!(named.as_str(), "1445212345678-seed");
        SnapshotName::for_purpose(1, "a b").expect_err("a space");
    }

    #[test]
    fn names_cannot_leave_their_place() {
        for bad in ["", "a/b", "..", "-r", "a@b", "a b", ".x", "é", &"x".repeat(121)] {
            DatasetName::new(bad).expect_err(bad);
            SnapshotName::new(bad).expect_err(bad);
            HoldTag::new(bad).expect_err(bad);
        }
        for good in ["a", "1.moray.example", "peer-a.replaced-20260102T030405.123456Z"] {
            assert_eq!(DatasetName::new(good).expect(good).as_str(), good);
        }
    }
}
