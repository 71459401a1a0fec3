//! PostgreSQL itself: what is in force when `apply` returns.

mod support;

use adapters::postgres::{Database, Divergence, PgCause, StopMode};
use cluster::{Counts, Gate, Generation, Lsn, Millis, PgConfig};
use rustix::process::Signal;
use std::{fs, time::Duration};
use support::{LIMIT, Peer, commit, free_port, primary, signal, standby, wait_waiting};

async fn in_time<F: Future>(what: &str, work: F) -> F::Output {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("too late: {what}"))
}

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

/// A sitter that comes back takes the server as it is, and hears of its end.
#[tokio::test]
async fn a_server_is_adopted() {
    let mut a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let config = primary(Counts::Alone, &[]);
    let pid = a.pid();
    let found = a.restart_sitter().await;
    assert!(found.running);
    assert_eq!(found.applied, Some(config.clone()));
    let session = a.session().await;
    let loaded = a.value("select pg_conf_load_time()::text").await;
    a.apply(&config).await;
    assert_eq!(a.pid(), pid);
    assert_eq!(a.value("select pg_conf_load_time()::text").await, loaded, "not even a reload");
    session.batch_execute("select 1").await.expect("the same session");

    let mut exits = a.postgres.exits();
    signal(pid, Signal::KILL);
    let exit = in_time("the exit", exits.wait_for(Option::is_some)).await.expect("an exit").clone();
    assert_eq!(exit.expect("an exit").pid, pid);
    // Started again with whatever was left of it, and watched as our own child.
    a.apply(&config).await;
    let pid = a.pid();
    let mut exits = a.postgres.exits();
    exits.mark_unchanged();
    signal(pid, Signal::KILL);
    in_time("the exit", exits.changed()).await.expect("an exit");
    let exit = exits.borrow().clone().expect("an exit");
    assert_eq!(exit.pid, pid);
    assert!(exit.status.expect("a status").contains("signal: 9"));
    assert_eq!(a.found().await.applied, None);
    a.apply(&config).await;
}

/// A crash of one backend ends the server, rather than let it start over by itself.
#[tokio::test]
async fn a_crashed_backend_ends_the_server() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let mut exits = a.postgres.exits();
    let session = a.session().await;
    let pid: i32 = session.query_one("select pg_backend_pid()", &[]).await.expect("a row").get(0);
    signal(pid.cast_unsigned(), Signal::SEGV);
    in_time("the exit", exits.wait_for(Option::is_some)).await.expect("an exit");
    let exit = exits.borrow().clone().expect("an exit");
    assert!(exit.log.contains("terminated by signal 11"), "{}", exit.log);
    a.apply(&primary(Counts::Alone, &[])).await;
}

/// The fence ends a frozen server within its bound, and an apply that is going on.
#[tokio::test]
async fn a_fence_waits_for_nobody() {
    let a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let session = a.session().await;
    session.batch_execute("begin").await.expect("a transaction");
    for pid in support::servers_below(a.directory.path()) {
        signal(pid, Signal::STOP);
    }
    let start = adapters::clock::now();
    let config = primary(Counts::Nobody, &[]);
    let (applied, fenced) = in_time("a fence", async {
        let apply = a.postgres.apply(&config);
        tokio::join!(apply, async {
            tokio::task::yield_now().await;
            a.postgres.fence().await
        })
    })
    .await;
    let took = adapters::clock::now() - start;
    fenced.expect("a fence");
    let error = applied.expect_err("overtaken");
    assert!(matches!(error.cause, PgCause::Fenced), "{error:?}");
    assert!(support::servers_below(a.directory.path()).is_empty());
    assert!(took.0 < 2500, "{took:?}");
    assert!(a.postgres.exits().borrow().is_none(), "asked for");

    // At any moment of a start.
    for delay in [0, 5, 20, 60, 120, 200] {
        let (applied, fenced) = tokio::join!(a.postgres.apply(&config), async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            a.postgres.fence().await
        });
        fenced.expect("a fence");
        // The last of these may come when the start is complete; nothing is left even so.
        if let Err(error) = applied {
            assert!(matches!(error.cause, PgCause::Fenced), "{error:?}");
        }
        assert!(support::servers_below(a.directory.path()).is_empty(), "after {delay} ms");
    }
    a.postgres.fence().await.expect("nothing to fence");
    a.apply(&config).await;
    let start = adapters::clock::now();
    a.postgres.fence().await.expect("a fence");
    let took = adapters::clock::now() - start;
    assert!(took.0 < 900, "a healthy server takes no grace: {took:?}");
}

/// An orderly stop that gets nowhere becomes an immediate one.
#[tokio::test]
async fn a_stop_always_ends_the_server() {
    let a = Peer::with("a", |settings| settings.stop_timeout = Millis(300));
    let a = a.primary(Counts::Alone, &[]).await;
    // Of this postmaster there is nothing to be had but by killing it.
    signal(a.pid(), Signal::STOP);
    let start = adapters::clock::now();
    in_time("a stop", a.postgres.stop(StopMode::Fast)).await.expect("a stop");
    let took = adapters::clock::now() - start;
    assert!((1300..4000).contains(&took.0), "{took:?}");
    none_left(&a).await;
    assert!(!a.found().await.running);
    assert!(a.postgres.exits().borrow().is_none(), "asked for");
    a.apply(&primary(Counts::Alone, &[])).await;
    in_time("a stop", a.postgres.stop(StopMode::Immediate)).await.expect("a stop");
    none_left(&a).await;
}

/// A process that has ended goes on having a directory for a moment.
async fn none_left(peer: &Peer) {
    let gone = async {
        while !support::servers_below(peer.directory.path()).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_millis(100), gone).await;
    gone.expect("no process of the server is left");
}

/// A server can be ended by one who knows no more of it than its dataset; a frozen one as well.
#[tokio::test]
async fn a_dataset_is_fenced_without_a_postgres() {
    let mut a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let config = primary(Counts::Alone, &[]);
    for frozen in [false, true] {
        let pid = a.pid();
        // Another value takes its place only to be dropped: as if this sitter had never had one.
        a.restart_sitter().await;
        if frozen {
            for pid in support::servers_below(a.directory.path()) {
                signal(pid, Signal::STOP);
            }
        }
        let start = adapters::clock::now();
        let fence = adapters::postgres::fence_dataset(&a.settings.dataset);
        assert!(in_time("a fence", fence).await.expect("a fence"), "{pid} ran");
        let took = adapters::clock::now() - start;
        assert!(took.0 < if frozen { 2500 } else { 900 }, "frozen {frozen}: {took:?}");
        none_left(&a).await;
        let again = adapters::postgres::fence_dataset(&a.settings.dataset).await;
        assert!(!again.expect("nothing to fence"), "nothing ran");
        // Backends that outlive their postmaster are found as well.
        a.apply(&config).await;
        for pid in support::servers_below(a.directory.path()) {
            signal(pid, Signal::STOP);
        }
        signal(a.pid(), Signal::KILL);
        let fence = adapters::postgres::fence_dataset(&a.settings.dataset);
        assert!(in_time("a fence", fence).await.expect("a fence"));
        none_left(&a).await;
        a.apply(&config).await;
    }
    let nowhere = adapters::postgres::fence_dataset(std::path::Path::new("/nowhere")).await;
    assert!(!nowhere.expect("nothing to fence"));
}

/// ALTER SYSTEM cannot undo what safety rests on: not by the next apply, not by the next start.
#[tokio::test]
async fn alter_system_is_undone() {
    let nobody = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Sync(nobody.id()), &[]).await;
    let session = a.session().await;
    let config = primary(Counts::Sync(nobody.id()), &[]);
    let wanted = format!("FIRST 1 (\"{}\")", nobody.id());
    for sql in
        ["alter system set synchronous_standby_names = ''", "alter system set work_mem = '5MB'"]
    {
        session.batch_execute(sql).await.expect(sql);
    }
    session.batch_execute("select pg_reload_conf()").await.expect("a reload");
    a.wait("current_setting('synchronous_standby_names') = ''").await;
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(false));
    a.apply(&config).await;
    assert_eq!(a.value("show synchronous_standby_names").await, wanted);
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));

    // The operator's to set, but not to a value that lets commits go without the standby.
    for weak in ["off", "local", "remote_write"] {
        let sql = format!("alter system set synchronous_commit = '{weak}'");
        session.batch_execute(&sql).await.expect(&sql);
        session.batch_execute("select pg_reload_conf()").await.expect("a reload");
        a.wait(&format!("current_setting('synchronous_commit') = '{weak}'")).await;
        assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(false));
        a.apply(&config).await;
        assert_eq!(a.value("show synchronous_commit").await, "on");
        assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));
    }
    let auto = a.postgres.data().join("postgresql.auto.conf");
    assert!(!fs::read_to_string(&auto).expect("a file").contains("synchronous_commit"));
    // One that is stronger stays; that of our own role does not speak for the server.
    for sql in [
        "alter system set synchronous_commit = 'remote_apply'",
        "set synchronous_commit = local",
        "alter role postgres set synchronous_commit = 'off'",
        "select pg_reload_conf()",
    ] {
        session.batch_execute(sql).await.expect(sql);
    }
    a.apply(&config).await;
    let role = "alter role postgres reset synchronous_commit";
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));
    session.batch_execute(role).await.expect(role);
    assert_eq!(a.value("show synchronous_commit").await, "remote_apply");

    session.batch_execute("alter system set synchronous_commit = off").await.expect("a change");
    session.batch_execute("alter system set fsync = off").await.expect("a change");
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    a.apply(&config).await;
    assert_eq!(a.value("show fsync").await, "on");
    assert_eq!(a.value("show synchronous_commit").await, "on");
    assert_eq!(a.value("show work_mem").await, "5MB");
    let waiting = commit(&a, "create table t (i int)");
    wait_waiting(&a, 1).await;
    assert!(!waiting.is_finished());
}

/// Settings that need a restart get one; those that the server refuses are an error that names
/// them.
#[tokio::test]
async fn the_operators_settings() {
    let mut a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let config = primary(Counts::Alone, &[]);
    a.settings.user_settings.insert("max_connections".into(), "50".into());
    a.restart_sitter().await;
    let pid = a.pid();
    a.apply(&config).await;
    assert_ne!(a.pid(), pid);
    assert_eq!(a.value("show max_connections").await, "50");
    a.settings.user_settings.insert("work_mem".into(), "much".into());
    a.restart_sitter().await;
    let error = a.postgres.apply(&config).await.expect_err("no such amount");
    assert!(
        matches!(&error.cause, PgCause::Rejected(text) if text.contains("work_mem")),
        "{error:?}"
    );
    a.settings.user_settings.insert("fsync".into(), "off".into());
    let error = adapters::postgres::Postgres::open(a.settings.clone()).expect_err("forbidden");
    assert!(support::chain(&error).contains("fsync"), "{error}");
}

/// Settings are tried on the server program before anything runs with them; what it says of a wrong
/// one is told, and what is not the operator's to set is named.
#[tokio::test]
async fn settings_are_checked_before_they_are_used() {
    let a = Peer::new("a");
    let map = |settings: &[(&str, &str)]| {
        let own = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        own.collect::<std::collections::BTreeMap<_, _>>()
    };
    let check = async |settings: &[(&str, &str)]| a.postgres.check_settings(&map(settings)).await;
    let fine = [
        ("shared_buffers", "1GB"),
        ("pg_stat_statements.max", "100"),
        ("shared_preload_libraries", "pg_stat_statements"),
        ("log_line_prefix", "it's \\ %m "),
        ("synchronous_commit", "remote_apply"),
    ];
    check(&fine).await.expect("good settings");
    check(&[]).await.expect("none");
    for (name, value, said) in [
        ("shared_bufers", "1GB", "unrecognized configuration parameter \"shared_bufers\""),
        ("work_mem", "much", "invalid value for parameter \"work_mem\": \"much\""),
        ("max_connections", "0", "max_connections"),
        ("wal_compression", "perhaps", "\"perhaps\"; Available values: "),
    ] {
        let error = check(&[("log_line_prefix", "! "), (name, value)]).await.expect_err(name);
        let PgCause::Rejected(text) = &error.cause else { panic!("{error:?}") };
        assert!(text.contains(said) && !text.contains("/tmp"), "{text}");
    }
    for (name, value) in [("FSYNC", "on"), ("synchronous_commit", "local"), ("a b", "1")] {
        let error = check(&[(name, value)]).await.expect_err(name);
        assert!(matches!(error.cause, PgCause::Settings { .. }), "{error:?}");
        let settings = map(&[("work_mem", "much"), (name, value)]);
        let refused = adapters::postgres::check_names(&settings).expect_err(name);
        assert_eq!(refused.name, name);
        assert!(refused.to_string().contains(value), "{refused}");
    }
}

/// What keeps a server from starting is told in words.
#[tokio::test]
async fn starts_that_fail() {
    let a = Peer::new("a");
    let config = primary(Counts::Alone, &[]);
    let error = a.postgres.apply(&config).await.expect_err("no database");
    assert!(matches!(error.cause, PgCause::NoDatabase), "{error:?}");
    a.postgres.create_database().await.expect("a database");

    let other = std::net::TcpListener::bind(("127.0.0.1", a.settings.port)).expect("the port");
    let error = a.postgres.apply(&config).await.expect_err("the port is taken");
    assert!(matches!(error.cause, PgCause::PortInUse { .. }), "{error:?}");
    assert!(a.postgres.exits().borrow().is_none(), "told once");
    drop(other);

    let version = a.postgres.data().join("PG_VERSION");
    let right = fs::read(&version).expect("a version");
    fs::write(&version, "12\n").expect("a version");
    let error = a.postgres.apply(&config).await.expect_err("another version");
    assert!(
        matches!(&error.cause, PgCause::ForeignVersion { found, .. } if found == "12"),
        "{error:?}"
    );
    fs::write(&version, right).expect("a version");

    let auto = a.postgres.data().join("postgresql.auto.conf");
    fs::write(&auto, "max_connections = -5\n").expect("nonsense");
    let error = a.postgres.apply(&config).await.expect_err("nonsense");
    assert!(
        matches!(&error.cause, PgCause::CannotStart { log, .. } if log.contains("max_connections")),
        "{error:?}"
    );
    fs::write(&auto, "").expect("no nonsense");
    a.apply(&config).await;

    let mut settings = a.settings.clone();
    settings.bin_dir = Some("/nowhere".into());
    let error = adapters::postgres::Postgres::open(settings.clone()).expect_err("no programs");
    assert!(matches!(error.cause, PgCause::MissingBinaries { .. }), "{error:?}");
    settings.bin_dir = None;
    settings.os_user = Some("root".into());
    adapters::postgres::Postgres::open(settings.clone()).expect_err("root");
    settings.os_user = Some("nobody-of-this-name".into());
    adapters::postgres::Postgres::open(settings.clone()).expect_err("no user");
    settings.os_user = None;
    settings.port = free_port();
    settings.socket_dir = format!("/tmp/{}", "x".repeat(120)).into();
    adapters::postgres::Postgres::open(settings).expect_err("a socket's name too long");
}

/// A standby that has WAL which its new upstream, promoted from an earlier position, never had, can
/// follow it no further; one that has not, can. Only the first is told that it has diverged.
#[tokio::test]
async fn a_standby_ahead_of_its_new_upstream_has_diverged() {
    let (b, c, d) = (Peer::new("b"), Peer::new("c"), Peer::new("d"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c, &d]).await;
    let b = b.standby_of(&a).await;
    let c = c.standby_of(&a).await;
    let d = d.standby_of(&a).await;
    a.wait_sync(&b).await;
    // `c` and `d` stop following; `b` goes on.
    let detached = c.apply(&standby(None, &[])).await.position;
    d.apply(&standby(None, &[])).await;
    assert!(commit(&a, "create table t as select generate_series(1, 1000)").await.expect("a task"));
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    c.apply(&primary(Counts::Sync(d.id()), &[&b, &d])).await;
    b.apply(&standby(Some(&c), &[])).await;
    d.apply(&standby(Some(&c), &[])).await;
    c.wait_sync(&d).await;

    let port = c.settings.port;
    let judge = async |peer: &Peer| {
        let probe = peer.postgres.probe().await.expect("a probe");
        peer.postgres.divergence(&probe, "127.0.0.1", port, 0).await.expect("an answer")
    };
    let why = in_time("b to be refused", async {
        loop {
            if let Divergence::CannotFollow(why) = judge(&b).await {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(why.contains("left timeline 1"), "{why}; c was detached at {detached}");
    assert_eq!(judge(&d).await, Divergence::None, "the one that follows");
    // Another database tells nothing about the data here, whatever the log says.
    let mut probe = b.postgres.probe().await.expect("a probe");
    probe.system_identifier ^= 1;
    let judged = b.postgres.divergence(&probe, "127.0.0.1", port, 0).await.expect("an answer");
    assert!(matches!(&judged, Divergence::Foreign(why) if why.contains("another database")));
}

/// After a crash a standby still knows the timeline that it has received WAL of, though its control
/// file may not have come to say so.
#[tokio::test]
async fn a_crashed_standby_knows_its_timeline() {
    let (b, c) = (Peer::new("b"), Peer::new("c"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c]).await;
    let b = b.standby_of(&a).await;
    let c = c.standby_of(&a).await;
    a.wait_sync(&b).await;
    c.wait("exists (select from pg_stat_wal_receiver where status = 'streaming')").await;
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    b.apply(&standby(None, &[])).await;
    // What is promoted has a number of its own, which the control file of `c` says nothing of yet.
    b.apply(&primary(Counts::Sync(c.id()), &[&c])).await;
    c.apply(&standby(Some(&b), &[])).await;
    b.wait_sync(&c).await;
    // Acknowledged: so some WAL of the new timeline is on the disk of `c`, which no state says of the
    // sender that may still be sending the old one.
    assert!(commit(&b, "create table t (i int)").await.expect("a task"));
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 2);
    for peer in [&b, &c] {
        let mut exits = peer.postgres.exits();
        signal(peer.pid(), Signal::KILL);
        in_time("the exit", exits.wait_for(Option::is_some)).await.expect("an exit");
    }
    c.apply(&standby(None, &[])).await;
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 2);
    // The history of a timeline alone proves nothing, nor does a file that is no whole segment.
    for name in ["00000009.history", "000000090000000000000001.partial"] {
        fs::write(c.postgres.data().join("pg_wal").join(name), "").expect("a file");
    }
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 2);
}

/// Rule D7. A promotion for generation 5 begins timeline 5, whatever number PostgreSQL would have taken; those
/// who follow from timeline 1 find their way, a fresh copy too, and an interrupted promotion does no
/// harm.
#[tokio::test]
async fn a_promotion_takes_a_number_of_its_own() {
    let (b, c, d, f) = (Peer::new("b"), Peer::new("c"), Peer::new("d"), Peer::new("f"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c, &f]).await;
    let b = b.standby_of(&a).await;
    let c = c.standby_of(&a).await;
    let f = f.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert!(commit(&a, "create table t (i int)").await.expect("a task"));
    // Those who follow later have no more than the one that is promoted.
    for standby_of_a in [&f, &c, &b] {
        standby_of_a.apply(&standby(None, &[])).await;
    }
    a.postgres.stop(StopMode::Immediate).await.expect("a stop");

    // As if it had been interrupted: reserved, and not promoted.
    let reserved = "# reserved by Manatee: no timeline of this shard has this number\n";
    for number in 2..5 {
        let file = b.settings.dataset.join(format!("data/pg_wal/{number:08X}.history"));
        fs::write(file, reserved).expect("a reservation");
    }
    b.postgres.stop(StopMode::Fast).await.expect("a stop");
    b.apply(&standby(None, &[])).await;

    let fifth = |counts, downstream: &[&Peer]| PgConfig::Primary {
        generation: Generation(5),
        counts,
        gate: Gate::Open,
        downstream: support::ids(downstream),
    };
    b.apply(&fifth(Counts::Sync(c.id()), &[&c])).await;
    assert_eq!(b.postgres.probe().await.expect("a probe").timeline, 5);
    c.apply(&standby(Some(&b), &[])).await;
    b.wait_sync(&c).await;
    assert!(commit(&b, "insert into t values (1)").await.expect("a task"));
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 5);

    // A fresh copy comes with the history of timeline 5 alone, and would serve those who ask it for
    // the others; one that is older than what it has kept cannot follow it, and is told so.
    b.apply(&fifth(Counts::Sync(c.id()), &[&c, &d, &f])).await;
    b.value("select pg_switch_wal()::text").await;
    let d = d.standby_of(&b).await;
    d.wait("(select count(*) = 1 from t)").await;
    for number in 2..=5 {
        let file = d.settings.dataset.join(format!("data/pg_wal/{number:08X}.history"));
        assert!(file.exists(), "{}", file.display());
    }
    d.apply(&standby(Some(&b), &[&f])).await;
    let mark = f.postgres.log_length();
    f.apply(&standby(Some(&d), &[])).await;
    let why = in_time("f to be refused", async {
        loop {
            let probe = f.postgres.probe().await.expect("a probe");
            let port = d.settings.port;
            let asked = f.postgres.divergence(&probe, "127.0.0.1", port, mark).await;
            if let Divergence::CannotFollow(why) = asked.expect("an answer") {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(why.contains("no longer"), "{why}");
    f.apply(&standby(Some(&b), &[])).await;
    f.wait("(select count(*) = 1 from t)").await;
}
