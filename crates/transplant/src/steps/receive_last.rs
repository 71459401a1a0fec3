//! The last that has changed on the donor, which is stopped and closed, goes to the recipient; then all of it
//! is put in place there, if it is what the donor ended as. Before this no server is started on it: a
//! recovery would write, and what is sent would be the difference to something else.

use super::{STOP_DONOR, Scene};
use crate::{donor::Control, snapshots};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::Value;
use std::sync::Arc;

pub(super) struct ReceiveLast(pub Arc<Scene>);

#[async_trait(?Send)]
impl Step for ReceiveLast {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        let (scene, first) = (&self.0, self.0.first());
        if scene.donor.is_running().await? || !scene.donor.is_closed().await? {
            return Err("the donor runs, or would start open for writes".into());
        }
        // When it is in place, all of it was there.
        if !snapshots::in_place(scene).await? {
            snapshots::sync(scene, tell).await?;
        }
        let ended: Control = scene.outcome(STOP_DONOR)?;
        let inside = snapshots::inside(&scene.facts)?;
        let (timeline, checkpoint) = (ended.timeline.to_string(), ended.checkpoint.to_string());
        let args = ["--inside", inside, "--system-identifier", &ended.system_identifier];
        let more = ["--timeline", &timeline, "--checkpoint", &checkpoint];
        tell.tell("looking at what came, and putting it in place");
        let _: Value = first.verb("incoming place", &[&args[..], &more].concat()).await?;
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let ended: Control = self.0.outcome(STOP_DONOR)?;
        let copy = self.0.first().control().await?;
        if copy != ended {
            return Err(
                format!("the copy is not what the donor ended as: {copy:?}, {ended:?}").into()
            );
        }
        Ok(serde_json::to_value(copy)?)
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(())
    }
}
