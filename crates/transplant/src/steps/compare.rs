//! Proves that the recipient has all that the donor wrote: the same database, on the same timeline, up to
//! the checkpoint of the donor's shutdown, after which it wrote nothing.

use super::{STOP_DONOR, Scene, until};
use crate::donor::Control;
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use std::sync::Arc;

pub(super) struct Compare(pub Arc<Scene>);

#[async_trait(?Send)]
impl Step for Compare {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        if self.0.by_snapshots() {
            // Nothing has run there: its control file is the donor's, or it is not the donor's database.
            return Ok(());
        }
        let (donor, first): (Control, _) = (self.0.outcome(STOP_DONOR)?, self.0.first());
        until(self.0.facts.inventory.limits.service_seconds, tell, async || {
            let replayed = first.replayed().await?;
            Ok(if replayed > donor.checkpoint {
                Ok(())
            } else {
                Err(format!(
                    "{} is at {replayed}, the donor ended after {}",
                    first.zone(),
                    donor.checkpoint
                ))
            })
        })
        .await?;
        // On a standby: writes out what was replayed, and says so in the control file.
        first.sql("checkpoint").await?;
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let stopped: Control = self.0.outcome(STOP_DONOR)?;
        let donor = self.0.donor.control().await?;
        let copy = self.0.first().control().await?;
        let same = |one: &Control| (one.system_identifier.clone(), one.timeline, one.checkpoint);
        if same(&donor) != same(&stopped) {
            return Err(format!("the donor changed after it was stopped: {donor:?}").into());
        }
        if same(&copy) != same(&donor) {
            return Err(format!("the copy is not what the donor is: {copy:?}, {donor:?}").into());
        }
        Ok(serde_json::to_value(copy)?)
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(())
    }
}
