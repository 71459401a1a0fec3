//! Stops the donor's standbys: none of them can be promoted by mistake, and none is left behind. Those of
//! Patroni are closed, too, as the donor is.

use super::{Scene, fence_donor};
use crate::Donor;
use adapters::service::Order;
use anyhow::{Context, Result};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

pub(super) struct StopStandbys(pub Arc<Scene>);

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
            if self.0.patroni.is_some() {
                // It was left running; and whoever resumes Patroni there would have it promoted.
                standby.halt().await.with_context(told)?;
                fence_donor::close(&standby, "").await.with_context(told)?;
            }
        }
        Ok(())
    }

    async fn start(&self, tell: &dyn Tell) -> Result<()> {
        for (name, standby) in self.standbys() {
            let told = || format!("standby {name}");
            standby.tell(Order::Enable).await.with_context(told)?;
            if self.0.patroni.is_some() {
                standby.halt().await.with_context(told)?;
                fence_donor::let_in(&standby).await.with_context(told)?;
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

    async fn apply(&self, _: &dyn Tell) -> Result<(), StepError> {
        Ok(self.stop().await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.start(tell).await?)
    }
}
