//! The machine: one peer's memory of what is known and what is in flight. It turns each event into
//! actions and performs none.
//!
//! Contract with the driver:
//! - every [`Action`] that is an operation (`Inspect`, `Join`, `Leave`, `Put`, `Read`, `Postgres`,
//!   `Fence`) is answered by exactly one completion event;
//! - there is at most one operation in flight per resource: the session, the stored state,
//!   PostgreSQL; `Fence` and `CancelPostgres` alone may meet an operation on PostgreSQL in flight,
//!   which then still answers;
//! - `WakeAt` asks for a [`Event::Wake`] at that time; a later `WakeAt` replaces an earlier one;
//! - the order of events is the order in which they became known.
//!
//! The same events at the same times give the same actions: a recorded trace can be replayed.

mod events;
mod fence;
mod reconcile;
mod request;
mod types;

pub use types::{
    Action, ApplyError, Event, MachineConfig, Now, PgCommand, PgOutcome, PutOutcome, Snapshot,
    StateSeen, Version, Way,
};

use crate::{
    Applied, ClusterState, Database, Decision, Generation, Lsn, Monotonic, PeerId, PeerIdent,
    PgTarget, Reason, Role, StateError,
};
use std::collections::BTreeSet;

/// What is known of the stored state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Known {
    Nothing,
    Absent,
    Legal(Version, Box<ClusterState>),
    Illegal(Version, StateError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Session {
    None,
    Joining,
    Joined,
    Leaving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Server {
    Unknown,
    Stopped,
    Running,
}

/// A command to PostgreSQL in flight, with the generation that it was given in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct InFlight {
    command: PgCommand,
    generation: Option<Generation>,
    cancelled: bool,
}

/// A put in flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Put {
    expected: Option<Version>,
    state: ClusterState,
    /// Whether it declares a generation, so that nothing may be acknowledged by the old pair until
    /// it is settled (rule D5).
    declares: bool,
    /// Whether an earlier declaration was unsettled when it was sent, and is so still when it fails.
    settles: bool,
}

/// Where a write stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Writing {
    Nothing,
    Putting(Put),
    /// After a conflict or a lost answer: reading again.
    Reading {
        unsettled: Option<Put>,
    },
    /// A declaration whose answer was lost, and that had not been stored when it was read again. It
    /// may still arrive, as long as the stored version is the one it expects (rule D5).
    Limbo(Put),
}

/// One peer's machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    config: MachineConfig,

    session: Session,
    session_problem: Option<String>,
    /// Whether what was read in this session is known to be no older than the session.
    confirmed: bool,
    join_at: Monotonic,
    join_attempts: u32,
    known: Known,
    active: Option<Vec<PeerIdent>>,
    writing: Writing,
    /// Whether no declaration of a sitter before this one can be stored any more (rule D6).
    settled: bool,
    /// The first version that was ever read here; none in it if nothing was stored then.
    seen: Option<Option<Version>>,
    reading: bool,
    put_at: Monotonic,
    /// Why the write that is wanted was refused, and how often in a row (rule M4).
    refusal: Option<String>,
    refusals: u32,

    inspecting: bool,
    database: Option<Database>,
    server: Server,
    applied: Option<Applied>,
    stale: bool,
    started_at: Monotonic,
    wal: Option<Lsn>,
    timeline: Option<u32>,
    caught_up: Option<PeerId>,
    rebuilt_in: Option<Generation>,
    /// The upstream that the data here has been shown to have diverged from.
    diverged_from: Option<PeerId>,
    /// What an operator wants of it.
    asked: Option<request::Asked>,
    postgres: Option<InFlight>,
    fencing: bool,
    fence_at: Monotonic,
    attempts: u32,
    retry_at: Monotonic,
    /// When a stop that failed may be tried again.
    stop_at: Monotonic,
    failing_since: Option<Monotonic>,
    /// Since when PostgreSQL runs and does not answer.
    unanswered_since: Option<Monotonic>,
    /// Since when the disk of the database is known to take no writes.
    disk_hangs_since: Option<Monotonic>,
    /// Since when it is being stopped so that the session can be given up (rule H2).
    ending_since: Option<Monotonic>,
    failure: Option<String>,

    /// Newest proof that this peer may serve as primary (rule F1).
    proof: Option<Monotonic>,
    fenced: bool,
    /// Whether PostgreSQL serves, or may serve for all that is known, as a primary that another may
    /// supersede. A failed command leaves it so: what it did is not known.
    exposed: bool,

    decision: Decision,
    /// The generation that it was taken in.
    decided_in: Option<Generation>,
}

impl Machine {
    /// A machine that knows nothing, and what it wants first.
    pub fn new(config: MachineConfig) -> (Self, Vec<Action>) {
        let start = Monotonic(0);
        let machine = Machine {
            config,
            session: Session::None,
            session_problem: None,
            confirmed: false,
            join_at: start,
            join_attempts: 0,
            known: Known::Nothing,
            active: None,
            writing: Writing::Nothing,
            settled: false,
            seen: None,
            reading: false,
            put_at: start,
            refusal: None,
            refusals: 0,
            inspecting: true,
            database: None,
            server: Server::Unknown,
            applied: None,
            stale: false,
            started_at: start,
            wal: None,
            timeline: None,
            caught_up: None,
            rebuilt_in: None,
            diverged_from: None,
            asked: None,
            postgres: None,
            fencing: false,
            fence_at: start,
            attempts: 0,
            retry_at: start,
            stop_at: start,
            failing_since: None,
            unanswered_since: None,
            disk_hangs_since: None,
            ending_since: None,
            failure: None,
            proof: None,
            fenced: false,
            exposed: false,
            decision: Decision {
                role: Role::Unknown,
                postgres: PgTarget::Hold,
                write: None,
                reason: Reason::Starting,
                retreat: None,
            },
            decided_in: None,
        };
        (machine, vec![Action::Inspect])
    }

    /// Takes one event and says what is to be done.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(now.monotonic, event, &mut actions);
        self.reconcile(now, &mut actions);
        actions
    }

    /// What it knows, wants and waits for, for people and for tests.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            role: self.decision.role,
            reason: self.decision.reason.clone(),
            generation: self.state().map(|state| state.generation),
            in_session: self.session == Session::Joined,
            database: self.database,
            running: self.server == Server::Running,
            applied: self.applied.clone(),
            wal: self.wal,
            timeline: self.timeline,
            pending: self.pending(),
            fenced: self.fenced,
            rebuild_asked: self.asked.is_some(),
            serve_until: self.serve_until(),
            failure: self.failure.clone().or_else(|| self.refusal.clone()),
        }
    }

    /// The stored cluster state as far as it is known and legal.
    pub fn state(&self) -> Option<&ClusterState> {
        match &self.known {
            Known::Legal(_, state) => Some(state),
            Known::Nothing | Known::Absent | Known::Illegal(..) => None,
        }
    }

    /// Why it does what it does.
    pub fn reason(&self) -> &Reason {
        &self.decision.reason
    }

    /// The generation of the state that its decision was taken from, held or not.
    pub fn decided_in(&self) -> Option<Generation> {
        self.decided_in
    }

    /// The place of this peer.
    pub fn role(&self) -> Role {
        self.decision.role
    }

    /// The configuration in force, if PostgreSQL runs with one that this machine knows of.
    pub fn applied(&self) -> Option<&Applied> {
        self.applied.as_ref()
    }

    /// Whether PostgreSQL runs, as far as it is known.
    pub fn is_running(&self) -> bool {
        self.server == Server::Running
    }

    /// Takes a new configuration of the sitter. What PostgreSQL was brought to is brought to it once
    /// more, because its own settings may have changed too.
    pub fn reconfigure(&mut self, config: MachineConfig) {
        assert_eq!(config.me.id, self.config.me.id, "a peer does not change its name");
        self.config = config;
        self.stale = self.applied.is_some();
    }

    fn pending(&self) -> Vec<String> {
        let mut pending = Vec::new();
        match self.session {
            Session::Joining => pending.push("joining the coordination".to_owned()),
            Session::Leaving => pending.push("leaving the coordination".to_owned()),
            Session::None | Session::Joined => {}
        }
        match &self.writing {
            Writing::Nothing => {}
            Writing::Putting(put) => {
                pending.push(format!("storing generation {}", put.state.generation));
            }
            Writing::Reading { .. } => pending.push("reading the stored state again".to_owned()),
            Writing::Limbo(put) => {
                pending.push(format!("settling the write of generation {}", put.state.generation));
            }
        }
        pending.extend(self.postgres.as_ref().map(|operation| operation.command.to_string()));
        if self.fencing {
            pending.push("stopping PostgreSQL at once".to_owned());
        }
        pending
    }
}

/// Each peer once, at its first place.
fn distinct(peers: Vec<PeerIdent>) -> Vec<PeerIdent> {
    let mut seen = BTreeSet::new();
    peers.into_iter().filter(|peer| seen.insert(peer.id.clone())).collect()
}
