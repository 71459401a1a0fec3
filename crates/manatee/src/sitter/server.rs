//! The status endpoint: `/ping` and `/state`. It only tells what was last published, so that an
//! answer never waits for PostgreSQL or the coordination.

use super::config::Config;
use crate::backup::Jobs;
use crate::status::{Copying, PeerStatus, PgStatus, ReasonText, SenderStatus};
use adapters::{
    clock,
    postgres::Probe,
    storage::{SeedPhase, SeedProgress},
};
use anyhow::{Context, Result};
use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use cluster::{Gate, Machine, Millis, Monotonic, PeerIdent, PgConfig, Reason, Role, Snapshot};
use jiff::Timestamp;
use serde_json::json;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// What PostgreSQL said when it was last asked.
#[derive(Debug, Clone)]
pub(super) struct PgSeen {
    pub(super) at: Monotonic,
    pub(super) probe: Result<Probe, String>,
}

/// What the tasks of a sitter tell each other and whoever asks.
pub(super) struct Shared {
    shard: String,
    peer: PeerIdent,
    snapshot: watch::Sender<Snapshot>,
    postgres: Mutex<Option<PgSeen>>,
    copying: Mutex<Option<(Monotonic, watch::Receiver<SeedProgress>)>>,
    copies: AtomicU64,
    jobs: Arc<Jobs>,
    /// Whether the database was repaired by a rewind, and has not streamed since: if that did not
    /// help, another will not.
    pub(super) rewound: AtomicBool,
}

/// Ends the display of a copy when it is dropped.
pub(super) struct CopyShown<'a>(&'a Shared);

impl Drop for CopyShown<'_> {
    fn drop(&mut self) {
        *self.0.copying.lock().expect("no holder panics") = None;
    }
}

impl Shared {
    pub(super) fn new(
        config: &Config,
        peer: PeerIdent,
        machine: &Machine,
        jobs: Arc<Jobs>,
    ) -> Arc<Self> {
        Arc::new(Shared {
            jobs,
            shard: config.shard.clone(),
            peer,
            snapshot: watch::channel(machine.snapshot()).0,
            postgres: Mutex::new(None),
            copying: Mutex::new(None),
            copies: AtomicU64::new(0),
            rewound: AtomicBool::new(false),
        })
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        if !snapshot.running {
            *self.postgres.lock().expect("no holder panics") = None;
        }
        self.snapshot.send_replace(snapshot);
    }

    pub(super) fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    pub(super) fn publish_postgres(&self, seen: PgSeen) {
        let receiver = seen.probe.as_ref().ok().and_then(|probe| probe.receiver.as_ref());
        if receiver.is_some_and(|receiver| receiver.status == "streaming") {
            self.rewound.store(false, Ordering::Relaxed);
        }
        *self.postgres.lock().expect("no holder panics") = Some(seen);
    }

    pub(super) fn show_copy(&self, progress: watch::Receiver<SeedProgress>) -> CopyShown<'_> {
        *self.copying.lock().expect("no holder panics") = Some((clock::now(), progress));
        CopyShown(self)
    }

    /// When PostgreSQL was looked at last; `now` where none runs.
    pub(super) fn last_look(&self, now: Monotonic) -> Option<Monotonic> {
        let seen = self.postgres.lock().expect("no holder panics");
        if self.snapshot.borrow().running { seen.as_ref().map(|seen| seen.at) } else { Some(now) }
    }

    /// Counts a copy that is complete. Before the machine is told of it, so that whoever sees what it does then
    /// finds it counted.
    pub(super) fn count_copy(&self) {
        self.copies.fetch_add(1, Ordering::SeqCst);
    }

    fn status(&self) -> PeerStatus {
        let snapshot = self.snapshot.borrow().clone();
        let seen = self.postgres.lock().expect("no holder panics").clone();
        let now = clock::now();
        let copying = self.copying.lock().expect("no holder panics");
        let copying =
            copying.as_ref().map(|(begun, progress)| self::copying(progress, now - *begun));
        let primary = snapshot.applied.as_ref().is_some_and(|applied| applied.config.is_primary());
        PeerStatus {
            version: crate::VERSION.to_owned(),
            shard: self.shard.clone(),
            peer: self.peer.clone(),
            role: snapshot.role,
            reason: reason_text(&snapshot.reason),
            generation: snapshot.generation,
            in_session: snapshot.in_session,
            database: snapshot.database,
            pending: snapshot.pending.clone(),
            fenced: snapshot.fenced,
            rebuild_asked: snapshot.rebuild_asked,
            may_serve_ms: snapshot.serve_until.filter(|_| primary).map(|until| (until - now).0),
            failure: snapshot.failure.as_deref().map(without_log),
            copying,
            copies: self.copies.load(Ordering::SeqCst),
            sending: self.jobs.list(),
            postgres: pg_status(&snapshot, seen, now),
        }
    }

    /// Healthy: in a session, with PostgreSQL answering where it is to run.
    fn problem(&self) -> Option<String> {
        let status = self.status();
        if !status.in_session {
            return Some(format!("no coordination session: {}", status.reason.text));
        }
        let runs = matches!(status.role, Role::Primary | Role::Sync | Role::Async);
        (runs && !status.postgres.online).then(|| {
            let why = status.failure.or(status.postgres.error);
            why.unwrap_or_else(|| format!("PostgreSQL does not run yet: {}", status.reason.text))
        })
    }
}

/// A failure as it is told to whoever asks: the end of PostgreSQL's log, which may hold statements of clients, is
/// for the sitter's own log.
fn without_log(failure: &str) -> String {
    match failure.split_once(" log ends: ") {
        Some((before, _)) => format!("{before} log ends as the sitter's log says"),
        None => failure.to_owned(),
    }
}

fn reason_text(reason: &Reason) -> ReasonText {
    let kind = serde_json::to_value(reason)
        .ok()
        .and_then(|value| Some(value.get("kind")?.as_str()?.to_owned()))
        .expect("a reason has a kind");
    ReasonText { kind, rule: reason.rule().to_owned(), text: without_log(&reason.to_string()) }
}

fn copying(progress: &watch::Receiver<SeedProgress>, elapsed: Millis) -> Copying {
    let progress = progress.borrow().clone();
    let rate = progress.bytes_done.saturating_mul(1000) / elapsed.0.max(1);
    let rate = (progress.phase == SeedPhase::Receiving && rate > 0).then_some(rate);
    let left = progress.bytes_total.map(|total| total.saturating_sub(progress.bytes_done));
    Copying {
        source: progress.source.map(|source| source.to_string()),
        phase: match progress.phase {
            SeedPhase::Preparing => "preparing",
            SeedPhase::Receiving => "receiving",
            SeedPhase::Finishing => "finishing",
            SeedPhase::Done => "done",
        }
        .to_owned(),
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        rate,
        remaining: left.zip(rate).map(|(left, rate)| left / rate),
    }
}

fn pg_status(snapshot: &Snapshot, seen: Option<PgSeen>, now: Monotonic) -> PgStatus {
    let config = snapshot.applied.as_ref().map(|applied| &applied.config);
    let upstream = match config {
        Some(PgConfig::Standby { upstream, .. }) => upstream.as_ref(),
        _ => None,
    };
    let mut status = PgStatus {
        configured_as: config.map(|config| config.role_label().to_owned()),
        upstream: upstream.map(|peer| peer.id.to_string()),
        writable: matches!(config, Some(PgConfig::Primary { gate: Gate::Open, .. })),
        ..PgStatus::default()
    };
    let Some(seen) = seen else { return status };
    status.age_ms = Some((now - seen.at).0);
    let probe = match seen.probe {
        Ok(probe) => probe,
        Err(error) => {
            status.error = Some(error);
            return status;
        }
    };
    status.online = true;
    status.in_recovery = Some(probe.in_recovery);
    status.timeline = Some(probe.timeline);
    status.wal = Some(probe.wal);
    status.replay = probe.replay;
    status.lag_ms = lag(&probe);
    status.streaming = upstream.map(|upstream| {
        let address = upstream.pg_address().ok();
        let receiver = probe.receiver.as_ref();
        receiver
            .zip(address)
            .is_some_and(|(receiver, (host, port))| receiver.streams_from(&host, port))
    });
    status.senders = probe
        .senders
        .into_iter()
        .map(|sender| SenderStatus {
            peer: sender.application_name,
            state: sender.state,
            sync_state: sender.sync_state,
            sent: sender.sent,
            write: sender.write,
            flush: sender.flush,
            replay: sender.replay,
        })
        .collect();
    status
}

/// How far replay is behind, in ms; nothing when all that was received is replayed.
fn lag(probe: &Probe) -> Option<u64> {
    if !probe.in_recovery || probe.replay.is_some_and(|replay| replay >= probe.wal) {
        return None;
    }
    let behind = Timestamp::now().duration_since(probe.replayed_commit?);
    u64::try_from(behind.as_millis()).ok()
}

/// Serves `/ping` and `/state`.
pub(super) async fn start(config: &Config, shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    let address = SocketAddr::new(config.status.listen.unwrap_or(config.ip), config.status_port());
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("status: cannot listen on {address}: free it or set status.port")
    })?;
    let router = Router::new()
        .route("/ping", get(ping))
        .route(
            "/state",
            get(|State(shared): State<Arc<Shared>>| async move { Json(shared.status()) }),
        )
        .with_state(shared);
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the status endpoint ended: {error}");
        }
    }))
}

async fn ping(State(shared): State<Arc<Shared>>) -> (StatusCode, Json<serde_json::Value>) {
    match shared.problem() {
        None => (StatusCode::OK, Json(json!({ "healthy": true }))),
        Some(problem) => {
            let answer = json!({ "healthy": false, "problem": problem });
            (StatusCode::SERVICE_UNAVAILABLE, Json(answer))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_wrote_is_not_told_to_everybody() {
        let secret = "STATEMENT: insert into t values ('secret')";
        for (failure, expected) in [
            (
                format!("PostgreSQL ended by itself (exit status: 2); its log ends: {secret}"),
                "PostgreSQL ended by itself (exit status: 2); its log ends as the sitter's log says",
            ),
            (
                format!("start: no space is left on the device: free some; the log ends: {secret}"),
                "start: no space is left on the device: free some; the log ends as the sitter's log says",
            ),
            ("no peer to copy from".to_owned(), "no peer to copy from"),
        ] {
            assert_eq!(without_log(&failure), expected);
            // Where it is the reason of something else, too.
            let given_up = Reason::GivingUp { problem: failure.clone() };
            let left = Reason::NoSession { problem: given_up.to_string() };
            for reason in [given_up, left] {
                let text = reason_text(&reason).text;
                assert!(text.contains(expected) && !text.contains("secret"), "{text}");
            }
        }
    }
}
