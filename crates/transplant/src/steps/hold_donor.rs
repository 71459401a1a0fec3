//! Keeps the donor as it is, where it is a cluster that would make another server its primary.

use super::Scene;
use crate::{DonorKind, manatee};
use adapters::coord::PutOutcome;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use cluster::{ClusterState, Freeze, FreezeInfo};
use jiff::Timestamp;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

/// How often a write begins again that somebody came before.
const ATTEMPTS: usize = 5;

pub(super) struct HoldDonor(pub Arc<Scene>);

impl HoldDonor {
    /// Why the shard is frozen, when we froze it.
    fn reason(&self) -> String {
        format!("transplant {}: its database is moved to another shard", self.0.facts.id)
    }

    fn is_ours(&self, state: &ClusterState) -> bool {
        matches!(&state.freeze, Some(Freeze::Since(info)) if info.reason == self.reason())
    }

    /// Writes the state that `change` makes of the stored one, until that is stored or `change` makes
    /// none.
    async fn write(
        &self,
        change: impl Fn(ClusterState) -> Result<Option<ClusterState>>,
    ) -> Result<()> {
        let coordination = manatee::open(&self.0.facts.inventory.donor)?;
        for _ in 0..ATTEMPTS {
            let stored = coordination.read().await?.state.context("it has no cluster state")?;
            let Some(state) = change(ClusterState::parse(&stored.json)?)? else { return Ok(()) };
            match coordination.put(Some(stored.version), &state).await {
                PutOutcome::Committed(_) => return Ok(()),
                PutOutcome::Refused(error) => return Err(error.into()),
                PutOutcome::Conflict | PutOutcome::Unknown(_) => {}
            }
        }
        bail!("the donor's cluster state could not be written: {}", coordination.target())
    }

    async fn freeze(&self) -> Result<()> {
        let date = Timestamp::from_millisecond(Timestamp::now().as_millisecond())?;
        let info = FreezeInfo { date, reason: self.reason(), extra: serde_json::Map::new() };
        let planned = self.0.facts.shard.as_ref().context("the plan has no donor's shard")?;
        self.write(|state| {
            if Some(state.generation) != planned.generation {
                bail!("the donor is in generation {} now: it has failed over", state.generation);
            }
            let freeze = Some(Freeze::Since(info.clone()));
            Ok((!state.is_frozen()).then_some(ClusterState { freeze, ..state }))
        })
        .await
    }

    async fn unfreeze(&self) -> Result<()> {
        self.write(|state| {
            Ok(self.is_ours(&state).then_some(ClusterState { freeze: None, ..state }))
        })
        .await
    }
}

#[async_trait(?Send)]
impl Step for HoldDonor {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, _: &dyn Tell) -> Result<(), StepError> {
        match self.0.facts.inventory.donor.kind {
            DonorKind::ManateeV2 => Ok(self.freeze().await?),
            DonorKind::ManateeV1 | DonorKind::Postgres => Ok(()),
        }
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        match self.0.facts.inventory.donor.kind {
            DonorKind::ManateeV2 => {
                let now = manatee::look(&self.0.facts.inventory.donor).await?;
                if !now.frozen {
                    return Err("the donor is not frozen: somebody unfroze it".into());
                }
                Ok(json!({ "generation": now.generation }))
            }
            DonorKind::ManateeV1 | DonorKind::Postgres => Ok(json!({})),
        }
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        match self.0.facts.inventory.donor.kind {
            DonorKind::ManateeV2 => Ok(self.unfreeze().await?),
            DonorKind::ManateeV1 | DonorKind::Postgres => Ok(()),
        }
    }
}
