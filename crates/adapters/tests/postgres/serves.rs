//! What a primary and its standbys acknowledge, and how each becomes the other.

use super::{
    in_time,
    support::{Peer, commit, primary, signal, standby, wait_waiting},
};
use adapters::postgres::{Database, PgCause, StopMode};
use cluster::{Counts, Gate, Generation, Lsn, PgConfig};
use rustix::process::Signal;
use std::fs;

/// A new database is prepared, becomes established by serving, and is alone only when it may be;
/// the gate, the roles and the access rules are as they should be.
#[tokio::test]
async fn a_new_database_serves_alone() {
    let peer = Peer::new("a");
    assert_eq!(peer.found().await.database, Database::None);
    peer.postgres.create_database().await.expect("a database");
    let found = peer.found().await;
    assert_eq!((found.database, found.running), (Database::Prepared, false));
    let again = peer.postgres.create_database().await.expect_err("in the way");
    assert!(matches!(again.cause, PgCause::InTheWay { .. }), "{again:?}");

    let config = primary(Counts::Alone, &[]);
    peer.apply(&config).await;
    let found = peer.found().await;
    assert_eq!((found.database, found.running), (Database::Established, true));
    assert_eq!(found.applied, Some(config));
    assert_eq!(peer.value("show data_checksums").await, "on");
    assert_eq!(peer.value("show synchronous_standby_names").await, "");
    assert_eq!(
        peer.value(
            "select pg_encoding_to_char(encoding) from pg_database where datname = 'postgres'"
        )
        .await,
        "UTF8"
    );
    assert!(in_time("a commit", commit(&peer, "create table t (i int)")).await.expect("a task"));
    let owner = fs::metadata(peer.postgres.data()).expect("the data");
    let user = peer.postgres.os_user().expect("another user");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), user.uid);

    // The gate: closed for who does not insist, opened again.
    let closed = PgConfig::Primary {
        generation: Generation(1),
        timeline: None,
        init_wal: Lsn::ZERO,
        counts: Counts::Alone,
        gate: Gate::Closed,
        downstream: vec![],
    };
    peer.apply(&closed).await;
    assert!(!commit(&peer, "insert into t values (1)").await.expect("a task"));
    let pid = peer.pid();
    peer.apply(&closed.opened()).await;
    assert!(commit(&peer, "insert into t values (1)").await.expect("a task"));
    assert_eq!(peer.pid(), pid);

    // The replication role replicates, and calls what a rewind needs, in one database only; the
    // superuser has no TCP.
    let tcp = |user: &str, database: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(peer.settings.port).user(user).dbname(database);
        config.password(&peer.settings.replication_password);
        async move { config.connect(tokio_postgres::NoTls).await.map(drop) }
    };
    tcp("replication", "postgres").await.expect("what a rewind needs");
    assert!(tcp("replication", "template1").await.is_err(), "no other database");
    assert!(tcp("postgres", "postgres").await.is_err(), "no superuser over TCP");
    let privileges = "select has_table_privilege('replication', 't', 'select')::text";
    assert_eq!(peer.value(privileges).await, "false", "no data by SQL");
    assert_eq!(
        peer.value("select rolsuper::text from pg_roles where rolname = 'replication'").await,
        "false"
    );
    assert!(commit(&peer, "create role app login").await.expect("a task"));
    tcp("app", "postgres").await.expect("a client by the rule for clients");

    let probe = peer.postgres.probe().await.expect("a probe");
    assert!(!probe.in_recovery && probe.timeline == 1 && probe.wal > Lsn::ZERO);
    assert_eq!(probe.names_in_force, Some(true));
    peer.postgres.stop(StopMode::Fast).await.expect("a stop");
    assert!(!peer.found().await.running);
    assert!(peer.postgres.exits().borrow().is_none(), "nobody asked to be told");
}

/// A commit waits until the named standby has flushed it; nobody else's flush counts, and nobody's
/// at all once the primary is quiesced. Counting changes with no restart.
#[tokio::test]
async fn commits_wait_for_whom_they_should() {
    let (b, c) = (Peer::new("b"), Peer::new("c"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c]).await;
    let pid = a.pid();
    let waiting = commit(&a, "create table t (i int)");
    wait_waiting(&a, 1).await;
    let c = c.standby_of(&a).await;
    c.wait("exists (select from pg_stat_wal_receiver where status = 'streaming')").await;
    assert!(!waiting.is_finished(), "c does not count");
    let b = b.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert!(in_time("the sync's flush", waiting).await.expect("a task"));
    assert_eq!(b.value("show data_checksums").await, "on");
    let slots = "select string_agg(active::text, ',') from pg_replication_slots where slot_name like 'manatee_%'";
    assert_eq!(a.value(slots).await, "true,true");

    // Quiesced: what is committed afterwards is acknowledged by nobody, though both stream.
    let applied = a.apply(&primary(Counts::Nobody, &[&b, &c])).await;
    let waiting = commit(&a, "insert into t values (1)");
    wait_waiting(&a, 1).await;
    let sent = a.value("select pg_current_wal_flush_lsn()::text").await;
    b.wait(&format!("pg_last_wal_replay_lsn() >= '{sent}'")).await;
    c.wait(&format!("pg_last_wal_replay_lsn() >= '{sent}'")).await;
    assert!(!waiting.is_finished(), "nobody counts");
    assert!(applied.position < sent.parse().expect("a position"));

    // The other one counts now, and the slot of b goes though b uses it.
    a.apply(&primary(Counts::Sync(c.id()), &[&c])).await;
    assert!(in_time("c's flush", waiting).await.expect("a task"));
    a.wait_sync(&c).await;
    assert_eq!(a.value("select count(*)::text from pg_replication_slots").await, "1");

    // Alone, and back: from the moment that apply returns commits wait again.
    a.apply(&primary(Counts::Alone, &[&c])).await;
    c.postgres.stop(StopMode::Fast).await.expect("a stop");
    assert!(in_time("alone", commit(&a, "insert into t values (2)")).await.expect("a task"));
    a.apply(&primary(Counts::Sync(c.id()), &[&c])).await;
    let waiting = commit(&a, "insert into t values (3)");
    wait_waiting(&a, 1).await;
    assert!(!waiting.is_finished());
    assert_eq!(a.pid(), pid, "never restarted");
}

/// A standby that is detached while writes come in has all that was acknowledged, at a position
/// that stays; it is promoted without a restart, with the new names in force from the first commit.
#[tokio::test]
async fn a_detached_standby_takes_over() {
    let b = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b]).await;
    let b = b.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert!(commit(&a, "create table t (i int)").await.expect("a task"));
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let session = a.session().await;
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for i in 0.. {
            let insert =
                format!("insert into t values ({i}) returning pg_current_wal_insert_lsn()::text");
            tokio::select! {
                row = session.query_one(&insert, &[]) => match row {
                    Ok(row) => acknowledged.push((i, row.get::<_, String>(0))),
                    Err(_) => break,
                },
                _ = stopped.wait_for(|stop| *stop) => break,
            }
        }
        acknowledged
    });
    a.wait("(select count(*) > 50 from t)").await;
    // Replay that is held up must not hold up the taking over.
    b.value("select pg_wal_replay_pause()::text").await;
    let applied = b.apply(&standby(None, &[])).await;
    stop.send(true).expect("a writer");
    let acknowledged = writer.await.expect("a writer");
    let last = acknowledged.last().expect("acknowledged writes");
    assert!(applied.position >= last.1.parse().expect("a position"), "{applied:?} {last:?}");
    let again = b.apply(&standby(None, &[])).await;
    assert_eq!(applied, again, "it stays");
    // As from the disk alone.
    b.postgres.stop(StopMode::Immediate).await.expect("a stop");
    assert_eq!(b.apply(&standby(None, &[])).await, applied, "also after a restart");

    let pid = b.pid();
    let c = Peer::new("c");
    b.apply(&primary(Counts::Sync(c.id()), &[&c])).await;
    assert_eq!(b.pid(), pid, "promoted without a restart");
    assert_eq!(
        b.value("show synchronous_standby_names").await,
        format!("FIRST 1 (\"{}\")", c.id())
    );
    let probe = b.postgres.probe().await.expect("a probe");
    assert!(!probe.in_recovery && probe.timeline == 2, "{probe:?}");
    let count = b.value(&format!("select count(*)::text from t where i <= {}", last.0)).await;
    assert_eq!(count, acknowledged.len().to_string(), "all that was acknowledged");
    let waiting = commit(&b, "insert into t values (-1)");
    wait_waiting(&b, 1).await;
    assert!(!waiting.is_finished(), "not alone");
    assert_eq!(b.value("select count(*)::text from pg_replication_slots").await, "1");
}

/// While a standby is promoted, clients that try all the time to commit are never acknowledged.
#[tokio::test]
async fn no_commit_slips_through_a_promotion_or_a_start() {
    let b = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b]).await;
    let b = b.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert!(
        commit(&a, "create table t (i int); create role app login; grant all on t to app")
            .await
            .expect("a task")
    );
    let end = a.value("select pg_current_wal_flush_lsn()::text").await;
    b.wait(&format!("pg_last_wal_replay_lsn() >= '{end}'")).await;
    let hammer = |port: u16| {
        tokio::spawn(async move {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(port).user("app").dbname("postgres");
            config.options("-c default_transaction_read_only=off");
            loop {
                if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                    tokio::spawn(connection);
                    while !client.is_closed() {
                        if client.batch_execute("insert into t values (1)").await.is_ok() {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let hammers: Vec<_> = (0..3).map(|_| hammer(b.settings.port)).collect();
    let nobody = Peer::new("c");
    b.apply(&primary(Counts::Sync(nobody.id()), &[])).await;
    b.wait("(select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep')").await;
    for _ in 0..3 {
        let mut exits = b.postgres.exits();
        exits.mark_unchanged();
        signal(b.pid(), Signal::KILL);
        in_time("the exit", exits.changed()).await.expect("an exit");
        b.apply(&primary(Counts::Sync(nobody.id()), &[])).await;
        b.wait("(select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep')").await;
    }
    assert!(hammers.iter().all(|hammer| !hammer.is_finished()), "acknowledged alone");
    hammers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A standby of a standby: slots on a server in recovery, and a receiver that is what it says.
#[tokio::test]
async fn a_chain_of_three() {
    let (b, c) = (Peer::new("b"), Peer::new("c"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b]).await;
    let b = b.standby_of(&a).await;
    b.apply(&standby(Some(&a), &[&c])).await;
    let c = c.standby_of(&b).await;
    b.wait("exists (select from pg_replication_slots where active)").await;
    a.wait_sync(&b).await;
    let probe = c.postgres.probe().await.expect("a probe");
    let receiver = probe.receiver.expect("a receiver");
    assert!(receiver.streams_from("127.0.0.1", b.settings.port), "{receiver:?}");
    let senders = a.postgres.probe().await.expect("a probe").senders;
    assert_eq!(senders.len(), 1);
    assert_eq!((&*senders[0].application_name, &*senders[0].sync_state), (b.id().as_str(), "sync"));
    assert!(senders[0].flush.is_some());
    // Another upstream by reload alone.
    let pid = c.pid();
    a.apply(&primary(Counts::Sync(b.id()), &[&b, &c])).await;
    c.apply(&standby(Some(&a), &[])).await;
    c.wait(&format!(
        "exists (select from pg_stat_wal_receiver where status = 'streaming' and sender_port = {})",
        a.settings.port
    ))
    .await;
    assert_eq!(c.pid(), pid);
    // A primary in orderly shutdown comes back as a standby of the promoted one, without a rebuild.
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    b.apply(&standby(None, &[])).await;
    b.apply(&primary(Counts::Sync(a.id()), &[&a])).await;
    a.apply(&standby(Some(&b), &[])).await;
    b.wait_sync(&a).await;
    assert!(in_time("a commit", commit(&b, "create table t (i int)")).await.expect("a task"));
    // The file that makes it a standby is never just removed: another start promotes it.
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    a.apply(&primary(Counts::Alone, &[])).await;
    assert_eq!(a.postgres.probe().await.expect("a probe").timeline, 3);
}
