//! `manatee adm topology`, `status` and `state-backfill`, from the state and without one.

use crate::shard::{Ran, SHARD, Shard, program};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Nothing that is waited for takes this long unless it is broken.
const LIMIT: Duration = Duration::from_secs(20);

/// A running `topology --watch`; it ends when this is dropped.
pub struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    pub fn start(program: &mut Command) -> Self {
        let mut child =
            program.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
        let out: ChildStdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Watch { child, lines }
    }

    /// The next line that it prints.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line in time")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = (self.child.kill(), self.child.wait());
    }
}

fn url(n: usize) -> String {
    format!("tcp://postgres@10.0.0.{n}:5432/postgres")
}

fn urls(of: &[usize]) -> String {
    of.iter().map(|n| url(*n)).collect::<Vec<_>>().join(" ")
}

#[test]
fn from_the_state_and_from_the_registrations() {
    let mut shard = Shard::new(3);
    shard.run(&["topology"]).fails_with(&["no topology", "nobody is registered"]);
    for index in [2, 0, 1] {
        shard.join(index);
    }
    let lines = |of: &[usize]| urls(of).replace(' ', "\n") + "\n";
    shard.run(&["topology"]).prints(0, &lines(&[3, 1, 2]));
    let expected = json!({"source": "election", "urls": [url(3), url(1), url(2)]});
    assert_eq!(shard.run(&["topology", "--json"]).json(0), expected);
    shard.put(&shard.state());
    shard.run(&["topology"]).prints(0, &lines(&[1, 2, 3]));
    assert_eq!(shard.run(&["topology", "-j"]).json(0)["source"], "state");
    shard.spoil("{}");
    shard.run(&["topology"]).fails_with(&["generation: is missing", "zk-state"]);
}

#[test]
fn each_change_is_a_line_as_it_happens() {
    let mut shard = Shard::new(3);
    let watch = Watch::start(program().args([
        "adm",
        "topology",
        "--watch",
        "--coordination",
        &shard.url(),
        "-s",
        SHARD,
    ]));
    assert_eq!(watch.line(), "-");
    shard.join(0);
    assert_eq!(watch.line(), url(1));
    shard.join(1);
    assert_eq!(watch.line(), urls(&[1, 2]));
    let mut state = shard.state();
    shard.put(&state);
    assert_eq!(watch.line(), urls(&[1, 2, 3]));
    // Neither who is active nor who is frozen changes it any more.
    shard.join(2);
    state.freeze = Some(cluster::Freeze::Bare(true));
    shard.put(&state);
    state.generation = state.generation.next();
    state.deposed.push(state.primary.clone());
    state.primary = shard.peers[1].clone();
    state.sync = state.asyncs.pop();
    shard.put(&state);
    assert_eq!(watch.line(), urls(&[2, 3]));
}

#[test]
fn status_by_role() {
    let shard = Shard::healthy();
    let status = shard.run(&["status"]).json(0);
    let status = &status[SHARD];
    assert_eq!(status["primary"]["zoneId"], "peer-1-of-shard");
    assert_eq!(status["primary"]["online"], true);
    assert_eq!(status["primary"]["repl"]["sync_state"], "sync");
    assert_eq!(status["async"]["lag"]["time_lag"], json!({"minutes": 0, "seconds": 0}));
    // By the order of registrations it is another one.
    let mut shard = Shard::new(3);
    for index in [1, 0, 2] {
        shard.join(index);
    }
    shard.run(&["status"]).fails_with(&["has no cluster state"]);
    let status = shard.run(&["status", "-l"]).json(0);
    let roles: Vec<_> =
        ["primary", "sync", "async"].map(|role| status[SHARD][role]["ip"].clone()).to_vec();
    assert_eq!(roles, ["10.0.0.2", "10.0.0.1", "10.0.0.3"]);
}

/// Runs it with this on its standard input.
fn answered(shard: &Shard, answer: &str, options: &[&str]) -> Ran {
    let mut child = program()
        .args(["adm", "state-backfill", "--coordination", &shard.url(), "-s", SHARD])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    // It may have ended without asking.
    let _ = input.write_all(answer.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("ended");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn backfilling() {
    let mut shard = Shard::new(3);
    shard.join(0);
    answered(&shard, "y\n", &[]).fails_with(&["1 registered"]);
    shard.join(1);
    shard.join(2);
    let refused = answered(&shard, "n\n", &[]);
    refused.fails_with(&["Computed new cluster state:", "(y/n)", "not confirmed"]);
    shard.run(&["zk-state"]).fails_with(&["no cluster state is stored"]);
    let done = answered(&shard, "yes\n", &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let state: Value = serde_json::from_str(&shard.run(&["zk-state"]).out).expect("JSON");
    assert_eq!((&state["generation"], &state["sync"]["ip"]), (&json!(0), &json!("10.0.0.3")));
    assert_eq!(state["async"][0]["ip"], "10.0.0.2");
    assert_eq!(serde_json::from_str::<Value>(&done.out).expect("JSON"), state);
    answered(&shard, "y\n", &["-y"]).fails_with(&["exists already"]);
    let history = shard.run(&["history", "-v"]);
    assert_eq!(history.out.lines().count(), 2, "{history:?}");
    let show = shard.run(&["show"]).out;
    assert!(show.contains("freeze info:  manatee-adm state-backfill\n"), "{show}");
}
