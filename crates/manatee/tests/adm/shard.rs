//! A shard to administer: a real coordination file, and sitters that only have a status to tell.

use adapters::{
    clock,
    coord::{Coordination, Membership, PutOutcome, sqlite::SqliteCoord},
};
use cluster::{ClusterState, Generation, Lsn, Millis, Monotonic, PeerIdent, Role};
use manatee::status::{PeerStatus, PgStatus, ReasonText, SenderStatus};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const SHARD: &str = "1.example";

/// What a stub sitter answers: this, or nothing but a connection that stays open.
pub type Answer = Arc<Mutex<Option<PeerStatus>>>;

/// When those were asked that answer nothing.
pub type Asked = Arc<Mutex<Vec<Monotonic>>>;

/// A shard whose coordination is real and whose sitters are stubs.
pub struct Shard {
    pub directory: TempDir,
    pub runtime: Runtime,
    pub coord: SqliteCoord,
    pub sessions: Vec<Box<dyn Membership>>,
    pub peers: Vec<PeerIdent>,
    pub answers: Vec<Answer>,
    pub asked_in_vain: Asked,
}

impl Shard {
    /// A file without a state, and so many peers, none of them active.
    pub fn new(peers: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("shard.db");
        let runtime = Runtime::new().expect("a runtime");
        let coord = SqliteCoord::open(&path, SHARD, Millis(10_000)).expect("a coordination file");
        let asked_in_vain = Asked::default();
        let (peers, answers) = (1..=peers).map(|n| stub(n, &asked_in_vain)).unzip();
        Shard { directory, runtime, coord, sessions: Vec::new(), peers, answers, asked_in_vain }
    }

    /// Three peers, all active, in a state where all is well.
    pub fn healthy() -> Self {
        let mut shard = Shard::new(3);
        for index in 0..3 {
            shard.join(index);
        }
        shard.put(&shard.state());
        shard
    }

    pub fn state(&self) -> ClusterState {
        let text = serde_json::json!({
            "generation": 1, "primary": self.peers[0], "sync": self.peers[1],
            "async": [self.peers[2]], "deposed": [], "initWal": "0/1000028",
        });
        ClusterState::parse(&text.to_string()).expect("legal")
    }

    pub fn join(&mut self, index: usize) {
        let joined = self.coord.join(&self.peers[index], Millis(60_000));
        self.sessions.push(self.runtime.block_on(joined).expect("joined"));
    }

    pub fn put(&self, state: &ClusterState) {
        self.runtime.block_on(async {
            let stored = self.coord.read().await.expect("read").state;
            let put = self.coord.put(stored.map(|stored| stored.version), state).await;
            assert!(matches!(put, PutOutcome::Committed(_)), "{put:?}");
        });
    }

    /// Puts a text in place of the stored state that no adapter would write.
    pub fn spoil(&self, json: &str) {
        let database = rusqlite::Connection::open(self.path()).expect("opened");
        let changed = database
            .execute(
                "UPDATE history SET json = ?1
                 WHERE version = (SELECT max(version) FROM history)",
                [json],
            )
            .expect("updated");
        assert_eq!(changed, 1);
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("shard.db")
    }

    pub fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    pub fn change(&self, index: usize, change: impl FnOnce(&mut PeerStatus)) {
        change(self.answers[index].lock().expect("no panic").as_mut().expect("an answer"));
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        let (command, rest) = arguments.split_first().expect("a command");
        let url = self.url();
        let reach = ["--coordination", &url, "--shard", SHARD];
        run(program().args(["adm", command]).args(reach).args(rest))
    }
}

/// Peer `n` with a sitter that answers at a port of its own.
fn stub(n: usize, asked_in_vain: &Asked) -> (PeerIdent, Answer) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut peer =
        PeerIdent::new(&format!("10.0.0.{n}"), 5432, 12345, &format!("peer-{n}-of-shard"));
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    peer.extra.insert("statusUrl".to_owned(), url.into());
    let answer = Arc::new(Mutex::new(Some(status(n, &peer))));
    let (answering, asked_in_vain) = (Arc::clone(&answer), Arc::clone(asked_in_vain));
    // It ends with the process.
    thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let stream = stream.expect("accepted");
            match &*answering.lock().expect("no panic") {
                Some(status) => reply(stream, &serde_json::to_string(status).expect("JSON")),
                None => {
                    asked_in_vain.lock().expect("no panic").push(clock::now());
                    silent.push(stream);
                }
            }
        }
    });
    (peer, answer)
}

fn reply(mut stream: TcpStream, body: &str) {
    let mut request = BufReader::new(stream.try_clone().expect("cloned"));
    let mut line = String::new();
    request.read_line(&mut line).expect("a request");
    assert!(line.starts_with("GET /state "), "{line:?}");
    while line != "\r\n" {
        line.clear();
        request.read_line(&mut line).expect("a header");
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .expect("written");
}

/// What the healthy sitter of peer `n` says; each streams to the next one but the last.
fn status(n: usize, peer: &PeerIdent) -> PeerStatus {
    let role = [Role::Primary, Role::Sync, Role::Async][n - 1];
    let at = Some(Lsn::new(0x300_0060));
    let sender = |sync_state: &str| SenderStatus {
        peer: format!("10.0.0.{}:5432:12345", n + 1),
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        sent: at,
        write: at,
        flush: at,
        replay: at,
    };
    PeerStatus {
        version: "3.0.0".to_owned(),
        shard: SHARD.to_owned(),
        peer: peer.clone(),
        role,
        reason: ReasonText {
            kind: "serving".to_owned(),
            rule: "A1".to_owned(),
            text: format!("doing what {role} does"),
        },
        generation: Some(Generation(1)),
        in_session: true,
        database: None,
        pending: Vec::new(),
        fenced: false,
        rebuild_asked: false,
        may_serve_ms: None,
        failure: None,
        copying: None,
        copies: 0,
        sending: Vec::new(),
        postgres: PgStatus {
            online: true,
            writable: n == 1,
            in_recovery: Some(n > 1),
            streaming: (n > 1).then_some(true),
            wal: at,
            replay: at.filter(|_| n > 1),
            senders: [vec![sender("sync")], vec![sender("async")], Vec::new()][n - 1].clone(),
            ..PgStatus::default()
        },
    }
}

/// The program, with nothing in its environment that names a shard.
pub fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_manatee"));
    for variable in ["MANATEE_COORDINATION", "ZK_IPS", "SHARD", "MANATEE_SITTER_CONFIG"] {
        program.env_remove(variable);
    }
    program
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn run(program: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = program.output().expect("started");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: status.code(), out: text(stdout), err: text(stderr) }
}

impl Ran {
    #[track_caller]
    pub fn prints(&self, code: i32, out: &str) {
        assert_eq!((self.code, self.err.as_str()), (Some(code), ""), "{self:?}");
        assert_eq!(self.out, out);
    }

    #[track_caller]
    pub fn fails_with(&self, parts: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (Some(1), ""), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{:?} without {part:?}", self.err);
        }
    }

    #[track_caller]
    pub fn json(&self, code: i32) -> Value {
        assert_eq!((self.code, self.err.as_str()), (Some(code), ""), "{self:?}");
        serde_json::from_str(&self.out).expect("JSON")
    }
}
