//! What stands still: a shard that an operator froze, a host that stopped in time.

use super::{World, limit, slowly};
use adapters::clock;
use anyhow::{Result, ensure};
use cluster::{Millis, Role};
use tokio_postgres::NoTls;

/// A frozen shard loses its primary and does not fail over; unfrozen, it does.
#[test]
fn a_frozen_shard_fails_over_only_when_it_is_unfrozen() -> Result<()> {
    let world = World::start()?;
    let (old, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    world.adm(&["freeze", "-r", "a test"])?;
    old.kill_host()?;
    world.wait("the sync to say that it may not take over", |view| {
        let status = view.peer(&sync).status.as_ref();
        status.is_ok_and(|status| status.reason.kind == "takeoverFrozen")
    })?;
    ensure!(world.generation()? == generation, "a frozen shard keeps its generation");
    ensure!(world.shard.view().primary().is_none(), "nobody takes writes");
    world.adm(&["unfreeze"])?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    world.wait_for_writes()?;
    old.start_sitter()?;
    world.finish()
}

/// The primary's host stops like a machine that is suspended, longer than its session, and goes on:
/// it acknowledges nothing, it answers reads no longer than the lease, and it becomes deposed.
#[test]
fn a_primary_that_was_frozen_in_time_serves_nobody() -> Result<()> {
    // As long as the lease.
    let session = Millis(8000);
    let world = World::start_as("", |options| {
        options.session_timeout = session.0 as f64 / 1000.0;
    })?;
    let old = world.in_role(Role::Primary)?;
    let sync = world.in_role(Role::Sync)?.zone().to_owned();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let connect = || {
        let mut config = tokio_postgres::Config::new();
        config.host_path(old.dataset().join("run")).port(old.host().1);
        config.user("postgres").dbname("postgres");
        runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        })
    };
    let (reader, writer) = (connect()?, connect()?);
    old.pause()?;
    world.wait("the sync to take over", |view| view.peer(&sync).is_open())?;
    let stored = world.adm(&["zk-state"])?.stdout;
    let stored: serde_json::Value = serde_json::from_slice(&stored)?;
    ensure!(stored["deposed"][0]["zoneId"] == old.zone(), "it is not deposed: {stored}");
    let resumed = clock::now();
    old.resume()?;
    // A commit of the superuser past the gate: only the rules about the sync stand in its way.
    let commit = runtime.spawn(async move {
        let sql = "set default_transaction_read_only = off; \
                   insert into ledger (n, peer) values (-1, 'superseded')";
        writer.batch_execute(sql).await
    });
    let mut last_answer = resumed;
    while runtime.block_on(reader.simple_query("select 1")).is_ok() {
        last_answer = clock::now();
        ensure!(last_answer - resumed < limit(), "it still answers reads");
    }
    let lease = slowly(session);
    let served = last_answer - resumed;
    println!("it answered reads for {} ms after it went on", served.0);
    ensure!(served < lease, "it answered reads for {} ms", served.0);
    ensure!(runtime.block_on(commit)?.is_err(), "a superseded primary acknowledged a write");
    world.wait_back(old)?;
    let stray = world.in_role(Role::Primary)?.psql("select count(*) from ledger where n = -1")?;
    ensure!(stray[0][0].as_deref() == Some("0"), "what was not acknowledged is not there");
    world.finish()
}
