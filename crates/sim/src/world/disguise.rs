//! What a mutation shows a machine instead of what is stored.

use super::World;
use crate::Mutation;
use cluster::{ClusterState, StateSeen, Version};

impl World {
    /// What a mutation shows the machine instead of what is stored.
    pub(super) fn disguised(&self, mut seen: StateSeen) -> StateSeen {
        if let Ok(state) = &mut seen.state {
            if self.mutated(Mutation::IgnoreInitWal) {
                state.init_wal = cluster::Lsn::ZERO;
                state.init_timeline = None;
            }
            if self.mutated(Mutation::IgnoreFreeze) {
                state.freeze = None;
            }
        }
        seen
    }

    /// Puts back what a mutation did not show, where the machine has not itself decided about it.
    pub(super) fn undisguised(
        &self,
        expected: Option<Version>,
        mut state: ClusterState,
    ) -> ClusterState {
        let hidden =
            matches!(self.setup.mutation, Some(Mutation::IgnoreInitWal | Mutation::IgnoreFreeze));
        if let Some((version, stored)) = self.service.state()
            && hidden
            && Some(*version) == expected
        {
            if state.generation == stored.generation {
                state.init_wal = stored.init_wal;
                state.init_timeline = stored.init_timeline;
            }
            state.freeze.clone_from(&stored.freeze);
        }
        state
    }
}
