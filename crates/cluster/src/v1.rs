//! What the first version of the original left in ZooKeeper, and what follows from it: registrations
//! whose order is the topology, histories that have everything in their names, and the state that
//! makes a shard of it one of the second version.
//!
//! Here are names and data, not where they were read. Names of the second version's registrations are
//! read, too: one of the three ages is theirs.

use crate::{ClusterState, Freeze, FreezeInfo, Generation, Lsn, PeerIdent, Role, StateError};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use std::net::Ipv6Addr;

/// The port of a peer's PostgreSQL when its name has none.
const PG_PORT: u16 = 5432;

/// The port of its backup service when its name has none.
const BACKUP_PORT: u16 = 12345;

/// The name of a registration: `ip-N`, `ip:pgPort:backupPort-N` or `ip:pgPort:backupPort:hbPort-N`,
/// where `N` are at least ten digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationName {
    /// The peer's address.
    pub ip: String,
    /// The port of its PostgreSQL.
    pub pg_port: u16,
    /// The port of its backup service.
    pub backup_port: u16,
    /// Its place in the order of registrations.
    pub sequence: u64,
}

/// A node that is none of those that it stands among.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum V1Error {
    /// No registration.
    #[error(
        "{0:?} is no name of a registration: expected ip-N, ip:pgPort:backupPort-N or \
         ip:pgPort:backupPort:hbPort-N, with ten digits for N"
    )]
    Registration(String),
    /// No event.
    #[error(
        "{0:?} is no name of an event of the first version: expected \
         time-ip-action-role-master-slave-N, with the time in ms"
    )]
    Event(String),
    /// The data of a registration, by its name.
    #[error("the data of registration {0:?} is no peer in JSON: {1}")]
    Data(String, String),
}

/// What stands before and after the last dash, if that are the digits that ZooKeeper gives.
fn numbered(name: &str) -> Option<(&str, u64)> {
    let (before, number) = name.rsplit_once('-')?;
    let digits = number.len() >= 10 && number.bytes().all(|byte| byte.is_ascii_digit());
    if digits && !before.is_empty() { Some((before, number.parse().ok()?)) } else { None }
}

impl RegistrationName {
    /// Reads a name of any age.
    ///
    /// # Errors
    /// When it has none of the three forms.
    pub fn parse(name: &str) -> Result<Self, V1Error> {
        let error = || V1Error::Registration(name.to_owned());
        let (id, sequence) = numbered(name).ok_or_else(error)?;
        let parts: Vec<&str> = id.split(':').collect();
        // An IPv6 address has colons of its own; only names of the second version hold one.
        let (ip, ports) = match parts.len() {
            0..=4 if !id.contains("::") => parts.split_at(1),
            length => parts.split_at(length - 2),
        };
        let ip = ip.join(":");
        let sound = match ip.contains(':') {
            true => ip.parse::<Ipv6Addr>().is_ok(),
            false => !ip.is_empty(),
        };
        let ports: Vec<u16> =
            ports.iter().map(|port| port.parse()).collect::<Result<_, _>>().map_err(|_| error())?;
        let (pg_port, backup_port) = match ports[..] {
            [] => (PG_PORT, BACKUP_PORT),
            [pg, backup] | [pg, backup, _] => (pg, backup),
            _ => return Err(error()),
        };
        let name = RegistrationName { ip, pg_port, backup_port, sequence };
        if sound { Ok(name) } else { Err(error()) }
    }

    /// The peer that registered with this data: empty, or the JSON of a peer. What the data lacks is
    /// derived from the name. Its id is that of the second version, whatever the age of the name.
    ///
    /// # Errors
    /// When the data is something else.
    pub fn peer(&self, data: &[u8]) -> Result<PeerIdent, V1Error> {
        let derived = PeerIdent::new(&self.ip, self.pg_port, self.backup_port, "");
        let error = |problem: String| V1Error::Data(derived.id.to_string(), problem);
        let mut given = match data.trim_ascii() {
            [] => Map::new(),
            data => serde_json::from_slice(data).map_err(|problem| error(problem.to_string()))?,
        };
        given.insert("id".to_owned(), derived.id.as_str().into());
        let mut default = |field: &str, value: &str| {
            let there = given.entry(field).or_insert(Value::Null);
            if there.is_null() {
                *there = value.into();
            }
        };
        // Nothing is known of where a peer without data runs but its address.
        default("zoneId", &self.ip);
        default("ip", &self.ip);
        default("pgUrl", &derived.pg_url);
        default("backupUrl", derived.backup_url.as_deref().unwrap_or_default());
        serde_json::from_value(Value::Object(given)).map_err(|problem| error(problem.to_string()))
    }
}

/// An event of the first version's history: everything about it is in its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct V1Event {
    /// When it was written, by the writer's clock.
    #[serde(skip)]
    pub time: Timestamp,
    /// Who wrote it: its address, perhaps with the port of its PostgreSQL.
    pub ip: String,
    /// What it did: `AssumeLeader`, `NewLeader`, `NewStandby`, `ExpiredStandby`.
    pub action: String,
    /// What it was then.
    pub role: String,
    /// Its upstream; empty when it had none.
    pub master: String,
    /// Its downstream; empty when it had none.
    pub slave: String,
    /// Its place among the children of the history.
    #[serde(skip)]
    pub sequence: u64,
}

impl V1Event {
    /// Reads `timeMs-ip-action-role-master-slave-seq`.
    ///
    /// # Errors
    /// When the name is none of these.
    pub fn parse(name: &str) -> Result<Self, V1Error> {
        let error = || V1Error::Event(name.to_owned());
        let (before, sequence) = numbered(name).ok_or_else(error)?;
        // The name of a host may have dashes, so both ends are read first.
        let (time, rest) = before.split_once('-').ok_or_else(error)?;
        let mut parts = rest.rsplitn(5, '-');
        let mut next = || parts.next().map(str::to_owned).ok_or_else(error);
        let (slave, master, role, action, ip) = (next()?, next()?, next()?, next()?, next()?);
        let time: i64 = time.parse().map_err(|_| error())?;
        let time = Timestamp::from_millisecond(time).map_err(|_| error())?;
        // What was not there, as JavaScript writes it.
        let there = |text: String| if text == "undefined" { String::new() } else { text };
        let (master, slave) = (there(master), there(slave));
        if ip.is_empty() || action.is_empty() {
            return Err(error());
        }
        Ok(V1Event { time, ip, action, role, master, slave, sequence })
    }

    /// What happened, in words.
    pub fn summary(&self) -> String {
        let V1Event { ip, action, role, master, slave, .. } = self;
        let or_none =
            |peer: &str| if peer.is_empty() { "nobody".to_owned() } else { peer.to_owned() };
        match action.as_str() {
            "AssumeLeader" => format!("{ip} became primary"),
            "NewLeader" => format!("{ip} ({role}) follows {}", or_none(master)),
            "NewStandby" => format!("{ip} ({role}) is followed by {}", or_none(slave)),
            "ExpiredStandby" => format!("{ip} ({role}) lost its standby {}", or_none(slave)),
            other => format!(
                "{ip} ({role}): {other}, after {}, before {}",
                or_none(master),
                or_none(slave)
            ),
        }
    }
}

/// The roles that the order of registrations gives: the first is primary, the second sync, the others
/// asyncs. A peer that is registered twice has the place of its first registration.
pub fn roles(registered: &[PeerIdent]) -> Vec<(Role, &PeerIdent)> {
    let mut roles: Vec<(Role, &PeerIdent)> = Vec::new();
    for peer in registered {
        if roles.iter().all(|(_, other)| other.id != peer.id) {
            let role = match roles.len() {
                0 => Role::Primary,
                1 => Role::Sync,
                _ => Role::Async,
            };
            roles.push((role, peer));
        }
    }
    roles
}

/// Fewer peers than a shard needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackfillError {
    /// Fewer than two.
    #[error("{0} registered: a shard needs a primary and a sync")]
    TooFew(usize),
    /// The state would be illegal.
    #[error(transparent)]
    Illegal(#[from] StateError),
}

/// The state that makes a shard of the first version one of the second, as the original's tool made it:
/// in the order of the registrations, but for the last async and the sync, which change places. Frozen,
/// so that nobody acts on it before an operator has looked.
///
/// # Errors
/// When fewer than two peers are registered.
pub fn backfill(
    registered: &[PeerIdent],
    reason: &str,
    date: Timestamp,
) -> Result<ClusterState, BackfillError> {
    let mut chain = roles(registered).into_iter().map(|(_, peer)| peer.clone());
    let count = chain.len();
    let (Some(primary), Some(old_sync)) = (chain.next(), chain.next()) else {
        return Err(BackfillError::TooFew(count));
    };
    let mut asyncs: Vec<PeerIdent> = chain.collect();
    let sync = match asyncs.last_mut() {
        Some(last) => std::mem::replace(last, old_sync),
        None => old_sync,
    };
    let state = ClusterState {
        generation: Generation(0),
        primary,
        sync: Some(sync),
        asyncs,
        deposed: Vec::new(),
        init_wal: Lsn::ZERO,
        init_timeline: None,
        primary_timeline: None,
        freeze: Some(Freeze::Since(FreezeInfo {
            date,
            reason: reason.to_owned(),
            extra: Map::new(),
        })),
        one_node_write_mode: None,
        promote: None,
        extra: Map::new(),
    };
    state.validate()?;
    Ok(state)
}

#[cfg(test)]
#[path = "v1_tests.rs"]
mod tests;
