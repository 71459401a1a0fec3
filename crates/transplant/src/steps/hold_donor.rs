//! Holds whoever looks after the donor: from here on nobody starts, stops or promotes anything there by
//! himself, until this is undone.

use super::Scene;
use anyhow::Result;
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

pub(super) struct HoldDonor(pub Arc<Scene>);

impl HoldDonor {
    /// Lets Patroni go on, if it did before, and sees that its standbys follow.
    async fn resume(&self, tell: &dyn Tell) -> Result<()> {
        let Some(patroni) = &self.0.patroni else { return Ok(()) };
        if !patroni.facts.paused {
            tell.tell("resuming Patroni");
            patroni.set_pause(false, tell).await?;
        }
        let names: Vec<&str> = patroni.standbys().collect();
        let behind = patroni.wait(tell, async || {
            let streams =
                "select application_name from pg_stat_replication where state = 'streaming'";
            let streams = self.0.donor.sql(streams).await?;
            let lacks = names.iter().find(|&&name| !streams.lines().any(|line| line == name));
            Ok(lacks.map_or(Ok(()), |name| Err(format!("{name} does not stream yet"))))
        });
        // The donor serves: what a standby lacks is no reason to stop half-way.
        if let Err(problem) = behind.await {
            tell.note(&format!(
                "{problem:#}: look at `patronictl list`, and copy it anew with `patronictl reinit`"
            ));
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Step for HoldDonor {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        let Some(patroni) = &self.0.patroni else { return Ok(()) };
        Ok(patroni.set_pause(true, tell).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if let Some(patroni) = &self.0.patroni {
            patroni.is_held(false).await?;
        }
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.resume(tell).await?)
    }
}
