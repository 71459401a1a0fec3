//! Conformance vectors: recorded behaviour of the original's state machine, one JSON object a line,
//! each driving one peer (`node1`) through steps and saying what was true after each of them.
//!
//! A vector is read leniently: the recordings hold states that [`ClusterState::parse`] refuses (a
//! peer in two places), because the original acted on them.

mod world;

use cluster::{ClusterState, PeerIdent};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fmt;

/// One recording.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vector {
    /// Its name, for reports.
    pub name: String,
    /// Whether `node1` is configured for one-node-write mode.
    pub one_node_write_mode: bool,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// Inputs that are applied back to back, and what was true once the world had settled.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// The inputs.
    pub inputs: Vec<Input>,
    /// Whether the recorded peer was retrying nothing at the end. How ours waits is its own affair.
    #[serde(rename = "settled")]
    _settled: bool,
    /// What was observed.
    pub expect: Value,
}

/// One input.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    #[serde(default)]
    start: bool,
    #[serde(default)]
    caught_up: bool,
    active: Option<Vec<String>>,
    cluster_state: Option<Value>,
}

/// Where and how a peer behaved otherwise than it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The vector.
    pub vector: String,
    /// The step, counted from 1.
    pub step: usize,
    /// What differs, a line each: field, expected, got.
    pub lines: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: step {}:", self.vector, self.step)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// A line that is no vector.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: not a conformance vector")]
pub struct VectorError {
    /// The line, counted from 1.
    pub line: usize,
    /// Why.
    #[source]
    pub cause: serde_json::Error,
}

/// Reads vectors, one a line; empty lines are passed over.
///
/// # Errors
/// Names the first line that is no vector.
pub fn parse(text: &str) -> Result<Vec<Vector>, VectorError> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|cause| VectorError { line: index + 1, cause })
        })
        .collect()
}

/// Drives a machine through a vector.
///
/// # Errors
/// The first step after which something is otherwise than recorded.
pub fn check(vector: &Vector) -> Result<(), Difference> {
    let mut world = world::World::new(vector.one_node_write_mode);
    for (index, step) in vector.steps.iter().enumerate() {
        let difference = |lines| Difference { vector: vector.name.clone(), step: index + 1, lines };
        for input in &step.inputs {
            world.apply(input).map_err(|problem| difference(vec![problem]))?;
        }
        world.settle();
        let mut lines = Vec::new();
        compare("", &normal(&step.expect), &normal(&world.observe()), &mut lines);
        if !lines.is_empty() {
            lines.push(format!("the machine says: {}", world.reason()));
            return Err(difference(lines));
        }
    }
    Ok(())
}

/// WAL positions compare by value, not by how many zeros they are printed with.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            Value::Object(object.iter().map(|(key, value)| (key.clone(), normal(value))).collect())
        }
        Value::String(text) => match text.parse::<cluster::Lsn>() {
            Ok(lsn) => json!(lsn.to_string()),
            Err(_) => value.clone(),
        },
        other => other.clone(),
    }
}

fn compare(path: &str, expected: &Value, got: &Value, lines: &mut Vec<String>) {
    match (expected, got) {
        (Value::Object(a), Value::Object(b)) => {
            let missing = Value::Null;
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let pair = (a.get(key).unwrap_or(&missing), b.get(key).unwrap_or(&missing));
                compare(&path, pair.0, pair.1, lines);
            }
        }
        (a, b) if a == b => {}
        (a, b) => lines.push(format!("{path}: expected {a}, got {b}")),
    }
}

/// `nodeN` as the vectors mean it.
fn peer(name: &str) -> PeerIdent {
    let number = name.trim_start_matches("node");
    let mut peer = PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, name);
    peer.id = cluster::PeerId::new(name);
    peer.backup_url = None;
    peer
}

/// A state that names peers by id only, made whole.
fn whole_state(short: &Value) -> Result<ClusterState, String> {
    let ident = |value: &Value| match value {
        Value::String(name) => serde_json::to_value(peer(name)).unwrap_or_default(),
        other => other.clone(),
    };
    let mut state = short.as_object().ok_or("clusterState is not an object")?.clone();
    for (key, value) in &mut state {
        match (key.as_str(), &mut *value) {
            ("primary" | "sync", peer) => *peer = ident(peer),
            ("async" | "deposed", Value::Array(peers)) => {
                peers.iter_mut().for_each(|peer| *peer = ident(peer));
            }
            ("promote", Value::Object(promote)) => whole_promote(promote),
            _ => {}
        }
    }
    ClusterState::from_value(Value::Object(state)).map_err(|error| error.to_string())
}

fn whole_promote(promote: &mut Map<String, Value>) {
    let expired = promote.remove("expired") == Some(Value::Bool(true));
    let time = if expired { "2000-01-01T00:00:00Z" } else { "2100-01-01T00:00:00Z" };
    promote.insert("expireTime".to_owned(), json!(time));
}

/// The reverse of [`whole_state`], as expectations are written.
fn short_state(state: &ClusterState) -> Value {
    let ids = |peers: &[PeerIdent]| peers.iter().map(|p| json!(p.id)).collect::<Vec<_>>();
    let mut short = json!({
        "generation": state.generation,
        "primary": state.primary.id,
        "sync": state.sync.as_ref().map(|sync| &sync.id),
        "async": ids(&state.asyncs),
        "deposed": ids(&state.deposed),
        "initWal": state.init_wal,
    });
    let object = short.as_object_mut().expect("an object");
    if state.is_frozen() {
        object.insert("freeze".to_owned(), json!(true));
    }
    if state.promote.is_some() {
        object.insert("promote".to_owned(), json!(true));
    }
    if state.is_one_node_write_mode() {
        object.insert("oneNodeWriteMode".to_owned(), json!(true));
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP: &str = r#"{"name":"setup","oneNodeWriteMode":false,"steps":[
        {"inputs":[{"start":true,"active":["node1","node2"]}],"settled":true,"expect":{
            "role":"ROLE","pg":{"online":true,"config":{"role":"primary","upstream":null,"downstream":"node2"}},
            "clusterState":{"generation":1,"primary":"node1","sync":"node2","async":[],"deposed":[],"initWal":"0/00000000"},
            "wal":"0/0000000a"}}]}"#;

    fn setup(role: &str) -> Vector {
        parse(&SETUP.replace('\n', " ").replace("ROLE", role)).expect("a vector").remove(0)
    }

    #[test]
    fn a_recorded_behaviour_passes_and_another_is_reported() {
        assert_eq!(check(&setup("primary")), Ok(()));
        let difference = check(&setup("sync")).expect_err("another role");
        assert_eq!(difference.step, 1);
        assert_eq!(difference.lines[0], r#"role: expected "sync", got "primary""#);
    }

    #[test]
    fn what_is_no_vector_is_refused_with_its_line() {
        let error = parse("\n{\"name\":1}\n").expect_err("no vector");
        assert_eq!(error.line, 2);
    }
}
