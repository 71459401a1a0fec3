//! The files of a snapshot: a clone of it is mounted beside the dataset for as long as it is read.
//!
//! Clone and snapshot go when this ends, and what a program that was killed left goes when the next one
//! begins.

use super::{Output, Watch, copy as copy_output};
use crate::sitter::config::Config;
use adapters::{
    exec::Exec,
    postgres::{Postgres, segment_of},
    storage::{
        DatabaseFacts, DatasetName, Expected, Purpose, SnapshotName, Snapshots, Storage, Volume,
        examine,
    },
};
use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What its snapshots are made for.
pub(in crate::adm) const BACKUP: &str = "backup";
/// What belongs to the server that ran there and nobody else, and what is no part of a database.
const LEFT_OUT: [&str; 3] = ["postmaster.pid", "postmaster.opts", "lost+found"];

/// A snapshot that came from elsewhere.
#[derive(Debug)]
pub(crate) struct Came {
    /// The dataset that it is of.
    pub dataset: DatasetName,
    /// Its name.
    pub snapshot: SnapshotName,
    /// Where in it the database is.
    pub inside: PathBuf,
}

/// Writes the files of a new snapshot, or of one that came; the database that they are.
pub(super) async fn copy(
    config: &Config,
    volume: &Volume,
    postgres: &Postgres,
    came: Option<&Came>,
    writer: &mut Output,
    watch: &Watch<'_>,
) -> Result<DatabaseFacts> {
    let look = Look::new(config, volume).await?;
    let copied = look.copy(postgres, came, writer, watch).await;
    // Whatever became of it.
    match (copied, look.clear().await) {
        (Ok(copied), Ok(())) => Ok(copied),
        (Err(error), Ok(())) => Err(error),
        (Ok(_), Err(left)) => Err(left),
        (Err(error), Err(left)) => Err(error.context(format!("and then: {left:#}"))),
    }
}

/// Removes what one that was killed left.
///
/// # Errors
/// When the file system refuses, or another backup is being made.
pub(crate) async fn clear(config: &Config) -> Result<()> {
    let storage = config.open_storage()?;
    if let Some(volume) = storage.volume() {
        storage.prepare().await?;
        Look::new(config, volume).await?;
    }
    Ok(())
}

/// Where the clone is to be, held by nobody else.
struct Look<'a> {
    volume: &'a Volume,
    snapshots: Arc<dyn Snapshots>,
    clone: DatasetName,
    at: PathBuf,
    _lock: File,
}

impl Look<'_> {
    async fn new<'a>(config: &Config, volume: &'a Volume) -> Result<Look<'a>> {
        let path = config.dataset.join("backup.lock");
        let lock =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| anyhow!("another backup of this peer is being made: wait for it"))?;
        let mountpoint = volume.dataset();
        let name = mountpoint.file_name().unwrap_or_default().to_string_lossy();
        let look = Look {
            volume,
            snapshots: volume.snapshots().await?,
            clone: DatasetName::new(&format!("{}.{BACKUP}", volume.name()))?,
            at: mountpoint.with_file_name(format!(".{name}.{BACKUP}")),
            _lock: lock,
        };
        look.clear().await?;
        Ok(look)
    }

    async fn copy(
        &self,
        postgres: &Postgres,
        came: Option<&Came>,
        writer: &mut Output,
        watch: &Watch<'_>,
    ) -> Result<DatabaseFacts> {
        let inside = match came {
            Some(Came { dataset, snapshot, inside }) => {
                self.snapshots.clone_snapshot(dataset, snapshot, &self.clone).await?;
                inside
            }
            None => {
                let name = self.volume.name();
                let made = self.snapshots.snapshot(name, &SnapshotName::now(BACKUP)?).await;
                let made = made.context("no snapshot was made")?;
                self.snapshots.clone_snapshot(name, &made.name, &self.clone).await?;
                Path::new("data")
            }
        };
        self.snapshots.mount(&self.clone, &self.at).await?;
        let data = self.at.join(inside);
        let program = postgres.bin_dir().join("pg_controldata");
        let facts = examine(&data, &program, postgres.os_user()).await?;
        let system_identifier = if came.is_none() { postgres.identity()? } else { None };
        let expected = Expected { system_identifier, newest_timeline: None };
        if let Some(problem) = facts.problem(&expected) {
            bail!("what is in the snapshot is not the database of this peer: {problem}");
        }
        let read = copy_output(tar(&data, &facts)?, writer, watch).await;
        read.context("the snapshot cannot be read")?;
        Ok(facts)
    }

    /// Removes the clone and its snapshot, whosever they are: nobody else makes any now.
    async fn clear(&self) -> Result<()> {
        let (snapshots, name) = (&self.snapshots, self.volume.name());
        if snapshots.datasets().await?.iter().any(|dataset| dataset.name == self.clone) {
            snapshots.unmount(&self.clone).await?;
            snapshots.destroy(&self.clone).await?;
        }
        for old in snapshots.list(name).await? {
            if old.name.purpose() == Purpose::For(BACKUP) && old.holds == 0 && old.clones.is_empty()
            {
                snapshots.destroy_snapshot(name, &old.name).await?;
            }
        }
        match fs::remove_dir(&self.at) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.at.display()))
            }
            _ => Ok(()),
        }
    }
}

/// An archive of the data directory as a base backup has it: without what belongs to that server alone,
/// and without WAL that no recovery from there needs.
fn tar(data: &Path, facts: &DatabaseFacts) -> Result<Exec> {
    let mut tar = Exec::new("tar").args(["--create", "--file=-", "--numeric-owner", "--anchored"]);
    tar = tar.args(["--exclude=pg_replslot/*", "--exclude=pg_wal/archive_status/*"]);
    // With a label, recovery begins where that says.
    if !data.join("backup_label").exists() {
        for name in names(&data.join("pg_wal"))? {
            if is_before(&name, facts) {
                tar = tar.arg(format!("--exclude=pg_wal/{name}"));
            }
        }
    }
    let top = names(data)?.into_iter().filter(|name| !LEFT_OUT.contains(&name.as_str()));
    Ok(tar.arg("--directory").arg(data).arg("--").args(top))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        fs::read_dir(directory)?.map(|entry| entry.map(name)).collect()
    };
    let mut names = read().with_context(|| format!("cannot read {}", directory.display()))?;
    names.sort();
    Ok(names)
}

/// Whether this is a segment of WAL before the one that recovery begins in, on whatever timeline.
fn is_before(name: &str, facts: &DatabaseFacts) -> bool {
    segment_of(name, facts.wal_segment)
        .is_some_and(|(_, begin)| begin.byte() + facts.wal_segment <= facts.checkpoint.byte())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::Lsn;

    #[test]
    fn only_wal_before_the_checkpoint_is_left_out() {
        let check = |segment: u64, checkpoint: u64, name: &str, before: bool| {
            let facts = DatabaseFacts {
                system_identifier: 1,
                timeline: 2,
                checkpoint: Lsn::new(checkpoint),
                recovered_at_least: (2, Lsn::new(checkpoint)),
                version: "15".to_owned(),
                state: "in production".to_owned(),
                wal_segment: segment,
            };
            assert_eq!(is_before(name, &facts), before, "{name} and {checkpoint:x}");
        };
        let at = (7 << 32) + (3 << 24) + 0x28;
        check(16 << 20, at, "000000020000000700000002", true);
        check(16 << 20, at, "0000000100000006000000FF", true);
        check(16 << 20, at, "000000020000000700000003", false);
        check(16 << 20, (7 << 32) + (3 << 24), "000000020000000700000002", true);
        check(16 << 20, at, "000000020000000700000004", false);
        check(1 << 20, (5 << 20) + 1, "000000010000000000000004", true);
        check(1 << 20, (5 << 20) + 1, "000000010000000000000005", false);
        for other in ["00000002.history", "archive_status", "000000020000000700000002.partial"] {
            check(16 << 20, at, other, false);
        }
    }
}
