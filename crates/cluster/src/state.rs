//! The cluster state: the one object that holds the topology of a shard.

use crate::{Lsn, PeerId, PeerIdent};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// How many times the pair of primary and sync has been declared; grows by one each time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one that a successor declares.
    #[must_use]
    pub fn next(self) -> Self {
        Generation(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why and since when there is no takeover.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FreezeInfo {
    /// When it was frozen.
    pub date: Timestamp,
    /// What the operator gave as reason.
    pub reason: String,
    /// What is not ours, kept as it was.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A frozen shard changes no generation. Old states hold a bare boolean.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Freeze {
    /// Frozen or not, and nothing is known of why.
    Bare(bool),
    /// Frozen, with reason and date.
    Since(FreezeInfo),
}

/// Which place a promoted peer has when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PromoteRole {
    /// The sync is to become primary.
    Sync,
    /// An async is to move one place up.
    Async,
}

/// A request to move a peer one place up, valid for one generation until it expires.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Promote {
    /// The peer to move.
    pub id: PeerId,
    /// The role that it has now.
    pub role: PromoteRole,
    /// Its place among the asyncs, for an async.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_index: Option<usize>,
    /// The generation that the request was made for.
    pub generation: Generation,
    /// When it is void.
    pub expire_time: Timestamp,
    /// What is not ours, kept as it was.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The cluster state. [`ClusterState::parse`] reads it from what was stored and refuses what is
/// malformed or illegal; unknown fields survive a round trip.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterState {
    /// Grows by one with each declared pair.
    pub generation: Generation,
    /// The one peer that takes writes.
    pub primary: PeerIdent,
    /// The peer whose flush acknowledges them; none only in one-node-write mode.
    pub sync: Option<PeerIdent>,
    /// The rest of the chain, in order.
    #[serde(rename = "async")]
    pub asyncs: Vec<PeerIdent>,
    /// Former primaries whose data may have diverged. Missing in old states.
    #[serde(default)]
    pub deposed: Vec<PeerIdent>,
    /// The WAL position that a sync of this generation must have before it may take over.
    pub init_wal: Lsn,
    /// The timeline that a sync of this generation must have followed before it may take over; absent
    /// in states of the original, which did not check it. A WAL position alone does not prove that
    /// a peer did not branch off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_timeline: Option<u32>,
    /// The timeline that the primary began when it was promoted, a number that no other promotion of the
    /// shard has (rule D7); absent before the first takeover, and in states of the original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_timeline: Option<u32>,
    /// No generation change while frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// The primary serves alone and reacts to nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_node_write_mode: Option<bool>,
    /// A pending request of an operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promote: Option<Promote>,
    /// What is not ours, kept as it was.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A stored cluster state that cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[error("cluster state: {field}: {problem}")]
pub struct StateError {
    /// The field that is wrong, as a path (`async[1].pgUrl`); `JSON` when it is none at all.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl StateError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        StateError { field: field.into(), problem: problem.into() }
    }
}

impl ClusterState {
    /// Reads and validates a stored state.
    ///
    /// # Errors
    /// Names the field and the reason when the text is no JSON, a field is missing or of the wrong
    /// kind, or the state is one that no shard may have ([`ClusterState::validate`]).
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| StateError::new("JSON", error.to_string()))?;
        let state = Self::from_value(value)?;
        state.validate()?;
        Ok(state)
    }

    /// Reads a state from JSON without judging its legality.
    ///
    /// # Errors
    /// Names the first field that is missing or of the wrong kind.
    pub fn from_value(value: Value) -> Result<Self, StateError> {
        let Value::Object(object) = &value else {
            return Err(StateError::new("JSON", "is not an object"));
        };
        // One field at a time, so that the error names the field: serde alone names only lines.
        check_field::<Generation>(object, "generation", Presence::Required)?;
        check_peer(object.get("primary"), "primary")?;
        match object.get("sync") {
            None => return Err(StateError::new("sync", "is missing")),
            Some(Value::Null) => {}
            peer => check_peer(peer, "sync")?,
        }
        check_peers(object, "async", Presence::Required)?;
        check_peers(object, "deposed", Presence::Optional)?;
        check_field::<Lsn>(object, "initWal", Presence::Required)?;
        check_field::<Option<u32>>(object, "initTimeline", Presence::Optional)?;
        check_field::<Option<u32>>(object, "primaryTimeline", Presence::Optional)?;
        check_field::<Option<Freeze>>(object, "freeze", Presence::Optional)
            .map_err(|_| StateError::new("freeze", "is neither a boolean nor {date, reason}"))?;
        check_field::<Option<bool>>(object, "oneNodeWriteMode", Presence::Optional)?;
        check_field::<Option<Promote>>(object, "promote", Presence::Optional)?;
        serde_json::from_value(value).map_err(|error| StateError::new("JSON", error.to_string()))
    }

    /// The laws of one state (rule S1): a sync unless in one-node-write mode, and no peer in two
    /// places.
    ///
    /// # Errors
    /// Names the field that breaks the law.
    pub fn validate(&self) -> Result<(), StateError> {
        if self.sync.is_none() && !self.is_one_node_write_mode() {
            return Err(StateError::new("sync", "is null outside one-node-write mode"));
        }
        if let (Some(sync), true) = (&self.sync, self.is_one_node_write_mode()) {
            let problem = format!("is {} although the shard is in one-node-write mode", sync.id);
            return Err(StateError::new("sync", problem));
        }
        let mut places: BTreeMap<&PeerId, String> = BTreeMap::new();
        for (place, peer) in self.places() {
            if peer.id.as_str().is_empty() {
                return Err(StateError::new(format!("{place}.id"), "is empty"));
            }
            if let Some(other) = places.insert(&peer.id, place.clone()) {
                let problem = format!("peer {} already stands at {other}", peer.id);
                return Err(StateError::new(place, problem));
            }
        }
        Ok(())
    }

    /// Every place of the state with the peer in it, the deposed last.
    pub fn places(&self) -> impl Iterator<Item = (String, &PeerIdent)> {
        let one = |name: &str, peer| (name.to_owned(), peer);
        let list = |name: &'static str, peers: &'_ [PeerIdent]| {
            (0..peers.len()).map(move |index| format!("{name}[{index}]")).collect::<Vec<_>>()
        };
        std::iter::once(one("primary", &self.primary))
            .chain(self.sync.iter().map(move |sync| one("sync", sync)))
            .chain(list("async", &self.asyncs).into_iter().zip(&self.asyncs))
            .chain(list("deposed", &self.deposed).into_iter().zip(&self.deposed))
    }

    /// Whether no takeover may happen.
    pub fn is_frozen(&self) -> bool {
        match &self.freeze {
            None => false,
            Some(Freeze::Bare(frozen)) => *frozen,
            Some(Freeze::Since(_)) => true,
        }
    }

    /// Whether the primary serves alone.
    pub fn is_one_node_write_mode(&self) -> bool {
        self.one_node_write_mode == Some(true)
    }

    /// Whether this peer stands anywhere in the state.
    pub fn names(&self, id: &PeerId) -> bool {
        self.places().any(|(_, peer)| peer.id == *id)
    }

    /// The replication chain, in order: primary, sync, asyncs.
    pub fn chain(&self) -> impl Iterator<Item = &PeerIdent> {
        std::iter::once(&self.primary).chain(&self.sync).chain(&self.asyncs)
    }

    /// The peer that `id` streams from, when it is in the chain and not its head.
    pub fn upstream_of(&self, id: &PeerId) -> Option<&PeerIdent> {
        let place = self.chain().position(|peer| peer.id == *id)?;
        self.chain().nth(place.checked_sub(1)?)
    }

    /// The peer that streams from `id`.
    pub fn downstream_of(&self, id: &PeerId) -> Option<&PeerIdent> {
        let place = self.chain().position(|peer| peer.id == *id)?;
        self.chain().nth(place + 1)
    }

    /// The same without what its peers said in their registrations only.
    #[must_use]
    pub fn without_words_of_registrations(mut self) -> Self {
        let chain = std::iter::once(&mut self.primary).chain(&mut self.sync);
        for peer in chain.chain(&mut self.asyncs).chain(&mut self.deposed) {
            peer.forget_database();
        }
        self
    }

    /// As it is stored: compact JSON with the original's field names.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a cluster state is always JSON")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Presence {
    Required,
    Optional,
}

fn check_field<'de, T: Deserialize<'de>>(
    object: &'de Map<String, Value>,
    field: &str,
    presence: Presence,
) -> Result<(), StateError> {
    match (object.get(field), presence) {
        (None, Presence::Optional) => Ok(()),
        (None, Presence::Required) => Err(StateError::new(field, "is missing")),
        (Some(value), _) => match T::deserialize(value) {
            Ok(_) => Ok(()),
            Err(error) => Err(StateError::new(field, error.to_string())),
        },
    }
}

fn check_peers(
    object: &Map<String, Value>,
    field: &str,
    presence: Presence,
) -> Result<(), StateError> {
    match (object.get(field), presence) {
        (None, Presence::Optional) => Ok(()),
        (None, Presence::Required) => Err(StateError::new(field, "is missing")),
        (Some(Value::Array(peers)), _) => peers
            .iter()
            .enumerate()
            .try_for_each(|(index, peer)| check_peer(Some(peer), &format!("{field}[{index}]"))),
        (Some(_), _) => Err(StateError::new(field, "is not a list of peers")),
    }
}

fn check_peer(peer: Option<&Value>, field: &str) -> Result<(), StateError> {
    let Some(Value::Object(peer)) = peer else {
        let problem = if peer.is_none() { "is missing" } else { "is not a peer" };
        return Err(StateError::new(field, problem));
    };
    for name in ["id", "zoneId", "ip", "pgUrl"] {
        check_field::<String>(peer, name, Presence::Required)
            .map_err(|error| StateError::new(format!("{field}.{name}"), error.problem))?;
    }
    check_field::<Option<String>>(peer, "backupUrl", Presence::Optional)
        .map_err(|error| StateError::new(format!("{field}.backupUrl"), error.problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn peer(number: u8) -> Value {
        json!(PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}")))
    }

    /// A legal state with this field replaced, or removed when the value is null.
    fn state_with(field: &str, value: Value) -> Value {
        let mut state = json!({
            "generation": 3, "primary": peer(1), "sync": peer(2), "async": [peer(3)],
            "deposed": [peer(4)], "initWal": "0/17B7188",
        });
        let object = state.as_object_mut().expect("an object");
        match value {
            Value::Null => drop(object.remove(field)),
            value => drop(object.insert(field.to_owned(), value)),
        }
        state
    }

    fn check_refused(state: &Value, field: &str, problem: &str) {
        let error = ClusterState::parse(&state.to_string()).expect_err("a refused state");
        assert_eq!(error.field, field, "{error}");
        assert!(error.problem.contains(problem), "{error}");
    }

    /// Rule S1.
    #[test]
    fn what_is_malformed_or_illegal_is_refused_with_field_and_reason() {
        let mut no_url = peer(3);
        no_url.as_object_mut().expect("a peer").remove("pgUrl");
        for (field, value, named, problem) in [
            ("generation", Value::Null, "generation", "is missing"),
            ("generation", json!(-1), "generation", "invalid value"),
            ("generation", json!("3"), "generation", "invalid type"),
            ("primary", Value::Null, "primary", "is missing"),
            ("primary", json!("10.0.0.1:5432:12345"), "primary", "is not a peer"),
            ("sync", Value::Null, "sync", "is missing"),
            ("async", Value::Null, "async", "is missing"),
            ("async", peer(3), "async", "is not a list"),
            ("async", json!([peer(3), 7]), "async[1]", "is not a peer"),
            ("async", json!([no_url]), "async[0].pgUrl", "is missing"),
            ("async", json!([peer(2)]), "async[0]", "already stands at sync"),
            ("async", json!([peer(3), peer(3)]), "async[1]", "already stands at async[0]"),
            ("deposed", json!([peer(1)]), "deposed[0]", "already stands at primary"),
            ("sync", peer(1), "sync", "already stands at primary"),
            ("initWal", json!("17B7188"), "initWal", "no WAL position"),
            ("initWal", Value::Null, "initWal", "is missing"),
            ("freeze", json!("yes"), "freeze", "neither a boolean"),
            ("freeze", json!({"reason": "no date"}), "freeze", "neither a boolean"),
            ("oneNodeWriteMode", json!(1), "oneNodeWriteMode", "invalid type"),
            ("oneNodeWriteMode", json!(true), "sync", "although the shard is in one-node-write"),
            ("promote", json!({"id": "x"}), "promote", "missing field"),
        ] {
            check_refused(&state_with(field, value), named, problem);
        }
        let mut state = state_with("x", json!(1));
        state["sync"] = Value::Null;
        check_refused(&state, "sync", "null outside one-node-write mode");
        let error = ClusterState::parse("{\"generation\": 1,").expect_err("no JSON");
        assert_eq!(error.field, "JSON");
        check_refused(&json!([1]), "JSON", "not an object");
    }

    #[test]
    fn a_round_trip_keeps_what_is_not_ours() {
        let mut state = state_with("ours", json!({"not": ["at", "all"]}));
        state["primary"]["hb"] = json!(7);
        state["freeze"] = json!({"date": "2015-03-18T18:40:11.095Z", "reason": "r", "who": "me"});
        let parsed = ClusterState::parse(&state.to_string()).expect("a legal state");
        let again: Value = serde_json::from_str(&parsed.to_json()).expect("JSON");
        assert_eq!(again, state);
    }

    #[test]
    fn what_old_states_lack_or_have_otherwise_is_read() {
        let parse = |state: Value| ClusterState::parse(&state.to_string()).expect("a legal state");
        assert_eq!(parse(state_with("deposed", Value::Null)).deposed, []);
        assert!(parse(state_with("freeze", json!(true))).is_frozen());
        assert!(!parse(state_with("freeze", json!(false))).is_frozen());
        let mut alone = state_with("oneNodeWriteMode", json!(true));
        alone["sync"] = Value::Null;
        assert!(parse(alone).is_one_node_write_mode());
    }
}
