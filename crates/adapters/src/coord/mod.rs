//! Coordination: who is alive, in which order they came, and the one cluster state of a shard.
//!
//! Every backend passes the same conformance suite (`tests/coord_conformance.rs`).

mod access;
mod access_file;
pub mod etcd;
mod follow;
mod mailbox;
pub mod memory;
pub mod sqlite;
mod url;
pub mod zookeeper;

pub use access::{Access, Credentials, TlsAccess};
pub use access_file::{AccessConfig, AccessError, AccessTables};
pub use url::{Options, check_address, open};

use async_trait::async_trait;
use cluster::v1::V1Event;
use cluster::{ClusterState, PeerIdent};
use cluster::{Generation, Millis, Monotonic};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use cluster::Version;

/// The cluster state as it is stored; whether it can be acted on is for the reader to find out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredState {
    /// For the next conditional put.
    pub version: Version,
    /// The text as it was written.
    pub json: String,
}

/// A peer that holds a live session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its place in the order of registrations: lower came earlier. Never used twice.
    pub sequence: u64,
    /// Who it is.
    pub peer: PeerIdent,
}

/// One write of the cluster state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its place among all writes of this shard.
    pub sequence: u64,
    /// When the coordination service took it.
    pub time: Timestamp,
    /// The generation in its name.
    pub generation: Generation,
    /// What was written.
    pub json: String,
}

/// How a conditional put ended.
#[derive(Debug)]
pub enum PutOutcome {
    /// Stored, with its history entry, under this version.
    Committed(Version),
    /// The stored state is another than the one named; nothing was written.
    Conflict,
    /// Refused, for a permission that is missing or for what stands there: it was not stored, and never
    /// will be, now or later. Says what an operator can do about it.
    Refused(CoordError),
    /// The answer was lost: it may or may not have been stored. Read again before deciding.
    Unknown(CoordError),
}

/// What a member or a watcher is told. Facts, in the order in which they became known.
///
/// Contract of every backend: after joining, `State` and `Active` come first, whatever they are,
/// and `Confirmed` only after them; a `Confirmed { sent }` comes only when every change that was
/// committed before `sent` has been delivered before it. Nothing comes after `Expired`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordEvent {
    /// The stored cluster state is now this; `None` when there is none.
    State(Option<StoredState>),
    /// The live registrations are now these, in order of `sequence`; a peer with two sessions
    /// stands here twice.
    Active(Vec<Registration>),
    /// The session was alive at the service after this moment of our boot clock (when the request
    /// that proves it was sent, or before), and the service lets it live for a whole timeout from
    /// then on, at least.
    Confirmed {
        /// When the request was sent.
        sent: Monotonic,
    },
    /// The session is gone for good, and the registration with it. Join again for a new one.
    Expired,
    /// The service cannot be reached or answers with errors, for this reason; it goes on trying.
    Unreachable(String),
}

/// A failed operation on the coordination service.
#[derive(Debug, thiserror::Error)]
#[error("coordination {target}: {operation} failed")]
pub struct CoordError {
    /// Which service: `sqlite:/path`, `zk://host:port/root`.
    pub target: String,
    /// What was being done.
    pub operation: &'static str,
    /// Why it failed.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// A live registration. Dropping it stops the heartbeats and lets the session expire, as a crash
/// would; [`Membership::leave`] ends it at once.
#[async_trait]
pub trait Membership: Send {
    /// The next event; `None` after `Expired` or when the backend has ended. Bounded: a slow reader
    /// sees the latest `State` and `Active`, not every one of them. Cancel-safe.
    async fn next(&mut self) -> Option<CoordEvent>;

    /// Deletes the registration and ends the session, so that others learn of it at once. When that
    /// fails, the session expires as after a crash.
    async fn leave(self: Box<Self>) -> Result<(), CoordError>;
}

/// A stream of `State`, `Active` and `Unreachable` without a registration of one's own. As bounded
/// as [`Membership::next`], but for one event that may be older than the latest.
pub type Watch = mpsc::Receiver<CoordEvent>;

/// What `read` sees, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The stored cluster state.
    pub state: Option<StoredState>,
    /// The live registrations, in order.
    pub active: Vec<Registration>,
}

/// The coordination of one shard. Every call ends within the limit given when the backend was
/// opened; the fence never waits for one.
#[async_trait]
pub trait Coordination: Send + Sync {
    /// Which service and shard, for messages: `sqlite:/run/shard.db (shard 1.example)`.
    fn target(&self) -> String;

    /// Opens a session that expires after `timeout` without contact, and registers `peer` at the
    /// end of the order. A registration that an earlier session of the same peer left behind
    /// stands until that session expires, as does one of a join that failed; a backend that was
    /// given a [`Options::session_file`] may take it away as soon as the new one stands. Where the
    /// service grants a shorter timeout, `Confirmed` is put back by the difference.
    async fn join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, CoordError>;

    /// Follows state and registrations without joining, in the order that [`CoordEvent`] promises.
    /// Ends when the receiver is dropped. The service has to be reachable when it begins.
    async fn watch(&self) -> Result<Watch, CoordError>;

    /// State and registrations as they are now.
    async fn read(&self) -> Result<View, CoordError>;

    /// Stores `state` if the stored version is still `expected` (`None`: if nothing is stored), and
    /// appends it to the history, in one transaction. `Refused` is only what the service answered
    /// itself, or would be asked in vain; every other failure is `Unknown`, also one that surely came
    /// before anything was stored: the caller has to read again.
    async fn put(&self, expected: Option<Version>, state: &ClusterState) -> PutOutcome;

    /// Every write so far, oldest first.
    async fn history(&self) -> Result<Vec<HistoryEntry>, CoordError>;

    /// What the first version of the original left in the history, oldest first. Only in ZooKeeper is
    /// there any.
    async fn first_version_history(&self) -> Result<Vec<V1Event>, CoordError> {
        Ok(Vec::new())
    }
}
