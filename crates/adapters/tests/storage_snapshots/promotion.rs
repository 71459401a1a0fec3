//! What btrfs does in several steps, cut off between any two of them.

use super::{Told, at, filesystems::BtrfsFile, name, names, tag};
use adapters::storage::{Btrfs, Snapshots, Storage, StorageCause, Volume};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A directory in the way of a snapshot that is to be moved stops the moving there.
fn obstacle(parent: &Path, dataset: &str, time: u64) -> PathBuf {
    let path = parent.join(dataset).join("snapshots").join(at(time).as_str());
    fs::create_dir(&path).expect("a directory");
    path
}

/// A dataset is split, to take a difference, and that is undone. Wherever the one or the other is cut off,
/// the dataset gets all its snapshots back, with their holds.
pub async fn a_split_that_was_cut_off_loses_nothing(file: &BtrfsFile, place: &Path) {
    let parent = file.parent("split");
    let volume = Volume::btrfs(&format!("{}/a", parent.display()), place.join("split-a"));
    let (volume, btrfs) = (volume.expect("a name"), Btrfs::open(&parent).good("a btrfs"));
    let (a, incoming) = (name("a"), name("a.incoming"));
    volume.prepare().await.expect("prepared");
    for time in 1..=4 {
        fs::write(volume.dataset().join("file"), time.to_string()).expect("a file");
        btrfs.snapshot(&a, &at(time)).await.good("snapshot");
    }
    btrfs.hold(&a, &at(1), &tag("mine")).await.good("hold");
    let before = btrfs.list(&a).await.good("list");
    let whole = async |when: &str| {
        volume.discard_incoming().await.unwrap_or_else(|error| panic!("{when}: {error:?}"));
        assert_eq!(btrfs.list(&a).await.good("list"), before, "{when}");
        let known = btrfs.datasets().await.good("datasets");
        assert!(known.len() == 1 && known[0].origin.is_none(), "{when}: {known:?}");
    };
    whole("nothing was split").await;
    btrfs.clone_snapshot(&a, &at(3), &incoming).await.good("clone");
    whole("only cloned").await;
    for stopped_at in 1..=3 {
        btrfs.clone_snapshot(&a, &at(3), &incoming).await.good("clone");
        let obstacle = obstacle(&parent, "a.incoming", stopped_at);
        let error = btrfs.promote(&incoming).await.expect_err("something is in the way");
        assert!(matches!(error, StorageCause::Exists(_)), "{error:?}");
        fs::remove_dir(obstacle).expect("removed");
        whole(&format!("cut off before snapshot {stopped_at}")).await;
    }

    btrfs.clone_snapshot(&a, &at(3), &incoming).await.good("clone");
    let origin = parent.join("a.incoming/origin");
    let noted = fs::read(&origin).expect("its origin");
    btrfs.promote(&incoming).await.good("promote");
    assert_eq!(names(&btrfs, &incoming).await.len(), 3);
    fs::write(&origin, noted).expect("as before the last step");
    fs::write(parent.join("a.incoming/origin.next"), "").expect("as before the last step");
    whole("cut off before its end").await;

    for stopped_at in 1..=3 {
        btrfs.branch(&a, &at(3), &incoming).await.good("branch");
        let obstacle = obstacle(&parent, "a", stopped_at);
        volume.discard_incoming().await.expect_err("something is in the way");
        fs::remove_dir(obstacle).expect("removed");
        whole(&format!("cut off on the way back before snapshot {stopped_at}")).await;
    }
    let file = fs::read_to_string(volume.dataset().join("file")).expect("the file");
    assert_eq!(file, "4", "what was mounted all the time is what it was");
}

/// What an operation left that was cut off, and cannot be removed, is in the way of no other one.
pub async fn what_cannot_be_swept_is_in_nobodys_way(file: &BtrfsFile) {
    let parent = file.parent("swept");
    let (btrfs, a) = (Btrfs::open(&parent).good("a btrfs"), name("a"));
    btrfs.create(&a).await.good("create");
    // No subvolume, so that none can be deleted.
    let left = parent.join("a/snapshots/.going-x/x");
    fs::create_dir_all(&left).expect("a directory");
    btrfs.snapshot(&a, &at(1)).await.good("snapshot");
    assert_eq!(names(&btrfs, &a).await, [at(1).as_str()]);
    fs::remove_dir(&left).expect("removed");
    btrfs.snapshot(&a, &at(2)).await.good("snapshot");
    assert!(!parent.join("a/snapshots/.going-x").exists(), "it is swept when it can be");
}
