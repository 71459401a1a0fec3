//! Stops the donor's standbys: none of them can be promoted by mistake, and none is left behind.

use super::Scene;
use adapters::service::Order;
use anyhow::{Context, Result};
use async_trait::async_trait;
use cluster::Millis;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

pub(super) struct StopStandbys(pub Arc<Scene>);

impl StopStandbys {
    async fn tell_all(&self, orders: [Order; 2]) -> Result<()> {
        let limit = Millis(self.0.facts.inventory.limits.service_seconds * 1000);
        for standby in &self.0.donor.config.standbys {
            for order in orders {
                let told = standby.service.tell(&standby.host, order, limit).await;
                told.with_context(|| format!("{order:?}: standby {}", standby.name))?;
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
        Ok(self.tell_all([Order::Disable, Order::Stop]).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(self.tell_all([Order::Enable, Order::Start]).await?)
    }
}
