//! The shard opens, with the first peer alone. Undone, it is closed, with all that it wrote in the donor.

use super::{
    COMPARE, Scene,
    keep_way_back::follow_back,
    opened::{NEXT_TRANSACTION, is_as_declared, never_served},
    position, until,
};
use crate::{donor::Control, manatee, recipient::Recipient};
use adapters::service::Order;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use cluster::{ClusterState, Lsn};
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct OpenRecipient(pub Arc<Scene>);

/// Says whether a server takes writes, and where it is.
const SERVES: &str = "select case when pg_is_in_recovery() then null \
    when current_setting('default_transaction_read_only') = 'on' then null \
    else pg_current_wal_lsn() end, pg_is_in_recovery()";

/// Keeps the shard as it is; any of its peers can say so.
pub(super) async fn freeze(scene: &Scene) -> Result<()> {
    if scene.made().await?.is_some_and(|state| !state.is_frozen()) {
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
            patroni.is_held(true, false).await?;
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
        let scene = &self.0;
        let Some(state) = scene.made().await? else { return self.close_unnamed(how, tell).await };
        // Frozen, nobody could take over in its place.
        self.check_there(&state, how)?;
        freeze(scene).await?;
        // From here on it stays the same one.
        let state = scene.made().await?.ok_or_else(|| scene.without_state())?;
        let primary = self.check_there(&state, how)?;
        if !how.discard_writes {
            scene.check_serves(primary, &state).await?;
            let serves = primary.sql(SERVES).await;
            if serves.as_ref().is_ok_and(|told| told.ends_with("|f")) {
                follow_back(scene, primary, tell).await?;
            } else {
                // Before anybody is stopped who could still take over from it.
                let control = primary.control().await?;
                if !self.ended_well(&state, &control)? {
                    let why = serves.map_or_else(
                        |error| format!("{error:#}"),
                        |told| format!("it says {told:?}"),
                    );
                    return Err(not_shut_down(primary.zone(), &control).context(why));
                }
            }
        }
        self.stop(Some(primary), tell).await?;
        if !how.discard_writes {
            self.drain(primary, &state, tell).await?;
        }
        // Of one that is gone, and is started some day, the sitter sees it there (rule K8).
        let says = scene.here().next().context("no peer of the shard is left")?;
        let _: Value = says.verb("retract", &["--id", &scene.facts.id]).await?;
        Ok(())
    }

    /// The primary by this state, whose host has to be there unless what it has is given up.
    fn check_there(&self, state: &ClusterState, how: Undo) -> Result<&Recipient> {
        let primary = self.0.primary_of(state)?;
        if self.0.is_gone(primary) && !how.discard_writes {
            return Err(self.0.without_primary(primary.zone()));
        }
        Ok(primary)
    }

    /// Stops all sitters and their servers, so that nobody writes when the donor opens.
    async fn stop(&self, primary: Option<&Recipient>, tell: &dyn Tell) -> Result<()> {
        // The primary last: what it writes until then still reaches whoever follows it.
        let is_primary =
            |peer: &Recipient| primary.is_some_and(|one| one.facts.peer.id == peer.facts.peer.id);
        let (last, others): (Vec<&Recipient>, Vec<&Recipient>) =
            self.0.here().partition(|peer| is_primary(peer));
        let mut stopped: Vec<&str> = Vec::new();
        for peer in others.into_iter().chain(last) {
            tell.tell(&format!("stopping {}", peer.zone()));
            stop(peer).await.with_context(|| match stopped.as_slice() {
                [] => format!("{} was not stopped", peer.zone()),
                stopped => format!(
                    "{} was not stopped; of {} the sitters are stopped and disabled: where one of them is \
                     to take over, enable and start them, and unfreeze the shard, first",
                    peer.zone(),
                    stopped.join(", ")
                ),
            })?;
            stopped.push(peer.zone());
        }
        Ok(())
    }

    /// Where there is no cluster state of this transplant: it was never declared, or that is lost.
    async fn close_unnamed(&self, how: Undo, tell: &dyn Tell) -> Result<()> {
        let first = self.0.first();
        if self.0.is_gone(first) && !how.discard_writes {
            return Err(self.0.without_primary(first.zone()));
        }
        if how.discard_writes {
            self.stop(None, tell).await?;
            let gone = self.0.peers.iter().filter(|peer| self.0.is_gone(peer));
            let gone: Vec<&str> = gone.map(Recipient::zone).collect();
            if !gone.is_empty() {
                tell.note(&format!(
                    "there is no cluster state of shard {:?} that could say that this was undone: {} would \
                     serve if it were started",
                    first.facts.shard,
                    gone.join(", ")
                ));
            }
            return Ok(());
        }
        self.0.never_opened().await?;
        // Nothing serves, and nothing will.
        stop(first).await?;
        self.0.never_opened().await
    }

    /// Whether this control file of the primary, whose server has ended, tells how far what the shard took goes.
    fn ended_well(&self, state: &ClusterState, control: &Control) -> Result<bool> {
        let proven: Control = self.0.outcome(COMPARE)?;
        // The one that opened the shard, and never served, wrote nothing that the donor lacks. Whoever took
        // over later has what was acknowledged before, whether or not it has served.
        Ok(if never_served(&proven, control) {
            is_as_declared(state, &self.0.first().facts.peer, &proven)
        } else {
            control.state == "shut down"
        })
    }

    /// Waits until the donor has all that the shard wrote.
    async fn drain(
        &self,
        primary: &Recipient,
        state: &ClusterState,
        tell: &dyn Tell,
    ) -> Result<()> {
        let donor = &self.0.donor;
        let shard = primary.control().await?;
        let is_level = |donor: &Control| {
            (donor.timeline, donor.checkpoint) == (shard.timeline, shard.checkpoint)
        };
        if !self.ended_well(state, &shard)? {
            return Err(not_shut_down(primary.zone(), &shard));
        }
        // As it is when this was cut off after it had come this far: the donor need not run.
        if is_level(&donor.control().await?) {
            return Ok(());
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

fn not_shut_down(zone: &str, control: &Control) -> anyhow::Error {
    anyhow::anyhow!(
        "{zone} was not shut down in an orderly way (\"{}\"): it may have writes that the donor lacks; start the \
         sitters of all peers of the shard (enable those that are disabled), wait until it takes writes, and roll \
         back again. The shard is frozen meanwhile: if {zone} cannot be started, let another take over with \
         `manatee adm unfreeze` first. Or give those writes up with --discard-writes",
        control.state
    )
}

/// Stops the sitter of a peer, and keeps it stopped.
async fn stop(peer: &Recipient) -> Result<()> {
    peer.tell(Order::Disable).await?;
    peer.stop().await?;
    // A sitter that was killed leaves its server running: none may write when the donor opens.
    peer.rest().await
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
