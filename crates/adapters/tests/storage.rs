//! The plain directory as storage, filled by real PostgreSQL servers.

mod support;

use adapters::{
    exec::Exec,
    postgres::{Database, PgCause},
    storage::{SeedPhase, SeedProgress, Storage, StorageCause},
};
use cluster::{Counts, Millis};
use rustix::process::Signal;
use std::{
    fs,
    io::Write,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};
use support::{LIMIT, Peer, chain, primary, standby};
use tokio::sync::watch;

fn names(peer: &Peer, prefix: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(&peer.settings.dataset)
        .expect("the dataset")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Of a source it is told what lies where no copy would hold it.
#[tokio::test]
async fn tablespaces_elsewhere_are_told() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let asked = async || a.postgres.tablespaces_of(&a.source()).await;
    assert_eq!(asked().await.expect("an answer"), Vec::<String>::new());
    let place = tempfile::tempdir().expect("a directory");
    for path in [place.path(), &place.path().join("elsewhere")] {
        fs::create_dir_all(path).expect("a directory");
        if let Some(user) = a.postgres.os_user() {
            chown(path, Some(user.uid), Some(user.gid)).expect("given");
        }
    }
    let at = place.path().join("elsewhere");
    let create = format!("create tablespace elsewhere location '{}'", at.display());
    a.session().await.batch_execute(&create).await.expect("a tablespace");
    assert_eq!(asked().await.expect("an answer"), ["elsewhere"]);
    let error = Peer::new("b").postgres.tablespaces_of(&Peer::new("dead").source()).await;
    error.expect_err("nobody answers");
}

/// The first source that answers gives the database; it comes in whole, is a standby's, and never
/// overwrites another.
#[tokio::test]
async fn a_seed_falls_back_and_never_overwrites() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let (dead, b) = (Peer::new("dead"), Peer::new("b"));
    let storage = b.storage();
    assert!(!storage.capabilities().snapshots);
    fs::create_dir_all(b.settings.dataset.join("data.incoming-old/base")).expect("a leftover");
    let mut request = b.postgres.seed_request(vec![dead.source(), a.source()]);
    let progress = watch::Sender::new(SeedProgress::default());
    let seeded =
        storage.seed(&request, &progress).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(seeded.source, a.id());
    let probe = a.postgres.probe().await.expect("a probe");
    assert_eq!(seeded.system_identifier, probe.system_identifier);
    assert_eq!(seeded.timeline, 1);
    let done = progress.borrow().clone();
    assert_eq!((done.phase, done.source), (SeedPhase::Done, Some(a.id())));
    assert!(done.bytes_done > 10 << 20 && done.bytes_total.is_some());
    assert_eq!(names(&b, "data"), ["data"]);
    assert!(b.postgres.data().join("standby.signal").exists());
    assert_eq!(b.found().await.database, Database::Established);

    let error = storage.seed(&request, &progress).await.expect_err("in the way");
    assert!(matches!(error.cause, StorageCause::InTheWay(_)), "{error:?}");

    // Set aside, and again: the oldest goes first, and only what was set aside.
    let mut kept = Vec::new();
    for reason in ["deposed", "rebuild-1", "deposed"] {
        kept.push(storage.set_aside(reason).await.expect("aside"));
        fs::create_dir(b.postgres.data()).expect("another");
        fs::write(b.postgres.data().join("file"), "").expect("a file");
    }
    fs::create_dir(b.settings.dataset.join("data.mine")).expect("an operator's");
    let half = b.settings.dataset.join("data.deposed-20260102T030405.123456Z.incomplete");
    fs::create_dir(&half).expect("what a deletion that was cut off left");
    let pruned = storage.prune_aside(2).await.expect("pruned");
    assert!(pruned.gone == kept[..1] && pruned.left.is_empty(), "{pruned:?}");
    assert!(!half.exists());
    assert_eq!(names(&b, "data.").len(), 3, "{:?}", names(&b, ""));
    assert!(kept[1].exists() && kept[2].exists());
    for reason in ["", "../x", "incoming", "a b"] {
        storage.set_aside(reason).await.expect_err(reason);
    }
    fs::remove_dir_all(b.postgres.data()).expect("removed");
    let error = storage.set_aside("deposed").await.expect_err("nothing");
    assert!(matches!(error.cause, StorageCause::NoDatabase(_)), "{error:?}");

    request.password = "hush-hush".to_owned();
    let error = chain(&storage.seed(&request, &progress).await.expect_err("a wrong password"));
    assert!(error.contains("password authentication failed"), "{error}");
    assert!(error.contains("Connection refused"), "both are told: {error}");
    assert!(!error.contains("hush-hush"), "{error}");
    assert_eq!(b.found().await.database, Database::None);

    let error = a.storage().set_aside("deposed").await.expect_err("in use");
    assert!(matches!(error.cause, StorageCause::InUse { .. }), "{error:?}");
}

/// A seed that is dropped stops, and leaves nothing that could be taken for a database.
#[tokio::test]
async fn a_dropped_seed_leaves_nothing() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let b = Peer::new("b");
    let storage = b.storage();
    let request = b.postgres.seed_request(vec![a.source()]);
    let progress = watch::Sender::new(SeedProgress::default());
    let mut seen = progress.subscribe();
    {
        let seed = storage.seed(&request, &progress);
        let receiving = seen.wait_for(|progress| progress.source.is_some());
        tokio::select! {
            _ = seed => panic!("done too soon"),
            () = async {
                receiving.await.expect("progress");
                a.wait("exists (select from pg_stat_replication where application_name = 'manatee seed')").await;
            } => {}
        }
    }
    let gone = a.wait("not exists (select from pg_stat_replication)");
    tokio::time::timeout(LIMIT, gone).await.expect("pg_basebackup has ended");
    assert_eq!(b.found().await.database, Database::None);
    let error = b.postgres.apply(&standby(None, &[])).await.expect_err("no database");
    assert!(matches!(error.cause, PgCause::NoDatabase), "{error:?}");
    assert_eq!(names(&b, "data.incoming-").len(), 1);
    storage.seed(&request, &progress).await.expect("the next one");
    assert_eq!(names(&b, "data"), ["data"]);
    b.apply(&standby(Some(&a), &[])).await;
}

/// A file system of its own, unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &std::path::Path, size: &str) -> Mounted {
        Exec::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(at)
            .run_briefly()
            .expect("mount");
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        support::kill_servers(&self.0);
        let unmounted = Exec::new("umount").arg("--lazy").arg(&self.0).run_briefly();
        if let Err(error) = unmounted {
            eprintln!("{}", chain(&error));
        }
    }
}

/// Emptied first: a child that another test has just forked may have it open still, and what it holds with it.
fn remove_filler(path: &Path) {
    fs::File::create(path).expect("emptied");
    fs::remove_file(path).expect("removed");
}

/// A seed that has no room is a clear error, and so is a server that has none.
#[tokio::test]
async fn a_full_disk() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let b = Peer::new("b");
    let mounted = Mounted::new(&b.settings.dataset, "12m");
    let request = b.postgres.seed_request(vec![a.source()]);
    let progress = watch::Sender::new(SeedProgress::default());
    let error = b.storage().seed(&request, &progress).await.expect_err("no room");
    let text = chain(&error);
    // Whether the source's estimate came in time is for the source to say.
    let told = ["bytes are needed and", "no space is left in the dataset"];
    assert!(told.iter().any(|told| text.contains(told)), "{text}");
    drop(mounted);

    let _mounted = Mounted::new(&b.settings.dataset, "120m");
    b.seed(&a).await;
    let mut filler = fs::File::create(b.settings.dataset.join("filler")).expect("a file");
    while filler.write_all(&[1; 4096]).is_ok() {}
    drop(filler);
    let error = b.postgres.apply(&standby(Some(&a), &[])).await.expect_err("no room");
    assert!(matches!(error.cause, PgCause::NoSpace { .. }), "{}", chain(&error));
    remove_filler(&b.settings.dataset.join("filler"));
    b.apply(&standby(Some(&a), &[])).await;
}

/// A copy that is kept and has no room leaves nothing, and what a crash left of one goes with the next.
#[tokio::test]
async fn half_a_copy_does_not_stay() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let b = Peer::new("b");
    let _mounted = Mounted::new(&b.settings.dataset, "160m");
    b.seed(&a).await;
    let filler = b.settings.dataset.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    while file.write_all(&[1; 4096]).is_ok() {}
    file.set_len(file.metadata().expect("its size").len() - (10 << 20)).expect("some room");
    drop(file);
    let error = b.storage().keep("replaced").await.expect_err("no room");
    assert!(matches!(error.cause, StorageCause::Full(_)), "{}", chain(&error));
    assert_eq!(names(&b, "data"), ["data"]);

    remove_filler(&filler);
    let crashed = "data.replaced-20260102T030405.123456Z.incomplete";
    for name in [crashed, "data.mine.incomplete"] {
        fs::create_dir_all(b.settings.dataset.join(name).join("base")).expect("a leftover");
    }
    let kept = b.storage().keep("replaced").await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let kept = kept.file_name().expect("a name").to_str().expect("a name").to_owned();
    assert_eq!(names(&b, "data"), ["data", "data.mine.incomplete", &kept]);
    assert!(b.settings.dataset.join(kept).join("PG_VERSION").exists());
}

/// An operator's database that was never ours: established, and taken over with its role missing.
#[tokio::test]
async fn a_foreign_database_is_taken_over() {
    let a = Peer::new("a");
    let user = a.postgres.os_user();
    adapters::exec::Exec::new("chown")
        .arg("postgres")
        .arg(&a.settings.dataset)
        .run_briefly()
        .expect("chown");
    Exec::new(a.postgres.bin_dir().join("initdb"))
        .as_user(user)
        .args(["--no-sync", "-U", "postgres", "-D"])
        .arg(a.postgres.data())
        .limit(Millis(60_000))
        .run()
        .await
        .expect("initdb");
    assert_eq!(a.found().await.database, Database::Established);
    let b = Peer::new("b");
    a.apply(&primary(Counts::Alone, &[&b])).await;
    assert_eq!(
        a.value(
            "select count(*)::text from pg_roles where rolname = 'replication' and not rolsuper"
        )
        .await,
        "1"
    );
    let b = b.standby_of(&a).await;
    a.wait("exists (select from pg_stat_replication where state = 'streaming')").await;
    drop(b);
    // A frozen server answers no probe, in time.
    for pid in support::servers_below(a.directory.path()) {
        support::signal(pid, Signal::STOP);
    }
    let probe =
        tokio::time::timeout(Duration::from_secs(8), a.postgres.probe()).await.expect("a bound");
    let error = probe.expect_err("frozen");
    assert!(matches!(error.cause, PgCause::Timeout { .. }), "{error:?}");
}
