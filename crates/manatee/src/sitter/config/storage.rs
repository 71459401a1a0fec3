//! Where the database lies, as the sitter's file says.

use super::Config;
use adapters::storage::{Dir, Storage, Volume};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// What holds the database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// What kind.
    pub backend: Backend,
    /// The dataset: a file system of a ZFS pool, or a directory of a btrfs.
    pub name: Option<String>,
    /// Where it is mounted; `store/` in the peer's directory where it is not given.
    pub mountpoint: Option<PathBuf>,
}

/// A kind of storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A plain directory, without snapshots.
    #[default]
    Dir,
    /// A subvolume of a btrfs.
    Btrfs,
    /// A file system of a ZFS pool.
    Zfs,
}

impl StorageConfig {
    /// How PostgreSQL suits it, unless an operator says otherwise. Where a block is never overwritten, a
    /// file of WAL that is used again is no better than a new one, and until then it is in every snapshot
    /// and every copy, and is fetched by every rewind.
    pub(super) fn settings(&self) -> BTreeMap<String, String> {
        let names: &[&str] = match self.backend {
            Backend::Dir => &[],
            Backend::Btrfs | Backend::Zfs => &["wal_recycle", "wal_init_zero"],
        };
        names.iter().map(|name| ((*name).to_owned(), "off".to_owned())).collect()
    }
}

impl Config {
    /// Where the database lies, in `data/`.
    pub fn mountpoint(&self) -> PathBuf {
        match (self.storage.backend, &self.storage.mountpoint) {
            (Backend::Dir, _) => self.dataset.clone(),
            (_, Some(mountpoint)) => mountpoint.clone(),
            (_, None) => self.dataset.join("store"),
        }
    }

    pub(super) fn check_storage(&self) -> Result<(), String> {
        let StorageConfig { backend, name, mountpoint } = &self.storage;
        match (backend, name, mountpoint) {
            (Backend::Dir, None, None) => return Ok(()),
            (Backend::Dir, _, _) => {
                let problem = "a plain directory has no name and no mountpoint: the database lies in \
                               the dataset; give another backend, or neither of them";
                return Err(format!("storage: {problem}"));
            }
            (_, None, _) => {
                let problem = "storage.name is missing: give the dataset that holds the database";
                return Err(problem.to_owned());
            }
            (_, Some(_), _) => {}
        }
        let at = self.mountpoint();
        if !at.is_absolute() || at == self.dataset || self.dataset.starts_with(&at) {
            let shown = at.display();
            return Err(format!(
                "storage.mountpoint {shown}: give an absolute path that is not the dataset directory \
                 and does not hold it: what belongs to this host stays there when the database is replaced"
            ));
        }
        let opened = self.open_storage();
        opened.map(drop).map_err(|error| format!("storage.name: {error:#}"))
    }

    /// What holds the database. Nothing of it is looked at yet.
    ///
    /// # Errors
    /// When the name is no name of a dataset.
    pub fn open_storage(&self) -> Result<Arc<dyn Storage>> {
        let name = self.storage.name.as_deref().context("no name is given");
        Ok(match self.storage.backend {
            Backend::Dir => Arc::new(Dir::new(&self.dataset)),
            Backend::Btrfs => Arc::new(Volume::btrfs(name?, self.mountpoint())?),
            Backend::Zfs => Arc::new(Volume::zfs(name?, self.mountpoint())?),
        })
    }
}
