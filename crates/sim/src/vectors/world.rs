//! The world of a vector: one machine, virtual time, and the recorder's model of PostgreSQL.

use super::{Input, peer, short_state, whole_state};
use cluster::{
    Action, ClusterState, Counts, Database, DeposedPolicy, Event, Lsn, Machine, MachineConfig,
    Millis, Monotonic, Now, PeerIdent, PgCommand, PgConfig, PgOutcome, PutOutcome, Reason, Role,
    StateSeen, Version,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How long a vector's world runs at most after the inputs of a step, in ms.
const SETTLE: u64 = 60_000;
/// How much WAL the modelled PostgreSQL writes when it is configured as primary, in bytes.
const STRIDE: u64 = 10;

/// What the modelled PostgreSQL was configured to be: role, upstream, downstream.
type Triple = (String, Option<String>, Option<String>);

struct Pg {
    online: bool,
    config: Option<Triple>,
    wal: Lsn,
    waiting_for: Option<Lsn>,
}

pub(super) struct World {
    now: u64,
    /// Completions to come, by time and order.
    due: BTreeMap<(u64, u64), Completion>,
    scheduled: u64,
    wake: Option<u64>,
    machine: Option<Machine>,
    one_node_write_mode: bool,
    active: Vec<PeerIdent>,
    state: Option<(Version, ClusterState)>,
    pg: Pg,
}

enum Completion {
    Event(Event),
    Put(Box<ClusterState>),
    /// A configuration comes into force; the state is the one when it began.
    Configured(PgConfig, Option<Box<ClusterState>>),
    Stopped(Event),
}

impl World {
    pub(super) fn new(one_node_write_mode: bool) -> Self {
        World {
            now: 0,
            due: BTreeMap::new(),
            scheduled: 0,
            wake: None,
            machine: None,
            one_node_write_mode,
            active: Vec::new(),
            state: None,
            pg: Pg { online: false, config: None, wal: Lsn::ZERO, waiting_for: None },
        }
    }

    pub(super) fn apply(&mut self, input: &Input) -> Result<(), String> {
        if let Some(active) = &input.active {
            self.active = active.iter().map(|name| peer(name)).collect();
            if !input.start {
                self.tell(Event::Active(self.active.clone()));
            }
        }
        if let Some(state) = &input.cluster_state {
            self.store(whole_state(state)?);
            self.tell(Event::State(self.seen()));
        }
        if input.caught_up {
            let target = self.pg.waiting_for.ok_or("caughtUp, but nothing is waited for")?;
            self.pg.wal = Lsn::new(target.byte() + STRIDE);
            self.pg.waiting_for = None;
            self.probe();
        }
        if input.start {
            self.start();
        }
        Ok(())
    }

    fn start(&mut self) {
        let config = MachineConfig {
            me: peer("node1"),
            one_node_write_mode: self.one_node_write_mode,
            deposed: DeposedPolicy::Manual,
            // The vectors know no fence: one confirmation lasts for ever.
            lease: Millis(u64::MAX / 2),
            retry_min: Millis(1000),
            retry_max: Millis(1000),
            give_up: Millis(u64::MAX / 2),
        };
        let (machine, actions) = Machine::new(config);
        self.machine = Some(machine);
        self.perform(actions);
    }

    fn store(&mut self, state: ClusterState) -> Version {
        let version = Version(self.state.as_ref().map_or(0, |(version, _)| version.0 + 1));
        self.state = Some((version, state));
        version
    }

    fn seen(&self) -> Option<StateSeen> {
        let (version, state) = self.state.clone()?;
        Some(StateSeen { version, state: Ok(state) })
    }

    /// Hands an event to the machine, if there is one yet, and performs what it wants.
    fn tell(&mut self, event: Event) {
        let now = Now {
            monotonic: Monotonic(self.now),
            wall: "2020-01-01T00:00:00Z".parse().expect("a time"),
        };
        if let Some(machine) = &mut self.machine {
            let actions = machine.handle(now, event);
            self.perform(actions);
        }
    }

    fn probe(&mut self) {
        if self.pg.online {
            let wal = self.pg.wal;
            self.tell(Event::Probed { wal, timeline: None, caught_up: None, sync_answered: None });
        }
    }

    fn schedule(&mut self, delay: u64, completion: Completion) {
        self.due.insert((self.now + delay, self.scheduled), completion);
        self.scheduled += 1;
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Inspect => {
                    let database = self.database();
                    let event = Event::Inspected { database, running: false, applied: None };
                    self.schedule(0, Completion::Event(event));
                }
                Action::Join { .. } => {
                    self.schedule(0, Completion::Event(Event::Joined));
                    self.schedule(0, Completion::Event(Event::State(self.seen())));
                    self.schedule(0, Completion::Event(Event::Active(self.active.clone())));
                    let sent = Monotonic(self.now);
                    self.schedule(0, Completion::Event(Event::Confirmed { sent }));
                }
                Action::Put { state, .. } => self.schedule(100, Completion::Put(state)),
                Action::Read => {
                    let seen = self.seen();
                    self.schedule(0, Completion::Event(Event::ReadDone(Ok(seen))));
                }
                Action::Postgres(command) => self.command(command),
                Action::Fence => {
                    self.schedule(1000, Completion::Stopped(Event::Fenced(Ok(()))));
                }
                Action::WakeAt(at) => self.wake = Some(at.0),
                Action::Leave | Action::CancelPostgres => {
                    unreachable!("no vector makes a peer give up: {action:?}")
                }
            }
        }
    }

    /// A vector's peer finds no database unless the state gives it a place that implies one.
    fn database(&self) -> Database {
        let named = self.state.as_ref().is_some_and(|(_, state)| state.names(&peer("node1").id));
        if named { Database::Established } else { Database::None }
    }

    fn command(&mut self, command: PgCommand) {
        let done = |outcome| Completion::Event(Event::PgDone(outcome));
        match command {
            PgCommand::Prepare => self.schedule(0, done(PgOutcome::Prepared)),
            PgCommand::Seed(_) => self.schedule(0, done(PgOutcome::Copied)),
            PgCommand::Rebuild(..) => unreachable!("deposed peers of vectors stay so"),
            PgCommand::Stop => {
                self.schedule(1000, Completion::Stopped(Event::PgDone(PgOutcome::Stopped)));
            }
            // The recorder's "read the WAL position": no input comes in between.
            PgCommand::Apply(config) if self.pg.online && config.is_quiesced() => {
                let position = self.pg.wal;
                self.tell(Event::PgDone(PgOutcome::Applied { position, timeline: None }));
            }
            PgCommand::Apply(config) => {
                let unchanged = self.pg.online && self.pg.config == triple(&config);
                let state = self.state.as_ref().map(|(_, state)| Box::new(state.clone()));
                let delay = match (unchanged, self.pg.online) {
                    (true, _) => 0,
                    (false, true) => 1000,
                    (false, false) => 2000,
                };
                self.schedule(delay, Completion::Configured(config, state));
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Event(event) => self.tell(event),
            // The recorder let every write of the peer succeed, even over a newer state.
            Completion::Put(state) => {
                let version = self.store(*state);
                self.tell(Event::State(self.seen()));
                self.tell(Event::PutDone(PutOutcome::Committed(version)));
            }
            Completion::Configured(config, state) => {
                self.configure(&config, state.as_deref());
                let position = self.pg.wal;
                self.tell(Event::PgDone(PgOutcome::Applied { position, timeline: None }));
            }
            Completion::Stopped(event) => {
                self.pg.online = false;
                self.pg.waiting_for = None;
                self.tell(event);
            }
        }
    }

    /// The recorder's rule of WAL: configured as primary it grows, configured as sync it is waited
    /// for; both by the state as it was when the configuring began.
    fn configure(&mut self, config: &PgConfig, state: Option<&ClusterState>) {
        let new = triple(config);
        let changed = !self.pg.online || self.pg.config != new;
        self.pg.online = true;
        if new.is_some() {
            self.pg.config = new;
        }
        if !changed {
            return;
        }
        self.pg.waiting_for = None;
        let me = peer("node1").id;
        if state.is_some_and(|state| state.primary.id == me) {
            self.pg.wal = Lsn::new(self.pg.wal.byte() + STRIDE);
        } else if let Some(state) = state {
            let sync = state.sync.as_ref().is_some_and(|sync| sync.id == me);
            self.pg.waiting_for = sync.then_some(state.init_wal);
        }
    }

    /// Runs until nothing is in flight and nothing more is due, or for the recorder's 60 seconds.
    pub(super) fn settle(&mut self) {
        let end = self.now + SETTLE;
        loop {
            let due = self.due.first_key_value().map(|((at, _), _)| *at);
            match (due, self.wake) {
                (Some(at), wake) if wake.is_none_or(|wake| at <= wake) && at <= end => {
                    self.now = at;
                    let (_, completion) = self.due.pop_first().expect("just seen");
                    self.complete(completion);
                }
                (_, Some(wake)) if wake <= end => {
                    self.now = self.now.max(wake);
                    self.wake = None;
                    self.tell(Event::Wake);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    pub(super) fn reason(&self) -> String {
        let reason = |machine: &Machine| -> Reason { machine.snapshot().reason };
        self.machine.as_ref().map_or("not started".to_owned(), |m| reason(m).to_string())
    }

    pub(super) fn observe(&self) -> Value {
        let role = self.machine.as_ref().map_or(Role::Unknown, |machine| machine.snapshot().role);
        let config = match (role, &self.pg.config) {
            (Role::Unknown, _) => Value::Null,
            (_, Some((role, upstream, downstream))) if self.pg.online => {
                json!({ "role": role, "upstream": upstream, "downstream": downstream })
            }
            _ => json!({ "role": "none", "upstream": null, "downstream": null }),
        };
        json!({
            "role": role,
            "pg": { "online": self.pg.online, "config": config },
            "clusterState": self.state.as_ref().map(|(_, state)| short_state(state)),
            "wal": self.pg.wal,
        })
    }
}

/// What the recorder saw of a configuration; `None` for a quiesced one, which it did not know.
fn triple(config: &PgConfig) -> Option<Triple> {
    let role = config.role_label().to_owned();
    match config {
        PgConfig::Primary { counts: Counts::Nobody, .. } => None,
        PgConfig::Primary { counts: Counts::Alone, .. } => Some((role, None, None)),
        PgConfig::Primary { counts: Counts::Sync(sync), .. } => {
            Some((role, None, Some(sync.to_string())))
        }
        PgConfig::Standby { upstream, .. } => {
            let upstream = upstream.as_ref()?;
            Some((role, Some(upstream.id.to_string()), None))
        }
    }
}
