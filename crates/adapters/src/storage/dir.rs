//! A plain directory: no native snapshots. Data comes as a base backup of a running PostgreSQL, and
//! goes as that, or as a plain copy of one that is stopped.

use super::{
    Capabilities, Pruned, SeedProgress, SeedRequest, Seeded, Storage, StorageCause, StorageError,
    aside,
    basebackup::{self, delete, entries, full_or_failed},
    error::at,
};
use crate::{exec::Exec, postgres::files};
use async_trait::async_trait;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::sync::watch;

/// The end of the name of a copy that is not complete.
const INCOMPLETE: &str = ".incomplete";

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

    /// Copies the database, whose server must be stopped, to a directory that does not exist. It is not
    /// there before it is complete.
    ///
    /// # Errors
    /// When a server runs, something is in the way, or there is no room.
    pub async fn copy_stopped(&self, to: &Path) -> Result<(), StorageError> {
        self.copy(to).await.map_err(self.error("copy its database"))
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
        Capabilities { backend: "dir", snapshots: false, resume: false, bookmarks: false }
    }

    fn dataset(&self) -> &Path {
        &self.dataset
    }

    /// The directory was made before anybody ran on it.
    async fn prepare(&self) -> Result<(), StorageError> {
        Ok(())
    }

    async fn seed(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageError> {
        let fetched = basebackup::fetch(&self.dataset, request, progress).await;
        fetched.map_err(self.error("fetch a database into it"))
    }

    async fn set_aside(&self, reason: &str) -> Result<PathBuf, StorageError> {
        self.rename_aside(reason).map_err(self.error("set its database aside"))
    }

    async fn keep(&self, reason: &str) -> Result<PathBuf, StorageError> {
        self.copy_aside(reason).await.map_err(self.error("keep a copy of its database"))
    }

    async fn prune_aside(&self, keep: usize) -> Result<Pruned, StorageError> {
        self.prune(keep).await.map_err(self.error("delete old databases in it"))
    }
}

impl Dir {
    fn rename_aside(&self, reason: &str) -> Result<PathBuf, StorageCause> {
        let suffix = aside::suffix(reason)?;
        let data = self.data();
        aside::at_rest(&data)?;
        let aside = self.dataset.join(format!("data.{suffix}"));
        if aside.exists() {
            return Err(StorageCause::InTheWay(aside));
        }
        fs::rename(&data, &aside).and_then(|()| files::sync_parent(&data)).map_err(at(&data))?;
        Ok(aside)
    }

    async fn copy_aside(&self, reason: &str) -> Result<PathBuf, StorageCause> {
        let aside = self.dataset.join(format!("data.{}", aside::suffix(reason)?));
        self.sweep().await?;
        self.copy(&aside).await?;
        Ok(aside)
    }

    /// Deletes what is not whole: their names have a time, so that nobody would come upon them.
    async fn sweep(&self) -> Result<(), StorageCause> {
        for path in entries(&self.dataset, "data.")? {
            if path
                .to_str()
                .and_then(|name| name.strip_suffix(INCOMPLETE))
                .and_then(set_aside_at)
                .is_some()
            {
                delete(path).await?;
            }
        }
        Ok(())
    }

    async fn prune(&self, keep: usize) -> Result<Pruned, StorageCause> {
        let known = |path: PathBuf| Some((set_aside_at(path.to_str()?)?.to_owned(), path));
        let found = entries(&self.dataset, "data.")?.into_iter().filter_map(known).collect();
        let mut pruned = Pruned::default();
        for path in aside::beyond(found, keep) {
            let deleted = delete_whole(&path).await;
            pruned.note(path, deleted);
        }
        // What an earlier one, or a copy, left.
        if let Err(cause) = self.sweep().await {
            pruned.left.push((self.dataset.clone(), cause));
        }
        Ok(pruned)
    }

    async fn copy(&self, to: &Path) -> Result<(), StorageCause> {
        let data = self.data();
        aside::at_rest(&data)?;
        if to.exists() {
            return Err(StorageCause::InTheWay(to.to_owned()));
        }
        let incomplete = incomplete(to);
        if incomplete.exists() {
            delete(incomplete.clone()).await?;
        }
        if let Err(error) = copy_all(&data, &incomplete).await {
            // It may have taken the last of the room.
            if incomplete.exists()
                && let Err(left) = delete(incomplete.clone()).await
            {
                let path = incomplete.display();
                tracing::warn!("{path}: half a copy could not be removed: {left}");
            }
            return Err(error);
        }
        fs::rename(&incomplete, to).and_then(|()| files::sync_parent(to)).map_err(at(to))
    }
}

/// What a database is called while it is not whole.
fn incomplete(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(INCOMPLETE);
    path.with_file_name(name)
}

/// Deletes a database. Half of one never has the name of a whole one.
async fn delete_whole(path: &Path) -> Result<(), StorageCause> {
    let going = incomplete(path);
    fs::rename(path, &going).and_then(|()| files::sync_parent(path)).map_err(at(path))?;
    delete(going).await
}

/// Copies a stopped database, durably.
async fn copy_all(data: &Path, to: &Path) -> Result<(), StorageCause> {
    let copy = Exec::new("cp").args(["--archive", "--reflink=auto"]);
    copy.arg(data).arg(to).run().await.map_err(full_or_failed)?;
    // Started in the meantime: what was copied is of many moments.
    aside::at_rest(data)?;
    Exec::new("sync").arg("--file-system").arg(to).run().await?;
    Ok(())
}

/// When the database at this path was set aside; `None` for what we did not set aside.
fn set_aside_at(path: &str) -> Option<&str> {
    aside::time_of(path.rsplit('/').next()?.strip_prefix("data.")?)
}
