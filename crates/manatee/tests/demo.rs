//! `manatee demo` as a newcomer runs it.

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

/// The command lines of processes that name `directory`.
fn left_in(directory: &Path) -> Vec<String> {
    let name = directory.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").map(|entry| entry.expect("an entry")) {
        // Neither a process, nor one that has just ended.
        let Ok(command) = fs::read_to_string(entry.path().join("cmdline")) else { continue };
        if command.contains(&*name) {
            found.push(command.replace('\0', " "));
        }
    }
    found
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

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
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
