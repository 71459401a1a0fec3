//! A shard in a real ZooKeeper ensemble, and a way to each server that can be cut.

use super::{Backend, Ways, ZK_CALL, fresh_root};
use adapters::coord::memory::LostPut;
use adapters::coord::zookeeper::{Address, ZkCoord};
use adapters::coord::{Access, Coordination};
use adapters::testing::{Ensemble, Way};
use cluster::Millis;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use zookeeper_client::Client;

/// One of the ensembles that the tests of a process share while any of them runs.
pub struct SharedEnsemble {
    pub ensemble: Ensemble,
    _directory: tempfile::TempDir,
}

impl SharedEnsemble {
    /// The address of each server.
    pub fn servers(&self) -> Vec<String> {
        let ensemble = &self.ensemble;
        (0..ensemble.count()).map(|index| ensemble.address(index).to_string()).collect()
    }

    /// A client of another make.
    pub async fn raw(&self) -> Client {
        Client::connect(&self.servers().join(",")).await.expect("a client")
    }
}

/// The ensemble of this many servers.
pub fn ensemble(servers: usize) -> Arc<SharedEnsemble> {
    static SHARED: Mutex<BTreeMap<usize, Weak<SharedEnsemble>>> = Mutex::new(BTreeMap::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ensemble) = shared.get(&servers).and_then(Weak::upgrade) {
        return ensemble;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let ensemble = Ensemble::start(directory.path(), servers).expect("a ZooKeeper ensemble");
    let ensemble = Arc::new(SharedEnsemble { ensemble, _directory: directory });
    shared.insert(servers, Arc::downgrade(&ensemble));
    ensemble
}

/// A real ensemble; those inside go to each server through a proxy.
pub struct ZooKeeper<const SERVERS: usize> {
    shared: Arc<SharedEnsemble>,
    ways: Ways,
    root: String,
}

impl<const SERVERS: usize> ZooKeeper<SERVERS> {
    fn open(&self, servers: &[String]) -> Arc<dyn Coordination> {
        Arc::new(open_zookeeper(servers, &self.root, &Access::default()))
    }
}

pub fn open_zookeeper(servers: &[String], root: &str, access: &Access) -> ZkCoord {
    let address = Address::parse(&format!("//{}{root}", servers.join(",")), "1.example");
    ZkCoord::open(address.expect("an address"), access, ZK_CALL, None).expect("a client")
}

/// A request of a ZooKeeper client that is a transaction: length, number, kind.
pub fn is_transaction(mut sent: &[u8]) -> bool {
    while let Some((head, _)) = sent.split_at_checked(12) {
        let word =
            |at: usize| i32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(8) == 14 {
            return true;
        }
        let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
        sent = sent.get(length.saturating_add(4)..).unwrap_or_default();
    }
    false
}

impl<const SERVERS: usize> Backend for ZooKeeper<SERVERS> {
    // Four ticks.
    const SHORT: Millis = Millis(2000);
    const STEADY: Millis = Millis(5000);
    fn new() -> Self {
        let shared = ensemble(SERVERS);
        let ways = Ways::to((0..SERVERS).map(|index| shared.ensemble.address(index)));
        ZooKeeper { shared, ways, root: fresh_root() }
    }
    fn client(&self) -> Arc<dyn Coordination> {
        self.open(&self.ways.addresses())
    }
    fn outside(&self) -> Arc<dyn Coordination> {
        self.open(&self.shared.servers())
    }
    fn cut(&self) {
        self.ways.set(Way::Closed);
    }
    fn heal(&self) {
        self.ways.set(Way::Open);
    }
    fn lose_next_put(&self, fate: LostPut) -> Option<Box<dyn Send>> {
        Some(self.ways.lose_next_put(fate, is_transaction))
    }
}
