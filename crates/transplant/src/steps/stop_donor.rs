//! Stops the donor in an orderly way: its last WAL, the checkpoint of its shutdown, goes to the recipient
//! before it ends.

use super::{Scene, catch_up, until};
use crate::{DonorKind, manatee};
use adapters::service::Order;
use anyhow::Result;
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use std::sync::Arc;

pub(super) struct StopDonor(pub Arc<Scene>);

impl StopDonor {
    /// Starts the sitter of a donor that is a shard, and waits until the donor is primary again. In the
    /// first version it stays closed until its sync is there, which comes after it; and without one that is gone
    /// it may get another sync only when nothing holds it any more.
    async fn start_sitter(&self, tell: &dyn Tell) -> Result<()> {
        let (scene, donor) = (&self.0, &self.0.donor);
        donor.tell(Order::Start).await?;
        if donor.config.kind == DonorKind::ManateeV2 && !scene.lacks_standby() {
            return scene.donor_open(tell).await;
        }
        until(scene.facts.inventory.limits.service_seconds, tell, async || {
            let now = manatee::look(&donor.config).await?;
            let leads = now.registered.first().is_some_and(|peer| scene.is_donor(peer));
            let serves = donor.sql("select pg_is_in_recovery()").await;
            Ok(if leads && serves.as_deref().ok() == Some("f") {
                Ok(())
            } else {
                Err("the donor is not primary yet".to_owned())
            })
        })
        .await
    }
}

#[async_trait(?Send)]
impl Step for StopDonor {
    async fn check(&self) -> Result<Check, StepError> {
        let first = self.0.first();
        let streams = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        if !self.0.by_snapshots()
            && self.0.donor.is_running().await?
            && first.sql(streams).await? != "1"
        {
            return Ok(Check::Blocked(format!(
                "{} does not stream from the donor: look at the log of its server, and try again",
                first.zone()
            )));
        }
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        let donor = &self.0.donor;
        if donor.is_running().await? {
            // What it would have to write out while nobody is served.
            tell.tell("writing a checkpoint first");
            donor.sql("checkpoint").await?;
            catch_up::level(&self.0, tell).await?;
        }
        if let Some(patroni) = &self.0.patroni {
            // To come level may have taken long. An attempt before may have stopped its Patroni.
            patroni.is_held(true, false).await?;
        }
        donor.tell(Order::Disable).await?;
        tell.tell("stopping");
        if self.0.patroni.is_some() {
            // In a pause it leaves the server running, and nobody starts that again once it is stopped.
            donor.tell(Order::Stop).await?;
        }
        donor.stop().await?;
        if self.0.facts.shard.is_some() {
            until(self.0.facts.inventory.limits.service_seconds, tell, async || {
                let now = manatee::look(&donor.config).await?;
                Ok(if now.registered.iter().any(|peer| self.0.is_donor(peer)) {
                    Err("the donor is still registered".to_owned())
                } else {
                    Ok(())
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let control = self.0.donor.control().await?;
        let planned = &self.0.facts.donor;
        if control.state != "shut down"
            || control.system_identifier != planned.system_identifier
            || control.timeline != planned.timeline
        {
            return Err(format!("the donor is not as it should be: {control:?}").into());
        }
        if let Some(patroni) = &self.0.patroni {
            patroni.is_gone().await?;
        }
        Ok(serde_json::to_value(control)?)
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        let donor = &self.0.donor;
        if let Some(patroni) = &self.0.patroni {
            patroni.has_no_other_leader().await?;
        }
        donor.tell(Order::Enable).await?;
        if self.0.facts.shard.is_some() {
            return Ok(self.start_sitter(tell).await?);
        }
        if let Some(patroni) = &self.0.patroni {
            donor.tell(Order::Start).await?;
            patroni.wake(&patroni.facts.leader, true, tell).await?;
        } else {
            donor.start().await?;
        }
        if donor.sql("select pg_is_in_recovery()").await? == "t" {
            return Err("the donor runs as a standby: nobody can write there".into());
        }
        Ok(())
    }
}
