//! The trace: every event with its time and the actions that followed, one JSON object a line, so
//! that what a sitter did can be replayed. Bounded: begun anew when it has grown too large, the one
//! before is kept. Written by a thread of its own, so that a disk that hangs holds up nobody.

use super::config::Config;
use anyhow::{Context, Result};
use cluster::{Action, Event, MachineConfig, Now};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};

/// Lines that wait for the disk. With more, the trace ends: one with holes cannot be replayed.
const WAITING: usize = 4096;

pub(super) struct Trace {
    lines: Option<SyncSender<String>>,
}

/// The thread's part.
struct Files {
    path: PathBuf,
    limit: u64,
    header: String,
}

impl Trace {
    /// Begins a trace; the one before is kept beside it. Where it cannot be written, there is none, and a warning.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(super) fn open(config: &Config, machine: &MachineConfig) -> Result<Self> {
        let none = Trace { lines: None };
        if config.log.trace_mib == 0 {
            return Ok(none);
        }
        let directory = config.dataset.join("trace");
        let files = Files {
            path: directory.join("sitter.jsonl"),
            limit: config.log.trace_mib * 1024 * 1024,
            header: json!({ "manatee": crate::VERSION, "machine": machine }).to_string(),
        };
        let file = match fs::create_dir_all(&directory).and_then(|()| files.begin()) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!("no trace can be written in {}: {error}", directory.display());
                return Ok(none);
            }
        };
        let (sender, receiver) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || files.write(file, &receiver))
            .context("cannot start the thread that writes the trace")?;
        Ok(Trace { lines: Some(sender) })
    }

    /// Appends one step. A trace that cannot be written ends with a warning, as it begins with one: a peer does not
    /// stop serving because its diary is full.
    pub(super) fn append(&mut self, now: Now, event: &Event, actions: &[Action]) {
        let Some(lines) = &self.lines else { return };
        let line = json!({ "now": now, "event": event, "actions": actions }).to_string() + "\n";
        match lines.try_send(line) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("the trace ends here: the disk does not keep up");
            }
            // The thread has said why it ended.
            Err(TrySendError::Disconnected(_)) => {}
        }
        self.lines = None;
    }
}

impl Files {
    fn begin(&self) -> io::Result<File> {
        match fs::rename(&self.path, self.path.with_extension("jsonl.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create(&self.path)?;
        writeln!(file, "{}", self.header)?;
        Ok(file)
    }

    fn write(&self, mut file: File, lines: &Receiver<String>) {
        let mut size = 0;
        for line in lines {
            size += line.len() as u64;
            let written = file.write_all(line.as_bytes()).and_then(|()| {
                if size > self.limit {
                    size = 0;
                    file = self.begin()?;
                }
                Ok(())
            });
            if let Err(error) = written {
                tracing::warn!("the trace {} ends here: {error}", self.path.display());
                return;
            }
        }
    }
}
