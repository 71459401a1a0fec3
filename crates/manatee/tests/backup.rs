//! The backup service and its receiver, over real sockets: what is sent arrives, whatever happens to the
//! connections on the way, and only at those who belong to the shard.

mod certificates;

use adapters::clock;
use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use cluster::Millis;
use manatee::backup::{
    FetchError, Input, JobState, Jobs, LegacyOutlet, Limits, Offer, Outgoing, Outlet, Part,
    Progress, Refusal, Remote, Secret, Service, Serving, SnapshotInfo, SnapshotRequest,
    StreamRequest, TlsFiles, serve,
};
use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as TaskContext, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// How long anything may take that happens by itself.
const LIMIT: Millis = Millis(30_000);

/// A dataset in memory: one snapshot of so many bytes.
struct Memory {
    bytes: Vec<u8>,
    /// Where reading it fails.
    fails_at: Option<usize>,
    /// How many streams hold the snapshot.
    held: Arc<AtomicUsize>,
}

impl Memory {
    /// Bytes that can be packed well.
    fn of(length: usize) -> Memory {
        Memory::with((0..length).map(|at| ((at / 3) ^ (at >> 11)) as u8).collect())
    }

    /// Bytes that cannot be packed at all.
    fn of_noise(length: usize) -> Memory {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        Memory::with((0..length / 8).flat_map(|_| next()).collect())
    }

    fn with(bytes: Vec<u8>) -> Memory {
        Memory { bytes, fails_at: None, held: Arc::default() }
    }

    fn info(&self) -> SnapshotInfo {
        let bytes = Some(self.bytes.len() as u64);
        SnapshotInfo { name: "one".to_owned(), guid: "1".to_owned(), created: None, bytes }
    }

    fn outgoing(&self) -> Outgoing {
        self.held.fetch_add(1, Ordering::SeqCst);
        let rest = self.bytes.len() - self.fails_at.unwrap_or(self.bytes.len());
        let bytes = self.bytes[..self.bytes.len() - rest].to_vec();
        Outgoing {
            snapshot: self.info(),
            estimate: Some(self.bytes.len() as u64),
            input: Input::other(Source {
                bytes: io::Cursor::new(bytes),
                fails: self.fails_at.is_some(),
            }),
            guard: Box::new(Held(self.held.clone())),
        }
    }
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes that end, or fail.
struct Source {
    bytes: io::Cursor<Vec<u8>>,
    fails: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.fails && self.bytes.position() == self.bytes.get_ref().len() as u64 {
            return Poll::Ready(Err(io::Error::other("the disk is gone")));
        }
        Pin::new(&mut self.bytes).poll_read(cx, buffer)
    }
}

#[async_trait]
impl Outlet for Memory {
    async fn offer(&self) -> Result<Offer, Refusal> {
        Ok(Offer {
            format: "memory".to_owned(),
            features: BTreeSet::new(),
            snapshots: vec![self.info()],
            bookmarks: Vec::new(),
        })
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotInfo, Refusal> {
        Err(Refusal::Conflict(format!("no snapshot for {}: this is memory", request.purpose)))
    }

    async fn open(&self, request: &StreamRequest) -> Result<Outgoing, Refusal> {
        if request.part.to() != "1" {
            return Err(Refusal::NotFound(format!("there is no snapshot {}", request.part.to())));
        }
        Ok(self.outgoing())
    }
}

#[async_trait]
impl LegacyOutlet for Memory {
    async fn open_newest(&self) -> Result<Outgoing, Refusal> {
        Ok(self.outgoing())
    }
}

fn secret() -> Secret {
    Secret::new("1.example", "password")
}

fn request() -> StreamRequest {
    StreamRequest {
        receiver: "the test".to_owned(),
        part: Part::Full { to: "1".to_owned() },
        accepted: BTreeSet::new(),
        rate: None,
    }
}

async fn start(memory: Arc<Memory>, limits: Limits, tls: Option<TlsFiles>) -> Result<Serving> {
    let legacy: Arc<dyn LegacyOutlet> = memory.clone();
    let jobs = Jobs::new(memory, limits);
    let service =
        Service { jobs, secret: secret(), tls, legacy: Some(legacy), more: axum::Router::new() };
    serve((Ipv4Addr::LOCALHOST, 0).into(), service).await
}

fn remote(address: SocketAddr) -> Remote {
    Remote::new(&address.to_string(), secret(), None).expect("no certificates to fail with")
}

/// Takes a stream to its end.
async fn fetch(remote: &Remote, request: &StreamRequest) -> Result<(Vec<u8>, Progress)> {
    let started = remote.begin(request).await?;
    let mut got = Vec::new();
    let (progress, _) = watch::channel(Progress::default());
    let done = remote.pull(&started, &mut got, &progress).await?;
    ensure!(*progress.borrow() == done, "the progress ends at the end");
    Ok((got, done))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = clock::now();
    while !condition() {
        ensure!((clock::now() - start) < LIMIT, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_any_length_arrives() -> Result<()> {
    for length in [0, 1, (2 << 20) - 1, 2 << 20, (7 << 20) + 5] {
        let memory = Arc::new(Memory::of(length));
        let serving = start(memory.clone(), Limits::default(), None).await?;
        let remote = remote(serving.address);
        assert_eq!(remote.offer().await?.snapshots, [memory.info()]);
        let (got, done) = fetch(&remote, &request()).await?;
        assert!(got == memory.bytes, "{length} bytes differ");
        assert_eq!(done.bytes, length as u64);
        let jobs = remote.streams().await?;
        assert_eq!((&jobs[0].state, jobs[0].bytes_done), (&JobState::Done, length as u64));
        until("the snapshot to be let go of", || memory.held.load(Ordering::SeqCst) == 0).await?;
    }
    Ok(())
}

/// Passes everything on, and breaks each connection after some bytes of the answers.
async fn unreliable(to: SocketAddr, broken: Arc<AtomicUsize>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        for turn in 0_u64.. {
            let Ok((mut near, _)) = listener.accept().await else { return };
            let Ok(mut far) = TcpStream::connect(to).await else { return };
            // Within the first segments, never at the same place.
            let room = 1 + turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (3 << 20);
            let broken = broken.clone();
            tokio::spawn(async move {
                let (mut near_in, mut near_out) = near.split();
                let (far_in, mut far_out) = far.split();
                let mut some = far_in.take(room);
                tokio::select! {
                    _ = tokio::io::copy(&mut near_in, &mut far_out) => {}
                    _ = tokio::io::copy(&mut some, &mut near_out) => {
                        broken.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_cost_nothing_but_time() -> Result<()> {
    let memory = Arc::new(Memory::of_noise(32 << 20));
    let serving = start(memory.clone(), Limits::default(), None).await?;
    let broken = Arc::new(AtomicUsize::new(0));
    let remote = remote(unreliable(serving.address, broken.clone()).await?);
    let started = loop {
        // The first connection may break within the first answer, too.
        match remote.begin(&request()).await {
            Ok(started) => break started,
            Err(FetchError::Unreachable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut got = Vec::new();
    let (progress, _) = watch::channel(Progress::default());
    remote.pull(&started, &mut got, &progress).await?;
    assert!(got == memory.bytes);
    let broken = broken.load(Ordering::SeqCst);
    assert!(broken >= 10, "only {broken} connections were broken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_is_told_and_nothing_is_taken_for_its_end() -> Result<()> {
    let memory = Memory { fails_at: Some(3 << 20), ..Memory::of(5 << 20) };
    let memory = Arc::new(memory);
    let serving = start(memory.clone(), Limits::default(), None).await?;
    let remote = remote(serving.address);
    let error = fetch(&remote, &request()).await.expect_err("the source fails");
    let text = error.to_string();
    assert!(text.contains("the disk is gone"), "{text}");
    let jobs = remote.streams().await?;
    assert!(matches!(&jobs[0].state, JobState::Failed { error } if error.contains("the disk")));
    assert_eq!(memory.held.load(Ordering::SeqCst), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_peers_of_the_shard_are_served() -> Result<()> {
    let serving = start(Arc::new(Memory::of(1)), Limits::default(), None).await?;
    let address = serving.address.to_string();
    for stranger in [Secret::new("2.example", "password"), Secret::new("1.example", "guess")] {
        let remote = Remote::new(&address, stranger, None)?;
        let error = remote.offer().await.expect_err("a stranger is refused");
        assert!(matches!(error, FetchError::Refused { status: 403, .. }), "{error}");
        let error = remote.begin(&request()).await.expect_err("a stranger is refused");
        assert!(matches!(error, FetchError::Refused { status: 403, .. }), "{error}");
    }
    let mut plain = TcpStream::connect(serving.address).await?;
    plain.write_all(b"GET /v1/snapshots HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("not signed"), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_refused_with_the_reason() -> Result<()> {
    let limits = Limits { streams: 2, ..Limits::default() };
    let serving = start(Arc::new(Memory::of(5 << 20)), limits, None).await?;
    let remote = remote(serving.address);
    let unknown = StreamRequest { part: Part::Full { to: "9".to_owned() }, ..request() };
    let error = remote.begin(&unknown).await.expect_err("no such snapshot");
    assert!(matches!(error, FetchError::Refused { status: 404, .. }), "{error}");
    let snapshot = SnapshotRequest { purpose: "seed".to_owned() };
    let error = remote.snapshot(&snapshot).await.expect_err("no snapshots of memory");
    assert!(matches!(error, FetchError::Refused { status: 409, .. }), "{error}");
    let (_one, _two) = (remote.begin(&request()).await?, remote.begin(&request()).await?);
    let error = remote.begin(&request()).await.expect_err("one too many");
    assert!(
        matches!(&error, FetchError::Refused { status: 503, problem, .. }
        if problem.contains("try again later")),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_asks_for_is_let_go_of() -> Result<()> {
    let limits = Limits { idle: Millis(2000), ..Limits::default() };
    let memory = Arc::new(Memory::of(5 << 20));
    let serving = start(memory.clone(), limits, None).await?;
    let remote = remote(serving.address);
    let started = remote.begin(&request()).await?;
    assert_eq!(memory.held.load(Ordering::SeqCst), 1);
    until("the snapshot to be let go of", || memory.held.load(Ordering::SeqCst) == 0).await?;
    let (progress, _) = watch::channel(Progress::default());
    let error = remote.pull(&started, &mut Vec::new(), &progress).await.expect_err("it is over");
    assert!(
        matches!(&error, FetchError::Refused { problem, .. }
        if problem.contains("begin another")),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stream_is_faster_than_it_may_be() -> Result<()> {
    let memory = Arc::new(Memory::of(6 << 20));
    let serving = start(memory.clone(), Limits::default(), None).await?;
    let limited = StreamRequest { rate: Some(8 << 20), ..request() };
    let start = clock::now();
    let (got, _) = fetch(&remote(serving.address), &limited).await?;
    assert!(got == memory.bytes);
    // The last segment may be asked for when four of the six MiB are due.
    let took = clock::now() - start;
    assert!(took >= Millis(500), "{} ms", took.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_both_sides_show_a_certificate_of_the_shard() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let make = |name| certificates::make(directory.path(), name);
    let (ours, theirs) = (make("ours")?, make("theirs")?);
    let memory = Arc::new(Memory::of((4 << 20) + 1));
    let serving = start(memory.clone(), Limits::default(), Some(ours.clone())).await?;
    let address = serving.address.to_string();
    let peer = Remote::new(&address, secret(), Some(&ours))?;
    let (got, _) = fetch(&peer, &request()).await?;
    assert!(got == memory.bytes);
    // One whose authority is another, on either side; one without TLS.
    let mixed = TlsFiles { authority: ours.authority.clone(), ..theirs.clone() };
    for stranger in [Some(&theirs), Some(&mixed), None] {
        let remote = Remote::new(&address, secret(), stranger)?;
        let error = remote.offer().await.expect_err("a stranger is refused");
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    }
    let missing = TlsFiles { key: directory.path().join("none.pem"), ..ours };
    let error = Remote::new(&address, secret(), Some(&missing)).expect_err("no key");
    assert!(error.to_string().contains("none.pem"), "{error}");
    Ok(())
}

/// Posts to the original's service.
async fn legacy(address: SocketAddr, body: serde_json::Value) -> Result<(u16, serde_json::Value)> {
    let url = format!("http://{address}/backup/");
    tokio::task::spawn_blocking(move || {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let mut answer = ureq::Agent::from(config).post(&url).send_json(&body)?;
        Ok((answer.status().as_u16(), answer.body_mut().read_json()?))
    })
    .await?
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_is_served_by_its_own_protocol() -> Result<()> {
    let memory = Arc::new(Memory::of((1 << 20) + 3));
    let serving = start(memory.clone(), Limits::default(), None).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let whole =
        serde_json::json!({ "host": "127.0.0.1", "port": port, "dataset": "zones/manatee" });
    for missing in ["host", "port", "dataset"] {
        let mut some = whole.clone();
        some.as_object_mut().context("an object")?.remove(missing);
        assert_eq!(legacy(serving.address, some).await?.0, 409, "without {missing}");
    }
    let (status, answer) = legacy(serving.address, whole).await?;
    assert_eq!(status, 200, "{answer}");
    let (mut socket, _) = listener.accept().await?;
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await?;
    assert!(got == memory.bytes);
    let path = answer["jobPath"].as_str().context("a path")?.to_owned();
    assert_eq!(path, format!("/backup/{}", answer["jobid"].as_str().context("an id")?));
    let url = format!("http://{}{path}", serving.address);
    let start = clock::now();
    loop {
        let url = url.clone();
        let job: serde_json::Value = tokio::task::spawn_blocking(move || {
            anyhow::Ok(ureq::get(&url).call()?.body_mut().read_json()?)
        })
        .await??;
        if job["done"] == true {
            assert_eq!(job["size"], job["completed"], "{job}");
            break;
        }
        ensure!((clock::now() - start) < LIMIT, "{job}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let unknown = format!("http://{}/backup/nothing", serving.address);
    let error = tokio::task::spawn_blocking(move || ureq::get(&unknown).call()).await?;
    assert!(matches!(error, Err(ureq::Error::StatusCode(404))));
    Ok(())
}
