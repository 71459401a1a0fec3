//! What may be to come, in one world: messages on their way, alarms, steps of commands.

use super::{Part, Point, service::SessionId};
use cluster::{ClusterState, Monotonic, PutOutcome, Version};

/// What is to come.
#[derive(Debug, Clone, Hash)]
pub(crate) enum Happening {
    /// The machine's alarm.
    Wake {
        peer: usize,
        life: u32,
    },
    /// The sitter has looked at its host.
    Inspected {
        peer: usize,
        life: u32,
    },
    /// The sitter looks at PostgreSQL.
    Probe {
        peer: usize,
        life: u32,
    },
    JoinArrives {
        peer: usize,
        life: u32,
        call: u32,
        sent: Monotonic,
    },
    Joined {
        peer: usize,
        life: u32,
        call: u32,
        session: SessionId,
        shown: usize,
        sent: Monotonic,
    },
    JoinLimit {
        peer: usize,
        life: u32,
        call: u32,
    },
    Beat {
        peer: usize,
        session: SessionId,
    },
    BeatArrives {
        peer: usize,
        session: SessionId,
        sent: Monotonic,
    },
    BeatAnswered {
        peer: usize,
        session: SessionId,
        alive: bool,
        shown: usize,
        sent: Monotonic,
    },
    Notice {
        peer: usize,
        session: SessionId,
        shown: usize,
    },
    /// The service looks whether a session has run out.
    SessionDue {
        session: SessionId,
    },
    Left {
        peer: usize,
        life: u32,
    },
    PutArrives {
        peer: usize,
        life: u32,
        call: u32,
        put: Box<Put>,
    },
    PutAnswered {
        peer: usize,
        life: u32,
        call: u32,
        outcome: PutOutcome,
    },
    PutLimit {
        peer: usize,
        life: u32,
        call: u32,
    },
    ReadArrives {
        peer: usize,
        life: u32,
        call: u32,
    },
    ReadAnswered {
        peer: usize,
        life: u32,
        call: u32,
        shown: usize,
    },
    ReadLimit {
        peer: usize,
        life: u32,
        call: u32,
    },
    /// A command to PostgreSQL goes on.
    Command {
        peer: usize,
        life: u32,
        operation: u32,
    },
    /// A command to PostgreSQL runs into its limit.
    CommandLimit {
        peer: usize,
        life: u32,
        operation: u32,
    },
    Fenced {
        peer: usize,
        life: u32,
    },
    Exited {
        peer: usize,
        life: u32,
    },
    /// A standby tries to stream.
    Connect {
        peer: usize,
        boot: u32,
    },
    /// WAL arrives at a standby.
    Data {
        peer: usize,
        connection: u32,
        upto: Point,
    },
    Flush {
        peer: usize,
        boot: u32,
    },
    /// A standby's report arrives at where it streams from.
    Reply {
        peer: usize,
        from: usize,
        connection: u32,
        flushed: Point,
    },
    /// A WAL sender reads the files again.
    Reload {
        peer: usize,
        connection: u32,
    },
}

/// A conditional put on its way.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Put {
    pub(super) expected: Option<Version>,
    pub(super) state: ClusterState,
    /// What the writer's database held when it wrote.
    pub(super) content: Option<Point>,
    /// Whether the writer was configured for one-node-write mode when it wrote.
    pub(super) sole: bool,
    /// By which rule it was written.
    pub(super) rule: &'static str,
    /// Already answered, where that is the mutation.
    pub(super) assumed: bool,
}

impl Happening {
    /// What has to be running for it; nothing for what happens at the service or on a wire.
    pub(super) fn needs(&self) -> Option<(usize, Part)> {
        use Happening as H;
        match self {
            H::Wake { peer, .. }
            | H::Inspected { peer, .. }
            | H::Probe { peer, .. }
            | H::Joined { peer, .. }
            | H::JoinLimit { peer, .. }
            | H::Beat { peer, .. }
            | H::BeatAnswered { peer, .. }
            | H::Notice { peer, .. }
            | H::Left { peer, .. }
            | H::PutAnswered { peer, .. }
            | H::PutLimit { peer, .. }
            | H::ReadAnswered { peer, .. }
            | H::ReadLimit { peer, .. }
            | H::Command { peer, .. }
            | H::CommandLimit { peer, .. }
            | H::Fenced { peer, .. }
            | H::Exited { peer, .. } => Some((*peer, Part::Sitter)),
            H::Connect { peer, .. }
            | H::Data { peer, .. }
            | H::Flush { peer, .. }
            | H::Reply { peer, .. }
            | H::Reload { peer, .. } => Some((*peer, Part::Postgres)),
            H::JoinArrives { .. }
            | H::BeatArrives { .. }
            | H::SessionDue { .. }
            | H::PutArrives { .. }
            | H::ReadArrives { .. } => None,
        }
    }
}
