//! A deposed peer stays deposed until its data is an ancestor of the primary's, or is no more: a
//! write that comes late may find that another copy was begun since, and an empty peer has nothing
//! that has diverged.

use super::Write;
use crate::world::Timelines;

pub(super) fn check(write: &Write<'_>, timelines: &Timelines) -> Result<(), String> {
    let Some(before) = write.before else { return Ok(()) };
    let deposed = |list: &[cluster::PeerIdent]| list.iter().any(|peer| peer.id == *write.writer);
    if !deposed(&before.deposed) || deposed(&write.next.deposed) {
        return Ok(());
    }
    match (write.writer_data, write.primary_data) {
        (Some(own), Some(primary)) if !timelines.contains(primary, own) => {
            Err(format!("{} takes itself back although its data has diverged", write.writer))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{ClusterState, Generation, Lsn, PeerIdent};

    #[test]
    fn sees_who_comes_back_unrepaired() {
        let peer = |number| PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, "zone");
        let next = ClusterState {
            generation: Generation(2),
            primary: peer(2),
            sync: Some(peer(3)),
            asyncs: Vec::new(),
            deposed: Vec::new(),
            init_wal: Lsn::ZERO,
            init_timeline: None,
            primary_timeline: None,
            freeze: None,
            one_node_write_mode: None,
            promote: None,
            extra: serde_json::Map::new(),
        };
        let before = ClusterState { deposed: vec![peer(1)], ..next.clone() };
        let mut tree = Timelines::default();
        let start = tree.create(1);
        let diverged = tree.append(start).expect("the end");
        let primary = tree.promote(start, 0);
        let check = |writer_data| {
            let writer = &peer(1).id;
            let (now, content, primary_data) = (0, None, Some(primary));
            let (before, next, primary) = (Some(&before), &next, Some(1));
            let (writer_is_sole, writer_acknowledges_alone) = (false, false);
            let write = Write {
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
            };
            super::check(&write, &tree).is_ok()
        };
        assert!(check(Some(start)) && check(Some(primary)) && check(None));
        assert!(!check(Some(diverged)));
    }
}
