//! How an operator's request to rebuild reaches the machine: by the backup service, signed like every
//! request there.

use super::driver::Control;
use crate::backup::{RebuildRequest, Refusal};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use tokio::sync::{mpsc, oneshot};

/// Serves `POST /v1/rebuild`.
pub(super) fn router(control: mpsc::Sender<Control>) -> Router {
    Router::new().route("/v1/rebuild", post(rebuild)).with_state(control)
}

async fn rebuild(
    State(control): State<mpsc::Sender<Control>>,
    Json(RebuildRequest { full }): Json<RebuildRequest>,
) -> Result<(StatusCode, Json<()>), Refusal> {
    let stopping = || Refusal::Conflict("the sitter is stopping".to_owned());
    let (answer, answered) = oneshot::channel();
    control.send(Control::Rebuild { full, answer }).await.map_err(|_| stopping())?;
    match answered.await.map_err(|_| stopping())? {
        None => Ok((StatusCode::ACCEPTED, Json(()))),
        Some(why) => Err(Refusal::Conflict(why)),
    }
}
