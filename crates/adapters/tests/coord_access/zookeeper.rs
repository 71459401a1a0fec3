//! Who may do what in a ZooKeeper ensemble, and who may come in.

use super::certificates::Certificates;
use super::common::zookeeper::{ensemble, open_zookeeper};
use super::common::{
    LONG, Stream, ZK_CALL, fresh_root, join, peer, put, sequences, state, stored, timed, within,
};
use super::{as_user, check, over_tls};
use adapters::clock;
use adapters::coord::{Access, Coordination, PutOutcome};
use adapters::testing::{Ensemble, EnsembleOptions};
use cluster::Millis;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use zookeeper_client::{Acl, Acls, AuthId, CreateMode, Permission};

/// What is made with credentials can be read by everybody and written by their holder alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_keep_others_from_writing() {
    let (shared, root) = (ensemble(1), fresh_root());
    let open = |access: &Access| -> Arc<dyn Coordination> {
        Arc::new(open_zookeeper(&shared.servers(), &root, access))
    };
    let ours = open(&as_user("manatee", "secret"));
    let (_member, sequence) = join(&ours, 1, LONG).await;
    let version = put(&ours, None, 1).await;
    for stranger in [open(&Access::default()), open(&as_user("manatee", "other"))] {
        let view = stranger.read().await.expect("to read");
        assert_eq!(view.state.expect("a state").version, version);
        assert_eq!(sequences(&view.active), [sequence]);
        assert_eq!(stranger.history().await.expect("to read").len(), 1);
        let refused = stranger.put(Some(version), &state(2)).await;
        let PutOutcome::Refused(error) = refused else { panic!("{refused:?}") };
        let named = |name: &str| format!("{root}/1.example/{name} may not be");
        check(&error.cause.to_string(), &[&named("state"), "[zookeeper]", "password_file", "ACL"]);
        let error = stranger.join(&peer(2), LONG).await.map(drop).expect_err("refused");
        check(&error.cause.to_string(), &[&named("election"), "[zookeeper]"]);
    }
    let version = put(&open(&as_user("manatee", "secret")), Some(version), 2).await;
    assert_eq!(stored(&ours).await.expect("a state").version, version);
    let client = shared.raw().await;
    let names = ["", "/election", "/state", "/history", "/history/1-0000000000"];
    for path in names.map(|name| format!("{root}/1.example{name}")) {
        client.delete(&path, None).await.expect_err("not ours to delete");
        assert!(client.set_data(&path, b"x", None).await.is_err(), "{path}");
    }
}

/// A shard that was made without credentials is closed once all who are registered have them, with what its
/// history held before; until then nobody is locked out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_close_what_was_open() {
    let (shared, root) = (ensemble(1), fresh_root());
    let open = |access: &Access| -> Arc<dyn Coordination> {
        Arc::new(open_zookeeper(&shared.servers(), &root, access))
    };
    let (nobody, ours) = (open(&Access::default()), open(&as_user("manatee", "secret")));
    let (before, _) = join(&nobody, 1, LONG).await;
    let mut version = put(&nobody, None, 1).await;
    let client = shared.raw().await;
    let shard = format!("{root}/1.example");
    let all = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let first_version = "1426704011095-10.0.0.1-AssumeLeader-Leader-undefined-10.0.0.2-0000000004";
    let names = ["", "/election", "/state", "/history", "/history/1-0000000000"];
    let mut paths: Vec<_> = names.iter().map(|name| format!("{shard}{name}")).collect();
    for name in [&format!("history/{first_version}"), "election/no registration"] {
        paths.push(format!("{shard}/{name}"));
        client.create(paths.last().expect("one"), b"", &all).await.expect("a node");
    }

    let (mut member, sequence) = join(&ours, 2, LONG).await;
    // Seconds, in which it has looked.
    member.until_confirmed_after(clock::now()).await;
    version = put(&nobody, Some(version), 2).await;
    let Stream::Member(before) = before else { unreachable!("join gives a member") };
    before.leave().await.expect("to leave");

    let closed = async |path: &str| {
        let (acl, _) = client.get_acl(path).await.expect("an ACL");
        !acl.iter().any(|acl| {
            acl.scheme() == "world" && acl.permission() & Permission::READ != acl.permission()
        })
    };
    let all_closed = async {
        for path in &paths {
            while !closed(path).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    within("everything to be closed", all_closed).await;
    for path in &paths {
        client.delete(path, None).await.expect_err("not theirs to delete");
        client.set_data(path, b"x", None).await.map(drop).expect_err("not theirs to write");
        let below = format!("{path}/x");
        client.create(&below, b"", &all).await.map(drop).expect_err("not theirs to make");
    }
    let PutOutcome::Refused(error) = nobody.put(Some(version), &state(3)).await else {
        panic!("stored by a stranger")
    };
    check(&error.cause.to_string(), &["state may not be written", "[zookeeper]"]);
    let error = nobody.join(&peer(1), LONG).await.map(drop).expect_err("refused");
    check(&error.cause.to_string(), &["election may not be written", "[zookeeper]"]);
    put(&ours, Some(version), 3).await;
    assert_eq!(sequences(&nobody.read().await.expect("to read").active), [sequence]);
    assert_eq!(nobody.history().await.expect("to read").len(), 3);
    assert!(!closed(&root).await, "what lies above is for others, too");
}

/// A node whose ACL we may not change keeps nobody from joining, and no other node open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_closed_stays_open_alone() {
    let (shared, root) = (ensemble(1), fresh_root());
    let client = shared.raw().await;
    let shard = format!("{root}/1.example");
    let all = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(&format!("{shard}/history"), &all).await.expect("a node");
    let changed = Permission::READ | Permission::WRITE | Permission::CREATE;
    let not_ours = [Acl::new(changed, AuthId::anyone())];
    let election = format!("{shard}/election");
    let options = CreateMode::Persistent.with_acls(Acls::new(&not_ours));
    client.create(&election, b"", &options).await.expect("a node");
    let ours: Arc<dyn Coordination> =
        Arc::new(open_zookeeper(&shared.servers(), &root, &as_user("manatee", "secret")));
    let (mut member, _) = join(&ours, 1, LONG).await;
    let closed = async {
        for path in [shard.clone(), format!("{shard}/history")] {
            while client.set_data(&path, b"", None).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    within("the others to be closed", closed).await;
    client.set_data(&election, b"", None).await.expect("open still");
    member.until_confirmed_after(clock::now()).await;
    put(&ours, None, 1).await;
}

/// An entry of the history that may not be made keeps the state from being stored, and is what is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_is_closed_to_us() {
    let (shared, root) = (ensemble(1), fresh_root());
    let client = shared.raw().await;
    let (shard, readable) =
        (format!("{root}/1.example"), [Acl::new_const(Permission::READ, "world", "anyone")]);
    let all = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(&shard, &all).await.expect("a node");
    let closed = CreateMode::Persistent.with_acls(Acls::new(&readable));
    client.create(&format!("{shard}/history"), b"", &closed).await.expect("a node");
    let coord = open_zookeeper(&shared.servers(), &root, &as_user("manatee", "secret"));
    let refused = coord.put(None, &state(1)).await;
    let PutOutcome::Refused(error) = refused else { panic!("{refused:?}") };
    let named = format!("{shard}/history may not be added to");
    check(&error.cause.to_string(), &[&named, "[zookeeper]", "ACL"]);
    assert_eq!(coord.read().await.expect("to read").state, None);
}

/// A server that takes TLS only from clients with a certificate: ours comes in with one, and not
/// without, nor when it does not know who vouches for the server, nor in plain text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_both_ways() {
    let certificates = Certificates::make();
    let name = |file: &str| certificates.path(file).display().to_string();
    let lines = [
        "secureClientPortAddress=127.0.0.1".to_owned(),
        "secureClientPort={secure_port}".to_owned(),
        "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory".to_owned(),
        format!("ssl.keyStore.location={}", name("server-store.pem")),
        "ssl.keyStore.type=PEM".to_owned(),
        format!("ssl.trustStore.location={}", name("ca.pem")),
        "ssl.trustStore.type=PEM".to_owned(),
        "ssl.clientAuth=need".to_owned(),
        "ssl.hostnameVerification=false".to_owned(),
    ];
    let options = EnsembleOptions { lines: lines.into(), ..EnsembleOptions::default() };
    let directory = tempfile::tempdir().expect("a directory");
    let ensemble = Ensemble::start_with(directory.path(), 1, &options).expect("a server");
    let secure = [ensemble.secure_address(0).to_string()];
    let root = fresh_root();
    let ours = over_tls(&certificates, Some(&certificates));
    let open = |access: &Access| -> Arc<dyn Coordination> {
        Arc::new(open_zookeeper(&secure, &root, access))
    };
    let coord = open(&ours);
    let (mut member, sequence) = join(&coord, 1, LONG).await;
    member.until_confirmed().await;
    put(&coord, None, 1).await;
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [sequence]);
    let stranger = Certificates::make();
    let refused = [
        over_tls(&certificates, None),
        over_tls(&stranger, Some(&certificates)),
        over_tls(&certificates, Some(&stranger)),
        Access::default(),
    ];
    let refused = refused.map(|access| open(&access));
    let (reads, time) = timed(join_all(refused.iter().map(|coord| coord.read()))).await;
    assert!(reads.iter().all(Result::is_err), "{reads:?}");
    assert!(time < Millis(ZK_CALL.0 + 1500), "{time:?}");
    let Stream::Member(member) = member else { unreachable!("join gives a member") };
    member.leave().await.expect("to leave");
}
