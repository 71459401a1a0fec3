//! A dataset of a file system with snapshots as storage of one peer: it is mounted where the sitter
//! has it, and set aside as a whole, with its snapshots.
//!
//! What is set aside is called `NAME.REASON-TIME`, beside it.

use super::{
    Btrfs, Capabilities, DatasetName, Pruned, SeedProgress, SeedRequest, Seeded, SnapshotName,
    Snapshots, Storage, StorageCause, StorageError, Zfs, aside, basebackup,
};
use async_trait::async_trait;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::{OnceCell, watch};

/// The longest name of a dataset: what it is called when it was set aside must be a name as well.
const LONGEST_NAME: usize = 30;

/// Why a database is kept before it is changed: snapshots with this purpose are pruned like what was
/// set aside.
pub const KEPT: &str = "replaced";

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Btrfs,
    Zfs,
}

/// A dataset with snapshots, mounted for one peer.
pub struct Volume {
    kind: Kind,
    parent: String,
    name: DatasetName,
    pub(super) mountpoint: PathBuf,
    /// Opened when it is first needed: the file system may come later than we do.
    snapshots: OnceCell<Arc<dyn Snapshots>>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume({:?} {}/{})", self.kind, self.parent, self.name)
    }
}

impl Volume {
    /// A dataset of a ZFS pool, such as `tank/manatee/peer-a`, to be mounted there.
    ///
    /// # Errors
    /// When it is no name of a dataset below another one.
    pub fn zfs(name: &str, mountpoint: impl Into<PathBuf>) -> Result<Volume, StorageCause> {
        let (parent, name) = split(name)?;
        for component in parent.split('/') {
            DatasetName::new(component)?;
        }
        Ok(Volume::new(Kind::Zfs, parent, name, mountpoint.into()))
    }

    /// A dataset in a directory of a btrfs, such as `/pool/manatee/peer-a`, to be mounted there.
    ///
    /// # Errors
    /// When it is no absolute path, or its last part no name of a dataset.
    pub fn btrfs(name: &str, mountpoint: impl Into<PathBuf>) -> Result<Volume, StorageCause> {
        let (parent, name) = split(name)?;
        if !parent.starts_with('/') {
            return Err(StorageCause::NoPlace(format!("{parent}/{name} is no absolute path")));
        }
        Ok(Volume::new(Kind::Btrfs, parent, name, mountpoint.into()))
    }

    fn new(kind: Kind, parent: &str, name: DatasetName, mountpoint: PathBuf) -> Volume {
        let parent = parent.to_owned();
        Volume { kind, parent, name, mountpoint, snapshots: OnceCell::new() }
    }

    /// Its name below its parent.
    pub fn name(&self) -> &DatasetName {
        &self.name
    }

    /// What its file system can do with it and its neighbours.
    ///
    /// # Errors
    /// When the file system is not there.
    pub async fn snapshots(&self) -> Result<Arc<dyn Snapshots>, StorageError> {
        let opened = self.open().await.cloned();
        opened.map_err(self.error("use its file system"))
    }

    /// Frees the dataset's name for one that came in: it is set aside, and where to is returned; one in
    /// which nothing is, which only shows when it is mounted, is destroyed. Nothing is mounted then.
    ///
    /// # Errors
    /// When a server runs in it, it cannot be mounted where it belongs, or the file system refuses.
    pub async fn make_way(&self, reason: &str) -> Result<Option<PathBuf>, StorageError> {
        self.free_the_name(reason).await.map_err(self.error("make way for what came in"))
    }

    async fn free_the_name(&self, reason: &str) -> Result<Option<PathBuf>, StorageCause> {
        let snapshots = self.open().await?;
        let known = snapshots.datasets().await?;
        if !known.iter().any(|dataset| dataset.name == self.name) {
            return Ok(None);
        }
        self.make_ready().await?;
        if !self.is_empty()? || !snapshots.list(&self.name).await?.is_empty() {
            return self.take_the_name_away(reason).await.map(Some);
        }
        snapshots.unmount(&self.name).await?;
        snapshots.destroy(&self.name).await?;
        Ok(None)
    }

    pub(super) async fn open(&self) -> Result<&Arc<dyn Snapshots>, StorageCause> {
        let open = || async {
            Ok(match self.kind {
                Kind::Zfs => Arc::new(Zfs::open(&self.parent).await?) as Arc<dyn Snapshots>,
                Kind::Btrfs => Arc::new(Btrfs::open(Path::new(&self.parent))?),
            })
        };
        self.snapshots.get_or_try_init(open).await
    }

    pub(super) fn error(
        &self,
        operation: &'static str,
    ) -> impl FnOnce(StorageCause) -> StorageError {
        let dataset = PathBuf::from(format!("{}/{}", self.parent, self.name));
        move |cause| StorageError { dataset, operation, cause }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.mountpoint.join("data")
    }

    pub(super) async fn make_ready(&self) -> Result<(), StorageCause> {
        let snapshots = self.open().await?;
        let known = snapshots.datasets().await?;
        if !known.iter().any(|dataset| dataset.name == self.name) {
            snapshots.create(&self.name).await?;
        }
        snapshots.mount(&self.name, &self.mountpoint).await
    }

    async fn rename_aside(&self, reason: &str) -> Result<PathBuf, StorageCause> {
        aside::at_rest(&self.data())?;
        let aside = self.take_the_name_away(reason).await?;
        self.make_ready().await?;
        Ok(aside)
    }

    async fn take_the_name_away(&self, reason: &str) -> Result<PathBuf, StorageCause> {
        let suffix = aside::suffix(reason)?;
        if self.data().exists() {
            aside::at_rest(&self.data())?;
        }
        let snapshots = self.open().await?;
        let aside = DatasetName::new(&format!("{}.{suffix}", self.name))?;
        // As it was, whatever anybody does who looks into it.
        snapshots.snapshot(&self.name, &SnapshotName::now(reason)?).await?;
        snapshots.unmount(&self.name).await?;
        snapshots.rename(&self.name, &aside).await?;
        Ok(PathBuf::from(snapshots.full_name(&aside)))
    }

    async fn keep_snapshot(&self, reason: &str) -> Result<PathBuf, StorageCause> {
        aside::suffix(reason)?;
        aside::at_rest(&self.data())?;
        let snapshots = self.open().await?;
        let made = snapshots.snapshot(&self.name, &SnapshotName::now(reason)?).await?;
        Ok(PathBuf::from(format!("{}@{}", snapshots.full_name(&self.name), made.name)))
    }
}

/// The parent and the name.
fn split(name: &str) -> Result<(&str, DatasetName), StorageCause> {
    let Some((parent, last)) = name.rsplit_once('/').filter(|(parent, _)| !parent.is_empty())
    else {
        return Err(StorageCause::NoPlace(name.to_owned()));
    };
    let last = DatasetName::new(last)?;
    if last.as_str().len() > LONGEST_NAME {
        let problem = format!("{last} is longer than {LONGEST_NAME} characters");
        return Err(StorageCause::NoPlace(problem));
    }
    Ok((parent, last))
}

#[async_trait]
impl Storage for Volume {
    fn capabilities(&self) -> Capabilities {
        match (self.snapshots.get(), self.kind) {
            (Some(snapshots), _) => snapshots.capabilities(),
            (None, kind) => Capabilities {
                backend: if kind == Kind::Zfs { "zfs" } else { "btrfs" },
                snapshots: true,
                resume: false,
                bookmarks: false,
            },
        }
    }

    fn dataset(&self) -> &Path {
        &self.mountpoint
    }

    fn volume(&self) -> Option<&Volume> {
        Some(self)
    }

    async fn prepare(&self) -> Result<(), StorageError> {
        self.make_ready().await.map_err(self.error("mount it"))
    }

    async fn seed(
        &self,
        request: &SeedRequest,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<Seeded, StorageError> {
        self.prepare().await?;
        let fetched = basebackup::fetch(&self.mountpoint, request, progress).await;
        fetched.map_err(self.error("fetch a database into it"))
    }

    async fn set_aside(&self, reason: &str) -> Result<PathBuf, StorageError> {
        self.rename_aside(reason).await.map_err(self.error("set it aside"))
    }

    async fn keep(&self, reason: &str) -> Result<PathBuf, StorageError> {
        self.keep_snapshot(reason).await.map_err(self.error("keep its database in a snapshot"))
    }

    async fn prune_aside(&self, keep: usize) -> Result<Pruned, StorageError> {
        self.prune(keep).await.map_err(self.error("destroy what was set aside"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_runs() {
        Volume::zfs("tank/manatee/peer-a", "/x").expect("a name");
        Volume::zfs("tank/peer-a", "/x").expect("a name");
        Volume::btrfs("/pool/peer-a", "/x").expect("a name");
        for bad in ["tank", "/tank", "tank/", "", "/tank/a", "tank/a b", "ta nk/a"] {
            Volume::zfs(bad, "/x").expect_err(bad);
        }
        for bad in ["pool/peer-a", "peer-a", "/peer-a", "/pool/", "/pool/a b"] {
            Volume::btrfs(bad, "/x").expect_err(bad);
        }
        let long = format!("tank/{}", "x".repeat(31));
        Volume::zfs(&long, "/x").expect_err("too long");
    }
}
