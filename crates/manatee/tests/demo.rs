//! `manatee demo` as a newcomer runs it.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// A directory that PostgreSQL's user can enter.
fn directory() -> TempDir {
    let directory =
        tempfile::Builder::new().prefix("manatee-test-").tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("to be ours");
    directory
}

fn demo(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manatee"));
    command.args(["demo", "--once", "--dir"]).arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The processes whose command lines name `directory`, with these.
fn processes_in(directory: &Path) -> Vec<(i32, String)> {
    let name = directory.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").map(|entry| entry.expect("an entry")) {
        // Neither a process, nor one that has just ended.
        let Ok(command) = fs::read_to_string(entry.path().join("cmdline")) else { continue };
        let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
        if let (true, Some(pid)) = (command.contains(&*name), pid) {
            found.push((pid, command.replace('\0', " ")));
        }
    }
    found
}

fn left_in(directory: &Path) -> Vec<String> {
    processes_in(directory).into_iter().map(|(_, command)| command).collect()
}

/// The host of the primary dies, another takes over, it comes back; every acknowledged row is there,
/// and nothing is left running.
#[test]
fn nothing_is_lost_and_nothing_is_left() {
    let directory = directory();
    let output = demo(directory.path()).output().expect("the demonstration");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    for told in ["kill -9 of the primary's host", "writes were out for", "whole again"] {
        assert!(text.contains(told), "it does not say {told:?}:\n{text}");
    }
    assert_eq!(text.matches("none is lost, none is there twice").count(), 4, "{text}");
    assert!(!text.contains('\x1b'), "it is no terminal: {text:?}");
    assert_eq!(left_in(directory.path()), [""; 0]);
    // The ledger's file has what the last check had, and what was acknowledged after it.
    let ledger = fs::read_to_string(directory.path().join("ledger")).expect("the ledger");
    assert!(ledger.lines().count() >= 500, "{} rows", ledger.lines().count());
}

/// A server moves into a shard and, after that has lost its primary, back out; every acknowledged row is
/// there each time, and nothing is left running.
#[test]
fn a_move_there_and_back_loses_nothing() {
    let directory = directory();
    let mut command = Command::new(env!("CARGO_BIN_EXE_manatee"));
    command.args(["demo", "transplant", "--dir"]).arg(directory.path()).stdin(Stdio::null());
    let output = command.output().expect("the demonstration");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    for told in
        ["do stop-donor", "the cut-over: no write", "the takeover: no write", "undo stop-donor"]
    {
        assert!(text.contains(told), "it does not say {told:?}:\n{text}");
    }
    assert_eq!(text.matches("none is lost, none is there twice").count(), 5, "{text}");
    let name = directory.path().to_string_lossy();
    let wide = text.lines().find(|line| line.chars().count() > 80 && !line.contains(&*name));
    assert_eq!(wide, None);
    assert_eq!(left_in(directory.path()), [""; 0]);
}

fn signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("it runs");
}

fn terminate(child: &Child) {
    signal(Pid::from_child(child), Signal::TERM);
}

/// Told to stop while PostgreSQL is being set up, it stops everything and says that it proved nothing.
#[test]
fn a_signal_stops_everything() {
    let directory = directory();
    let mut child = demo(directory.path()).spawn().expect("the demonstration");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut text = String::new();
    while !text.contains("copying") {
        assert!(stdout.read_line(&mut text).expect("UTF-8") > 0, "it ended early:\n{text}");
    }
    terminate(&child);
    stdout.read_to_string(&mut text).expect("UTF-8");
    assert_eq!(child.wait().expect("its end").code(), Some(130), "{text}");
    assert!(text.contains("no process is left"), "{text}");
    assert_eq!(left_in(directory.path()), [""; 0]);
}

/// The System V segments of the servers in this directory, by their ids.
fn shared_memory(directory: &Path) -> Vec<String> {
    let servers =
        left_in(directory).into_iter().filter(|command| command.contains("/postgres -D "));
    let id = |command: String| {
        let data = command.split(" -D ").nth(1).expect("a directory").trim();
        let lock = fs::read_to_string(Path::new(data).join("postmaster.pid")).expect("a lock file");
        // Its key, and its id.
        lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).expect("one").to_owned()
    };
    servers.map(id).collect()
}

/// Whole again, with one peer more, it keeps running and says how to connect, until it is told to stop.
#[test]
fn it_keeps_running_until_it_is_told_to_stop() {
    let directory = directory();
    let mut command = Command::new(env!("CARGO_BIN_EXE_manatee"));
    command.args(["demo", "--peers", "4", "--dir"]).arg(directory.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a child");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut text = String::new();
    while !text.contains("  psql '") {
        assert!(stdout.read_line(&mut text).expect("UTF-8") > 0, "it ended early:\n{text}");
    }
    let url = text.lines().last().and_then(|line| line.split('\'').nth(1)).expect("a URL");
    let ask = ["-Atc", "select count(*) > 0 from ledger"];
    let answer = Command::new("psql").arg(url).args(ask).output().expect("psql");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "t", "{url}: {answer:?}");
    assert_eq!(text.matches("none is lost, none is there twice").count(), 5, "{text}");
    let memory: Vec<String> = shared_memory(directory.path());
    assert_eq!(memory.len(), 4, "{:?}", left_in(directory.path()));
    // As a newcomer does who looks around: its server is left for the end.
    let processes = processes_in(directory.path());
    let sitter = processes.iter().find(|(_, command)| command.contains(" sitter --config "));
    let (sitter, _) = sitter.expect("a sitter");
    signal(Pid::from_raw(*sitter).expect("a process"), Signal::KILL);
    terminate(&child);
    stdout.read_to_string(&mut text).expect("UTF-8");
    assert_eq!(child.wait().expect("its end").code(), Some(0), "{text}");
    assert_eq!(left_in(directory.path()), [""; 0]);
    let all = fs::read_to_string("/proc/sysvipc/shm").expect("the kernel's table");
    let left = |id: &&String| all.lines().any(|line| line.split_whitespace().nth(1) == Some(id));
    assert_eq!(memory.iter().find(left), None, "shared memory is left:\n{all}");
}

/// A directory with something in it is left as it is.
#[test]
fn a_directory_in_use_is_refused() {
    let directory = directory();
    fs::write(directory.path().join("file"), "kept").expect("a file");
    let output = demo(directory.path()).output().expect("the demonstration");
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("is not empty: give a directory that is"), "{errors}");
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1);
}
