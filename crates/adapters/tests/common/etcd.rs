//! A shard in a real etcd, and a way to each server that can be cut.

use super::{Backend, Heal, fresh_root};
use adapters::coord::etcd::EtcdCoord;
use adapters::coord::memory::LostPut;
use adapters::coord::{Access, Coordination};
use adapters::testing::{Etcd, Proxy, Way};
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
    proxies: Arc<Vec<Proxy>>,
}

impl<const N: usize> EtcdOf<N> {
    /// With servers of its own, which may be harmed.
    pub fn alone() -> Self {
        EtcdOf::at(Servers::start(N))
    }

    fn at(servers: Arc<Servers>) -> Self {
        let proxy = |index| Proxy::start(servers.etcd.address(index)).expect("a proxy");
        let proxies = Arc::new((0..N).map(proxy).collect());
        EtcdOf { servers, root: fresh_root(), proxies }
    }

    pub fn set(&self, way: Way) {
        self.proxies.iter().for_each(|proxy| proxy.set(way));
    }

    fn open(&self, servers: Vec<String>) -> Arc<dyn Coordination> {
        Arc::new(open_etcd(&servers, &self.root, &Access::default()))
    }
}

pub fn open_etcd(servers: &[String], root: &str, access: &Access) -> EtcdCoord {
    EtcdCoord::open(servers, root, "1.example", access, CALL).expect("a client")
}

impl<const N: usize> Backend for EtcdOf<N> {
    const SHORT: Millis = Millis(1000);
    const STEADY: Millis = Millis(3000);
    fn new() -> Self {
        EtcdOf::at(shared(N))
    }
    fn client(&self) -> Arc<dyn Coordination> {
        self.open(self.proxies.iter().map(|proxy| proxy.address().to_string()).collect())
    }
    fn outside(&self) -> Arc<dyn Coordination> {
        self.open((0..N).map(|index| self.servers.etcd.address(index).to_string()).collect())
    }
    fn cut(&self) {
        self.set(Way::Closed);
    }
    fn heal(&self) {
        self.set(Way::Open);
    }
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send>> {
        self.set(match fate {
            LostPut::NotStored => Way::Closed,
            // Only a put names a key of the history.
            LostPut::Stored => {
                Way::NoAnswerTo(|asked| asked.windows(9).any(|part| part == b"/history/"))
            }
        });
        Some(Box::new(Heal(self.proxies.clone())))
    }
}
