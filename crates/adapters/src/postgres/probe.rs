//! What PostgreSQL tells about itself, in one round trip.

use cluster::Lsn;
use jiff::Timestamp;

/// A PostgreSQL as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Identifies the database: the same on all peers of a shard.
    pub system_identifier: u64,
    /// The timeline that it writes or follows.
    pub timeline: u32,
    /// How much WAL it has safely: on a primary all that is flushed, on a standby all that was
    /// received and flushed, or replayed where nothing has been received since the start.
    pub wal: Lsn,
    /// Up to where a standby has replayed.
    pub replay: Option<Lsn>,
    /// When the last transaction that a standby replayed was committed, by the primary's clock.
    pub replayed_commit: Option<Timestamp>,
    /// The WAL receiver of a standby, while it has one.
    pub receiver: Option<Receiver>,
    /// Who streams from here.
    pub senders: Vec<Sender>,
    /// Whether `synchronous_standby_names` is still what the last `apply` made it; `None` when
    /// this server has not been configured by `apply`.
    pub names_in_force: Option<bool>,
}

/// A WAL receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// `streaming` when all is well.
    pub status: String,
    /// Where it streams from.
    pub host: Option<String>,
    /// Its port there.
    pub port: Option<u16>,
    /// Up to where it has received and flushed.
    pub flushed: Option<Lsn>,
    /// When the last message from the sender came, by our clock.
    pub last_message: Option<Timestamp>,
    /// When the sender's last known end of WAL was reported.
    pub latest_end_time: Option<Timestamp>,
}

impl Receiver {
    /// Whether it streams, from there.
    pub fn streams_from(&self, host: &str, port: u16) -> bool {
        self.status == "streaming" && self.host.as_deref() == Some(host) && self.port == Some(port)
    }
}

/// A WAL sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// Its process.
    pub pid: u32,
    /// Who receives: a peer's id, or what another client calls itself.
    pub application_name: String,
    /// From where.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup`…
    pub state: String,
    /// `sync` when its flush acknowledges commits.
    pub sync_state: String,
    /// Zero when it cannot count.
    pub sync_priority: i32,
    /// Up to where WAL was sent.
    pub sent: Option<Lsn>,
    /// Up to where it was written there.
    pub write: Option<Lsn>,
    /// Up to where it was flushed there.
    pub flush: Option<Lsn>,
    /// Up to where it was replayed there.
    pub replay: Option<Lsn>,
    /// When the last answer was sent, by the receiver's clock.
    pub reply_time: Option<Timestamp>,
}
