//! A shard as an operator looks at it: what is stored, who is active, what each sitter says.
//!
//! Pure: [`super::gather`] fills it, everything that is printed is computed from it.

use crate::status::{PeerStatus, SenderStatus};
use adapters::coord::{Registration, StoredState};
use cluster::{ClusterState, PeerId, PeerIdent, Role, StateError};

/// How old PostgreSQL's last answer to its sitter may be, in ms, before it counts as none: as long
/// as a sitter with default settings waits before it gives its PostgreSQL up. A sitter asks every
/// second; one whose answer is that old is itself stuck.
const STALE_MS: u64 = 30_000;

/// The stored cluster state, as far as it can be understood.
#[derive(Debug, Clone)]
pub struct Stored {
    /// As it was read.
    pub raw: StoredState,
    /// Its content, also when it is one that no shard may have; `None` when it is malformed.
    pub state: Option<ClusterState>,
    /// Why it cannot be acted on.
    pub error: Option<StateError>,
}

impl Stored {
    /// Reads what is stored, leniently: what can be shown is shown.
    pub fn new(raw: StoredState) -> Self {
        let error = ClusterState::parse(&raw.json).err();
        let state = serde_json::from_str(&raw.json)
            .ok()
            .and_then(|value| ClusterState::from_value(value).ok());
        Stored { raw, state, error }
    }
}

/// A peer that the state names.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Its place.
    pub role: Role,
    /// As the state names it.
    pub ident: PeerIdent,
    /// What its sitter says, or why that is not known.
    pub status: Result<Box<PeerStatus>, String>,
}

impl PeerView {
    /// Whether its PostgreSQL answers; otherwise why not.
    pub fn postgres(&self) -> Result<&PeerStatus, String> {
        let status = self.status.as_deref().map_err(Clone::clone)?;
        let postgres = &status.postgres;
        let age = postgres.age_ms.unwrap_or(0);
        if !postgres.online {
            let error = postgres.error.clone();
            Err(error.unwrap_or_else(|| format!("it is not running ({})", status.reason.text)))
        } else if age > STALE_MS {
            Err(format!("its sitter has had no answer from it for {} s", age / 1000))
        } else {
            Ok(status)
        }
    }

    /// What its PostgreSQL says of the stream to `downstream`.
    pub fn sender_to(&self, downstream: &PeerId) -> Option<&SenderStatus> {
        let senders = &self.postgres().ok()?.postgres.senders;
        senders.iter().find(|sender| sender.peer == downstream.as_str())
    }

    /// How far its replay is behind, in ms: nothing for a standby that streams and has replayed all
    /// that it received; `None` when that is not known, or it is no standby.
    pub fn lag_ms(&self) -> Option<u64> {
        let postgres = &self.postgres().ok()?.postgres;
        let streams = postgres.in_recovery == Some(true) && postgres.streaming == Some(true);
        let replayed = postgres.replay.is_some() && postgres.replay >= postgres.wal;
        postgres.lag_ms.or((streams && replayed).then_some(0))
    }

    /// Its name in messages and tables.
    pub fn abbreviation(&self) -> &str {
        self.ident.abbreviation()
    }
}

/// A shard at one moment (or nearly so: the sitters are asked after the state was read).
#[derive(Debug, Clone)]
pub struct ShardView {
    /// The address of the coordination.
    pub coordination: String,
    /// The name of the shard.
    pub shard: String,
    /// The cluster state; `None` when there is none.
    pub stored: Option<Stored>,
    /// The live registrations, in order.
    pub active: Vec<Registration>,
    /// Every peer that the state names: the chain in its order, then the deposed.
    pub peers: Vec<PeerView>,
}

impl ShardView {
    /// The state, where there is one that can be understood.
    pub fn state(&self) -> Option<&ClusterState> {
        self.stored.as_ref()?.state.as_ref()
    }

    /// How many live registrations this peer has.
    pub fn registrations(&self, id: &PeerId) -> usize {
        self.active.iter().filter(|registration| registration.peer.id == *id).count()
    }

    /// The replication chain: each peer with the one that streams from it.
    pub fn chain(&self) -> impl Iterator<Item = (&PeerView, Option<&PeerView>)> {
        let length = self.peers.iter().take_while(|peer| peer.role != Role::Deposed).count();
        let chain = &self.peers[..length];
        chain.iter().enumerate().map(|(index, peer)| (peer, chain.get(index + 1)))
    }

    /// The peer that streams from this one.
    pub fn downstream_of(&self, id: &PeerId) -> Option<&PeerView> {
        self.chain().find(|(peer, _)| peer.ident.id == *id)?.1
    }
}

/// The peers of a state in the order in which they are shown.
pub fn roles(state: &ClusterState) -> impl Iterator<Item = (Role, &PeerIdent)> {
    let asyncs = state.asyncs.iter().map(|peer| (Role::Async, peer));
    let deposed = state.deposed.iter().map(|peer| (Role::Deposed, peer));
    std::iter::once((Role::Primary, &state.primary))
        .chain(state.sync.iter().map(|peer| (Role::Sync, peer)))
        .chain(asyncs)
        .chain(deposed)
}
