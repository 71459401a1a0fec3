//! btrfs: subvolumes and read-only snapshots, sent and received by `btrfs send` and `receive`. Needs
//! root.
//!
//! What btrfs does not have and is kept beside (see [`layout`]): names of datasets, holds, what was
//! cloned from what (so that a snapshot is not destroyed under a clone, as in ZFS, though btrfs itself
//! would not mind). A dataset is mounted by binding its subvolume to the directory. Which snapshot is
//! which on all hosts is told by the UUID of the subvolume that was sent first. That a dataset is
//! unchanged since a snapshot, so that a difference continues it, is told by its generation.
//!
//! What there is none of: bookmarks, and a stream that broke off cannot go on. Nor is the size of a
//! snapshot known without looking at all of it.

mod adopted;
mod layout;
mod promotion;
mod streams;

use super::{
    Capabilities, Dataset, DatasetName, HoldTag, Mark, ReceiveStream, ResumeToken, SendFrom,
    SendStream, Size, Snapshot, SnapshotName, Snapshots, StorageCause, Unfinished,
    error::at,
    mounts::{mounted_on, resolved},
    snapshots::{expendable, mountpoint, newest},
};
use crate::exec::Exec;
pub use adopted::Adopted;
use async_trait::async_trait;
use layout::{HOLD, Place, Subvolume, btrfs, entries, make_directory, remove_wrapper, rename};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;

/// What `statfs` says of a btrfs.
const MAGIC: u64 = 0x9123_683E;

/// Datasets in one directory of a btrfs.
#[derive(Debug, Clone)]
pub struct Btrfs {
    parent: PathBuf,
    /// Held while names change.
    changing: Arc<Mutex<()>>,
}

impl Btrfs {
    /// The datasets in this directory, which must exist, on a btrfs.
    ///
    /// # Errors
    /// When it does not, or lies on something else, as when the file system is not mounted; when we are
    /// not root.
    pub fn open(parent: &Path) -> Result<Btrfs, StorageCause> {
        let unsupported = |what: String| Err(StorageCause::Unsupported { backend: "btrfs", what });
        if !rustix::process::geteuid().is_root() {
            return unsupported("be used without root: run the sitter as root".to_owned());
        }
        let found = rustix::fs::statfs(parent).map_err(|error| at(parent)(error.into()))?;
        if u64::try_from(found.f_type).is_ok_and(|kind| kind & 0xFFFF_FFFF == MAGIC) {
            return Ok(Btrfs { parent: parent.to_owned(), changing: Arc::default() });
        }
        let shown = parent.display();
        unsupported(format!("be used in {shown}: no btrfs is mounted there (or not yet)"))
    }

    fn place(&self, dataset: &DatasetName) -> Place {
        Place::of(&self.parent, dataset)
    }

    /// The place of a dataset that exists.
    fn existing(&self, dataset: &DatasetName) -> Result<Place, StorageCause> {
        let place = self.place(dataset);
        if place.current().is_dir() {
            return Ok(place);
        }
        Err(StorageCause::NoDataset(self.full_name(dataset)))
    }

    /// The place of a dataset that exists and is not mounted.
    fn unmounted(&self, dataset: &DatasetName) -> Result<Place, StorageCause> {
        let place = self.existing(dataset)?;
        match place.mounted()? {
            Some(at) => Err(StorageCause::Mounted { dataset: self.full_name(dataset), at }),
            None => Ok(place),
        }
    }

    fn refuse_existing(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        if self.place(dataset).0.exists() {
            return Err(StorageCause::Exists(self.full_name(dataset)));
        }
        Ok(())
    }

    fn of(&self, dataset: &DatasetName, snapshot: &SnapshotName) -> String {
        format!("{}@{snapshot}", self.full_name(dataset))
    }

    fn existing_snapshot(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
    ) -> Result<Place, StorageCause> {
        let place = self.existing(dataset)?;
        if place.snapshot(snapshot).is_dir() {
            return Ok(place);
        }
        Err(StorageCause::NoSnapshot(self.of(dataset, snapshot)))
    }

    /// Says that somebody holds a snapshot which exists.
    fn hold_file(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<PathBuf, StorageCause> {
        let wrapper = self.existing_snapshot(dataset, snapshot)?.wrapper(snapshot);
        Ok(wrapper.join(format!("{HOLD}{tag}")))
    }

    fn find_datasets(&self) -> Result<Vec<(DatasetName, Place)>, StorageCause> {
        let named = |path: PathBuf| {
            let name = DatasetName::new(path.file_name()?.to_str()?).ok()?;
            let place = Place(path);
            place.current().is_dir().then_some((name, place))
        };
        Ok(entries(&self.parent)?.into_iter().filter_map(named).collect())
    }

    /// The snapshots of a dataset with what the file system says of each, oldest first.
    async fn known(&self, place: &Place) -> Result<Vec<(Snapshot, Subvolume)>, StorageCause> {
        let mut origins = Vec::new();
        for (name, place) in self.find_datasets()? {
            origins.extend(place.cloned_from()?.map(|(uuid, _)| (uuid, name)));
        }
        let mut found = Vec::new();
        for wrapper in entries(&place.snapshots())? {
            let name = wrapper.file_name().and_then(|name| name.to_str());
            let Some(name) = name.and_then(|name| SnapshotName::new(name).ok()) else {
                continue;
            };
            let subvolume = Subvolume::at(&place.snapshot(&name)).await?;
            let clones = origins.iter().filter(|(uuid, _)| *uuid == subvolume.uuid);
            let snapshot = Snapshot {
                name,
                guid: subvolume.guid(),
                created: subvolume.created,
                size: None,
                holds: tags(&wrapper)?.len() as u64,
                clones: clones.map(|(_, name)| name.clone()).collect(),
            };
            found.push((snapshot, subvolume));
        }
        found.sort_by(|(a, one), (b, other)| (one.made_at, &a.name).cmp(&(other.made_at, &b.name)));
        Ok(found)
    }

    /// Makes a dataset out of sight, and shows it when it is complete.
    async fn make(
        &self,
        dataset: &DatasetName,
        of: Option<&Path>,
        origin: Option<(&str, &str)>,
    ) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        self.refuse_existing(dataset)?;
        let new = Place::new(&self.parent, dataset);
        new.remove().await?;
        make_directory(&new.snapshots())?;
        match of {
            Some(snapshot) => btrfs(["subvolume", "snapshot"], &[snapshot, &new.current()]).await?,
            None => btrfs(["subvolume", "create"], &[&new.current()]).await?,
        };
        new.set_origin(origin)?;
        rename(&new.0, &self.place(dataset).0)
    }
}

/// Who holds the snapshot in this directory.
fn tags(wrapper: &Path) -> Result<Vec<HoldTag>, StorageCause> {
    let tag = |path: PathBuf| HoldTag::new(path.file_name()?.to_str()?.strip_prefix(HOLD)?).ok();
    Ok(entries(wrapper)?.into_iter().filter_map(tag).collect())
}

#[async_trait]
impl Snapshots for Btrfs {
    fn capabilities(&self) -> Capabilities {
        Capabilities { backend: "btrfs", snapshots: true, resume: false, bookmarks: false }
    }

    fn features(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn full_name(&self, dataset: &DatasetName) -> String {
        self.place(dataset).0.display().to_string()
    }

    async fn datasets(&self) -> Result<Vec<Dataset>, StorageCause> {
        let known = self.find_datasets()?.into_iter();
        let described = known.map(|(name, place)| {
            let origin = place.cloned_from()?.map(|(_, origin)| origin);
            Ok(Dataset { name, mounted: place.mounted()?, origin })
        });
        described.collect()
    }

    async fn create(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        self.make(dataset, None, None).await
    }

    async fn mount(&self, dataset: &DatasetName, on: &Path) -> Result<(), StorageCause> {
        let place = self.existing(dataset)?;
        match place.mounted()? {
            Some(mounted) if mounted == resolved(on) => return Ok(()),
            Some(at) => {
                return Err(StorageCause::Mounted { dataset: self.full_name(dataset), at });
            }
            None => {}
        }
        if let Some(other) = mounted_on(on)? {
            return Err(StorageCause::MountpointTaken { path: on.to_owned(), other });
        }
        mountpoint(on)?;
        // Times of access would be written with every read, and a difference would carry them.
        Exec::new("mount").args(["-o", "bind,noatime"]).arg(place.current()).arg(on).run().await?;
        Ok(())
    }

    async fn unmount(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        let place = self.existing(dataset)?;
        if let Some(on) = place.mounted()? {
            Exec::new("umount").arg(on).run().await?;
        }
        Ok(())
    }

    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let place = self.unmounted(dataset)?;
        self.refuse_existing(to)?;
        rename(&place.0, &self.place(to).0)
    }

    async fn destroy(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let place = self.unmounted(dataset)?;
        for (snapshot, _) in self.known(&place).await? {
            let tags = tags(&place.wrapper(&snapshot.name))?;
            expendable(&snapshot, self.of(dataset, &snapshot.name), &tags)?;
        }
        let old = Place::old(&self.parent, dataset);
        old.remove().await?;
        rename(&place.0, &old.0)?;
        old.remove().await
    }

    async fn snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Snapshot, StorageCause> {
        let _changing = self.changing.lock().await;
        let place = self.existing(dataset)?;
        if let Err(error) = place.sweep().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(%dataset, error, "what an operation left that was cut off stays there");
        }
        let wrapper = place.wrapper(name);
        if wrapper.exists() {
            return Err(StorageCause::Exists(self.of(dataset, name)));
        }
        let taking = place.snapshots().join(format!(".taking-{name}"));
        make_directory(&taking)?;
        let inside = taking.join(name.as_str());
        btrfs(["subvolume", "snapshot", "-r"], &[&place.current(), &inside]).await?;
        rename(&taking, &wrapper)?;
        let known = self.known(&place).await?.into_iter();
        let mut found = known.map(|(snapshot, _)| snapshot);
        let found = found.find(|snapshot| snapshot.name == *name);
        found.ok_or_else(|| StorageCause::NoSnapshot(self.of(dataset, name)))
    }

    async fn list(&self, dataset: &DatasetName) -> Result<Vec<Snapshot>, StorageCause> {
        let known = self.known(&self.existing(dataset)?).await?;
        Ok(known.into_iter().map(|(snapshot, _)| snapshot).collect())
    }

    async fn measure(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Size, StorageCause> {
        let place = self.existing_snapshot(dataset, name)?;
        let text = btrfs(["filesystem", "du", "-s", "--raw"], &[&place.snapshot(name)]).await?;
        let mut numbers = text.lines().last().unwrap_or_default().split_whitespace();
        let mut number = || numbers.next().and_then(|number| number.parse().ok());
        match (number(), number()) {
            (Some(referenced), Some(unique)) => Ok(Size { referenced, unique }),
            _ => Err(StorageCause::Answer {
                command: "btrfs filesystem du -s --raw".to_owned(),
                answer: text,
            }),
        }
    }

    async fn destroy_snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let place = self.existing_snapshot(dataset, name)?;
        let known = self.known(&place).await?;
        let wrapper = place.wrapper(name);
        for (snapshot, _) in known.iter().filter(|(snapshot, _)| snapshot.name == *name) {
            expendable(snapshot, self.of(dataset, name), &tags(&wrapper)?)?;
        }
        let going = place.snapshots().join(format!(".going-{name}"));
        remove_wrapper(&going).await?;
        rename(&wrapper, &going)?;
        remove_wrapper(&going).await
    }

    async fn hold(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let path = self.hold_file(dataset, name, tag)?;
        let made = File::create(&path).and_then(|file| file.sync_all());
        made.and_then(|()| crate::postgres::files::sync_parent(&path)).map_err(at(&path))
    }

    async fn release(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let path = self.hold_file(dataset, name, tag)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    async fn holds(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Vec<HoldTag>, StorageCause> {
        tags(&self.existing_snapshot(dataset, name)?.wrapper(name))
    }

    async fn bookmark(&self, _: &DatasetName, _: &SnapshotName) -> Result<(), StorageCause> {
        let what = "make bookmarks: btrfs has none".to_owned();
        Err(StorageCause::Unsupported { backend: "btrfs", what })
    }

    async fn bookmarks(&self, dataset: &DatasetName) -> Result<Vec<Mark>, StorageCause> {
        self.existing(dataset).map(|_| Vec::new())
    }

    async fn rollback(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let place = self.unmounted(dataset)?;
        newest(&self.list(dataset).await?, name, self.of(dataset, name))?;
        place.replace_current(&place.snapshot(name)).await
    }

    async fn clone_snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        new: &DatasetName,
    ) -> Result<(), StorageCause> {
        let snapshot = self.existing_snapshot(dataset, name)?.snapshot(name);
        let uuid = Subvolume::at(&snapshot).await?.uuid;
        self.make(new, Some(&snapshot), Some((&uuid, &self.of(dataset, name)))).await
    }

    async fn promote(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        self.hand_over_to(dataset).await
    }

    async fn send(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        from: &SendFrom,
        _accepted: &BTreeSet<String>,
    ) -> Result<SendStream, StorageCause> {
        self.start_sending(dataset, name, from)
    }

    async fn send_rest(&self, _: &ResumeToken) -> Result<SendStream, StorageCause> {
        let what = "resume a stream: it starts over".to_owned();
        Err(StorageCause::Unsupported { backend: "btrfs", what })
    }

    async fn receive(&self, into: &DatasetName) -> Result<ReceiveStream, StorageCause> {
        self.start_receiving(into).await
    }

    async fn finish(&self, stream: ReceiveStream) -> Result<Snapshot, StorageCause> {
        self.finish_receiving(stream).await
    }

    async fn unfinished(&self, _: &DatasetName) -> Result<Option<Unfinished>, StorageCause> {
        Ok(None)
    }

    async fn abandon(&self, into: &DatasetName) -> Result<(), StorageCause> {
        self.abandon_receiving(into).await
    }
}
