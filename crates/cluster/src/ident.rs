//! Who a peer is.

use crate::Database;
use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt};

/// The name of a peer in everything that the shard shares: `ip:postgresPort:backupPort`.
///
/// Compared as text; only what a sitter makes for itself is checked for the three parts
/// ([`PeerIdent::new`]), because old shards hold other forms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(String);

impl PeerId {
    /// This text as a peer's name.
    pub fn new(text: impl Into<String>) -> Self {
        PeerId(text.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for PeerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A peer as it stands in the cluster state and in its registration. Fields of others are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerIdent {
    /// Its name.
    pub id: PeerId,
    /// The zone or host that it runs in; operators name peers by it.
    pub zone_id: String,
    /// Its address.
    pub ip: String,
    /// How to reach its PostgreSQL, in the original's form `tcp://user@ip:port/database`.
    pub pg_url: String,
    /// How to reach its backup service; old peers have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_url: Option<String>,
    /// What is not ours, kept as it was.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A peer whose PostgreSQL address cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error(
    "peer {peer}: pgUrl {url:?} names no host and port: expected tcp://user@host:port/database"
)]
pub struct PeerIdentError {
    peer: PeerId,
    url: String,
}

/// The field of a registration that tells what lies in the dataset.
const DATABASE: &str = "database";

impl PeerIdent {
    /// The identity of a peer at this address, with the URLs derived from it.
    pub fn new(ip: &str, pg_port: u16, backup_port: u16, zone_id: &str) -> Self {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        PeerIdent {
            id: PeerId(format!("{ip}:{pg_port}:{backup_port}")),
            zone_id: zone_id.to_owned(),
            ip: ip.to_owned(),
            pg_url: format!("tcp://postgres@{host}:{pg_port}/postgres"),
            backup_url: Some(format!("http://{host}:{backup_port}")),
            extra: serde_json::Map::new(),
        }
    }

    /// Host and port of its PostgreSQL, from `pgUrl`; the port is 5432 where it has none.
    ///
    /// # Errors
    /// When `pgUrl` has no host or a port that is no number.
    pub fn pg_address(&self) -> Result<(String, u16), PeerIdentError> {
        let error = || PeerIdentError { peer: self.id.clone(), url: self.pg_url.clone() };
        let rest = self.pg_url.split_once("://").ok_or_else(error)?.1;
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let host_port = authority.rsplit_once('@').map_or(authority, |(_, after)| after);
        let (host, port) = match host_port.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((host, after)) => (host, after.strip_prefix(':')),
            None => match host_port.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host_port, None),
            },
        };
        let port = port.map_or(Ok(5432), str::parse).map_err(|_| error())?;
        if host.is_empty() { Err(error()) } else { Ok((host.to_owned(), port)) }
    }

    /// A registration's own words: the peer with what lies in its dataset, so that nobody sets a
    /// shard up over a database that has served (rule G2).
    #[must_use]
    pub fn with_database(mut self, database: Database) -> Self {
        let kind = serde_json::to_value(database).unwrap_or_default();
        self.extra.insert(DATABASE.to_owned(), kind);
        self
    }

    /// The reverse of [`PeerIdent::with_database`].
    pub(crate) fn forget_database(&mut self) {
        self.extra.remove(DATABASE);
    }

    /// Whether it registered with a database that has served.
    pub fn has_served(&self) -> bool {
        let kind = self.extra.get(DATABASE).cloned().map(serde_json::from_value);
        matches!(kind, Some(Ok(Database::Established)))
    }

    /// The first eight characters of the zone: what tables show as PEER.
    pub fn abbreviation(&self) -> &str {
        self.zone_id.char_indices().nth(8).map_or(&self.zone_id, |(end, _)| &self.zone_id[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Option<(&str, u16)>) {
        let mut peer = PeerIdent::new("10.0.0.1", 5432, 12345, "zone");
        peer.pg_url = url.to_owned();
        let got = peer.pg_address().ok();
        assert_eq!(got, expected.map(|(host, port)| (host.to_owned(), port)), "{url}");
    }

    #[test]
    fn address_from_every_form_of_url() {
        check("tcp://postgres@10.0.0.1:5432/postgres", Some(("10.0.0.1", 5432)));
        check("tcp://10.0.0.1:10001/postgres", Some(("10.0.0.1", 10001)));
        check("tcp://postgres@10.0.0.1/postgres", Some(("10.0.0.1", 5432)));
        check("tcp://postgres@[fd00::1]:5433/postgres", Some(("fd00::1", 5433)));
        check("tcp://postgres@[fd00::1]/postgres", Some(("fd00::1", 5432)));
        check("10.0.0.1:5432", None);
        check("tcp://postgres@/postgres", None);
        check("tcp://postgres@host:many/postgres", None);
    }

    #[test]
    fn abbreviation_is_eight_characters() {
        assert_eq!(PeerIdent::new("::1", 1, 2, "301e2142-fed1").abbreviation(), "301e2142");
        assert_eq!(PeerIdent::new("::1", 1, 2, "änderung-lang").abbreviation(), "änderung");
        assert_eq!(PeerIdent::new("::1", 1, 2, "a").abbreviation(), "a");
    }

    #[test]
    fn what_others_wrote_is_kept() {
        let json = r#"{"id":"a:1:2","zoneId":"z","ip":"a","pgUrl":"tcp://a:1/p","hb":7}"#;
        let peer: PeerIdent = serde_json::from_str(json).expect("a peer");
        assert_eq!(serde_json::to_string(&peer).expect("JSON"), json);
    }
}
