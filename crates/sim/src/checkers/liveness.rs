//! Once faults have stopped, a shard takes writes again, within a bound; and where it does not, that
//! is accepted only where the rules leave nothing else: judged by what is really on the disks and in
//! the service, and shown by the peer that would have to act.

use super::Checkers;
use crate::world::{Fault, Peer, SESSION_TIMEOUT, Who, World};
use cluster::Reason;
use serde::Serialize;
use std::fmt;

/// How long it may take: sessions that run out, delays that have doubled, a copy, a promotion, each
/// of them perhaps more than once.
const BOUND: u64 = 30 * SESSION_TIMEOUT;

/// Why a shard may not take writes, although everything runs and reaches everything. Each begins with
/// the loss of the primary's disk: as long as the primary has its database, another sync can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Blocked {
    /// It served alone (rule O1).
    OnlyCopy,
    /// The sync has no database: it had not been given one yet, or was being given another (rules D3, X4).
    SyncWithoutDatabase,
    /// The sync has not all that was there when the generation began (rule D3).
    SyncBehind,
    /// The sync has followed another timeline than the generation began on (rule D3).
    SyncDiverged,
    /// The sync has everything, but nobody is there to become its sync: all others are deposed, and only a
    /// primary could take them in (rules D1, X2).
    NoAsync,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Blocked::OnlyCopy => "it served alone",
            Blocked::SyncWithoutDatabase => "the sync has no database",
            Blocked::SyncBehind => "the sync has not all that the generation began with",
            Blocked::SyncDiverged => "the sync is on another timeline",
            Blocked::NoAsync => "there is no async to become sync",
        };
        write!(f, "the disk of the primary is lost, and {what}")
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Writes are acknowledged again, after this long.
    Writable(u64),
    /// No write is acknowledged, and the rules allow none.
    Blocked(Blocked),
    /// Something was wrong.
    Violated,
}

/// Ends all faults, waits for a write to be acknowledged and checks that nothing is lost.
pub fn settle(world: &mut World) -> Verdict {
    world.inflict(Fault::HealAll);
    let begin = world.now();
    let before = world.checkers.acknowledgements();
    // What blocks may show now and then only: a primary without a database comes and goes.
    let mut said = None;
    while world.now() < begin + BOUND && world.violation().is_none() {
        if world.checkers.acknowledgements() > before {
            return finish(world, begin);
        }
        if world.now() > begin + BOUND / 2 && said.is_none() {
            said = blocked(world).filter(|blocked| is_said(world, *blocked));
        }
        world.inflict(Fault::Write { who: Who::Primary, honest: true });
        world.run_until(world.now() + 1_000);
    }
    if world.violation().is_some() {
        return Verdict::Violated;
    }
    match (said, blocked(world)) {
        (Some(said), Some(blocked)) if said == blocked => Verdict::Blocked(blocked),
        (said, blocked) => {
            let problem = format!(
                "no write for {BOUND} ms after the last fault; what is really so: {blocked:?}, what \
                 the peers said: {said:?}\n{}",
                world.show()
            );
            let now = world.now();
            world.checkers.stuck(now, problem);
            Verdict::Violated
        }
    }
}

/// Why nobody may serve, by what is really there; nothing where somebody may.
fn blocked(world: &World) -> Option<Blocked> {
    let state = world.service.cluster()?;
    let primary = world.resolve(Who::Primary)?;
    if world.peers[primary].disk.is_some() || !world.checkers.has_lost_disk(primary) {
        return None;
    }
    let Some(sync) = world.resolve(Who::Sync) else { return Some(Blocked::OnlyCopy) };
    let may_become_sync = |(index, peer): (usize, &Peer)| {
        let id = &peer.ident.id;
        let stands = state.asyncs.iter().any(|peer| peer.id == *id) || !state.names(id);
        world.service.is_active(index) && stands
    };
    let Some(end) = world.peers[sync].end() else { return Some(Blocked::SyncWithoutDatabase) };
    let timeline = world.timelines.number(end.branch);
    if end.position < state.init_wal.byte() {
        Some(Blocked::SyncBehind)
    } else if state.init_timeline.is_some_and(|needed| timeline < needed) {
        Some(Blocked::SyncDiverged)
    } else if !world.peers.iter().enumerate().any(may_become_sync) {
        Some(Blocked::NoAsync)
    } else {
        None
    }
}

/// Whether the peer that would have to act says so.
fn is_said(world: &World, blocked: Blocked) -> bool {
    let says = |who, says: fn(&Reason) -> bool| {
        let sitter = world.resolve(who).and_then(|peer| world.peers[peer].sitter.as_ref());
        sitter.is_some_and(|sitter| says(sitter.machine.reason()))
    };
    match blocked {
        Blocked::OnlyCopy => says(Who::Primary, |reason| *reason == Reason::OnlyDatabaseMissing),
        // A copy is begun again and again, from the primary, which has nothing to give.
        Blocked::SyncWithoutDatabase | Blocked::SyncBehind => says(Who::Sync, |reason| {
            matches!(
                reason,
                Reason::TakeoverUnproven { .. }
                    | Reason::TakeoverBehind { .. }
                    | Reason::TakeoverNoAsync { .. }
            )
        }),
        Blocked::SyncDiverged => says(Who::Sync, |reason| {
            matches!(reason, Reason::TakeoverDiverged { .. } | Reason::TakeoverNoAsync { .. })
        }),
        Blocked::NoAsync => {
            says(Who::Sync, |reason| matches!(reason, Reason::TakeoverNoAsync { .. }))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Pace, Setup};

    /// A shard of three that serves, with one commit; deposed peers wait for an operator.
    fn shard(alone: u8) -> World {
        let (own_expiry, stale_reads, mutation) = (true, false, None);
        let (peers, seed, pace, timeline, manual) = (3, 0, Pace::Steady, 1, true);
        let mut world = World::new(Setup {
            peers,
            seed,
            pace,
            timeline,
            manual,
            alone,
            own_expiry,
            stale_reads,
            mutation,
        });
        for peer in 0..3 {
            world.inflict(Fault::StartHost(Who::Peer(peer)));
            world.run_until(world.now() + 10);
        }
        world.run_until(15_000);
        world.inflict(Fault::Write { who: Who::Primary, honest: true });
        world.run_until(16_000);
        assert_eq!(world.checkers.acknowledgements(), 1);
        world
    }

    /// The same after its primary was deposed: nobody is left to become a sync.
    fn without_async() -> World {
        let mut world = shard(0);
        world.inflict(Fault::ExpireSession(Who::Primary));
        world.run_until(30_000);
        world
    }

    #[test]
    fn a_lost_disk_is_no_reason_where_somebody_may_take_over() {
        let mut world = shard(0);
        world.inflict(Fault::LoseDisk(Who::Primary));
        assert!(matches!(settle(&mut world), Verdict::Writable(_)), "{}", world.show());
    }

    #[test]
    fn what_is_really_so_is_accepted_and_named() {
        let mut world = without_async();
        world.inflict(Fault::LoseDisk(Who::Primary));
        assert_eq!(settle(&mut world), Verdict::Blocked(Blocked::NoAsync), "{}", world.show());
        let mut world = shard(1);
        world.inflict(Fault::LoseDisk(Who::Primary));
        assert_eq!(settle(&mut world), Verdict::Blocked(Blocked::OnlyCopy), "{}", world.show());
    }

    /// The same is shown by the same peers; but no disk was lost, so a rule has broken something.
    #[test]
    fn what_is_only_said_is_not_accepted() {
        let mut world = without_async();
        let primary = world.resolve(Who::Primary).expect("a primary");
        world.inflict(Fault::KillHost(Who::Primary));
        world.peers[primary].disk = None;
        assert_eq!(settle(&mut world), Verdict::Violated);
        let seen = world.violation().expect("a violation");
        assert_eq!(seen.checker, "liveness", "{seen}");
    }
}
