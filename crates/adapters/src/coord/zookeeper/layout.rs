//! The nodes of a shard, to the letter of the original's layout, and what their names say.
//!
//! - `<shardPath>/election`: registrations, `<id>-<10 digits>`, in the order of the number.
//! - `<shardPath>/state`: the cluster state.
//! - `<shardPath>/history`: one child a write, `<generation>-<10 digits>`.
//!
//! What others wrote is read as far as it can be: peers of the first version have names of other
//! ages and less in their data. What cannot be read at all is for the caller to report.

use crate::coord::Registration;
use cluster::{Generation, PeerId, PeerIdent};
use serde_json::{Map, Value};

/// The ports of a peer whose name has none.
const PG_PORT: u16 = 5432;

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

/// Why a child of `election` is passed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("its name does not end in a dash and ten digits")]
    Name,
    #[error("its data is no JSON object of a peer")]
    Data(#[source] serde_json::Error),
}

/// A child of `election` as a registration. The name says who it is; what its data lacks is derived
/// from that.
pub(super) fn registration(name: &str, data: &[u8]) -> Result<Registration, Unreadable> {
    let (id, sequence) = numbered(name).ok_or(Unreadable::Name)?;
    // Peers of the first version may have registered with nothing.
    let mut object: Map<String, Value> = match data {
        [] => Map::new(),
        data => serde_json::from_slice(data).map_err(Unreadable::Data)?,
    };
    let (ip, pg_port) = address(id);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    object.insert("id".to_owned(), id.into());
    let mut default = |field: &str, value: String| {
        let entry = object.entry(field).or_insert(Value::Null);
        if entry.is_null() {
            *entry = value.into();
        }
    };
    default("zoneId", id.to_owned());
    default("ip", ip);
    default("pgUrl", format!("tcp://postgres@{host}:{pg_port}/postgres"));
    if object.get("backupUrl").is_some_and(Value::is_null) {
        object.remove("backupUrl");
    }
    let peer: PeerIdent =
        serde_json::from_value(Value::Object(object)).map_err(Unreadable::Data)?;
    debug_assert_eq!(peer.id, PeerId::new(id));
    Ok(Registration { sequence, peer })
}

/// Address and PostgreSQL's port in a name: `ip`, `ip:pgPort:backupPort` or
/// `ip:pgPort:backupPort:heartbeatPort`, where an IPv6 address has colons of its own.
fn address(id: &str) -> (String, u16) {
    let parts: Vec<&str> = id.split(':').collect();
    // An IPv4 address or a host's name has no colons, so that the number of parts tells the age.
    let is_ipv6 = id.contains("::") || parts.len() > 4;
    let ports = if is_ipv6 { 2 } else { parts.len() - 1 };
    let (host, ports) = parts.split_at(parts.len().saturating_sub(ports).max(1));
    let port = ports.first().and_then(|port| port.parse().ok()).unwrap_or(PG_PORT);
    (host.join(":"), port)
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

    fn check(name: &str, data: &str, expected: (&str, &str, &str)) {
        let read = registration(name, data.as_bytes()).expect("a peer");
        let peer = read.peer;
        assert_eq!((peer.id.as_str(), peer.ip.as_str(), peer.pg_url.as_str()), expected, "{name}");
        assert_eq!(peer.backup_url, None);
    }

    #[test]
    fn registrations_of_every_age() {
        check(
            "10.0.0.1-0000000003",
            "",
            ("10.0.0.1", "10.0.0.1", "tcp://postgres@10.0.0.1:5432/postgres"),
        );
        check(
            "10.0.0.1:5433:12345-0000000003",
            r#"{"zoneId":"z","backupUrl":null}"#,
            ("10.0.0.1:5433:12345", "10.0.0.1", "tcp://postgres@10.0.0.1:5433/postgres"),
        );
        check(
            "10.0.0.1:5433:12345:12346-0000000003",
            r#"{"zoneId":"z","ip":"10.0.0.9"}"#,
            ("10.0.0.1:5433:12345:12346", "10.0.0.9", "tcp://postgres@10.0.0.1:5433/postgres"),
        );
        check(
            "fd00::1:5433:12345-0000000003",
            r#"{"zoneId":"z"}"#,
            ("fd00::1:5433:12345", "fd00::1", "tcp://postgres@[fd00::1]:5433/postgres"),
        );
        check(
            "10.0.0.1:5432:12345-0000000003",
            r#"{"zoneId":"z","pgUrl":"tcp://x@h:1/p"}"#,
            ("10.0.0.1:5432:12345", "10.0.0.1", "tcp://x@h:1/p"),
        );
    }

    #[test]
    fn what_is_no_registration() {
        assert!(matches!(registration("a", b"{}"), Err(Unreadable::Name)));
        for data in ["[]", "{", "7", r#"{"zoneId":7}"#] {
            let read = registration("a-0000000001", data.as_bytes());
            assert!(matches!(read, Err(Unreadable::Data(_))), "{data}: {read:?}");
        }
    }
}
