//! What `pg_rewind` says while it is at work: how far it is, and how long each part of the work took.

use cluster::{Millis, Monotonic};

/// What a rewind consisted of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewound {
    /// PostgreSQL's recovery of the database here, where that had not been shut down in an orderly way.
    pub recovering: Millis,
    /// Finding out what differs.
    pub comparing: Millis,
    /// Fetching it from the source, all of whose WAL belongs to it.
    pub copying: Millis,
    /// What was fetched, in bytes.
    pub copied: u64,
    /// Having it written to the disk.
    pub syncing: Millis,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Recovering,
    Comparing,
    Copying,
    Syncing,
}

/// Keeps account of a `pg_rewind --progress` in the C locale.
#[derive(Debug)]
pub(super) struct Account {
    part: Part,
    since: Monotonic,
    rewound: Rewound,
}

impl Account {
    /// It begins now.
    pub fn new(now: Monotonic) -> Account {
        Account { part: Part::Comparing, since: now, rewound: Rewound::default() }
    }

    /// It said this now. Gives bytes copied and to be copied, where they are told.
    pub fn hear(&mut self, now: Monotonic, line: &str) -> Option<(u64, u64)> {
        let next = match line.strip_prefix("pg_rewind: ") {
            Some(said) if said.ends_with("to complete crash recovery") => Some(Part::Recovering),
            Some(said) if said.starts_with("servers diverged") => Some(Part::Comparing),
            Some(said) if said.starts_with("need to copy") => Some(Part::Copying),
            Some(said) if said.starts_with("creating backup label") => Some(Part::Syncing),
            _ => None,
        };
        if let Some(next) = next {
            self.turn(now);
            self.part = next;
        }
        let told = copied(line);
        if let Some((done, _)) = told {
            self.rewound.copied = done;
        }
        told
    }

    /// It ended now.
    pub fn end(mut self, now: Monotonic) -> Rewound {
        self.turn(now);
        self.rewound
    }

    fn turn(&mut self, now: Monotonic) {
        let rewound = &mut self.rewound;
        let time = match self.part {
            Part::Recovering => &mut rewound.recovering,
            Part::Comparing => &mut rewound.comparing,
            Part::Copying => &mut rewound.copying,
            Part::Syncing => &mut rewound.syncing,
        };
        time.0 += (now - self.since).0;
        self.since = now;
    }
}

/// Reads `  1234/5678 kB (21%) copied`, in bytes.
fn copied(line: &str) -> Option<(u64, u64)> {
    let (numbers, rest) = line.trim_start().split_once(" kB")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    rest.trim_end().ends_with("copied").then_some(())?;
    Some((bytes(done)?, bytes(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines() {
        assert_eq!(copied(" 12/512 kB (2%) copied"), Some((12 << 10, 512 << 10)));
        for other in ["", "pg_rewind: servers diverged", "1/2 kB", "1/2 kB (50%), 0/1 tablespace"] {
            assert_eq!(copied(other), None, "{other}");
        }
    }

    #[test]
    fn each_part_is_timed() {
        let mut account = Account::new(Monotonic(1000));
        for (at, line) in [
            (1010, "pg_rewind: connected to server"),
            (
                1020,
                "pg_rewind: executing \"/bin/postgres\" for target server to complete crash recovery",
            ),
            (1030, "2026-01-01 00:00:00.000 UTC [7] LOG:  redo starts at 0/1742198"),
            (1100, "pg_rewind: servers diverged at WAL location 0/22DE55D0 on timeline 1"),
            (1130, "pg_rewind: reading source file list"),
            (1200, "pg_rewind: need to copy 51 MB (total source directory size is 1079 MB)"),
            (1250, "  512/1024 kB (50%) copied"),
            (1300, " 1024/1024 kB (100%) copied"),
            (1500, "pg_rewind: creating backup label and updating control file"),
            (1501, "pg_rewind: syncing target data directory"),
        ] {
            account.hear(Monotonic(at), line);
        }
        let expected = Rewound {
            recovering: Millis(80),
            comparing: Millis(20 + 100),
            copying: Millis(300),
            copied: 1 << 20,
            syncing: Millis(100),
        };
        assert_eq!(account.end(Monotonic(1600)), expected);
    }
}
