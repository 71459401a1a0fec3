//! An operator's request to rebuild the database of this peer now (rule X5). It is kept until it is
//! fulfilled or this peer has got a place in which it must not be; a sitter that restarts forgets it.

use super::{InFlight, Machine, PgCommand};
use crate::{ClusterState, Database, DeposedPolicy, PeerIdent, PgConfig, Role};

/// A request that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    /// Whether everything is to be copied.
    pub(super) full: bool,
    /// Whether this peer was deposed when it was asked, else it was an async.
    pub(super) deposed: bool,
}

impl Machine {
    /// Why a request to rebuild would not be taken now; `None`: it would.
    pub fn rebuild_refusal(&self) -> Option<String> {
        let Some(state) = self.state().filter(|_| self.is_informed()) else {
            return Some(format!("the state of the shard is not known now: {}", self.reason()));
        };
        if let Some(operation) = &self.postgres
            && matches!(operation.command, PgCommand::Seed(_) | PgCommand::Rebuild(..))
        {
            return Some(format!("a copy is under way already: {}", operation.command));
        }
        if state.is_one_node_write_mode() {
            let primary = &state.primary.id;
            let mode = "the shard is in one-node-write mode";
            return Some(format!("{mode}: nobody runs PostgreSQL but its primary {primary}"));
        }
        match self.decision.role {
            Role::Primary => Some(
                "this peer is the primary: what it has is the shard's data; it can be rebuilt only \
                 after another has become primary"
                    .to_owned(),
            ),
            Role::Sync => Some(
                "this peer is the sync: it acknowledges the writes of the primary, and nobody could take \
                 over meanwhile; it can be rebuilt only after another has become sync"
                    .to_owned(),
            ),
            Role::Unknown | Role::Unassigned => {
                Some(format!("this peer has no place in the shard: {}", self.reason()))
            }
            Role::Async => self.upstream_is_gone(state),
            Role::Deposed => None,
        }
    }

    fn upstream_is_gone(&self, state: &ClusterState) -> Option<String> {
        let upstream = state.upstream_of(&self.config.me.id)?;
        let gone = !self.sees(upstream);
        gone.then(|| format!("{}, which it would be copied from, is not active", upstream.id))
    }

    fn sees(&self, peer: &PeerIdent) -> bool {
        self.active.iter().flatten().any(|active| active.id == peer.id)
    }

    pub(super) fn take_request(&mut self, full: bool) {
        if self.rebuild_refusal().is_some() {
            return;
        }
        if full {
            // A copy that was made before is not what was asked for.
            self.rebuilt_in = None;
        }
        self.asked = Some(Asked { full, deposed: self.decision.role == Role::Deposed });
    }

    /// A request ends with the place that it was made for. One that is being fulfilled is a copy like any
    /// other, and ends with it.
    pub(super) fn forget_request(&mut self) {
        let role = self.decision.role;
        let over = self.asked.is_some_and(|asked| match asked.deposed {
            true => role != Role::Deposed,
            false => matches!(role, Role::Primary | Role::Sync | Role::Deposed) && !self.rebuilds(),
        });
        if over {
            self.asked = None;
        }
    }

    fn rebuilds(&self) -> bool {
        matches!(&self.postgres, Some(InFlight { command: PgCommand::Rebuild(..), .. }))
    }

    pub(super) fn asked_in_full(&self) -> bool {
        self.asked.is_some_and(|asked| asked.full)
    }

    /// What to do when deposed: until a peer that was asked is back, by itself.
    pub(super) fn deposed_policy(&self) -> DeposedPolicy {
        let asked = self.asked.is_some_and(|asked| asked.deposed);
        if asked { DeposedPolicy::Auto } else { self.config.deposed }
    }

    /// Where an async that was asked is copied from: the peer that it streams from and nobody else,
    /// because that one alone is sure to have whatever this one may have acknowledged. What runs is
    /// stopped for it only while that peer is there.
    pub(super) fn asked_source<'a>(&self, config: &'a PgConfig) -> Option<&'a PeerIdent> {
        self.asked.filter(|asked| !asked.deposed)?;
        let PgConfig::Standby { upstream: Some(upstream), .. } = config else { return None };
        let begun = self.rebuilds() || self.database == Some(Database::None);
        (begun || self.is_informed() && self.sees(upstream)).then_some(upstream)
    }
}
