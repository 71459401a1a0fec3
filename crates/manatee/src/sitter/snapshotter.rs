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
    // At once, before there is anything to send: nothing of this sitter is let go of.
    if !*released {
        release_leftovers(volume).await?;
        *released = true;
    }
    if !volume.dataset().join("data/PG_VERSION").exists() {
        return Ok(soon);
    }
    // However the database came here.
    volume.expect_nothing()?;
    let snapshots = volume.snapshots().await?;
    let list = snapshots.list(volume.name()).await?;
    destroy(volume, old_seeds(&list), "an old snapshot for seeding").await?;
    if !config.enabled {
        return Ok(soon);
    }
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let age = newest(&list, now).map(|time| now - time);
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
    let mut list = snapshots.list(volume.name()).await?;
    let all = list.len();
    list.retain(|one| one.name.time().is_none_or(|time| time <= now));
    if list.len() < all {
        tracing::warn!(
            "{} snapshots are of a time that is yet to come; they are not counted, and stay until then: \
             was the clock of this host ahead? Destroy them with `manatee adm snapshot destroy`",
            all - list.len()
        );
    }
    destroy(volume, superfluous(&list, config.keep, &BTreeSet::new()), "an old snapshot").await?;
    Ok(soon)
}

/// Destroys snapshots. One that stays is told of, and keeps no other one from going.
async fn destroy(volume: &Volume, names: Vec<SnapshotName>, what: &str) -> Result<()> {
    let snapshots = volume.snapshots().await?;
    for name in names {
        match snapshots.destroy_snapshot(volume.name(), &name).await {
            Ok(()) => tracing::info!(snapshot = %name, "{what} was destroyed"),
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(snapshot = %name, "{what} cannot be destroyed: {error:#}");
            }
        }
    }
    Ok(())
}

/// The snapshots that peers were seeded with, all but the newest: those are what the next difference can
/// begin at.
fn old_seeds(list: &[Snapshot]) -> Vec<SnapshotName> {
    let free = |one: &&Snapshot| {
        one.name.purpose() == Purpose::For(SEED) && one.holds == 0 && one.clones.is_empty()
    };
    let mut seeds: Vec<_> = list.iter().filter(free).map(|one| one.name.clone()).collect();
    seeds.sort_by_key(SnapshotName::time);
    seeds.truncate(seeds.len().saturating_sub(SEEDS));
    seeds
}

/// When the newest periodic one was made, in ms since the epoch. One of a time that is yet to come says
/// nothing of that.
fn newest(list: &[Snapshot], now: u64) -> Option<u64> {
    let periodic = list.iter().filter(|one| one.name.purpose() == Purpose::Periodic);
    periodic.filter_map(|one| one.name.time()).filter(|time| *time <= now).max()
}

fn free_percent(path: &Path) -> Result<u8> {
    let found = statvfs(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let percent = (u128::from(found.f_bavail) * 100).checked_div(u128::from(found.f_blocks));
    Ok(u8::try_from(percent.unwrap_or(0)).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::storage::Guid;

    fn list(names: &[&str]) -> Vec<Snapshot> {
        let snapshot = |name: &&str| Snapshot {
            name: SnapshotName::new(name).expect(name),
            guid: Guid::new(*name),
            created: jiff::Timestamp::UNIX_EPOCH,
            size: None,
            holds: 0,
            clones: Vec::new(),
        };
        names.iter().map(snapshot).collect()
    }

    #[test]
    fn a_clock_that_was_ahead_stops_no_snapshots() {
        let all = list(&["0000000000005", "0000000000009", "0000000000007-seed"]);
        for (now, expected) in [(4, None), (5, Some(5)), (8, Some(5)), (9, Some(9)), (20, Some(9))]
        {
            assert_eq!(newest(&all, now), expected, "at {now}");
        }
    }

    #[test]
    fn the_newest_snapshots_for_seeding_stay() {
        let names: Vec<_> = (1..=6).map(|time| format!("{time:013}-seed")).collect();
        let mut all = list(&names.iter().rev().map(String::as_str).collect::<Vec<_>>());
        all.extend(list(&["0000000000001", "mine"]));
        let old = |all: &[Snapshot]| -> Vec<String> {
            old_seeds(all).iter().map(ToString::to_string).collect()
        };
        assert_eq!(old(&all), names[..2]);
        // The third, in the order in which they lie there, is the fourth.
        all[2].holds = 1;
        assert_eq!(old(&all), names[..1]);
    }
}
