//! What PostgreSQL tells about itself, in one round trip.

use super::{
    Inner, PgCause, guard, render,
    session::{COMMIT, Row, literal, parse, within},
};
use cluster::Lsn;
use jiff::Timestamp;
use std::sync::PoisonError;

/// The state of the server, a row; and its senders, a row each. Functions that fail on the other
/// kind of server are behind a `case`. Whether WAL has to be flushed only those tell who wait for it: what an open
/// transaction has written stays as it is for as long as nobody commits. 17 spells their names in another way.
const STATE: &str = "select pg_is_in_recovery(), \
    (select system_identifier from pg_control_system()), \
    case when pg_is_in_recovery() then null \
      else pg_walfile_name(pg_current_wal_lsn()) end, \
    (select timeline_id from pg_control_checkpoint()), \
    (select min_recovery_end_timeline from pg_control_recovery()), \
    case when pg_is_in_recovery() \
      then coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0') \
      else pg_current_wal_flush_lsn() end, \
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() end, \
    (extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::bigint, \
    current_setting('synchronous_standby_names'), \
    (select string_agg(slot_name, ' ') from pg_replication_slots where slot_type = 'physical' \
      and not temporary and not active and wal_status = 'lost' and starts_with(slot_name, $slots)), \
    exists (select from pg_stat_activity where wait_event_type = 'IO' \
      and lower(wait_event) in ('walwrite', 'walsync', 'walinitwrite', 'walinitsync')); \
    select status, sender_host, sender_port, received_tli, pg_last_wal_receive_lsn(), \
    (extract(epoch from last_msg_receipt_time) * 1000000)::bigint, \
    (extract(epoch from latest_end_time) * 1000000)::bigint, pid from pg_stat_wal_receiver; \
    select pid, application_name, host(client_addr), state, sync_state, sync_priority, sent_lsn, \
    write_lsn, flush_lsn, replay_lsn, (extract(epoch from reply_time) * 1000000)::bigint \
    from pg_stat_replication";

impl Inner {
    /// `synchronous_standby_names` as we made it, unless we are at it.
    fn settled_names(&self) -> Option<String> {
        let _unchanged = self.changing.try_lock().ok()?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for all of it over the connection that is kept for this.
    pub async fn ask(&self) -> Result<Probe, PgCause> {
        let state = STATE.replace("$slots", &literal(render::SLOT_PREFIX));
        let sql = format!("{state}; {COMMIT}");
        let before = self.settled_names();
        let asked = async {
            let mut kept = self.kept.lock().await;
            // Put back only after an answer: an overtaken session is not used again.
            if let Some(session) = kept.take() {
                match session.sets(&sql).await {
                    // It ended with the server that it belonged to; there may be another.
                    Err(PgCause::Query(error)) if error.is_closed() => {}
                    other => {
                        *kept = other.is_ok().then_some(session);
                        return other;
                    }
                }
            }
            let session = self.plain_session().await?;
            let sets = session.sets(&sql).await?;
            *kept = Some(session);
            Ok(sets)
        };
        let sets = within(self.settings.query_timeout, "an answer of the server", asked).await??;
        let [state, receivers, senders, commit, ..] = sets.as_slice() else {
            return Err(PgCause::Answer(format!("{} results", sets.len())));
        };
        let state = Fields(state.first().ok_or_else(|| PgCause::Answer("no row".to_owned()))?);
        let receiver = receivers.first().map(Fields);
        let commit = commit.first().map(Fields).map(|fields| fields.owned(0)).unwrap_or_default();
        let weak = guard::weakens("synchronous_commit", &commit);
        // While they are being changed, what the server says may be of before or after it.
        let expected = before.filter(|before| self.settled_names().as_ref() == Some(before));
        let in_recovery = state.text(0) == Some("t");
        let mut timeline = state.timeline(receiver.as_ref())?;
        if in_recovery && receiver.is_none() {
            // The control file may not have come to know of the last timeline that was received.
            timeline = timeline.max(self.newest_segment()?);
        }
        Ok(Probe {
            in_recovery,
            system_identifier: state.parse::<i64>(1)?.unwrap_or_default().cast_unsigned(),
            timeline,
            wal: state.parse(5)?.unwrap_or_default(),
            replay: state.parse(6)?,
            replayed_commit: state.time(7)?,
            receiver: receiver.map(|fields| fields.receiver()).transpose()?,
            senders: senders.iter().map(|row| Fields(row).sender()).collect::<Result<_, _>>()?,
            lost_slots: state.text(9).map(str::to_owned),
            flushes: state.text(10) == Some("t"),
            names_in_force: expected.map(|expected| !weak && state.text(8) == Some(&expected)),
        })
    }
}

/// The fields of a row.
struct Fields<'a>(&'a Row);

impl Fields<'_> {
    fn text(&self, index: usize) -> Option<&str> {
        self.0.get(index).and_then(Option::as_deref)
    }

    fn owned(&self, index: usize) -> String {
        self.text(index).unwrap_or_default().to_owned()
    }

    fn parse<T: std::str::FromStr>(&self, index: usize) -> Result<Option<T>, PgCause> {
        parse(self.text(index))
    }

    /// A time given in microseconds since 1970.
    fn time(&self, index: usize) -> Result<Option<Timestamp>, PgCause> {
        self.parse(index)?
            .map(Timestamp::from_microsecond)
            .transpose()
            .map_err(|error| PgCause::Answer(error.to_string()))
    }

    /// A primary's timeline is that of the WAL file it writes: the control file learns of a
    /// promotion only at the next checkpoint. A standby's is the newest that it knows to follow.
    fn timeline(&self, receiver: Option<&Fields<'_>>) -> Result<u32, PgCause> {
        if let Some(file) = self.text(2) {
            let digits = file.get(..8).unwrap_or(file);
            return u32::from_str_radix(digits, 16).map_err(|_| PgCause::Answer(file.to_owned()));
        }
        let received = receiver.map_or(Ok(None), |fields| fields.parse(3))?;
        let known = [self.parse(3)?, self.parse(4)?, received];
        Ok(known.into_iter().flatten().max().unwrap_or_default())
    }

    fn receiver(&self) -> Result<Receiver, PgCause> {
        Ok(Receiver {
            pid: self.parse(7)?.unwrap_or_default(),
            status: self.owned(0),
            host: self.text(1).map(str::to_owned),
            port: self.parse(2)?,
            flushed: self.parse(4)?,
            last_message: self.time(5)?,
            latest_end_time: self.time(6)?,
        })
    }

    fn sender(&self) -> Result<Sender, PgCause> {
        Ok(Sender {
            pid: self.parse(0)?.unwrap_or_default(),
            application_name: self.owned(1),
            client_addr: self.text(2).map(str::to_owned),
            state: self.owned(3),
            sync_state: self.owned(4),
            sync_priority: self.parse(5)?.unwrap_or_default(),
            sent: self.parse(6)?,
            write: self.parse(7)?,
            flush: self.parse(8)?,
            replay: self.parse(9)?,
            reply_time: self.time(10)?,
        })
    }
}

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
    /// Whether some process waits for the disk to have WAL.
    pub flushes: bool,
    /// Up to where a standby has replayed.
    pub replay: Option<Lsn>,
    /// When the last transaction that a standby replayed was committed, by the primary's clock.
    pub replayed_commit: Option<Timestamp>,
    /// The WAL receiver of a standby, while it has one.
    pub receiver: Option<Receiver>,
    /// Who streams from here.
    pub senders: Vec<Sender>,
    /// Replication slots of ours that have lost their WAL and that nobody uses now: they serve nobody, and
    /// from PostgreSQL 18 on let nobody in, until the next `apply` makes them anew.
    pub lost_slots: Option<String>,
    /// Whether `synchronous_standby_names` is still what the last `apply` made it, and commits wait
    /// for it unless a session says otherwise (`synchronous_commit`); `None` when this server has not been configured by
    /// `apply`, or was being changed when it was asked.
    pub names_in_force: Option<bool>,
}

/// A WAL receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Its process.
    pub pid: i32,
    /// `streaming` when all is well; and for a moment before its upstream refuses to stream.
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
