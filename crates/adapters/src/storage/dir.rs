//! A plain directory: no native snapshots.

use super::{Capabilities, SeedProgress, SeedRequest, Seeded, Storage, StorageError};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// A dataset that is a plain directory.
#[derive(Debug, Clone)]
pub struct Dir {
    dataset: PathBuf,
}

impl Dir {
    /// The dataset at this mount point.
    pub fn new(dataset: impl Into<PathBuf>) -> Dir {
        Dir {
            dataset: dataset.into(),
        }
    }
}

#[expect(unused_variables)]
#[async_trait]
impl Storage for Dir {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "dir",
            snapshots: false,
        }
    }
    fn dataset(&self) -> &Path {
        &self.dataset
    }
    async fn seed(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageError> {
        todo!()
    }
    async fn set_aside(&self, reason: &str) -> Result<PathBuf, StorageError> {
        todo!()
    }
    async fn prune_aside(&self, keep: usize) -> Result<Vec<PathBuf>, StorageError> {
        todo!()
    }
}
