//! `adm history`: every write of the cluster state, and what it changed.

use super::table::{self, Column};
use super::view::Stored;
use adapters::coord::{HistoryEntry, StoredState, Version};
use clap::ValueEnum;
use cluster::{ClusterState, Freeze, PeerIdent};
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

/// One write.
#[derive(Debug)]
pub struct Event {
    entry: HistoryEntry,
    state: Option<ClusterState>,
    /// What it changed, in words.
    summary: String,
}

/// The events of these entries in this order; each is compared with the write before it, which the
/// order of printing does not change.
pub fn events(mut entries: Vec<HistoryEntry>, sort: Sort) -> Vec<Event> {
    entries.sort_by_key(|entry| entry.sequence);
    let mut before: Option<ClusterState> = None;
    let mut first = true;
    let mut events = Vec::with_capacity(entries.len());
    for entry in entries {
        // Any version: nothing is put back.
        let raw = StoredState { version: Version(0), json: entry.json.clone() };
        let Stored { state, error, .. } = Stored::new(raw);
        let summary = match (&state, &error) {
            (None, Some(error)) => format!("cannot be read: {error}"),
            (Some(state), None) => summary(before.as_ref(), state, first),
            (Some(state), Some(error)) => {
                format!("{} (illegal: {error})", summary(before.as_ref(), state, first))
            }
            (None, None) => "cannot be read".to_owned(),
        };
        first = false;
        before.clone_from(&state);
        events.push(Event { entry, state, summary });
    }
    if sort == Sort::Time {
        events.sort_by_key(|event| (event.entry.time, event.entry.sequence));
    }
    events
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
    let time = instant(event.entry.time);
    let mut cells = match &event.state {
        Some(state) => {
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
        None => {
            let unknown = std::iter::repeat_n("?".to_owned(), 6);
            [time, event.entry.generation.to_string()].into_iter().chain(unknown).collect()
        }
    };
    if verbose {
        cells.push(event.summary.clone());
    }
    cells
}

fn names(peers: &[PeerIdent]) -> String {
    let names: Vec<_> = peers.iter().map(PeerIdent::abbreviation).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// As the original prints a time.
pub fn instant(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// One JSON object a line. The state is null, and its text beside it, where it is no JSON.
pub fn render_json(events: &[Event], verbose: bool) -> String {
    let line = |event: &Event| {
        let mut object = json!({
            "time": instant(event.entry.time),
            "state": Value::Null,
            "zkSeq": event.entry.sequence,
        });
        match serde_json::from_str::<Value>(&event.entry.json) {
            Ok(state) => object["state"] = state,
            Err(error) => {
                object["raw"] = event.entry.json.clone().into();
                object["error"] = error.to_string().into();
            }
        }
        if verbose {
            object["summary"] = event.summary.clone().into();
        }
        format!("{object}\n")
    };
    events.iter().map(line).collect()
}

/// What `state` changed; `first` when nothing at all was written before it.
fn summary(before: Option<&ClusterState>, state: &ClusterState, first: bool) -> String {
    let Some(before) = before else {
        let mode = if state.is_one_node_write_mode() {
            "singleton (one-node-write)"
        } else {
            "normal (multi-peer)"
        };
        return if first {
            format!("cluster setup for {mode} mode")
        } else {
            format!("{mode} mode; what was before it cannot be read")
        };
    };
    let mut changes = Vec::new();
    pair(before, state, &mut changes);
    asyncs(before, state, &mut changes);
    deposed(before, state, &mut changes);
    requests(before, state, &mut changes);
    if changes.is_empty() {
        changes.push(if before == state {
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
