//! Shards whose databases lie on real file systems with snapshots.

use super::{
    filesystems::{BtrfsFile, ZfsFile, isolated, own_place},
    world::{LIMIT, World, turn},
};
use adapters::storage::{Btrfs, Dataset, Snapshots, Zfs};
use anyhow::{Context, Result, ensure};
use cluster::Role;
use manatee::shard::Volumes;
use std::path::Path;

/// Runs a test in namespaces of its own when it is its turn.
fn alone(test: &str, body: impl FnOnce(&Path) -> Result<()>) {
    // There, it takes its turn among the tests of that process, of which it is the only one.
    let turn = own_place().is_none().then(turn);
    isolated(test, |place| body(place).expect(test));
    drop(turn);
}

#[test]
fn a_shard_on_btrfs() {
    alone("volumes::a_shard_on_btrfs", |place| {
        let file = BtrfsFile::new(place, 4096);
        let parent = file.parent("manatee");
        life(Volumes::Btrfs(parent.clone()), &Btrfs::open(&parent)?)
    });
}

#[test]
fn a_shard_on_zfs() {
    alone("volumes::a_shard_on_zfs", |place| {
        let pool = ZfsFile::new(place, 4096);
        let parent = pool.parent("manatee");
        let opened = block_on(Zfs::open(&parent))?;
        life(Volumes::Zfs(parent), &opened)
    });
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// A shard is set up, its primary's host dies, and what it had is kept as a dataset when it comes back
/// and is copied anew; twice, so that the oldest of what is kept goes. A sitter that dies finds its
/// dataset mounted. Nothing that was acknowledged is lost.
fn life(volumes: Volumes, snapshots: &dyn Snapshots) -> Result<()> {
    let world = World::start_as("keep_aside = 1", |options| options.volumes = volumes)?;
    let datasets = || -> Result<Vec<Dataset>> { Ok(block_on(snapshots.datasets())?) };
    let zones: Vec<String> = datasets()?.iter().map(|one| one.name.to_string()).collect();
    let expected: Vec<_> = world.shard.peers().iter().map(|peer| peer.zone()).collect();
    ensure!(zones == expected, "one dataset each: {zones:?}");
    let sync = world.in_role(Role::Sync)?;
    sync.kill_sitter()?;
    sync.start_sitter()?;
    world.wait_for_writes()?;

    let mut kept = Vec::new();
    for _ in 0..2 {
        let old = world.in_role(Role::Primary)?;
        old.kill_host()?;
        world.wait("a takeover", |view| {
            view.primary().is_some_and(|primary| primary.zone != old.zone())
        })?;
        world.wait_for_writes()?;
        old.start_sitter()?;
        world.wait("the old primary to come back as async", |view| {
            view.peer(old.zone()).role() == Some(Role::Async)
        })?;
        world.shard.wait_whole(LIMIT)?;
        kept.push(format!("{}.replaced-", old.zone()));
        let found = datasets()?;
        let aside = found.iter().find(|one| one.name.as_str().starts_with(&kept[kept.len() - 1]));
        let aside =
            aside.with_context(|| format!("nothing of {} is kept: {found:?}", old.zone()))?;
        ensure!(aside.mounted.is_none(), "what is kept is mounted: {aside:?}");
        let taken = block_on(snapshots.list(&aside.name))?;
        ensure!(taken.len() == 1, "one snapshot, of when it was set aside: {taken:?}");
        let mounted = found.iter().filter(|one| one.mounted.is_some()).count();
        ensure!(mounted == 3, "one is mounted for each peer: {found:?}");
    }
    world.finish()
}
