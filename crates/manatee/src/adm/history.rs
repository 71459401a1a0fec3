//! `adm history`: every write of the cluster state, and what it changed; and beside them the events of
//! the first version, in a shard that began as one.

use super::table::{self, Column};
use super::view::Stored;
use adapters::coord::{HistoryEntry, StoredState, Version};
use clap::ValueEnum;
use cluster::{ClusterState, Freeze, PeerIdent, v1::V1Event};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What the entries are sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The order in which the coordination service took them
    #[default]
    #[value(name = "zkSeq", alias = "zkseq", alias = "sequence")]
    Sequence,
    /// The time that the coordination service gave them
    #[value(name = "time")]
    Time,
}

/// One line of the history.
#[derive(Debug)]
pub struct Event {
    time: Timestamp,
    sequence: u64,
    what: What,
    /// What it changed, in words.
    summary: String,
}

#[derive(Debug)]
enum What {
    Write { entry: HistoryEntry, state: Option<Box<ClusterState>> },
    FirstVersion(V1Event),
}

/// What is known of the time before a write.
#[derive(Debug, Clone, PartialEq)]
enum Before {
    Nothing,
    FirstVersion,
    Unreadable,
    State(Box<ClusterState>),
}

/// All of these in this order; each write is compared with the one before it, which the order of
/// printing does not change.
pub fn events(entries: Vec<HistoryEntry>, first_version: Vec<V1Event>, sort: Sort) -> Vec<Event> {
    let old = first_version.into_iter().map(|event| Event {
        time: event.time,
        sequence: event.sequence,
        summary: event.summary(),
        what: What::FirstVersion(event),
    });
    let writes = entries.into_iter().map(|entry| Event {
        time: entry.time,
        sequence: entry.sequence,
        summary: String::new(),
        what: What::Write { entry, state: None },
    });
    let mut events: Vec<Event> = old.chain(writes).collect();
    events.sort_by_key(|event| event.sequence);
    let mut before = Before::Nothing;
    for event in &mut events {
        before = event.understand(before);
    }
    if sort == Sort::Time {
        events.sort_by_key(|event| (event.time, event.sequence));
    }
    events
}

impl Event {
    /// Fills in what a write changed; what is known after it.
    fn understand(&mut self, before: Before) -> Before {
        let What::Write { entry, state } = &mut self.what else {
            return if before == Before::Nothing { Before::FirstVersion } else { before };
        };
        // Any version: nothing is put back.
        let raw = StoredState { version: Version(0), json: entry.json.clone() };
        let Stored { state: read, error, .. } = Stored::new(raw);
        let Some(read) = read else {
            self.summary = match error {
                Some(error) => format!("cannot be read: {error}"),
                None => "cannot be read".to_owned(),
            };
            return Before::Unreadable;
        };
        let illegal = error.map(|error| format!(" (illegal: {error})")).unwrap_or_default();
        self.summary = summary(&before, &read) + &illegal;
        *state = Some(Box::new(read.clone()));
        Before::State(Box::new(read))
    }
}

/// The table.
pub fn render(events: &[Event], verbose: bool) -> String {
    let mut columns = vec![
        Column::left("TIME", 24),
        Column::right("G#", 2),
        Column::left("MODE", 5),
        Column::left("FRZ", 3),
        Column::left("PRIMARY", 8),
        Column::left("SYNC", 8),
        Column::left("ASYNC", 8),
        Column::left("DEPOSED", 8),
    ];
    if verbose {
        columns.push(Column::left("SUMMARY", 0));
    }
    let rows: Vec<_> = events.iter().map(|event| row(event, verbose)).collect();
    table::render(&columns, &rows, true)
}

fn row(event: &Event, verbose: bool) -> Vec<String> {
    let time = instant(event.time);
    let mut cells = match &event.what {
        What::FirstVersion(event) => first_version(time, event),
        What::Write { state: Some(state), .. } => {
            let mode = if state.is_one_node_write_mode() { "singleton" } else { "multi" };
            let freeze = if state.is_frozen() { "frz" } else { "-" };
            vec![
                time,
                state.generation.to_string(),
                mode.to_owned(),
                freeze.to_owned(),
                names(std::slice::from_ref(&state.primary)),
                names(state.sync.as_slice()),
                names(&state.asyncs),
                names(&state.deposed),
            ]
        }
        What::Write { state: None, entry } => {
            let unknown = std::iter::repeat_n("?".to_owned(), 6);
            [time, entry.generation.to_string()].into_iter().chain(unknown).collect()
        }
    };
    if verbose {
        cells.push(event.summary.clone());
    }
    cells
}

/// As much of a topology as one event of the first version tells.
fn first_version(time: String, event: &V1Event) -> Vec<String> {
    let leads = event.action == "AssumeLeader" || event.role.eq_ignore_ascii_case("leader");
    let sync = if leads && event.action == "NewStandby" { &event.slave } else { "" };
    let primary = if leads { &event.ip } else { "" };
    let cell = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [&time, "-", "v1", "-", primary, sync, "-", "-"].into_iter().map(cell).collect()
}

fn names(peers: &[PeerIdent]) -> String {
    let names: Vec<_> = peers.iter().map(PeerIdent::abbreviation).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// As the original prints a time.
pub fn instant(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// One JSON object a line. The state is null, and its text beside it, where it is no JSON; and for an
/// event of the first version, whose parts stand in `v1`.
pub fn render_json(events: &[Event], verbose: bool) -> String {
    let line = |event: &Event| {
        let mut object = json!({
            "time": instant(event.time),
            "state": Value::Null,
            "zkSeq": event.sequence,
        });
        match &event.what {
            What::FirstVersion(event) => object["v1"] = json!(event),
            What::Write { entry, .. } => match serde_json::from_str::<Value>(&entry.json) {
                Ok(state) => object["state"] = state,
                Err(error) => {
                    object["raw"] = entry.json.clone().into();
                    object["error"] = error.to_string().into();
                }
            },
        }
        if verbose {
            object["summary"] = event.summary.clone().into();
        }
        format!("{object}\n")
    };
    events.iter().map(line).collect()
}

/// What `state` changed.
fn summary(before: &Before, state: &ClusterState) -> String {
    let mode = if state.is_one_node_write_mode() {
        "singleton (one-node-write)"
    } else {
        "normal (multi-peer)"
    };
    let before = match before {
        Before::Nothing => return format!("cluster setup for {mode} mode"),
        Before::FirstVersion => {
            return format!("brought over from the first version, for {mode} mode");
        }
        Before::Unreadable => return format!("{mode} mode; what was before it cannot be read"),
        Before::State(before) => before,
    };
    let mut changes = Vec::new();
    pair(before, state, &mut changes);
    asyncs(before, state, &mut changes);
    deposed(before, state, &mut changes);
    requests(before, state, &mut changes);
    if changes.is_empty() {
        changes.push(if **before == *state {
            "no change".to_owned()
        } else if before.generation != state.generation {
            format!("generation {} declared", state.generation)
        } else {
            "other fields changed".to_owned()
        });
    }
    changes.join(", ")
}

fn quoted(peer: &PeerIdent) -> String {
    format!("{:?}", peer.abbreviation())
}

fn contains(peers: &[PeerIdent], peer: &PeerIdent) -> bool {
    peers.iter().any(|other| other.id == peer.id)
}

fn pair(before: &ClusterState, state: &ClusterState, changes: &mut Vec<String>) {
    let (old, new) = (&before.primary, &state.primary);
    let same = |a: &PeerIdent, b: &PeerIdent| a.id == b.id;
    if !same(old, new) {
        let took_over = before.sync.as_ref().is_some_and(|sync| same(sync, new));
        let who = if took_over { "sync " } else { "" };
        changes.push(format!("{who}{} took over as primary from {}", quoted(new), quoted(old)));
    }
    match (&before.sync, &state.sync) {
        // After a takeover, who is sync is plain to see, and was async before.
        (Some(_), Some(_)) if !same(old, new) => {}
        (Some(a), Some(b)) if !same(a, b) => changes.push(format!(
            "primary {} selected new sync {} in place of {}",
            quoted(new),
            quoted(b),
            quoted(a)
        )),
        (Some(a), None) => changes.push(format!("sync {} left", quoted(a))),
        (None, Some(b)) => changes.push(format!("{} is its sync", quoted(b))),
        _ => {}
    }
    match (before.is_one_node_write_mode(), state.is_one_node_write_mode()) {
        (false, true) => changes.push("mode is now singleton (one-node-write)".to_owned()),
        (true, false) => changes.push("mode is now normal (multi-peer)".to_owned()),
        _ => {}
    }
}

fn asyncs(before: &ClusterState, state: &ClusterState, changes: &mut Vec<String>) {
    for peer in state.asyncs.iter().filter(|peer| !contains(&before.asyncs, peer)) {
        changes.push(format!("async {} added", quoted(peer)));
    }
    for peer in before.asyncs.iter().filter(|peer| !state.names(&peer.id)) {
        changes.push(format!("async {} left", quoted(peer)));
    }
    let kept = |of: &[PeerIdent], other: &[PeerIdent]| {
        let kept = of.iter().filter(|peer| contains(other, peer));
        kept.map(|peer| peer.id.clone()).collect::<Vec<_>>()
    };
    if kept(&before.asyncs, &state.asyncs) != kept(&state.asyncs, &before.asyncs) {
        changes.push(format!("asyncs reordered to {}", names(&state.asyncs)));
    }
}

fn deposed(before: &ClusterState, state: &ClusterState, changes: &mut Vec<String>) {
    for peer in state.deposed.iter().filter(|peer| !contains(&before.deposed, peer)) {
        changes.push(format!("{} deposed", quoted(peer)));
    }
    for peer in before.deposed.iter().filter(|peer| !contains(&state.deposed, peer)) {
        changes.push(format!("{} no longer deposed", quoted(peer)));
    }
}

fn requests(before: &ClusterState, state: &ClusterState, changes: &mut Vec<String>) {
    match (before.is_frozen(), state.is_frozen()) {
        (false, true) => match &state.freeze {
            Some(Freeze::Since(info)) => changes.push(format!("frozen: {}", info.reason)),
            _ => changes.push("frozen, for no stated reason".to_owned()),
        },
        (true, false) => changes.push("unfrozen".to_owned()),
        (true, true) if before.freeze != state.freeze => {
            changes.push("reason or date of the freeze changed".to_owned());
        }
        _ => {}
    }
    match (&before.promote, &state.promote) {
        (old, Some(new)) if old.as_ref() != Some(new) => {
            changes.push(format!("promotion of {} requested", new.id));
        }
        (Some(old), None) => changes.push(format!("request to promote {} settled", old.id)),
        _ => {}
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
