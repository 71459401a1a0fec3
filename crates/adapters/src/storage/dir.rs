//! A plain directory: no native snapshots. Data comes as a base backup of a running PostgreSQL.

use super::{
    Capabilities, SeedPhase, SeedProgress, SeedRequest, SeedSource, Seeded, Storage, StorageCause,
    StorageError,
};
use crate::{
    exec::{Exec, ExecCause, ExecError, OsUser},
    postgres::{
        files::{self, MARKER, Marker, STANDBY_SIGNAL, Served},
        process,
    },
};
use async_trait::async_trait;
use cluster::PeerId;
use rustix::fs::statvfs;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::sync::{oneshot, watch};

/// The start of the name of a database that has not come in completely.
const INCOMING: &str = "data.incoming-";

/// A dataset that is a plain directory.
#[derive(Debug, Clone)]
pub struct Dir {
    dataset: PathBuf,
}

impl Dir {
    /// The dataset at this mount point.
    pub fn new(dataset: impl Into<PathBuf>) -> Dir {
        Dir { dataset: dataset.into() }
    }

    fn data(&self) -> PathBuf {
        self.dataset.join("data")
    }

    fn error(&self, operation: &'static str) -> impl FnOnce(StorageCause) -> StorageError {
        let dataset = self.dataset.clone();
        move |cause| StorageError { dataset, operation, cause }
    }
}

#[async_trait]
impl Storage for Dir {
    fn capabilities(&self) -> Capabilities {
        Capabilities { backend: "dir", snapshots: false }
    }

    fn dataset(&self) -> &Path {
        &self.dataset
    }

    async fn seed(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageError> {
        self.fetch(request, progress).await.map_err(self.error("fetch a database into it"))
    }

    async fn set_aside(&self, reason: &str) -> Result<PathBuf, StorageError> {
        self.rename_aside(reason).map_err(self.error("set its database aside"))
    }

    async fn prune_aside(&self, keep: usize) -> Result<Vec<PathBuf>, StorageError> {
        self.prune(keep).await.map_err(self.error("delete old databases in it"))
    }
}

impl Dir {
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
        files::give(&self.dataset, request.os_user.as_ref()).map_err(at(&self.dataset))?;
        let mut failures = Vec::new();
        for source in &request.sources {
            for leftover in self.entries(INCOMING)? {
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
        let command = Exec::new(&request.pg_basebackup)
            .as_user(request.os_user.as_ref())
            .env("PGPASSWORD", &request.password)
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGAPPNAME", "manatee seed")
            .redact(&request.password)
            .args(["--no-password", "--wal-method=stream", "--checkpoint=fast"])
            .args(["--progress", "--host", &source.host])
            .args(["--port", &source.port.to_string()])
            .args(["--username", &request.user])
            .arg("--pgdata")
            .arg(incoming);
        let (refuse, refused) = oneshot::channel();
        let mut refuse = Some(refuse);
        let dataset = self.dataset.clone();
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

    fn rename_aside(&self, reason: &str) -> Result<PathBuf, StorageCause> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let reserved = ["new", "incoming"].contains(&reason.split('-').next().unwrap_or(""));
        if reason.is_empty() || reserved || reason.len() > 60 || !reason.chars().all(plain) {
            return Err(StorageCause::BadReason(reason.to_owned()));
        }
        let data = self.data();
        if !data.exists() {
            return Err(StorageCause::NoDatabase(data));
        }
        // A server would go on writing, under the new name.
        if let Some(&pid) = process::of_server(&data).map_err(at(&data))?.first() {
            return Err(StorageCause::InUse { path: data, pid });
        }
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ");
        let aside = self.dataset.join(format!("data.{reason}-{time}"));
        if aside.exists() {
            return Err(StorageCause::InTheWay(aside));
        }
        fs::rename(&data, &aside).and_then(|()| files::sync_parent(&data)).map_err(at(&data))?;
        Ok(aside)
    }

    async fn prune(&self, keep: usize) -> Result<Vec<PathBuf>, StorageCause> {
        let mut aside: Vec<(String, PathBuf)> = self
            .entries("data.")?
            .into_iter()
            .filter_map(|path| Some((set_aside_at(&path)?, path)))
            .collect();
        aside.sort();
        aside.truncate(aside.len().saturating_sub(keep));
        let mut deleted = Vec::new();
        for (_, path) in aside {
            delete(path.clone()).await?;
            deleted.push(path);
        }
        Ok(deleted)
    }

    /// What lies in the dataset under names that begin so.
    fn entries(&self, prefix: &str) -> Result<Vec<PathBuf>, StorageCause> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dataset).map_err(at(&self.dataset))? {
            let path = entry.map_err(at(&self.dataset))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(prefix) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StorageCause {
    let path = path.to_owned();
    move |source| StorageCause::File { path, source }
}

/// Deletes a whole database, which takes a while.
async fn delete(path: PathBuf) -> Result<(), StorageCause> {
    let target = path.clone();
    tokio::task::spawn_blocking(move || fs::remove_dir_all(target))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(at(&path))
}

/// When it was set aside, as it stands in the name; `None` for what we did not set aside.
fn set_aside_at(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (reason, time) = name.strip_prefix("data.")?.rsplit_once('-')?;
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    (shape == "00000000T000000.000000Z" && !["new", "incoming"].contains(&reason))
        .then(|| time.to_owned())
}

/// Reads `  23456/45678 kB (51%), 0/1 tablespace`, in bytes.
fn transferred(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.trim_start().split_once(" kB")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(done)?, bytes(total)?))
}

/// Why so many bytes have no room there.
fn shortage(dataset: &Path, needed: u64) -> Option<StorageCause> {
    // When the file system does not tell, the transfer itself will.
    let found = statvfs(dataset).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    (needed > free).then_some(StorageCause::NoSpace { needed, free })
}

fn full_or_failed(error: ExecError) -> StorageCause {
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

    #[test]
    fn only_what_was_set_aside_is_known_as_such() {
        let time = "20260102T030405.123456Z";
        for (name, known) in [
            (format!("data.deposed-{time}"), true),
            (format!("data.a-b-{time}"), true),
            (format!("data.incoming-{time}"), false),
            ("data.incoming-0f0e".to_owned(), false),
            ("data.old".to_owned(), false),
            ("data".to_owned(), false),
        ] {
            let found = set_aside_at(Path::new(&name));
            assert_eq!(found, known.then(|| time.to_owned()), "{name}");
        }
    }
}
