//! One peer's machine, and what is told to it, for tests of single peers.

#![allow(dead_code, reason = "each test binary uses a part")]

use cluster::{
    Action, Applied, ClusterState, Counts, Database, DeposedPolicy, Event, Gate, Generation, Lsn,
    Machine, MachineConfig, Millis, Monotonic, Now, PeerIdent, PgCommand, PgConfig, PgOutcome,
    PutOutcome, StateSeen, Version,
};

pub const LEASE: u64 = 3_000;

pub fn peer(number: usize) -> PeerIdent {
    PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}"))
}

pub fn state(generation: u64, order: [usize; 3]) -> ClusterState {
    let [primary, sync, last] = order.map(peer);
    ClusterState {
        generation: Generation(generation),
        primary,
        sync: Some(sync),
        asyncs: vec![last],
        deposed: Vec::new(),
        init_wal: Lsn::new(100),
        init_timeline: Some(1),
        primary_timeline: None,
        freeze: None,
        one_node_write_mode: None,
        promote: None,
        extra: serde_json::Map::new(),
    }
}

/// A primary's configuration of this generation with peer 2 as sync.
pub fn primary(generation: u64, counts: Counts) -> PgConfig {
    let downstream = vec![peer(2).id];
    let generation = Generation(generation);
    let (timeline, init_wal) = (None, Lsn::new(100));
    PgConfig::Primary { generation, timeline, init_wal, counts, gate: Gate::Open, downstream }
}

/// Peer 1, after its sitter has looked at its host.
pub struct One {
    pub machine: Machine,
    pub now: u64,
}

impl One {
    pub fn new(database: Database, running: Option<PgConfig>) -> Self {
        let mut one = One::starting();
        let applied = running.map(|config| Applied { config, position: Lsn::new(100) });
        one.tell(Event::Inspected { database, running: applied.is_some(), applied });
        one
    }

    /// Peer 1, before its sitter has looked.
    pub fn starting() -> Self {
        let (machine, actions) = Machine::new(MachineConfig {
            me: peer(1),
            one_node_write_mode: false,
            deposed: DeposedPolicy::Auto,
            lease: Millis(LEASE),
            retry_min: Millis(500),
            retry_max: Millis(2_000),
            give_up: Millis(10_000),
        });
        assert_eq!(actions, [Action::Inspect]);
        One { machine, now: 1_000 }
    }

    pub fn tell(&mut self, event: Event) -> Vec<Action> {
        let wall = "2020-01-01T00:00:00Z".parse().expect("a time");
        self.machine.handle(Now { monotonic: Monotonic(self.now), wall }, event)
    }

    /// A session in which this is read.
    pub fn join(&mut self, seen: Option<StateSeen>, active: Vec<PeerIdent>) -> Vec<Action> {
        let sent = Monotonic(self.now);
        let events =
            [Event::Joined, Event::State(seen), Event::Active(active), Event::Confirmed { sent }];
        events.into_iter().flat_map(|event| self.tell(event)).collect()
    }

    pub fn rule(&self) -> &'static str {
        self.machine.reason().rule()
    }
}

pub fn seen(version: i64, state: ClusterState) -> Option<StateSeen> {
    Some(StateSeen { version: Version(version), state: Ok(state) })
}

pub fn all() -> Vec<PeerIdent> {
    (1..=3).map(peer).collect()
}

pub fn is_command(action: &Action) -> bool {
    matches!(action, Action::Postgres(_) | Action::Fence | Action::Put { .. } | Action::Leave)
}

/// Whether peer 2 is allowed to acknowledge again.
pub fn counts_again(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Postgres(PgCommand::Apply(PgConfig::Primary { counts, .. })) => {
            *counts == Counts::Sync(peer(2).id)
        }
        _ => false,
    })
}

/// Peer 1, primary, whose sync was gone: it has declared generation 2 from 200, and the answer is lost.
pub fn declared_and_not_answered() -> One {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    let position = Lsn::new(200);
    let actions = one.tell(Event::PgDone(PgOutcome::Applied { position, timeline: Some(1) }));
    assert!(actions.iter().any(|action| matches!(action, Action::Put { .. })), "{actions:?}");
    one.tell(Event::PutDone(PutOutcome::Unknown("no answer".to_owned())));
    one.now += 1_000;
    one
}
