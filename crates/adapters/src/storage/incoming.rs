//! A dataset that came in, on its way to be this peer's: looked at, made a standby's, and put in place,
//! in this order. Until the last step it is mounted only where nobody starts a server, and what could
//! be started is a standby.
//!
//! A snapshot of a running primary holds what belongs to that server alone: its process id, its
//! replication slots, which would hold back WAL here for ever, its postmaster's options. They go.

use super::{DatasetName, Snapshots, StorageCause, StorageError, error::at};
use crate::{
    exec::{Exec, OsUser},
    postgres::files::{self, MARKER, Marker, STANDBY_SIGNAL, Served},
};
use cluster::{Lsn, Millis};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How long `pg_controldata` may take: it reads one file.
const LIMIT: Millis = Millis(60_000);

/// What a database's control file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Which database it is, on all its peers.
    pub system_identifier: u64,
    /// The timeline of its last checkpoint.
    pub timeline: u32,
    /// Where recovery would begin.
    pub checkpoint: Lsn,
    /// The timeline and position that recovery must come to at least, before it is whole.
    pub recovered_at_least: (u32, Lsn),
    /// The major version of PostgreSQL that it belongs to.
    pub version: String,
    /// In which state it was left, in PostgreSQL's words.
    pub state: String,
    /// How long the files of its WAL are, in bytes.
    pub wal_segment: u64,
}

/// What a database has to be, to be taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// This one; `None` for any.
    pub system_identifier: Option<u64>,
    /// On this timeline or an earlier one: one on a later one has gone its own way.
    pub newest_timeline: Option<u32>,
}

impl DatabaseFacts {
    /// What `pg_controldata` printed, in the C locale, of a database of this major version.
    pub fn parse(text: &str, version: &str) -> Option<DatabaseFacts> {
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
        };
        let timeline = field("Latest checkpoint's TimeLineID")?.parse().ok()?;
        let checkpoint = (timeline, field("Latest checkpoint location")?.parse().ok()?);
        // Zero outside of recovery.
        let recovery_timeline = field("Min recovery ending loc's timeline")?.parse().ok()?;
        let recovery =
            (recovery_timeline, field("Minimum recovery ending location")?.parse().ok()?);
        Some(DatabaseFacts {
            system_identifier: field("Database system identifier")?.parse().ok()?,
            timeline,
            checkpoint: field("Latest checkpoint's REDO location")?.parse().ok()?,
            recovered_at_least: checkpoint.max(recovery),
            version: version.to_owned(),
            state: field("Database cluster state")?.to_owned(),
            wal_segment: field("Bytes per WAL segment")?.parse().ok()?,
        })
    }

    /// What is wrong with it.
    pub fn problem(&self, expected: &Expected) -> Option<String> {
        let found = self.system_identifier;
        if let Some(wanted) = expected.system_identifier.filter(|wanted| *wanted != found) {
            return Some(format!("its system identifier is {found}, the shard's is {wanted}"));
        }
        let found = self.timeline;
        let newest = expected.newest_timeline.filter(|newest| found > *newest)?;
        Some(format!("it is on timeline {found}, the shard on {newest}: it went its own way"))
    }
}

/// Looks at the database in this data directory, whose server must not run: that it is whole, as far as
/// that shows, and which it is.
///
/// # Errors
/// [`StorageCause::NotTheDatabase`] when it cannot be taken for a whole database.
pub async fn examine(
    data: &Path,
    pg_controldata: &Path,
    os_user: Option<&OsUser>,
) -> Result<DatabaseFacts, StorageCause> {
    let wrong = |problem: String| StorageCause::NotTheDatabase { path: data.to_owned(), problem };
    for file in ["PG_VERSION", "global/pg_control"] {
        if !data.join(file).is_file() {
            return Err(wrong(format!("there is no {file}")));
        }
    }
    if !data.join("pg_wal").is_dir() || data.join("pg_wal").is_symlink() {
        return Err(wrong(
            "its pg_wal is no directory of its own: WAL elsewhere is in no snapshot".into(),
        ));
    }
    let tablespaces = data.join("pg_tblspc");
    if fs::read_dir(&tablespaces).map_err(at(&tablespaces))?.next().is_some() {
        return Err(wrong("it has tablespaces elsewhere, which are in no snapshot".into()));
    }
    let output = Exec::new(pg_controldata)
        .as_user(os_user)
        .arg("--pgdata")
        .arg(data)
        .limit(LIMIT)
        .run()
        .await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Of a control file that is damaged it says so, prints what it finds, and succeeds.
    let warned = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains("WARNING") || !warned.is_empty() {
        return Err(wrong(format!("its control file is damaged: {warned}")));
    }
    let version = files::read(&data.join("PG_VERSION"))?.unwrap_or_default();
    DatabaseFacts::parse(&text, version.trim()).ok_or_else(|| StorageCause::Answer {
        command: format!("pg_controldata {}", data.display()),
        answer: text,
    })
}

/// A dataset that came in completely, and where it is to go.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// What came.
    pub from: DatasetName,
    /// What it is to be called. Must not exist: set that aside first.
    pub to: DatasetName,
    /// Where it is to be mounted.
    pub mountpoint: PathBuf,
    /// Where it is mounted to be looked at: an empty directory, or none.
    pub beside: PathBuf,
    /// What it has to be.
    pub expected: Expected,
    /// The program of this version.
    pub pg_controldata: PathBuf,
    /// Who owns the database; `None` for our own user.
    pub os_user: Option<OsUser>,
}

impl Incoming {
    /// Puts it in place, as a standby's. Doing it again after an interruption goes on where it was.
    ///
    /// # Errors
    /// When it is not what it has to be: it stays under the name that it came by, unmounted, to be
    /// looked at or destroyed. When something of the name that it is to have is in the way.
    pub async fn put_in_place(
        &self,
        snapshots: &dyn Snapshots,
    ) -> Result<DatabaseFacts, StorageError> {
        let dataset = PathBuf::from(snapshots.full_name(&self.to));
        let placed = self.place(snapshots).await;
        placed.map_err(|cause| StorageError { dataset, operation: "put what came in place", cause })
    }

    async fn place(&self, snapshots: &dyn Snapshots) -> Result<DatabaseFacts, StorageCause> {
        let known = snapshots.datasets().await?;
        if known.iter().any(|dataset| dataset.name == self.to) {
            return Err(StorageCause::Exists(snapshots.full_name(&self.to)));
        }
        snapshots.mount(&self.from, &self.beside).await?;
        let prepared = self.prepare().await;
        // Looked at or not, it is not left where a server could be started by hand.
        snapshots.unmount(&self.from).await?;
        let facts = prepared?;
        snapshots.rename(&self.from, &self.to).await?;
        snapshots.mount(&self.to, &self.mountpoint).await?;
        Ok(facts)
    }

    async fn prepare(&self) -> Result<DatabaseFacts, StorageCause> {
        let data = self.beside.join("data");
        let owner = self.os_user.as_ref();
        let facts = examine(&data, &self.pg_controldata, owner).await?;
        if let Some(problem) = facts.problem(&self.expected) {
            return Err(StorageCause::NotTheDatabase { path: data, problem });
        }
        // First of all: without it a start would write the sender's own timeline.
        files::write(&data.join(STANDBY_SIGNAL), "", owner)?;
        for file in ["postmaster.pid", "postmaster.opts", "recovery.signal"] {
            files::remove(&data.join(file))?;
        }
        let slots = data.join("pg_replslot");
        for slot in fs::read_dir(&slots).map_err(at(&slots))? {
            let slot = slot.map_err(at(&slots))?.path();
            fs::remove_dir_all(&slot).map_err(at(&slot))?;
        }
        let system_identifier = facts.system_identifier;
        let marker = Marker { database: Served::Established, system_identifier };
        files::write_json(&self.beside.join(MARKER), &marker, owner)?;
        files::give(&self.beside, owner).map_err(at(&self.beside))?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pg_control version number:            1300\n\
        Database system identifier:           7445212345678901234\n\
        Database cluster state:               in production\n\
        Latest checkpoint location:           0/3000060\n\
        Latest checkpoint's REDO location:    0/3000028\n\
        Latest checkpoint's TimeLineID:       3\n\
        Minimum recovery ending location:     0/0\n\
        Min recovery ending loc's timeline:   0\n\
        Bytes per WAL segment:                16777216\n";

    #[test]
    fn the_control_file_is_read() {
        let facts = DatabaseFacts::parse(TEXT, "15").expect("understood");
        assert_eq!(facts.system_identifier, 7_445_212_345_678_901_234);
        assert_eq!((facts.timeline, facts.version.as_str()), (3, "15"));
        assert_eq!(facts.checkpoint, "0/3000028".parse().expect("a position"));
        assert_eq!(facts.recovered_at_least, (3, "0/3000060".parse().expect("a position")));
        let following = TEXT.replace("location:     0/0", "location: 0/4000000");
        let following = following.replace("timeline:   0", "timeline: 4");
        let facts_then = DatabaseFacts::parse(&following, "15").expect("understood");
        assert_eq!(facts_then.recovered_at_least, (4, "0/4000000".parse().expect("a position")));
        assert_eq!((facts.state.as_str(), facts.wal_segment), ("in production", 16 << 20));
        assert_eq!(DatabaseFacts::parse("nothing", "15"), None);
        let check = |system_identifier, newest_timeline, fits: bool| {
            let expected = Expected { system_identifier, newest_timeline };
            assert_eq!(facts.problem(&expected).is_none(), fits, "{expected:?}");
        };
        check(None, None, true);
        check(Some(7_445_212_345_678_901_234), Some(3), true);
        check(Some(1), None, false);
        check(None, Some(2), false);
    }
}
