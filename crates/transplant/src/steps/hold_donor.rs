//! Keeps the donor as it is, where it is a cluster that would make another server its primary: from here on
//! nobody there starts, stops or promotes anything by himself, until this is undone.

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

    /// Waits for the donor to take writes where one of its peers is gone, which may have been its sync.
    async fn open_without(&self, tell: &dyn Tell) {
        if let Err(problem) = self.0.donor_open(tell).await {
            // Everything is undone but this, which only its operators can help.
            tell.note(&format!(
                "{problem:#}: it takes writes when it has a sync: see `manatee adm show` of its shard, \
                 unfreeze it if it is frozen, and give it another peer"
            ));
        }
    }

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
        if let Some(patroni) = &self.0.patroni {
            return Ok(patroni.set_pause(true, tell).await?);
        }
        match self.0.facts.inventory.donor.kind {
            DonorKind::ManateeV2 => Ok(self.freeze().await?),
            _ => Ok(()),
        }
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if let Some(patroni) = &self.0.patroni {
            patroni.is_held(false, false).await?;
        }
        match self.0.facts.inventory.donor.kind {
            DonorKind::ManateeV2 => {
                let now = manatee::look(&self.0.facts.inventory.donor).await?;
                if !now.frozen {
                    return Err("the donor is not frozen: somebody unfroze it".into());
                }
                Ok(json!({ "generation": now.generation }))
            }
            _ => Ok(json!({})),
        }
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        match self.0.facts.inventory.donor.kind {
            DonorKind::ManateeV2 => {
                self.unfreeze().await?;
                if self.0.lacks_standby() {
                    self.open_without(tell).await;
                }
                Ok(())
            }
            _ => Ok(self.resume(tell).await?),
        }
    }
}
