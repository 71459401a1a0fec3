//! Waits until the recipient is nearly level, so that what is left is sent in a moment.

use super::{Scene, until};
use crate::snapshots;
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

pub(super) struct CatchUp(pub Arc<Scene>);

#[async_trait(?Send)]
impl Step for CatchUp {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        level(&self.0, tell).await
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if self.0.by_snapshots() {
            return Ok(snapshots::newest(&self.0).await?);
        }
        Ok(json!({ "lagBytes": self.0.lag().await? }))
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(())
    }
}

/// Waits until the recipient is behind by no more than the limit.
pub(super) async fn level(scene: &Scene, tell: &dyn Tell) -> Result<(), StepError> {
    if scene.by_snapshots() {
        return Ok(snapshots::level(scene, tell).await?);
    }
    let limits = &scene.facts.inventory.limits;
    until(limits.catch_up_seconds, tell, async || {
        let lag = scene.lag().await?;
        Ok(if lag <= limits.lag_bytes { Ok(()) } else { Err(format!("{} MiB behind", lag >> 20)) })
    })
    .await?;
    Ok(())
}
