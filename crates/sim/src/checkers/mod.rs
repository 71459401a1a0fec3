//! What must never be seen. The world hands over what happens; each checker, in a file of its own,
//! judges one thing and knows nothing of how it came about.

mod alone;
mod commits;
mod deposed;
mod liveness;
mod serving;
mod writes;

pub use liveness::{Blocked, Verdict, settle};

use crate::world::{Point, Timelines};
use cluster::{ClusterState, Generation, PeerId};
use std::fmt;

/// Something that must never be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Which checker saw it; the same for the same kind of violation.
    pub checker: &'static str,
    /// When.
    pub at: u64,
    /// What.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (at {} ms)", self.checker, self.problem, self.at)
    }
}

/// A write that was stored.
#[derive(Debug)]
pub struct Write<'a> {
    /// When.
    pub now: u64,
    /// What was stored before.
    pub before: Option<&'a ClusterState>,
    /// What is stored now.
    pub next: &'a ClusterState,
    /// Who wrote it.
    pub writer: &'a PeerId,
    /// Which peer is the primary of `next`.
    pub primary: Option<usize>,
    /// The point of the writer's data that `initWal` is.
    pub content: Option<Point>,
    /// What the writer's database holds now.
    pub writer_data: Option<Point>,
    /// What the database of the primary of `next` holds now.
    pub primary_data: Option<Point>,
    /// Whether the writer was configured for one-node-write mode when it wrote.
    pub writer_is_sole: bool,
    /// Whether PostgreSQL of the writer acknowledges by itself now.
    pub writer_acknowledges_alone: bool,
}

/// A primary that clients see.
#[derive(Debug)]
pub struct Serving {
    /// When.
    pub now: u64,
    /// Who.
    pub peer: usize,
    /// The generation in which it was brought to what it is.
    pub generation: Generation,
    /// What its database holds.
    pub end: Point,
    /// Since when its sitter has been running without a stop; none if it does not run.
    pub supervised_since: Option<u64>,
}

/// All checkers, and the first thing that one of them saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Checkers {
    commits: commits::Commits,
    serving: serving::OnePrimary,
    disks_lost: u8,
    violation: Option<Violation>,
}

impl Checkers {
    /// The first thing that was seen.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// How many commits were acknowledged.
    pub fn acknowledgements(&self) -> u64 {
        self.commits.acknowledgements()
    }

    /// Whether the disk of this peer was lost, ever.
    pub fn has_lost_disk(&self, peer: usize) -> bool {
        self.disks_lost & (1 << peer) != 0
    }

    fn judge(&mut self, checker: &'static str, at: u64, verdict: Result<(), String>) {
        if let (None, Err(problem)) = (&self.violation, verdict) {
            self.violation = Some(Violation { checker, at, problem });
        }
    }

    pub(crate) fn stored(&mut self, write: &Write<'_>, timelines: &Timelines) {
        self.judge("writes", write.now, writes::check(write));
        self.judge("deposed", write.now, deposed::check(write, timelines));
        self.judge("alone", write.now, alone::stored(write));
        self.serving.declared(write);
        let verdict = self.commits.declared(write, timelines);
        self.judge("commits", write.now, verdict);
    }

    pub(crate) fn acknowledged(
        &mut self,
        now: u64,
        peer: usize,
        generation: Generation,
        commit: Point,
        timelines: &Timelines,
    ) {
        let verdict = self.commits.acknowledged(peer, generation, commit, timelines);
        self.judge("commits", now, verdict);
    }

    pub(crate) fn serves(&mut self, serving: &Serving, timelines: &Timelines) {
        let verdict = self.commits.serves(serving, timelines);
        self.judge("commits", serving.now, verdict);
        let verdict = self.serving.serves(serving);
        self.judge("one primary", serving.now, verdict);
    }

    /// A primary serves alone, or acknowledges so, while this is stored.
    pub(crate) fn alone(&mut self, now: u64, peer: &PeerId, stored: Option<&ClusterState>) {
        self.judge("alone", now, alone::serves(peer, stored));
    }

    /// A standby took WAL of another history than its own, or two servers wrote one timeline.
    pub(crate) fn mixed(&mut self, now: u64, peer: usize, from: usize) {
        let problem = if peer == from {
            format!("peer {peer} writes on a timeline that another has written on since")
        } else {
            format!(
                "peer {peer} goes on with WAL of {from} that is not the continuation of its own"
            )
        };
        self.judge("histories", now, Err(problem));
    }

    /// Two promotions have got one number (rule D7).
    pub(crate) fn namesake(&mut self, now: u64, peer: usize, number: u32) {
        let problem = format!("peer {peer} is promoted to timeline {number}, which another is on");
        self.judge("histories", now, Err(problem));
    }

    pub(crate) fn disk_lost(&mut self, peer: usize) {
        self.disks_lost |= 1 << peer;
    }

    pub(crate) fn stuck(&mut self, now: u64, problem: String) {
        self.judge("liveness", now, Err(problem));
    }
}
