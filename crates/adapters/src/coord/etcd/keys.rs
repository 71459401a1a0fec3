//! What stands where in etcd: ZooKeeper's layout, as keys below one prefix for each shard.
//!
//! | key | value |
//! | --- | --- |
//! | `<root>/<shard>/state` | the cluster state |
//! | `<root>/<shard>/election/<peer id>-<lease>` | a registration: the peer's JSON, bound to its session's lease |
//! | `<root>/<shard>/history/<number>-<generation>-<time>` | one write of the state: the same JSON |
//!
//! etcd numbers writes by itself, so that a name needs no number to be in order: the sequence of a
//! registration or of a write is the revision in which its key was created, which is never used twice.
//! The number in a name of the history (20 digits) is a revision that came before this write and not
//! before the one ahead of it; it makes the name unique and keeps the names in order. etcd keeps no
//! times, so the writer's clock stands in the name, in milliseconds since 1970.

use cluster::{Generation, PeerId};
use jiff::Timestamp;

/// The keys of one shard.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// Those of `shard` below `root`, which is empty or begins with a slash and ends with none.
    pub(super) fn new(root: &str, shard: &str) -> Self {
        Keys { prefix: format!("{root}/{shard}/") }
    }

    /// What all keys of the shard begin with.
    pub(super) fn all(&self) -> &str {
        &self.prefix
    }

    pub(super) fn state(&self) -> String {
        format!("{}state", self.prefix)
    }

    /// What the keys of all registrations begin with.
    pub(super) fn election(&self) -> String {
        format!("{}election/", self.prefix)
    }

    pub(super) fn registration(&self, peer: &PeerId, lease: i64) -> String {
        format!("{}election/{peer}-{lease:016x}", self.prefix)
    }

    /// What the keys of the whole history begin with.
    pub(super) fn history(&self) -> String {
        format!("{}history/", self.prefix)
    }

    pub(super) fn written(&self, number: i64, generation: Generation, time: Timestamp) -> String {
        let time = time.as_millisecond();
        format!("{}history/{number:020}-{generation}-{time}", self.prefix)
    }
}

/// Generation and time in the name of an entry of the history; `None` when the key is no such name.
pub(super) fn parse_written(key: &str) -> Option<(Generation, Timestamp)> {
    let (_, name) = key.rsplit_once('/')?;
    let mut parts = name.splitn(3, '-');
    let _number: u64 = parts.next()?.parse().ok()?;
    let generation = Generation(parts.next()?.parse().ok()?);
    let time = Timestamp::from_millisecond(parts.next()?.parse().ok()?).ok()?;
    Some((generation, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout() {
        let keys = Keys::new("/manatee", "1.example");
        assert_eq!(keys.all(), "/manatee/1.example/");
        assert_eq!(keys.state(), "/manatee/1.example/state");
        let peer = PeerId::new("10.0.0.1:5432:12345");
        assert_eq!(
            keys.registration(&peer, 0x694d_7e41),
            "/manatee/1.example/election/10.0.0.1:5432:12345-00000000694d7e41"
        );
        let time = "2026-05-04T10:00:00.25Z".parse().expect("a time");
        let written = keys.written(42, Generation(3), time);
        assert_eq!(written, "/manatee/1.example/history/00000000000000000042-3-1777888800250");
        assert_eq!(parse_written(&written), Some((Generation(3), time)));
        assert_eq!(Keys::new("", "s").state(), "/s/state");
    }

    #[test]
    fn what_is_no_name_of_a_write() {
        for key in
            ["", "/m/s/history/", "/m/s/history/1", "/m/s/history/x-3-7", "/m/s/history/1-3-"]
        {
            assert_eq!(parse_written(key), None, "{key:?}");
        }
    }
}
