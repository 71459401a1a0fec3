//! Replay of what a sitter wrote down: the same events at the same times, handed to a machine of this
//! version, must give the same actions.
//!
//! A configuration that was read again while the sitter ran is not in a trace: what it changed shows
//! as differences.

use cluster::{Action, Event, Machine, MachineConfig, Now};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;

#[derive(Debug, Deserialize)]
struct Header {
    manatee: String,
    machine: MachineConfig,
}

#[derive(Debug, Deserialize)]
struct Recorded {
    now: Now,
    event: Event,
    actions: Value,
}

/// A trace that cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It is empty.
    #[error("the trace is empty")]
    Empty,
    /// A line is not what a sitter writes.
    #[error("line {line} is not what a sitter writes")]
    Line {
        /// Which.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It does not begin with the start of the sitter.
    #[error("the trace begins in the middle: it was begun anew when it had grown too large")]
    Middle,
}

/// Where a machine of this version does something else.
#[derive(Debug, PartialEq)]
pub struct Difference {
    /// The line of the trace.
    pub line: usize,
    /// What happened.
    pub event: String,
    /// What was done then.
    pub recorded: Value,
    /// What is done now.
    pub now: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "line {}: {}", self.line, self.event)?;
        writeln!(f, "  recorded {}", self.recorded)?;
        write!(f, "  now      {}", self.now)
    }
}

/// What a replay gave.
#[derive(Debug)]
pub struct Replayed {
    /// The version that wrote the trace.
    pub version: String,
    /// How many events it holds.
    pub events: usize,
    /// Where the actions differ.
    pub differences: Vec<Difference>,
}

/// Replays a trace.
///
/// # Errors
/// When it is not a trace from its beginning.
pub fn replay(text: &str) -> Result<Replayed, ReplayError> {
    let parse_error = |line: usize| move |source| ReplayError::Line { line: line + 1, source };
    let mut lines = text.lines().enumerate();
    let (line, header) = lines.next().ok_or(ReplayError::Empty)?;
    let header: Header = serde_json::from_str(header).map_err(parse_error(line))?;
    let (mut machine, _) = Machine::new(header.machine);
    let (mut events, mut differences) = (0, Vec::new());
    for (line, text) in lines {
        let Recorded { now, event, actions: recorded } =
            serde_json::from_str(text).map_err(parse_error(line))?;
        if events == 0 && !matches!(event, Event::Inspected { .. } | Event::InspectFailed(_)) {
            return Err(ReplayError::Middle);
        }
        events += 1;
        let shown = format!("{event:?}");
        let actions: Vec<Action> = machine.handle(now, event);
        let now = serde_json::to_value(&actions).map_err(parse_error(line))?;
        if now != recorded {
            differences.push(Difference { line: line + 1, event: shown, recorded, now });
        }
    }
    Ok(Replayed { version: header.manatee, events, differences })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{Database, DeposedPolicy, Millis, Monotonic, PeerIdent};
    use serde_json::json;

    fn trace() -> Vec<String> {
        let config = MachineConfig {
            me: PeerIdent::new("10.0.0.1", 5432, 12345, "a"),
            one_node_write_mode: false,
            deposed: DeposedPolicy::Auto,
            lease: Millis(6_000),
            retry_min: Millis(500),
            retry_max: Millis(10_000),
            give_up: Millis(20_000),
        };
        let mut lines = vec![json!({ "manatee": "3", "machine": config }).to_string()];
        let (mut machine, _) = Machine::new(config);
        let inspected =
            Event::Inspected { database: Database::None, running: false, applied: None };
        for (second, event) in [inspected, Event::Joined, Event::State(None)].iter().enumerate() {
            let monotonic = Monotonic(1_000 * (second as u64 + 1));
            let now = Now { monotonic, wall: jiff::Timestamp::UNIX_EPOCH };
            let actions = machine.handle(now, event.clone());
            lines.push(json!({ "now": now, "event": event, "actions": actions }).to_string());
        }
        lines
    }

    #[test]
    fn the_same_events_give_the_same_actions() {
        let replayed = replay(&trace().join("\n")).expect("a trace");
        assert_eq!((replayed.events, replayed.differences), (3, Vec::new()));
    }

    #[test]
    fn sees_what_is_done_differently_and_what_is_no_trace() {
        let mut lines = trace();
        assert!(lines[1].contains("\"Join\""), "{}", lines[1]);
        lines[1] = lines[1].replace("\"Join\"", "\"Leave\"");
        let replayed = replay(&lines.join("\n")).expect("a trace");
        assert_eq!(replayed.differences.len(), 1);
        assert_eq!(replayed.differences[0].line, 2);
        lines.remove(1);
        assert!(matches!(replay(&lines.join("\n")), Err(ReplayError::Middle)));
        assert!(matches!(replay(""), Err(ReplayError::Empty)));
        assert!(matches!(replay("{}"), Err(ReplayError::Line { line: 1, .. })));
    }
}
