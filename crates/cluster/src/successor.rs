//! The law of writes: which state may follow which, and who may write it. A linter for the
//! simulator, for tests, and for a driver that asserts before it stores.

use crate::{ClusterState, PeerId};

/// A write that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{writer} may not store generation {to} after {from}: {problem} (rule {rule})")]
pub struct IllegalSuccessor {
    /// Who writes.
    pub writer: PeerId,
    /// The generation before.
    pub from: u64,
    /// The generation written.
    pub to: u64,
    /// What is wrong.
    pub problem: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Judges that `writer` stores `next` over `before` (`None`: nothing was stored). An operator's
/// writes (freeze, promote requests, modes) are not judged here.
///
/// # Errors
/// Names the rule that the write breaks.
pub fn check_successor(
    before: Option<&ClusterState>,
    next: &ClusterState,
    writer: &PeerId,
) -> Result<(), IllegalSuccessor> {
    let from = before.map_or(0, |state| state.generation.0);
    let illegal = |rule, problem: &str| {
        let (writer, to) = (writer.clone(), next.generation.0);
        Err(IllegalSuccessor { writer, from, to, problem: problem.to_owned(), rule })
    };
    if let Err(error) = next.validate() {
        return illegal("S1", &error.to_string());
    }
    let Some(before) = before else {
        return match (next.generation.0, next.primary.id == *writer) {
            (1, true) => Ok(()),
            (1, false) => illegal("G1", "the first state is declared by its primary"),
            _ => illegal("G1", "the first generation is 1"),
        };
    };
    if next.generation == before.generation {
        return check_same_generation(before, next, writer)
            .or_else(|(rule, why)| illegal(rule, why));
    }
    if next.generation != before.generation.next() {
        return illegal("S2", "a generation follows the one before it");
    }
    if before.is_frozen() {
        return illegal("D4", "the shard is frozen");
    }
    if next.init_wal < before.init_wal {
        return illegal("D3", "initWal went back");
    }
    let is = |peer: Option<&crate::PeerIdent>, id: &PeerId| peer.is_some_and(|p| p.id == *id);
    if next.primary.id != *writer {
        return illegal("D1", "a generation is declared by its primary");
    }
    if next.init_timeline < before.init_timeline {
        return illegal("D3", "initTimeline went back");
    }
    if before.primary.id == *writer {
        if next.primary_timeline != before.primary_timeline {
            return illegal("D7", "primaryTimeline changes only by a takeover");
        }
        if next.init_timeline < before.primary_timeline {
            return illegal("D7", "initTimeline is older than the timeline of the primary");
        }
        return Ok(());
    }
    // Where none knew it, none is known after.
    let generation = u32::try_from(before.generation.0).unwrap_or(u32::MAX);
    let known = before.primary_timeline.max(next.init_timeline).max(Some(generation));
    let begins_another = next.primary_timeline > known;
    if (next.primary_timeline.is_some() || before.primary_timeline.is_some()) && !begins_another {
        return illegal("D7", "a takeover begins a timeline with a number of its own");
    }
    if !is(before.sync.as_ref(), writer) {
        return illegal("D1", "only the primary and the sync of a generation declare the next");
    }
    if next.deposed.iter().any(|peer| peer.id == before.primary.id) {
        Ok(())
    } else {
        illegal("D1", "a primary that lost its role is deposed")
    }
}

fn check_same_generation(
    before: &ClusterState,
    next: &ClusterState,
    writer: &PeerId,
) -> Result<(), (&'static str, &'static str)> {
    let id = |peer: &Option<crate::PeerIdent>| peer.as_ref().map(|p| p.id.clone());
    if next.primary.id != before.primary.id || id(&next.sync) != id(&before.sync) {
        return Err(("D1", "the pair changes only with the generation"));
    }
    if next.init_wal != before.init_wal || next.init_timeline != before.init_timeline {
        return Err(("D3", "initWal changes only with the generation"));
    }
    if next.primary_timeline != before.primary_timeline {
        return Err(("D7", "primaryTimeline changes only by a takeover"));
    }
    if *writer == before.primary.id {
        let kept = before.deposed.iter().all(|p| next.deposed.iter().any(|n| n.id == p.id));
        return if kept { Ok(()) } else { Err(("X1", "a deposed peer stays so until repaired")) };
    }
    let mut without_writer = before.clone();
    without_writer.deposed.retain(|peer| peer.id != *writer);
    if *next == without_writer || next == before {
        Ok(())
    } else {
        Err(("C2", "only the primary changes the chain; a rebuilt peer removes only itself"))
    }
}
