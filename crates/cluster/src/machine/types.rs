//! What goes into the machine and what comes out.

use crate::{
    Applied, ClusterState, Database, DeposedPolicy, Generation, Lsn, Millis, Monotonic, PeerId,
    PeerIdent, PgConfig, Reason, Role, StateError,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the stored state that a conditional put names: ZooKeeper's znode version, etcd's
/// revision, a counter in SQLite. It grows with each write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub i64);

/// What a machine is configured with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Who this peer is.
    pub me: PeerIdent,
    /// Whether it is to serve alone.
    pub one_node_write_mode: bool,
    /// What to do when deposed.
    pub deposed: DeposedPolicy,
    /// How long one proof lets a primary serve (rule F1).
    pub lease: Millis,
    /// The first delay after a failure; doubled with each further one.
    pub retry_min: Millis,
    /// The longest delay between two tries.
    pub retry_max: Millis,
    /// How long PostgreSQL may fail before a primary or sync gives up its session, so that others
    /// can act (rule H2).
    pub give_up: Millis,
}

/// The time at which an event is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Now {
    /// By the boot clock of this host: all deadlines.
    pub monotonic: Monotonic,
    /// By the wall clock: the expiry of promote requests only.
    pub wall: Timestamp,
}

/// A stored cluster state as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateSeen {
    /// For the next conditional put.
    pub version: Version,
    /// The state, or why it cannot be acted on.
    pub state: Result<ClusterState, StateError>,
}

/// How a conditional put ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PutOutcome {
    /// Stored under this version.
    Committed(Version),
    /// Another state is stored; nothing was written.
    Conflict,
    /// Refused, for this reason: it was not stored, and never will be (rule M4).
    Refused(String),
    /// The answer was lost, for this reason.
    Unknown(String),
}

/// What PostgreSQL is to be brought to. Idempotent, each of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PgCommand {
    /// Create a database where there is none; do not start it.
    Prepare,
    /// Run with this configuration.
    Apply(PgConfig),
    /// Copy a database from the first of these that gives one.
    Seed(Vec<PeerIdent>),
    /// Keep the present database aside and make it a copy of that of the first of these that gives one.
    Rebuild(Vec<PeerIdent>, Way),
    /// Stop in an orderly way.
    Stop,
}

/// How much of a database that is rebuilt comes from its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// As little as is proven to be enough, which may be nothing (rule X2).
    Cheapest,
    /// Whatever is there now is replaced, by a difference to a snapshot that both have or by everything.
    Copied,
    /// Everything.
    Whole,
}

impl fmt::Display for PgCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |peers: &[PeerIdent]| {
            peers.iter().map(|peer| peer.id.as_str()).collect::<Vec<_>>().join(", else ")
        };
        match self {
            PgCommand::Prepare => f.write_str("creating a database"),
            PgCommand::Apply(PgConfig::Primary { .. }) => {
                f.write_str("bringing PostgreSQL to primary")
            }
            PgCommand::Apply(PgConfig::Standby { upstream: Some(upstream), .. }) => {
                write!(f, "bringing PostgreSQL to standby of {}", upstream.id)
            }
            PgCommand::Apply(PgConfig::Standby { upstream: None, .. }) => {
                f.write_str("detaching PostgreSQL from its upstream")
            }
            PgCommand::Seed(sources) => write!(f, "copying the database from {}", ids(sources)),
            PgCommand::Rebuild(sources, _) => {
                write!(f, "keeping the old database aside and copying it from {}", ids(sources))
            }
            PgCommand::Stop => f.write_str("stopping PostgreSQL"),
        }
    }
}

/// How a command to PostgreSQL ended well.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PgOutcome {
    /// There is a database now that was created for setup.
    Prepared,
    /// The configuration is in force; the WAL position was read after that.
    Applied {
        /// See [`Applied::position`].
        position: Lsn,
        /// The timeline that the database is known to be on.
        timeline: Option<u32>,
    },
    /// There is a copied database now.
    Copied,
    /// PostgreSQL does not run.
    Stopped,
}

/// How a command to PostgreSQL failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ApplyError {
    /// What went wrong, where, and what to do; for people.
    pub problem: String,
    /// Whether PostgreSQL runs now.
    pub running: bool,
    /// What lies in the dataset now.
    pub database: Option<Database>,
}

/// A fact. Completions answer the action of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Event {
    /// What was found on this host when the sitter started.
    Inspected {
        /// What lies in the dataset.
        database: Database,
        /// Whether a PostgreSQL of this peer runs: it is adopted.
        running: bool,
        /// The configuration that it was last brought to and still has.
        applied: Option<Applied>,
    },
    /// Looking failed; it is done again.
    InspectFailed(String),
    /// The session is there, and the registration in it.
    Joined,
    /// No session could be had.
    JoinFailed(String),
    /// The session was given up.
    Left,
    /// The stored state is now this; `None` when there is none.
    State(Option<StateSeen>),
    /// The live registrations are now these, in order; a peer may stand twice.
    Active(Vec<PeerIdent>),
    /// The session was alive after this time, and what was delivered before is what was stored then.
    Confirmed {
        /// When the proving request was sent.
        sent: Monotonic,
    },
    /// The session is gone for good.
    Expired,
    /// Coordination does not answer.
    Unreachable(String),
    /// A put ended.
    PutDone(PutOutcome),
    /// A read of the stored state ended.
    ReadDone(Result<Option<StateSeen>, String>),
    /// A command to PostgreSQL ended well.
    PgDone(PgOutcome),
    /// A command to PostgreSQL failed.
    PgFailed(ApplyError),
    /// PostgreSQL was stopped at once; an error when processes of it are left.
    Fenced(Result<(), String>),
    /// PostgreSQL ended by itself.
    PgExited(String),
    /// PostgreSQL was found not to run, whether or not its end was told.
    PgMissing(String),
    /// PostgreSQL was asked and answered.
    Probed {
        /// Its WAL position: flushed on a primary, received or replayed on a standby.
        wal: Lsn,
        /// The timeline that it is known to be on.
        timeline: Option<u32>,
        /// The peer that counts as sync, streams, and has caught up.
        caught_up: Option<PeerId>,
        /// The sync that counts answered after this time.
        sync_answered: Option<Monotonic>,
    },
    /// PostgreSQL was asked and did not answer, for this reason.
    ProbeFailed(String),
    /// A write to the disk of the database does not come back, for this reason; while a command to PostgreSQL is
    /// in flight, which may wait for that disk.
    DiskHangs(String),
    /// It has come back.
    DiskAnswers,
    /// What PostgreSQL was brought to holds no more: somebody has overridden it, or a replication slot has
    /// lost its WAL.
    Overridden,
    /// This standby cannot stream from there, ever: the history of that server has not, or left
    /// before it, what this database holds.
    Diverged {
        /// Whose history it is.
        from: PeerId,
    },
    /// An operator wants the database here rebuilt now (rule X5).
    RebuildAsked {
        /// Whether everything is to be copied.
        full: bool,
    },
    /// The time asked for by `WakeAt` has come.
    Wake,
}

/// An imperative.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Look what database and which PostgreSQL are here.
    Inspect,
    /// Open a session and register, saying what lies in the dataset.
    Join {
        /// What lies there.
        database: Database,
    },
    /// Give up the session at once.
    Leave,
    /// Store this state if the stored version is still `expected`.
    Put {
        /// The version seen; `None`: nothing is stored.
        expected: Option<Version>,
        /// What to store.
        state: Box<ClusterState>,
    },
    /// Read the stored state again.
    Read,
    /// Bring PostgreSQL to something.
    Postgres(PgCommand),
    /// Give up the command to PostgreSQL in flight; it still answers.
    CancelPostgres,
    /// Stop PostgreSQL at once, whatever is in flight; sessions are cut.
    Fence,
    /// Wake at this time.
    WakeAt(Monotonic),
}

/// What a machine knows, wants and waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The place of this peer.
    pub role: Role,
    /// Why it does what it does.
    pub reason: Reason,
    /// The generation that it knows.
    pub generation: Option<Generation>,
    /// Whether it holds a session.
    pub in_session: bool,
    /// What lies in its dataset; `None` before it has looked.
    pub database: Option<Database>,
    /// Whether its PostgreSQL runs.
    pub running: bool,
    /// The configuration in force.
    pub applied: Option<Applied>,
    /// The newest known WAL position.
    pub wal: Option<Lsn>,
    /// The newest known timeline.
    pub timeline: Option<u32>,
    /// What is in flight, for people.
    pub pending: Vec<String>,
    /// Whether it stopped PostgreSQL because no proof was left, and none has come since.
    pub fenced: bool,
    /// Whether an operator's request to rebuild is not yet fulfilled (rule X5).
    pub rebuild_asked: bool,
    /// Until when it may serve as primary, by its boot clock.
    pub serve_until: Option<Monotonic>,
    /// The newest failure of PostgreSQL that nothing has mended yet.
    pub failure: Option<String>,
}
