//! `manatee adm` as an operator runs it.

mod first_version;
mod own;
mod reap;
mod shard;
mod topology;

use adapters::testing::free_ports;
use cluster::{Millis, PeerIdent};
use serde_json::Value;
use shard::{Ran, SHARD, Shard, program, run};
use std::{
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
};

const HEALTHY: &str = "\
ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  peer-1-o ok   sync  0/3000060  0/3000060  0/3000060  0/3000060  -
sync     peer-2-o ok   async 0/3000060  0/3000060  0/3000060  0/3000060  0m00s
async    peer-3-o ok   -     -          -          -          -          0m00s
";

#[test]
fn a_healthy_shard() {
    let shard = Shard::healthy();
    shard.run(&["verify"]).prints(0, "");
    shard.run(&["verify", "-v"]).prints(0, "all is well\n");
    shard.run(&["pg-status"]).prints(0, HEALTHY);
    let fields = format!(
        "coordination: {}\ncluster:      1.example\ngeneration:   1 (0/1000028)\n\
         mode:         normal\nfreeze:       not frozen\n",
        shard.url()
    );
    shard.run(&["show"]).prints(0, &format!("{fields}\n{HEALTHY}"));
    let verbose = shard.run(&["show", "-v"]);
    assert!(
        verbose.out.contains("sync     peer-2-o: doing what sync does (rule A1)\n"),
        "{verbose:?}"
    );
    shard.run(&["peers", "-H", "-o", "role,ip", "-r", "async"]).prints(0, "async    10.0.0.3\n");
    shard
        .run(&["pg-status", "-H", "-o", "peerabbr,pg-repl", "-r", "primary", "-w"])
        .prints(0, &format!("{:<36} sync\n", "peer-1-of-shard"));
    shard.run(&["pg-status", "0.1", "2"]).prints(0, &format!("{HEALTHY}\n{HEALTHY}"));
}

#[test]
fn for_programs() {
    let shard = Shard::healthy();
    let show = shard.run(&["show", "--json"]).json(0);
    assert_eq!(show["generation"], 1);
    assert_eq!(show["initWal"], "0/1000028");
    assert_eq!(show["problems"], serde_json::json!([]));
    assert_eq!(show["active"].as_array().map(Vec::len), Some(3));
    assert_eq!(show["peers"][0]["pgRepl"], "sync");
    assert_eq!(show["peers"][2]["pgLagMs"], 0);
    assert!(shard.run(&["zk-state", "--json"]).json(0)["primary"].is_object());
    assert_eq!(shard.run(&["zk-active", "--json"]).json(0).as_array().map(Vec::len), Some(3));
    assert_eq!(shard.run(&["freeze", "-r", "why", "--json"]).json(0)["frozen"], true);
    assert_eq!(shard.run(&["unfreeze", "--json"]).json(0)["frozen"], false);
    let peers = shard.run(&["peers", "--json", "-r", "sync"]).json(0);
    assert_eq!(
        peers,
        serde_json::json!([{
            "role": "sync", "id": "10.0.0.2:5432:12345", "peername": "peer-2-of-shard",
            "peerabbr": "peer-2-o", "ip": "10.0.0.2", "active": true,
        }])
    );
    assert_eq!(shard.run(&["pg-status", "-j"]).json(0)["peers"][1]["pgFlush"], "0/3000060");
    shard.change(0, |status| status.postgres.writable = false);
    let verify = shard.run(&["verify", "--json"]).json(1);
    assert_eq!(verify["problems"][0]["kind"], "closedForWrites");
    assert_eq!(verify["problems"][0]["severity"], "error");
    let active = shard.run(&["zk-active"]).json(0);
    assert_eq!(active[2]["peer"]["zoneId"], "peer-3-of-shard");
    assert_eq!(shard.run(&["active"]).out, shard.run(&["zk-active"]).out);
    shard.run(&["zk-state"]).prints(0, &(shard.state().to_json() + "\n"));
    assert_eq!(shard.run(&["state"]).out, shard.run(&["zk-state"]).out);
}

#[test]
fn what_is_wrong_is_told_everywhere() {
    let mut shard = Shard::healthy();
    // The sync is gone without a trace, the async's sitter accepts and never answers, and another
    // sitter stands where the deposed peer was.
    let mut state = shard.state();
    let mut deposed = PeerIdent::new("10.0.0.9", 5432, 12345, "peer-9-of-shard");
    deposed.extra.clone_from(&shard.peers[0].extra);
    let closed = SocketAddr::from(([127, 0, 0, 1], free_ports(1).expect("a port")[0]));
    let sync = state.sync.as_mut().expect("a sync");
    sync.extra.insert("statusUrl".to_owned(), format!("http://{closed}").into());
    let url =
        |index: usize| shard.peers[index].extra["statusUrl"].as_str().expect("a text").to_owned();
    let (primary_url, async_url) = (url(0), url(2));
    state.deposed = vec![deposed];
    shard.put(&state);
    let left = shard.sessions.remove(1);
    shard.runtime.block_on(left.leave()).expect("left");
    *shard.answers[2].lock().expect("no panic") = None;
    shard.change(0, |status| status.postgres.senders.clear());

    let nobody = TcpStream::connect(closed).expect_err("nobody listens there");
    let refused = format!("http://{closed}/state: {nobody}");
    let silent = format!("{async_url}/state: no answer within 2 s");
    let problems = format!(
        "error: peer \"peer-1-o\": downstream replication peer \"peer-2-o\" not connected\n\
         error: sync \"peer-2-o\" is not active\n\
         error: cannot query postgres on sync: peer \"peer-2-o\": {refused}\n\
         warning: cannot query postgres on async: peer \"peer-3-o\": {silent}\n\
         warning: cluster has a deposed peer: \"peer-9-o\": {primary_url}/state: answered by peer \
         10.0.0.1:5432:12345 of shard \"1.example\"\n"
    );
    let table = "\
ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  peer-1-o ok   -     -          -          -          -          -
sync     peer-2-o fail -     -          -          -          -          -
async    peer-3-o fail -     -          -          -          -          -
deposed  peer-9-o fail -     -          -          -          -          -
";
    shard.run(&["verify"]).prints(1, &problems);
    shard.run(&["pg-status"]).prints(0, &format!("{table}\n{problems}"));
    let show = shard.run(&["show"]);
    assert!(show.out.ends_with(&format!("{table}\n{problems}")), "{show:?}");
    assert_eq!(show.code, Some(0));
    // A table that a program asked for has nothing else in it.
    let columns = shard.run(&["pg-status", "-o", "peerabbr,pg-online", "-r", "sync"]);
    columns.prints(0, "PEER     PG\npeer-2-o fail\n");
}

#[test]
fn freezing() {
    let shard = Shard::healthy();
    let frozen = shard.run(&["freeze", "-r", "new switch"]);
    assert_eq!(frozen.code, Some(0), "{frozen:?}");
    let since = frozen.out.strip_prefix("frozen since ").and_then(|rest| rest.split_once(": "));
    let (since, reason) = since.expect("when and why");
    assert_eq!(reason, "new switch\n");
    let show = shard.run(&["show"]).out;
    let lines = format!("freeze:       frozen since {since}\nfreeze info:  new switch\n");
    assert!(show.contains(&lines), "{show}");
    shard.run(&["freeze", "--reason", "again"]).fails_with(&[
        "is frozen already",
        since,
        "new switch",
    ]);
    // Not a problem, but said on request.
    shard.run(&["verify"]).prints(0, "");
    let verify = shard.run(&["verify", "-v"]).out;
    assert!(verify.starts_with("all is well\nnote: the shard is frozen"), "{verify}");
    shard.run(&["unfreeze"]).prints(0, "unfrozen\n");
    shard.run(&["unfreeze"]).fails_with(&["is not frozen"]);
    assert_eq!(shard.run(&["freeze"]).code, Some(2), "a reason is not optional");
    assert_eq!(shard.run(&["freeze", "-r", ""]).code, Some(2), "nor empty");

    let history = shard.run(&["history", "-v"]);
    let column = history.out.find("SUMMARY").expect("a column");
    let summaries: Vec<_> =
        history.out.lines().map(|line| line.get(column..).unwrap_or("")).collect();
    let setup = "cluster setup for normal (multi-peer) mode";
    assert_eq!(summaries, ["SUMMARY", setup, "frozen: new switch", "unfrozen"], "{history:?}");
    let lines = shard.run(&["history", "-j", "-s", "time"]);
    let lines: Vec<Value> =
        lines.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1]["state"]["freeze"]["reason"], "new switch");
    assert_eq!(lines[1]["time"].as_str().map(str::len), Some(24));
    assert!(lines[0]["zkSeq"].as_u64() < lines[1]["zkSeq"].as_u64());
}

#[test]
fn no_state_yet() {
    let shard = Shard::new(1);
    shard.run(&["show"]).prints(
        0,
        &format!(
            "coordination: {}\ncluster:      1.example\n\nerror: no cluster state is stored: shard \
             \"1.example\" was not set up yet, or is not its name\n",
            shard.url()
        ),
    );
    assert_eq!(shard.run(&["verify"]).code, Some(1));
    let refused = ["\"1.example\"", "has no cluster state"];
    shard.run(&["peers"]).fails_with(&refused);
    shard.run(&["pg-status"]).fails_with(&refused);
    shard.run(&["freeze", "-r", "x"]).fails_with(&refused);
    shard.run(&["zk-state"]).fails_with(&["no cluster state is stored for shard \"1.example\""]);
    // What is not there is said beside what programs read.
    let note = "note: there is neither a cluster state nor a history of shard \"1.example\"";
    let active = shard.run(&["zk-active"]);
    assert_eq!((active.code, active.out.trim()), (Some(0), "[]"));
    assert!(active.err.contains(note), "{active:?}");
    let history = shard.run(&["history"]);
    assert_eq!((history.code, history.out.lines().count()), (Some(0), 1));
    assert!(history.err.contains(note), "{history:?}");
}

/// What scripts of the original call, and is not here, says what to do instead.
#[test]
fn there_is_no_set_onwm() {
    let shard = Shard::healthy();
    for arguments in [&["set-onwm"][..], &["set-onwm", "-m", "on", "-y"]] {
        shard.run(arguments).fails_with(&["one_node_write_mode = true", "SIGHUP", "unfreeze"]);
    }
}

/// What prints JSON anyway takes the option, too.
#[test]
fn json_may_be_asked_for() {
    let shard = Shard::healthy();
    assert_eq!(shard.run(&["status", "--json"]).out, shard.run(&["status"]).out);
    shard.run(&["state-backfill", "--json", "-y"]).fails_with(&["exists already"]);
}

#[test]
fn a_malformed_state_is_shown_and_never_written_over() {
    let shard = Shard::healthy();
    let malformed = r#"{"generation":1,"primary":7}"#;
    shard.spoil(malformed);
    let show = shard.run(&["show"]);
    assert!(show.out.contains(&format!("as stored:    {malformed}\n")), "{show:?}");
    let why = "primary: is not a peer";
    assert!(show.out.contains(why), "{show:?}");
    let verify = shard.run(&["verify"]);
    assert_eq!(verify.code, Some(1));
    assert!(verify.out.starts_with("error: no peer can act on what is stored"), "{verify:?}");
    shard.run(&["peers"]).fails_with(&[why, "manatee adm zk-state"]);
    shard.run(&["freeze", "-r", "x"]).fails_with(&["not changed", why]);
    shard.run(&["unfreeze"]).fails_with(&["not changed", why]);
    shard.run(&["zk-state"]).prints(0, &format!("{malformed}\n"));
    shard.spoil("{");
    let line: Value = serde_json::from_str(&shard.run(&["history", "-j"]).out).expect("JSON");
    assert_eq!((&line["state"], &line["raw"]), (&Value::Null, &Value::from("{")));
}

#[test]
fn how_the_shard_is_named() {
    let shard = Shard::healthy();
    let url = shard.url();
    let peers = ["-H", "-o", "role"];
    let listed = "primary\nsync\nasync\n";
    let all = |ran: Ran| ran.prints(0, listed);
    // Ahead of the command as well as after it, from the environment, and from a sitter's file.
    all(run(program().args(["adm", "-s", SHARD, "--coordination", &url, "peers"]).args(peers)));
    let environment = [("MANATEE_COORDINATION", url.as_str()), ("SHARD", SHARD)];
    all(run(program().envs(environment).args(["adm", "peers"]).args(peers)));
    let file = shard.directory.path().join("sitter.toml");
    let text = format!(
        "shard = \"{SHARD}\"\ncoordination = \"{url}\"\n[replication]\npassword_file = \"/none\"\n"
    );
    std::fs::write(&file, text).expect("written");
    all(run(program().args(["adm", "peers", "-c"]).arg(&file).args(peers)));
    all(run(program().env("MANATEE_SITTER_CONFIG", &file).args(["adm", "peers"]).args(peers)));
    // Started as manatee-adm.
    all(run(program().arg0("/usr/bin/manatee-adm").envs(environment).arg("peers").args(peers)));
    let version = run(program().arg0("manatee-adm").arg("version"));
    version.prints(0, concat!(env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_shard_that_cannot_be_reached() {
    let nowhere = tempfile::tempdir().expect("a directory");
    let missing = nowhere.path().join("shard.db");
    let url = format!("sqlite:{}", missing.display());
    let show = |url: &str| run(program().args(["adm", "show", "-s", SHARD, "--coordination", url]));
    show(&url).fails_with(&[&url, "there is no such file"]);
    assert!(!missing.exists(), "looking makes nothing");
    std::fs::write(&missing, "no database").expect("written");
    show(&url).fails_with(&["is no SQLite database"]);
    show("sqlite:shard.db").fails_with(&["is not an absolute path"]);
    run(program().args(["adm", "show", "-s", SHARD, "-z", "10.0.0.1:2181"]))
        .fails_with(&["zk://10.0.0.1:2181"]);
    run(program().args(["adm", "show"])).fails_with(&["--coordination", "MANATEE_COORDINATION"]);
    run(program().args(["adm", "show", "--coordination", &url])).fails_with(&["--shard", "SHARD"]);
    let both = run(program().args(["adm", "show", "-z", "1", "--coordination", "sqlite:/x"]));
    assert_eq!(both.code, Some(2), "{both:?}");
}

#[test]
fn misuse_is_told_from_failure() {
    let shard = Shard::healthy();
    for arguments in [
        &["peers", "-r", "boss"][..],
        &["peers", "-o", "colour"],
        &["peers", "--json", "-o", "role"],
        &["pg-status", "0"],
        &["pg-status", "1", "0"],
        &["history", "-s", "size"],
        &["frobnicate"],
    ] {
        assert_eq!(shard.run(arguments).code, Some(2), "{arguments:?}");
    }
    shard.run(&["peers", "-o", "pg-lag"]).fails_with(&["column pg-lag is one of `pg-status`"]);
}

#[test]
fn it_ends_when_nobody_reads_any_more() {
    let shard = Shard::healthy();
    let mut child = program()
        .args(["adm", "pg-status", "--coordination", &shard.url(), "-s", SHARD, "0.1"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn help_says_what_a_command_does() {
    for command in ["show", "peers", "pg-status", "history", "verify", "freeze", "zk-active"] {
        let help = run(program().args(["adm", "help", command]));
        assert_eq!(help.code, Some(0), "{help:?}");
        assert!(help.out.contains("MANATEE_COORDINATION"), "{help:?}");
    }
}

// Keeps the time limit of this file honest: a silent sitter costs two seconds, not more, however
// many there are.
#[test]
fn sitters_are_asked_at_the_same_time() {
    let shard = Shard::healthy();
    for answer in &shard.answers {
        *answer.lock().expect("no panic") = None;
    }
    let verify = shard.run(&["verify"]);
    assert_eq!(verify.out.matches("no answer within 2 s").count(), 3, "{verify:?}");
    let mut asked = shard.asked_in_vain.lock().expect("no panic").clone();
    asked.sort_unstable();
    assert_eq!(asked.len(), 3, "{asked:?}");
    let apart = asked[2] - asked[0];
    assert!(apart < Millis(2000), "one after another it would be 4 s: {apart:?}");
}
