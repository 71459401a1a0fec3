//! The decision: from what a peer sees to one complete target. Stateless and level-triggered: the
//! same view gives the same decision, however often it is taken.
//!
//! What is deliberately not here: what is in flight, retries, time-outs, the fence. Those are the
//! machine's.

mod primary;
mod standby;

use crate::{
    ClusterState, Counts, Database, Freeze, FreezeInfo, Gate, Generation, Lsn, PeerIdent, PgConfig,
    Reason, Role, View,
};

/// What PostgreSQL on this peer should be brought to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PgTarget {
    /// Whatever it is now.
    Hold,
    /// Not running.
    Offline,
    /// A database exists, not running: created if there is none (rule G1).
    Prepared,
    /// Running with this configuration, over a database that is copied from the first of `sources`
    /// that gives one, where there is none yet.
    Run {
        /// The whole configuration.
        config: PgConfig,
        /// Where a missing database may be copied from, best first; empty when it must not be.
        sources: Vec<PeerIdent>,
    },
    /// The present database kept aside and replaced by a copy from the first of these peers that
    /// gives one (rule X2).
    Rebuilt(Vec<PeerIdent>),
    /// Not running, and the session given up, so that others can act (rule X3).
    Abdicate,
}

impl PgTarget {
    fn run(config: PgConfig) -> Self {
        PgTarget::Run { config, sources: Vec::new() }
    }
}

/// A complete target with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The place of this peer.
    pub role: Role,
    /// What its PostgreSQL should be.
    pub postgres: PgTarget,
    /// The cluster state to store, on condition that the stored one is still the one seen.
    pub write: Option<ClusterState>,
    /// Why.
    pub reason: Reason,
    /// What to go back to when this peer has quiesced to declare and cannot go on (rule M2).
    pub retreat: Option<PgTarget>,
}

impl Decision {
    fn stay(role: Role, postgres: PgTarget, reason: Reason) -> Self {
        Decision { role, postgres, write: None, reason, retreat: None }
    }
}

/// Decides. Total: there is a decision, with its reason, for every view.
pub fn decide(view: &View<'_>) -> Decision {
    let Some(state) = view.state else {
        return set_up(view);
    };
    let me = &view.me.id;
    if state.primary.id == *me {
        primary::decide(view, state)
    } else if state.is_one_node_write_mode() {
        let primary = state.primary.id.clone();
        let role = if deposed(state, view) { Role::Deposed } else { Role::Unassigned };
        Decision::stay(role, PgTarget::Offline, Reason::SoleOther { primary })
    } else if state.sync.as_ref().is_some_and(|sync| sync.id == *me) {
        standby::decide_sync(view, state)
    } else if let (true, Some(upstream)) =
        (state.asyncs.iter().any(|peer| peer.id == *me), state.upstream_of(me))
    {
        standby::decide_async(view, state, upstream)
    } else if deposed(state, view) {
        standby::decide_deposed(view, state)
    } else {
        let reason = Reason::AwaitingPlace { primary: state.primary.id.clone() };
        Decision::stay(Role::Unassigned, PgTarget::Offline, reason)
    }
}

fn deposed(state: &ClusterState, view: &View<'_>) -> bool {
    state.deposed.iter().any(|peer| peer.id == view.me.id)
}

/// No state yet: the first of at least two active peers declares generation 1, over a database that
/// it created for that (rules G1, G2, O1).
fn set_up(view: &View<'_>) -> Decision {
    let wait = |reason| Decision::stay(Role::Unassigned, PgTarget::Offline, reason);
    if view.database == Database::Established {
        // A state that was there and is gone is no reason to stop what serves.
        let postgres = if view.applied.is_some() { PgTarget::Hold } else { PgTarget::Offline };
        return Decision::stay(Role::Unassigned, postgres, Reason::DatabaseWithoutState);
    }
    if let Some(peer) = view.active.iter().find(|peer| peer.has_served()) {
        return wait(Reason::DatabaseElsewhere { peer: peer.id.clone() });
    }
    if !view.one_node_write_mode {
        match view.active {
            [] => return wait(Reason::SetupUnregistered),
            [first, ..] if first.id != view.me.id => {
                return wait(Reason::SetupByAnother { first: first.id.clone() });
            }
            [_] => return wait(Reason::SetupAlone),
            _ => {}
        }
    }
    if view.database == Database::None {
        let reason = Reason::PreparingDatabase;
        return Decision::stay(Role::Unassigned, PgTarget::Prepared, reason);
    }
    let generation = Generation(1);
    let others = if view.one_node_write_mode { &[] } else { &view.active[1..] };
    let state = ClusterState {
        generation,
        primary: view.me.clone(),
        sync: others.first().cloned(),
        asyncs: others.iter().skip(1).cloned().collect(),
        deposed: Vec::new(),
        init_wal: Lsn::ZERO,
        init_timeline: None,
        primary_timeline: None,
        freeze: view.one_node_write_mode.then(|| {
            Freeze::Since(FreezeInfo {
                date: view.now,
                reason: "set up in one-node-write mode".to_owned(),
                extra: serde_json::Map::new(),
            })
        }),
        one_node_write_mode: view.one_node_write_mode.then_some(true),
        promote: None,
        extra: serde_json::Map::new(),
    };
    Decision {
        role: Role::Unassigned,
        postgres: PgTarget::Offline,
        write: Some(state),
        reason: Reason::Declaring { generation },
        retreat: None,
    }
}

/// A primary's configuration with the slots that its place asks for.
fn primary_config(state: &ClusterState, counts: Counts, gate: Gate) -> PgConfig {
    let downstream = state.downstream_of(&state.primary.id);
    PgConfig::Primary {
        generation: state.generation,
        timeline: state.primary_timeline,
        init_wal: state.init_wal,
        counts,
        gate,
        downstream: downstream.map(|p| p.id.clone()).into_iter().collect(),
    }
}

/// The position that quiescing proved, if PostgreSQL is in exactly this quiesced configuration.
fn proven_position(view: &View<'_>, quiesced: &PgConfig) -> Option<Lsn> {
    debug_assert!(quiesced.is_quiesced());
    view.applied.filter(|applied| applied.config == *quiesced).map(|applied| applied.position)
}

/// The state that follows `state` when this peer declares a new pair: the requests and the mode of
/// the old one end with it, everything unknown is carried over.
fn successor(state: &ClusterState, position: Lsn, timeline: Option<u32>) -> ClusterState {
    ClusterState {
        generation: state.generation.next(),
        init_wal: position,
        init_timeline: timeline.or(state.init_timeline),
        promote: None,
        one_node_write_mode: None,
        ..state.clone()
    }
}
