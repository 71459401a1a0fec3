//! What the tests of coordination share: the backends behind one harness, and waiting with a limit.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod etcd;
pub mod zookeeper;

use adapters::clock;
use adapters::coord::memory::{LostPut, MemoryCoord, MemoryService};
use adapters::coord::sqlite::SqliteCoord;
use adapters::coord::{
    CoordEvent, Coordination, Membership, PutOutcome, Registration, StoredState, Version, Watch,
};
use adapters::testing::{Proxy, Way};
use cluster::{ClusterState, Millis, Monotonic, PeerIdent};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Nothing that is waited for takes this long unless it is broken.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Of sessions that must not expire by accident, however loaded the machine is.
pub const LONG: Millis = Millis(15_000);

/// Bounds each call, and how long a put waits that is to have no answer.
pub const CALL: Millis = Millis(2000);

/// As [`CALL`], for a service that waits for disks, and needs a moment for a new leader.
pub const ZK_CALL: Millis = Millis(6000);

/// One coordination service, two ways to it, and a hand that breaks the first.
pub trait Backend: Send + Sync {
    /// Of sessions that are to expire: short, and long enough to be held on a busy machine. What
    /// the service grants is never shorter.
    const SHORT: Millis;
    /// Of sessions that beat soon, and outlive what a busy machine holds the service up for.
    const STEADY: Millis;
    /// A service that holds nothing yet.
    fn new() -> Self;
    /// A client that can be cut off.
    fn client(&self) -> Arc<dyn Coordination>;
    /// A client that cannot.
    fn outside(&self) -> Arc<dyn Coordination>;
    /// Cuts off everyone but those outside.
    fn cut(&self);
    /// Ends the cut.
    fn heal(&self);
    /// Makes the next put end without an answer, until what is returned is dropped; `None` where
    /// that cannot be brought about from outside.
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send>>;
}

pub struct Memory {
    service: MemoryService,
    inside: MemoryCoord,
}

impl Backend for Memory {
    const SHORT: Millis = Millis(1500);
    const STEADY: Millis = Millis(1500);
    fn new() -> Self {
        let service = MemoryService::new("1.example");
        let inside = service.client();
        Memory { service, inside }
    }
    fn client(&self) -> Arc<dyn Coordination> {
        Arc::new(self.inside.clone())
    }
    fn outside(&self) -> Arc<dyn Coordination> {
        Arc::new(self.service.client())
    }
    fn cut(&self) {
        self.inside.set_reachable(false);
    }
    fn heal(&self) {
        self.inside.set_reachable(true);
    }
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send>> {
        self.service.lose_next_put(fate);
        Some(Box::new(()))
    }
}

/// The file stands in `store/`; those inside go through the link `inside`, which a cut removes.
pub struct Sqlite {
    pub directory: tempfile::TempDir,
}

impl Sqlite {
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store/shard.db")
    }
    fn link(&self) -> PathBuf {
        self.directory.path().join("inside")
    }
}

impl Backend for Sqlite {
    const SHORT: Millis = Millis(1500);
    const STEADY: Millis = Millis(1500);
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("store")).expect("a directory");
        let backend = Sqlite { directory };
        backend.heal();
        backend
    }
    fn client(&self) -> Arc<dyn Coordination> {
        Arc::new(open(&self.link().join("shard.db")))
    }
    fn outside(&self) -> Arc<dyn Coordination> {
        Arc::new(open(&self.path()))
    }
    fn cut(&self) {
        std::fs::remove_file(self.link()).expect("the link");
    }
    fn heal(&self) {
        std::os::unix::fs::symlink(self.directory.path().join("store"), self.link())
            .expect("a link");
    }
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send>> {
        (fate == LostPut::NotStored).then(|| {
            let holder = rusqlite::Connection::open(self.path()).expect("the database");
            holder.busy_timeout(LIMIT).expect("a limit");
            holder.execute_batch("BEGIN IMMEDIATE").expect("the lock");
            Box::new(holder) as Box<dyn Send>
        })
    }
}

/// A root that no other test has.
pub fn fresh_root() -> String {
    static ROOTS: AtomicU32 = AtomicU32::new(0);
    format!("/test-{}/manatee", ROOTS.fetch_add(1, Ordering::Relaxed))
}

/// A way to each server of a service that can be cut.
#[derive(Clone)]
pub struct Ways(Arc<Vec<Proxy>>);

impl Ways {
    pub fn to(servers: impl Iterator<Item = SocketAddr>) -> Self {
        Ways(Arc::new(servers.map(|server| Proxy::start(server).expect("a proxy")).collect()))
    }

    pub fn addresses(&self) -> Vec<String> {
        self.0.iter().map(|proxy| proxy.address().to_string()).collect()
    }

    pub fn set(&self, way: Way) {
        self.0.iter().for_each(|proxy| proxy.set(way));
    }

    /// The next put does not arrive, or whatever is a put has no answer, until what is returned is dropped.
    pub fn lose_next_put(&self, fate: LostPut, is_put: fn(&[u8]) -> bool) -> Box<dyn Send> {
        self.set(match fate {
            LostPut::NotStored => Way::Closed,
            LostPut::Stored => Way::NoAnswerTo(is_put),
        });
        Box::new(Heal(self.clone()))
    }
}

/// Opens the ways again.
struct Heal(Ways);

impl Drop for Heal {
    fn drop(&mut self) {
        self.0.set(Way::Open);
    }
}

pub fn open(path: &Path) -> SqliteCoord {
    SqliteCoord::open(path, "1.example", CALL).expect("the database")
}

pub fn peer(number: u8) -> PeerIdent {
    PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, "zone")
}

/// A state with a field that is not ours.
pub fn state(generation: u64) -> ClusterState {
    let peer = |number| serde_json::to_string(&peer(number)).expect("JSON");
    let (primary, sync) = (peer(1), peer(2));
    ClusterState::parse(&format!(
        r#"{{"generation":{generation},"primary":{primary},"sync":{sync},"async":[],
            "deposed":[],"initWal":"0/1","colour":{{"of":["another","tool"]}}}}"#
    ))
    .expect("a state")
}

/// Either kind of stream.
pub enum Stream {
    Member(Box<dyn Membership>),
    Watch(Watch),
}

impl Stream {
    pub async fn next(&mut self) -> Option<CoordEvent> {
        let next = async {
            match self {
                Stream::Member(member) => member.next().await,
                Stream::Watch(watch) => watch.recv().await,
            }
        };
        within("the next event", next).await
    }

    /// Reads on until an event is what is waited for.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&CoordEvent) -> Option<T>,
    ) -> T {
        let mut read = Vec::new();
        let reading = async {
            loop {
                let event = match self {
                    Stream::Member(member) => member.next().await,
                    Stream::Watch(watch) => watch.recv().await,
                };
                let event = event.unwrap_or_else(|| panic!("{what}: ended after {read:?}"));
                if let Some(value) = wanted(&event) {
                    return value;
                }
                read.push(event);
            }
        };
        within(what, reading).await
    }

    pub async fn until_active(&mut self, sequences: &[u64]) {
        let what = format!("active to be {sequences:?}");
        self.until(&what, |event| match event {
            CoordEvent::Active(active) => (self::sequences(active) == sequences).then_some(()),
            _ => None,
        })
        .await;
    }

    pub async fn until_version(&mut self, version: Version) {
        let what = format!("{version:?}");
        self.until(&what, |event| match event {
            CoordEvent::State(Some(state)) => (state.version == version).then_some(()),
            _ => None,
        })
        .await;
    }

    pub async fn until_unreachable(&mut self) {
        self.until("unreachable", |event| {
            matches!(event, CoordEvent::Unreachable(_)).then_some(())
        })
        .await;
    }

    /// A confirmation that was sent after this moment, of the same session.
    pub async fn until_confirmed_after(&mut self, moment: Monotonic) {
        self.until("a later confirmation", |event| match event {
            CoordEvent::Confirmed { sent } if *sent > moment => Some(()),
            CoordEvent::Expired => panic!("expired"),
            _ => None,
        })
        .await;
    }

    pub async fn until_confirmed(&mut self) {
        self.until("confirmed", |event| {
            matches!(event, CoordEvent::Confirmed { .. }).then_some(())
        })
        .await;
    }
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("waited {LIMIT:?} in vain for {what}"))
}

pub fn sequences(active: &[Registration]) -> Vec<u64> {
    active.iter().map(|one| one.sequence).collect()
}

pub async fn join(coord: &Arc<dyn Coordination>, number: u8, timeout: Millis) -> (Stream, u64) {
    let member = coord.join(&peer(number), timeout).await.expect("to join");
    // The last one of this peer: it has just come.
    let active = coord.read().await.expect("to read").active;
    let own = active.iter().rfind(|one| one.peer == peer(number)).expect("our own registration");
    (Stream::Member(member), own.sequence)
}

pub async fn watch(coord: &Arc<dyn Coordination>) -> Stream {
    Stream::Watch(coord.watch().await.expect("to watch"))
}

pub async fn put(
    coord: &Arc<dyn Coordination>,
    expected: Option<Version>,
    generation: u64,
) -> Version {
    match coord.put(expected, &state(generation)).await {
        PutOutcome::Committed(version) => version,
        other => panic!("put of generation {generation} at {expected:?}: {other:?}"),
    }
}

/// As a sitter does: after a failure it reads, and tries again on what is stored. Nobody else writes, so
/// that what is stored instead is what it wrote.
pub async fn put_until_stored(
    coord: &Arc<dyn Coordination>,
    expected: Option<Version>,
    generation: u64,
) -> Version {
    let putting = async {
        let mut lost = false;
        loop {
            match coord.put(expected, &state(generation)).await {
                PutOutcome::Committed(version) => return version,
                PutOutcome::Unknown(_) => lost = true,
                PutOutcome::Conflict => assert!(lost, "a conflict with nobody"),
                PutOutcome::Refused(error) => panic!("{error:?}"),
            }
            if let Ok(view) = coord.read().await
                && let Some(version) = view.state.map(|state| state.version)
                && Some(version) != expected
            {
                return version;
            }
        }
    };
    within("a put", putting).await
}

pub async fn stored(coord: &Arc<dyn Coordination>) -> Option<StoredState> {
    coord.read().await.expect("to read").state
}

/// Milliseconds of the boot clock that pass while this is awaited.
pub async fn timed<T>(future: impl Future<Output = T>) -> (T, Millis) {
    let begin = clock::now();
    let value = future.await;
    (value, clock::now() - begin)
}
