//! What coming back costs, measured: `make bench-rebuild`. Nothing is asserted of how long it takes.

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
use manatee::{
    backup::{Part, Progress, Remote, SEED, SnapshotRequest, StreamRequest},
    shard::{Peer, Volumes},
    sitter::config::Config,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
};
use tokio::sync::watch;

/// How large the database is, in MiB, where nothing else is asked for.
const SIZE: u64 = 2048;
/// What the deposed primary has that nobody else has, in MiB.
const OWN: u64 = 10;
/// Each way is timed so often, in turns.
const ROUNDS: usize = 3;
/// How long anything may take here.
const LIMIT: Millis = Millis(900_000);

#[test]
#[ignore = "a benchmark: make bench-rebuild"]
fn rebuild() {
    isolated("bench::rebuild", |place| run(place).expect("a benchmark"));
}

fn run(place: &Path) -> Result<()> {
    let size = std::env::var("MANATEE_BENCH_MIB").ok().map(|text| text.parse()).transpose()?;
    let size: u64 = size.unwrap_or(SIZE);
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
    deposed(&world)?;
    full_copy(&world, &snapshots)?;
    let runtime = tokio::runtime::Runtime::new()?;
    throughput(&world, &snapshots, &parent, size, &runtime)?;
    world.finish()
}

fn rows(mebibytes: u64) -> String {
    let rows = mebibytes * 1024;
    format!("insert into noise select gen_random_bytes(1000) from generate_series(1, {rows})")
}

/// From the start of its sitter until a peer streams.
fn until_streaming(world: &World, peer: &Peer) -> Result<u64> {
    let start = clock::now();
    peer.start_sitter()?;
    world.shard.wait_for(LIMIT, "it to stream again", |view| {
        let view = view.peer(peer.zone());
        view.role() == Some(Role::Async) && view.postgres() == "streaming"
    })?;
    Ok((clock::now() - start).0)
}

fn deposed(world: &World) -> Result<()> {
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
    let took = until_streaming(world, old)?;
    let log = fs::read_to_string(old.log_file())?;
    ensure!(log.contains("the database was rewound"), "it came back otherwise: {log}");
    println!("a deposed primary that wrote {OWN} MiB alone is back as async after {took} ms:");
    // Its recovery from the crash is part of that, as of every start.
    let came_back = log.rfind(" starts peer=").and_then(|at| log[..at].rfind('\n'));
    println!("{}", &log[came_back.unwrap_or_default()..]);
    Ok(())
}

fn full_copy(world: &World, snapshots: &Btrfs) -> Result<()> {
    let peer = world.in_role(Role::Async)?;
    peer.kill_host()?;
    let name = DatasetName::new(peer.zone())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        snapshots.unmount(&name).await?;
        snapshots.destroy(&name).await
    })?;
    let took = until_streaming(world, peer)?;
    println!("a peer without a database is back as async after {took} ms, by a full snapshot");
    Ok(())
}

/// The same data by three ways, in turns.
fn throughput(
    world: &World,
    snapshots: &Btrfs,
    parent: &Path,
    size: u64,
    runtime: &tokio::runtime::Runtime,
) -> Result<()> {
    let primary = world.in_role(Role::Primary)?;
    let config = Config::load(&primary.config_file())?;
    let remote = Remote::new(&config.backup_address().to_string(), config.secret(), None)?;
    let made = runtime.block_on(remote.snapshot(&SnapshotRequest { purpose: SEED.to_owned() }))?;
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let ways: [&dyn Fn() -> Result<()>; 3] = [
            &|| plain(parent, primary.zone(), &made.name, round),
            &|| runtime.block_on(by_the_service(&remote, snapshots, &made.guid, round)),
            &|| base_backup(primary, parent, round),
        ];
        for (way, times) in ways.iter().zip(&mut times) {
            let start = clock::now();
            way()?;
            times.push((clock::now() - start).0.max(1));
        }
        // What came would fill the file system.
        runtime.block_on(snapshots.destroy(&DatasetName::new(&format!("bench-{round}"))?))?;
        let plain = parent.with_file_name(format!("plain-{round}"));
        let mut delete = Command::new("btrfs");
        delete.args(["-q", "subvolume", "delete"]).arg(plain.join(&made.name));
        ensure!(delete.status()?.success(), "{} cannot be deleted", plain.display());
        fs::remove_dir_all(parent.with_file_name(format!("base-{round}")))?;
    }
    for (what, mut times) in
        ["btrfs send | btrfs receive", "the backup service", "pg_basebackup"].into_iter().zip(times)
    {
        times.sort_unstable();
        let median = times[times.len() / 2];
        println!("{what}: {} MiB/s (median of {times:?} ms)", size * 1000 / median);
    }
    Ok(())
}

/// From where btrfs keeps the snapshots of a dataset of ours.
fn plain(parent: &Path, zone: &str, snapshot: &str, round: usize) -> Result<()> {
    let into = parent.with_file_name(format!("plain-{round}"));
    fs::create_dir(&into)?;
    let from = parent.join(zone).join("snapshots").join(snapshot).join(snapshot);
    let mut send =
        Command::new("btrfs").args(["send", "-q"]).arg(from).stdout(Stdio::piped()).spawn()?;
    let stream = send.stdout.take().context("a pipe")?;
    let received =
        Command::new("btrfs").args(["receive", "-q"]).arg(&into).stdin(stream).status()?;
    ensure!(send.wait()?.success() && received.success(), "btrfs send | btrfs receive failed");
    Ok(())
}

async fn by_the_service(
    remote: &Remote,
    snapshots: &Btrfs,
    guid: &str,
    round: usize,
) -> Result<()> {
    let request = StreamRequest {
        receiver: "benchmark".to_owned(),
        part: Part::Full { to: guid.to_owned() },
        accepted: snapshots.features(),
        rate: None,
    };
    let started = remote.begin(&request).await?;
    let into = DatasetName::new(&format!("bench-{round}"))?;
    let mut stream = snapshots.receive(&into).await?;
    let (progress, _) = watch::channel(Progress::default());
    let done = remote.pull(&started, &mut stream, &progress).await?;
    snapshots.finish(stream).await?;
    println!("  {} MiB as {} MiB on the wire", done.bytes >> 20, done.transferred >> 20);
    Ok(())
}

fn base_backup(primary: &Peer, parent: &Path, round: usize) -> Result<()> {
    let config = Config::load(&primary.config_file())?;
    let (host, port) = primary.host();
    let programs = adapters_bin()?;
    let status = Command::new(programs.join("pg_basebackup"))
        .args(["--checkpoint=fast", "--host", &host.to_string(), "--port", &port.to_string()])
        .args(["--username", &config.replication.user, "--pgdata"])
        .arg(parent.with_file_name(format!("base-{round}")))
        .env("PGPASSWORD", config.replication.password.unwrap_or_default())
        .status()?;
    ensure!(status.success(), "pg_basebackup failed");
    Ok(())
}

/// The newest of Debian's.
fn adapters_bin() -> Result<std::path::PathBuf> {
    let entries = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL of Debian")?;
    let newest = entries.flatten().map(|entry| entry.path().join("bin")).max();
    newest.context("no PostgreSQL of Debian")
}
