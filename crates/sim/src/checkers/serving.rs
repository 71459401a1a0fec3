//! One primary at a time, as clients see it: one that was superseded serves for a lease at most,
//! reckoned from when its sitter was last able to do anything about it.
//!
//! A sitter that is dead or stopped fences nobody; what is left then is that nothing more can be
//! acknowledged there, which is another checker's affair.

use super::{Serving, Write};
use crate::world::{DRIFT, LEASE};
use cluster::Generation;

/// What a clock that runs slow adds to a lease, and a moment for the stop itself.
const BOUND: u64 = LEASE.0 + LEASE.0 * DRIFT.unsigned_abs() / 1_000_000 + 400;

/// Which generation has which primary, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OnePrimary {
    declared: Vec<(Generation, Option<usize>, u64)>,
}

impl OnePrimary {
    pub(super) fn declared(&mut self, write: &Write<'_>) {
        if self.declared.last().is_none_or(|last| last.0 != write.next.generation) {
            self.declared.push((write.next.generation, write.primary, write.now));
        }
    }

    pub(super) fn serves(&self, serving: &Serving) -> Result<(), String> {
        let Serving { now, peer, generation, supervised_since: Some(supervised), .. } = *serving
        else {
            return Ok(());
        };
        if self.declared.last().is_none_or(|last| last.1 == Some(peer)) {
            return Ok(());
        }
        let superseded = self
            .declared
            .iter()
            .find(|(later, primary, _)| *later > generation && *primary != Some(peer));
        match superseded {
            Some((later, _, at)) if now > at.max(&supervised) + BOUND => Err(format!(
                "peer {peer} still serves as primary of generation {generation}, {} ms after \
                 generation {later} was declared",
                now - at
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_who_serves_longer_than_a_lease() {
        let checker = OnePrimary {
            declared: vec![(Generation(1), Some(0), 0), (Generation(2), Some(1), 1_000)],
        };
        let serves = |now, peer, supervised| {
            let generation = Generation(1);
            let end = crate::world::Timelines::default().create(1);
            let supervised_since = supervised;
            checker.serves(&Serving { now, peer, generation, end, supervised_since }).is_ok()
        };
        assert!(serves(1_000 + BOUND, 0, Some(0)));
        assert!(!serves(1_001 + BOUND, 0, Some(0)));
        assert!(serves(1_001 + BOUND, 0, Some(2_000)), "its sitter has only just come back");
        assert!(serves(100_000, 0, None), "nobody is there to stop it");
        assert!(serves(100_000, 1, Some(0)), "it is the primary");
    }
}
