//! On the first peer: a copy of the donor's database that follows it.

use super::{Scene, until};
use crate::{recipient::Control, snapshots};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct Receive(pub Arc<Scene>);

#[async_trait(?Send)]
impl Step for Receive {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        if self.0.by_snapshots() {
            snapshots::sync(&self.0, tell).await?;
            return Ok(());
        }
        let (donor, first) = (&self.0.donor.config, self.0.first());
        let port = donor.port.to_string();
        let expected = &self.0.facts.donor.system_identifier;
        let mut args =
            vec!["--host", &donor.address, "--port", &port, "--system-identifier", expected];
        args.extend(["--slot", self.0.slot()]);
        let rate = self.0.facts.inventory.limits.rate_mib.map(|rate| rate.to_string());
        args.extend(rate.iter().flat_map(|rate| ["--rate-mib", rate]));
        let _: Value = first.long_verb("receive", &args, tell).await?;
        until(self.0.facts.inventory.limits.catch_up_seconds, tell, async || {
            let streams =
                first.sql("select count(*) from pg_stat_wal_receiver where status = 'streaming'");
            Ok(if streams.await? == "1" {
                Ok(())
            } else {
                Err("it does not stream yet".to_owned())
            })
        })
        .await?;
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if self.0.by_snapshots() {
            return Ok(snapshots::newest(&self.0).await?);
        }
        let (first, donor) = (self.0.first(), &self.0.facts.donor);
        let control: Control = first.control().await?;
        if control.system_identifier != donor.system_identifier {
            let found = control.system_identifier;
            return Err(format!("{} has another database: {found}", first.zone()).into());
        }
        if first.sql("select pg_is_in_recovery()").await? != "t" {
            return Err(format!("{} does not follow: it is no standby", first.zone()).into());
        }
        Ok(json!({ "systemIdentifier": control.system_identifier }))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        // The others have copies of it, if the shard grew.
        for peer in &self.0.peers {
            if self.0.is_gone(peer) {
                tell.note(&format!("what {} has of it stays there", peer.zone()));
                continue;
            }
            let kept: Value = peer.verb("discard", &[]).await?;
            if let Some(kept) = kept["kept"].as_str() {
                tell.note(&format!("the copy on {} is kept in {kept}", peer.zone()));
            }
        }
        if self.0.by_snapshots() {
            if !self.0.is_gone(self.0.first()) {
                let _: Value = self.0.first().verb("incoming clear", &[]).await?;
            }
            snapshots::drop_all(&self.0).await?;
        }
        Ok(())
    }

    async fn release(&self, tell: &dyn Tell) -> Result<(), StepError> {
        if !self.0.by_snapshots() {
            return Ok(());
        }
        if !self.0.is_gone(self.0.first()) {
            let id = ["--id", &self.0.facts.id];
            let _: Value = self.0.first().verb("incoming forget", &id).await?;
        }
        if self.0.is_donor_gone() {
            tell.note("the snapshots that were made on the donor stay there");
        } else {
            snapshots::drop_all(&self.0).await?;
        }
        Ok(())
    }
}
