//! What is wrong with a shard, as `show`, `pg-status` and `verify` tell it.
//!
//! An *error* means that the shard does not serve, or that nobody can tell whether it does; a
//! *warning* means that it serves and needs somebody's attention. A freeze is neither: it was
//! somebody's wish.

use super::view::{PeerView, ShardView};
use crate::backup::{JobState, JobStatus};
use crate::status::{Copying, PeerStatus};
use cluster::{ClusterState, PeerId, Role};
use jiff::Timestamp;
use serde::Serialize;
use std::{collections::BTreeSet, fmt};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The shard does not serve, or cannot be looked at.
    Error,
    /// It serves, and needs attention.
    Warning,
}

impl Severity {
    fn label(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// What is wrong; the name that programs see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// No cluster state is stored.
    NoState,
    /// The stored state is malformed, or one that no shard may have.
    IllegalState,
    /// A peer of the chain holds no session.
    NotActive,
    /// Its PostgreSQL cannot be asked.
    CannotQuery,
    /// Its downstream does not stream from it.
    DownstreamMissing,
    /// Another peer of the shard streams from it.
    DownstreamUnexpected,
    /// Its downstream is connected, but not streaming.
    DownstreamNotStreaming,
    /// Its downstream has the wrong `sync_state`.
    DownstreamSyncState,
    /// The primary takes no writes of clients.
    ClosedForWrites,
    /// A sitter stopped PostgreSQL, because nothing proved any more that it may serve.
    Fenced,
    /// A sitter reports a failure.
    SitterFailure,
    /// Nobody could replace the sync.
    NoAsync,
    /// A peer is deposed.
    Deposed,
    /// A promote request that can no longer be granted stands in the state.
    PromoteLeftOver,
    /// A peer holds more than one registration.
    RegisteredTwice,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: Kind,
    /// Whose it is, when it is one peer's.
    pub peer: Option<PeerId>,
    /// In words.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity.label(), self.text)
    }
}

/// Everything that is wrong with this shard: errors first, each kind in the order of the chain.
pub fn find(view: &ShardView, now: Timestamp) -> Vec<Problem> {
    let mut found = Found(Vec::new());
    found.stored(view);
    for (peer, downstream) in view.chain() {
        found.active(view, peer);
        found.postgres(peer);
        found.sitter(peer);
        if let Some(downstream) = downstream {
            found.downstream(view, peer, downstream);
        }
    }
    if let Some(state) = view.state() {
        found.topology(view, state);
        found.promote(state, now);
    }
    found.registrations(view);
    let mut problems = found.0;
    problems.sort_by_key(|problem| problem.severity);
    problems
}

struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, severity: Severity, kind: Kind, peer: Option<&PeerView>, text: String) {
        let peer = peer.map(|peer| peer.ident.id.clone());
        self.0.push(Problem { severity, kind, peer, text });
    }

    fn stored(&mut self, view: &ShardView) {
        match &view.stored {
            None => {
                let text = format!(
                    "no cluster state is stored: shard {:?} was not set up yet, or is not its name",
                    view.shard
                );
                self.add(Severity::Error, Kind::NoState, None, text);
            }
            Some(stored) => {
                if let Some(error) = &stored.error {
                    let text = format!("no peer can act on what is stored: {error}");
                    self.add(Severity::Error, Kind::IllegalState, None, text);
                }
            }
        }
    }

    fn active(&mut self, view: &ShardView, peer: &PeerView) {
        if view.registrations(&peer.ident.id) > 0 {
            return;
        }
        // When its sitter does not answer either, that is told with its PostgreSQL.
        let says = peer.status.as_ref().map(|status| status.reason.text.as_str());
        let says = says.map(|text| format!(": its sitter says: {text}")).unwrap_or_default();
        let text = format!("{} {} is not active{says}", peer.role, quoted(peer));
        self.add(needed(peer), Kind::NotActive, Some(peer), text);
    }

    fn postgres(&mut self, peer: &PeerView) {
        if let Err(error) = peer.postgres() {
            let text =
                format!("cannot query postgres on {}: peer {}: {error}", peer.role, quoted(peer));
            self.add(needed(peer), Kind::CannotQuery, Some(peer), text);
        }
    }

    fn sitter(&mut self, peer: &PeerView) {
        let Ok(status) = peer.status.as_deref() else { return };
        if status.fenced {
            let text = format!(
                "{} {} is fenced: its sitter stopped PostgreSQL, because neither the coordination \
                 nor the sync proved that it may serve",
                peer.role,
                quoted(peer)
            );
            self.add(needed(peer), Kind::Fenced, Some(peer), text);
        }
        if let Some(failure) = &status.failure {
            let text = format!("{} {}: {failure}", peer.role, quoted(peer));
            self.add(needed(peer), Kind::SitterFailure, Some(peer), text);
        }
        if peer.role == Role::Primary && !status.postgres.writable && peer.postgres().is_ok() {
            let text = format!("primary {} takes no writes: {}", quoted(peer), status.reason.text);
            self.add(Severity::Error, Kind::ClosedForWrites, Some(peer), text);
        }
    }

    fn downstream(&mut self, view: &ShardView, peer: &PeerView, downstream: &PeerView) {
        // Without an answer of this peer nothing is known of its downstream; that it does not
        // answer is told by itself.
        let Ok(status) = peer.postgres() else { return };
        let severity = if peer.role == Role::Primary { Severity::Error } else { Severity::Warning };
        let name = quoted(peer);
        self.strangers(view, peer, downstream, status);
        let Some(sender) = peer.sender_to(&downstream.ident.id) else {
            let text = format!(
                "peer {name}: downstream replication peer {} not connected",
                quoted(downstream)
            );
            self.add(severity, Kind::DownstreamMissing, Some(peer), text);
            return;
        };
        let expected = if peer.role == Role::Primary { "sync" } else { "async" };
        if sender.state != "streaming" {
            let text = format!(
                "peer {name}: downstream replication to {} is in state {:?}, not \"streaming\"",
                quoted(downstream),
                sender.state
            );
            self.add(severity, Kind::DownstreamNotStreaming, Some(peer), text);
        }
        if sender.sync_state != expected {
            let text = format!(
                "peer {name}: downstream replication to {} has sync_state {:?}, not {expected:?}",
                quoted(downstream),
                sender.sync_state
            );
            self.add(severity, Kind::DownstreamSyncState, Some(peer), text);
        }
    }

    /// Peers of the shard that stream from where they should not. What is no peer is none of our
    /// business: a base backup, or a standby that somebody runs for a purpose of their own.
    fn strangers(
        &mut self,
        view: &ShardView,
        peer: &PeerView,
        downstream: &PeerView,
        status: &PeerStatus,
    ) {
        for sender in &status.postgres.senders {
            let other = |known: &&PeerView| known.ident.id.as_str() == sender.peer;
            let Some(other) = view.peers.iter().find(other) else { continue };
            if other.ident.id != downstream.ident.id {
                let text = format!(
                    "peer {}: {} streams from it, expected is {}",
                    quoted(peer),
                    quoted(other),
                    quoted(downstream)
                );
                self.add(Severity::Warning, Kind::DownstreamUnexpected, Some(peer), text);
            }
        }
    }

    fn topology(&mut self, view: &ShardView, state: &ClusterState) {
        if state.asyncs.is_empty() && !state.is_one_node_write_mode() {
            let text = "cluster has no async peers: nobody can replace the sync".to_owned();
            self.add(Severity::Warning, Kind::NoAsync, None, text);
        }
        for peer in view.peers.iter().filter(|peer| peer.role == Role::Deposed) {
            let doing = match &peer.status {
                Ok(status) => match &status.copying {
                    Some(copying) => format!("is being rebuilt: {}", progress(copying)),
                    None => format!("its sitter says: {}", status.reason.text),
                },
                Err(error) => error.clone(),
            };
            let text = format!("cluster has a deposed peer: {}: {doing}", quoted(peer));
            self.add(Severity::Warning, Kind::Deposed, Some(peer), text);
        }
    }

    fn promote(&mut self, state: &ClusterState, now: Timestamp) {
        let Some(promote) = &state.promote else { return };
        let why = if promote.generation != state.generation {
            format!("it was made for generation {}", promote.generation)
        } else if promote.expire_time <= now {
            format!("it expired at {}", promote.expire_time)
        } else {
            return;
        };
        let text = format!(
            "a promote request for {} is left over: {why}, and the primary has not taken it out",
            promote.id
        );
        self.add(Severity::Warning, Kind::PromoteLeftOver, None, text);
    }

    fn registrations(&mut self, view: &ShardView) {
        let ids: BTreeSet<_> = view.active.iter().map(|active| &active.peer.id).collect();
        for id in ids {
            let count = view.registrations(id);
            if count > 1 {
                let text = format!(
                    "peer {id} is registered {count} times: a session of before has not expired \
                     yet, or two sitters run under one name"
                );
                let peer = Some(id.clone());
                let (severity, kind) = (Severity::Warning, Kind::RegisteredTwice);
                self.0.push(Problem { severity, kind, peer, text });
            }
        }
    }
}

/// Without the primary and the sync no write is acknowledged; the others are spares.
fn needed(peer: &PeerView) -> Severity {
    match peer.role {
        Role::Primary | Role::Sync => Severity::Error,
        _ => Severity::Warning,
    }
}

fn quoted(peer: &PeerView) -> String {
    format!("{:?}", peer.abbreviation())
}

/// How far a copy is, for people.
pub fn progress(copying: &Copying) -> String {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let from = copying.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
    let done = mib(copying.bytes_done);
    let pace = pace(copying.rate, copying.remaining);
    match copying.bytes_total.filter(|total| *total > 0) {
        Some(total) => {
            // The total is an estimate; more than all of it is not a fact worth telling.
            let percent = (u128::from(copying.bytes_done) * 100 / u128::from(total)).min(100);
            format!("{}{from}, {done} of {} MiB ({percent}%){pace}", copying.phase, mib(total))
        }
        None => format!("{}{from}, {done} MiB{pace}", copying.phase),
    }
}

/// How far a stream to another peer is, for people; nothing of one that has ended.
pub fn sending(job: &JobStatus) -> Option<String> {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let done = mib(job.bytes_done);
    let of = job.bytes_estimate.map(|total| format!(" of {}", mib(total))).unwrap_or_default();
    let pace = pace(Some(job.rate), job.remaining);
    let text = format!("sending {} to {}, {done}{of} MiB{pace}", job.snapshot, job.receiver);
    (job.state == JobState::Sending).then_some(text)
}

fn pace(rate: Option<u64>, remaining: Option<u64>) -> String {
    let rate = rate.map(|rate| format!(", {} MiB/s", rate / (1024 * 1024))).unwrap_or_default();
    let left = remaining.map(|left| format!(", {}m{:02}s left", left / 60, left % 60));
    rate + &left.unwrap_or_default()
}

#[cfg(test)]
#[path = "problems_tests.rs"]
mod tests;
