//! The trace: every event with its time and the actions that followed, one JSON object a line, so
//! that what a sitter did can be replayed. Bounded: begun anew when it has grown too large, the one
//! before is kept.

use super::config::Config;
use anyhow::{Context, Result};
use cluster::{Action, Event, MachineConfig, Now};
use serde_json::json;
use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

pub(super) struct Trace {
    path: PathBuf,
    limit: u64,
    header: String,
    open: Option<(File, u64)>,
}

impl Trace {
    /// Begins a trace; the one before is kept beside it.
    pub(super) fn open(config: &Config, machine: &MachineConfig) -> Result<Self> {
        let directory = config.dataset.join("trace");
        let path = directory.join("sitter.jsonl");
        let header = json!({ "manatee": crate::VERSION, "machine": machine }).to_string();
        let limit = config.log.trace_mib * 1024 * 1024;
        let mut trace = Trace { path, limit, header, open: None };
        if limit > 0 {
            fs::create_dir_all(&directory)
                .and_then(|()| trace.begin())
                .with_context(|| format!("cannot write a trace in {}", directory.display()))?;
        }
        Ok(trace)
    }

    fn begin(&mut self) -> std::io::Result<()> {
        match fs::rename(&self.path, self.path.with_extension("jsonl.1")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create(&self.path)?;
        writeln!(file, "{}", self.header)?;
        self.open = Some((file, 0));
        Ok(())
    }

    /// Appends one step. A trace that cannot be written ends with a warning: a peer does not stop
    /// serving because its diary is full.
    pub(super) fn append(&mut self, now: Now, event: &Event, actions: &[Action]) {
        let Some((file, size)) = &mut self.open else { return };
        let line = json!({ "now": now, "event": event, "actions": actions }).to_string() + "\n";
        *size += line.len() as u64;
        let full = *size > self.limit;
        let written = file.write_all(line.as_bytes());
        if let Err(error) = written.and_then(|()| if full { self.begin() } else { Ok(()) }) {
            tracing::warn!("the trace {} ends here: {error}", self.path.display());
            self.open = None;
        }
    }
}
