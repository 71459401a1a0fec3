//! How fast snapshots travel: by the backup service, and as `btrfs send | btrfs receive` has them.
//!
//! On a machine that does other work meanwhile the time of the processors tells more than that of the clock:
//! that of this process and of the commands that it ran is told as well. Here sender and receiver are both
//! in this process.
//!
//! What `btrfs receive` leaves is in memory; what the service has received is on the disk when it says so. So each way
//! is timed twice: until all has come, and until it is on the disk, to which end the file system is synchronised.

use super::super::filesystems::{BtrfsFile, isolated};
use adapters::{
    clock,
    storage::{Btrfs, DatasetName, Snapshots, Storage, Volume},
};
use anyhow::{Context, Result, ensure};
use axum::Router;
use cluster::Monotonic;
use manatee::backup::{
    Jobs, Limits, Part, Progress, Remote, SEED, Secret, Service, SnapshotRequest, StorageOutlet,
    StreamRequest, serve,
};
use std::{
    fs,
    io::{BufWriter, Write},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};
use tokio::{runtime::Runtime, sync::watch};

/// Each way is timed so often, in turns.
const ROUNDS: usize = 3;

#[test]
#[ignore = "a benchmark: make bench-streams"]
fn without_a_database() {
    isolated("bench::streams::without_a_database", |place| run(place).expect("a benchmark"));
}

fn run(place: &Path) -> Result<()> {
    let size = super::size()?;
    let file = BtrfsFile::new(place, 4 * size + 4096);
    let (parent, mountpoint) = (file.parent("manatee"), place.join("peer"));
    let runtime = Runtime::new()?;
    let volume = Volume::btrfs(&parent.join("peer").display().to_string(), &mountpoint)?;
    runtime.block_on(volume.prepare())?;
    fill(&mountpoint.join("data"), size)?;
    let secret = Secret::new("bench", "password");
    let service = Service {
        jobs: runtime.block_on(async {
            Jobs::new(Arc::new(StorageOutlet::new(Arc::new(volume))), Limits::default())
        }),
        secret: secret.clone(),
        tls: None,
        legacy: None,
        more: Router::new(),
    };
    let serving = runtime.block_on(serve((Ipv4Addr::LOCALHOST, 0).into(), service))?;
    let remote = Remote::new(&serving.address.to_string(), secret, None)?;
    println!("{size} MiB that do not compress, on btrfs");
    throughput(&Ground { remote: &remote, parent: &parent, zone: "peer", runtime: &runtime }, &[])
}

/// What looks like a database to the service, and like noise to everybody.
fn fill(data: &Path, mebibytes: u64) -> Result<()> {
    fs::create_dir(data)?;
    fs::write(data.join("PG_VERSION"), "15\n")?;
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(data.join("noise"))?);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..mebibytes << 17 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    Ok(file.into_inner()?.sync_all()?)
}

/// Where snapshots are sent from and to.
pub(super) struct Ground<'a> {
    /// The service that sends.
    pub remote: &'a Remote,
    /// Where the datasets are.
    pub parent: &'a Path,
    /// The dataset that is sent.
    pub zone: &'a str,
    pub runtime: &'a Runtime,
}

/// A way to bring the same data: its name, what it does, up to when all has come, and what clears away after it.
pub(super) type Way<'a> =
    (&'a str, &'a dyn Fn(usize) -> Result<Monotonic>, &'a dyn Fn(usize) -> Result<()>);

/// What a round took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Took {
    /// In milliseconds, until all had come.
    stream: u64,
    /// In milliseconds, until it was on the disk.
    whole: u64,
    /// Of processors, in milliseconds.
    processors: u64,
}

/// The same data by all ways, in turns.
pub(super) fn throughput(ground: &Ground<'_>, others: &[Way<'_>]) -> Result<()> {
    let snapshots = Btrfs::open(ground.parent)?;
    let purpose = SEED.to_owned();
    let made = ground.runtime.block_on(ground.remote.snapshot(&SnapshotRequest { purpose }))?;
    let into = |round: usize| ground.parent.with_file_name(format!("plain-{round}"));
    let name = |round: usize| DatasetName::new(&format!("bench-{round}"));
    let (plain, clear_plain) = (
        |round: usize| plain(ground, &made.name, &into(round)),
        |round: usize| {
            let mut delete = Command::new("btrfs");
            delete.args(["-q", "subvolume", "delete"]).arg(into(round).join(&made.name));
            ensure!(delete.status()?.success(), "{} cannot be deleted", into(round).display());
            Ok(())
        },
    );
    let bytes = std::cell::Cell::new(0);
    let (served, clear_served) = (
        |round: usize| {
            let served = by_the_service(ground.remote, &snapshots, &made.guid, name(round)?);
            let (came, at) = ground.runtime.block_on(served)?;
            bytes.set(came);
            Ok(at)
        },
        |round: usize| Ok(ground.runtime.block_on(snapshots.destroy(&name(round)?))?),
    );
    let mut ways: Vec<Way<'_>> = vec![
        ("btrfs send | btrfs receive", &plain, &clear_plain),
        ("the backup service", &served, &clear_served),
    ];
    ways.extend(others);
    let mut times = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        for ((_, way, _), times) in ways.iter().zip(&mut times) {
            sync(ground.parent)?;
            let (start, before) = (clock::now(), processor_time()?);
            let came = way(round)?;
            sync(ground.parent)?;
            times.push(Took {
                stream: (came - start).0.max(1),
                whole: (clock::now() - start).0.max(1),
                processors: processor_time()? - before,
            });
        }
        // What came would fill the file system.
        ways.iter().try_for_each(|(_, _, clear)| clear(round))?;
    }
    let mebibytes = (bytes.get() >> 20).max(1);
    for ((what, ..), times) in ways.iter().zip(times) {
        let median = |part: fn(&Took) -> u64| {
            let mut all: Vec<_> = times.iter().map(part).collect();
            all.sort_unstable();
            (all[all.len() / 2], all)
        };
        let ((stream, streams), (whole, wholes)) =
            (median(|took| took.stream), median(|took| took.whole));
        let processors = median(|took| took.processors).0 * 1024 / mebibytes;
        println!("{what}: {} MiB/s (median of {streams:?} ms)", mebibytes * 1000 / stream);
        println!(
            "  until it is on the disk: {} MiB/s (median of {wholes:?} ms), {processors} ms of processors \
             here for a GiB",
            mebibytes * 1000 / whole
        );
    }
    Ok(())
}

fn sync(parent: &Path) -> Result<()> {
    let synced = Command::new("btrfs").args(["filesystem", "sync"]).arg(parent).status()?;
    ensure!(synced.success(), "btrfs filesystem sync failed");
    Ok(())
}

/// How long this process, and those that it has waited for, have had a processor, in milliseconds.
fn processor_time() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(") ").context("a name")?.1;
    // utime, stime, cutime, cstime: the 14th field and on, of which two are before the name's end.
    let ticks: u64 = after.split(' ').skip(11).take(4).flat_map(str::parse::<u64>).sum();
    Ok(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// From where btrfs keeps the snapshots of a dataset of ours.
fn plain(ground: &Ground<'_>, snapshot: &str, into: &Path) -> Result<Monotonic> {
    fs::create_dir(into)?;
    let from = ground.parent.join(ground.zone).join("snapshots").join(snapshot).join(snapshot);
    let mut send =
        Command::new("btrfs").args(["send", "-q"]).arg(from).stdout(Stdio::piped()).spawn()?;
    let stream = send.stdout.take().context("a pipe")?;
    let received =
        Command::new("btrfs").args(["receive", "-q"]).arg(into).stdin(stream).status()?;
    ensure!(send.wait()?.success() && received.success(), "btrfs send | btrfs receive failed");
    Ok(clock::now())
}

async fn by_the_service(
    remote: &Remote,
    snapshots: &Btrfs,
    guid: &str,
    into: DatasetName,
) -> Result<(u64, Monotonic)> {
    let request = StreamRequest {
        receiver: "benchmark".to_owned(),
        part: Part::Full { to: guid.to_owned() },
        accepted: snapshots.features(),
        rate: None,
    };
    let started = remote.begin(&request).await?;
    let mut stream = snapshots.receive(&into).await?;
    let (progress, _) = watch::channel(Progress::default());
    let done = remote.pull(&started, &mut stream, &progress).await?;
    let came = clock::now();
    snapshots.finish(stream).await?;
    println!("  {} MiB as {} MiB on the wire", done.bytes >> 20, done.transferred >> 20);
    Ok((done.bytes, came))
}
