//! A shard of the first version, as its peers left it in a real ZooKeeper, under today's commands.

use crate::shard::{Ran, SHARD, program, run};
use crate::topology::Watch;
use adapters::testing::Ensemble;
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zookeeper_client::{Acls, Client, CreateMode};

/// What peers of each age register as, in the order in which they came, and with what.
const PEERS: [(&str, &str); 3] = [
    ("10.0.0.1", r#"{"zoneId":"zone-1"}"#),
    ("10.0.0.2:5433:12346", r#"{"zoneId":"zone-2","ip":"10.0.0.2"}"#),
    (
        "10.0.0.3:5432:12345:12347",
        r#"{"zoneId":"zone-3","pgUrl":"tcp://postgres@10.0.0.3:5432/postgres"}"#,
    ),
];

const HISTORY: [&str; 2] = [
    "1417543665280-10.0.0.1:5432-AssumeLeader-Leader--",
    "1417543693514-10.0.0.1:5432-NewStandby-leader--10.0.0.2:5433",
];

const PRIMARY: &str = "tcp://postgres@10.0.0.1:5432/postgres";
const SYNC: &str = "tcp://postgres@10.0.0.2:5433/postgres";
const ASYNC: &str = "tcp://postgres@10.0.0.3:5432/postgres";

struct FirstVersion {
    ensemble: Ensemble,
    runtime: Runtime,
    client: Client,
    _directory: TempDir,
}

impl FirstVersion {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ensemble = Ensemble::start(directory.path(), 1).expect("a ZooKeeper");
        let runtime = Runtime::new().expect("a runtime");
        let client = runtime.block_on(async {
            let address = ensemble.address(0).to_string();
            let client = Client::connector()
                .with_session_timeout(Duration::from_secs(30))
                .connect(&address)
                .await
                .expect("a client");
            let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
            let mut path = String::new();
            for name in ["manatee", SHARD, "election"] {
                path += &format!("/{name}");
                client.create(&path, b"", &persistent).await.expect("created");
            }
            client.create(&node("history"), b"", &persistent).await.expect("created");
            let registered = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
            for (name, data) in PEERS {
                let path = node(&format!("election/{name}-"));
                client.create(&path, data.as_bytes(), &registered).await.expect("created");
            }
            let written = CreateMode::PersistentSequential.with_acls(Acls::anyone_all());
            for name in HISTORY {
                let path = node(&format!("history/{name}-"));
                client.create(&path, b"", &written).await.expect("created");
            }
            client
        });
        FirstVersion { ensemble, runtime, client, _directory: directory }
    }

    /// As the original is told where things are.
    fn arguments(&self) -> [String; 4] {
        ["-z".to_owned(), self.ensemble.address(0).to_string(), "-s".to_owned(), SHARD.to_owned()]
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(program().arg("adm").args(self.arguments()).args(arguments))
    }

    fn children(&self, name: &str) -> Vec<String> {
        let names = self.runtime.block_on(self.client.list_children(&node(name)));
        let mut names = names.expect("children");
        names.sort();
        names
    }
}

fn node(name: &str) -> String {
    format!("/manatee/{SHARD}/{name}")
}

/// Everything that an operator does on the way from the first version to the second.
#[test]
fn from_the_first_version_to_the_second() {
    let shard = FirstVersion::new();
    let mut watching = program();
    let watch = Watch::start(watching.arg("adm").args(shard.arguments()).args(["topology", "-w"]));
    assert_eq!(watch.line(), format!("{PRIMARY} {SYNC} {ASYNC}"));
    shard.run(&["topology"]).prints(0, &format!("{PRIMARY}\n{SYNC}\n{ASYNC}\n"));
    let told = shard.run(&["topology", "--json"]).json(0);
    assert_eq!(told, json!({"source": "election", "urls": [PRIMARY, SYNC, ASYNC]}));
    let status = shard.run(&["status", "-l"]).json(0);
    assert_eq!(status[SHARD]["primary"]["id"], "10.0.0.1:5432:12345");
    assert_eq!(status[SHARD]["primary"]["backupUrl"], "http://10.0.0.1:12345");
    assert_eq!(status[SHARD]["sync"]["backupUrl"], "http://10.0.0.2:12346");
    assert_eq!(status[SHARD]["async"]["id"], "10.0.0.3:5432:12345");
    shard.run(&["status"]).fails_with(&["has no cluster state"]);
    let history = shard.run(&["history", "-v"]);
    assert!(history.out.contains("10.0.0.1:5432 became primary\n"), "{history:?}");
    assert_eq!(history.out.lines().count(), 3, "{history:?}");

    let state = node("state");
    shard.run(&["check-lock", "-p", &state]).prints(0, &format!("{state} does not exist\n"));
    let done = shard.run(&["state-backfill", "-y"]).json(0);
    assert_eq!(watch.line(), format!("{PRIMARY} {ASYNC} {SYNC}"));
    assert_eq!(
        (&done["generation"], &done["sync"]["id"]),
        (&json!(0), &json!("10.0.0.3:5432:12345"))
    );
    assert_eq!(done["async"][0]["id"], "10.0.0.2:5433:12346");
    assert_eq!(done["freeze"]["reason"], "manatee-adm state-backfill");
    shard.run(&["state-backfill", "-y"]).fails_with(&["exists already"]);
    let told = shard.run(&["check-lock", "-j", "-p", &state]).json(1);
    assert_eq!(told, json!({ "path": state, "exists": true }));
    shard.run(&["check-lock", "-p", &state]).prints(1, &format!("{state} exists\n"));

    // State and history in the original's places, with the same text, numbered on from what was there.
    let names = shard.children("history");
    assert_eq!(names[0], "0-0000000002", "{names:?}");
    let read = |name: &str| {
        let data = shard.runtime.block_on(shard.client.get_data(&node(name)));
        String::from_utf8(data.expect("data").0).expect("text")
    };
    assert_eq!(read("history/0-0000000002"), read("state"));
    assert_eq!(serde_json::from_str::<Value>(&read("state")).expect("JSON"), done);
    let history = shard.run(&["history", "-v"]).out;
    let last = history.lines().last().expect("a line");
    assert!(last.ends_with("brought over from the first version, for normal (multi-peer) mode"));

    // Without the state again, it is what the registrations say.
    shard.runtime.block_on(shard.client.delete(&state, None)).expect("deleted");
    assert_eq!(watch.line(), format!("{PRIMARY} {SYNC} {ASYNC}"));
    let first = shard.children("election").into_iter().find(|name| name.starts_with("10.0.0.1-"));
    let first = node(&format!("election/{}", first.expect("registered")));
    shard.runtime.block_on(shard.client.delete(&first, None)).expect("deleted");
    assert_eq!(watch.line(), format!("{SYNC} {ASYNC}"));
}

#[test]
fn a_lock_that_cannot_be_looked_for() {
    let elsewhere = ["adm", "check-lock", "-s", SHARD, "-p", "/lock"];
    run(program().args(elsewhere).args(["--coordination", "etcd://10.0.0.1"]))
        .fails_with(&["/lock", "etcd://10.0.0.1 is none"]);
    let relative = run(program().args(["adm", "check-lock", "-z", "x", "-s", SHARD, "-p", "lock"]));
    assert_eq!(relative.code, Some(2), "{relative:?}");
}
