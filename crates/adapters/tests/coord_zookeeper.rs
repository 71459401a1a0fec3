//! What only ZooKeeper has: the original's layout, what others left in it, sessions that are taken
//! over, and ensembles of which a part is away.

mod common;

use adapters::clock;
use adapters::coord::zookeeper::{Address, ZkCoord};
use adapters::coord::{Access, CoordEvent, Coordination, PutOutcome};
use adapters::testing::{Ensemble, Proxy, Way, free_ports};
use cluster::{ClusterState, Generation, Millis};
use common::zookeeper::{SharedEnsemble, ensemble, open_zookeeper};
use common::{
    LONG, ZK_CALL, fresh_root, join, peer, put, put_until_stored, sequences, state, timed, watch,
};
use std::path::PathBuf;
use std::sync::Arc;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission};

/// What a call takes at most: its limit, and a little for a busy machine.
const CALL_AT_MOST: Millis = Millis(ZK_CALL.0 + 1500);

fn open(shared: &SharedEnsemble, root: &str) -> ZkCoord {
    open_zookeeper(&shared.servers(), root, &Access::default())
}

fn shared_of(coord: &ZkCoord) -> Arc<dyn Coordination> {
    Arc::new(coord.clone())
}

async fn make(client: &Client, path: &str, data: &str, mode: CreateMode) {
    let (parent, _) = path.rsplit_once('/').expect("a path");
    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(parent, &persistent).await.expect("the nodes above");
    let options = mode.with_acls(Acls::anyone_all());
    client.create(path, data.as_bytes(), &options).await.expect("a node");
}

/// Names, JSON and transactions are the original's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_layout_is_the_originals() {
    let (shared, root) = (ensemble(1), fresh_root());
    let coord = open(&shared, &root);
    let dynamic = shared_of(&coord);
    let (_member, sequence) = join(&dynamic, 1, LONG).await;
    let version = put(&dynamic, None, 1).await;
    put(&dynamic, Some(version), 2).await;

    let election = coord.election().await.expect("to read");
    assert_eq!(election.len(), 1);
    assert_eq!(election[0].name, format!("10.0.0.1:5432:12345-{sequence:010}"));
    assert_ne!(election[0].owner, 0, "ephemeral");
    let data: serde_json::Value = serde_json::from_slice(&election[0].data).expect("JSON");
    assert_eq!(
        data,
        serde_json::json!({
            "zoneId": "zone",
            "ip": "10.0.0.1",
            "pgUrl": "tcp://postgres@10.0.0.1:5432/postgres",
            "backupUrl": "http://10.0.0.1:12345",
        })
    );
    let history = coord.raw_history().await.expect("to read");
    let names: Vec<_> = history.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(names, ["1-0000000000", "2-0000000001"]);
    assert!(history.iter().all(|child| child.owner == 0), "persistent");

    let client = shared.raw().await;
    let path = |name: &str| format!("{root}/1.example/{name}");
    let (data, state_stat) = client.get_data(&path("state")).await.expect("the state");
    assert_eq!(data, history[1].data);
    assert_eq!(data, state(2).to_json().into_bytes());
    let (_, entry_stat) = client.get_data(&path("history/2-0000000001")).await.expect("the entry");
    assert_eq!(state_stat.mzxid, entry_stat.czxid, "one transaction");
    let entries = coord.history().await.expect("to read");
    assert_eq!(entries[1].time.as_millisecond(), entry_stat.ctime);
}

/// What older peers and other hands left is read as far as it can be, and spoils nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_left_is_read() {
    let (shared, root) = (ensemble(1), fresh_root());
    let coord = open(&shared, &root);
    let client = shared.raw().await;
    let shard = format!("{root}/1.example");
    let old = r#"{"zoneId":"z","ip":"10.0.0.2","pgUrl":"tcp://postgres@10.0.0.2:5432/postgres"}"#;
    let v1 = CreateMode::EphemeralSequential;
    make(&client, &format!("{shard}/election/10.0.0.2:5432:12345-"), old, v1).await;
    make(&client, &format!("{shard}/election/10.0.0.3-"), "", v1).await;
    make(&client, &format!("{shard}/election/nobody"), "{}", CreateMode::Persistent).await;
    make(&client, &format!("{shard}/election/10.0.0.4:1:2-"), "rubbish", v1).await;
    make(&client, &format!("{shard}/election/10.0.0.2:5432:12345-"), old, v1).await;
    let peer = |ip: &str| {
        format!(
            r#"{{"id":"{ip}:5432:12345","zoneId":"z","ip":"{ip}","pgUrl":"tcp://{ip}:5432/p"}}"#
        )
    };
    let (primary, sync) = (peer("10.0.0.2"), peer("10.0.0.3"));
    let text = format!(
        r#"{{"generation":4,"primary":{primary},"sync":{sync},"async":[],"initWal":"0/1"}}"#
    );
    make(&client, &format!("{shard}/state"), &text, CreateMode::Persistent).await;
    let event = "1426704011095-10.0.0.2-AssumeLeader-Leader-undefined-10.0.0.3-";
    let persistent = CreateMode::PersistentSequential;
    make(&client, &format!("{shard}/history/{event}"), "", persistent).await;
    make(&client, &format!("{shard}/history/4-"), &text, persistent).await;

    let view = coord.read().await.expect("to read");
    assert_eq!(sequences(&view.active), [0, 1, 4]);
    let ids: Vec<_> = view.active.iter().map(|one| one.peer.id.as_str()).collect();
    assert_eq!(ids, ["10.0.0.2:5432:12345", "10.0.0.3:5432:12345", "10.0.0.2:5432:12345"]);
    assert_eq!(view.active[0].peer.backup_url.as_deref(), Some("http://10.0.0.2:12345"));
    assert_eq!(view.active[1].peer.pg_url, "tcp://postgres@10.0.0.3:5432/postgres");
    let stored = view.state.expect("a state");
    assert!(ClusterState::parse(&stored.json).expect("a state").deposed.is_empty());
    assert_eq!(coord.election().await.expect("to read").len(), 5);

    let history = coord.history().await.expect("to read");
    assert_eq!(history.iter().map(|entry| entry.generation).collect::<Vec<_>>(), [Generation(4)]);
    let raw = coord.raw_history().await.expect("to read");
    assert!(raw[0].name.starts_with("1426704011095-10.0.0.2-AssumeLeader"));
    // And it is written as the next one.
    let dynamic = shared_of(&coord);
    put(&dynamic, Some(stored.version), 5).await;
    assert!(coord.exists(&format!("{shard}/history/5-0000000002")).await.expect("to look"));
    assert!(!coord.exists(&format!("{shard}/lock")).await.expect("to look"));
}

/// A state that somebody deleted is another than the one expected, and can be made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_was_deleted_conflicts() {
    let (shared, root) = (ensemble(1), fresh_root());
    let coord = shared_of(&open(&shared, &root));
    let mut watcher = watch(&coord).await;
    let version = put(&coord, None, 1).await;
    watcher.until_version(version).await;
    let client = shared.raw().await;
    client.delete(&format!("{root}/1.example/state"), None).await.expect("deleted");
    let gone = |event: &CoordEvent| matches!(event, CoordEvent::State(None)).then_some(());
    watcher.until("no state", gone).await;
    let outcome = coord.put(Some(version), &state(2)).await;
    assert!(matches!(outcome, PutOutcome::Conflict), "{outcome:?}");
    let version = put(&coord, None, 2).await;
    watcher.until_version(version).await;
}

/// A shard of the first version whose peers are all away has a history and nothing else: nobody sets up
/// a new one over it (rule G2), and a backfill can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sets_up_over_a_history() {
    let (shared, root) = (ensemble(1), fresh_root());
    let coord = shared_of(&open(&shared, &root));
    let client = shared.raw().await;
    let event = "1426704055000-10.0.0.1-AssumeLeader-Leader---";
    let path = format!("{root}/1.example/history/{event}");
    make(&client, &path, "", CreateMode::PersistentSequential).await;
    let outcome = coord.put(None, &state(1)).await;
    let PutOutcome::Refused(error) = outcome else { panic!("{outcome:?}") };
    let said = error.cause.to_string();
    assert!(said.contains("state-backfill") && said.contains("history"), "{said}");
    assert_eq!(coord.read().await.expect("to read").state, None);
    put(&coord, None, 0).await;
}

fn with_file(shared: &SharedEnsemble, root: &str, file: PathBuf) -> Arc<dyn Coordination> {
    let text = format!("//{}{root}", shared.servers().join(","));
    let address = Address::parse(&text, "1.example").expect("an address");
    let access = Access::default();
    Arc::new(ZkCoord::open(address, &access, ZK_CALL, Some(file)).expect("a client"))
}

/// A sitter that was killed and started again takes its place over: it is never seen to be gone,
/// and does not stand there twice until the old session expires. Others are left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_takes_its_registration_over() {
    let (shared, root) = (ensemble(3), fresh_root());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("session");
    let plain = shared_of(&open(&shared, &root));
    let (_other, other) = join(&plain, 2, LONG).await;
    // The same peer, by another hand: not ours to take away.
    let (_twin, twin) = join(&plain, 1, LONG).await;
    let (first, one) = join(&with_file(&shared, &root, file.clone()), 1, LONG).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&file).expect("the file").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let mut watcher = watch(&plain).await;
    watcher.until_active(&[other, twin, one]).await;
    drop(first);
    let restarted = with_file(&shared, &root, file);
    let begin = clock::now();
    let (_second, two) = join(&restarted, 1, LONG).await;
    assert!(two > one);
    watcher
        .until("the old one to go", |event| match event {
            CoordEvent::Active(active) => {
                let active = sequences(active);
                assert!(active.contains(&one) || active.contains(&two), "gone: {active:?}");
                (active == [other, twin, two]).then_some(())
            }
            _ => None,
        })
        .await;
    let time = clock::now() - begin;
    println!("taken over in {time:?}, with a session of {LONG:?}");
    assert!(time < Millis(LONG.0 / 2), "only after {time:?}: the old session expired");
}

/// No server runs, or each takes connections and never answers: an error that names them, in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers() {
    let (shared, root) = (ensemble(1), fresh_root());
    let nobody = format!("127.0.0.1:{}", free_ports(1).expect("a port")[0]);
    let proxy = Proxy::start(shared.ensemble.address(0)).expect("a proxy");
    proxy.set(Way::Silent);
    for servers in [vec![nobody.clone()], vec![proxy.address().to_string(), nobody]] {
        let coord = open_zookeeper(&servers, &root, &Access::default());
        let (who, next) = (peer(1), state(1));
        let calls =
            async { tokio::join!(coord.join(&who, LONG), coord.read(), coord.put(None, &next)) };
        let ((error, read, put), time) = timed(calls).await;
        let error = error.map(drop).expect_err("nobody answers").cause.to_string();
        assert!(servers.iter().all(|server| error.contains(server)), "{error}");
        assert!(read.is_err() && matches!(put, PutOutcome::Unknown(_)), "{read:?} {put:?}");
        assert!(time < CALL_AT_MOST, "{time:?}");
    }
}

/// Whoever is connected to a server that falls silent goes to another one, with its session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_is_silent() {
    let (shared, root) = (ensemble(3), fresh_root());
    let proxies: Vec<_> = (0..3)
        .map(|index| Proxy::start(shared.ensemble.address(index)).expect("a proxy"))
        .collect();
    let servers: Vec<_> = proxies.iter().map(|proxy| proxy.address().to_string()).collect();
    let coord = shared_of(&open_zookeeper(&servers, &root, &Access::default()));
    let (mut member, own) = join(&coord, 1, Millis(8000)).await;
    for silent in &proxies {
        silent.set(Way::Silent);
        let since = clock::now();
        member.until_confirmed_after(since + Millis(1000)).await;
        let (read, time) = timed(coord.read()).await;
        assert_eq!(sequences(&read.expect("to read").active), [own]);
        assert!(time < ZK_CALL, "{time:?}");
        silent.set(Way::Open);
    }
}

/// Where nothing comes through and nothing is closed, the holder ends its session by its own clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_ends_a_session_in_time() {
    let (shared, root) = (ensemble(1), fresh_root());
    let proxy = Proxy::start(shared.ensemble.address(0)).expect("a proxy");
    let inside = [proxy.address().to_string()];
    let coord = shared_of(&open_zookeeper(&inside, &root, &Access::default()));
    let mut watcher = watch(&shared_of(&open(&shared, &root))).await;
    let timeout = Millis(3000);
    let (mut member, own) = join(&coord, 1, timeout).await;
    watcher.until_active(&[own]).await;
    let confirmed = |event: &CoordEvent| match event {
        CoordEvent::Confirmed { sent } => Some(*sent),
        _ => None,
    };
    let mut last = member.until("confirmed", confirmed).await;
    proxy.set(Way::Silent);
    let cut = clock::now();
    let expired = |event: &CoordEvent| match event {
        CoordEvent::Confirmed { sent } => {
            last = *sent;
            None
        }
        event => matches!(event, CoordEvent::Expired).then_some(()),
    };
    let told = async {
        member.until("the holder to be told", expired).await;
        clock::now()
    };
    let seen = async {
        watcher.until_active(&[]).await;
        clock::now()
    };
    let (told, seen) = tokio::join!(told, seen);
    println!("told after {:?}, seen by others after {:?}", told - cut, seen - cut);
    assert!(told <= cut + timeout + Millis(2000), "told only after {:?}", told - cut);
    assert!(seen >= last + timeout, "a proof of {last:?} outlives the session, gone at {seen:?}");
}

/// A proof is never old while all is well, and little is sent for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_traffic_is_heartbeats() {
    let (directory, root) = (tempfile::tempdir().expect("a directory"), fresh_root());
    let ensemble = Ensemble::start(directory.path(), 1).expect("a server");
    let server = [ensemble.address(0).to_string()];
    let coord = shared_of(&open_zookeeper(&server, &root, &Access::default()));
    put(&coord, None, 1).await;
    let timeout = Millis(6000);
    let (mut member, _) = join(&coord, 1, timeout).await;
    member.until_confirmed().await;
    let begin = clock::now();
    let (mut oldest, mut before, mut told) = (Millis(0), begin, 0);
    let first = received(&ensemble);
    member
        .until("two timeouts", |event| {
            let CoordEvent::Confirmed { sent } = event else { panic!("{event:?}") };
            oldest = oldest.max(clock::now() - before);
            before = *sent;
            told += 1;
            (clock::now() >= begin + Millis(2 * timeout.0)).then_some(())
        })
        .await;
    let requests = received(&ensemble) - first;
    println!("{told} confirmations, a proof never older than {oldest:?}; {requests} requests");
    assert!(oldest.0 <= timeout.0 / 2, "{oldest:?}");
    // Twenty heartbeats, and the question itself; fewer on a busy machine.
    assert!((8..=25).contains(&requests), "{requests}");
}

fn received(ensemble: &Ensemble) -> u64 {
    let answer = ensemble.ask(0, "srvr").expect("an answer");
    let line = answer.lines().find_map(|line| line.strip_prefix("Received: "));
    line.and_then(|number| number.parse().ok()).expect("a number")
}

/// Through the loss of one leader after the other, each started again, a session stays, and what
/// was committed is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_leaders() {
    let (directory, root) = (tempfile::tempdir().expect("a directory"), fresh_root());
    let ensemble = Ensemble::start(directory.path(), 3).expect("an ensemble");
    let servers: Vec<_> = (0..3).map(|index| ensemble.address(index).to_string()).collect();
    let coord = shared_of(&open_zookeeper(&servers, &root, &Access::default()));
    let (mut member, own) = join(&coord, 1, Millis(10_000)).await;
    let mut version = None;
    for generation in 1..=3 {
        let leader = ensemble.wait_for_leader().expect("a leader");
        ensemble.kill(leader);
        version = Some(put_until_stored(&coord, version, generation).await);
        member.until_version(version.expect("stored")).await;
        ensemble.launch(leader).expect("Java");
        ensemble.wait_serving(leader).expect("serving");
        member.until_confirmed_after(clock::now()).await;
    }
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [own]);
    assert_eq!(coord.history().await.expect("to read").len(), 3);
}

/// What has changed and cannot be read again is not vouched for, though the session lives and every
/// heartbeat is answered: a state that is no text, a registration that is closed to us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_not_confirmed() {
    let shared = ensemble(1);
    let client = shared.raw().await;
    // It beats as the member does, in a shard that nothing happens to.
    let quiet = shared_of(&open(&shared, &fresh_root()));
    let (mut witness, _) = join(&quiet, 1, UNREAD).await;
    for part in ["state", "election/10.0.0.9:1:2-0000000009"] {
        let root = fresh_root();
        let coord = shared_of(&open(&shared, &root));
        put(&coord, None, 1).await;
        let (mut member, own) = join(&coord, 1, UNREAD).await;
        member.until_confirmed().await;
        let path = format!("{root}/1.example/{part}");
        if part == "state" {
            client.set_data(&path, b"\xff", None).await.expect("written");
        } else {
            let nobody = [Acl::new(Permission::ALL, AuthId::new("digest", "nobody:nothing"))];
            let options = CreateMode::Ephemeral.with_acls(Acls::new(&nobody));
            client.create(&path, b"", &options).await.expect("a node");
        }
        let changed = clock::now();
        let vouched = |event: &CoordEvent| match event {
            CoordEvent::Confirmed { sent } if *sent > changed => Some(()),
            _ => None,
        };
        // Whoever vouched for what it had not read would have done so long before the witness does.
        let late = changed + UNREAD;
        let by_then = |event: &CoordEvent| {
            matches!(event, CoordEvent::Confirmed { sent } if *sent > late).then_some(())
        };
        tokio::select! {
            () = member.until("a confirmation", vouched) => panic!("{part}: not read, yet confirmed"),
            () = witness.until("a later confirmation", by_then) => {}
        }
        if part == "state" {
            client.set_data(&path, state(2).to_json().as_bytes(), None).await.expect("written");
        } else {
            client.delete(&path, None).await.expect("deleted");
        }
        member.until("a confirmation", vouched).await;
        let active = coord.read().await.expect("to read").active;
        assert_eq!(sequences(&active), [own], "the same session still");
    }
}

/// Of the sessions that stay alive while something cannot be read.
const UNREAD: Millis = Millis(4000);
