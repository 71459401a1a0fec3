//! When a peer gives up for the others (rule H2), and that it comes back.

mod one;

use cluster::{
    Action, ApplyError, Database, DeposedPolicy, Event, Lsn, Machine, MachineConfig, Millis,
    Monotonic, Now, PgCommand, PgOutcome, PutOutcome, Version,
};
use one::{LEASE, One, all, peer, seen, state};

const GIVE_UP: u64 = 10_000;

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
        let mut actions = self.at(now, Event::Joined);
        actions.extend(self.at(now, Event::State(seen(1, state(1, [1, 2, 3])))));
        actions.extend(self.at(now, Event::Active(all())));
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

/// What is to start PostgreSQL waits for a disk that hangs: nothing fails, and it is given up all the same. The peer
/// comes back, and tries anew, when the disk does.
#[test]
fn who_cannot_start_on_a_disk_that_hangs_is_given_up() {
    let (mut sync, actions) = Sync::new(Database::Established);
    assert!(applies(&actions), "{actions:?}");
    sync.at(20_000, Event::DiskHangs("no write comes back".to_owned()));
    let ending = 20_000 + GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(ending - 1, Event::Wake)), (false, false));
    assert_eq!(leaves_or_stops(&sync.at(ending, Event::Wake)), (false, false), "it is in flight");
    let left = ending + GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(left, Event::Wake)), (true, false));
    sync.at(left, Event::Left);
    let later = left + 10 * GIVE_UP;
    assert!(!sync.at(later, Event::Wake).iter().any(is_join), "it hangs still");
    assert!(!sync.at(later, Event::DiskAnswers).iter().any(is_join), "the command does not answer");
    let actions = sync.fail(later + 1);
    assert!(actions.iter().any(is_join), "{actions:?}");
    let actions = sync.join(later + 2 * GIVE_UP);
    assert!(!actions.contains(&Action::Leave), "{actions:?}");
    assert!(applies(&actions), "it tries anew: {actions:?}");
}

/// A disk that was slow once is not blamed for what comes later.
#[test]
fn a_disk_that_answers_again_is_no_failure() {
    let (mut sync, _) = Sync::new(Database::Established);
    sync.at(20_000, Event::DiskHangs("no write comes back".to_owned()));
    sync.at(19_999 + GIVE_UP, Event::DiskAnswers);
    let actions = sync.at(20_000 + 3 * GIVE_UP, Event::Wake);
    assert_eq!(leaves_or_stops(&actions), (false, false), "{actions:?}");
    let actions = sync.done(20_001 + 3 * GIVE_UP, applied());
    assert_eq!(leaves_or_stops(&actions), (false, false), "{actions:?}");
}

/// To stop it because it keeps failing may hang, too.
#[test]
fn a_failing_server_that_does_not_end_is_given_up() {
    let (mut sync, _) = Sync::new(Database::Established);
    let fail = |sync: &mut Sync, now| {
        let problem = "it does not come up".to_owned();
        sync.at(now, Event::PgFailed(ApplyError { problem, running: true, database: None }))
    };
    fail(&mut sync, 1000);
    assert!(applies(&sync.at(2000, Event::Wake)), "it is tried again");
    let stopping = 1000 + GIVE_UP;
    assert_eq!(leaves_or_stops(&fail(&mut sync, stopping)), (false, true));
    let left = stopping + GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(left - 1, Event::Wake)), (false, false));
    assert_eq!(leaves_or_stops(&sync.at(left, Event::Wake)), (true, false));
}

/// A server that cannot be stopped is told so again and again, but not without a pause.
#[test]
fn a_stop_that_fails_is_tried_again_later() {
    let (mut sync, _) = Sync::new(Database::Established);
    sync.done(1000, applied());
    sync.at(20_000, Event::ProbeFailed("no answer".to_owned()));
    let stopping = 20_000 + GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(stopping, Event::Wake)), (false, true));
    let problem = "input/output error".to_owned();
    let failed = Event::PgFailed(ApplyError { problem, running: true, database: None });
    let actions = sync.at(stopping + 10, failed);
    assert_eq!(leaves_or_stops(&actions), (false, false), "{actions:?}");
    let again = Monotonic(stopping + 510);
    assert!(actions.contains(&Action::WakeAt(again)), "{actions:?}");
    assert_eq!(leaves_or_stops(&sync.at(again.0, Event::Wake)), (false, true));
}

/// A server that ends again and again soon after its start is started later each time, up to a limit.
#[test]
fn a_crash_loop_is_slowed_down() {
    let (mut sync, _) = Sync::new(Database::Established);
    let mut now = 1000;
    for delay in [500, 1000, 2000, 2000] {
        sync.done(now, applied());
        let actions = sync.at(now + 100, Event::PgExited("signal 11".to_owned()));
        assert!(!applies(&actions), "{actions:?}");
        assert!(actions.contains(&Action::WakeAt(Monotonic(now + 100 + delay))), "{actions:?}");
        assert!(!applies(&sync.at(now + 99 + delay, Event::Wake)), "too soon");
        now += 100 + delay;
        assert!(applies(&sync.at(now, Event::Wake)), "after {delay}");
    }
    // One that has run for a while is started at once.
    sync.done(now, applied());
    let (wal, timeline) = (Lsn::new(100), Some(1));
    let answer = Event::Probed { wal, timeline, caught_up: None, sync_answered: None };
    sync.at(now + 15_000, answer);
    let actions = sync.at(now + 20_000, Event::PgExited("signal 11".to_owned()));
    assert!(applies(&actions), "{actions:?}");
}

/// A session that was given up for a server that did not answer says nothing of the next one.
#[test]
fn who_gave_up_a_hung_server_tries_anew() {
    let (mut sync, _) = Sync::new(Database::Established);
    sync.done(1000, applied());
    sync.at(20_000, Event::ProbeFailed("no answer".to_owned()));
    sync.at(20_000 + GIVE_UP, Event::Wake);
    let left = 20_000 + 2 * GIVE_UP;
    assert_eq!(leaves_or_stops(&sync.at(left, Event::Wake)), (true, false));
    sync.at(left, Event::Left);
    let back = left + 2 * GIVE_UP;
    assert!(sync.done(back, PgOutcome::Stopped).iter().any(is_join), "the disk is back");
    let actions = sync.join(back + 1);
    assert!(!actions.contains(&Action::Leave), "{actions:?}");
    assert!(applies(&actions), "it tries anew: {actions:?}");
}

/// A primary that is being started on a disk that hangs is not fenced for that, as nothing of it runs: to leave is what
/// helps. Later, when it has lost its session, it is, and with pauses, for the command does not end.
#[test]
fn what_waits_for_a_disk_that_hangs_is_fenced_by_the_lease() {
    let mut one = One::new(Database::Established, None);
    let mut actions = one.join(seen(1, state(1, [1, 2, 3])), all());
    if actions.iter().any(|action| matches!(action, Action::Put { .. })) {
        actions.extend(one.tell(Event::PutDone(PutOutcome::Committed(Version(2)))));
    }
    assert!(applies(&actions), "{actions:?}");
    one.tell(Event::DiskHangs("no write comes back".to_owned()));
    let hangs = one.now;
    while one.now < hangs + 2 * GIVE_UP - 1000 {
        one.now += 1000;
        let actions = one.tell(Event::Confirmed { sent: Monotonic(one.now) });
        assert_eq!(leaves_or_stops(&actions), (false, false), "at {}: {actions:?}", one.now);
    }
    one.now += 1000;
    assert_eq!(leaves_or_stops(&one.tell(Event::Wake)), (true, false));
    one.tell(Event::Left);
    one.now += LEASE;
    assert_eq!(leaves_or_stops(&one.tell(Event::Wake)), (false, true), "its lease has ended");
    let actions = one.tell(Event::Fenced(Ok(())));
    assert_eq!(leaves_or_stops(&actions), (false, false), "not without a pause");
    let again = Monotonic(one.now + 2000);
    assert!(actions.contains(&Action::WakeAt(again)), "{actions:?}");
    one.now = again.0;
    assert_eq!(leaves_or_stops(&one.tell(Event::Wake)), (false, true));
}

fn leaves_or_stops(actions: &[Action]) -> (bool, bool) {
    let stops = actions.contains(&Action::Postgres(PgCommand::Stop));
    (actions.contains(&Action::Leave), stops || actions.contains(&Action::Fence))
}
