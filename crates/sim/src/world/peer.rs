//! What a host holds: a disk, a PostgreSQL, a sitter; and which of them are there, stopped or gone.

use super::{service::SessionId, timelines::Point};
use cluster::{Database, Generation, Lsn, Machine, Monotonic, PeerIdent, PgCommand, PgConfig};
use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

/// A part of a host that can be stopped by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The sitter (SIGSTOP).
    Sitter,
    /// PostgreSQL, every process of it (SIGSTOP).
    Postgres,
    /// The disk of the database: every process of PostgreSQL waits for it, and cannot even be killed.
    Disk,
}

/// A boot clock that runs at its own rate.
#[derive(Debug, Clone, Hash)]
pub struct Clock {
    pub(super) base: u64,
    /// How much faster than the service's, in millionths.
    pub(super) drift: i64,
}

impl Clock {
    pub(super) fn read(&self, now: u64) -> Monotonic {
        let elapsed = i128::from(now) * i128::from(1_000_000 + self.drift) / 1_000_000;
        Monotonic(self.base + u64::try_from(elapsed).expect("time goes on"))
    }

    /// The first moment at which it shows `at` or later.
    pub(super) fn when(&self, at: Monotonic, now: u64) -> u64 {
        let elapsed = i128::from(at.0.saturating_sub(self.base));
        let rate = i128::from(1_000_000 + self.drift);
        let moment = (elapsed * 1_000_000 + rate - 1) / rate;
        u64::try_from(moment).unwrap_or(u64::MAX).max(now)
    }
}

/// A database on disk.
#[derive(Debug, Clone, Hash)]
pub struct Disk {
    /// Up to where its WAL is flushed.
    pub end: Point,
    /// What the sitter knows it as.
    pub database: Database,
    /// Whether it starts as a standby.
    pub standby: bool,
    /// From where on its WAL is kept: a standby that needs what was before cannot stream from here.
    pub kept: u64,
}

/// Whose flush releases commits: `synchronous_standby_names`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Names {
    /// A name that no peer has.
    Nobody,
    /// This peer's.
    Peer(usize),
    /// Empty: a commit does not wait.
    Empty,
}

/// A commit that waits for its acknowledgement.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Commit {
    /// Where its record is.
    pub at: Point,
}

/// A WAL sender of a server.
#[derive(Debug, Clone, Hash)]
pub struct Sender {
    pub(super) to: usize,
    pub(super) connection: u32,
    /// Up to where it sent.
    pub(super) sent: Point,
    pub(super) sending: bool,
    /// What the standby reported last, and when that arrived.
    pub(super) flushed: Option<u64>,
    pub(super) replied: u64,
    /// The names that this process has read. A reload reaches each of them in its own time.
    pub(super) names: Names,
    /// Whether it has caught up since it began.
    pub(super) streaming: bool,
}

/// A connection of a standby to where it streams from.
#[derive(Debug, Clone, Hash)]
pub struct Receiver {
    pub(super) from: usize,
    pub(super) connection: u32,
}

/// A running PostgreSQL.
#[derive(Debug, Clone, Hash)]
pub struct Server {
    /// Which start of it.
    pub(super) boot: u32,
    /// Whether it is out of recovery.
    pub primary: bool,
    /// Whether clients are let in.
    pub clients: bool,
    /// Whether they may write, if they are honest.
    pub open: bool,
    pub(super) names: Names,
    /// The generation in which it was brought to what it is.
    pub generation: Generation,
    pub(super) upstream: Option<usize>,
    pub(super) receiver: Option<Receiver>,
    pub(super) connecting: bool,
    /// Up to where WAL was received, flushed or not.
    pub(super) received: Point,
    pub(super) flushing: bool,
    /// When all that was received is replayed, and up to where it was when the server started.
    pub(super) replayed_by: u64,
    pub(super) replayed: u64,
    /// Whether it has streamed since it started: then it knows what it received.
    pub(super) streamed: bool,
    pub(super) senders: Vec<Sender>,
    pub(super) waiting: VecDeque<Commit>,
}

/// A command to PostgreSQL in progress.
#[derive(Debug, Clone, Hash)]
pub struct Operation {
    pub(super) id: u32,
    pub(super) command: PgCommand,
    pub(super) generation: Generation,
    pub(super) phase: Phase,
    pub(super) cancelled: bool,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Begun,
    /// The files are written and a reload was asked for.
    Reloading,
    Promoting,
    Starting,
    /// Copying from the source of this place, at this start of its server, and from where on WAL
    /// comes with the copy.
    Copying(usize, u32, u64),
}

/// What the look before saw of the sync's answers, as the prober of the sitter keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Answer {
    pub(super) looked: Monotonic,
    pub(super) peer: usize,
    pub(super) replied: u64,
    pub(super) flushed: Option<u64>,
}

/// A running sitter.
#[derive(Debug, Clone)]
pub struct Sitter {
    /// Its machine: the real one.
    pub machine: Machine,
    pub(super) since: u64,
    /// Whether it has read that it is to serve alone.
    pub(super) sole: bool,
    pub(super) session: Option<SessionId>,
    pub(super) joining: Option<u32>,
    pub(super) leaving: bool,
    /// The number of what it was shown last.
    pub(super) delivered: usize,
    /// When the newest heartbeat that was answered was sent.
    pub(super) confirmed: Monotonic,
    pub(super) put: Option<u32>,
    pub(super) read: Option<u32>,
    pub(super) calls: u32,
    pub(super) operation: Option<Operation>,
    pub(super) answer: Option<Answer>,
    pub(super) wake: Option<(Monotonic, (u64, u64))>,
    /// Whether it has said that its disk hangs.
    pub(super) disk_hangs: bool,
    /// A fence that waits for a call, where that is the mutation.
    pub(super) fence_held: bool,
}

impl Hash for Sitter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.machine.hash(state);
        (self.session, self.joining, self.leaving, self.delivered).hash(state);
        (self.confirmed, self.put, self.read).hash(state);
        (&self.operation, &self.answer, self.disk_hangs).hash(state);
    }
}

/// A host with its peer.
#[derive(Debug, Clone, Hash)]
pub struct Peer {
    /// Who it is.
    pub ident: PeerIdent,
    pub(super) clock: Clock,
    /// Whether the host runs.
    pub up: bool,
    /// The sitter, if it runs.
    pub sitter: Option<Sitter>,
    /// Whether its sitter's file says that it is to serve alone.
    pub alone: bool,
    /// How many sitters there have been.
    pub(super) life: u32,
    pub(super) boots: u32,
    pub(super) operations: u32,
    /// What is stopped.
    pub(super) stopped: [bool; 3],
    /// PostgreSQL was killed by this sitter, and ends as soon as its disk lets it.
    pub(super) doomed: Option<u32>,
    pub(super) resumed: u64,
    pub(super) held: Vec<super::Happening>,
    /// The database, if there is one.
    pub disk: Option<Disk>,
    /// PostgreSQL, if it runs.
    pub server: Option<Server>,
    /// The configuration that the running server was last brought to, as it is written down.
    pub(super) record: Option<PgConfig>,
    /// What is armed against the next put and the next command.
    pub(super) next_put: super::faults::PutFault,
    pub(super) fail_next: bool,
}

impl Peer {
    /// Whether this part is stopped.
    pub fn is_stopped(&self, part: Part) -> bool {
        self.stopped[part as usize] || part == Part::Postgres && self.stopped[Part::Disk as usize]
    }

    /// The server, if it runs as a primary.
    pub fn primary(&self) -> Option<&Server> {
        self.server.as_ref().filter(|server| server.primary)
    }

    /// Whether its PostgreSQL acknowledges without any other peer.
    pub(super) fn acknowledges_alone(&self) -> bool {
        self.primary().is_some_and(|server| server.names == Names::Empty)
    }

    /// How much WAL it has as far as its PostgreSQL can tell: a standby that has not streamed since it
    /// started knows only what it has replayed.
    pub(super) fn known_end(&self, now: u64) -> Option<u64> {
        let end = self.end()?.position;
        Some(match &self.server {
            Some(server) if !server.primary && !server.streamed && now < server.replayed_by => {
                server.replayed.min(end)
            }
            _ => end,
        })
    }

    /// The end of the WAL on its disk.
    pub fn end(&self) -> Option<Point> {
        self.disk.as_ref().map(|disk| disk.end)
    }
}

/// A position as the rules see it.
pub(super) fn lsn(position: u64) -> Lsn {
    Lsn::new(position)
}
