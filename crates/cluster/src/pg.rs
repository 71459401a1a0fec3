//! The PostgreSQL that a decision asks for: whole configurations, never differences.

use crate::{Generation, Lsn, PeerId, PeerIdent};
use serde::{Deserialize, Serialize};

/// Whose flush lets a commit on this primary be acknowledged: `synchronous_standby_names`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Counts {
    /// This peer's, and nobody else's.
    Sync(PeerId),
    /// Nobody's: no commit is acknowledged. The primary has been quiesced before it declares a
    /// successor (rule D2).
    Nobody,
    /// Its own alone: one-node-write mode.
    Alone,
}

/// Whether clients may write. Closed is `default_transaction_read_only`: it keeps honest clients
/// from hanging; what makes an acknowledgement safe is [`Counts`], never the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Gate {
    /// Read-only until the sync has caught up.
    Closed,
    /// Open for writes.
    Open,
}

/// Which place in the chain a standby has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StandbyRole {
    /// Follows the primary; its flush acknowledges commits.
    Sync,
    /// Follows the peer before it.
    Async,
}

/// A whole configuration of a running PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "role")]
pub enum PgConfig {
    /// Out of recovery, taking writes as far as `counts` and `gate` let it.
    Primary {
        /// The generation that it serves in.
        generation: Generation,
        /// The timeline that a promotion for it begins; absent where it is not known to need one, and
        /// then one that is needed takes the number of the generation at least (rule D7).
        #[serde(default)]
        timeline: Option<u32>,
        /// The position that a promotion must have come to (rule D3).
        #[serde(default)]
        init_wal: Lsn,
        /// Whose flush acknowledges.
        counts: Counts,
        /// Whether clients may write.
        gate: Gate,
        /// Peers that stream from here and get a replication slot.
        downstream: Vec<PeerId>,
    },
    /// In recovery.
    Standby {
        /// Its place.
        place: StandbyRole,
        /// Where it streams from; `None` when it is detached: the WAL receiver is stopped and all
        /// that it received is flushed, so that no later write can be acknowledged through it
        /// (rule D2).
        upstream: Option<PeerIdent>,
        /// Peers that stream from here and get a replication slot.
        downstream: Vec<PeerId>,
    },
}

impl PgConfig {
    /// Whether this is a primary's configuration.
    pub fn is_primary(&self) -> bool {
        matches!(self, PgConfig::Primary { .. })
    }

    /// Whether no write can be acknowledged any more under the pair that this peer belonged to.
    pub fn is_quiesced(&self) -> bool {
        match self {
            PgConfig::Primary { counts, .. } => *counts == Counts::Nobody,
            PgConfig::Standby { upstream, .. } => upstream.is_none(),
        }
    }

    /// The same with the gate opened; a standby's is unchanged.
    #[must_use]
    pub fn opened(self) -> Self {
        match self {
            PgConfig::Primary { generation, timeline, init_wal, counts, downstream, .. } => {
                let gate = Gate::Open;
                PgConfig::Primary { generation, timeline, init_wal, counts, gate, downstream }
            }
            standby @ PgConfig::Standby { .. } => standby,
        }
    }
}
