//! ZFS, by its command line: the dialect that `zfs-fuse` and the current OpenZFS share, and more where
//! this version has more.
//!
//! What the old one lacks: `receive -s`, bookmarks, the listing of holds. Who holds a snapshot stands
//! there in a user property of it (`manatee:hold:TAG`), beside the real hold. `-F` is never used, nor
//! `-r` or `-R` of anything that destroys.

mod dialect;
mod holds;
mod parse;
mod streams;

use super::{
    Capabilities, Dataset, DatasetName, HoldTag, Mark, ReceiveStream, ResumeToken, SendFrom,
    SendStream, Size, Snapshot, SnapshotName, Snapshots, StorageCause, Unfinished,
    mounts::mounted_on,
    snapshots::{expendable, mountpoint, newest},
};
use crate::{clock, exec::Exec};
use async_trait::async_trait;
use cluster::Millis;
use dialect::{Dialect, LIMIT};
use std::{collections::BTreeSet, path::Path, time::Duration};

/// What a dataset of ours has, whatever its parent or its sender has. Records of two PostgreSQL pages:
/// at one they compress badly and need twice the metadata, at ZFS's own 128 KiB each page that is
/// written costs the whole record. It is mounted by us alone, and nobody's programs run from it.
const PROPERTIES: [&str; 6] = [
    "canmount=noauto",
    "atime=off",
    "recordsize=16K",
    "compression=on",
    "setuid=off",
    "devices=off",
];

/// How long a dataset may be busy after it was unmounted.
const BUSY_LIMIT: Millis = Millis(5_000);
/// How often something is looked at that ZFS does not tell of.
const POLL: Duration = Duration::from_millis(50);
/// Datasets below one parent of a ZFS pool.
#[derive(Debug, Clone)]
pub struct Zfs {
    parent: String,
    dialect: Dialect,
}

impl Zfs {
    /// The datasets below this one, such as `tank/manatee`, which must exist. Asks what this version
    /// of ZFS can do.
    ///
    /// # Errors
    /// When there are no ZFS commands, or no such parent.
    pub async fn open(parent: &str) -> Result<Zfs, StorageCause> {
        for component in parent.split('/') {
            DatasetName::new(component)?;
        }
        let found = Zfs { parent: parent.to_owned(), dialect: Dialect::probe(&zfs()).await? };
        found.get(parent, "type", &[]).await?;
        Ok(found)
    }

    fn full(&self, dataset: &DatasetName) -> String {
        format!("{}/{dataset}", self.parent)
    }

    fn of(&self, dataset: &DatasetName, snapshot: &SnapshotName) -> String {
        format!("{}/{dataset}@{snapshot}", self.parent)
    }

    /// Properties of something, as lines of `name`, `property`, `value`.
    async fn get(
        &self,
        name: &str,
        properties: &str,
        flags: &[&str],
    ) -> Result<Vec<[String; 3]>, StorageCause> {
        let command = zfs().args(["get", "-Hp", "-o", "name,property,value"]).args(flags);
        let output = run(command.arg(properties).arg(name)).await.map_err(missing(name))?;
        Ok(parse::triples(&output))
    }

    /// The value of one property.
    async fn value(&self, name: &str, property: &str) -> Result<String, StorageCause> {
        let found = self.get(name, property, &[]).await?;
        Ok(found.into_iter().next().map(|[_, _, value]| value).unwrap_or_default())
    }

    async fn find(&self, dataset: &DatasetName) -> Result<Dataset, StorageCause> {
        let mut found = self.datasets().await?.into_iter();
        let found = found.find(|one| one.name == *dataset);
        found.ok_or_else(|| StorageCause::NoDataset(self.full(dataset)))
    }

    async fn refuse_existing(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        match self.find(dataset).await {
            Err(StorageCause::NoDataset(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(StorageCause::Exists(self.full(dataset))),
        }
    }

    async fn refuse_mounted(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        match self.find(dataset).await?.mounted {
            Some(at) => Err(StorageCause::Mounted { dataset: self.full(dataset), at }),
            None => Ok(()),
        }
    }

    async fn one(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Snapshot, StorageCause> {
        let mut all = self.list(dataset).await?.into_iter();
        let found = all.find(|snapshot| snapshot.name == *name);
        found.ok_or_else(|| StorageCause::NoSnapshot(self.of(dataset, name)))
    }

    async fn expendable(
        &self,
        dataset: &DatasetName,
        snapshot: &Snapshot,
    ) -> Result<(), StorageCause> {
        let tags = match snapshot.holds {
            0 => Vec::new(),
            _ => self.holds(dataset, &snapshot.name).await?,
        };
        expendable(snapshot, self.of(dataset, &snapshot.name), &tags)
    }
}

#[async_trait]
impl Snapshots for Zfs {
    fn capabilities(&self) -> Capabilities {
        let Dialect { resume, bookmarks, .. } = self.dialect;
        Capabilities { backend: "zfs", snapshots: true, resume, bookmarks }
    }

    fn features(&self) -> BTreeSet<String> {
        self.dialect.features.clone()
    }

    fn full_name(&self, dataset: &DatasetName) -> String {
        self.full(dataset)
    }

    async fn datasets(&self) -> Result<Vec<Dataset>, StorageCause> {
        let properties = "type,mounted,mountpoint,origin";
        let lines = self.get(&self.parent, properties, &["-d", "1"]).await?;
        Ok(parse::datasets(&self.parent, &lines))
    }

    async fn create(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        self.refuse_existing(dataset).await?;
        let mut command = zfs().arg("create").args(["-o", "mountpoint=none"]);
        for property in PROPERTIES {
            command = command.args(["-o", property]);
        }
        run(command.arg(self.full(dataset))).await.map(drop)
    }

    async fn mount(&self, dataset: &DatasetName, at: &Path) -> Result<(), StorageCause> {
        let full = self.full(dataset);
        match self.find(dataset).await?.mounted {
            Some(mounted) if mounted == at => return Ok(()),
            Some(at) => return Err(StorageCause::Mounted { dataset: full, at }),
            None => {}
        }
        if let Some(other) = mounted_on(at)? {
            return Err(StorageCause::MountpointTaken { path: at.to_owned(), other });
        }
        mountpoint(at)?;
        run(zfs().args(["set", "canmount=noauto"]).arg(&full)).await?;
        run(zfs().arg("set").arg(format!("mountpoint={}", at.display())).arg(&full)).await?;
        run(mount_one_by_one(&full)).await.map(drop)
    }

    async fn unmount(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        if self.find(dataset).await?.mounted.is_none() {
            return Ok(());
        }
        let full = self.full(dataset);
        run(zfs().arg("unmount").arg(&full)).await?;
        // So that no `zfs mount` of an operator puts it where another is by then.
        run(zfs().args(["set", "mountpoint=none"]).arg(&full)).await.map(drop)
    }

    async fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<(), StorageCause> {
        self.refuse_mounted(from).await?;
        self.refuse_existing(to).await?;
        run_at_rest(zfs().arg("rename").arg(self.full(from)).arg(self.full(to))).await.map(drop)
    }

    async fn destroy(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        self.refuse_mounted(dataset).await?;
        let snapshots = self.list(dataset).await?;
        for snapshot in &snapshots {
            self.expendable(dataset, snapshot).await?;
        }
        for snapshot in &snapshots {
            run(zfs().arg("destroy").arg(self.of(dataset, &snapshot.name))).await?;
        }
        for mark in self.bookmarks(dataset).await? {
            let bookmark = format!("{}#{}", self.full(dataset), mark.name);
            run(zfs().arg("destroy").arg(bookmark)).await?;
        }
        // Without -r: whatever else lies below it is not ours to destroy.
        run_at_rest(zfs().arg("destroy").arg(self.full(dataset))).await.map(drop)
    }

    async fn list(&self, dataset: &DatasetName) -> Result<Vec<Snapshot>, StorageCause> {
        let full = self.full(dataset);
        let properties = "guid,creation,createtxg,used,referenced,userrefs";
        let lines = self.get(&full, properties, &["-d", "1"]).await?;
        let datasets = self.datasets().await?;
        parse::snapshots(&full, &lines, &datasets).ok_or_else(|| StorageCause::Answer {
            command: format!("zfs get -Hp -d 1 {properties} {full}"),
            answer: format!("{:?}", lines.last()),
        })
    }

    async fn destroy_snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<(), StorageCause> {
        let snapshot = self.one(dataset, name).await?;
        self.expendable(dataset, &snapshot).await?;
        run(zfs().arg("destroy").arg(self.of(dataset, name))).await.map(drop)
    }

    async fn hold(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause> {
        self.hold_by(dataset, name, tag).await
    }

    async fn release(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause> {
        self.release_by(dataset, name, tag).await
    }

    async fn holds(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Vec<HoldTag>, StorageCause> {
        self.holders(dataset, name).await
    }

    async fn bookmark(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<(), StorageCause> {
        if !self.dialect.bookmarks {
            let what = "make bookmarks: this version of ZFS has none".to_owned();
            return Err(StorageCause::Unsupported { backend: "zfs", what });
        }
        let of = self.of(dataset, name);
        let bookmark = format!("{}#{name}", self.full(dataset));
        run(zfs().arg("bookmark").arg(of).arg(bookmark)).await.map(drop)
    }

    async fn bookmarks(&self, dataset: &DatasetName) -> Result<Vec<Mark>, StorageCause> {
        if !self.dialect.bookmarks {
            return Ok(Vec::new());
        }
        let full = self.full(dataset);
        let flags = ["-d", "1", "-t", "bookmark"];
        Ok(parse::bookmarks(&full, &self.get(&full, "guid,createtxg", &flags).await?))
    }

    async fn rollback(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<(), StorageCause> {
        self.refuse_mounted(dataset).await?;
        newest(&self.list(dataset).await?, name, self.of(dataset, name))?;
        run_at_rest(zfs().arg("rollback").arg(self.of(dataset, name))).await.map(drop)
    }

    async fn clone_snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        new: &DatasetName,
    ) -> Result<(), StorageCause> {
        self.one(dataset, name).await?;
        self.refuse_existing(new).await?;
        let mut command = zfs().arg("clone").args(["-o", "mountpoint=none"]);
        for property in PROPERTIES {
            command = command.args(["-o", property]);
        }
        run(command.arg(self.of(dataset, name)).arg(self.full(new))).await.map(drop)
    }

    async fn promote(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        if self.find(dataset).await?.origin.is_none() {
            return Ok(());
        }
        run_at_rest(zfs().arg("promote").arg(self.full(dataset))).await.map(drop)
    }

    async fn snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Snapshot, StorageCause> {
        run(zfs().arg("snapshot").arg(self.of(dataset, name)))
            .await
            .map_err(missing(&self.full(dataset)))?;
        self.one(dataset, name).await
    }

    async fn measure(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Size, StorageCause> {
        let snapshot = self.one(dataset, name).await?;
        snapshot.size.ok_or_else(|| StorageCause::NoSnapshot(self.of(dataset, name)))
    }

    async fn send(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        from: &SendFrom,
        accepted: &BTreeSet<String>,
    ) -> Result<SendStream, StorageCause> {
        self.start_sending(dataset, name, from, accepted).await
    }

    async fn send_rest(&self, token: &ResumeToken) -> Result<SendStream, StorageCause> {
        self.start_sending_rest(token).await
    }

    async fn receive(&self, into: &DatasetName) -> Result<ReceiveStream, StorageCause> {
        self.start_receiving(into).await
    }

    async fn finish(&self, stream: ReceiveStream) -> Result<Snapshot, StorageCause> {
        self.finish_receiving(stream).await
    }

    async fn unfinished(&self, into: &DatasetName) -> Result<Option<Unfinished>, StorageCause> {
        self.find_unfinished(into).await
    }

    async fn abandon(&self, into: &DatasetName) -> Result<(), StorageCause> {
        self.abandon_receiving(into).await
    }
}

fn zfs() -> Exec {
    Exec::new("zfs")
}

/// Where the daemon of `zfs-fuse` is reached.
const FUSE: &str = "/var/run/zfs/zfs_socket";

/// Mounts a dataset. The daemon of `zfs-fuse` tells its own threads of each mount in two pieces: two
/// mounts at the same time mix them, and it hangs for ever. So they queue there, whoever runs them.
fn mount_one_by_one(full: &str) -> Exec {
    let fuse = Path::new(FUSE);
    match fuse.parent() {
        Some(directory) if fuse.exists() => {
            Exec::new("flock").arg(directory).args(["zfs", "mount"]).arg(full)
        }
        _ => zfs().arg("mount").arg(full),
    }
}

/// Runs a command that sends no data.
async fn run(command: Exec) -> Result<String, StorageCause> {
    let output = command.limit(LIMIT).run().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command on a dataset that is not mounted. The daemon of `zfs-fuse` is busy with it for a
/// moment longer than its unmounting takes, which it calls an I/O error, too, when that comes between; a
/// real one is still there at the end.
async fn run_at_rest(command: Exec) -> Result<String, StorageCause> {
    let deadline = clock::now() + BUSY_LIMIT;
    loop {
        match run(command.clone()).await {
            Err(StorageCause::Command(error))
                if (error.says("dataset is busy") || error.says("I/O error"))
                    && clock::now() < deadline =>
            {
                tokio::time::sleep(POLL).await;
            }
            ended => return ended,
        }
    }
}

/// Knows a command that failed because what it was to look at is not there.
fn missing(name: &str) -> impl FnOnce(StorageCause) -> StorageCause {
    let name = name.to_owned();
    move |cause| match cause {
        StorageCause::Command(error) if error.says("dataset does not exist") => {
            StorageCause::NoDataset(name)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_parent_that_is_no_name_is_refused() {
        for parent in ["", "/tank", "tank/", "tank/-r", "tank@x", "tank/a b"] {
            let error = Zfs::open(parent).await.expect_err(parent);
            assert!(matches!(error, StorageCause::Name(_)), "{error:?}");
        }
    }
}
