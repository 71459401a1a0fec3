//! The original's protocol: a receiver asks for a backup and says where it listens; the server connects
//! there and writes the newest snapshot.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /backup/` with `host`, `port`, `dataset` | `{"jobid", "jobPath"}`; 409 where one is missing |
//! | `GET /backup/ID` | the job: `done` (`false`, `true`, `"failed"`), `size`, `completed`; 404 |
//!
//! It proves nothing of who asks, so that it is spoken only where the file says so.

use super::Outgoing;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use uuid::Uuid;

/// How long the receiver may take to be connected to, or to take a block.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much is read at a time.
const BLOCK: usize = 256 << 10;
/// How many jobs that have ended are remembered.
const REMEMBERED: usize = 20;

/// Where the original's streams come from.
#[async_trait::async_trait]
pub trait LegacyOutlet: Send + Sync + 'static {
    /// Begins to send the newest periodic snapshot, all of it.
    async fn open_newest(&self) -> Result<Outgoing, super::Refusal>;
}

struct Legacy {
    outlet: Arc<dyn LegacyOutlet>,
    jobs: Mutex<BTreeMap<Uuid, Arc<Job>>>,
}

#[derive(Debug)]
struct Job {
    host: String,
    port: u64,
    dataset: String,
    number: usize,
    size: Option<u64>,
    completed: AtomicU64,
    /// How it ended.
    end: Mutex<Option<Result<(), String>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn router(outlet: Arc<dyn LegacyOutlet>) -> Router {
    let legacy = Arc::new(Legacy { outlet, jobs: Mutex::default() });
    Router::new()
        .route("/backup/", post(begin))
        .route("/backup", post(begin))
        .route("/backup/{id}", get(show))
        .with_state(legacy)
}

/// A number, or a text that is one: both are sent.
fn port(value: &Value) -> Option<u64> {
    let port = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    (1..=65_535).contains(&port).then_some(port)
}

async fn begin(State(legacy): State<Arc<Legacy>>, Json(request): Json<Value>) -> Response {
    let text = |name: &str| request.get(name).and_then(Value::as_str).filter(|one| !one.is_empty());
    let port = request.get("port").and_then(port);
    let (Some(host), Some(port), Some(dataset)) = (text("host"), port, text("dataset")) else {
        let message =
            "give host, port and dataset: where to send the backup, and what becomes of it";
        return problem(StatusCode::CONFLICT, "MissingParameter", message);
    };
    let outgoing = match legacy.outlet.open_newest().await {
        Ok(outgoing) => outgoing,
        Err(refusal) => {
            return problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                &refusal.to_string(),
            );
        }
    };
    let id = Uuid::new_v4();
    let mut jobs = locked(&legacy.jobs);
    let number = jobs.values().map(|job| job.number).max().map_or(0, |number| number + 1);
    let job = Arc::new(Job {
        host: host.to_owned(),
        port,
        dataset: dataset.to_owned(),
        number,
        size: outgoing.estimate,
        completed: AtomicU64::new(0),
        end: Mutex::new(None),
    });
    jobs.retain(|_, old| old.number + REMEMBERED > number || locked(&old.end).is_none());
    jobs.insert(id, job.clone());
    drop(jobs);
    tokio::spawn(async move {
        let result = send(&job, outgoing).await.map_err(|error| error.to_string());
        match &result {
            Ok(()) => tracing::info!(job = %id, host = job.host, "a backup was sent"),
            Err(error) => tracing::warn!(job = %id, host = job.host, error, "a backup failed"),
        }
        *locked(&job.end) = Some(result);
    });
    Json(json!({ "jobid": id, "jobPath": format!("/backup/{id}") })).into_response()
}

async fn send(job: &Job, mut outgoing: Outgoing) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the receiver takes nothing");
    let port = u16::try_from(job.port).map_err(io::Error::other)?;
    let target = (job.host.as_str(), port);
    let mut socket = timeout(PATIENCE, TcpStream::connect(target)).await.map_err(late)??;
    loop {
        let block = outgoing.input.part(BLOCK).await?;
        timeout(PATIENCE, socket.write_all(&block)).await.map_err(late)??;
        job.completed.fetch_add(block.len() as u64, Ordering::Relaxed);
        if block.len() < BLOCK {
            break;
        }
    }
    timeout(PATIENCE, socket.shutdown()).await.map_err(late)?
}

async fn show(State(legacy): State<Arc<Legacy>>, Path(id): Path<String>) -> Response {
    let job = id.parse().ok().and_then(|id: Uuid| locked(&legacy.jobs).get(&id).cloned());
    let Some(job) = job else {
        return problem(StatusCode::NOT_FOUND, "ResourceNotFound", &format!("no job {id}"));
    };
    let end = locked(&job.end).clone();
    let mut shown = json!({
        "uuid": id,
        "host": job.host,
        "port": job.port,
        "dataset": job.dataset,
        "size": job.size.map(|size| size.to_string()),
        "completed": job.completed.load(Ordering::Relaxed).to_string(),
        "done": match &end {
            None => json!(false),
            Some(Ok(())) => json!(true),
            Some(Err(_)) => json!("failed"),
        },
    });
    if let Some(Err(error)) = end {
        shown["error"] = json!(error);
    }
    Json(shown).into_response()
}

/// An error as the original's web framework has it.
fn problem(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "code": code, "message": message }))).into_response()
}
