//! The shard opens, with the first peer alone. Undone, it is closed, with all that it wrote in the donor.

use super::{COMPARE, OPEN_RECIPIENT, Scene, keep_way_back::follow_back, position, until};
use crate::{donor::Control, manatee, recipient::Recipient};
use adapters::service::Order;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use cluster::Lsn;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct OpenRecipient(pub Arc<Scene>);

/// Says whether a server takes writes, and where it is.
const SERVES: &str = "select case when pg_is_in_recovery() then null \
    when current_setting('default_transaction_read_only') = 'on' then null \
    else pg_current_wal_lsn() end, pg_is_in_recovery()";

/// The number of the next transaction that writes.
const NEXT_TRANSACTION: &str = "select txid_snapshot_xmax(txid_current_snapshot())";

/// What a rollback that sends nothing back loses, as far as it can be counted: transactions that wrote
/// since the recipient opened. `None` when it never opened.
///
/// # Errors
/// When the shard's primary cannot be asked.
pub(crate) async fn lost(scene: &Scene) -> Result<Option<u64>> {
    let Ok(opened): Result<Value> = scene.outcome(OPEN_RECIPIENT) else { return Ok(None) };
    let primary = scene.serving().await?;
    if scene.is_gone(primary) {
        bail!("{} is gone", primary.zone());
    }
    let number = |text: &str| text.parse::<u64>().context("no number of a transaction");
    let now = number(&primary.sql(NEXT_TRANSACTION).await?)?;
    Ok(Some(now - number(opened["nextTransaction"].as_str().unwrap_or_default())?))
}

/// Keeps the shard as it is; any of its peers can say so.
pub(super) async fn freeze(scene: &Scene) -> Result<()> {
    if scene.state().await?.is_some_and(|state| !state.is_frozen()) {
        let says = scene.here().next().context("no peer of the shard is left")?;
        says.adm(&["freeze", "--reason", "a transplant is rolled back"]).await?;
    }
    Ok(())
}

impl OpenRecipient {
    async fn open(&self, tell: &dyn Tell) -> Result<()> {
        let (donor, first) = (&self.0.donor, self.0.first());
        // The last look before somebody else takes writes.
        if donor.is_running().await? || !donor.is_closed().await? {
            bail!("the donor runs, or would start open for writes: two would take writes");
        }
        manatee::check_closed(&self.0.facts).await?;
        if let Some(patroni) = &self.0.patroni {
            patroni.is_held(true).await?;
        }
        let copy: Control = self.0.outcome(COMPARE)?;
        let (wal, timeline) = (copy.checkpoint.to_string(), copy.timeline.to_string());
        let args = ["--id", &self.0.facts.id, "--wal", &wal, "--timeline", &timeline];
        let _: Value = first.verb("declare", &args).await?;
        first.tell(Order::Enable).await?;
        first.tell(Order::Start).await?;
        until(self.0.facts.inventory.limits.service_seconds, tell, async || {
            // Its server may be just starting.
            let told = match first.sql(SERVES).await {
                Ok(told) => told,
                Err(error) => return Ok(Err(format!("{error:#}"))),
            };
            let serves = told.ends_with("|f") && !told.starts_with('|');
            Ok(if serves { Ok(()) } else { Err(format!("{} does not serve yet", first.zone())) })
        })
        .await?;
        for command in &self.0.facts.after_opening {
            tell.note(&format!(
                "now, for another collation, on {}'s host: {command}",
                first.zone()
            ));
        }
        Ok(())
    }

    async fn close(&self, how: Undo, tell: &dyn Tell) -> Result<()> {
        let Some(primary) = self.0.primary().await? else {
            let first = self.0.first();
            if self.0.is_gone(first) {
                return self.forget(how, tell);
            }
            // It was never declared: nothing serves, and nothing will.
            return first.tell(Order::Disable).await;
        };
        if self.0.is_gone(primary) && !how.discard_writes {
            return Err(self.0.without_primary(primary.zone()));
        }
        freeze(&self.0).await?;
        let serves = match primary.sql(SERVES).await {
            _ if self.0.is_gone(primary) => false,
            Ok(told) => told.ends_with("|f"),
            Err(_) => false,
        };
        if serves && !how.discard_writes {
            follow_back(&self.0, primary, tell).await?;
        }
        // The primary last: what it writes until then still reaches whoever follows it.
        let (last, others): (Vec<&Recipient>, Vec<&Recipient>) =
            self.0.here().partition(|peer| peer.facts.peer.id == primary.facts.peer.id);
        for peer in others.into_iter().chain(last) {
            tell.tell(&format!("stopping {}", peer.zone()));
            peer.tell(Order::Disable).await?;
            peer.stop().await?;
            // A sitter that was killed leaves its server running: none may write when the donor opens.
            peer.rest().await?;
        }
        if !how.discard_writes {
            self.drain(primary, tell).await?;
        }
        // Of one that is gone, and is started some day, the sitter sees it there (rule K8).
        let says = self.0.here().next().context("no peer of the shard is left")?;
        let _: Value = says.verb("retract", &["--id", &self.0.facts.id]).await?;
        Ok(())
    }

    /// No peer is left that its state could be read or changed by.
    fn forget(&self, how: Undo, tell: &dyn Tell) -> Result<()> {
        let zone = self.0.first().zone();
        if !how.discard_writes {
            return Err(self.0.without_primary(zone));
        }
        tell.note(&format!(
            "nobody is left who could write it into the cluster state of shard {:?} that this was undone: \
             {zone} would serve if it were started",
            self.0.first().facts.shard
        ));
        Ok(())
    }

    /// Waits until the donor has all that the shard wrote.
    async fn drain(&self, primary: &Recipient, tell: &dyn Tell) -> Result<()> {
        let donor = &self.0.donor;
        let shard = primary.control().await?;
        let is_level = |donor: &Control| {
            (donor.timeline, donor.checkpoint) == (shard.timeline, shard.checkpoint)
        };
        let promoted = donor.control().await?.timeline > shard.timeline;
        // One that never served wrote nothing that the donor lacks. Where one has served, and ended without
        // order, the control file may still be as it was before: only its state tells.
        let never_served = ["shut down", "shut down in recovery", "in archive recovery"];
        let never_served = never_served.contains(&shard.state.as_str());
        if promoted || (never_served && is_level(&donor.control().await?)) {
            return Ok(());
        }
        if !shard.state.starts_with("shut down") {
            bail!(
                "{} was not shut down in an orderly way (\"{}\"): it may have writes that the donor \
                 lacks; start its sitter and roll back again, or give them up with --discard-writes",
                primary.zone(),
                shard.state
            );
        }
        until(self.0.facts.inventory.limits.service_seconds, tell, async || {
            let replayed: Lsn = position(&donor.sql("select pg_last_wal_replay_lsn()").await?)?;
            Ok(if replayed > shard.checkpoint {
                Ok(())
            } else {
                Err(format!(
                    "the donor is at {replayed}, the shard ended after {}",
                    shard.checkpoint
                ))
            })
        })
        .await
        .context(
            "the donor lacks writes of the shard: start the shard's sitters and roll back again",
        )?;
        donor.sql("checkpoint").await?;
        if !is_level(&donor.control().await?) {
            bail!("the donor is not what the shard was: {:?}, {shard:?}", donor.control().await?);
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Step for OpenRecipient {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.open(tell).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let told = self.0.first().sql(SERVES).await?;
        let position = position(told.split('|').next().unwrap_or_default())?;
        let next = self.0.first().sql(NEXT_TRANSACTION).await?;
        Ok(json!({ "openedAt": position, "nextTransaction": next }))
    }

    async fn undo(&self, how: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.close(how, tell).await?)
    }
}
