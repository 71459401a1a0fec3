//! The HTTP side of the backup service.

use super::{
    JobStatus, Jobs, Offer, Refusal, Secret, SnapshotInfo, SnapshotRequest, StreamRequest,
    StreamStarted,
    jobs::Given,
    legacy::{self, LegacyOutlet},
    tls::{TlsFiles, TlsListener},
    wire::{CHECKSUM, LENGTH, Problem, WAITED, WHOLE},
};
use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Path, RawQuery, Request, State},
    http::{HeaderValue, StatusCode, header::CONTENT_ENCODING},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// The longest body of a request, in bytes. A list of snapshots is the longest thing in one.
const BODY: usize = 1 << 20;

/// What the service needs.
pub struct Service {
    /// What it serves.
    pub jobs: Arc<Jobs>,
    /// What its requests are signed with.
    pub secret: Secret,
    /// Its certificates; plain HTTP without them.
    pub tls: Option<TlsFiles>,
    /// The original's protocol, where it is spoken: it knows no proof of who asks.
    pub legacy: Option<Arc<dyn LegacyOutlet>>,
    /// What else is served to whoever proves that it belongs to the shard.
    pub more: Router,
}

/// A service that runs until it is dropped.
#[derive(Debug)]
pub struct Serving {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves from now on.
///
/// # Errors
/// When the address cannot be listened on, or a certificate cannot be used.
pub async fn serve(address: SocketAddr, service: Service) -> anyhow::Result<Serving> {
    use anyhow::Context;

    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("backup service: cannot listen on {address}: free it or set backup.port")
    })?;
    let address = listener.local_addr()?;
    let mut router = router(service.jobs, service.secret, service.more);
    if let Some(outlet) = service.legacy {
        router = router.merge(legacy::router(outlet));
    }
    let ended = |result: io::Result<()>| {
        if let Err(error) = result {
            tracing::error!("the backup service ended: {error}");
        }
    };
    let task = match service.tls {
        None => tokio::spawn(async move { ended(axum::serve(listener, router).await) }),
        Some(files) => {
            let listener = TlsListener::new(listener, &files)?;
            tokio::spawn(async move { ended(axum::serve(listener, router).await) })
        }
    };
    Ok(Serving { address, task })
}

fn router(jobs: Arc<Jobs>, secret: Secret, more: Router) -> Router {
    Router::new()
        .route("/v1/snapshots", get(offer).post(snapshot))
        .route("/v1/streams", get(list).post(start))
        .route("/v1/streams/{id}", get(status).delete(end))
        .route("/v1/streams/{id}/{index}", get(segment))
        .with_state(jobs)
        .merge(more)
        .layer(middleware::from_fn_with_state(Arc::new(secret), proven))
}

/// Lets only peers of the shard through.
async fn proven(State(secret): State<Arc<Secret>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, BODY).await {
        Ok(body) => body,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error),
    };
    let header = parts.headers.get(super::auth::HEADER).and_then(|value| value.to_str().ok());
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let now = Timestamp::now().as_second();
    match secret.check(header, now, (parts.method.as_str(), target, &body)) {
        Ok(()) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(unproven) => {
            tracing::warn!(target, "backup service: a request was refused: {unproven}");
            problem(StatusCode::FORBIDDEN, &unproven)
        }
    }
}

fn problem(status: StatusCode, error: &dyn std::fmt::Display) -> Response {
    (status, Json(Problem { error: error.to_string() })).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, &self)
    }
}

type Shared = State<Arc<Jobs>>;

async fn offer(State(jobs): Shared) -> Result<Json<Offer>, Refusal> {
    Ok(Json(jobs.outlet().offer().await?))
}

async fn snapshot(
    State(jobs): Shared,
    Json(request): Json<SnapshotRequest>,
) -> Result<(StatusCode, Json<SnapshotInfo>), Refusal> {
    Ok((StatusCode::CREATED, Json(jobs.outlet().snapshot(&request).await?)))
}

async fn start(
    State(jobs): Shared,
    Json(request): Json<StreamRequest>,
) -> Result<(StatusCode, Json<StreamStarted>), Refusal> {
    Ok((StatusCode::CREATED, Json(jobs.start(request).await?)))
}

async fn list(State(jobs): Shared) -> Json<Vec<JobStatus>> {
    Json(jobs.list())
}

async fn status(State(jobs): Shared, Path(id): Path<Uuid>) -> Result<Json<JobStatus>, Refusal> {
    Ok(Json(jobs.status(id)?))
}

async fn end(State(jobs): Shared, Path(id): Path<Uuid>) -> Result<StatusCode, Refusal> {
    jobs.end(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn segment(
    State(jobs): Shared,
    Path((id, index)): Path<(Uuid, u64)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let Given { segment, waited } = jobs.segment(id, index).await?;
    let mut smaller = None;
    if query.as_deref() == Some("zstd") {
        let copy = segment.clone();
        let compressed = tokio::task::spawn_blocking(move || copy.compressed()).await;
        let failed = |error: &dyn std::fmt::Display| Refusal::Failed(format!("zstd: {error}"));
        smaller = compressed.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    }
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let number = |number: u64| HeaderValue::from(number);
    let hex = |text: String| HeaderValue::from_str(&text).expect("hexadecimal");
    headers.insert(LENGTH, number(segment.bytes.len() as u64));
    headers.insert(CHECKSUM, hex(format!("{:016x}", segment.checksum)));
    headers.insert(WAITED, number(waited.0));
    if let Some(whole) = segment.whole {
        headers.insert(WHOLE, hex(format!("{whole:032x}")));
    }
    if smaller.is_some() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
    }
    *response.body_mut() = Body::from(smaller.unwrap_or(segment.bytes));
    Ok(response)
}
