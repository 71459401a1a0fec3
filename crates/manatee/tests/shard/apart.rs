//! Hosts that fall silent, and wires that are cut.

use super::{
    World,
    network::{Network, alone},
};
use adapters::clock;
use anyhow::{Result, ensure};
use cluster::Role;

/// A shard of three peers with a host each.
fn start(network: &Network, overrides: &str) -> Result<World> {
    World::start_as(overrides, |options| {
        options.hosts = (1..=3).map(|number| network.host(number)).collect();
    })
}

/// The primary's host loses its power and its network in one moment: no connection is closed, nobody
/// is told anything.
#[test]
fn the_sync_takes_over_from_a_host_that_fell_silent() -> Result<()> {
    alone("apart::the_sync_takes_over_from_a_host_that_fell_silent", || {
        let network = Network::make(3)?;
        let world = start(&network, "")?;
        let old = world.in_role(Role::Primary)?;
        let sync = world.in_role(Role::Sync)?.zone().to_owned();
        let mark = clock::now();
        network.isolate(old.host().0)?;
        old.kill_host()?;
        world.wait("the sync to take over", |view| {
            view.primary().is_some_and(|primary| primary.zone == sync)
        })?;
        world.wait_for_writes()?;
        println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
        network.heal()?;
        old.start_sitter()?;
        world.finish()
    })
}

/// The primary and its sync lose each other, and nobody else anything: no write is acknowledged that
/// the sync lacks, nobody is deposed, and writes go on when the wire is whole.
#[test]
fn a_primary_cut_from_its_sync_acknowledges_nothing() -> Result<()> {
    alone("apart::a_primary_cut_from_its_sync_acknowledges_nothing", || {
        let network = Network::make(3)?;
        // No expiry in this test's time.
        let world = start(&network, "session_timeout = 30.0")?;
        let (primary, sync) = (world.in_role(Role::Primary)?, world.in_role(Role::Sync)?);
        let generation = world.generation()?;
        network.cut(primary.host().0, sync.host().0)?;
        let before = world.failed_writes();
        world.wait("a row that nobody acknowledges", |_| world.failed_writes() > before)?;
        let ledger = world.writer.handle().ledger();
        // It may have to apply yet what it has.
        world.wait("all that was acknowledged to be on the sync", |_| {
            ledger.check(sync).is_ok_and(|report| report.is_good())
        })?;
        network.heal()?;
        world.wait_for_writes()?;
        ensure!(world.generation()? == generation, "the generation changed");
        world.finish()
    })
}
