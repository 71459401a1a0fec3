//! How servers are adopted, stopped and fenced.

use super::{
    in_time,
    support::{self, Peer, primary, signal, standby},
};
use adapters::postgres::{PgCause, StopMode};
use cluster::{Counts, Lsn, Millis};
use rustix::process::Signal;
use std::{fs::File, os::unix::fs::FileExt, time::Duration};

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
    none_left(&a);
    // It did not wait for what the server was asked.
    assert!(took < a.settings.query_timeout, "{took:?}");
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
        none_left(&a);
    }
    a.postgres.fence().await.expect("nothing to fence");
    a.apply(&config).await;
    let before = a.postgres.log_length();
    a.postgres.fence().await.expect("a fence");
    assert!(ended_by_itself(&a, before), "a healthy server is not killed");
}

/// What a standby received and cannot replay may have been acknowledged: it says so, rather than give the
/// position before it for the end.
#[tokio::test]
async fn damaged_wal_is_no_end() {
    let b = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Alone, &[&b]).await;
    let b = b.standby_of(&a).await;
    a.session().await.batch_execute("create table t (n int)").await.expect("a table");
    b.wait("to_regclass('t') is not null").await;
    b.session().await.batch_execute("select pg_wal_replay_pause()").await.expect("a pause");
    let rows = "insert into t select generate_series(1, 100000)";
    a.session().await.batch_execute(rows).await.expect("rows");
    let end: Lsn = a.value("select pg_current_wal_flush_lsn()::text").await.parse().expect("it");
    b.wait(&format!("pg_last_wal_receive_lsn() >= '{end}'")).await;
    // Beyond what has been read while nothing was replayed, and before the end.
    let damaged = (end.byte() - (1 << 20)) / 8192 * 8192;
    let name = format!("select pg_walfile_name('{}')", Lsn::new(damaged));
    let path = b.postgres.data().join("pg_wal").join(a.value(&name).await);
    let file = File::options().read(true).write(true).open(path).expect("a file of WAL");
    let mut page = [0; 8192];
    let offset = damaged % (16 << 20);
    file.read_exact_at(&mut page, offset).expect("a page");
    file.write_all_at(&[0; 8192], offset).expect("damage");
    let error = b.postgres.apply(&standby(None, &[])).await.expect_err("damaged");
    let PgCause::Unreplayable { replayed, received } = error.cause else {
        panic!("{}", support::chain(&error))
    };
    assert!(replayed.byte() <= damaged && received >= end, "{replayed} {received}");
    file.write_all_at(&page, offset).expect("repaired");
    let applied = b.apply(&standby(None, &[])).await;
    assert!(applied.position >= end, "{} before {end}", applied.position);
}

/// Half a record at the end of what was received is no damage.
#[tokio::test]
async fn half_a_record_is_no_damage() {
    let b = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Alone, &[&b]).await;
    let b = b.standby_of(&a).await;
    // Nobody waits for this, so that only its whole pages are written out, and sent.
    a.value("select pg_logical_emit_message(false, 'half', repeat('x', 100000))::text").await;
    b.wait("pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()").await;
    let replayed = b.value("select pg_last_wal_replay_lsn()::text").await;
    let applied = b.apply(&standby(None, &[])).await;
    assert!(applied.position >= replayed.parse().expect("a position"));
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
    assert!((1300..8000).contains(&took.0), "{took:?}");
    none_left(&a);
    assert!(!a.found().await.running);
    assert!(a.postgres.exits().borrow().is_none(), "asked for");
    a.apply(&primary(Counts::Alone, &[])).await;
    in_time("a stop", a.postgres.stop(StopMode::Immediate)).await.expect("a stop");
    none_left(&a);
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
        let before = a.postgres.log_length();
        let fence = adapters::postgres::fence_dataset(&a.settings.dataset);
        assert!(in_time("a fence", fence).await.expect("a fence"), "{pid} ran");
        none_left(&a);
        // A frozen one does nothing but be killed.
        assert_eq!(ended_by_itself(&a, before), !frozen);
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
        none_left(&a);
        a.apply(&config).await;
    }
    let nowhere = adapters::postgres::fence_dataset(std::path::Path::new("/nowhere")).await;
    assert!(!nowhere.expect("nothing to fence"));
}

/// Whether the server has said that it ended since its log was this long: one that is killed cannot.
fn ended_by_itself(peer: &Peer, before: u64) -> bool {
    let log = std::fs::read(peer.postgres.log_path()).expect("a log");
    let said = String::from_utf8_lossy(&log[usize::try_from(before).expect("a length")..]);
    said.contains("database system is shut down")
}

fn none_left(peer: &Peer) {
    let left = support::servers_below(peer.directory.path());
    assert!(left.is_empty(), "processes {left:?} are left");
}

/// Of a process that waits for the disk it is told; not of an open transaction, whose WAL waits for nobody.
#[tokio::test]
async fn only_who_waits_for_the_disk_is_told_of() {
    let peer = Peer::new("a").primary(Counts::Alone, &[]).await;
    let client = peer.session().await;
    client
        .batch_execute("create table t (i int); begin; insert into t values (1)")
        .await
        .expect("sql");
    let flushes = async || peer.postgres.probe().await.expect("a probe").flushes;
    assert!(!flushes().await);
    let row = client.query_one("select pg_backend_pid()", &[]).await.expect("a row");
    let backend: i32 = row.get(0);
    let mut tracer = std::process::Command::new("strace")
        .args(["--quiet=all", "--output=/dev/null", "--trace=fsync,fdatasync"])
        .args(["--inject=fsync,fdatasync:delay_enter=600000000", &format!("--attach={backend}")])
        .spawn()
        .expect("strace: install it (tools/need.sh network)");
    let traced = format!("/proc/{backend}/status");
    let is_traced = || {
        let status = std::fs::read_to_string(&traced).expect("a backend");
        !status.contains("TracerPid:\t0\n")
    };
    in_time("it to be traced", async {
        while !is_traced() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let commits = tokio::spawn(async move { client.batch_execute("commit").await });
    in_time("the commit to wait for the disk", async {
        while !flushes().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    tracer.kill().and_then(|()| tracer.wait()).expect("to end the tracer");
    in_time("the commit", commits).await.expect("a task").expect("a commit");
    assert!(!flushes().await);
}
