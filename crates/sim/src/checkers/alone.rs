//! One-node-write mode: who acknowledges by itself is the primary of a state that says so, and stops
//! before a state is stored that does not. Such a state is declared frozen, with nobody else in it,
//! by a peer that is configured so, and is left only by one that is not.

use super::Write;
use cluster::{ClusterState, PeerId};

/// A primary with an empty `synchronous_standby_names` is brought to that, or acknowledges, while
/// `stored` is what is stored.
pub(super) fn serves(peer: &PeerId, stored: Option<&ClusterState>) -> Result<(), String> {
    match stored {
        Some(state) if state.is_one_node_write_mode() && state.primary.id == *peer => Ok(()),
        Some(state) => Err(format!(
            "{peer} acknowledges by itself, and generation {} is stored, which does not say so",
            state.generation
        )),
        None => Err(format!("{peer} acknowledges by itself, and nothing is stored")),
    }
}

pub(super) fn stored(write: &Write<'_>) -> Result<(), String> {
    let Write { before, next, writer, .. } = write;
    let was_sole = before.is_some_and(ClusterState::is_one_node_write_mode);
    match (was_sole, next.is_one_node_write_mode()) {
        (false, false) | (true, true) => Ok(()),
        (false, true) if before.is_some() => {
            Err(format!("{writer} brings a shard to one-node-write mode that had a sync"))
        }
        (false, true) if !write.writer_is_sole => {
            Err(format!("{writer} is not configured to serve alone and declares that it does"))
        }
        (false, true) if !next.is_frozen() || next.chain().count() > 1 => {
            Err(format!("{writer} does not declare itself alone and frozen"))
        }
        (false, true) => Ok(()),
        (true, false) if write.writer_is_sole => {
            Err(format!("{writer} is configured to serve alone and declares a sync"))
        }
        (true, false) if write.writer_acknowledges_alone => Err(format!(
            "{writer} still acknowledges by itself while generation {} is stored, which has a sync",
            next.generation
        )),
        (true, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{Freeze, Generation, Lsn, PeerIdent};

    fn peer(number: u8) -> PeerIdent {
        PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, "zone")
    }

    fn alone() -> ClusterState {
        ClusterState {
            generation: Generation(1),
            primary: peer(1),
            sync: None,
            asyncs: Vec::new(),
            deposed: Vec::new(),
            init_wal: Lsn::ZERO,
            init_timeline: None,
            primary_timeline: None,
            freeze: Some(Freeze::Bare(true)),
            one_node_write_mode: Some(true),
            promote: None,
            extra: serde_json::Map::new(),
        }
    }

    fn pair() -> ClusterState {
        let generation = Generation(2);
        let (sync, freeze, one_node_write_mode) = (Some(peer(2)), None, None);
        ClusterState { generation, sync, freeze, one_node_write_mode, ..alone() }
    }

    /// Whether peer 1 may store it, configured to serve alone or not, acknowledging alone or not.
    fn allowed(
        before: Option<&ClusterState>,
        next: &ClusterState,
        [writer_is_sole, writer_acknowledges_alone]: [bool; 2],
    ) -> bool {
        let (primary, content, writer_data, primary_data) = (None, None, None, None);
        let writer = &peer(1).id;
        stored(&Write {
            now: 0,
            before,
            next,
            writer,
            primary,
            content,
            writer_data,
            primary_data,
            writer_is_sole,
            writer_acknowledges_alone,
        })
        .is_ok()
    }

    #[test]
    fn sees_who_acknowledges_by_itself_where_the_state_does_not_say_so() {
        assert!(serves(&peer(1).id, Some(&alone())).is_ok());
        assert!(serves(&peer(1).id, Some(&pair())).is_err(), "it has a sync");
        assert!(serves(&peer(2).id, Some(&alone())).is_err(), "another is the primary");
        assert!(serves(&peer(1).id, None).is_err(), "nothing is stored");
    }

    /// Rules O1 and O2.
    #[test]
    fn sees_who_enters_or_leaves_the_mode_otherwise_than_it_may() {
        let thawed = ClusterState { freeze: None, ..alone() };
        let with_async = ClusterState { asyncs: vec![peer(3)], ..alone() };
        assert!(allowed(None, &alone(), [true, false]));
        assert!(!allowed(None, &alone(), [false, false]), "not configured so");
        assert!(!allowed(None, &thawed, [true, false]), "not frozen");
        assert!(!allowed(None, &with_async, [true, false]), "somebody else is in it");
        assert!(!allowed(Some(&pair()), &alone(), [true, false]), "there was a sync");
        assert!(allowed(Some(&thawed), &pair(), [false, false]));
        assert!(!allowed(Some(&thawed), &pair(), [true, false]), "configured to stay alone");
        assert!(!allowed(Some(&thawed), &pair(), [false, true]), "not quiesced");
    }
}
