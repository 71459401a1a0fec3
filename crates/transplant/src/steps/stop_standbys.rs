//! Stops the donor's standbys: none of them can be promoted by mistake, and none is left behind. They are
//! closed, too, as the donor is.

use super::{Scene, fence_donor};
use crate::{Donor, Facts, donor::AUTO_CONF};
use adapters::service::Order;
use anyhow::{Context, Result};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

pub(super) struct StopStandbys(pub Arc<Scene>);

/// What a standby needs more of than it had, to replay what the shard wrote.
pub(crate) fn raised(facts: &Facts) -> String {
    let had = &facts.donor.replicated;
    let mut needs = BTreeMap::new();
    for peer in &facts.peers {
        for (name, value) in &peer.replicated {
            let most = needs.entry(name).or_insert(value);
            *most = value.max(*most);
        }
    }
    let raised = needs.into_iter().filter(|(name, value)| had.get(*name) < Some(*value));
    raised.map(|(name, value)| format!("{name} = {value}\n")).collect()
}

impl StopStandbys {
    /// Each of them by its name, as a server like the donor.
    fn standbys(&self) -> Vec<(&str, Donor)> {
        let donor = &self.0.donor;
        let standbys = donor.config.standbys.iter();
        standbys.map(|standby| (standby.name.as_str(), donor.standby(standby))).collect()
    }

    async fn stop(&self) -> Result<()> {
        for (name, standby) in self.standbys() {
            let told = || format!("standby {name}");
            standby.tell(Order::Disable).await.with_context(told)?;
            standby.tell(Order::Stop).await.with_context(told)?;
            // Patroni has left it running; and whoever starts and resumes Patroni would have it promoted.
            standby.halt().await.with_context(told)?;
            fence_donor::close(&standby, "").await.with_context(told)?;
        }
        Ok(())
    }

    async fn start(&self, tell: &dyn Tell) -> Result<()> {
        let raised = raised(&self.0.facts);
        for (name, standby) in self.standbys() {
            let told = || format!("standby {name}");
            standby.tell(Order::Enable).await.with_context(told)?;
            if let Some(patroni) = &self.0.patroni {
                // Still closed: where it is not paused it would be promoted, as nobody leads now.
                standby.tell(Order::Start).await.with_context(told)?;
                patroni.hold_again(name, tell).await.with_context(told)?;
            }
            standby.halt().await.with_context(told)?;
            fence_donor::let_in(&standby).await.with_context(told)?;
            // Patroni sees to that itself.
            if self.0.patroni.is_none() && !raised.is_empty() {
                fence_donor::set(&standby, &raised).await.with_context(told)?;
                let (lines, path) =
                    (raised.trim_end().replace('\n', ", "), standby.path(AUTO_CONF));
                tell.note(&format!(
                    "standby {name} needs {lines} for what the shard wrote; when it has replayed that and \
                     made a checkpoint, you may take the lines out of {path}"
                ));
            }
            standby.tell(Order::Start).await.with_context(told)?;
            if let Some(patroni) = &self.0.patroni {
                patroni.wake(name, false, tell).await.with_context(told)?;
            }
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Step for StopStandbys {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        if self.0.facts.shard.is_some() {
            return Ok(self.stop_peers(tell).await?);
        }
        Ok(self.stop().await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        if self.0.facts.shard.is_some() {
            return Ok(self.start_peers(tell).await?);
        }
        Ok(self.start(tell).await?)
    }
}
