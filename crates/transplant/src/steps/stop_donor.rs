//! Stops the donor in an orderly way: its last WAL, the checkpoint of its shutdown, goes to the recipient
//! before it ends.

use super::{Scene, catch_up};
use adapters::service::Order;
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use std::sync::Arc;

pub(super) struct StopDonor(pub Arc<Scene>);

#[async_trait(?Send)]
impl Step for StopDonor {
    async fn check(&self) -> Result<Check, StepError> {
        let first = self.0.first();
        let streams = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        if self.0.donor.is_running().await? && first.sql(streams).await? != "1" {
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
        donor.tell(Order::Disable).await?;
        tell.tell("stopping");
        donor.stop().await?;
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
        Ok(serde_json::to_value(control)?)
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        let donor = &self.0.donor;
        donor.tell(Order::Enable).await?;
        donor.start().await?;
        if donor.sql("select pg_is_in_recovery()").await? == "t" {
            return Err("the donor runs as a standby: nobody can write there".into());
        }
        Ok(())
    }
}
