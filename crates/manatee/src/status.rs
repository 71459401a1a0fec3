//! What a sitter says of itself at `/state`, for people, `adm` and other programs. The sitter makes
//! it, `adm` and the demonstration read it.

use crate::backup::JobStatus;
use cluster::{Database, Generation, Lsn, PeerIdent, Role};
use serde::{Deserialize, Serialize};

/// The whole answer of `/state`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The version of the sitter.
    pub version: String,
    /// The shard that it belongs to.
    pub shard: String,
    /// Who it is.
    pub peer: PeerIdent,
    /// Its place.
    pub role: Role,
    /// Why it does what it does.
    pub reason: ReasonText,
    /// The generation that it knows.
    pub generation: Option<Generation>,
    /// Whether it holds a coordination session.
    pub in_session: bool,
    /// What lies in its dataset; null before it has looked.
    pub database: Option<Database>,
    /// Operations in flight, as text.
    pub pending: Vec<String>,
    /// Whether it stopped PostgreSQL because it had no proof left that it may serve.
    pub fenced: bool,
    /// Whether an operator's request to rebuild its database is not yet fulfilled.
    #[serde(default)]
    pub rebuild_asked: bool,
    /// How long it may serve as primary without a further proof, in ms; null when no limit applies.
    pub may_serve_ms: Option<u64>,
    /// The newest failure that nothing has mended yet.
    pub failure: Option<String>,
    /// How far a copy of the database is.
    pub copying: Option<Copying>,
    /// How many copies of a database were completed here since the sitter was started.
    #[serde(default)]
    pub copies: u64,
    /// Snapshots that are being sent from here, and those that were lately.
    #[serde(default)]
    pub sending: Vec<JobStatus>,
    /// PostgreSQL, as it was when it was last asked.
    pub postgres: PgStatus,
}

/// A reason, for programs and for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonText {
    /// Its stable name, in camel case.
    pub kind: String,
    /// The rule of SPEC.md that it follows.
    pub rule: String,
    /// In words.
    pub text: String,
}

/// How far a copy is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copying {
    /// Where from.
    pub source: Option<String>,
    /// What is being done: `preparing`, `receiving`, `finishing`, `done`.
    pub phase: String,
    /// Received so far.
    pub bytes_done: u64,
    /// The source's estimate of all.
    pub bytes_total: Option<u64>,
    /// Bytes a second since it began.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Seconds that are left at this rate.
    #[serde(default)]
    pub remaining: Option<u64>,
}

/// PostgreSQL of a peer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PgStatus {
    /// Whether it answered when it was last asked.
    pub online: bool,
    /// Why it did not.
    pub error: Option<String>,
    /// How old this answer is, in ms.
    pub age_ms: Option<u64>,
    /// `primary`, `sync` or `async`: what it was brought to.
    pub configured_as: Option<String>,
    /// Where it was told to stream from.
    pub upstream: Option<String>,
    /// Whether clients may write here.
    pub writable: bool,
    /// Whether it is a standby.
    pub in_recovery: Option<bool>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// Flushed WAL on a primary; received WAL on a standby.
    pub wal: Option<Lsn>,
    /// Replayed WAL of a standby.
    pub replay: Option<Lsn>,
    /// How long ago the last transaction that was replayed was committed, in ms; null on a primary,
    /// and when all that was received is replayed.
    pub lag_ms: Option<u64>,
    /// Whether its WAL receiver streams from the upstream that it was told.
    pub streaming: Option<bool>,
    /// Who streams from here.
    pub senders: Vec<SenderStatus>,
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SenderStatus {
    /// The peer that receives.
    pub peer: String,
    /// `streaming` when all is well.
    pub state: String,
    /// `sync` when its flush acknowledges commits, else `async` or `potential`.
    pub sync_state: String,
    /// Sent to it.
    pub sent: Option<Lsn>,
    /// Written there.
    pub write: Option<Lsn>,
    /// Flushed there.
    pub flush: Option<Lsn>,
    /// Replayed there.
    pub replay: Option<Lsn>,
}
