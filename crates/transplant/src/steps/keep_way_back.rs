//! Keeps the WAL that the donor would need to come level with the shard; undone, the donor does.

use super::{
    Scene, copy_back, fence_donor,
    open_replication::{Secret, make_slot_sql},
    position, until,
};
use crate::{
    donor::{literal, value},
    recipient::{REPLICATED, Recipient},
};
use adapters::clock;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use cluster::{Lsn, Millis};
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

/// The donor's slot at the shard's primary. A primary drops only slots whose names begin with its own word.
pub(crate) const SLOT: &str = "transplant_donor";

/// How long a donor may stand still, not streaming, before it is asked whether it ever can.
const PATIENCE: Millis = Millis(5000);

pub(super) struct KeepWayBack(pub Arc<Scene>);

/// Makes a peer keep what it has from its last checkpoint on. A standby can, too.
pub(super) async fn make_slot(peer: &Recipient) -> Result<()> {
    peer.sql(&make_slot_sql(&literal(SLOT))).await.map(drop)
}

/// Settings of which a standby of this primary needs at least as much.
pub(super) async fn least(primary: &Recipient) -> Result<String> {
    primary.sql(&least_sql()).await
}

/// Gives them as lines of a file of settings.
pub(crate) fn least_sql() -> String {
    let names: Vec<String> = REPLICATED.iter().map(|(name, _)| literal(name)).collect();
    let names = names.join(", ");
    format!("select name || ' = ' || setting from pg_settings where name in ({names})")
}

/// Drops it.
async fn drop_slot(peer: &Recipient) -> Result<()> {
    peer.sql(&drop_slot_sql()).await.map(drop)
}

pub(crate) fn drop_slot_sql() -> String {
    format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = {}",
        literal(SLOT)
    )
}

/// Makes the donor follow the shard, and waits until it is level, while the shard goes on. Where the WAL that
/// it needs is not kept any more, it is copied anew first.
pub(super) async fn follow_back(scene: &Scene, primary: &Recipient, tell: &dyn Tell) -> Result<()> {
    let donor = &scene.donor;
    copy_back::place(scene, tell).await?;
    let Secret { password } = primary.verb("secret", &[]).await?;
    if come_level(scene, primary, &password, tell).await? == Way::Level {
        return Ok(());
    }
    donor.halt().await?;
    drop_slot(primary).await?;
    make_slot(primary).await?;
    copy_back::copy_back(scene, primary, &password, tell).await?;
    match come_level(scene, primary, &password, tell).await? {
        Way::Level => Ok(()),
        Way::Lost => bail!("{} keeps too little WAL for a copy to follow it", primary.zone()),
    }
}

/// Whether the donor can come level.
#[derive(PartialEq, Eq)]
enum Way {
    Level,
    /// What is between is nowhere any more.
    Lost,
}

async fn come_level(
    scene: &Scene,
    primary: &Recipient,
    password: &str,
    tell: &dyn Tell,
) -> Result<Way> {
    let donor = &scene.donor;
    make_slot(primary).await?;
    let word = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let facts = &primary.facts;
    let conninfo = format!(
        "host={} port={} user={} password={} application_name=transplant_donor",
        facts.peer.ip,
        facts.port,
        word(&facts.replication_user),
        word(password)
    );
    let settings = format!(
        "primary_conninfo = {}\nprimary_slot_name = {}\nrecovery_target_timeline = 'latest'\n\
         hot_standby = on\n{}",
        value(&conninfo),
        value(SLOT),
        least(primary).await?
    );
    fence_donor::close(donor, &settings).await?;
    // One that follows another peer already learns of this one.
    if donor.is_running().await? {
        donor.sql("select pg_reload_conf()").await?;
    }
    donor.start().await.context("the donor cannot be started to follow the shard")?;
    let limits = &scene.facts.inventory.limits;
    let mut way = Way::Level;
    let mut waits_at = (Lsn::default(), clock::now());
    until(limits.catch_up_seconds, tell, async || {
        let streams = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        let replayed = position(&donor.sql("select pg_last_wal_replay_lsn()").await?)?;
        if donor.sql(streams).await? != "1" {
            if waits_at.0 != replayed {
                waits_at = (replayed, clock::now());
            } else if clock::now() - waits_at.1 > PATIENCE && is_lost(primary, replayed).await? {
                way = Way::Lost;
                return Ok(Ok(()));
            }
            return Ok(Err("the donor does not stream from the shard yet".to_owned()));
        }
        let written = position(&primary.sql("select pg_current_wal_lsn()").await?)?;
        let lag = written.byte().saturating_sub(replayed.byte());
        Ok(if lag <= limits.lag_bytes {
            Ok(())
        } else {
            Err(format!("the donor is {} MiB behind", lag >> 20))
        })
    })
    .await?;
    Ok(way)
}

/// Whether what comes after this position is not there any more: the slot is lost, or was made too late.
async fn is_lost(primary: &Recipient, after: Lsn) -> Result<bool> {
    let asked = format!(
        "select exists (select from pg_replication_slots where slot_name = {} and wal_status = 'lost') \
         or ({after} < pg_current_wal_lsn() and not exists (select from pg_ls_waldir() \
         where right(name, 16) = right(pg_walfile_name({after}), 16)))",
        literal(SLOT),
        after = format_args!("'{after}'::pg_lsn"),
    );
    Ok(primary.sql(&asked).await? == "t")
}

#[async_trait(?Send)]
impl Step for KeepWayBack {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, _: &dyn Tell) -> Result<(), StepError> {
        Ok(make_slot(self.0.serving().await?).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        Ok(json!({ "slot": SLOT }))
    }

    async fn undo(&self, how: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        let Some(primary) = self.0.opened(how).await? else { return Ok(()) };
        if !how.discard_writes {
            if self.0.is_gone(primary) {
                return Err(self.0.without_primary(primary.zone()).into());
            }
            if let Some(state) = self.0.made().await? {
                self.0.check_serves(primary, &state).await?;
            }
            follow_back(&self.0, primary, tell).await?;
        }
        Ok(())
    }

    async fn release(&self, _: &dyn Tell) -> Result<(), StepError> {
        for peer in self.0.here() {
            drop_slot(peer).await?;
        }
        Ok(())
    }
}
