//! Shards of real sitters and real PostgreSQL under faults, each with a writer whose ledger of
//! acknowledged writes is held against the database afterwards. One at a time: each has three
//! servers and is sensitive to how long things take.

use adapters::clock;
use anyhow::{Context, Result, ensure};
use cluster::{Generation, Millis, Role};
use manatee::shard::{Peer, Shard, ShardOptions, ShardView, Writer};
use std::{
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tempfile::TempDir;
use tokio_postgres::NoTls;

/// How long anything that the shard does by itself may take. Generous: what takes longer than this
/// does not happen at all.
const LIMIT: Millis = Millis(60_000);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A shard that is whole, with a writer at work. Fields are dropped in this order.
struct World {
    writer: Writer,
    shard: Shard,
    _directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    fn start() -> Result<World> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new().prefix("manatee-test-").tempdir()?;
        let binary = env!("CARGO_BIN_EXE_manatee");
        let shard = Shard::start(&ShardOptions::new(binary, directory.path().join("shard")))?;
        shard.wait_whole(LIMIT)?;
        let writer = Writer::start(&shard)?;
        let world = World { writer, shard, _directory: directory, _turn: turn };
        world.wait_for_writes()?;
        Ok(world)
    }

    /// The peer that has this place.
    fn in_role(&self, role: Role) -> Result<&Peer> {
        let view = self.shard.view();
        let peer = view.peers.iter().find(|peer| peer.role() == Some(role));
        Ok(self.shard.peer_of(&peer.with_context(|| format!("nobody is {role}"))?.zone))
    }

    fn generation(&self) -> Result<Generation> {
        self.shard.view().generation().context("nobody knows a generation")
    }

    /// Waits until writes that began after this call are acknowledged.
    fn wait_for_writes(&self) -> Result<()> {
        let before = self.writer.acknowledged();
        self.wait("writes to be acknowledged", |_| self.writer.acknowledged() >= before + 20)
    }

    fn wait(&self, what: &str, condition: impl FnMut(&ShardView) -> bool) -> Result<()> {
        self.shard.wait_for(LIMIT, what, condition).map(drop)
    }

    fn adm(&self, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(env!("CARGO_BIN_EXE_manatee"))
            .args(["adm", "--coordination", &self.shard.coordination()])
            .args(["--shard", self.shard.name()])
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "adm {arguments:?}: {output:?}");
        Ok(output)
    }

    /// Waits until the shard is whole and takes writes, and checks the ledger on every peer.
    fn finish(self) -> Result<()> {
        self.shard.wait_whole(LIMIT)?;
        self.wait_for_writes()?;
        let ledger = self.writer.stop()?;
        let primary = self.shard.primary()?;
        let end = primary.psql("select pg_current_wal_flush_lsn()::text")?;
        let end = end[0][0].clone().context("no position")?;
        let report = ledger.check(primary)?;
        ensure!(report.is_good(), "on the primary {}: {report}", primary.zone());
        for peer in self.shard.peers() {
            let replayed =
                format!("select coalesce(pg_last_wal_replay_lsn() >= '{end}'::pg_lsn, true)::text");
            self.shard.wait_for(LIMIT, "all to be replayed everywhere", |_| {
                peer.psql(&replayed).is_ok_and(|rows| rows[0][0].as_deref() == Some("true"))
            })?;
            let report = ledger.check(peer)?;
            ensure!(report.is_good(), "on {}: {report}", peer.zone());
        }
        Ok(())
    }
}

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
    world.wait("the old primary to come back as async", |view| {
        view.peer(old.zone()).role() == Some(Role::Async)
    })?;
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
    let mark = clock::now();
    world.in_role(Role::Primary)?.kill_postgres()?;
    world.wait("a row that was tried after the crash", |_| {
        world.writer.handle().progress().unacknowledged > 0
    })?;
    world.wait_for_writes()?;
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    world.finish()
}

/// The primary's sitter alone dies, and is started again: it adopts the PostgreSQL that went on, and
/// no client notices anything.
#[test]
fn a_sitter_that_died_is_not_noticed_by_clients() -> Result<()> {
    let world = World::start()?;
    let (primary, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    let started = "select pg_postmaster_start_time()::text";
    let before = primary.psql(started)?;
    let failed = world.writer.handle().progress().unacknowledged;
    primary.kill_sitter()?;
    world.wait_for_writes()?;
    primary.start_sitter()?;
    world.shard.wait_whole(LIMIT)?;
    world.wait_for_writes()?;
    ensure!(primary.psql(started)? == before, "PostgreSQL was started anew");
    ensure!(world.generation()? == generation, "the generation changed");
    let now = world.writer.handle().progress().unacknowledged;
    ensure!(now == failed, "{} writes failed", now - failed);
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

/// The async's host dies. No client notices anything.
#[test]
fn an_async_that_died_is_not_noticed_by_clients() -> Result<()> {
    let world = World::start()?;
    let (last, generation) = (world.in_role(Role::Async)?, world.generation()?);
    let failed = world.writer.handle().progress().unacknowledged;
    last.kill_host()?;
    let state = || -> Result<String> {
        let output = world.adm(&["zk-state"])?;
        Ok(String::from_utf8(output.stdout)?)
    };
    world.wait("the async to be dropped from the state", |_| {
        state().is_ok_and(|json| json.contains("\"async\":[]") || json.contains("\"async\": []"))
    })?;
    world.wait_for_writes()?;
    let now = world.writer.handle().progress().unacknowledged;
    ensure!(now == failed, "{} writes failed", now - failed);
    ensure!(world.generation()? == generation, "the generation changed");
    last.start_sitter()?;
    world.finish()
}

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
    let world = World::start()?;
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
        ensure!(last_answer - resumed < LIMIT, "it still answers reads");
    }
    let lease = Millis(3000);
    let served = last_answer - resumed;
    println!("it answered reads for {} ms after it went on", served.0);
    ensure!(served < lease, "it answered reads for {} ms", served.0);
    ensure!(runtime.block_on(commit)?.is_err(), "a superseded primary acknowledged a write");
    world.wait("the old primary to come back as async", |view| {
        view.peer(old.zone()).role() == Some(Role::Async)
    })?;
    let stray = world.in_role(Role::Primary)?.psql("select count(*) from ledger where n = -1")?;
    ensure!(stray[0][0].as_deref() == Some("0"), "what was not acknowledged is not there");
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
