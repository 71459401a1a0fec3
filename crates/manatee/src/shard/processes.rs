//! The processes of one peer, found, frozen and killed as a whole.
//!
//! PostgreSQL puts each of its processes into a session of its own, so that no process group holds
//! them all. A peer's are those whose arguments name its directory (the sitter, the postmaster, a
//! copy that runs), and everything that descends from these.

use adapters::{clock, testing::quit_servers};
use anyhow::{Context, Result, bail};
use cluster::{Millis, Monotonic};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};
use std::{collections::BTreeSet, fs, io, path::Path, time::Duration};

/// What a process has cost since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Memory that is resident now, in bytes.
    pub resident: u64,
    /// The most that ever was, in bytes.
    pub peak: u64,
    /// Time on a processor, its threads' together.
    pub processor: Millis,
}

/// What this process has cost.
pub(super) fn usage(pid: u32) -> Result<Usage> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may hold anything; the fields after it are numbers, state first.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let field = |index: usize| -> Result<u64> {
        let text = fields.get(index).with_context(|| format!("{path} is too short"))?;
        text.parse().with_context(|| format!("{path}: {text:?} is no number"))
    };
    // proc(5): utime and stime are fields 14 and 15, rss is 24; state, the first here, is 3.
    let ticks = field(11)? + field(12)?;
    let per_second = rustix::param::clock_ticks_per_second();
    let page = rustix::param::page_size() as u64;
    let processor = Millis(ticks * 1000 / per_second);
    Ok(Usage { resident: field(21)? * page, peak: peak(pid)?, processor })
}

/// `VmHWM` of proc(5): the most memory of this process that ever was resident, in bytes.
fn peak(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("{path} has no VmHWM"))? << 10)
}

/// How long a killed process may take to be gone: the kernel has to tear it down, no more.
const GONE_LIMIT: Millis = Millis(10_000);

/// The programs that work for a peer. Others whose arguments name its directory belong to whoever
/// looks at it: an editor, a pager.
const PROGRAMS: [&str; 6] =
    ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_ctl", "setpriv"];

struct Process {
    pid: i32,
    parent: i32,
    args: Vec<String>,
}

/// The processes that work for the peer in `directory`, started from the sitter's `binary`.
///
/// # Errors
/// When the table of processes cannot be read.
pub(super) fn of(directory: &Path, binary: &Path) -> Result<BTreeSet<i32>> {
    let table = table().context(
        "cannot read the table of processes in /proc (this needs Linux, with /proc mounted)",
    )?;
    let directory = directory.to_string_lossy();
    let us = i32::try_from(std::process::id())?;
    let works_here = |process: &Process| {
        // A demonstration is told its directory, too.
        if process.pid == us {
            return false;
        }
        let program = process.args.first().map_or("", String::as_str);
        let name = program.rsplit('/').next().unwrap_or(program);
        // A script's own name comes after its interpreter's.
        let script = process.args.get(1).is_some_and(|script| script.ends_with("/patroni"));
        (PROGRAMS.contains(&name)
            || script
            || binary.file_name().is_some_and(|binary| binary == name))
            && process.args.iter().skip(1).any(|arg| names(arg, &directory))
    };
    let mut found: BTreeSet<i32> =
        table.iter().filter(|process| works_here(process)).map(|process| process.pid).collect();
    loop {
        let before = found.len();
        for process in &table {
            if found.contains(&process.parent) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// Whether `arg` names `directory` or something in it: `/tmp/x/amber` is not in `/tmp/x/amb`.
fn names(arg: &str, directory: &str) -> bool {
    arg.match_indices(directory).any(|(start, _)| {
        let after = &arg[start + directory.len()..];
        after.is_empty() || after.starts_with('/')
    })
}

/// All processes but those that have ended and wait to be reaped.
fn table() -> io::Result<Vec<Process>> {
    let mut table = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended while we read is no longer a process.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Ok(args) = fs::read(entry.path().join("cmdline")) else { continue };
        // `pid (name) state parent …`, where the name may hold anything.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|text| text.parse().ok()));
        let (Some(state), Some(parent)) = (state, parent) else {
            return Err(io::Error::other(format!("/proc/{pid}/stat is not understood: {stat:?}")));
        };
        if state != "Z" && state != "X" {
            let args = args.split(|byte| *byte == 0).filter(|arg| !arg.is_empty());
            let args = args.map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
            table.push(Process { pid, parent, args });
        }
    }
    Ok(table)
}

/// Sends a signal; to one that has ended in the meantime, it says so by `false`.
pub(super) fn signal(pid: i32, signal: Signal) -> Result<bool> {
    let target = Pid::from_raw(pid).with_context(|| format!("{pid} is no process"))?;
    match kill_process(target, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot send {signal:?} to {pid}")),
    }
}

/// Stops the clock of a whole peer, as if its host were frozen. Whoever forks goes first or is
/// found again: at the end nobody is left who could start another.
pub(super) fn freeze(directory: &Path, binary: &Path) -> Result<BTreeSet<i32>> {
    let mut frozen = BTreeSet::new();
    loop {
        let found = of(directory, binary)?;
        let news: Vec<i32> = found.difference(&frozen).copied().collect();
        if news.is_empty() {
            return Ok(found);
        }
        for pid in news {
            signal(pid, Signal::STOP)?;
            frozen.insert(pid);
        }
    }
}

/// Kills a whole peer, as if its host had lost its power. Says how many processes it had; all are
/// gone when it returns.
pub(super) fn kill(directory: &Path, binary: &Path) -> Result<usize> {
    let victims = freeze(directory, binary)?;
    for pid in &victims {
        signal(*pid, Signal::KILL)?;
    }
    let deadline = clock::now() + GONE_LIMIT;
    wait_until(deadline, "the killed processes to be gone", || {
        Ok(victims.is_disjoint(&pids()?) && of(directory, binary)?.is_empty())
    })?;
    Ok(victims.len())
}

/// Ends everything of a directory so that nothing of it stays, the servers' shared memory included: whoever
/// would start a server first. Says how many processes there were.
pub(super) fn end(directory: &Path, binary: &Path) -> Result<usize> {
    let table = table()?;
    let is_server = |pid: &i32| {
        let process = table.iter().find(|process| process.pid == *pid);
        let program = process.and_then(|process| process.args.first());
        program.is_some_and(|program| program.contains("postgres"))
    };
    let found = of(directory, binary)?;
    for pid in found.iter().filter(|pid| !is_server(pid)) {
        signal(*pid, Signal::KILL)?;
    }
    let quit = quit_servers(directory);
    // Even when they could not be told.
    kill(directory, binary)?;
    quit?;
    Ok(found.len())
}

/// All that live.
fn pids() -> Result<BTreeSet<i32>> {
    Ok(table()?.iter().map(|process| process.pid).collect())
}

/// Looks every few milliseconds.
pub(super) fn wait_until(
    deadline: Monotonic,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    while !condition()? {
        if clock::now() > deadline {
            bail!("waited too long for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process with a child, that passes for the sitter of a directory.
    fn family(directory: &Path) -> (std::path::PathBuf, Child) {
        let binary = directory.join("sitter");
        std::os::unix::fs::symlink("/bin/sh", &binary).expect("a link");
        let script = directory.join("script");
        fs::write(&script, "sleep 600 & wait\n").expect("a script");
        let child = Command::new(&binary).arg(&script).spawn();
        (binary, child.expect("a shell"))
    }

    #[test]
    fn kill_leaves_nobody_of_the_family() {
        let directory = tempfile::tempdir().expect("a directory");
        let (binary, mut child) = family(directory.path());
        let deadline = clock::now() + Millis(10_000);
        wait_until(deadline, "its child", || Ok(of(directory.path(), &binary)?.len() == 2))
            .expect("a family of two");
        assert_eq!(kill(directory.path(), &binary).expect("killed"), 2);
        assert!(of(directory.path(), &binary).expect("the table").is_empty());
        assert!(!child.wait().expect("its end").success());
    }

    #[test]
    fn whoever_only_looks_at_the_directory_is_spared() {
        let directory = tempfile::tempdir().expect("a directory");
        let (binary, mut child) = family(directory.path());
        assert!(of(directory.path(), Path::new("/another/program")).expect("the table").is_empty());
        kill(directory.path(), &binary).expect("killed");
        child.wait().expect("its end");
    }

    #[test]
    fn directories_are_told_apart() {
        for (arg, expected) in [
            ("/tmp/x/amber", true),
            ("/tmp/x/amber/sitter.toml", true),
            ("--pgdata=/tmp/x/amber/data", true),
            ("/tmp/x/amberley/data", false),
            ("/tmp/x", false),
        ] {
            assert_eq!(names(arg, "/tmp/x/amber"), expected, "{arg}");
        }
    }
}
