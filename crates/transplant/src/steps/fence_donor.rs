//! Makes sure that the donor takes no write, even if somebody starts it: it would start in recovery, and
//! let nobody in but its own user on its own host. What is changed for that are files of its data
//! directory, which are put back by the undo.

use super::{STOP_DONOR, Scene, copy_back};
use crate::{
    Donor,
    donor::{AUTO_CONF, Control, LOG, STANDBY_SIGNAL, value, with_block, without_block},
    manatee,
};
use anyhow::{Result, bail};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

/// The `pg_hba.conf` of a fenced donor, and its `pg_ident.conf`.
pub const FENCE_FILES: [&str; 2] = ["manatee-transplant.hba", "manatee-transplant.ident"];
pub(crate) const HBA: &str = FENCE_FILES[0];
pub(crate) const IDENT: &str = FENCE_FILES[1];

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
    let lines = format!(
        "hba_file = {}\nident_file = {}\n{more}",
        value(&donor.path(HBA)),
        value(&donor.path(IDENT))
    );
    set(donor, &lines).await
}

/// Changes its settings by these lines, and no other; it must not run.
pub(super) async fn set(donor: &Donor, lines: &str) -> Result<()> {
    let text = donor.read(&donor.path(AUTO_CONF)).await?.unwrap_or_default();
    // Of settings that are given twice the last one counts.
    let changed = format!("{}{}", without_block(&text), with_block("", lines));
    donor.write(&donor.path(AUTO_CONF), &changed).await
}

/// Takes away what keeps all others out; it must not run.
pub(super) async fn let_in(donor: &Donor) -> Result<()> {
    if let Some(text) = donor.read(&donor.path(AUTO_CONF)).await? {
        donor.write(&donor.path(AUTO_CONF), &without_block(&text)).await?;
    }
    for name in [HBA, IDENT, LOG] {
        donor.remove(&donor.path(name)).await?;
    }
    Ok(())
}

impl FenceDonor {
    /// Opens it, with whatever it has taken from the recipient meanwhile.
    async fn open(&self, tell: &dyn Tell) -> Result<()> {
        let donor = &self.0.donor;
        copy_back::settle(&self.0, tell).await?;
        let stopped: Control = self.0.outcome(STOP_DONOR)?;
        let now = donor.control().await?;
        // The whole of it: one that was started in recovery is left in another state, even where its last
        // checkpoint is the same.
        let followed = now != stopped;
        if donor.is_closed().await? && followed {
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
        let_in(donor).await?;
        match &donor.config.manatee {
            Some(shard) => manatee::unfence(&donor.config.host, &shard.sitter).await,
            None => Ok(()),
        }
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
        let donor = &self.0.donor;
        if let Some(shard) = &donor.config.manatee {
            // It would open what is closed here.
            let to = &self.0.first().facts.shard;
            manatee::fence(&donor.config.host, &shard.sitter, to).await?;
        }
        Ok(close(donor, "").await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if self.0.donor.is_running().await? || !self.0.donor.is_closed().await? {
            return Err("the donor runs, or would start open for writes".into());
        }
        manatee::check_closed(&self.0.facts).await?;
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.open(tell).await?)
    }
}
