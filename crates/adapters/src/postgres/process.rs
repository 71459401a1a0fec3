//! The processes of a server, as the operating system knows them.
//!
//! A process belongs to the server of a data directory when it runs a PostgreSQL program *in* that
//! directory: every server process changes to its data directory and stays there. Parent and
//! process group tell nothing: backends lead groups of their own, and outlive their postmaster for
//! a moment. Only this file knows `/proc` and process file descriptors.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that can be told from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProcessId {
    /// Its id.
    pub pid: u32,
    /// When it was started, in clock ticks since boot.
    pub started: u64,
}

/// A process that we hold on to: signals never reach another one.
#[derive(Debug)]
pub(super) struct Process {
    pub id: ProcessId,
    handle: OwnedFd,
}

impl Process {
    /// Takes hold of this process; `None` when it is gone.
    pub fn open(pid: u32) -> io::Result<Option<Process>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let handle = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the handle was taken: of this process or of none.
        Ok(started(pid)?.map(|started| Process { id: ProcessId { pid, started }, handle }))
    }

    /// Sends it a signal; nothing happens when it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.handle.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, whether or not its parent has taken notice.
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for the sake of types that are no owned descriptor"
    )]
    pub async fn ended(&self) -> io::Result<()> {
        let handle = AsyncFd::with_interest(self.handle.try_clone()?, Interest::READABLE)?;
        handle.readable().await.map(drop)
    }
}

/// When this process was started, in clock ticks since boot; `None` when it is gone.
fn started(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The name, in parentheses, may hold anything; 19 fields follow it before the start time.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    Ok(after.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()))
}

fn gone(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || code == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// The living processes of the server of this data directory, in no order.
/// Processes of other users cannot be seen by an unprivileged one, and cannot be of our server.
pub(crate) fn of_server(data: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if is_of_server(pid, data) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether this living process is one of the server of this data directory.
pub(super) fn is_of_server(pid: u32, data: &Path) -> bool {
    // A process that has ended, or that is not ours, has no readable links.
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
    let data = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    link("cwd").is_ok_and(|cwd| cwd == data)
        && match link("exe") {
            Ok(exe) => {
                let name = exe.file_name().unwrap_or_default().to_string_lossy();
                // " (deleted)" follows after the package was upgraded.
                name.starts_with("postgres") || name.starts_with("postmaster")
            }
            // It is ending: its program is gone, and it has the directory, which is in use for as long.
            Err(error) => gone(&error),
        }
}

/// Kills what is left of the server of this data directory and waits until nothing is.
pub(super) async fn kill_all(data: &Path) -> io::Result<()> {
    loop {
        let pids = of_server(data)?;
        if pids.is_empty() {
            return Ok(());
        }
        let mut dying = Vec::new();
        for pid in pids {
            if let Some(process) = Process::open(pid)?
                // Checked again: the id may have been given to another process in between.
                && is_of_server(pid, data)
            {
                process.signal(Signal::KILL)?;
                dying.push(process);
            }
        }
        for process in dying {
            process.ended().await?;
        }
    }
}
