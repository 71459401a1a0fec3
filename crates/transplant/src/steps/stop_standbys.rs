//! Stops the donor's standbys: none of them can be promoted by mistake, and none is left behind. Those of
//! a shard would promote themselves: their sitters' files are kept aside, too.

use super::{Scene, until};
use crate::{DonorKind, ShardFacts, inventory::DonorStandby, manatee};
use adapters::service::Order;
use anyhow::{Context, Result};
use async_trait::async_trait;
use cluster::Millis;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

pub(super) struct StopStandbys(pub Arc<Scene>);

impl StopStandbys {
    async fn tell(&self, standby: &DonorStandby, orders: [Order; 2]) -> Result<()> {
        let limit = Millis(self.0.facts.inventory.limits.service_seconds * 1000);
        for order in orders {
            let told = standby.service.tell(&standby.host, order, limit).await;
            told.with_context(|| format!("{order:?}: standby {}", standby.name))?;
        }
        Ok(())
    }

    /// In the order of the chain, where there is one.
    fn standbys(&self) -> Vec<&DonorStandby> {
        let donor = &self.0.donor.config;
        match &self.0.facts.shard {
            Some(shard) => {
                shard.others.iter().filter_map(|peer| manatee::entry(donor, peer)).collect()
            }
            None => donor.standbys.iter().collect(),
        }
    }

    async fn stop(&self, tell: &dyn Tell) -> Result<()> {
        let shard = &self.0.first().facts.shard;
        // The tail of the chain first: whoever is before it notices nothing.
        for standby in self.standbys().into_iter().rev() {
            if self.0.facts.shard.is_some() {
                // Who took over meanwhile would be stopped with what it took.
                self.look().await?;
            }
            tell.tell(&format!("stopping {}", standby.name));
            self.tell(standby, [Order::Disable, Order::Stop]).await?;
            if let Some(file) = &standby.sitter {
                manatee::fence(&standby.host, file, shard).await?;
            }
        }
        if self.0.facts.shard.is_some() {
            self.gone(tell).await?;
        }
        Ok(())
    }

    /// The donor's shard, if it has not failed over. With a cluster state its primary is stopped already.
    async fn look(&self) -> Result<ShardFacts> {
        let donor = &self.0.donor.config;
        let now = manatee::look(donor).await?;
        if let Some(planned) = &self.0.facts.shard {
            let serves = donor.kind == DonorKind::ManateeV1;
            manatee::unchanged(donor.kind, planned, &now, serves)?;
        }
        Ok(now)
    }

    /// Waits until none of them could take over any more, and until the donor has come to terms with it.
    async fn gone(&self, tell: &dyn Tell) -> Result<()> {
        let (donor, scene) = (&self.0.donor, &self.0);
        let seconds = scene.facts.inventory.limits.service_seconds;
        until(seconds, tell, async || {
            let now = self.look().await?;
            let there = now.registered.iter().find(|peer| !scene.is_donor(peer));
            Ok(there.map_or(Ok(()), |peer| {
                Err(format!("{} is still registered", manatee::named(peer)))
            }))
        })
        .await?;
        if donor.config.kind == DonorKind::ManateeV1 {
            // Without a sync its primary closes, for which its server is started anew.
            until(seconds, tell, async || {
                let closed = donor.sql("show default_transaction_read_only").await;
                if closed.as_deref().ok() != Some("on") {
                    return Ok(Err("the donor is not read-only yet".to_owned()));
                }
                let streams =
                    "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
                let first = scene.first();
                Ok(if first.sql(streams).await? == "1" {
                    Ok(())
                } else {
                    Err(format!("{} does not stream from the donor yet", first.zone()))
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn start(&self, tell: &dyn Tell) -> Result<()> {
        let donor = &self.0.donor;
        let limits = &self.0.facts.inventory.limits;
        for standby in self.standbys() {
            if let Some(file) = &standby.sitter {
                manatee::unfence(&standby.host, file).await?;
            }
            self.tell(standby, [Order::Enable, Order::Start]).await?;
            if self.0.facts.shard.is_some() {
                // One after the other: in the first version they stand in the order in which they come.
                until(limits.service_seconds, tell, async || {
                    let now = manatee::look(&donor.config).await?;
                    let mut there = now.registered.iter();
                    Ok(if there.any(|peer| manatee::is_named(peer, standby)) {
                        Ok(())
                    } else {
                        Err(format!("{} has not registered yet", standby.name))
                    })
                })
                .await?;
            }
        }
        if donor.config.kind == DonorKind::ManateeV1 {
            let now = manatee::look(&donor.config).await?;
            if now.registered.first().is_some_and(|peer| self.0.is_donor(peer)) {
                return self.0.donor_open(tell).await;
            }
            tell.tell("the donor has failed over: whether it takes writes is not looked at");
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
        Ok(self.stop(tell).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        Ok(json!({}))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.start(tell).await?)
    }
}
