//! What is particular to etcd: where things stand in it, and that it goes on while servers fail.

mod common;

use adapters::clock;
use adapters::testing::Way;
use cluster::{Generation, Millis};
use common::etcd::EtcdOf;
use common::{Backend, LONG, join, peer, put, put_until_stored, sequences, state, stored, watch};
use etcd_client::{Client, GetOptions, KeyValue};

async fn raw<const N: usize>(etcd: &EtcdOf<N>) -> Client {
    Client::connect([etcd.servers.etcd.address(0).to_string()], None).await.expect("a client")
}

async fn all(client: &mut Client) -> Vec<KeyValue> {
    let options = GetOptions::new().with_prefix();
    client.get("/", Some(options)).await.expect("to read").take_kvs()
}

/// As documented, because operators and other tools read it: names, values, and what is leased.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_layout() {
    let etcd = EtcdOf::<1>::alone();
    let coord = etcd.client();
    let root = &etcd.root;
    let (_member, _) = join(&coord, 1, LONG).await;
    let first = put(&coord, None, 1).await;
    put(&coord, Some(first), 2).await;
    let kvs = all(&mut raw(&etcd).await).await;
    let [registration, one, two, now] = &kvs[..] else { panic!("{kvs:?}") };
    let text = |kv: &KeyValue| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        (text(kv.key()), text(kv.value()))
    };
    let (key, value) = text(registration);
    let lease = registration.lease();
    assert_eq!(key, format!("{root}/1.example/election/10.0.0.1:5432:12345-{lease:016x}"));
    assert_ne!(lease, 0);
    assert_eq!(value, serde_json::to_string(&peer(1)).expect("JSON"));
    let times: Vec<_> =
        coord.history().await.expect("history").iter().map(|e| e.time.as_millisecond()).collect();
    let name = |number: i64, generation, time| {
        format!("{root}/1.example/history/{number:020}-{generation}-{time}")
    };
    // The first on what there was, the registration; the second on the first.
    let base = registration.mod_revision();
    assert_eq!(text(one), (name(base, 1, times[0]), state(1).to_json()));
    assert_eq!(text(two), (name(first.0, 2, times[1]), state(2).to_json()));
    assert_eq!(text(now), (format!("{root}/1.example/state"), state(2).to_json()));
    assert_eq!([one.lease(), two.lease(), now.lease()], [0; 3]);
}

/// A state that an operator deleted can be written anew, and no entry of the history is lost for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_outlives_the_state() {
    let etcd = EtcdOf::<1>::alone();
    let coord = etcd.client();
    put(&coord, None, 1).await;
    raw(&etcd)
        .await
        .delete(format!("{}/1.example/state", etcd.root), None)
        .await
        .expect("to delete");
    assert_eq!(stored(&coord).await, None);
    put(&coord, None, 1).await;
    let history = coord.history().await.expect("history");
    assert_eq!(history.len(), 2);
    assert!(history[0].sequence < history[1].sequence);
}

/// More than etcd is asked for at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_is_read_to_its_end() {
    let etcd = EtcdOf::<1>::alone();
    let coord = etcd.client();
    let mut version = None;
    for generation in 1..=450 {
        version = Some(put(&coord, version, generation).await);
    }
    let history = coord.history().await.expect("history");
    let generations: Vec<_> = history.iter().map(|entry| entry.generation).collect();
    assert_eq!(generations, (1..=450).map(Generation).collect::<Vec<_>>());
}

/// It would end everybody's session if it failed the reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_cannot_be_read_is_passed_over() {
    let etcd = EtcdOf::<1>::alone();
    let coord = etcd.client();
    let (mut member, own) = join(&coord, 1, LONG).await;
    let key = format!("{}/1.example/election/by hand", etcd.root);
    raw(&etcd).await.put(key, "{", None).await.expect("to write");
    member.until_confirmed_after(clock::now()).await;
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [own]);
}

/// What was compacted away meanwhile is not needed to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_holds_no_watcher_up() {
    let etcd = EtcdOf::<1>::alone();
    let (coord, outside) = (etcd.client(), etcd.outside());
    let mut watcher = watch(&coord).await;
    let mut version = put(&outside, None, 1).await;
    watcher.until_version(version).await;
    // Neither for one that is connected and slow to hear of it...
    etcd.ways.set(Way::Silent);
    version = put(&outside, Some(version), 2).await;
    version = put(&outside, Some(version), 3).await;
    raw(&etcd).await.compact(version.0, None).await.expect("to compact");
    etcd.heal();
    watcher.until_version(version).await;
    // ...nor for one that was cut off.
    etcd.cut();
    watcher.until_unreachable().await;
    version = put(&outside, Some(version), 4).await;
    raw(&etcd).await.compact(version.0, None).await.expect("to compact");
    etcd.heal();
    watcher.until_version(version).await;
    version = put(&outside, Some(version), 5).await;
    watcher.until_version(version).await;
}

/// The session, the watch and puts go on when the server that is asked first dies, and when the next
/// one accepts connections and never answers. Each is the leader or not, as it happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_of_three_may_fail() {
    let etcd = EtcdOf::<3>::alone();
    let coord = etcd.client();
    let (mut member, own) = join(&coord, 1, Millis(10_000)).await;
    let mut watcher = watch(&coord).await;
    let mut version = put(&coord, None, 1).await;
    for server in 0..3 {
        etcd.servers.etcd.kill(server);
        version = put_until_stored(&coord, Some(version), 2).await;
        watcher.until_version(version).await;
        member.until_confirmed_after(clock::now()).await;
        etcd.servers.etcd.launch(server).expect("started");
        etcd.servers.etcd.wait_serving(server).expect("serving");
        etcd.servers.etcd.freeze(server);
        version = put_until_stored(&coord, Some(version), 3).await;
        watcher.until_version(version).await;
        member.until_confirmed_after(clock::now()).await;
        etcd.servers.etcd.thaw(server);
        etcd.servers.etcd.wait_serving(server).expect("serving");
    }
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [own]);
}

/// All servers die and come back with their data, within the session: nothing has happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_may_restart_within_the_session() {
    let etcd = EtcdOf::<3>::alone();
    let coord = etcd.client();
    let (mut member, own) = join(&coord, 1, Millis(24_000)).await;
    let version = put(&coord, None, 1).await;
    member.until_confirmed().await;
    (0..3).for_each(|server| etcd.servers.etcd.kill(server));
    member.until_unreachable().await;
    (0..3).for_each(|server| etcd.servers.etcd.launch(server).expect("started"));
    (0..3).for_each(|server| etcd.servers.etcd.wait_serving(server).expect("serving"));
    member.until_confirmed_after(clock::now()).await;
    let read = coord.read().await.expect("to read");
    assert_eq!(sequences(&read.active), [own]);
    assert_eq!(read.state.map(|state| state.version), Some(version));
}
