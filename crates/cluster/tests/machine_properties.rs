//! Whatever happens to a machine, in whatever order: it never panics, never has two operations of
//! one resource in flight, and never asks PostgreSQL for what the rules forbid.

use cluster::{
    Action, ApplyError, ClusterState, Counts, Database, DeposedPolicy, Event, Generation, Lsn,
    Machine, MachineConfig, Millis, Monotonic, Now, PeerIdent, PgCommand, PgConfig, PgOutcome,
    PutOutcome, Role, StateSeen, Version, Way, check_successor,
};
use proptest::{collection::vec, prelude::*};

const LEASE: Millis = Millis(3000);

fn peer(number: usize) -> PeerIdent {
    PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}"))
}

/// A driver that answers as it likes, but as the contract says.
struct World {
    machine: Machine,
    now: u64,
    proof: Option<u64>,
    version: i64,
    stored: Option<ClusterState>,
    in_session: bool,
    joining: bool,
    leaving: bool,
    inspecting: bool,
    put: Option<(Option<Version>, ClusterState)>,
    reading: bool,
    postgres: Option<PgCommand>,
    fencing: bool,
    wal: u64,
}

impl World {
    fn new(deposed: DeposedPolicy) -> Self {
        let config = MachineConfig {
            me: peer(1),
            one_node_write_mode: false,
            deposed,
            lease: LEASE,
            retry_min: Millis(500),
            retry_max: Millis(10_000),
            give_up: Millis(20_000),
        };
        let (machine, actions) = Machine::new(config);
        let mut world = World {
            machine,
            now: 1000,
            proof: None,
            version: 0,
            stored: None,
            in_session: false,
            joining: false,
            leaving: false,
            inspecting: false,
            put: None,
            reading: false,
            postgres: None,
            fencing: false,
            wal: 100,
        };
        world.take(actions);
        world
    }

    fn tell(&mut self, event: Event) {
        let wall = "2020-01-01T00:00:00Z".parse().expect("a time");
        let now = Now { monotonic: Monotonic(self.now), wall };
        let again = self.machine.clone().handle(now, event.clone());
        let actions = self.machine.handle(now, event);
        assert_eq!(actions, again, "the same event at the same time gives the same actions");
        self.take(actions);
    }

    /// Every action starts an operation whose resource is free.
    fn take(&mut self, actions: Vec<Action>) {
        let start = |flag: &mut bool| assert!(!std::mem::replace(flag, true), "in flight twice");
        for action in actions {
            match action {
                Action::Inspect => start(&mut self.inspecting),
                Action::Join { .. } => {
                    assert!(!self.in_session, "joins only without a session");
                    start(&mut self.joining);
                }
                Action::Leave => start(&mut self.leaving),
                Action::Read => start(&mut self.reading),
                Action::Fence => start(&mut self.fencing),
                Action::Put { expected, state } => {
                    assert!(self.put.is_none() && !self.reading, "one write at a time");
                    self.check_put(&state);
                    self.put = Some((expected, *state));
                }
                Action::Postgres(command) => {
                    assert!(self.postgres.is_none(), "one command to PostgreSQL at a time");
                    assert!(!self.fencing, "nothing is started while it is being fenced");
                    self.check_command(&command);
                    self.postgres = Some(command);
                }
                Action::CancelPostgres => assert!(
                    matches!(self.postgres, Some(PgCommand::Seed(_) | PgCommand::Rebuild(..))),
                    "only copies are given up: {:?}",
                    self.postgres
                ),
                Action::WakeAt(at) => assert!(at.0 > self.now, "wakes only later"),
            }
        }
    }

    fn check_put(&self, next: &ClusterState) {
        let known = self.machine.state();
        let verdict = check_successor(known, next, &peer(1).id);
        assert!(verdict.is_ok(), "{verdict:?} after {known:?}");
        if known.is_some_and(|known| known.generation != next.generation) {
            let applied = self.machine.snapshot().applied;
            let quiesced = applied.as_ref().is_some_and(|applied| applied.config.is_quiesced());
            assert!(quiesced, "declares only when quiesced: {applied:?}");
            assert_eq!(applied.map(|applied| applied.position), Some(next.init_wal));
        }
    }

    fn check_command(&self, command: &PgCommand) {
        // Rule X5: whoever is known to be primary or sync is not rebuilt because an operator asks.
        if matches!(command, PgCommand::Rebuild(_, Way::Copied | Way::Whole)) {
            let role = self.machine.role();
            assert!(matches!(role, Role::Async | Role::Deposed), "{command:?} as {role}");
        }
        let PgCommand::Apply(config) = command else { return };
        if let PgConfig::Primary { counts, .. } = config {
            assert_ne!(*counts, Counts::Alone, "never alone outside one-node-write mode");
            let fresh = self.proof.is_some_and(|proof| self.now < proof + LEASE.0);
            assert!(fresh, "a primary is started only with a proof");
        }
        let declaring = self.put.as_ref().is_some_and(|(expected, state)| {
            let known = self.machine.state();
            known.is_some_and(|known| known.generation != state.generation)
                && *expected == self.known_version()
        });
        assert!(
            !declaring || config.is_quiesced(),
            "holds still while a declaration may be stored"
        );
    }

    fn known_version(&self) -> Option<Version> {
        (self.machine.state() == self.stored.as_ref()).then_some(Version(self.version))
    }

    fn seen(&self) -> Option<StateSeen> {
        let version = Version(self.version);
        self.stored.clone().map(|state| StateSeen { version, state: Ok(state) })
    }

    fn store(&mut self, state: ClusterState) -> Version {
        self.version += 1;
        self.stored = Some(state);
        Version(self.version)
    }

    fn step(&mut self, (what, how): (u8, u8)) {
        self.now += u64::from(how) * 7;
        match what % 16 {
            0 if std::mem::take(&mut self.inspecting) => self.inspected(how),
            1 if std::mem::take(&mut self.joining) => {
                if how < 40 {
                    return self.tell(Event::JoinFailed("no".to_owned()));
                }
                self.in_session = true;
                self.tell(Event::Joined);
                self.tell(Event::State(self.seen()));
                self.tell(Event::Active(active(how)));
                self.confirm();
            }
            2 if self.in_session => self.confirm(),
            3 if self.in_session && how < 30 => {
                self.in_session = false;
                self.leaving = false;
                self.tell(Event::Expired);
            }
            4 if std::mem::take(&mut self.leaving) => {
                self.in_session = false;
                self.tell(Event::Left);
            }
            5 if self.in_session => self.tell(Event::Active(active(how))),
            6 if self.in_session => self.somebody_writes(how),
            7 | 8 => self.end_put(how),
            9 if std::mem::take(&mut self.reading) => {
                let result = if how < 60 { Err("no".to_owned()) } else { Ok(self.seen()) };
                self.tell(Event::ReadDone(result));
            }
            10..=12 => self.end_command(how),
            13 if std::mem::take(&mut self.fencing) => {
                if self.postgres.take().is_some() {
                    let problem = "fenced".to_owned();
                    let (running, database) = (false, None);
                    self.tell(Event::PgFailed(ApplyError { problem, running, database }));
                }
                let result = if how < 20 { Err("it lives".to_owned()) } else { Ok(()) };
                self.tell(Event::Fenced(result));
            }
            14 if self.machine.snapshot().running => self.probed(how),
            15 if how > 235 => self.tell(Event::RebuildAsked { full: how.is_multiple_of(2) }),
            15 if how < 20 && self.machine.snapshot().running && self.postgres.is_none() => {
                self.tell(Event::PgExited("gone".to_owned()));
            }
            15 if how < 30 => self.tell(Event::DiskHangs("no write comes back".to_owned())),
            15 if how < 60 => self.tell(Event::DiskAnswers),
            15 if how < 80 => self.tell(Event::PgMissing("not there".to_owned())),
            _ => self.tell(Event::Wake),
        }
    }

    fn confirm(&mut self) {
        self.proof = Some(self.now);
        self.tell(Event::Confirmed { sent: Monotonic(self.now) });
    }

    fn inspected(&mut self, how: u8) {
        if how < 30 {
            return self.tell(Event::InspectFailed("no".to_owned()));
        }
        let database = match how % 3 {
            0 => Database::None,
            1 => Database::Prepared,
            _ => Database::Established,
        };
        let running = how > 200;
        if running {
            self.proof = Some(self.now);
        }
        self.tell(Event::Inspected { database, running, applied: None });
    }

    fn probed(&mut self, how: u8) {
        let applied = self.machine.snapshot().applied.map(|applied| applied.config);
        let sync = match applied {
            Some(PgConfig::Primary { counts: Counts::Sync(sync), .. }) => Some(sync),
            _ => None,
        };
        let sync_answered = sync.as_ref().map(|_| {
            self.proof = self.proof.max(Some(self.now));
            Monotonic(self.now)
        });
        let wal = self.write_wal(how);
        let caught_up = sync.filter(|_| how > 100);
        self.tell(Event::Probed { wal, timeline: Some(1), caught_up, sync_answered });
    }

    fn write_wal(&mut self, bytes: u8) -> Lsn {
        self.wal += u64::from(bytes);
        Lsn::new(self.wal)
    }

    fn end_put(&mut self, how: u8) {
        let Some((expected, state)) = self.put.take() else { return };
        let stored = self.stored.as_ref().map(|_| Version(self.version));
        let outcome = match how {
            // The answer is lost; what was to be stored may be stored all the same.
            0..60 => {
                if how < 30 && stored == expected {
                    self.store(state);
                }
                PutOutcome::Unknown("lost".to_owned())
            }
            60..90 => PutOutcome::Refused("no permission".to_owned()),
            _ if stored == expected => PutOutcome::Committed(self.store(state)),
            _ => PutOutcome::Conflict,
        };
        self.tell(Event::PutDone(outcome));
        if self.in_session {
            self.tell(Event::State(self.seen()));
        }
    }

    fn end_command(&mut self, how: u8) {
        let Some(command) = self.postgres.take() else { return };
        if how < 50 {
            let (running, database) = (how.is_multiple_of(2), None);
            let problem = "no".to_owned();
            return self.tell(Event::PgFailed(ApplyError { problem, running, database }));
        }
        let outcome = match command {
            PgCommand::Prepare => PgOutcome::Prepared,
            PgCommand::Apply(_) => {
                let position = self.write_wal(how);
                PgOutcome::Applied { position, timeline: Some(1) }
            }
            PgCommand::Seed(_) | PgCommand::Rebuild(..) => PgOutcome::Copied,
            PgCommand::Stop => PgOutcome::Stopped,
        };
        self.tell(Event::PgDone(outcome));
    }

    fn somebody_writes(&mut self, how: u8) {
        let order: [[usize; 3]; 4] = [[1, 2, 3], [2, 1, 3], [2, 3, 1], [3, 2, 4]];
        let [primary, sync, last] = order[usize::from(how % 4)];
        let generation = self.stored.as_ref().map_or(1, |state| state.generation.0 + 1);
        let state = ClusterState {
            generation: Generation(generation),
            primary: peer(primary),
            sync: Some(peer(sync)),
            asyncs: vec![peer(last)],
            deposed: if last == 4 { vec![peer(1)] } else { Vec::new() },
            init_wal: Lsn::new(100),
            init_timeline: Some(1),
            primary_timeline: None,
            freeze: None,
            one_node_write_mode: None,
            promote: None,
            extra: serde_json::Map::new(),
        };
        self.store(state);
        self.tell(Event::State(self.seen()));
    }
}

/// Some of four peers, this one always among them.
fn active(how: u8) -> Vec<PeerIdent> {
    (1..=4).filter(|number| *number == 1 || how & (1 << number) != 0).map(peer).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// Above all that there is one operation in flight per resource (rule M3), and that no primary is
    /// brought up without a proof (rule F1).
    #[test]
    fn no_order_of_events_breaks_a_rule(
        steps in vec(any::<(u8, u8)>(), 0..160),
        manual in any::<bool>(),
    ) {
        let policy = if manual { DeposedPolicy::Manual } else { DeposedPolicy::Auto };
        let mut world = World::new(policy);
        for step in steps {
            world.step(step);
        }
    }
}
