//! What is away: the coordination, a database, a sitter that was told to stop.

use super::{World, slowly};
use adapters::clock;
use anyhow::{Context, Result, ensure};
use cluster::{Millis, Role};
use std::fs;

/// The coordination takes no writes, or is gone, until every session has expired, and comes back. As long as the
/// primary and its sync see each other, clients notice nothing.
#[test]
fn losing_coordination_alone_stops_nobody() -> Result<()> {
    // As long as the lease: a sync on a busy machine answers within it.
    let session = Millis(6000);
    let world = World::start_as("", |options| {
        options.session_timeout = session.0 as f64 / 1000.0;
    })?;
    let failed = world.count_failures();
    for peer in world.shard.peers() {
        ensure!(peer.ping()?.is_none(), "{}: {:?}", peer.zone(), peer.ping()?);
    }
    let away = world.take_coordination_away()?;
    world.wait("every session to be lost", |view| {
        let lost = |status: &manatee::status::PeerStatus| !status.in_session;
        view.peers.iter().all(|peer| peer.status.as_ref().is_ok_and(lost))
    })?;
    let problem = world.shard.peer(0).ping()?.context("it is not healthy without a session")?;
    ensure!(problem.starts_with("no coordination session: "), "{problem}");
    // Longer than any proof from before the outage could last: the answers of the sync carry it.
    let without = clock::now();
    let longer = slowly(Millis(session.0 + 500));
    world.wait("one more lease to pass", |_| clock::now() - without > longer)?;
    world.wait_for_writes()?;
    world.ensure_unnoticed(failed)?;
    away.give_back()?;
    world.finish()
}

/// The primary's sitter is told to stop: its PostgreSQL ends first, the session at once after it, and
/// the sync takes over without waiting for an expiry.
#[test]
fn a_sitter_that_is_told_to_stop_hands_over_at_once() -> Result<()> {
    // No expiry in this test's time: what happens, happens because the session was ended.
    let world = World::start_with("session_timeout = 300.0")?;
    let old = world.in_role(Role::Primary)?;
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    let mark = clock::now();
    old.stop_sitter()?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    world.wait_for_writes()?;
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    old.start_sitter()?;
    world.finish()
}

/// The primary's database is damaged so that PostgreSQL cannot start. It says so, and steps aside for
/// the sync; then it is rebuilt.
#[test]
fn a_primary_whose_database_is_damaged_steps_aside() -> Result<()> {
    // The sync has as long to come up.
    let world = World::start_with("[health]\ngive_up = 5.0")?;
    let old = world.in_role(Role::Primary)?;
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    fs::remove_file(old.dataset().join("data/global/pg_control"))?;
    old.kill_postgres()?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    world.wait_for_writes()?;
    let log = fs::read_to_string(old.log_file())?;
    ensure!(log.contains("pg_control"), "the log does not say what is wrong: {log}");
    world.finish()
}

/// The primary's PostgreSQL runs and answers nobody. Its sitter stops it by force and steps aside for
/// the sync.
#[test]
fn a_primary_whose_postgresql_hangs_steps_aside() -> Result<()> {
    let world = World::start_with("[health]\ngive_up = 5.0\n[postgres]\nquery_timeout = 2.0")?;
    let old = world.in_role(Role::Primary)?;
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    old.pause_postgres()?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    world.wait_for_writes()?;
    world.finish()
}

/// A superuser takes away what makes commits wait for the sync. The sitter puts it back by itself.
#[test]
fn what_a_superuser_weakens_is_put_back() -> Result<()> {
    let world = World::start()?;
    let primary = world.in_role(Role::Primary)?;
    let names = || -> Result<Option<String>> {
        Ok(primary.psql("show synchronous_standby_names")?[0][0].clone())
    };
    let before = names()?;
    for sql in [
        "alter system set synchronous_standby_names = ''",
        "alter system set synchronous_commit = 'off'",
        "select pg_reload_conf()",
    ] {
        primary.psql(sql)?;
    }
    let file = primary.dataset().join("data/postgresql.auto.conf");
    world.wait("it to be put back", |_| {
        let undone = fs::read_to_string(&file).is_ok_and(|text| !text.contains("synchronous"));
        undone && names().is_ok_and(|now| now == before)
    })?;
    world.finish()
}

/// The primary's disk is replaced by an empty one. It does not create a database in place of the one
/// that it had, but steps aside for the sync.
#[test]
fn a_primary_that_lost_its_database_creates_none() -> Result<()> {
    // Long enough for a sitter to come back and look before the sync takes over without that.
    let world = World::start_with("session_timeout = 8.0")?;
    let old = world.in_role(Role::Primary)?;
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    old.kill_host()?;
    fs::remove_dir_all(old.dataset().join("data"))?;
    fs::remove_file(old.dataset().join("manatee.json"))?;
    old.start_sitter()?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    let log = fs::read_to_string(old.log_file())?;
    ensure!(log.contains("rule=\"X3\""), "the log does not say what it lost: {log}");
    let created = log.matches("creating a database").count();
    ensure!(created <= 1, "a database was created in place of the old one: {log}");
    world.finish()
}

/// What a sitter costs: measured and printed, with a generous bound on memory.
#[test]
fn a_sitter_is_small() -> Result<()> {
    let world = World::start()?;
    for peer in world.shard.peers() {
        let usage = peer.sitter_usage()?;
        let (zone, mebibytes) = (peer.zone(), usage.resident >> 20);
        println!(
            "{zone}: {mebibytes} MiB resident, {} ms of processor since its start",
            usage.processor.0
        );
        ensure!(mebibytes < 60, "{zone}: {mebibytes} MiB");
    }
    world.finish()
}
