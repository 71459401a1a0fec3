//! What coming back costs, measured: `make bench-rebuild`. Nothing is asserted of how long it takes.

mod parts;
mod streams;

use super::{
    filesystems::{BtrfsFile, isolated},
    world::World,
};
use adapters::{
    clock,
    storage::{Btrfs, DatasetName, Snapshots},
};
use anyhow::{Context, Result, ensure};
use cluster::{Millis, Role};
use jiff::Timestamp;
use manatee::{
    backup::Remote,
    shard::{Peer, Volumes},
    sitter::config::Config,
};
use std::{fs, path::Path, process::Command, thread};
use tokio::runtime::Runtime;

/// How large the database is, in MiB, where nothing else is asked for.
const SIZE: u64 = 2048;
/// What the deposed primary has that nobody else has, in MiB.
const OWN: u64 = 10;
/// How long anything may take here.
const LIMIT: Millis = Millis(900_000);

#[test]
#[ignore = "a benchmark: make bench-rebuild"]
fn rebuild() {
    isolated("bench::rebuild", |place| run(place).expect("a benchmark"));
}

fn run(place: &Path) -> Result<()> {
    let size = size()?;
    // Three copies, their WAL, and what a copying file system cannot use again at once.
    let file = BtrfsFile::new(place, 16 * size + 8192);
    let parent = file.parent("manatee");
    let snapshots = Btrfs::open(&parent)?;
    let world = World::start_as("", |options| options.volumes = Volumes::Btrfs(parent.clone()))?;
    let primary = world.in_role(Role::Primary)?;
    primary.psql("create extension pgcrypto; create table noise (b bytea)")?;
    for _ in 0..size / 16 {
        primary.psql(&rows(16))?;
    }
    world.shard.wait_whole(LIMIT)?;
    println!("a database of {size} MiB on btrfs");
    // What was written since the last checkpoint that both have is recovered, looked at and fetched again.
    deposed(&world, "no checkpoint since it was loaded")?;
    world.shard.wait_whole(LIMIT)?;
    world.in_role(Role::Primary)?.psql("checkpoint")?;
    deposed(&world, "one checkpoint since it was loaded")?;
    full_copy(&world, &snapshots)?;
    throughput(&world, &parent, &Runtime::new()?)?;
    for peer in world.shard.peers() {
        let peak = peer.sitter_usage()?.peak >> 20;
        println!("the sitter of {} had at most {peak} MiB of memory", peer.zone());
    }
    world.finish()
}

/// How large the database is to be, in MiB.
fn size() -> Result<u64> {
    let given = std::env::var("MANATEE_BENCH_MIB").ok().map(|text| text.parse()).transpose()?;
    Ok(given.unwrap_or(SIZE))
}

fn rows(mebibytes: u64) -> String {
    let rows = mebibytes * 1024;
    format!("insert into noise select gen_random_bytes(1000) from generate_series(1, {rows})")
}

/// From the start of its sitter until a peer is known to stream; in milliseconds, with the time when it was.
fn until_streaming(world: &World, peer: &Peer) -> Result<(u64, Timestamp)> {
    let start = clock::now();
    peer.start_sitter()?;
    world.shard.wait_for(LIMIT, "it to stream again", |view| {
        let view = view.peer(peer.zone());
        view.role() == Some(Role::Async) && view.postgres() == "streaming"
    })?;
    Ok(((clock::now() - start).0, Timestamp::now()))
}

/// `when` says what its database has been through.
fn deposed(world: &World, when: &str) -> Result<()> {
    let old = world.in_role(Role::Primary)?;
    let others = [world.in_role(Role::Sync)?, world.in_role(Role::Async)?];
    let sync = others[0].zone().to_owned();
    let position = || old.psql("select pg_current_wal_flush_lsn() - '0/0'");
    let before = position()?;
    others.iter().try_for_each(|peer| peer.kill_host().map(drop))?;
    thread::scope(|scope| -> Result<()> {
        // Ends with an error when its server is killed: nobody acknowledges it.
        let sql = format!("set default_transaction_read_only = off; {}", rows(OWN));
        scope.spawn(move || old.psql(&sql).err());
        let number = |rows: Vec<Vec<Option<String>>>| -> Option<u64> {
            rows.first()?.first()?.as_ref()?.parse().ok()
        };
        let before = number(before).context("a position")?;
        let start = clock::now();
        while number(position()?).is_none_or(|now| now - before < OWN << 20) {
            ensure!(clock::now() - start < Millis(30_000), "{OWN} MiB were not written in time");
        }
        old.kill_host()?;
        Ok(())
    })?;
    others.iter().try_for_each(|peer| peer.start_sitter())?;
    world.shard.wait_for(LIMIT, "the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync)
    })?;
    world.wait_for_writes()?;
    let (took, known) = until_streaming(world, old)?;
    println!(
        "a deposed primary that wrote {OWN} MiB alone is back as async after {took} ms, {when}:"
    );
    let sitter = fs::read_to_string(old.log_file())?;
    // The log of all its starts; the last one is meant.
    let last = sitter.rfind(" starts peer=").and_then(|at| sitter[..at].rfind('\n'));
    let sitter = &sitter[last.map_or(0, |at| at + 1)..];
    let home = Config::load(&old.config_file())?.dataset;
    let server = fs::read_to_string(home.join("log/postgresql.log"))?;
    parts::show(sitter, &server, took, known)
}

fn full_copy(world: &World, snapshots: &Btrfs) -> Result<()> {
    let peer = world.in_role(Role::Async)?;
    peer.kill_host()?;
    let name = DatasetName::new(peer.zone())?;
    Runtime::new()?.block_on(async {
        snapshots.unmount(&name).await?;
        snapshots.destroy(&name).await
    })?;
    let (took, _) = until_streaming(world, peer)?;
    println!("a peer without a database is back as async after {took} ms, by a full snapshot");
    Ok(())
}

/// The same data by three ways, in turns.
fn throughput(world: &World, parent: &Path, runtime: &Runtime) -> Result<()> {
    let primary = world.in_role(Role::Primary)?;
    let config = Config::load(&primary.config_file())?;
    let remote = Remote::new(&config.backup_address().to_string(), config.secret(), None)?;
    let backup = |round| base_backup(primary, parent, round).map(|()| clock::now());
    let clear = |round| Ok(fs::remove_dir_all(parent.with_file_name(format!("base-{round}")))?);
    let ground = streams::Ground { remote: &remote, parent, zone: primary.zone(), runtime };
    streams::throughput(&ground, &[("pg_basebackup", &backup, &clear)])
}

fn base_backup(primary: &Peer, parent: &Path, round: usize) -> Result<()> {
    let config = Config::load(&primary.config_file())?;
    let (host, port) = primary.host();
    let status = Command::new(adapters::postgres::programs(None)?.0.join("pg_basebackup"))
        .args(["--checkpoint=fast", "--host", &host.to_string(), "--port", &port.to_string()])
        .args(["--username", &config.replication.user, "--pgdata"])
        .arg(parent.with_file_name(format!("base-{round}")))
        .env("PGPASSWORD", config.replication.password.unwrap_or_default())
        .status()?;
    ensure!(status.success(), "pg_basebackup failed");
    Ok(())
}
