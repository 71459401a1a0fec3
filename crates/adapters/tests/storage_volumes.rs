//! Databases on file systems with snapshots, with real PostgreSQL servers: every backend as storage of
//! a peer, and peers that are seeded and repaired by snapshots.

mod filesystems;
mod support;

use adapters::{
    exec::Exec,
    postgres::StopMode,
    storage::{
        DatasetName, Dir, Expected, Incoming, Receivable, SeedProgress, SendConflict, SendFrom,
        Sendable, Snapshot, SnapshotName, Snapshots, Storage, StorageCause, Volume, plan_send,
    },
};
use cluster::{Counts, PeerId};
use filesystems::{BtrfsFile, ZfsFile, isolated};
use std::{fs, path::Path};
use support::{Peer, chain, primary, standby};
use tokio::sync::watch;

#[test]
fn dir_stores() {
    isolated("dir_stores", |place| {
        check_all(place, &|_, peer| Box::new(Dir::new(&peer.settings.dataset)));
    });
}

#[test]
fn btrfs_stores() {
    isolated("btrfs_stores", |place| {
        let file = BtrfsFile::new(place, 2048);
        let parent = file.parent("manatee").display().to_string();
        check_all(place, &|name, peer| {
            let volume = Volume::btrfs(&format!("{parent}/{name}"), &peer.settings.dataset);
            Box::new(volume.expect("a name"))
        });
    });
}

#[test]
fn zfs_stores() {
    isolated("zfs_stores", |place| {
        let pool = ZfsFile::new(place, 2048);
        let parent = pool.parent("manatee");
        check_all(place, &|name, peer| {
            let volume = Volume::zfs(&format!("{parent}/{name}"), &peer.settings.dataset);
            Box::new(volume.expect("a name"))
        });
    });
}

type Open<'a> = &'a dyn Fn(&str, &Peer) -> Box<dyn Storage>;

/// A peer and what its database lies on.
struct Stored {
    peer: Peer,
    storage: Box<dyn Storage>,
}

fn check_all(place: &Path, open: Open<'_>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let a = stored(place, "a", open).await;
        let a = Stored { peer: a.peer.primary(Counts::Alone, &[]).await, storage: a.storage };
        execute(&a.peer, "create table t (who text)").await;
        what_is_replaced_is_kept(place, &a, open).await;
        if a.storage.capabilities().snapshots {
            seeded_and_repaired_by_snapshots(place, &a, open).await;
        } else {
            a_stopped_database_is_copied(place, &a).await;
        }
    });
}

async fn stored(place: &Path, name: &str, open: Open<'_>) -> Stored {
    let peer = Peer::to_mount(place, name);
    let storage = open(name, &peer);
    storage.prepare().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    Stored { peer, storage }
}

async fn execute(peer: &Peer, sql: &str) {
    peer.session().await.batch_execute(sql).await.expect(sql);
}

async fn seed(stored: &Stored, source: &Peer) -> Result<(), StorageCause> {
    let request = stored.peer.postgres.seed_request(vec![source.source()]);
    let progress = watch::Sender::new(SeedProgress::default());
    let seeded = stored.storage.seed(&request, &progress).await;
    seeded.map(drop).map_err(|error| error.cause)
}

/// What is in the way is never overwritten: it is set aside first, as a whole, never while its server
/// runs, and of what was set aside the newest stay.
async fn what_is_replaced_is_kept(place: &Path, a: &Stored, open: Open<'_>) {
    let b = stored(place, "b", open).await;
    let error = b.storage.set_aside("replaced").await.expect_err("nothing is there");
    assert!(matches!(error.cause, StorageCause::NoDatabase(_)), "{}", chain(&error));
    seed(&b, &a.peer).await.expect("a base backup");
    let error = seed(&b, &a.peer).await.expect_err("a database is there");
    assert!(matches!(error, StorageCause::InTheWay(_)), "{}", chain(&error));
    b.peer.apply(&standby(Some(&a.peer), &[])).await;
    let error = b.storage.set_aside("replaced").await.expect_err("a server runs");
    assert!(matches!(error.cause, StorageCause::InUse { .. }), "{}", chain(&error));
    b.peer.postgres.stop(StopMode::Fast).await.expect("stopped");

    let mut kept = Vec::new();
    for reason in ["replaced", "deposed-1", "replaced"] {
        kept.push(b.storage.set_aside(reason).await.unwrap_or_else(|e| panic!("{}", chain(&e))));
        assert!(!b.peer.postgres.data().exists(), "it makes room");
        b.storage.prepare().await.expect("still there");
        seed(&b, &a.peer).await.expect("a base backup, again");
    }
    for bad in ["", "../x", "incoming", "a b"] {
        b.storage.set_aside(bad).await.expect_err(bad);
    }
    for gone in [&kept[..1], &[]] {
        let pruned = b.storage.prune_aside(2).await.expect("pruned");
        assert!(pruned.gone == gone && pruned.left.is_empty(), "{pruned:?}");
    }
    b.peer.apply(&standby(Some(&a.peer), &[])).await;
    b.peer.postgres.stop(StopMode::Fast).await.expect("stopped");
}

/// Without snapshots, a stopped database is copied as it is, and a running one is not. One that cannot be
/// deleted as a whole has the name of a whole one no more, and keeps no other one from going.
async fn a_stopped_database_is_copied(place: &Path, a: &Stored) {
    let (dir, to) = (Dir::new(&a.peer.settings.dataset), place.join("copy"));
    let error = dir.copy_stopped(&to).await.expect_err("its server runs");
    assert!(matches!(error.cause, StorageCause::InUse { .. }), "{}", chain(&error));
    a.peer.postgres.stop(StopMode::Fast).await.expect("stopped");
    fs::create_dir(place.join("copy.incomplete")).expect("what an interrupted one left");
    dir.copy_stopped(&to).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let error = dir.copy_stopped(&to).await.expect_err("it is there");
    assert!(matches!(error.cause, StorageCause::InTheWay(_)), "{}", chain(&error));
    let facts = examine(a, &to).await.expect("a whole database");
    assert_eq!(facts.state, "shut down");
    assert!(!place.join("copy.incomplete").exists());
    fs::remove_file(to.join("global/pg_control")).expect("removed");
    let error = examine(a, &to).await.expect_err("not whole");
    assert!(error.to_string().contains("there is no global/pg_control"), "{error}");

    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(a.storage.keep("deposed").await.unwrap_or_else(|e| panic!("{}", chain(&e))));
    }
    let busy = kept[0].join("base");
    mount(&["-t", "tmpfs", "none"], &busy);
    let pruned = a.storage.prune_aside(0).await.expect("pruned");
    assert_eq!(pruned.gone, kept[1..]);
    assert!(pruned.left.iter().any(|(path, _)| *path == kept[0]), "{pruned:?}");
    assert!(!kept[0].exists(), "half of it has the name of a whole one");
    let moved = kept[0].with_file_name(format!(
        "{}.incomplete",
        kept[0].file_name().expect("a name").to_string_lossy()
    ));
    let gone = Exec::new("umount").arg(moved.join("base")).run().await;
    gone.expect("unmounted");
    let pruned = a.storage.prune_aside(0).await.expect("pruned");
    assert!(pruned.left.is_empty() && !moved.exists(), "{pruned:?}");
}

fn mount(what: &[&str], on: &Path) {
    let mounted = Exec::new("mount").args(what).arg(on).run_briefly();
    mounted.unwrap_or_else(|error| panic!("{error}: {:?}", error.cause));
}

async fn examine(
    of: &Stored,
    data: &Path,
) -> Result<adapters::storage::DatabaseFacts, StorageCause> {
    let postgres = &of.peer.postgres;
    let program = postgres.bin_dir().join("pg_controldata");
    adapters::storage::examine(data, &program, postgres.os_user()).await
}

/// A standby is made of a snapshot of a running primary. It becomes primary by mistake and writes what
/// nobody else has; then a difference brings it back, and what it wrote is kept.
async fn seeded_and_repaired_by_snapshots(place: &Path, a: &Stored, open: Open<'_>) {
    let peer = Peer::to_mount(place, "c");
    let b = Stored { storage: open("c", &peer), peer };
    // With a slot, which is in the snapshot as well.
    a.peer.apply(&primary(Counts::Alone, &[&b.peer])).await;
    assert_eq!(slots(&a.peer).len(), 1);
    execute(&a.peer, "insert into t values ('both')").await;
    let sender = a.storage.volume().expect("snapshots");
    let from = sender.snapshots().await.expect("its file system");
    let first = from.snapshot(sender.name(), &SnapshotName::periodic(1)).await.expect("taken");

    let receiver = b.storage.volume().expect("snapshots");
    let into = receiver.snapshots().await.expect("its file system");
    let arriving = DatasetName::new("c.incoming").expect("a name");
    let system_identifier = a.peer.postgres.probe().await.expect("a probe").system_identifier;
    let incoming = Incoming {
        from: arriving.clone(),
        to: receiver.name().clone(),
        mountpoint: b.peer.settings.dataset.clone(),
        beside: place.join("beside"),
        expected: Expected { system_identifier: Some(1), newest_timeline: Some(1) },
        pg_controldata: b.peer.postgres.bin_dir().join("pg_controldata"),
        os_user: b.peer.postgres.os_user().cloned(),
    };
    transfer(&*from, sender.name(), &first.name, &SendFrom::Nothing, &*into, &arriving).await;
    let error = incoming.put_in_place(&*into).await.expect_err("another database");
    assert!(chain(&error).contains("system identifier"), "{}", chain(&error));
    assert!(!b.peer.postgres.data().exists(), "it is in no place where it could be started");
    let known = into.datasets().await.expect("datasets");
    let left = known.iter().find(|one| one.name == arriving).expect("it is kept to be looked at");
    assert_eq!(left.mounted, None);
    let expected =
        Expected { system_identifier: Some(system_identifier), newest_timeline: Some(1) };
    let incoming = Incoming { expected, ..incoming };
    let facts = incoming.put_in_place(&*into).await;
    let facts = facts.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!((facts.timeline, facts.state.as_str()), (1, "in production"));
    let error = incoming.put_in_place(&*into).await.expect_err("one is in place");
    assert!(matches!(error.cause, StorageCause::Exists(_)), "{}", chain(&error));
    assert_eq!(slots(&b.peer), Vec::<String>::new(), "slots are the sender's");
    b.peer.apply(&standby(Some(&a.peer), &[])).await;
    execute(&a.peer, "insert into t values ('later')").await;
    b.peer.wait("(select count(*) from t) = 2").await;

    b.peer.apply(&primary(Counts::Alone, &[])).await;
    execute(&b.peer, "insert into t values ('diverged')").await;
    b.peer.postgres.stop(StopMode::Fast).await.expect("stopped");
    let diverged = SnapshotName::for_purpose(2, "diverged").expect("a name");
    into.snapshot(receiver.name(), &diverged).await.expect("taken");
    execute(&a.peer, "insert into t values ('missed')").await;
    let second = from.snapshot(sender.name(), &SnapshotName::periodic(3)).await.expect("taken");
    let sendable =
        Sendable { snapshots: marks(&*from, sender.name()).await, ..Sendable::default() };
    let receivable =
        Receivable { snapshots: marks(&*into, receiver.name()).await, unfinished: None };
    let conflict = plan_send(&sendable, &receivable, None).expect_err("they have diverged");
    let SendConflict::Diverged { common, only_receiver, .. } = conflict else {
        panic!("{conflict}");
    };
    assert_eq!((&common.guid, &only_receiver[0].name), (&first.guid, &diverged));

    into.branch(receiver.name(), &common.name, &arriving).await.expect("a branch");
    let base = SendFrom::Snapshot(first.name);
    transfer(&*from, sender.name(), &second.name, &base, &*into, &arriving).await;
    let aside = b.storage.set_aside("deposed").await.expect("set aside");
    into.unmount(receiver.name()).await.expect("the empty one");
    into.destroy(receiver.name()).await.expect("the empty one");
    incoming.put_in_place(&*into).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    b.peer.apply(&standby(Some(&a.peer), &[])).await;
    b.peer.wait("(select string_agg(who, ' ' order by who) from t) = 'both later missed'").await;
    assert!(aside.to_string_lossy().contains("c.deposed-"), "{}", aside.display());
    let upstream: PeerId = a.peer.id();
    println!("{} follows {upstream}; what it wrote is kept in {}", b.peer.id(), aside.display());
    b.peer.postgres.stop(StopMode::Fast).await.expect("stopped");
}

/// The replication slots that lie in the data directory.
fn slots(peer: &Peer) -> Vec<String> {
    let entries = fs::read_dir(peer.postgres.data().join("pg_replslot")).expect("a directory");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|entry| name(entry.expect("an entry"))).collect()
}

async fn marks(fs: &dyn Snapshots, dataset: &DatasetName) -> Vec<adapters::storage::Mark> {
    fs.list(dataset).await.expect("a list").iter().map(Snapshot::mark).collect()
}

/// Sends a snapshot into a dataset, as it comes, in bounded memory.
async fn transfer(
    from: &dyn Snapshots,
    dataset: &DatasetName,
    snapshot: &SnapshotName,
    base: &SendFrom,
    into: &dyn Snapshots,
    arriving: &DatasetName,
) {
    let accepted = into.features();
    let mut sending = from.send(dataset, snapshot, base, &accepted).await.expect("a stream");
    let mut receiving = into.receive(arriving).await.expect("a stream");
    let copied = tokio::io::copy(&mut sending, &mut receiving).await.expect("all of it");
    assert!(copied > 0);
    let came = into.finish(receiving).await.unwrap_or_else(|cause| panic!("{}", chain(&cause)));
    assert_eq!(came.name, *snapshot);
}
