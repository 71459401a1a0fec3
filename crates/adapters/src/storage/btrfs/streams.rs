//! `btrfs send` and `btrfs receive`.

use super::{Btrfs, Place, Subvolume, btrfs, entries, make_directory, remove_wrapper, rename};
use crate::{
    exec::Exec,
    storage::{
        DatasetName, ReceiveStream, SendFrom, SendStream, Snapshot, SnapshotName, Snapshots,
        StorageCause, error::at, snapshots::broken,
    },
};
use std::path::Path;
use tokio::io::AsyncWriteExt;

impl Btrfs {
    pub(super) fn start_sending(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        from: &SendFrom,
    ) -> Result<SendStream, StorageCause> {
        let place = self.existing_snapshot(dataset, name)?;
        let mut command = Exec::new("btrfs").args(["send", "--quiet"]);
        match from {
            SendFrom::Nothing => {}
            SendFrom::Snapshot(base) => {
                let base = self.existing_snapshot(dataset, base)?.snapshot(base);
                command = command.arg("-p").arg(base);
            }
            SendFrom::Bookmark(_) => {
                let what = "send from a bookmark: btrfs has none".to_owned();
                return Err(StorageCause::Unsupported { backend: "btrfs", what });
            }
        }
        let reader = command.arg(place.snapshot(name)).reader()?;
        Ok(SendStream { reader, estimate: None })
    }

    /// Lets a stream come in: into a new dataset out of sight, or beside the snapshots of one that is
    /// unchanged since the newest of them.
    pub(super) async fn start_receiving(
        &self,
        into: &DatasetName,
    ) -> Result<ReceiveStream, StorageCause> {
        self.abandon_receiving(into).await?;
        let place = if self.place(into).0.exists() {
            let place = self.unmounted(into)?;
            self.refuse_modified(into, &place).await?;
            place
        } else {
            Place::new(&self.parent, into)
        };
        let arriving = place.arriving();
        make_directory(&arriving)?;
        let writer = Exec::new("btrfs").args(["receive", "--quiet"]).arg(&arriving).writer()?;
        Ok(ReceiveStream { writer, into: into.clone(), arriving: Some(arriving) })
    }

    async fn refuse_modified(
        &self,
        dataset: &DatasetName,
        place: &Place,
    ) -> Result<(), StorageCause> {
        // What was written and is still in memory does not show in the generation.
        btrfs(["filesystem", "sync"], &[&place.0]).await?;
        let current = Subvolume::at(&place.current()).await?;
        let newest = self.known(place).await?.pop();
        let unchanged = newest.as_ref().is_some_and(|(_, newest)| {
            current.parent.as_ref() == Some(&newest.uuid) && current.generation == current.made_at
        });
        if unchanged {
            return Ok(());
        }
        let snapshot = newest.map_or("(none)".to_owned(), |(newest, _)| newest.name.to_string());
        Err(StorageCause::Modified { dataset: self.full_name(dataset), snapshot })
    }

    pub(super) async fn finish_receiving(
        &self,
        mut stream: ReceiveStream,
    ) -> Result<Snapshot, StorageCause> {
        stream.writer.shutdown().await.map_err(|error| match broken(error) {
            StorageCause::Command(error)
                if error.says("from stream") || error.says("in stream") =>
            {
                StorageCause::Truncated
            }
            other => other,
        })?;
        let _changing = self.changing.lock().await;
        let arriving = stream.arriving.take().expect("a stream of ours has a place");
        let (name, came) = arrived(&arriving).await?;
        let (new, place) = (Place::new(&self.parent, &stream.into), self.place(&stream.into));
        let whole = arriving == new.arriving();
        let target = if whole { &new } else { &place };
        if !whole {
            let newest = self.known(target).await?.pop().map(|(_, newest)| newest.uuid);
            if came.parent != newest {
                let dataset = self.full_name(&stream.into);
                return Err(StorageCause::WrongBase { dataset });
            }
        }
        if target.wrapper(&name).exists() {
            return Err(StorageCause::Exists(self.of(&stream.into, &name)));
        }
        // In this order: one that is interrupted is seen to be changed, and not taken for what came.
        target.replace_current(&arriving.join(name.as_str())).await?;
        rename(&arriving, &target.wrapper(&name))?;
        if whole {
            self.refuse_existing(&stream.into)?;
            rename(&new.0, &place.0)?;
        }
        let newest = self.list(&stream.into).await?.pop();
        newest.ok_or_else(|| StorageCause::NoSnapshot(self.of(&stream.into, &name)))
    }

    pub(super) async fn abandon_receiving(&self, into: &DatasetName) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        Place::new(&self.parent, into).remove().await?;
        remove_wrapper(&self.place(into).arriving()).await
    }
}

/// The one snapshot that came, whole.
async fn arrived(arriving: &Path) -> Result<(SnapshotName, Subvolume), StorageCause> {
    let [path] = &entries(arriving)?[..] else {
        return Err(StorageCause::Truncated);
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let came = Subvolume::at(path).await?;
    if !came.read_only || came.received.is_none() {
        return Err(StorageCause::Truncated);
    }
    let name = SnapshotName::new(&name)?;
    std::fs::File::open(arriving).and_then(|file| file.sync_all()).map_err(at(arriving))?;
    Ok((name, came))
}
