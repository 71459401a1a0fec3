//! What is stored follows from what was stored before, by the law of writes: generations grow by
//! one, each is declared by the primary or the sync of the one before, states are legal, a frozen
//! shard has no new generation.

use super::Write;
use cluster::check_successor;

pub(super) fn check(write: &Write<'_>) -> Result<(), String> {
    check_successor(write.before, write.next, write.writer).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{ClusterState, Freeze, Generation, Lsn, PeerIdent};

    fn peer(number: u8) -> PeerIdent {
        PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, "zone")
    }

    fn state(generation: u64, order: [u8; 3]) -> ClusterState {
        let [primary, sync, last] = order.map(peer);
        ClusterState {
            generation: Generation(generation),
            primary,
            sync: Some(sync),
            asyncs: vec![last],
            deposed: Vec::new(),
            init_wal: Lsn::ZERO,
            init_timeline: None,
            primary_timeline: None,
            freeze: None,
            one_node_write_mode: None,
            promote: None,
            extra: serde_json::Map::new(),
        }
    }

    fn allowed(before: &ClusterState, next: &ClusterState, writer: u8) -> bool {
        let writer = &peer(writer).id;
        let (primary, content, writer_data, primary_data) = (None, None, None, None);
        let before = Some(before);
        let now = 0;
        let (writer_is_sole, writer_acknowledges_alone) = (false, false);
        check(&Write {
            now,
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

    /// Rules S1, S2, D1 and D4.
    #[test]
    fn sees_generations_that_are_skipped_frozen_or_declared_by_others() {
        let before = state(1, [1, 2, 3]);
        assert!(allowed(&before, &state(2, [1, 3, 2]), 1));
        assert!(!allowed(&before, &state(3, [1, 3, 2]), 1), "one is skipped");
        assert!(!allowed(&before, &state(2, [3, 1, 2]), 3), "an async declares");
        assert!(!allowed(&before, &state(2, [2, 3, 1]), 2), "the old primary is not deposed");
        assert!(!allowed(&before, &state(2, [1, 1, 2]), 1), "a peer in two places");
        let frozen = ClusterState { freeze: Some(Freeze::Bare(true)), ..before };
        assert!(!allowed(&frozen, &state(2, [1, 3, 2]), 1), "frozen");
    }
}
