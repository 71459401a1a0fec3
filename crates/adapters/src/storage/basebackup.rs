//! A base backup of a running PostgreSQL: what every backend can be filled with, and the only way
//! without snapshots.

use super::{SeedPhase, SeedProgress, SeedRequest, SeedSource, Seeded, StorageCause, error::at};
use crate::{
    exec::{Exec, ExecCause, ExecError, OsUser},
    postgres::{
        connection::to_copy_from,
        files::{self, MARKER, Marker, STANDBY_SIGNAL, Served},
    },
};
use cluster::PeerId;
use rustix::fs::statvfs;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::sync::{oneshot, watch};

/// The highest rate that PostgreSQL can be told, in MiB a second.
const HIGHEST_RATE: u64 = 1024;
/// The start of the name of a database that has not come in completely.
pub(super) const INCOMING: &str = "data.incoming-";

/// Fills `data` in this directory, which must not be there, from the first source that gives a
/// database.
pub(super) async fn fetch(
    dataset: &Path,
    request: &SeedRequest,
    progress: &watch::Sender<SeedProgress>,
) -> Result<Seeded, StorageCause> {
    BaseBackup { dataset }.fetch(request, progress).await
}

struct BaseBackup<'a> {
    dataset: &'a Path,
}

impl BaseBackup<'_> {
    fn data(&self) -> PathBuf {
        self.dataset.join("data")
    }

    async fn fetch(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageCause> {
        progress.send_replace(SeedProgress::default());
        let data = self.data();
        match fs::remove_dir(&data) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return Err(StorageCause::InTheWay(data)),
        }
        files::give(self.dataset, request.os_user.as_ref()).map_err(at(self.dataset))?;
        let mut failures = Vec::new();
        for source in &request.sources {
            for leftover in entries(self.dataset, INCOMING)? {
                delete(leftover).await?;
            }
            match self.fetch_from(source, request, progress).await {
                Ok(seeded) => return Ok(seeded),
                Err(cause) => {
                    tracing::warn!(source = %source.peer, %cause, "no database from this peer");
                    failures.push((source.peer.clone(), Box::new(cause)));
                }
            }
        }
        if failures.is_empty() {
            return Err(StorageCause::NoSource);
        }
        Err(StorageCause::AllFailed(failures))
    }

    async fn fetch_from(
        &self,
        source: &SeedSource,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageCause> {
        let name = format!("{INCOMING}{}", uuid::Uuid::new_v4());
        let incoming = self.dataset.join(name);
        let owner = request.os_user.as_ref();
        files::directory(&incoming, 0o700, owner)?;
        progress.send_replace(SeedProgress {
            source: Some(source.peer.clone()),
            ..SeedProgress::default()
        });
        self.base_backup(source, request, &incoming, progress).await?;
        progress.send_modify(|progress| progress.phase = SeedPhase::Finishing);
        let seeded = check(&source.peer, &incoming)?;
        self.put_in_place(&incoming, &seeded, owner)?;
        progress.send_modify(|progress| progress.phase = SeedPhase::Done);
        Ok(seeded)
    }

    /// Takes the backup. `pg_basebackup` itself writes all of it out to the disk at its end.
    async fn base_backup(
        &self,
        source: &SeedSource,
        request: &SeedRequest,
        incoming: &Path,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<(), StorageCause> {
        let rate = request.rate_mib.map(|rate| rate.min(HIGHEST_RATE));
        // It makes its second connection, for the WAL, from this as well.
        let server = to_copy_from(&source.host, source.port, &request.user);
        let command = Exec::new(&request.pg_basebackup)
            .as_user(request.os_user.as_ref())
            .env("PGPASSWORD", &request.password)
            .env("PGAPPNAME", "manatee seed")
            .redact(&request.password)
            .args(["--no-password", "--wal-method=stream", "--checkpoint=fast"])
            .args(["--progress", "--dbname", &server])
            .args(rate.map(|rate| format!("--max-rate={rate}M")))
            .arg("--pgdata")
            .arg(incoming);
        let (refuse, refused) = oneshot::channel();
        let mut refuse = Some(refuse);
        let dataset = self.dataset.to_owned();
        let on_line = |line: &str| {
            let Some((done, total)) = transferred(line) else {
                return;
            };
            progress.send_modify(|progress| {
                progress.bytes_done = done;
                progress.bytes_total = Some(total);
                progress.phase = SeedPhase::Receiving;
            });
            // The first estimate decides whether there is room. It comes within a second: a big
            // database is refused before it has filled the disk.
            if let (Some(refuse), Some(short)) =
                (refuse.take(), shortage(&dataset, total - done.min(total)))
            {
                // Nobody listens any more when the command has ended already.
                refuse.send(short).ok();
            }
        };
        tokio::select! {
            biased;
            Ok(cause) = refused => Err(cause),
            outcome = command.run_with(on_line) => outcome.map(drop).map_err(full_or_failed),
        }
    }

    /// Makes it a standby's and moves it to its place. The file that makes it a standby's comes
    /// first: without it a start would write the source's own timeline.
    fn put_in_place(
        &self,
        incoming: &Path,
        seeded: &Seeded,
        owner: Option<&OsUser>,
    ) -> Result<(), StorageCause> {
        files::write(&incoming.join(STANDBY_SIGNAL), "", owner)?;
        let marker =
            Marker { database: Served::Established, system_identifier: seeded.system_identifier };
        files::write_json(&self.dataset.join(MARKER), &marker, owner)?;
        let data = self.data();
        fs::rename(incoming, &data).and_then(|()| files::sync_parent(&data)).map_err(at(&data))
    }
}

/// What lies in a directory under names that begin so.
pub(super) fn entries(dataset: &Path, prefix: &str) -> Result<Vec<PathBuf>, StorageCause> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dataset).map_err(at(dataset))? {
        let path = entry.map_err(at(dataset))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Deletes a whole database, which takes a while.
pub(super) async fn delete(path: PathBuf) -> Result<(), StorageCause> {
    let target = path.clone();
    tokio::task::spawn_blocking(move || fs::remove_dir_all(target))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(at(&path))
}

/// Reads `  23456/45678 kB (51%), 0/1 tablespace`, in bytes.
fn transferred(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.trim_start().split_once(" kB")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(done)?, bytes(total)?))
}

/// Why so many bytes have no room there.
pub(super) fn shortage(dataset: &Path, needed: u64) -> Option<StorageCause> {
    // When the file system does not tell, the transfer itself will.
    let found = statvfs(dataset).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    (needed > free).then_some(StorageCause::NoSpace { needed, free })
}

/// Knows a command that failed because nothing was left to write on.
pub(super) fn full_or_failed(error: ExecError) -> StorageCause {
    match &error.cause {
        ExecCause::Failed { output, .. } if output.contains("No space left on device") => {
            StorageCause::Full(error)
        }
        _ => StorageCause::Command(error),
    }
}

/// That what came is a whole backup.
fn check(peer: &PeerId, incoming: &Path) -> Result<Seeded, StorageCause> {
    let incomplete = |problem: &str| StorageCause::Incomplete {
        peer: peer.clone(),
        problem: problem.to_owned(),
    };
    // The manifest is sent last.
    for file in ["PG_VERSION", "global/pg_control", "backup_manifest"] {
        if !incoming.join(file).is_file() {
            return Err(incomplete(&format!("there is no {file}")));
        }
    }
    let label = files::read(&incoming.join("backup_label"))?
        .ok_or_else(|| incomplete("there is no backup_label"))?;
    let timeline = label
        .lines()
        .find_map(|line| line.strip_prefix("START TIMELINE: "))
        .and_then(|timeline| timeline.trim().parse().ok())
        .ok_or_else(|| incomplete("backup_label names no timeline"))?;
    Ok(Seeded {
        source: peer.clone(),
        system_identifier: files::system_identifier(incoming)?,
        timeline,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines() {
        assert_eq!(transferred("  2/4 kB (50%), 0/1 tablespace"), Some((2048, 4096)));
        assert_eq!(
            transferred("30913/30913 kB (100%), 0/1 tablespace (/x/data.incoming)"),
            Some((30913 << 10, 30913 << 10))
        );
        for other in ["", "waiting for checkpoint", "pg_basebackup: error: 1/2 kB", "1/ kB"] {
            assert_eq!(transferred(other), None, "{other}");
        }
    }

    #[test]
    fn room_is_what_is_free() {
        let here = Path::new("/");
        assert!(shortage(here, 0).is_none());
        let short = shortage(here, u64::MAX).expect("too much");
        assert!(matches!(short, StorageCause::NoSpace { needed: u64::MAX, free } if free > 0));
        assert!(shortage(Path::new("/nowhere"), u64::MAX).is_none());
    }
}
