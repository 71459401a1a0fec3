//! How servers are adopted, stopped and fenced.

use super::{
    in_time,
    support::{self, Peer, primary, signal},
};
use adapters::postgres::{PgCause, StopMode};
use cluster::{Counts, Millis};
use rustix::process::Signal;
use std::time::Duration;

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
