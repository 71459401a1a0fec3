//! When a peer gives up for the others (rule H2), and that it comes back.

use cluster::{
    Action, ApplyError, ClusterState, Database, DeposedPolicy, Event, Generation, Lsn, Machine,
    MachineConfig, Millis, Monotonic, Now, PeerIdent, PgCommand, PgOutcome, PutOutcome, StateSeen,
    Version,
};

const GIVE_UP: u64 = 10_000;

fn peer(number: usize) -> PeerIdent {
    PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}"))
}

/// Peer 2, sync of a whole shard of three, with its PostgreSQL yet to come.
struct Sync {
    machine: Machine,
}

impl Sync {
    fn new(database: Database) -> (Self, Vec<Action>) {
        let (machine, _) = Machine::new(MachineConfig {
            me: peer(2),
            one_node_write_mode: false,
            deposed: DeposedPolicy::Auto,
            lease: Millis(3000),
            retry_min: Millis(500),
            retry_max: Millis(2000),
            give_up: Millis(GIVE_UP),
        });
        let mut sync = Sync { machine };
        sync.at(0, Event::Inspected { database, running: false, applied: None });
        let actions = sync.join(1);
        (sync, actions)
    }

    fn at(&mut self, now: u64, event: Event) -> Vec<Action> {
        let wall = "2020-01-01T00:00:00Z".parse().expect("a time");
        self.machine.handle(Now { monotonic: Monotonic(now), wall }, event)
    }

    /// A session, and what is read in it.
    fn join(&mut self, now: u64) -> Vec<Action> {
        let state = ClusterState {
            generation: Generation(1),
            primary: peer(1),
            sync: Some(peer(2)),
            asyncs: vec![peer(3)],
            deposed: Vec::new(),
            init_wal: Lsn::ZERO,
            init_timeline: None,
            primary_timeline: None,
            freeze: None,
            one_node_write_mode: None,
            promote: None,
            extra: serde_json::Map::new(),
        };
        let seen = StateSeen { version: Version(1), state: Ok(state) };
        let mut actions = self.at(now, Event::Joined);
        actions.extend(self.at(now, Event::State(Some(seen))));
        actions.extend(self.at(now, Event::Active(vec![peer(1), peer(2), peer(3)])));
        actions.extend(self.at(now, Event::Confirmed { sent: Monotonic(now) }));
        // What a sitter that starts stores first, to settle what the one before it may have declared.
        if actions.iter().any(|action| matches!(action, Action::Put { .. })) {
            let stored = PutOutcome::Committed(Version(2));
            actions.extend(self.at(now, Event::PutDone(stored)));
        }
        actions
    }

    fn fail(&mut self, now: u64) -> Vec<Action> {
        let problem = "refused".to_owned();
        self.at(now, Event::PgFailed(ApplyError { problem, running: false, database: None }))
    }

    fn done(&mut self, now: u64, outcome: PgOutcome) -> Vec<Action> {
        self.at(now, Event::PgDone(outcome))
    }
}

fn applied() -> PgOutcome {
    PgOutcome::Applied { position: Lsn::new(100), timeline: Some(1) }
}

fn is_join(action: &Action) -> bool {
    matches!(action, Action::Join { .. })
}

fn copies(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Postgres(PgCommand::Seed(_))))
}

fn applies(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Postgres(PgCommand::Apply(_))))
}

/// A copy whose first attempt failed may then take as long as it takes, and what it gave is not
/// blamed for it.
#[test]
fn a_long_copy_is_no_failure() {
    let (mut sync, actions) = Sync::new(Database::None);
    assert!(copies(&actions), "{actions:?}");
    sync.fail(1000);
    assert!(copies(&sync.at(2000, Event::Wake)), "it is tried again");
    assert_eq!(sync.at(2000 + 3 * GIVE_UP, Event::Wake), [], "while it copies, nothing else");
    let end = 2000 + 4 * GIVE_UP;
    assert!(applies(&sync.done(end, PgOutcome::Copied)), "the copy is started");
    let actions = sync.done(end + 100, applied());
    assert!(!actions.contains(&Action::Leave), "{actions:?}");
}

/// One that runs is not given up for what failed before it ran.
#[test]
fn what_runs_is_not_given_up() {
    let (mut sync, actions) = Sync::new(Database::Established);
    assert!(applies(&actions), "{actions:?}");
    sync.fail(1000);
    assert!(applies(&sync.at(2000, Event::Wake)), "it is tried again");
    sync.done(3000, applied());
    for now in [1000 + GIVE_UP, 2000 + GIVE_UP] {
        let actions = sync.at(now, Event::Wake);
        let stops = actions.contains(&Action::Postgres(PgCommand::Stop));
        assert!(!stops && !actions.contains(&Action::Leave), "{actions:?}");
    }
}

/// One that keeps failing leaves; after the same time it joins anew, and tries anew.
#[test]
fn who_gave_up_comes_back() {
    let (mut sync, _) = Sync::new(Database::Established);
    sync.fail(1000);
    assert!(applies(&sync.at(2000, Event::Wake)), "it is tried again");
    let given_up = 1000 + GIVE_UP;
    assert!(sync.fail(given_up).contains(&Action::Leave), "it gives up");
    sync.at(given_up, Event::Left);
    let back = given_up + GIVE_UP;
    assert!(sync.at(back, Event::Wake).iter().any(is_join), "it comes back");
    let actions = sync.join(back + 1);
    assert!(!actions.contains(&Action::Leave), "{actions:?}");
    assert!(applies(&actions), "it tries anew: {actions:?}");
}

/// One that runs and does not answer is stopped, and given up, when that has lasted.
#[test]
fn a_hung_server_is_given_up() {
    let (mut sync, actions) = Sync::new(Database::Established);
    assert!(applies(&actions), "{actions:?}");
    sync.done(1000, applied());
    let silent = || Event::ProbeFailed("no answer".to_owned());
    assert_eq!(leaves_or_stops(&sync.at(20_000, silent())), (false, false));
    assert_eq!(leaves_or_stops(&sync.at(19_999 + GIVE_UP, silent())), (false, false));
    let actions = sync.at(20_000 + GIVE_UP, Event::Wake);
    assert_eq!(leaves_or_stops(&actions), (false, true), "{actions:?}");
    let actions = sync.done(21_000 + GIVE_UP, PgOutcome::Stopped);
    assert_eq!(leaves_or_stops(&actions), (true, false), "{actions:?}");
}

/// One that cannot be stopped either, because it waits for a disk that hangs, keeps its peer in its session for as
/// long again; the peer comes back when it has ended.
#[test]
fn a_server_that_does_not_end_is_given_up() {
    let (mut sync, _) = Sync::new(Database::Established);
    sync.done(1000, applied());
    sync.at(20_000, Event::ProbeFailed("no answer".to_owned()));
    let stopping = 20_000 + GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(stopping, Event::Wake)), (false, true));
    let left = stopping + GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(left - 1, Event::Wake)), (false, false));
    assert_eq!(leaves_or_stops(&sync.at(left, Event::Wake)), (true, false));
    sync.at(left, Event::Left);
    let later = left + 10 * GIVE_UP;
    assert!(!sync.at(later, Event::Wake).iter().any(is_join), "it hangs still");
    let actions = sync.done(later, PgOutcome::Stopped);
    assert!(actions.iter().any(is_join), "{actions:?}");
}

fn leaves_or_stops(actions: &[Action]) -> (bool, bool) {
    let stops = actions.contains(&Action::Postgres(PgCommand::Stop));
    (actions.contains(&Action::Leave), stops || actions.contains(&Action::Fence))
}
