//! Which roles peers go through, and by which rules.

use super::World;
use cluster::{ClusterState, PeerId, PeerIdent, Role, Version};
use std::collections::{BTreeMap, BTreeSet};

/// A peer went from one role to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Move {
    /// The role that it had, as it is printed.
    pub from: &'static str,
    /// The role that it has.
    pub to: &'static str,
    /// The rule by which the state was stored that gives it this role; M1 for what a sitter reads first.
    pub rule: &'static str,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Moves {
    seen: BTreeSet<Move>,
    /// For each peer the versions that gave it another place, with the rule by which they were stored.
    placed: BTreeMap<(usize, Version), &'static str>,
}

impl World {
    /// Takes note of the roles that peers go through from now on.
    pub fn keep_moves(&mut self) {
        self.moves.get_or_insert_default();
    }

    /// What was seen since it was asked last.
    pub fn take_moves(&mut self) -> BTreeSet<Move> {
        self.moves.as_mut().map(|moves| std::mem::take(&mut moves.seen)).unwrap_or_default()
    }

    /// A state has been stored over `before`, by this rule.
    pub(super) fn placed(&mut self, before: Option<&ClusterState>, rule: &'static str) {
        let (Some(moves), Some((version, state))) = (&mut self.moves, self.service.state()) else {
            return;
        };
        for (index, peer) in self.peers.iter().enumerate() {
            let id = &peer.ident.id;
            if before.and_then(|state| place(state, id)) != place(state, id) {
                moves.placed.insert((index, *version), rule);
            }
        }
    }

    /// The machine of this peer has handled an event; its role was `before`.
    pub(super) fn moved(&mut self, peer: usize, before: Role) {
        let (Some(moves), Some(sitter)) = (&mut self.moves, &self.peers[peer].sitter) else {
            return;
        };
        let machine = &sitter.machine;
        if machine.role() == before {
            return;
        }
        // What a sitter reads first is its place, whoever gave it that.
        let known = machine.version().filter(|_| before != Role::Unknown);
        let placed = known.and_then(|version| {
            moves.placed.range((peer, Version(i64::MIN))..=(peer, version)).next_back()
        });
        let rule = placed.map_or("M1", |(_, rule)| rule);
        moves.seen.insert(Move { from: before.label(), to: machine.role().label(), rule });
    }
}

/// The place of a peer, all asyncs being one.
fn place(state: &ClusterState, id: &PeerId) -> Option<Role> {
    let is = |peer: &PeerIdent| peer.id == *id;
    if is(&state.primary) {
        Some(Role::Primary)
    } else if state.sync.as_ref().is_some_and(is) {
        Some(Role::Sync)
    } else if state.asyncs.iter().any(is) {
        Some(Role::Async)
    } else {
        state.deposed.iter().any(is).then_some(Role::Deposed)
    }
}
