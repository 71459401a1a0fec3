//! A dataset with snapshots as storage of one peer: what makes way, and what of it stays.

use super::{Told, at, name, names, tag};
use adapters::storage::{
    DatasetName, Guid, KEPT, Pruned, SnapshotName, Snapshots, Storage, StorageCause, Volume,
};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

type Open<'a> = &'a dyn Fn(&Path) -> Volume;

pub async fn check_all(place: &Path, open: Open<'_>) {
    where_it_is_mounted_may_lie_behind_a_link(place, open).await;
    only_what_is_seen_to_be_empty_is_destroyed(place, open).await;
    what_stays_keeps_nothing_else_from_going(place, open).await;
    what_came_in_goes_back_to_what_is_kept_longest(place, open).await;
}

async fn opened(volume: &Volume) -> Arc<dyn Snapshots> {
    volume.snapshots().await.expect("its file system")
}

async fn prepared(volume: &Volume) {
    volume.prepare().await.unwrap_or_else(|error| panic!("{error}: {:?}", error.cause));
}

/// As a database, for all that storage knows of one.
fn put_database(volume: &Volume, text: &str) {
    let data = volume.dataset().join("data");
    fs::create_dir_all(&data).expect("a directory");
    fs::write(data.join("PG_VERSION"), text).expect("a file");
}

/// It may be prepared any number of times.
async fn where_it_is_mounted_may_lie_behind_a_link(place: &Path, open: Open<'_>) {
    fs::create_dir(place.join("real")).expect("a directory");
    symlink(place.join("real"), place.join("link")).expect("a link");
    let volume = open(&place.join("link/a"));
    for _ in 0..2 {
        prepared(&volume).await;
    }
    put_database(&volume, "here");
    assert!(place.join("real/a/data/PG_VERSION").exists());
    // Another one sees that it is taken.
    let fs = opened(&volume).await;
    fs.create(&name("b")).await.good("create");
    let error = fs.mount(&name("b"), volume.dataset()).await.expect_err("another is there");
    assert!(matches!(error, StorageCause::MountpointTaken { .. }), "{error:?}");
    fs.unmount(volume.name()).await.good("unmount");
    for dataset in [volume.name(), &name("b")] {
        fs.destroy(dataset).await.good("destroy");
    }
}

/// One that is not mounted is not taken for empty, and what nobody knows is not destroyed.
async fn only_what_is_seen_to_be_empty_is_destroyed(place: &Path, open: Open<'_>) {
    let volume = open(&place.join("way"));
    let fs = opened(&volume).await;
    prepared(&volume).await;
    volume.expect(&Guid::new("7")).await.expect("noted");
    fs::create_dir(volume.dataset().join("data.incoming-x")).expect("half a base backup");
    assert_eq!(volume.make_way(KEPT).await.expect("nothing is in it"), None);
    assert!(fs.datasets().await.good("datasets").is_empty(), "it is gone");

    volume.expect(&Guid::new("7")).await.expect("noted, in a new one");
    let noted = || fs::read_dir(volume.dataset()).expect("the directory").count();
    assert_eq!(noted(), 1);
    volume.expect_nothing().expect("taken back");
    assert_eq!(noted(), 0);
    volume.refuse_shortage(1).expect("there is room");
    let error = volume.refuse_shortage(u64::MAX).expect_err("there is none");
    assert!(matches!(error.cause, StorageCause::NoSpace { .. }), "{error:?}");

    put_database(&volume, "mine");
    fs.unmount(volume.name()).await.good("unmount");
    let aside = volume.make_way(KEPT).await.expect("set aside").expect("it is kept");
    let aside = name(aside.file_name().expect("a name").to_str().expect("a name"));
    let look = place.join("look");
    fs.mount(&aside, &look).await.good("mount");
    assert_eq!(fs::read_to_string(look.join("data/PG_VERSION")).expect("the file"), "mine");
    fs.unmount(&aside).await.good("unmount");

    prepared(&volume).await;
    fs::write(volume.dataset().join("notes"), "an operator's").expect("a file");
    volume.make_way(KEPT).await.expect("set aside").expect("it is kept");
    prepared(&volume).await;
    assert_eq!(pruned(&volume, 0).await.gone.len(), 2);
    fs.unmount(volume.name()).await.good("unmount");
    fs.destroy(volume.name()).await.good("destroy");
}

async fn pruned(volume: &Volume, keep: usize) -> Pruned {
    volume.prune_aside(keep).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.cause))
}

/// A new database is set aside; what it is called then.
async fn kept(volume: &Volume, text: &str) -> DatasetName {
    prepared(volume).await;
    put_database(volume, text);
    let aside = volume.set_aside(KEPT).await.unwrap_or_else(|e| panic!("{e}: {:?}", e.cause));
    name(aside.file_name().expect("a name").to_str().expect("a name"))
}

/// What is held, or what somebody cloned, stays; all that is older or newer goes.
async fn what_stays_keeps_nothing_else_from_going(place: &Path, open: Open<'_>) {
    let volume = open(&place.join("prune"));
    let fs = opened(&volume).await;
    let (one, two, three) =
        (kept(&volume, "1").await, kept(&volume, "2").await, kept(&volume, "3").await);
    put_database(&volume, "4");
    for time in 1..=3 {
        let name = SnapshotName::for_purpose(time, KEPT).expect("a name");
        fs.snapshot(volume.name(), &name).await.good("snapshot");
    }
    let snapshot = |list: Vec<adapters::storage::Snapshot>| list[0].name.clone();
    let first = snapshot(fs.list(&one).await.good("list"));
    fs.hold(&one, &first, &tag("stream-x")).await.good("hold");
    let second = snapshot(fs.list(&two).await.good("list"));
    fs.clone_snapshot(&two, &second, &name("mine")).await.good("clone");
    let found = pruned(&volume, 0).await;
    let full = |name: &DatasetName| PathBuf::from(fs.full_name(name));
    let left: Vec<_> = found.left.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(left, [full(&one), full(&two)]);
    assert!(matches!(found.left[0].1, StorageCause::Held { .. }), "{found:?}");
    assert!(matches!(found.left[1].1, StorageCause::ClonedFrom { .. }), "{found:?}");
    assert_eq!(found.gone.len(), 4, "{found:?}");
    assert_eq!(found.gone[0], full(&three));
    assert_eq!(names(&*fs, volume.name()).await, Vec::<String>::new());

    fs.release(&one, &first, &tag("stream-x")).await.good("release");
    fs.destroy(&name("mine")).await.good("destroy");
    let found = pruned(&volume, 0).await;
    assert!(found.gone == [full(&one), full(&two)] && found.left.is_empty(), "{found:?}");
    fs.unmount(volume.name()).await.good("unmount");
    fs.destroy(volume.name()).await.good("destroy");
}

/// Three times a database was replaced by one that took the difference to a snapshot that it had; the last
/// one was never put in place. It goes, and its snapshots are with what is kept longest, so that the others
/// can go. Nor does it matter when they are not.
async fn what_came_in_goes_back_to_what_is_kept_longest(place: &Path, open: Open<'_>) {
    let volume = open(&place.join("heirs"));
    let (fs, incoming) = (opened(&volume).await, volume.incoming().expect("a name"));
    prepared(&volume).await;
    put_database(&volume, "0");
    let mut kept = Vec::new();
    for time in 1..=3 {
        fs.snapshot(volume.name(), &at(time)).await.good("snapshot");
        fs.branch(volume.name(), &at(time), &incoming).await.good("branch");
        let aside = volume.make_way(KEPT).await.expect("set aside").expect("it is kept");
        kept.push(name(aside.file_name().expect("a name").to_str().expect("a name")));
        if time < 3 {
            fs.rename(&incoming, volume.name()).await.good("rename");
            prepared(&volume).await;
        }
    }
    volume.discard_incoming().await.expect("removed");
    let known = fs.datasets().await.good("datasets");
    assert!(known.iter().all(|dataset| kept.contains(&dataset.name)), "{known:?}");
    let newest = names(&*fs, &kept[2]).await;
    assert_eq!(newest[..3], [at(1), at(2), at(3)].map(|name| name.to_string()));

    // The other way round: the newest depends on the oldest.
    fs.promote(&kept[0]).await.good("promote");
    assert_eq!(names(&*fs, &kept[0]).await[0], at(1).as_str());
    prepared(&volume).await;
    let found = pruned(&volume, 1).await;
    let full = |name: &DatasetName| PathBuf::from(fs.full_name(name));
    assert!(found.left.is_empty(), "{found:?}");
    assert_eq!(found.gone, [full(&kept[0]), full(&kept[1])]);
    assert_eq!(names(&*fs, &kept[2]).await, newest, "it has all that it is made of");
    assert_eq!(pruned(&volume, 0).await.gone, [full(&kept[2])]);
    fs.unmount(volume.name()).await.good("unmount");
    fs.destroy(volume.name()).await.good("destroy");
}
