//! What a peer sees when it decides: everything that a decision may depend on, and nothing else.

use crate::{ClusterState, Counts, Gate, Lsn, PeerId, PeerIdent, PgConfig};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What lies in the dataset of this peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Database {
    /// Nothing.
    None,
    /// A database that was created here and never served: setup may declare it (rule G1).
    Prepared,
    /// A database that has served, or was copied from one that has.
    Established,
}

/// How a deposed peer comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeposedPolicy {
    /// By itself: its data is kept aside and it is rebuilt from the primary.
    #[default]
    Auto,
    /// An operator rebuilds it.
    Manual,
}

/// A configuration that PostgreSQL was brought to, with what was true once it was in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The configuration in force.
    pub config: PgConfig,
    /// The WAL position, read after it was in force. For a quiesced configuration, nothing beyond
    /// it can have been acknowledged by this pair.
    pub position: Lsn,
}

/// Everything that [`crate::decide`] looks at.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Who decides.
    pub me: &'a PeerIdent,
    /// Whether this peer is configured to serve alone.
    pub one_node_write_mode: bool,
    /// What to do when deposed.
    pub deposed_policy: DeposedPolicy,
    /// Wall-clock time, for the expiry of promote requests only.
    pub now: Timestamp,
    /// The cluster state; `None` when there is none.
    pub state: Option<&'a ClusterState>,
    /// Peers with a live session, each once, in the order of their registrations.
    pub active: &'a [PeerIdent],
    /// What lies in the dataset.
    pub database: Database,
    /// The configuration in force, if PostgreSQL runs with one that this peer gave it.
    pub applied: Option<&'a Applied>,
    /// The newest known WAL position of the running PostgreSQL.
    pub wal: Option<Lsn>,
    /// The newest timeline that this database is known to be on.
    pub timeline: Option<u32>,
    /// The peer whose walsender counts as sync, streams, and has caught up.
    pub caught_up: Option<&'a PeerId>,
    /// Whether the deposed data was replaced by a copy taken in the generation of `state`.
    pub rebuilt: bool,
}

impl View<'_> {
    /// Whether this peer holds a live session.
    pub fn is_active(&self, id: &PeerId) -> bool {
        self.active.iter().any(|peer| peer.id == *id)
    }

    /// Whether the gate may be open for commits that `sync` acknowledges (rule A2): it has caught
    /// up now, or had when the gate was opened for it.
    pub fn gate_for(&self, sync: &PeerId) -> Gate {
        let was_open = self.applied.is_some_and(|applied| match &applied.config {
            PgConfig::Primary { counts: Counts::Sync(id), gate: Gate::Open, .. } => id == sync,
            _ => false,
        });
        if was_open || self.caught_up == Some(sync) { Gate::Open } else { Gate::Closed }
    }
}
