//! The nodes of a shard, to the letter of the original's layout, and what their names say.
//!
//! - `<shardPath>/election`: registrations, `<id>-<10 digits>`, in the order of the number.
//! - `<shardPath>/state`: the cluster state.
//! - `<shardPath>/history`: one child a write, `<generation>-<10 digits>`.
//!
//! What others wrote is read as far as it can be: peers of the first version have names of other
//! ages and less in their data. What cannot be read at all is for the caller to report.

use crate::coord::Registration;
use cluster::v1::{RegistrationName, V1Error};
use cluster::{Generation, PeerIdent};

/// The paths of one shard.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) shard: String,
    pub(super) election: String,
    pub(super) state: String,
    pub(super) history: String,
}

impl Layout {
    pub(super) fn new(shard_path: &str) -> Self {
        Layout {
            shard: shard_path.to_owned(),
            election: format!("{shard_path}/election"),
            state: format!("{shard_path}/state"),
            history: format!("{shard_path}/history"),
        }
    }
}

/// The name of a node that ZooKeeper numbered, in its two parts.
pub(super) fn numbered(name: &str) -> Option<(&str, u64)> {
    let (before, number) = name.rsplit_once('-')?;
    let digits = number.len() >= 10 && number.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !before.is_empty()).then_some((before, number.parse().ok()?))
}

/// What a write of the state is called in the history. Entries of the first version, which have
/// all that they tell in their name, are none of these.
pub(super) fn history_name(name: &str) -> Option<(Generation, u64)> {
    let (generation, sequence) = numbered(name)?;
    Some((Generation(generation.parse().ok()?), sequence))
}

/// The data of a registration: the name of the peer is in the node's.
pub(super) fn registration_data(peer: &PeerIdent) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(peer)?;
    if let Some(object) = value.as_object_mut() {
        object.remove("id");
    }
    serde_json::to_vec(&value)
}

/// A child of `election` as a registration. The name says who it is; what its data lacks is derived
/// from that, as peers of the first version lack much.
pub(super) fn registration(name: &str, data: &[u8]) -> Result<Registration, V1Error> {
    let name = RegistrationName::parse(name)?;
    Ok(Registration { sequence: name.sequence, peer: name.peer(data)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names() {
        assert_eq!(numbered("10.0.0.1:5432:12345-0000000007"), Some(("10.0.0.1:5432:12345", 7)));
        assert_eq!(numbered("a-b-0000000007"), Some(("a-b", 7)));
        for name in ["", "a", "a-7", "-0000000007", "a-000000000x", "a-"] {
            assert_eq!(numbered(name), None, "{name}");
        }
        assert_eq!(history_name("12-0000000003"), Some((Generation(12), 3)));
        let first_version =
            "1426704011095-10.0.0.1-AssumeLeader-Leader-undefined-10.0.0.2-0000000004";
        assert_eq!(history_name(first_version), None);
    }

    #[test]
    fn a_registration_is_read_as_it_was_written() {
        let peer = PeerIdent::new("10.0.0.1", 5432, 12345, "zone");
        let data = registration_data(&peer).expect("JSON");
        let text = String::from_utf8(data.clone()).expect("text");
        assert!(!text.contains("\"id\""), "{text}");
        let read = registration("10.0.0.1:5432:12345-0000000003", &data).expect("a peer");
        assert_eq!(read, Registration { sequence: 3, peer });
    }

    /// What is read of a name of each age is for `cluster::v1` to test.
    #[test]
    fn a_registration_of_the_first_version() {
        let read = registration("10.0.0.1:5433:12346:12347-0000000003", b"{}").expect("a peer");
        assert_eq!(read.sequence, 3);
        assert_eq!(read.peer.id.as_str(), "10.0.0.1:5433:12346");
        assert_eq!(read.peer.pg_url, "tcp://postgres@10.0.0.1:5433/postgres");
    }

    #[test]
    fn what_is_no_registration() {
        assert!(matches!(registration("a", b"{}"), Err(V1Error::Registration(_))));
        for data in ["[]", "{", "7", r#"{"zoneId":7}"#] {
            let read = registration("a-0000000001", data.as_bytes());
            assert!(matches!(read, Err(V1Error::Data(..))), "{data}: {read:?}");
        }
    }
}
