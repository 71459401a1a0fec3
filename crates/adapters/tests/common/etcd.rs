//! A shard in a real etcd, and a way to each server that can be cut.

use super::{Backend, Ways, fresh_root};
use adapters::coord::etcd::EtcdCoord;
use adapters::coord::memory::LostPut;
use adapters::coord::{Access, Coordination};
use adapters::testing::{Etcd, Way};
use cluster::Millis;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bounds each call: a put waits for the disks of a majority, which others may keep busy.
pub const CALL: Millis = Millis(10_000);

/// An etcd with its files.
pub struct Servers {
    pub etcd: Etcd,
    _directory: tempfile::TempDir,
}

impl Servers {
    pub fn start(count: usize) -> Arc<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let etcd = Etcd::start(directory.path(), count).expect("an etcd");
        Arc::new(Servers { etcd, _directory: directory })
    }
}

/// One of those that the tests of a process share while any of them runs.
fn shared(count: usize) -> Arc<Servers> {
    static SHARED: Mutex<BTreeMap<usize, Weak<Servers>>> = Mutex::new(BTreeMap::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(servers) = shared.get(&count).and_then(Weak::upgrade) {
        return servers;
    }
    let servers = Servers::start(count);
    shared.insert(count, Arc::downgrade(&servers));
    servers
}

/// A shard in an etcd of `N` servers; those inside go to each server through a proxy.
pub struct EtcdOf<const N: usize> {
    pub servers: Arc<Servers>,
    pub root: String,
    pub ways: Ways,
}

impl<const N: usize> EtcdOf<N> {
    /// With servers of its own, which may be harmed.
    pub fn alone() -> Self {
        EtcdOf::at(Servers::start(N))
    }

    fn at(servers: Arc<Servers>) -> Self {
        let ways = Ways::to((0..N).map(|index| servers.etcd.address(index)));
        EtcdOf { servers, root: fresh_root(), ways }
    }

    fn open(&self, servers: &[String]) -> Arc<dyn Coordination> {
        Arc::new(open_etcd(servers, &self.root, &Access::default()))
    }
}

pub fn open_etcd(servers: &[String], root: &str, access: &Access) -> EtcdCoord {
    EtcdCoord::open(servers, root, "1.example", access, CALL).expect("a client")
}

impl<const N: usize> Backend for EtcdOf<N> {
    const SHORT: Millis = Millis(3000);
    const STEADY: Millis = Millis(3000);
    fn new() -> Self {
        EtcdOf::at(shared(N))
    }
    fn client(&self) -> Arc<dyn Coordination> {
        self.open(&self.ways.addresses())
    }
    fn outside(&self) -> Arc<dyn Coordination> {
        let servers: Vec<_> = (0..N).map(|i| self.servers.etcd.address(i).to_string()).collect();
        self.open(&servers)
    }
    fn cut(&self) {
        self.ways.set(Way::Closed);
    }
    fn heal(&self) {
        self.ways.set(Way::Open);
    }
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send>> {
        // Only a put names a key of the history.
        let is_put = |asked: &[u8]| asked.windows(9).any(|part| part == b"/history/");
        Some(self.ways.lose_next_put(fate, is_put))
    }
}
