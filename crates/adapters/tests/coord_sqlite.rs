//! What holds for the database file of several processes: they are killed, stopped and raced.
//!
//! The other processes are this test binary, started again to run [`helper`] alone with its task
//! in the environment.

mod common;

use adapters::clock;
use adapters::coord::sqlite::SqliteCoord;
use adapters::coord::{CoordEvent, Coordination, PutOutcome};
use cluster::{Millis, Monotonic};
use common::{Backend, CALL, LONG, Sqlite, Stream, open, peer, put, sequences, state};
use common::{watch, within};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const TASK: &str = "COORD_HELPER_TASK";
const PATH: &str = "COORD_HELPER_PATH";

/// How many puts each of the racing processes gets through.
const PUTS: usize = 40;

/// Not a test but what the other processes run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test but what tests start"]
async fn helper() {
    let task = std::env::var(TASK).expect(TASK);
    let path = PathBuf::from(std::env::var_os(PATH).expect("a path"));
    let coord: Arc<dyn Coordination> = Arc::new(open(&path));
    match task.as_str() {
        "hold" => hold(&coord).await,
        "race" => race(&coord).await,
        "idle" => idle(&coord).await,
        other => panic!("no such task: {other}"),
    }
}

/// Keeps a short session and prints what it is told.
async fn hold(coord: &Arc<dyn Coordination>) {
    let mut member = coord.join(&peer(1), Sqlite::SHORT).await.expect("to join");
    while let Some(event) = member.next().await {
        match event {
            CoordEvent::Confirmed { sent } => println!("@helper confirmed {}", sent.0),
            CoordEvent::Expired => println!("@helper expired"),
            _ => {}
        }
    }
    println!("@helper ended");
}

async fn race(coord: &Arc<dyn Coordination>) {
    let mut committed = 0;
    while committed < PUTS {
        let expected = common::stored(coord).await.map(|state| state.version);
        match coord.put(expected, &state(1)).await {
            PutOutcome::Committed(version) => {
                committed += 1;
                println!("@helper committed {}", version.0);
            }
            PutOutcome::Conflict => {}
            PutOutcome::Refused(error) | PutOutcome::Unknown(error) => panic!("{error:?}"),
        }
    }
}

/// A holder and a watcher with nothing to do, and what that costs. The sleep is what is measured.
async fn idle(coord: &Arc<dyn Coordination>) {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec * 1_000_000 + time.tv_nsec / 1000
    };
    let (mut member, _) = common::join(coord, 1, Millis(3000)).await;
    let mut watcher = watch(coord).await;
    member.until_confirmed().await;
    watcher.next().await;
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("@helper cost {}", cpu() - before);
}

struct Helper {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Helper {
    fn start(task: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "helper", "--ignored", "--nocapture"])
            .env(TASK, task)
            .env(PATH, path)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Helper { child, lines }
    }

    /// The rest of its next line that begins so; `None` when there is none any more.
    async fn line(&mut self, begin: &str) -> Option<String> {
        within(begin, async {
            while let Some(line) = self.lines.next_line().await.expect("its output") {
                // The test harness may have left its own words on the same line.
                if let Some((_, rest)) = line.split_once(&format!("@helper {begin}")) {
                    return Some(rest.trim().to_owned());
                }
            }
            None
        })
        .await
    }

    async fn number(&mut self, begin: &str) -> Option<u64> {
        let line = self.line(begin).await?;
        Some(line.parse().expect("a number"))
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("to signal it");
    }
}

async fn until_one_is_active(watcher: &mut Stream) -> u64 {
    watcher
        .until("the holder", |event| match event {
            CoordEvent::Active(active) => sequences(active).first().copied(),
            _ => None,
        })
        .await
}

/// While the file takes no writes every session runs out. Nobody is told that another one is gone
/// before that is known of a file that takes them: it would be told of the outage, and of nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_takes_no_writes_ends_nobody_for_others() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let (first, one) = common::join(&coord, 1, Sqlite::SHORT).await;
    let (mut second, two) = common::join(&coord, 2, LONG).await;
    second.until_active(&[one, two]).await;
    let holder = rusqlite::Connection::open(backend.path()).expect("the database");
    holder.busy_timeout(common::LIMIT).expect("a limit");
    holder.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let mut first = first;
    first
        .until("the end of its session", |event| (*event == CoordEvent::Expired).then_some(()))
        .await;
    let told = second.until("that the file cannot be written", |event| match event {
        CoordEvent::Unreachable(_) => Some(true),
        CoordEvent::Active(active) => (sequences(active) == [two]).then_some(false),
        _ => None,
    });
    assert!(told.await, "told that somebody is gone while nothing could be known");
    holder.execute_batch("ROLLBACK").expect("the lock's end");
    second.until_active(&[two]).await;
}

/// Its registration stands for the whole timeout after its last heartbeat, and not much longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_expires_after_its_timeout() {
    let backend = Sqlite::new();
    let mut watcher = watch(&backend.outside()).await;
    let mut holder = Helper::start("hold", &backend.path());
    until_one_is_active(&mut watcher).await;
    let mut last = holder.number("confirmed").await.expect("a heartbeat");
    holder.signal(Signal::KILL);
    let killed = clock::now();
    while let Some(sent) = holder.number("confirmed").await {
        last = sent;
    }
    watcher.until_active(&[]).await;
    let gone = clock::now();
    assert!(gone >= Monotonic(last) + Sqlite::SHORT, "gone too early");
    let after = gone - killed;
    println!("gone {} ms after kill -9, with a timeout of {} ms", after.0, Sqlite::SHORT.0);
    assert!(after.0 <= Sqlite::SHORT.0 + 2000, "gone only after {after:?}");
}

/// Stopped past its deadline and continued, it finds itself dead and stays so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_holder_finds_itself_expired() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let mut watcher = watch(&coord).await;
    let mut holder = Helper::start("hold", &backend.path());
    let sequence = until_one_is_active(&mut watcher).await;
    holder.number("confirmed").await.expect("a heartbeat");
    holder.signal(Signal::STOP);
    watcher.until_active(&[]).await;
    let continued = clock::now();
    holder.signal(Signal::CONT);
    // Whatever it still says of before, nothing is confirmed from after its death.
    let mut said = Vec::new();
    while let Some(line) = holder.line("").await {
        if let Some(sent) = line.strip_prefix("confirmed ") {
            let sent = Monotonic(sent.parse().expect("a number"));
            assert!(sent < continued, "resurrected at {sent:?}");
        }
        said.push(line);
    }
    assert!(said.ends_with(&["expired".to_owned(), "ended".to_owned()]), "{said:?}");
    assert_eq!(coord.read().await.expect("to read").active, []);
    // A join of somebody else is the next that the watcher is told: nothing came in between.
    let (_other, other) = common::join(&coord, 2, LONG).await;
    let Some(CoordEvent::Active(active)) = watcher.next().await else {
        panic!("active is told");
    };
    assert_eq!(sequences(&active), [other]);
    assert!(other > sequence);
}

/// Each version is one commit of one process, and each commit one entry of the history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_processes_put_each_version_once() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let mut racers =
        [Helper::start("race", &backend.path()), Helper::start("race", &backend.path())];
    let mut versions = Vec::new();
    for racer in &mut racers {
        while let Some(version) = racer.number("committed").await {
            versions.push(version);
        }
        let status = within("it to end", racer.child.wait()).await;
        assert!(status.expect("a status").success());
    }
    versions.sort_unstable();
    let all: Vec<u64> = (1..=2 * PUTS as u64).collect();
    assert_eq!(versions, all);
    let history = coord.history().await.expect("history");
    let sequences: Vec<_> = history.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, all);
}

/// Prints it; the bound is an order of magnitude above, and far below a polling loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_holder_and_watcher_cost_little() {
    let backend = Sqlite::new();
    let mut helper = Helper::start("idle", &backend.path());
    let cost = helper.number("cost").await.expect("a cost");
    let share = cost as f64 / 30_000.0;
    println!("an idle holder and watcher took {cost} µs of 3 s: {share:.2} % of a processor");
    assert!(cost < 300_000, "{cost} µs of processor time in 3 s");
}

/// Two shards in one file know nothing of each other, whatever is in their names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_one_file_are_apart() {
    let backend = Sqlite::new();
    let here = backend.outside();
    let there = SqliteCoord::open(&backend.path(), "1.example.org", CALL).expect("the database");
    let there: Arc<dyn Coordination> = Arc::new(there);
    put(&here, None, 1).await;
    let (_member, _) = common::join(&here, 1, LONG).await;
    let view = there.read().await.expect("to read");
    assert_eq!((view.state, view.active), (None, Vec::new()));
    assert_eq!(there.history().await.expect("history"), []);
    put(&there, None, 1).await;
}

/// What was running before the machine was started is dead, however far its deadline is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_another_boot_are_dead() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let (mut member, _) = common::join(&coord, 1, LONG).await;
    member.until_confirmed().await;
    let other = rusqlite::Connection::open(backend.path()).expect("the database");
    other.execute_batch("UPDATE session SET boot = 'another'").expect("an update");
    assert_eq!(coord.read().await.expect("to read").active, []);
    member.until("expired", |event| matches!(event, CoordEvent::Expired).then_some(())).await;
}

/// A registration that cannot be read is nobody's, and ends nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_peer_is_passed_over() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let (_first, unreadable) = common::join(&coord, 1, LONG).await;
    let (mut member, own) = common::join(&coord, 2, Millis(3000)).await;
    member.until_confirmed().await;
    let other = rusqlite::Connection::open(backend.path()).expect("the database");
    other.busy_timeout(common::LIMIT).expect("a limit");
    for peer in ["x'7b7d'", "'{\"id\": 7}'", "CAST(x'ff' AS TEXT)"] {
        let sql = format!("UPDATE session SET peer = CAST({peer} AS TEXT) WHERE sequence = ?1");
        other.execute(&sql, [unreadable]).expect("an update");
        let changed = clock::now();
        let (_new, new) = common::join(&coord, 3, LONG).await;
        let active = coord.read().await.expect("to read").active;
        let active = sequences(&active);
        assert!(active.contains(&own) && active.contains(&new), "{active:?}");
        assert!(!active.contains(&unreadable), "{active:?}");
        // It lives on beyond the timeout that it had when that came.
        let beyond = changed + Millis(3500);
        let is_beyond = |event: &CoordEvent| match event {
            CoordEvent::Confirmed { sent } => (*sent > beyond).then_some(()),
            CoordEvent::Expired => panic!("expired"),
            _ => None,
        };
        member.until("a heartbeat", is_beyond).await;
    }
}

/// While somebody keeps the write lock, members say so; those who only read go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_write_lock_is_reported() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let (mut member, own) = common::join(&coord, 1, Millis(9000)).await;
    member.until_confirmed().await;
    let holder = rusqlite::Connection::open(backend.path()).expect("the database");
    holder.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let reason = member
        .until("unreachable", |event| match event {
            CoordEvent::Unreachable(reason) => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(reason.contains("write lock"), "{reason}");
    let active = coord.read().await.expect("to read").active;
    assert_eq!(sequences(&active), [own]);
    holder.execute_batch("ROLLBACK").expect("the lock");
    member.until_confirmed().await;
}

/// A process may die between its commit and telling others. A heartbeat still does not confirm
/// more than was delivered: it reads in its own transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_announced_comes_before_the_confirmation() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    let (mut member, _) = common::join(&coord, 1, Millis(3000)).await;
    let silent = rusqlite::Connection::open(backend.path()).expect("the database");
    silent.busy_timeout(common::LIMIT).expect("a limit");
    for version in 1..=3_i64 {
        member.until_confirmed().await;
        silent
            .execute(
                "INSERT INTO history VALUES ('1.example', ?1, '2020-01-01T00:00:00Z', 1, '{}')",
                [version],
            )
            .expect("to insert");
        // The clock counts milliseconds: what is sent in this one may be sent before the change.
        let committed = clock::now() + Millis(1);
        let mut known = None;
        member
            .until("a confirmation after the change", |event| match event {
                CoordEvent::State(state) => {
                    known = state.as_ref().map(|state| state.version.0);
                    None
                }
                CoordEvent::Confirmed { sent } => (*sent >= committed).then_some(()),
                _ => None,
            })
            .await;
        assert_eq!(known, Some(version));
    }
}

/// A backup that was put in the place of the file is what counts from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_file_is_opened_anew() {
    let (backend, other) = (Sqlite::new(), Sqlite::new());
    let (coord, instead) = (backend.outside(), other.outside());
    let mut watcher = watch(&coord).await;
    let (mut member, _) = common::join(&coord, 1, LONG).await;
    let version = put(&coord, None, 1).await;
    watcher.until_version(version).await;
    let second = put(&instead, None, 7).await;
    let second = put(&instead, Some(second), 8).await;
    drop(instead);
    let store = |backend: &Sqlite| backend.directory.path().join("store");
    std::fs::rename(store(&backend), backend.directory.path().join("old")).expect("to rename");
    std::fs::rename(store(&other), store(&backend)).expect("to rename");
    watcher.until_version(second).await;
    member.until("expired", |event| matches!(event, CoordEvent::Expired).then_some(())).await;
    // It is watched, too.
    let third = put(&coord, Some(second), 9).await;
    watcher.until_version(third).await;
}

/// A file that vanished is not made anew: that would be a shard without a memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vanished_file_is_not_made_anew() {
    let backend = Sqlite::new();
    let coord = backend.outside();
    put(&coord, None, 1).await;
    let mut watcher = watch(&coord).await;
    std::fs::rename(backend.path(), backend.directory.path().join("aside")).expect("to rename");
    watcher.until_unreachable().await;
    assert!(coord.read().await.is_err());
    assert!(!backend.path().exists());
}

#[test]
fn the_file_is_for_its_owner_only() {
    let backend = Sqlite::new();
    let _coord = open(&backend.path());
    for name in ["shard.db", "shard.db-wal", "shard.db-shm"] {
        let path = backend.path().with_file_name(name);
        let mode = std::fs::metadata(&path).expect("the file").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
    }
    let directory = std::fs::read_dir(backend.directory.path().join("store"));
    assert_eq!(directory.expect("the directory").count(), 3, "no draft is left");
}

/// What stands at the path is refused, for this reason, and left as it is.
fn check_refused(content: impl FnOnce(&Path), reason: &str) {
    let backend = Sqlite::new();
    let path = backend.path();
    content(&path);
    let before = std::fs::read(&path).ok();
    let error = SqliteCoord::open(&path, "1.example", CALL).expect_err(reason);
    let message = format!("{error}: {}", error.cause);
    assert!(message.contains(reason), "{message:?} without {reason:?}");
    assert!(message.contains("shard.db"), "{message}");
    assert_eq!(std::fs::read(&path).ok(), before, "{reason}");
}

#[test]
fn a_file_that_is_not_ours_is_refused() {
    let execute = |path: &Path, sql: &str| {
        let other = rusqlite::Connection::open(path).expect("a database");
        other.execute_batch(sql).expect("to execute");
    };
    let write = |path: &Path, content: &[u8]| std::fs::write(path, content).expect("to write");
    check_refused(|path| write(path, &[b'x'; 4096]), "no SQLite database");
    check_refused(|path| write(path, b"short"), "no SQLite database");
    check_refused(|path| write(path, b""), "is empty");
    check_refused(|path| execute(path, "CREATE TABLE song (name TEXT)"), "of something else");
    check_refused(
        |path| {
            drop(open(path));
            execute(path, "PRAGMA user_version = 2");
        },
        "schema 2",
    );
    check_refused(|path| std::fs::create_dir(path).expect("a directory"), "SQLite gave an error");
    check_refused(
        |path| {
            std::fs::remove_dir(path.parent().expect("a directory")).expect("to remove it");
        },
        "cannot create",
    );
}

/// The two that start at the same time get the same database.
#[test]
fn a_new_file_is_made_once() {
    for _ in 0..5 {
        let backend = Sqlite::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| open(&backend.path()));
            }
        });
        let directory = std::fs::read_dir(backend.directory.path().join("store"));
        let names: Vec<_> = directory
            .expect("the directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}
