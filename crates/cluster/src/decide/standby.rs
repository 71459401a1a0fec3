//! The decisions of the rest of the chain: follow, take over, come back after being deposed.

use super::{Decision, PgTarget, primary::is_valid, proven_position, successor};
use crate::{ClusterState, PeerIdent, PgConfig, PromoteRole, Reason, Role, StandbyRole, View};

fn standby_config(
    view: &View<'_>,
    state: &ClusterState,
    place: StandbyRole,
    upstream: Option<&PeerIdent>,
) -> PgConfig {
    let downstream = state.downstream_of(&view.me.id);
    PgConfig::Standby {
        place,
        upstream: upstream.cloned(),
        downstream: downstream.map(|peer| peer.id.clone()).into_iter().collect(),
    }
}

fn follow(
    view: &View<'_>,
    state: &ClusterState,
    place: StandbyRole,
    upstream: &PeerIdent,
) -> PgTarget {
    let mut sources = vec![upstream.clone()];
    if upstream.id != state.primary.id {
        sources.push(state.primary.clone());
    }
    PgTarget::Run { config: standby_config(view, state, place, Some(upstream)), sources }
}

pub(super) fn decide_async(
    view: &View<'_>,
    state: &ClusterState,
    upstream: &PeerIdent,
) -> Decision {
    let postgres = follow(view, state, StandbyRole::Async, upstream);
    Decision::stay(Role::Async, postgres, Reason::Following { upstream: upstream.id.clone() })
}

/// The sync follows the primary, and takes over when the primary is gone or an operator asks for
/// it: detach, then read, then declare (rules D1 to D4, P1).
pub(super) fn decide_sync(view: &View<'_>, state: &ClusterState) -> Decision {
    let primary = &state.primary;
    let following = Decision::stay(
        Role::Sync,
        follow(view, state, StandbyRole::Sync, primary),
        Reason::Following { upstream: primary.id.clone() },
    );
    let asked = state.promote.as_ref().is_some_and(|request| {
        request.role == PromoteRole::Sync
            && request.id == view.me.id
            && is_valid(view, state, request)
    });
    if view.is_active(&primary.id) && !asked {
        return following;
    }
    let mut asyncs: Vec<_> = state.asyncs.iter().filter(|peer| view.is_active(&peer.id)).collect();
    if asyncs.is_empty() && !view.is_active(&primary.id) {
        // Nobody else can take a newcomer in.
        asyncs.extend(view.active.iter().find(|peer| !state.names(&peer.id)));
    }
    let primary_id = primary.id.clone();
    let me = || view.me.id.clone();
    let Some((new_sync, rest)) = asyncs.split_first() else {
        let reason = match asked {
            true => Reason::PromoteNoAsync { peer: me() },
            false => Reason::TakeoverNoAsync { primary: primary_id },
        };
        return Decision { reason, ..following };
    };
    if state.is_frozen() {
        let reason = match asked {
            true => Reason::PromoteFrozen { peer: me() },
            false => Reason::TakeoverFrozen { primary: primary_id },
        };
        return Decision { reason, ..following };
    }
    let detached = standby_config(view, state, StandbyRole::Sync, None);
    let proven = proven_position(view, &detached);
    // A position that quiescing proved is the whole truth; until then the newest one known spares
    // a peer that is still behind from detaching again and again.
    let unproven = match (proven.or(view.wal), view.timeline, state.init_timeline) {
        (None, ..) | (_, None, Some(_)) => {
            Some(Reason::TakeoverUnproven { primary: primary_id.clone() })
        }
        (Some(wal), ..) if wal < state.init_wal => {
            let (primary, needed) = (primary_id.clone(), state.init_wal);
            Some(Reason::TakeoverBehind { primary, wal, needed })
        }
        (_, Some(timeline), Some(needed)) if timeline < needed => {
            let primary = primary_id.clone();
            Some(Reason::TakeoverDiverged { primary, timeline, needed })
        }
        _ => None,
    };
    if let Some(reason) = unproven {
        return Decision { reason, ..following };
    }
    let postgres = PgTarget::run(detached);
    let retreat = Some(following.postgres);
    let Some(position) = proven else {
        let reason = Reason::Detaching { primary: primary_id };
        return Decision { role: Role::Sync, postgres, write: None, reason, retreat };
    };
    let mut deposed = state.deposed.clone();
    if deposed.iter().all(|peer| peer.id != primary.id) {
        deposed.push(primary.clone());
    }
    let next = ClusterState {
        primary: view.me.clone(),
        sync: Some((*new_sync).clone()),
        asyncs: rest.iter().map(|&peer| peer.clone()).collect(),
        deposed,
        primary_timeline: next_timeline(state, view.timeline),
        ..successor(state, position, view.timeline)
    };
    let reason = Reason::TakingOver { primary: primary_id, generation: next.generation };
    Decision { role: Role::Sync, postgres, write: Some(next), reason, retreat }
}

/// The number of the timeline that a takeover of this state by a peer on timeline `own` begins: above that of
/// every promotion before it, and of the timeline that the shard began on (rule D7). It is not below the
/// generation, as peers that knew no `primaryTimeline` chose theirs.
fn next_timeline(state: &ClusterState, own: Option<u32>) -> Option<u32> {
    let generation = u32::try_from(state.generation.0).unwrap_or(u32::MAX);
    let newest = own?.max(state.primary_timeline.unwrap_or_default()).max(generation);
    newest.checked_add(1)
}

/// Deposed: repaired by an operator, or rebuilt from the primary and then taken out of the deposed, in the generation that the copy was made in (rules X1, X2).
pub(super) fn decide_deposed(view: &View<'_>, state: &ClusterState) -> Decision {
    let stay = |postgres, reason| Decision::stay(Role::Deposed, postgres, reason);
    if view.deposed_policy == crate::DeposedPolicy::Manual {
        return stay(PgTarget::Offline, Reason::DeposedManual);
    }
    if view.rebuilt {
        let mut next = state.clone();
        next.deposed.retain(|peer| peer.id != view.me.id);
        let write = Some(next);
        let reason = Reason::Rejoining;
        return Decision { write, ..stay(PgTarget::Offline, reason) };
    }
    // The primary's data is the shard's by definition. That of any other member may itself have
    // diverged unnoticed, and a copy of it would be taken back as if it were repaired.
    if !view.is_active(&state.primary.id) {
        return stay(PgTarget::Offline, Reason::RebuildNoSource);
    }
    let sources = vec![state.primary.clone()];
    stay(PgTarget::Rebuilt(sources), Reason::Rebuilding)
}
