//! Datasets and their snapshots on one host.

use super::{Bench, Told, at, name, names, noise, tag, told};
use adapters::storage::{DatasetName, Guid, Purpose, SnapshotName, StorageCause};
use std::{collections::BTreeSet, fs};

/// Datasets are made, mounted, renamed and destroyed, and never over anything.
pub async fn datasets_are_mounted_only_where_they_belong(bench: &Bench) {
    let fs = &bench.here;
    let (a, b) = (name("mounted"), name("other"));
    fs.create(&a).await.good("create");
    let error = fs.create(&a).await.expect_err("it exists");
    assert!(matches!(error, StorageCause::Exists(_)), "{}", told(&error));
    let listed = fs.datasets().await.good("datasets");
    let found = listed.iter().find(|dataset| dataset.name == a).expect("it is listed");
    assert_eq!((&found.mounted, &found.origin), (&None, &None));

    let full = bench.directory("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("file"), "mine").expect("a file");
    let error = fs.mount(&a, &full).await.expect_err("something is there");
    assert!(matches!(error, StorageCause::MountpointNotEmpty(_)), "{}", told(&error));
    assert_eq!(fs::read(full.join("file")).expect("the file"), b"mine");

    let on = bench.directory("on it");
    for _ in 0..2 {
        fs.mount(&a, &on).await.good("mount, and again");
    }
    fs::write(on.join("file"), "data").expect("a file");
    let listed = fs.datasets().await.good("datasets");
    let found = listed.iter().find(|dataset| dataset.name == a).expect("it is listed");
    assert_eq!(found.mounted.as_ref(), Some(&on));
    fs.create(&b).await.good("create");
    let error = fs.mount(&b, &on).await.expect_err("another is there");
    assert!(matches!(error, StorageCause::MountpointTaken { .. }), "{}", told(&error));
    let error = fs.mount(&a, &bench.directory("elsewhere")).await.expect_err("mounted");
    assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    for refused in [fs.rename(&a, &name("x")).await, fs.destroy(&a).await] {
        let error = refused.expect_err("mounted");
        assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    }

    // In use: refused, and nothing is forced.
    let held = fs::File::open(on.join("file")).expect("the file");
    let error = fs.unmount(&a).await.expect_err("in use");
    assert!(told(&error).contains("busy"), "{}", told(&error));
    drop(held);
    for _ in 0..2 {
        fs.unmount(&a).await.good("unmount, and again");
    }
    assert_eq!(fs::read_dir(&on).expect("the directory").count(), 0);

    let error = fs.rename(&a, &b).await.expect_err("it exists");
    assert!(matches!(error, StorageCause::Exists(_)), "{}", told(&error));
    let c = name("renamed");
    fs.rename(&a, &c).await.good("rename");
    fs.mount(&c, &on).await.good("mount");
    assert_eq!(fs::read(on.join("file")).expect("the file"), b"data");
    fs.unmount(&c).await.good("unmount");
    for dataset in [&b, &c] {
        fs.destroy(dataset).await.good("destroy");
    }
    for refused in [fs.mount(&c, &on).await, fs.destroy(&c).await, fs.unmount(&c).await] {
        let error = refused.expect_err("it is gone");
        assert!(matches!(error, StorageCause::NoDataset(_)), "{}", told(&error));
    }
    let left = fs.datasets().await.good("datasets");
    assert!(left.is_empty(), "{left:?}");
}

/// Snapshots are listed by age with what is known of each, and what is needed is not destroyed.
pub async fn snapshots_are_listed_held_and_destroyed(bench: &Bench) {
    let fs = &bench.here;
    let (a, on) = bench.dataset("kept").await;
    let before = jiff::Timestamp::now().as_second();
    fs::write(on.join("file"), noise(3 << 20)).expect("a file");
    let diverged = SnapshotName::for_purpose(3, "diverged").expect("a name");
    // Older names later: the order is that of their making.
    for snapshot in [&at(5), &at(4), &diverged] {
        fs.snapshot(&a, snapshot).await.good("snapshot");
        fs::write(on.join(snapshot.as_str()), noise(1 << 20)).expect("a file");
    }
    let list = fs.list(&a).await.good("list");
    assert_eq!(
        names(&**fs, &a).await,
        ["0000000000005", "0000000000004", "0000000000003-diverged"]
    );
    assert_eq!(list[2].name.purpose(), Purpose::For("diverged"));
    let guids: BTreeSet<&Guid> = list.iter().map(|snapshot| &snapshot.guid).collect();
    assert_eq!(guids.len(), 3);
    assert!(list.iter().all(|one| (before - 1..before + 60).contains(&one.created.as_second())));
    let size = fs.measure(&a, &at(5)).await.good("measure");
    assert!((3 << 20..4 << 20).contains(&size.referenced), "{size:?}");
    let error = fs.snapshot(&a, &at(4)).await.expect_err("it exists");
    assert!(told(&error).contains("exist"), "{}", told(&error));

    // Held twice by one, and by another.
    for holder in ["seed-1", "seed-1", "operator"] {
        fs.hold(&a, &at(5), &tag(holder)).await.good("hold");
    }
    let mut holders = fs.holds(&a, &at(5)).await.good("holds");
    holders.sort();
    assert_eq!(holders, [tag("operator"), tag("seed-1")]);
    assert_eq!(fs.list(&a).await.good("list")[0].holds, 2);
    let error = fs.destroy_snapshot(&a, &at(5)).await.expect_err("held");
    let text = told(&error);
    assert!(matches!(error, StorageCause::Held { .. }), "{text}");
    assert!(text.contains("operator") && text.contains("seed-1"), "{text}");
    fs.unmount(&a).await.good("unmount");
    let error = fs.destroy(&a).await.expect_err("held");
    assert!(matches!(error, StorageCause::Held { .. }), "{}", told(&error));
    assert_eq!(names(&**fs, &a).await.len(), 3, "nothing of it was destroyed");
    for holder in ["seed-1", "operator", "operator", "nobody"] {
        fs.release(&a, &at(5), &tag(holder)).await.good("release");
    }
    assert_eq!(fs.holds(&a, &at(5)).await.good("holds"), []);

    // Cloned from.
    let clone = name("clone");
    fs.clone_snapshot(&a, &at(5), &clone).await.good("clone");
    assert_eq!(fs.list(&a).await.good("list")[0].clones, std::slice::from_ref(&clone));
    let refused = [fs.destroy_snapshot(&a, &at(5)).await, fs.destroy(&a).await];
    for refused in refused {
        let error = refused.expect_err("cloned from");
        assert!(matches!(error, StorageCause::ClonedFrom { .. }), "{}", told(&error));
        assert!(told(&error).contains("clone"), "{}", told(&error));
    }
    let look = bench.directory("look");
    fs.mount(&clone, &look).await.good("mount");
    assert_eq!(fs::read(look.join("file")).expect("the file"), noise(3 << 20));
    assert!(!look.join("0000000000005").exists(), "what was written later is not in it");
    fs::write(look.join("new"), "x").expect("it can be written to");
    fs.unmount(&clone).await.good("unmount");
    fs.destroy(&clone).await.good("destroy");
    fs.destroy_snapshot(&a, &at(5)).await.good("destroy");
    let error = fs.destroy_snapshot(&a, &at(5)).await.expect_err("it is gone");
    assert!(matches!(error, StorageCause::NoSnapshot(_)), "{}", told(&error));
    fs.destroy(&a).await.good("destroy");
}

/// A dataset goes back to its newest snapshot; to an earlier one only by way of a branch, which loses
/// nothing.
pub async fn going_back_never_destroys(bench: &Bench) {
    let fs = &bench.here;
    let (a, on) = bench.dataset("back").await;
    for time in 1..=3 {
        fs::write(on.join("file"), time.to_string()).expect("a file");
        fs.snapshot(&a, &at(time)).await.good("snapshot");
    }
    fs::write(on.join("file"), "changed").expect("a file");
    let error = fs.rollback(&a, &at(3)).await.expect_err("mounted");
    assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    fs.unmount(&a).await.good("unmount");
    let error = fs.rollback(&a, &at(1)).await.expect_err("later ones");
    let text = told(&error);
    assert!(matches!(error, StorageCause::LaterSnapshots { .. }), "{text}");
    assert!(text.contains("0000000000002, 0000000000003"), "{text}");
    fs.rollback(&a, &at(3)).await.good("rollback");
    let content = async |dataset: &DatasetName| {
        fs.mount(dataset, &on).await.good("mount");
        let text = fs::read_to_string(on.join("file")).expect("the file");
        fs.unmount(dataset).await.good("unmount");
        text
    };
    assert_eq!(content(&a).await, "3");

    let branch = name("branch");
    fs.hold(&a, &at(1), &tag("keep")).await.good("hold");
    let guids: Vec<Guid> =
        fs.list(&a).await.good("list").into_iter().map(|snapshot| snapshot.guid).collect();
    fs.branch(&a, &at(2), &branch).await.good("branch");
    assert_eq!(names(&**fs, &branch).await, ["0000000000001", "0000000000002"]);
    assert_eq!(names(&**fs, &a).await, ["0000000000003"]);
    let moved = fs.list(&branch).await.good("list");
    assert_eq!([&moved[0].guid, &moved[1].guid], [&guids[0], &guids[1]], "they are the same");
    assert_eq!(moved[0].holds, 1, "held as before");
    assert_eq!(moved[1].clones, std::slice::from_ref(&a), "what is left was cloned from it now");
    assert_eq!((content(&branch).await, content(&a).await), ("2".to_owned(), "3".to_owned()));
    let error = fs.destroy(&branch).await.expect_err("held and cloned from");
    assert!(matches!(error, StorageCause::Held { .. }), "{}", told(&error));
    fs.release(&branch, &at(1), &tag("keep")).await.good("release");
    fs.destroy(&a).await.good("destroy");
    fs.destroy(&branch).await.good("destroy");
}
