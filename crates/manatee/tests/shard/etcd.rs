//! A shard that meets in a real etcd.

use super::World;
use adapters::{clock, testing::Etcd};
use anyhow::{Result, ensure};
use cluster::Role;

/// Setup, the loss of each server in turn, a server that accepts and never answers, the loss of the
/// primary's host: all of it through etcd, and nothing is lost.
#[test]
fn a_shard_over_etcd() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let etcd = Etcd::start(directory.path(), 3)?;
    let world = World::start_as("", |options| {
        options.coordination = Some(etcd.url());
        options.session_timeout = 4.0;
    })?;
    let generation = world.generation()?;
    for server in 0..3 {
        etcd.kill(server);
        world.wait_for_writes()?;
        etcd.launch(server)?;
        etcd.wait_serving(server)?;
    }
    ensure!(world.generation()? == generation, "a server that is lost costs no takeover");
    etcd.freeze(0);

    let (old, mark) = (world.in_role(Role::Primary)?, clock::now());
    old.kill_host()?;
    let lost = old.zone().to_owned();
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone != lost)
    })?;
    world.wait_for_writes()?;
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    etcd.thaw(0);
    old.start_sitter()?;
    world.wait_back(old)?;
    world.finish()
}
