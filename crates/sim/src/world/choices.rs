//! The world as an explorer sees it: what may come next, in any order, while hardly any time passes.

use super::{Happening, World};
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
};

/// What counts as due at once: what tries again in a moment, too, but no alarm, no limit.
const SOON: u64 = 50;

/// Something that may come next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ready {
    key: (u64, u64),
}

impl World {
    /// What may come next. Of several of one kind for one peer only the first: they keep their order.
    pub fn ready(&self) -> Vec<Ready> {
        let mut kinds = BTreeSet::new();
        self.queue
            .range(..(self.now + SOON, 0))
            .filter(|(_, happening)| kinds.insert(happening.kind()))
            .map(|(key, _)| Ready { key: *key })
            .collect()
    }

    /// Lets this come next, and after it what nothing hangs on.
    pub fn choose(&mut self, ready: &Ready) {
        if let Some(happening) = self.queue.remove(&ready.key) {
            self.take(happening);
        }
        self.run_eager();
    }

    /// Takes everything that is due and whose order does not matter.
    pub fn run_eager(&mut self) {
        while let Some(key) = self
            .queue
            .range(..=(self.now, u64::MAX))
            .find(|(_, happening)| happening.is_eager())
            .map(|(key, _)| *key)
        {
            if let Some(happening) = self.queue.remove(&key) {
                self.take(happening);
            }
        }
    }

    /// The same for worlds that cannot be told apart any more, whenever and however they came about.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.now, &self.service, &self.timelines, &self.links).hash(&mut hasher);
        (self.deaf, self.mute, &self.checkers).hash(&mut hasher);
        self.peers.hash(&mut hasher);
        for happening in self.queue.values() {
            happening.hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Happening {
    /// Whether nothing hangs on when it comes, once it is due.
    fn is_eager(&self) -> bool {
        use Happening as H;
        matches!(
            self,
            H::Inspected { .. }
                | H::Joined { .. }
                | H::Beat { .. }
                | H::BeatArrives { .. }
                | H::BeatAnswered { .. }
                | H::Left { .. }
                | H::ReadArrives { .. }
                | H::ReadAnswered { .. }
                | H::Fenced { .. }
                | H::Exited { .. }
                | H::Connect { .. }
                | H::CommandLimit { .. }
        )
    }

    /// Which kind, and for whom: happenings of one kind keep their order.
    fn kind(&self) -> (u8, usize) {
        use Happening as H;
        match self {
            H::Notice { peer, .. } => (0, *peer),
            H::PutArrives { peer, .. } => (1, *peer),
            H::PutAnswered { peer, .. } => (2, *peer),
            H::Command { peer, .. } => (3, *peer),
            H::Data { peer, .. } => (4, *peer),
            H::Flush { peer, .. } => (5, *peer),
            H::Reply { peer, from, .. } => (6, peer * 8 + from),
            H::Reload { peer, connection } => (7, peer * 1024 + *connection as usize),
            H::Wake { peer, .. } | H::Probe { peer, .. } => (8, *peer),
            H::JoinArrives { peer, .. } => (9, *peer),
            // Eager ones are gone before anybody looks, limits are not due.
            _ => (10, 0),
        }
    }
}
