//! What a sitter sends of a real dataset, and what it holds for that.

#[path = "../../adapters/tests/filesystems/mod.rs"]
mod filesystems;

use adapters::{
    clock,
    storage::{DatasetName, HoldTag, KEPT, Snapshot, SnapshotName, Snapshots, Storage, Volume},
};
use anyhow::{Context, Result, ensure};
use cluster::Millis;
use filesystems::{BtrfsFile, ZfsFile, isolated};
use manatee::backup::{Outlet, Part, StorageOutlet, StreamRequest, release_leftovers};
use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

/// How long anything may take that happens by itself.
const LIMIT: Millis = Millis(30_000);

#[test]
fn a_stream_of_btrfs_holds_both_its_ends() {
    isolated("a_stream_of_btrfs_holds_both_its_ends", |place| {
        let file = BtrfsFile::new(place, 512);
        let name = format!("{}/a", file.parent("manatee").display());
        let volume = Volume::btrfs(&name, place.join("a")).expect("a name");
        check(volume, place).expect("held and let go of");
    });
}

#[test]
fn a_stream_of_zfs_holds_both_its_ends() {
    isolated("a_stream_of_zfs_holds_both_its_ends", |place| {
        let pool = ZfsFile::new(place, 512);
        let volume = Volume::zfs(&format!("{}/a", pool.parent("manatee")), place.join("a"));
        check(volume.expect("a name"), place).expect("held and let go of");
    });
}

#[tokio::main]
async fn check(volume: Volume, place: &Path) -> Result<()> {
    let volume = Arc::new(volume);
    volume.prepare().await?;
    fs::create_dir(place.join("a/data"))?;
    fs::write(place.join("a/data/PG_VERSION"), "15")?;
    let snapshots = volume.snapshots().await?;
    for time in 1..=2 {
        snapshots.snapshot(volume.name(), &SnapshotName::periodic(time)).await?;
    }
    let list = snapshots.list(volume.name()).await?;
    let [from, to] = [0, 1].map(|at: usize| list[at].guid.to_string());
    let outlet = StorageOutlet::new(volume.clone());
    let part = Part::Difference { from, to };
    let request = |part| StreamRequest {
        receiver: "the test".to_owned(),
        part,
        accepted: BTreeSet::new(),
        rate: None,
    };
    let outgoing = outlet.open(&request(part)).await.context("a difference")?;
    ensure!(holds(&*snapshots, volume.name()).await? == [1, 1], "both are held");

    // The dataset is replaced while it is sent: what was held is let go of where it is by then.
    let kept = volume.make_way(KEPT).await?.context("it is kept")?;
    let kept = kept.file_name().and_then(|name| name.to_str()).context("a name")?;
    let kept = DatasetName::new(kept)?;
    volume.prepare().await?;
    ensure!(holds(&*snapshots, &kept).await? == [1, 1, 0], "they are still held");
    drop(outgoing);
    let start = clock::now();
    while holds(&*snapshots, &kept).await? != [0, 0, 0] {
        ensure!(clock::now() - start < LIMIT, "they are held for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // And so is what a sitter that died has held, but nobody else's.
    let first = SnapshotName::periodic(1);
    for tag in ["stream-x", "mine"] {
        snapshots.hold(&kept, &first, &HoldTag::new(tag)?).await?;
    }
    release_leftovers(&volume).await?;
    ensure!(snapshots.holds(&kept, &first).await? == [HoldTag::new("mine")?], "one is left");
    Ok(())
}

async fn holds(snapshots: &dyn Snapshots, dataset: &DatasetName) -> Result<Vec<u64>> {
    let list: Vec<Snapshot> = snapshots.list(dataset).await?;
    Ok(list.iter().map(|one| one.holds).collect())
}
