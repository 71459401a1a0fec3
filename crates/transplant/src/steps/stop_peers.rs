//! The other peers of a donor that is a shard: they would promote themselves, so that their sitters' files
//! are kept aside, too.

use super::{stop_standbys::StopStandbys, until};
use crate::{DonorKind, ShardFacts, inventory::DonorStandby, manatee};
use adapters::service::Order;
use anyhow::{Context, Result};
use cluster::Millis;
use saga::Tell;

impl StopStandbys {
    async fn tell(&self, standby: &DonorStandby, orders: [Order; 2]) -> Result<()> {
        let limit = Millis(self.0.facts.inventory.limits.service_seconds * 1000);
        for order in orders {
            let told = standby.service.tell(&standby.host, order, limit).await;
            told.with_context(|| format!("{order:?}: standby {}", standby.name))?;
        }
        Ok(())
    }

    /// In the order of the chain.
    fn peers(&self) -> Vec<&DonorStandby> {
        let others = self.0.facts.shard.iter().flat_map(|shard| &shard.others);
        others.filter_map(|peer| manatee::entry(&self.0.donor.config, peer)).collect()
    }

    pub(super) async fn stop_peers(&self, tell: &dyn Tell) -> Result<()> {
        let shard = &self.0.first().facts.shard;
        // The tail of the chain first: whoever is before it notices nothing.
        for standby in self.peers().into_iter().rev() {
            // Who took over meanwhile would be stopped with what it took.
            self.look().await?;
            tell.tell(&format!("stopping {}", standby.name));
            self.tell(standby, [Order::Disable, Order::Stop]).await?;
            if let Some(file) = &standby.sitter {
                manatee::fence(&standby.host, file, shard).await?;
            }
        }
        self.gone(tell).await
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
                // By snapshots nothing runs there yet.
                Ok(if scene.by_snapshots() || first.sql(streams).await? == "1" {
                    Ok(())
                } else {
                    Err(format!("{} does not stream from the donor yet", first.zone()))
                })
            })
            .await?;
        }
        Ok(())
    }

    pub(super) async fn start_peers(&self, tell: &dyn Tell) -> Result<()> {
        let donor = &self.0.donor;
        let limits = &self.0.facts.inventory.limits;
        for standby in self.peers() {
            if let Some(file) = &standby.sitter {
                manatee::unfence(&standby.host, file).await?;
            }
            self.tell(standby, [Order::Enable, Order::Start]).await?;
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
        if donor.config.kind == DonorKind::ManateeV1 {
            let now = manatee::look(&donor.config).await?;
            if now.registered.len() == 1 && self.0.lacks_standby() {
                tell.note("the donor has no sync left: it is read-only until a peer joins it");
                return Ok(());
            }
            if now.registered.first().is_some_and(|peer| self.0.is_donor(peer)) {
                return self.0.donor_open(tell).await;
            }
            tell.tell("the donor has failed over: whether it takes writes is not looked at");
        }
        Ok(())
    }
}
