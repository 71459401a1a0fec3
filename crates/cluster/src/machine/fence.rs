//! Fence by proof (rules F1, F2): a primary may serve while either its session is confirmed or its
//! sync has answered within the lease.
//!
//! Why this is enough: a successor is declared only by the sync, after it detached. From then on the
//! sync answers nothing, and it detaches only after this session expired. So a primary that was
//! superseded has no proof younger than the later of the two, and stops one lease after it at the
//! latest; that it cannot acknowledge anything in that time is the doing of rule D2, not of the
//! fence.

use super::{Action, Machine};
use crate::{Counts, Monotonic, PgConfig};

impl Machine {
    /// Until when this peer may serve as primary.
    pub(super) fn serve_until(&self) -> Option<Monotonic> {
        self.proof.map(|proof| proof + self.config.lease)
    }

    pub(super) fn prove(&mut self, at: Monotonic) {
        self.proof = self.proof.max(Some(at));
    }

    /// Whether a primary configuration may be started or go on now.
    pub(super) fn may_serve(&self, now: Monotonic) -> bool {
        self.serve_until().is_some_and(|until| now < until)
    }

    /// Stops PostgreSQL at once if it runs or is being started as a primary.
    pub(super) fn fence(&mut self, now: Monotonic, actions: &mut Vec<Action>) {
        if self.exposed && !self.fencing && now >= self.fence_at {
            self.fencing = true;
            actions.push(Action::Fence);
        }
    }

    /// Stops a primary whose proofs have run out.
    pub(super) fn check_fence(&mut self, now: Monotonic, actions: &mut Vec<Action>) {
        if self.exposed && !self.may_serve(now) {
            self.fenced = true;
            self.fence(now, actions);
        }
    }
}

/// Whether a primary with this configuration may be superseded by another. In one-node-write mode
/// nobody can (rule O1).
pub(super) fn needs_proof(config: &PgConfig) -> bool {
    match config {
        PgConfig::Primary { counts: Counts::Alone, .. } | PgConfig::Standby { .. } => false,
        PgConfig::Primary { .. } => true,
    }
}
