//! What a peer does when an operator asks it to rebuild its database (rule X5).

use cluster::{
    Action, Applied, ClusterState, Database, DeposedPolicy, Event, Generation, Lsn, Machine,
    MachineConfig, Millis, Monotonic, Now, PeerIdent, PgCommand, PgConfig, PgOutcome, Reason, Role,
    StandbyRole, StateSeen, Version, Way,
};

fn peer(number: usize) -> PeerIdent {
    PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}"))
}

/// With these as the chain, and these deposed.
fn state(generation: u64, chain: &[usize], deposed: &[usize]) -> ClusterState {
    let peers = |numbers: &[usize]| numbers.iter().map(|number| peer(*number)).collect();
    ClusterState {
        generation: Generation(generation),
        primary: peer(chain[0]),
        sync: Some(peer(chain[1])),
        asyncs: peers(&chain[2..]),
        deposed: peers(deposed),
        init_wal: Lsn::new(100),
        init_timeline: Some(1),
        primary_timeline: None,
        freeze: None,
        one_node_write_mode: None,
        promote: None,
        extra: serde_json::Map::new(),
    }
}

/// Peer 1, whose sitter has a session in which it has read a state.
struct One {
    machine: Machine,
    version: i64,
}

impl One {
    fn new(running: Option<PgConfig>, first: ClusterState) -> Self {
        let (machine, _) = Machine::new(MachineConfig {
            me: peer(1),
            one_node_write_mode: false,
            deposed: DeposedPolicy::Manual,
            lease: Millis(3_000),
            retry_min: Millis(500),
            retry_max: Millis(2_000),
            give_up: Millis(10_000),
        });
        let mut one = One { machine, version: 0 };
        let applied = running.map(|config| Applied { config, position: Lsn::new(100) });
        let database = Database::Established;
        one.tell(Event::Inspected { database, running: applied.is_some(), applied });
        one.tell(Event::Joined);
        one.tell(Event::Active((1..=4).map(peer).collect()));
        one.store(first);
        one.tell(Event::Confirmed { sent: Monotonic(1_000) });
        one
    }

    fn tell(&mut self, event: Event) -> Vec<PgCommand> {
        let wall = "2020-01-01T00:00:00Z".parse().expect("a time");
        let actions = self.machine.handle(Now { monotonic: Monotonic(1_000), wall }, event);
        let command = |action| match action {
            Action::Postgres(command) => Some(command),
            _ => None,
        };
        actions.into_iter().filter_map(command).collect()
    }

    fn store(&mut self, state: ClusterState) -> Vec<PgCommand> {
        self.version += 1;
        let version = Version(self.version);
        self.tell(Event::State(Some(StateSeen { version, state: Ok(state) })))
    }

    fn ask(&mut self, full: bool) -> Vec<PgCommand> {
        self.tell(Event::RebuildAsked { full })
    }

    fn done(&mut self, outcome: PgOutcome) -> Vec<PgCommand> {
        self.tell(Event::PgDone(outcome))
    }

    fn asked(&self) -> bool {
        self.machine.snapshot().rebuild_asked
    }
}

fn following(upstream: usize, downstream: &[usize]) -> PgConfig {
    PgConfig::Standby {
        place: StandbyRole::Async,
        upstream: Some(peer(upstream)),
        downstream: downstream.iter().map(|number| peer(*number).id).collect(),
    }
}

/// An async stops, copies its upstream and nobody else, and follows again.
#[test]
fn an_async_is_copied_from_its_upstream() {
    for (full, way) in [(false, Way::Copied), (true, Way::Whole)] {
        let mut one = One::new(Some(following(2, &[])), state(1, &[3, 2, 1], &[]));
        assert_eq!(one.ask(full), [PgCommand::Stop]);
        assert_eq!(one.machine.reason(), &Reason::Following { upstream: peer(2).id });
        let rebuild = PgCommand::Rebuild(vec![peer(2)], way);
        assert_eq!(one.done(PgOutcome::Stopped), [rebuild]);
        assert_eq!(one.machine.reason(), &Reason::RebuildingAsked { upstream: peer(2).id });
        assert!(one.machine.rebuild_refusal().expect("under way").contains("under way already"));
        assert!(one.asked());
        let again = one.done(PgOutcome::Copied);
        assert_eq!(again, [PgCommand::Apply(following(2, &[]))]);
        assert!(!one.asked());
    }
}

/// A copy that failed and left nothing is not made from somebody else.
#[test]
fn a_copy_that_failed_is_begun_again_from_the_same_peer() {
    let mut one = One::new(Some(following(2, &[])), state(1, &[3, 2, 1], &[]));
    one.ask(true);
    one.done(PgOutcome::Stopped);
    let (problem, running) = ("cut".to_owned(), false);
    let database = Some(Database::None);
    one.tell(Event::PgFailed(cluster::ApplyError { problem, running, database }));
    one.tell(Event::Active([1, 3].map(peer).to_vec()));
    let wall = "2020-01-01T00:00:00Z".parse().expect("a time");
    let later = Now { monotonic: Monotonic(9_000), wall };
    let actions = one.machine.handle(later, Event::Wake);
    let rebuild = PgCommand::Rebuild(vec![peer(2)], Way::Whole);
    assert!(actions.contains(&Action::Postgres(rebuild)), "{actions:?}");
}

/// A deposed peer that is configured to wait for an operator acts by itself until it is back.
#[test]
fn a_deposed_peer_comes_back_once_it_is_asked() {
    for (full, way) in [(false, Way::Cheapest), (true, Way::Whole)] {
        let mut one = One::new(None, state(2, &[2, 3, 4], &[1]));
        assert_eq!(one.machine.reason(), &Reason::DeposedManual);
        assert_eq!(one.ask(full), [PgCommand::Rebuild(vec![peer(2)], way)]);
        assert_eq!(one.machine.reason(), &Reason::Rebuilding);
        one.done(PgOutcome::Copied);
        assert_eq!(one.machine.reason(), &Reason::Rejoining);
        assert!(one.asked(), "until it is back");
        one.store(state(2, &[2, 3, 4], &[]));
        assert!(!one.asked());
        // Deposed once more, it waits again.
        one.store(state(3, &[2, 3, 4], &[1]));
        assert_eq!(one.machine.reason(), &Reason::DeposedManual);
    }
}

/// What a peer in this state says when it is asked, and that it does nothing.
fn refused(mut one: One, expected: &str) {
    let refusal = one.machine.rebuild_refusal().expect("refused");
    assert!(refusal.contains(expected), "{refusal:?}");
    assert_eq!(one.ask(false), []);
    assert!(!one.asked());
}

#[test]
fn whoever_is_needed_refuses() {
    let sync = PgConfig::Standby {
        place: StandbyRole::Sync,
        upstream: Some(peer(2)),
        downstream: vec![peer(3).id],
    };
    refused(One::new(Some(sync), state(1, &[2, 1, 3], &[])), "this peer is the sync");
    refused(One::new(None, state(1, &[2, 3, 4], &[])), "has no place in the shard");
    refused(One::new(Some(following(9, &[])), state(1, &[3, 9, 1], &[])), "is not active");
    let mut lost = One::new(Some(following(2, &[])), state(1, &[3, 2, 1], &[]));
    lost.tell(Event::Expired);
    refused(lost, "the state of the shard is not known now");
    let mut primary = One::new(None, state(1, &[2, 3, 4], &[]));
    primary.store(state(2, &[1, 2, 3], &[]));
    refused(primary, "this peer is the primary");
}

/// An async that has become sync before the copy was begun goes on as it is.
#[test]
fn a_request_ends_with_the_place_that_it_was_made_for() {
    let mut one = One::new(Some(following(2, &[])), state(1, &[3, 2, 1], &[]));
    assert_eq!(one.ask(false), [PgCommand::Stop]);
    one.store(state(2, &[3, 1, 4], &[]));
    assert_eq!(one.machine.role(), Role::Sync);
    assert!(!one.asked());
    let next = one.done(PgOutcome::Stopped);
    assert!(matches!(next.as_slice(), [PgCommand::Apply(_)] | []), "{next:?}");
}
