//! Makes the way back outlive the loss of the shard's primary. What another peer was seeded with begins
//! where its copy began, long after the donor ended: it could not give the donor what is between. So the
//! donor takes that now, closed as it is, and each peer keeps what comes after.

use super::{
    Scene, fence_donor,
    keep_way_back::{SLOT, follow_back, least, make_slot},
    position, until,
};
use crate::donor::literal;
use anyhow::Result;
use async_trait::async_trait;
use cluster::Lsn;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::Value;
use std::sync::Arc;

pub(super) struct LevelDonor(pub Arc<Scene>);

impl LevelDonor {
    async fn level(&self, tell: &dyn Tell) -> Result<()> {
        let (scene, donor) = (&self.0, &self.0.donor);
        let seconds = scene.facts.inventory.limits.catch_up_seconds;
        let primary = scene.serving().await?;
        let from = format!(
            "select restart_lsn from pg_replication_slots where slot_name = {}",
            literal(SLOT)
        );
        let mut kept = Lsn::default();
        for peer in &scene.peers {
            make_slot(peer).await?;
            kept = kept.max(position(&peer.sql(&from).await?)?);
        }
        follow_back(scene, primary, tell).await?;
        until(seconds, tell, async || {
            let replayed = position(&donor.sql("select pg_last_wal_replay_lsn()").await?)?;
            Ok(if replayed >= kept {
                Ok(())
            } else {
                Err(format!("the donor is at {replayed}, the peers keep from {kept} on"))
            })
        })
        .await?;
        // So that it begins there when it is started the next time.
        donor.sql("checkpoint").await?;
        let settings = least(primary).await?;
        donor.stop().await?;
        fence_donor::close(donor, &settings).await?;
        // What the donor has and no other peer would be a branch of its own if the primary were lost.
        let written = position(&primary.sql("select pg_current_wal_lsn()").await?)?;
        let others = scene.peers.iter().filter(|peer| peer.facts.peer.id != primary.facts.peer.id);
        for peer in others {
            until(seconds, tell, async || {
                let replayed = peer.replayed().await?;
                Ok(if replayed >= written {
                    Ok(())
                } else {
                    Err(format!("{} is at {replayed}, not yet at {written}", peer.zone()))
                })
            })
            .await?;
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Step for LevelDonor {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        if self.0.is_donor_gone() {
            tell.note("without the donor there is nothing to go back to: what is left is `commit`");
            return Ok(());
        }
        Ok(self.level(tell).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let donor = &self.0.donor;
        if self.0.is_donor_gone() {
            return Ok(Value::Null);
        }
        if donor.is_running().await? || !donor.is_closed().await? {
            return Err("the donor runs, or would start open for writes".into());
        }
        Ok(serde_json::to_value(donor.control().await?)?)
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(())
    }
}
