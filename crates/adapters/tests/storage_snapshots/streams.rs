//! Snapshots that travel.

use super::{Bench, Told, at, name, names, names_if_any, noise, read, told, write};
use adapters::storage::{
    DatasetName, Guid, Receivable, SendFrom, SendPlan, Sendable, Snapshot, Snapshots, StorageCause,
    plan_send,
};
use std::fs;

/// All of a snapshot, then differences, arrive elsewhere as they were, and nothing but the data does.
pub async fn streams_carry_all_and_differences(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("source").await;
    let b = name("target");
    let content = noise(5 << 20);
    fs::write(on.join("file"), &content).expect("a file");
    here.snapshot(&a, &at(1)).await.good("snapshot");
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    assert!(all.len() > 5 << 20);
    let came = write(&**there, &b, &all).await.good("receive");
    let sent = here.list(&a).await.good("list");
    assert_eq!((&came.name, &came.guid), (&sent[0].name, &sent[0].guid));
    let listed = there.datasets().await.good("datasets");
    let found = listed.iter().find(|dataset| dataset.name == b).expect("it is listed");
    assert_eq!((&found.mounted, &found.origin), (&None, &None));

    let marks = async |fs: &dyn Snapshots, dataset: &DatasetName| {
        fs.list(dataset).await.good("list").iter().map(Snapshot::mark).collect::<Vec<_>>()
    };
    for time in [2, 3] {
        fs::write(on.join(format!("file {time}")), &content[..100_000]).expect("a file");
        here.snapshot(&a, &at(time)).await.good("snapshot");
    }
    fs::remove_file(on.join("file 2")).expect("removed");
    here.snapshot(&a, &at(4)).await.good("snapshot");
    let sender = Sendable { snapshots: marks(&**here, &a).await, bookmarks: Vec::new() };
    let receiver = Receivable { snapshots: marks(&**there, &b).await, unfinished: None };
    let plan = plan_send(&sender, &receiver, None).expect("a difference");
    assert!(matches!(&plan, SendPlan::Incremental { to, .. } if to.name == at(4)), "{plan:?}");
    let difference = read(&**here, &a, 4, &SendFrom::Snapshot(at(1))).await;
    assert!((100_000..400_000).contains(&difference.len()), "{} bytes", difference.len());
    write(&**there, &b, &difference).await.good("receive");
    assert_eq!(names(&**there, &b).await, ["0000000000001", "0000000000004"]);

    let look = bench.directory("target");
    there.mount(&b, &look).await.good("mount");
    assert_eq!(fs::read(look.join("file")).expect("the file"), content);
    assert!(look.join("file 3").exists() && !look.join("file 2").exists());
    there.unmount(&b).await.good("unmount");

    // From there it goes on elsewhere, as the same.
    let again = read(&**there, &b, 4, &SendFrom::Nothing).await;
    let c = name("third");
    let third = write(&**here, &c, &again).await.good("receive");
    assert_eq!(third.guid, sent_guid(&marks(&**here, &a).await, 4));
    here.unmount(&a).await.good("unmount");
    for dataset in [&a, &c] {
        here.destroy(dataset).await.good("destroy");
    }
    there.destroy(&b).await.good("destroy");
}

fn sent_guid(marks: &[adapters::storage::Mark], time: u64) -> Guid {
    let mark = marks.iter().find(|mark| mark.name == at(time));
    mark.expect("it was sent").guid.clone()
}

/// A stream goes into nothing that is mounted, changed, of another line, or not empty.
pub async fn nothing_is_received_over_what_is_there(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("line").await;
    let b = name("line");
    for time in 1..=3 {
        fs::write(on.join("file"), time.to_string()).expect("a file");
        here.snapshot(&a, &at(time)).await.good("snapshot");
    }
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    let later = read(&**here, &a, 3, &SendFrom::Snapshot(at(2))).await;
    let next = read(&**here, &a, 2, &SendFrom::Snapshot(at(1))).await;
    write(&**there, &b, &next).await.expect_err("a difference from what is not there");
    assert_eq!(names_if_any(&**there, &b).await, Vec::<String>::new());
    there.abandon(&b).await.good("abandon");
    write(&**there, &b, &all).await.good("receive");
    let look = bench.directory("line there");
    there.mount(&b, &look).await.good("mount");
    let error = there.receive(&b).await.expect_err("mounted");
    assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    there.unmount(&b).await.good("unmount");
    write(&**there, &b, &all).await.expect_err("all of it, over what is there");
    write(&**there, &b, &later).await.expect_err("a difference from what is not there");
    there.abandon(&b).await.good("abandon");

    there.mount(&b, &look).await.good("mount");
    fs::write(look.join("file"), "mine").expect("a file");
    there.unmount(&b).await.good("unmount");
    let error = write(&**there, &b, &next).await.expect_err("changed");
    assert!(matches!(error, StorageCause::Modified { .. }), "{}", told(&error));
    there.mount(&b, &look).await.good("mount");
    assert_eq!(fs::read(look.join("file")).expect("the file"), b"mine", "it is as it was left");
    there.unmount(&b).await.good("unmount");
    there.rollback(&b, &at(1)).await.good("rollback");
    write(&**there, &b, &next).await.good("unchanged again");
    let skipping = read(&**here, &a, 3, &SendFrom::Snapshot(at(1))).await;
    let error =
        write(&**there, &b, &skipping).await.expect_err("from an older one than the newest");
    assert!(matches!(error, StorageCause::WrongBase { .. }), "{}", told(&error));
    there.abandon(&b).await.good("abandon");
    write(&**there, &b, &later).await.good("and the one after it");
    assert_eq!(names(&**there, &b).await.len(), 3);
    there.destroy(&b).await.good("destroy");
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

/// How a deposed peer is repaired by a difference: what it alone has stays, and what is common takes
/// what it missed.
pub async fn a_branch_takes_a_difference(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("new-primary").await;
    let b = name("deposed");
    fs::write(on.join("file"), noise(1 << 20)).expect("a file");
    here.snapshot(&a, &at(1)).await.good("snapshot");
    write(&**there, &b, &read(&**here, &a, 1, &SendFrom::Nothing).await).await.good("receive");
    let look = bench.directory("deposed");
    there.mount(&b, &look).await.good("mount");
    fs::write(look.join("diverged"), "only here").expect("a file");
    there.snapshot(&b, &at(2)).await.good("snapshot");
    there.unmount(&b).await.good("unmount");
    fs::write(on.join("missed"), "only there").expect("a file");
    here.snapshot(&a, &at(3)).await.good("snapshot");

    let incoming = name("deposed.incoming");
    there.branch(&b, &at(1), &incoming).await.good("branch");
    let difference = read(&**here, &a, 3, &SendFrom::Snapshot(at(1))).await;
    write(&**there, &incoming, &difference).await.good("receive");
    there.rename(&b, &name("deposed.aside")).await.good("rename");
    there.rename(&incoming, &b).await.good("rename");
    there.mount(&b, &look).await.good("mount");
    assert!(look.join("missed").exists() && !look.join("diverged").exists());
    assert_eq!(fs::read(look.join("file")).expect("the file"), noise(1 << 20));
    there.unmount(&b).await.good("unmount");
    there.mount(&name("deposed.aside"), &look).await.good("mount");
    assert!(look.join("diverged").exists() && !look.join("missed").exists());
    there.unmount(&name("deposed.aside")).await.good("unmount");
    for dataset in [name("deposed.aside"), b] {
        there.destroy(&dataset).await.good("destroy");
    }
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

pub async fn a_bookmark_is_sent_from_where_there_are_any(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("marked").await;
    let b = name("marked");
    fs::write(on.join("file"), "1").expect("a file");
    here.snapshot(&a, &at(1)).await.good("snapshot");
    let marked = here.bookmark(&a, &at(1)).await;
    if here.capabilities().bookmarks {
        marked.good("bookmark");
        write(&**there, &b, &read(&**here, &a, 1, &SendFrom::Nothing).await).await.good("receive");
        here.destroy_snapshot(&a, &at(1)).await.good("destroy");
        fs::write(on.join("file"), "2").expect("a file");
        here.snapshot(&a, &at(2)).await.good("snapshot");
        let marks = here.bookmarks(&a).await.good("bookmarks");
        assert_eq!(marks.iter().map(|mark| mark.name.clone()).collect::<Vec<_>>(), [at(1)]);
        let difference = read(&**here, &a, 2, &SendFrom::Bookmark(at(1))).await;
        write(&**there, &b, &difference).await.good("receive");
        there.destroy(&b).await.good("destroy");
    } else {
        let error = marked.expect_err("there are none");
        assert!(matches!(error, StorageCause::Unsupported { .. }), "{}", told(&error));
        assert_eq!(here.bookmarks(&a).await.good("bookmarks"), []);
    }
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}
