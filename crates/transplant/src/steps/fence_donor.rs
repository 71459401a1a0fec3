//! Makes sure that the donor takes no write, even if somebody starts it: it would start in recovery, and
//! let nobody in but its own user on its own host. What is changed for that are files of its data
//! directory, which are put back by the undo.

use super::{STOP_DONOR, Scene};
use crate::{
    Donor,
    donor::{AUTO_CONF, Control, STANDBY_SIGNAL, value, with_block, without_block},
};
use anyhow::{Result, bail};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

/// The `pg_hba.conf` of a fenced donor.
pub(crate) const HBA: &str = "manatee-transplant.hba";
/// Its `pg_ident.conf`.
pub(crate) const IDENT: &str = "manatee-transplant.ident";

pub(super) struct FenceDonor(pub Arc<Scene>);

/// Writes what keeps the donor closed, with these settings beside it; it must not be open.
pub(super) async fn close(donor: &Donor, more: &str) -> Result<()> {
    // First of all: from here on it starts in recovery.
    donor.write(&donor.path(STANDBY_SIGNAL), "").await?;
    let superuser = &donor.config.superuser;
    let quoted = superuser.replace('"', "\"\"");
    donor.write(&donor.path(HBA), &format!("local all \"{quoted}\" peer map=manatee\n")).await?;
    let ident = format!("manatee {} \"{quoted}\"\n", donor.config.os_user);
    donor.write(&donor.path(IDENT), &ident).await?;
    let text = donor.read(&donor.path(AUTO_CONF)).await?.unwrap_or_default();
    let lines = format!(
        "hba_file = {}\nident_file = {}\n{more}",
        value(&donor.path(HBA)),
        value(&donor.path(IDENT))
    );
    // Of settings that are given twice the last one counts.
    let changed = format!("{}{}", without_block(&text), with_block("", &lines));
    donor.write(&donor.path(AUTO_CONF), &changed).await
}

/// Whether it would start in recovery.
pub(super) async fn is_closed(donor: &Donor) -> Result<bool> {
    Ok(donor.read(&donor.path(STANDBY_SIGNAL)).await?.is_some())
}

impl FenceDonor {
    /// Opens it, with whatever it has taken from the recipient meanwhile.
    async fn open(&self, tell: &dyn Tell) -> Result<()> {
        let donor = &self.0.donor;
        let stopped: Control = self.0.outcome(STOP_DONOR)?;
        let now = donor.control().await?;
        // The whole of it: one that was started in recovery is left in another state, even where its last
        // checkpoint is the same.
        let followed = now != stopped;
        if is_closed(donor).await? && followed {
            // It is on the recipient's timeline: what it writes from here on must not be.
            tell.tell("promoting the donor, with all that the shard took");
            donor.start().await?;
            if donor.sql("select pg_is_in_recovery()").await? == "t"
                && donor.sql("select pg_promote(true, 60)").await? != "t"
            {
                bail!("the donor was not promoted within 60 s: look at its log");
            }
        }
        // Its pg_hba.conf is read anew only when it starts.
        donor.stop().await?;
        donor.remove(&donor.path(STANDBY_SIGNAL)).await?;
        let text = donor.read(&donor.path(AUTO_CONF)).await?.unwrap_or_default();
        donor.write(&donor.path(AUTO_CONF), &without_block(&text)).await?;
        donor.remove(&donor.path(HBA)).await?;
        donor.remove(&donor.path(IDENT)).await
    }
}

#[async_trait(?Send)]
impl Step for FenceDonor {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(if self.0.donor.is_running().await? {
            Check::Blocked("the donor was started again: undo this with `rollback`".to_owned())
        } else {
            Check::Ready
        })
    }

    async fn apply(&self, _: &dyn Tell) -> Result<(), StepError> {
        Ok(close(&self.0.donor, "").await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if self.0.donor.is_running().await? || !is_closed(&self.0.donor).await? {
            return Err("the donor runs, or would start open for writes".into());
        }
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.open(tell).await?)
    }
}
