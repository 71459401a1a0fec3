//! Periodic snapshots of the database, and the removal of the oldest.
//!
//! One that fails is reported and tried again soon. With little room left on the file system it warns
//! early, and stops before there is none: a snapshot keeps what the database has deleted since.

use super::config::SnapshotsConfig;
use crate::backup::{SEED, release_leftovers};
use adapters::storage::{Purpose, Snapshot, SnapshotName, Storage, Volume, superfluous};
use anyhow::{Context, Result};
use rustix::fs::statvfs;
use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};
use tokio::time::sleep;

/// How many snapshots stay that peers were seeded with.
const SEEDS: usize = 4;

/// How often it looks, and how soon a failure is tried again, at most.
const RETRY: Duration = Duration::from_secs(60);

/// Makes snapshots until it is dropped.
pub(super) async fn run(storage: Arc<dyn Storage>, config: SnapshotsConfig) {
    let Some(volume) = storage.volume() else { return };
    let period = Duration::from_millis(config.period.millis().0);
    let mut released = false;
    loop {
        let pause = match turn(volume, &config, &mut released).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!("no snapshot, trying again: {error:#}");
                RETRY.min(period)
            }
        };
        sleep(pause).await;
    }
}

/// Does what is due, and says when to come again.
async fn turn(volume: &Volume, config: &SnapshotsConfig, released: &mut bool) -> Result<Duration> {
    let period = config.period.millis().0;
    let soon = RETRY.min(Duration::from_millis(period));
    if !volume.dataset().join("data/PG_VERSION").exists() {
        return Ok(soon);
    }
    if !*released {
        release_leftovers(volume).await?;
        *released = true;
    }
    let snapshots = volume.snapshots().await?;
    let list = snapshots.list(volume.name()).await?;
    forget_old_seeds(volume, &list).await?;
    if !config.enabled {
        return Ok(soon);
    }
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let age = newest(&list).map(|time| now.saturating_sub(time));
    if let Some(age) = age.filter(|age| *age < period) {
        return Ok(Duration::from_millis(period - age).min(RETRY));
    }
    let free = free_percent(volume.dataset())?;
    if free < config.stop_free {
        tracing::error!(
            "no snapshot is made: only {free} % of the file system of {} are free (snapshots.stop_free \
             is {}): destroy old snapshots or databases that were kept, or give it more room",
            volume.dataset().display(),
            config.stop_free
        );
        return Ok(soon);
    }
    if free < config.warn_free {
        tracing::warn!(
            "only {free} % of the file system of {} are free; below {} % no snapshots are made",
            volume.dataset().display(),
            config.stop_free
        );
    }
    let made = snapshots.snapshot(volume.name(), &SnapshotName::periodic(now)).await?;
    tracing::info!(snapshot = %made.name, "a snapshot was made");
    let list = snapshots.list(volume.name()).await?;
    for name in superfluous(&list, config.keep, &BTreeSet::new()) {
        let destroyed = snapshots.destroy_snapshot(volume.name(), &name).await;
        destroyed.with_context(|| format!("cannot destroy the old snapshot {name}"))?;
        tracing::info!(snapshot = %name, "an old snapshot was destroyed");
    }
    Ok(soon)
}

/// Destroys the snapshots that peers were seeded with, all but the newest: those are what the next
/// difference can begin at.
async fn forget_old_seeds(volume: &Volume, list: &[Snapshot]) -> Result<()> {
    let snapshots = volume.snapshots().await?;
    let free = |one: &&Snapshot| {
        one.name.purpose() == Purpose::For(SEED) && one.holds == 0 && one.clones.is_empty()
    };
    let mut seeds: Vec<_> = list.iter().filter(free).collect();
    seeds.sort_by_key(|one| one.name.time());
    seeds.truncate(seeds.len().saturating_sub(SEEDS));
    for old in seeds {
        snapshots.destroy_snapshot(volume.name(), &old.name).await?;
        tracing::info!(snapshot = %old.name, "an old snapshot for seeding was destroyed");
    }
    Ok(())
}

/// When the newest periodic one was made, in ms since the epoch.
fn newest(list: &[Snapshot]) -> Option<u64> {
    let periodic = list.iter().filter(|one| one.name.purpose() == Purpose::Periodic);
    periodic.filter_map(|one| one.name.time()).max()
}

fn free_percent(path: &Path) -> Result<u8> {
    let found = statvfs(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let percent = (u128::from(found.f_bavail) * 100).checked_div(u128::from(found.f_blocks));
    Ok(u8::try_from(percent.unwrap_or(0)).unwrap_or(100))
}
