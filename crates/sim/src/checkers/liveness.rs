//! Once faults have stopped, a shard takes writes again, within a bound; and where it may not, the
//! reasons that its peers show say why.

use super::Checkers;
use crate::world::{Fault, SESSION_TIMEOUT, Who, World};
use cluster::Reason;

/// How long it may take: sessions that run out, delays that have doubled, a copy, a promotion, each
/// of them perhaps more than once.
const BOUND: u64 = 30 * SESSION_TIMEOUT;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Writes are acknowledged again, after this long.
    Writable(u64),
    /// No write is acknowledged, and the reasons shown say why.
    Explained(Vec<String>),
    /// Something was wrong.
    Violated,
}

/// Ends all faults, waits for a write to be acknowledged and checks that nothing is lost.
pub fn settle(world: &mut World) -> Verdict {
    world.inflict(Fault::HealAll);
    let begin = world.now();
    let before = world.checkers.acknowledgements();
    // What blocks may show now and then only: a primary without a database comes and goes.
    let mut explained = Vec::new();
    while world.now() < begin + BOUND && world.violation().is_none() {
        if world.now() > begin + BOUND / 2 && explained.is_empty() {
            explained = explanations(world);
        }
        if world.checkers.acknowledgements() > before {
            return finish(world, begin);
        }
        world.inflict(Fault::Write { who: Who::Primary, honest: true });
        world.run_until(world.now() + 1_000);
    }
    if world.violation().is_some() {
        return Verdict::Violated;
    }
    if world.checkers.lost_disks() && !explained.is_empty() {
        return Verdict::Explained(explained);
    }
    let problem = format!("no write for {BOUND} ms after the last fault:\n{}", world.show());
    let now = world.now();
    world.checkers.stuck(now, problem);
    Verdict::Violated
}

fn explanations(world: &World) -> Vec<String> {
    let sitters = world.peers.iter().filter_map(|peer| peer.sitter.as_ref());
    let reasons = sitters.map(|sitter| sitter.machine.reason());
    reasons
        .filter(|reason| explains(reason))
        .map(|reason| world.in_letters(&reason.to_string()))
        .collect()
}

/// Whether a peer that shows this says what is missing for writes.
fn explains(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::DatabaseWithoutState
            | Reason::NoReplacement { .. }
            | Reason::DatabaseMissing
            | Reason::PrimaryBehind { .. }
            | Reason::TakeoverNoAsync { .. }
            | Reason::TakeoverBehind { .. }
            | Reason::TakeoverDiverged { .. }
            | Reason::GivingUp { .. }
    )
}

fn finish(world: &mut World, begin: u64) -> Verdict {
    let primary = world.resolve(Who::Primary).expect("somebody acknowledged");
    let end = world.peers[primary].end();
    let Checkers { commits, .. } = &world.checkers;
    let verdict = match end {
        Some(end) => commits.all_in(end, &world.timelines),
        None => Err("the last primary has no database".to_owned()),
    };
    let now = world.now();
    world.checkers.judge("commits", now, verdict);
    match world.violation() {
        None => Verdict::Writable(now - begin),
        Some(_) => Verdict::Violated,
    }
}
