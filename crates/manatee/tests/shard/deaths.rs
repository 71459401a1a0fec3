//! What dies, and comes back.

use super::{World, limit};
use adapters::clock;
use anyhow::{Result, ensure};
use cluster::Role;

/// The primary's host dies. The sync takes over, and the dead one, once it is back, rejoins at the
/// end of the chain with its old database kept aside.
#[test]
fn the_sync_takes_over_from_a_host_that_died() -> Result<()> {
    let world = World::start()?;
    let (old, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    let mark = clock::now();
    old.kill_host()?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    world.wait_for_writes()?;
    ensure!(world.generation()? == generation.next(), "one takeover, one generation");
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    old.start_sitter()?;
    world.wait_back(old)?;
    let kept = std::fs::read_dir(old.dataset())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .any(|name| name.starts_with("data.replaced-"));
    ensure!(kept, "the old database is kept");
    world.finish()
}

/// The primary's PostgreSQL alone dies. Its sitter starts it again, or the sync takes over; writes go
/// on, and nothing is lost.
#[test]
fn a_postgresql_that_died_is_replaced() -> Result<()> {
    let world = World::start()?;
    let (primary, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    let started = "select pg_postmaster_start_time()::text";
    let before = primary.psql(started)?;
    let (failed, mark) = (world.failed_writes(), clock::now());
    primary.kill_postgres()?;
    world.wait("a row that was tried after the crash", |_| world.failed_writes() > failed)?;
    world.wait_for_writes()?;
    let anew = primary.psql(started).is_ok_and(|now| now != before);
    ensure!(anew || world.generation()? > generation, "neither started again nor replaced");
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    world.finish()
}

/// The primary's sitter alone dies, and is started again: it adopts the PostgreSQL that went on, and
/// no client notices anything.
#[test]
fn a_sitter_that_died_is_not_noticed_by_clients() -> Result<()> {
    // Long enough for a sitter to come back within it.
    let world = World::start_with("session_timeout = 30.0")?;
    let (primary, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    let started = "select pg_postmaster_start_time()::text";
    let before = primary.psql(started)?;
    let failed = world.count_failures();
    primary.kill_sitter()?;
    world.wait_for_writes()?;
    primary.start_sitter()?;
    world.shard.wait_whole(limit())?;
    world.wait_for_writes()?;
    ensure!(primary.psql(started)? == before, "PostgreSQL was started anew");
    ensure!(world.generation()? == generation, "the generation changed");
    world.ensure_unnoticed(failed)?;
    world.finish()
}

/// The sync's host dies. The async takes its place, and writes go on.
#[test]
fn the_async_takes_the_place_of_a_sync_that_died() -> Result<()> {
    let world = World::start()?;
    let (sync, generation) = (world.in_role(Role::Sync)?, world.generation()?);
    let primary = world.in_role(Role::Primary)?.zone().to_owned();
    let next = world.in_role(Role::Async)?.zone().to_owned();
    let mark = clock::now();
    sync.kill_host()?;
    world.wait("the async to become sync", |view| view.peer(&next).role() == Some(Role::Sync))?;
    world.wait_for_writes()?;
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    ensure!(world.generation()? == generation.next(), "one new sync, one generation");
    ensure!(world.in_role(Role::Primary)?.zone() == primary, "the primary stays");
    sync.start_sitter()?;
    world.finish()
}

fn wait_for_no_async(world: &World) -> Result<()> {
    let state = || -> Result<String> {
        let output = world.adm(&["zk-state"])?;
        Ok(String::from_utf8(output.stdout)?)
    };
    world.wait("the async to be dropped from the state", |_| {
        state().is_ok_and(|json| json.contains("\"async\":[]") || json.contains("\"async\": []"))
    })
}

/// The async's host dies. No client notices anything.
#[test]
fn an_async_that_died_is_not_noticed_by_clients() -> Result<()> {
    let world = World::start()?;
    let (last, generation) = (world.in_role(Role::Async)?, world.generation()?);
    let failed = world.count_failures();
    last.kill_host()?;
    wait_for_no_async(&world)?;
    world.wait_for_writes()?;
    world.ensure_unnoticed(failed)?;
    ensure!(world.generation()? == generation, "the generation changed");
    last.start_sitter()?;
    world.finish()
}

/// The async is away, and was taken out, when the primary is lost as well. The last one left goes on as soon as
/// anybody is there: it takes in who comes back.
#[test]
fn the_last_one_left_goes_on_with_who_comes_back() -> Result<()> {
    let world = World::start()?;
    let (old, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    let (sync, spare) = (world.in_role(Role::Sync)?, world.in_role(Role::Async)?);
    spare.kill_host()?;
    wait_for_no_async(&world)?;
    old.kill_host()?;
    world.wait("the sync to miss another peer", |view| {
        let status = view.peer(sync.zone()).status.as_ref();
        status.is_ok_and(|status| status.reason.kind == "takeoverNoAsync")
    })?;
    ensure!(world.generation()? == generation, "nobody declares alone");
    spare.start_sitter()?;
    world.wait_for_writes()?;
    ensure!(world.in_role(Role::Primary)?.zone() == sync.zone());
    ensure!(world.generation()? == generation.next(), "one takeover, one generation");
    old.start_sitter()?;
    world.wait_back(old)?;
    world.finish()
}

/// All hosts die at once, as when the power fails, and come back: nothing acknowledged is lost.
#[test]
fn every_host_dies_at_once_and_comes_back() -> Result<()> {
    let world = World::start()?;
    for peer in world.shard.peers() {
        peer.kill_host()?;
    }
    for peer in world.shard.peers() {
        peer.start_sitter()?;
    }
    world.finish()
}
