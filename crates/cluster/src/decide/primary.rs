//! The primary's decisions: serve, keep the list of asyncs, replace a sync that is gone.

use super::{Decision, PgTarget, primary_config, proven_position, successor};
use crate::{
    ClusterState, Counts, Database, Gate, PeerIdent, PgConfig, Promote, PromoteRole, Reason, Role,
    View,
};

pub(super) fn decide(view: &View<'_>, state: &ClusterState) -> Decision {
    if view.database == Database::None {
        // Alone there is nobody to leave it to.
        let (postgres, reason) = if state.is_one_node_write_mode() {
            (PgTarget::Offline, Reason::OnlyDatabaseMissing)
        } else {
            (PgTarget::Abdicate, Reason::DatabaseMissing)
        };
        return Decision::stay(Role::Primary, postgres, reason);
    }
    match &state.sync {
        Some(sync) if !state.is_one_node_write_mode() => decide_pair(view, state, sync),
        _ => decide_alone(view, state),
    }
}

/// The asyncs as they should stand: those present, in order, then the newcomers (rule C2). A peer
/// that stands anywhere else in the state is no newcomer.
fn wanted_asyncs(view: &View<'_>, state: &ClusterState) -> Vec<PeerIdent> {
    let kept = state.asyncs.iter().filter(|peer| view.is_active(&peer.id)).cloned();
    let newcomers = view.active.iter().filter(|peer| !state.names(&peer.id)).cloned();
    kept.chain(newcomers).collect()
}

fn decide_pair(view: &View<'_>, state: &ClusterState, sync: &PeerIdent) -> Decision {
    let serving = serve(view, state, sync);
    if let Some(request) = &state.promote
        && let Some(decision) = decide_promote(view, state, sync, request, &serving)
    {
        return decision;
    }
    let wanted = wanted_asyncs(view, state);
    let sync_gone = !view.is_active(&sync.id);
    let candidate = state.asyncs.iter().find(|peer| view.is_active(&peer.id));
    if let (true, Some(candidate)) = (sync_gone, candidate) {
        if state.is_frozen() {
            let reason = Reason::ReplacementFrozen { sync: sync.id.clone() };
            return Decision { reason, ..serving };
        }
        let rest = wanted.iter().filter(|peer| peer.id != candidate.id).cloned().collect();
        return replace_sync(view, state, sync, candidate, rest);
    }
    if !wanted.iter().map(|peer| &peer.id).eq(state.asyncs.iter().map(|peer| &peer.id)) {
        let write = Some(ClusterState { asyncs: wanted, promote: None, ..state.clone() });
        return Decision { write, reason: Reason::UpdatingAsyncs, ..serving };
    }
    if sync_gone {
        let reason = Reason::NoReplacement { sync: sync.id.clone() };
        return Decision { reason, ..serving };
    }
    serving
}

/// Serving with the sync that the state names: closed until it has caught up (rules A1, A2).
fn serve(view: &View<'_>, state: &ClusterState, sync: &PeerIdent) -> Decision {
    let gate = view.gate_for(&sync.id);
    let config = primary_config(state, Counts::Sync(sync.id.clone()), gate);
    let sync = sync.id.clone();
    let reason = match gate {
        Gate::Open => Reason::Serving { sync },
        Gate::Closed => Reason::ClosedUntilSync { sync },
    };
    Decision::stay(Role::Primary, PgTarget::run(config), reason)
}

/// Declares a new sync, after making sure that nothing is acknowledged any more (rules D1, D2).
fn replace_sync(
    view: &View<'_>,
    state: &ClusterState,
    old: &PeerIdent,
    new: &PeerIdent,
    asyncs: Vec<PeerIdent>,
) -> Decision {
    let quiesced = quiesced(view, state, old);
    let quiescing = Decision {
        retreat: Some(serve(view, state, old).postgres),
        ..Decision::stay(
            Role::Primary,
            PgTarget::run(quiesced.clone()),
            Reason::QuiescingToReplace { sync: old.id.clone() },
        )
    };
    let Some(position) = proven_position(view, &quiesced) else {
        return quiescing;
    };
    if position < state.init_wal {
        let needed = state.init_wal;
        let reason = Reason::PrimaryBehind { wal: position, needed };
        return Decision { reason, ..quiescing };
    }
    let state = ClusterState {
        sync: Some(new.clone()),
        asyncs,
        ..successor(state, position, own_timeline(view, state))
    };
    let reason = Reason::ReplacingSync { sync: old.id.clone(), generation: state.generation };
    Decision { write: Some(state), reason, ..quiescing }
}

/// The timeline of a primary that serves, also before it was asked: it was promoted to that of the state.
fn own_timeline(view: &View<'_>, state: &ClusterState) -> Option<u32> {
    view.timeline.max(state.primary_timeline)
}

/// Nobody counts; the gate stays as it is, so that clients wait for the new sync instead of seeing
/// errors, and the slots stay too, so that going back costs nothing.
fn quiesced(view: &View<'_>, state: &ClusterState, sync: &PeerIdent) -> PgConfig {
    let gate = match view.applied.map(|applied| &applied.config) {
        Some(PgConfig::Primary { gate, .. }) => *gate,
        _ => view.gate_for(&sync.id),
    };
    primary_config(state, Counts::Nobody, gate)
}

/// A promote request while the sync is there. `None`: nothing for the primary to do about it.
fn decide_promote(
    view: &View<'_>,
    state: &ClusterState,
    sync: &PeerIdent,
    request: &Promote,
    serving: &Decision,
) -> Option<Decision> {
    let settle = |state: ClusterState| Decision {
        write: Some(ClusterState { promote: None, ..state }),
        reason: Reason::PromoteSettled { peer: request.id.clone() },
        ..serving.clone()
    };
    if !is_valid(view, state, request) {
        return Some(settle(state.clone()));
    }
    let index = match request.role {
        // The sync takes over by itself (`standby`).
        PromoteRole::Sync => return None,
        PromoteRole::Async => request.async_index?,
    };
    let mut asyncs = wanted_asyncs(view, state);
    let place = asyncs.iter().position(|peer| peer.id == request.id)?;
    if index > 0 {
        if place > 0 {
            asyncs.swap(place - 1, place);
        }
        return Some(settle(ClusterState { asyncs, ..state.clone() }));
    }
    if state.is_frozen() {
        let reason = Reason::PromoteFrozen { peer: request.id.clone() };
        return Some(Decision { reason, ..serving.clone() });
    }
    let new = asyncs.remove(place);
    asyncs.insert(0, sync.clone());
    Some(replace_sync(view, state, sync, &new, asyncs))
}

/// Whether a request still fits the state: made for this generation, not expired, and the peer
/// stands where it says (rule P1).
pub(super) fn is_valid(view: &View<'_>, state: &ClusterState, request: &Promote) -> bool {
    let stands = match (request.role, request.async_index) {
        (PromoteRole::Sync, _) => state.sync.as_ref().is_some_and(|sync| sync.id == request.id),
        (PromoteRole::Async, Some(index)) => {
            state.asyncs.get(index).is_some_and(|peer| peer.id == request.id)
        }
        (PromoteRole::Async, None) => false,
    };
    stands && request.generation == state.generation && view.now < request.expire_time
}

/// One-node-write mode: reacts to nobody; leaves the mode when it is configured to, the shard is not
/// frozen and somebody is there to become sync (rules O1, O2).
fn decide_alone(view: &View<'_>, state: &ClusterState) -> Decision {
    let alone = primary_config(state, Counts::Alone, Gate::Open);
    let serve = |reason| Decision::stay(Role::Primary, PgTarget::run(alone.clone()), reason);
    if view.one_node_write_mode {
        return serve(Reason::Alone);
    }
    let mut others = view.active.iter().filter(|peer| !state.names(&peer.id)).cloned();
    let Some(sync) = others.next() else {
        return serve(Reason::AloneNoPeer);
    };
    if state.is_frozen() {
        return serve(Reason::AloneFrozen);
    }
    let quiesced = primary_config(state, Counts::Nobody, Gate::Open);
    let reason = Reason::LeavingAlone { sync: sync.id.clone() };
    let postgres = PgTarget::run(quiesced.clone());
    let write = proven_position(view, &quiesced).map(|position| ClusterState {
        sync: Some(sync),
        asyncs: others.collect(),
        ..successor(state, position, own_timeline(view, state))
    });
    let retreat = Some(PgTarget::run(alone));
    Decision { role: Role::Primary, postgres, write, reason, retreat }
}
