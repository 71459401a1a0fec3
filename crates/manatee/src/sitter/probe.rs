//! Looking at PostgreSQL: what it says goes to the machine as an event and to the status endpoint.
//! PostgreSQL has no event for the state of a WAL sender or receiver, so this is a poll: often while something
//! waits for it and after each change, else as configured.

use super::{
    config::{Config, HealthConfig},
    executor::is_waiting,
    server::{PgSeen, Shared},
    sources::{Missing, send, whole},
};
use adapters::{
    clock,
    postgres::{Divergence, PgError, Postgres, Probe, Sender},
};
use cluster::{Counts, Event, Lsn, Millis, Monotonic, PeerId, PeerIdent, PgConfig, Snapshot};
use jiff::Timestamp;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

/// How often it is looked at while the gate waits for the sync: the clients wait for this.
const WHILE_WAITING: Millis = Millis(100);

/// How soon it is looked at again after a change, so that what follows from it, such as that a standby streams, is
/// told when it is true; twice as long later each time, up to the configured interval.
const AFTER_A_CHANGE: Millis = Millis(25);

/// How soon a WAL receiver that is new is looked at again: well above what its upstream takes to refuse it.
const TO_BE_REFUSED: Millis = Millis(100);

/// How long a standby may not stream before its history is compared with its upstream's: well above
/// what reconnecting takes.
const SILENT: Millis = Millis(5_000);

/// How much longer a look may take than the query in it: it may ask the upstream as well.
const LONGEST_LOOK: Millis = Millis(20_000);

/// How long WAL may wait for the disk before that counts as no answer.
const LONGEST_FLUSH: Millis = Millis(5_000);

/// How long a command goes on before the disk that it may wait for is written to, and how long until it is again.
const BETWEEN_WRITES: Duration = Duration::from_secs(10);

/// How long such a write may take.
const LONGEST_WRITE: Duration = Duration::from_secs(20);

/// Two looks further apart than this were not taken in time: this process or this host stood still.
pub(super) const LONGEST_GAP: Millis = Millis(5_000);

#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) interval: Millis,
    pub(super) lease: Millis,
}

/// How long nobody may come to look.
pub(super) fn longest_silence(config: &Config) -> Millis {
    let HealthConfig { interval, .. } = config.health;
    Millis(interval.millis().0 + config.postgres.query_timeout.millis().0 + LONGEST_LOOK.0)
}

/// Looks until another `Postgres` takes the place of this one.
pub(super) async fn watch(
    postgres: Arc<Postgres>,
    current: watch::Receiver<Option<Arc<Postgres>>>,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    timing: Timing,
) {
    let mut snapshots = shared.snapshots();
    let mut answers = Answers::default();
    let mut silence = Silence::default();
    let mut said = None;
    let mut receivers = Receivers::default();
    let mut lost = LostSlots::default();
    let mut flushes = Flushes::default();
    let mut missing = Missing::default();
    let mut settling = AFTER_A_CHANGE;
    while current.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, &postgres)) {
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.running {
            let began = clock::now();
            match postgres.probe().await {
                Ok(mut probe) => {
                    missing = Missing::default();
                    if receivers.judge(&mut probe) {
                        settling = TO_BE_REFUSED;
                    }
                    let event = match flushes.judge(began, &probe) {
                        Some(problem) => Event::ProbeFailed(problem),
                        None => answers.read(began, &snapshot, &probe),
                    };
                    shared.publish_postgres(PgSeen { at: began, probe: Ok(probe.clone()) });
                    // Before anybody else is asked, which takes a while: of what is here then it may say nothing.
                    send(&events, event).await;
                    let log = postgres.log_length();
                    if let Some((upstream, log_from)) = silence.judge(began, log, &snapshot, &probe)
                    {
                        let judged = compare(&postgres, &probe, &upstream, log_from, &events).await;
                        if let Some(judged) = judged.map(|judged| (upstream.id, judged)) {
                            report_foreign(said.replace(judged.clone()), &judged);
                        }
                    }
                    let overridden = probe.names_in_force == Some(false);
                    if overridden {
                        tracing::error!(
                            "somebody has overridden what decides whose flush acknowledges a commit; \
                             putting it back"
                        );
                    }
                    let to_mend = lost.judge(began, probe.lost_slots);
                    if let Some(slots) = &to_mend {
                        tracing::warn!(
                            "whoever follows by these replication slots was away for more WAL than is \
                             kept for it; making them anew: {slots}"
                        );
                    }
                    if overridden || to_mend.is_some() {
                        send(&events, Event::Overridden).await;
                    }
                }
                Err(error) => {
                    let problem = format!("PostgreSQL does not answer: {}", whole(&error));
                    let probe = Err(problem.clone());
                    shared.publish_postgres(PgSeen { at: began, probe });
                    send(&events, Event::ProbeFailed(problem.clone())).await;
                    // Where that cannot be found out, it does not answer, and that was told.
                    if missing.judge(&snapshot, postgres.is_running().unwrap_or(true)) {
                        send(&events, Event::PgMissing(problem)).await;
                    }
                }
            }
        } else {
            answers = Answers::default();
            missing = Missing::default();
        }
        let pause = pause(timing, &snapshot).min(settling);
        settling = Millis(2 * settling.0).min(timing.interval);
        let applied = snapshot.applied.as_ref();
        let configured = snapshots
            .wait_for(|new| new.applied.as_ref() != applied || new.running != snapshot.running);
        tokio::select! {
            () = sleep(Duration::from_millis(pause.0)) => {}
            changed = configured => match changed {
                Ok(_) => settling = AFTER_A_CHANGE,
                Err(_) => return,
            },
        }
    }
}

/// Tells when nobody comes to look any more, because whoever does waits for a disk that hangs: that is no answer
/// either (rule H2).
pub(super) async fn watch_the_looks(
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    limit: Millis,
) {
    let mut last = clock::now();
    loop {
        sleep(Duration::from_millis(limit.0 / 4)).await;
        let now = clock::now();
        last = last.max(shared.last_look(now).unwrap_or(last));
        let silent = now - last;
        if silent >= limit {
            let seconds = silent.0 / 1000;
            let problem = format!(
                "PostgreSQL could not be looked at for {seconds} s: does a disk of this host hang?"
            );
            send(&events, Event::ProbeFailed(problem)).await;
        }
    }
}

/// Writes to the disk of the database while a command is in flight that may wait for it, and tells when a write does
/// not come back, and when it has: the command itself says nothing, and nobody else is looked at meanwhile (rule H2).
pub(super) async fn watch_the_disk(
    postgres: Arc<Postgres>,
    events: mpsc::Sender<Event>,
    disk: Handle,
    mut command: oneshot::Receiver<Infallible>,
) {
    // Until the command has ended.
    while timeout(BETWEEN_WRITES, &mut command).await.is_err() {
        let writer = postgres.clone();
        let mut write = disk.spawn_blocking(move || writer.write_through());
        let mut hangs = false;
        let written = match timeout(LONGEST_WRITE, &mut write).await {
            Ok(written) => written,
            Err(_) => {
                hangs = true;
                let (seconds, place) = (LONGEST_WRITE.as_secs(), postgres.data().display());
                let problem =
                    format!("a write to the disk of {place} takes more than {seconds} s: it hangs");
                send(&events, Event::DiskHangs(problem)).await;
                write.await
            }
        };
        if let Ok(Err(error)) = written {
            tracing::warn!("the disk of {} refuses a write: {error}", postgres.data().display());
        }
        if hangs {
            send(&events, Event::DiskAnswers).await;
        }
    }
}

fn pause(timing: Timing, snapshot: &Snapshot) -> Millis {
    let config = snapshot.applied.as_ref().map(|applied| &applied.config);
    if is_waiting(config) {
        timing.interval.min(WHILE_WAITING)
    } else if config.is_some_and(PgConfig::is_primary) {
        // Proofs of the sync's answers must not grow old between two looks.
        timing.interval.min(Millis(timing.lease.0 / 6))
    } else {
        timing.interval
    }
}

/// What tells that the sync has answered: its reported positions and times, compared with those of
/// the look before.
#[derive(Default)]
struct Answers {
    before: Option<(Monotonic, PeerId, Option<Timestamp>, Option<Lsn>)>,
}

impl Answers {
    /// What a look means for the machine.
    fn read(&mut self, began: Monotonic, snapshot: &Snapshot, probe: &Probe) -> Event {
        let counting = counting(snapshot, probe);
        let now =
            counting.map(|(peer, sender)| (began, peer.clone(), sender.reply_time, sender.flush));
        // An answer that was not there at the look before came after that look began.
        let sync_answered = match (&self.before, &now) {
            // After a pause in looking, what is new may have lain in a buffer for as long.
            (Some((at, old, time, flush)), Some((_, peer, new_time, new_flush)))
                if old == peer
                    && (time != new_time || flush != new_flush)
                    && (began - *at) < LONGEST_GAP =>
            {
                Some(*at)
            }
            _ => None,
        };
        self.before = now;
        let caught_up = counting
            .filter(|(_, sender)| sender.sync_state == "sync" && sender.state == "streaming")
            .map(|(peer, _)| peer.clone());
        Event::Probed { wal: probe.wal, timeline: Some(probe.timeline), caught_up, sync_answered }
    }
}

/// How long a standby has not streamed from its upstream.
#[derive(Default)]
struct Silence {
    from: Option<(PeerId, Monotonic, u64)>,
}

impl Silence {
    /// The upstream whose history is to be looked at, because nothing has come from it for a while;
    /// again only after as long a time. With it, how long the log was when the silence began.
    fn judge(
        &mut self,
        now: Monotonic,
        log: u64,
        snapshot: &Snapshot,
        probe: &Probe,
    ) -> Option<(PeerIdent, u64)> {
        let config = snapshot.applied.as_ref().map(|applied| &applied.config);
        let upstream = match config {
            Some(PgConfig::Standby { upstream: Some(upstream), .. }) => upstream,
            _ => return self.broken(),
        };
        if probe.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming") {
            return self.broken();
        }
        match &self.from {
            Some((peer, since, log_from)) if *peer == upstream.id => {
                if now - *since < SILENT {
                    return None;
                }
                let log_from = *log_from;
                self.from = Some((upstream.id.clone(), now, log_from));
                Some((upstream.clone(), log_from))
            }
            _ => {
                self.from = Some((upstream.id.clone(), now, log));
                None
            }
        }
    }

    fn broken(&mut self) -> Option<(PeerIdent, u64)> {
        self.from = None;
        None
    }
}

/// The WAL receiver of the look before.
#[derive(Default)]
struct Receivers {
    before: Option<i32>,
}

impl Receivers {
    /// One that its upstream is about to refuse says that it streams until it ends, and the next one says it again:
    /// only one that was there at the look before is believed. Whether this one is new.
    fn judge(&mut self, probe: &mut Probe) -> bool {
        let before = self.before.take();
        let Some(receiver) = &mut probe.receiver else { return false };
        self.before = Some(receiver.pid);
        let is_new = before != self.before && receiver.status == "streaming";
        if is_new {
            receiver.status = "starting".to_owned();
        }
        is_new
    }
}

/// Since when WAL waits to be flushed, and up to where it was flushed then.
#[derive(Default)]
struct Flushes {
    waits: Option<(Lsn, Monotonic)>,
}

impl Flushes {
    /// Why a server that answers has failed all the same: it needs no disk to answer, and nothing is flushed there
    /// any more (rule H2).
    fn judge(&mut self, now: Monotonic, probe: &Probe) -> Option<String> {
        if !probe.flushes {
            self.waits = None;
            return None;
        }
        let (flushed, since) = *self.waits.get_or_insert((probe.wal, now));
        if flushed != probe.wal {
            self.waits = Some((probe.wal, now));
            return None;
        }
        let waited = now - since;
        (waited >= LONGEST_FLUSH).then(|| {
            let seconds = waited.0 / 1000;
            format!("PostgreSQL has flushed no WAL after {flushed} for {seconds} s: its disk hangs")
        })
    }
}

/// Which replication slots have lost their WAL, by name, and when that was told.
#[derive(Default)]
struct LostSlots {
    told: Option<(String, Monotonic)>,
}

impl LostSlots {
    /// Those that are to be made anew, when it is new that they are lost, or they still are after a while: one
    /// that was in use at that moment was left, and a change that was under way may have come before.
    fn judge(&mut self, now: Monotonic, lost: Option<String>) -> Option<String> {
        let Some(lost) = lost else {
            self.told = None;
            return None;
        };
        let is_told = |(slots, at): &(String, Monotonic)| *slots == lost && now - *at < SILENT;
        if self.told.as_ref().is_some_and(is_told) {
            return None;
        }
        self.told = Some((lost.clone(), now));
        Some(lost)
    }
}

/// Says that an upstream has another database altogether: once, as it stays so until somebody does
/// something about it. It is no event, for nothing that the machine could do about it is right.
pub(super) fn report_foreign(before: Option<(PeerId, Divergence)>, now: &(PeerId, Divergence)) {
    if let (upstream, Divergence::Foreign(why)) = now
        && before.as_ref() != Some(now)
    {
        tracing::error!("the database here cannot follow that of {upstream}: {why}");
    }
}

/// Tells the machine if our history is not the upstream's; what was found, if it could be asked.
async fn compare(
    postgres: &Postgres,
    probe: &Probe,
    upstream: &PeerIdent,
    log_from: u64,
    events: &mpsc::Sender<Event>,
) -> Option<Divergence> {
    let (host, port) = upstream.pg_address().ok()?;
    let judged = postgres.divergence(probe, &host, port, log_from).await;
    report(judged, &upstream.id, events).await
}

/// Tells the machine of a database that can never follow this upstream's.
pub(super) async fn report(
    judged: Result<Divergence, PgError>,
    upstream: &PeerId,
    events: &mpsc::Sender<Event>,
) -> Option<Divergence> {
    match judged {
        Ok(judged) => {
            if let Divergence::CannotFollow(why) = &judged {
                tracing::warn!(
                    "the database here cannot follow that of {upstream} any more: {why}"
                );
                send(events, Event::Diverged { from: upstream.clone() }).await;
            }
            Some(judged)
        }
        Err(error) => {
            let error = whole(&error);
            tracing::debug!("whether the database here can follow that of {upstream}: {error}");
            None
        }
    }
}

/// The WAL sender of the peer whose flush counts.
fn counting<'a>(snapshot: &'a Snapshot, probe: &'a Probe) -> Option<(&'a PeerId, &'a Sender)> {
    let config = snapshot.applied.as_ref().map(|applied| &applied.config)?;
    let PgConfig::Primary { counts: Counts::Sync(sync), .. } = config else { return None };
    let sender = probe.senders.iter().find(|sender| sender.application_name == sync.as_str())?;
    (sender.sync_priority > 0).then_some((sync, sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(wal: u64, flushes: bool) -> Probe {
        Probe {
            in_recovery: false,
            system_identifier: 7,
            timeline: 1,
            wal: Lsn::new(wal),
            flushes,
            replay: None,
            replayed_commit: None,
            receiver: None,
            senders: Vec::new(),
            lost_slots: None,
            names_in_force: None,
        }
    }

    #[test]
    fn only_a_receiver_that_lasts_streams() {
        let mut receivers = Receivers::default();
        let mut streams = |seen: Option<(i32, &str)>| {
            let receiver = |(pid, status): (i32, &str)| adapters::postgres::Receiver {
                pid,
                status: status.to_owned(),
                host: None,
                port: None,
                flushed: None,
                last_message: None,
                latest_end_time: None,
            };
            let mut probe = Probe { receiver: seen.map(receiver), ..probe(1, false) };
            let is_new = receivers.judge(&mut probe);
            let streams = probe.receiver.is_some_and(|receiver| receiver.status == "streaming");
            assert!(!(is_new && streams));
            streams
        };
        assert!(!streams(Some((7, "streaming"))), "it may be refused");
        assert!(streams(Some((7, "streaming"))));
        assert!(!streams(Some((8, "streaming"))), "another one");
        assert!(!streams(None));
        assert!(!streams(Some((8, "streaming"))), "it was gone in between");
        assert!(!streams(Some((9, "starting"))));
        assert!(streams(Some((9, "streaming"))));
    }

    #[test]
    fn what_is_not_flushed_for_long_is_a_failure() {
        let longest = LONGEST_FLUSH.0;
        let mut flushes = Flushes::default();
        let mut fails = |at, wal, waits| flushes.judge(Monotonic(at), &probe(wal, waits)).is_some();
        assert!(!fails(0, 100, true));
        assert!(!fails(longest - 1, 100, true));
        assert!(fails(longest, 100, true), "nothing was flushed");
        assert!(!fails(longest + 1, 101, true), "slow is not hung");
        assert!(!fails(2 * longest, 101, true));
        assert!(fails(2 * longest + 1, 101, true));
        assert!(!fails(3 * longest, 101, false), "all is flushed");
        assert!(!fails(9 * longest, 101, true), "new WAL has only begun to wait");
    }
}
