//! Ending PostgreSQL servers so that nothing of them stays.

use crate::clock;
use cluster::Millis;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long they may take: a backend that does not react is for the caller to kill.
const LIMIT: Millis = Millis(3_000);

/// Ends every server whose data directory is below this one, at once, and waits until each postmaster is
/// gone, for a little while. A postmaster that is killed leaves its shared memory, which nobody removes
/// once its data directory is gone; a machine has room for some thousands. Whoever would start them again
/// is to be ended first.
///
/// # Errors
/// When the table of processes cannot be read.
pub fn quit_servers(below: &Path) -> io::Result<()> {
    let deadline = clock::now() + LIMIT;
    // Twice: one that was forked in between has not been told.
    while let told = tell(below)?
        && told > 0
        && clock::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How many postmasters there are; each is told.
fn tell(below: &Path) -> io::Result<usize> {
    let mut told = 0;
    for (pid, directory) in working(below)? {
        let lock = fs::read_to_string(directory.join("postmaster.pid")).unwrap_or_default();
        if lock.lines().next() == Some(&pid.to_string()) {
            told += 1;
            signal(pid, Signal::QUIT);
        }
        // One that is frozen cannot end, and its postmaster waits for it.
        signal(pid, Signal::CONT);
    }
    Ok(told)
}

/// The processes that work in a directory below this one, and in which.
fn working(below: &Path) -> io::Result<Vec<(i32, PathBuf)>> {
    let below = fs::canonicalize(below)?;
    let found = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        cwd.starts_with(&below).then_some((pid, cwd))
    });
    Ok(found.collect())
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may be gone already.
        kill_process(pid, signal).ok();
    }
}
