//! What a cut-over costs, measured: `make bench-transplant`. Nothing is asserted of how long it takes.
//!
//! Beside each move the way of a runbook is timed, by the same writer on the same donor: stop it, send all,
//! start what came.

use super::{filesystems::isolated, ground::Ground, harness::Move};
use adapters::clock;
use anyhow::{Context, Result, ensure};
use manatee::shard::DONOR;
use std::{path::Path, process::Command};

/// Sizes of the database where nothing else is asked for, in GB.
const SIZES: &str = "0.2 1 4";

#[test]
#[ignore = "a benchmark: make bench-transplant"]
fn cut_over() {
    isolated("bench::cut_over", |place| run(place).expect("a benchmark"));
}

fn run(place: &Path) -> Result<()> {
    let sizes = std::env::var("MANATEE_BENCH_SIZES").unwrap_or_else(|_| SIZES.to_owned());
    let sizes = sizes.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
    println!("outage of a writer of 100 rows a second");
    println!(
        "{:>7}  {:<18} {:>12} {:>12} {:>12}",
        "SIZE", "WAY", "RUNBOOK", "CUT-OVER", "ALL OF IT"
    );
    for size in sizes.context("sizes in GB")? {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let mebibytes = (size * 1e9 / f64::from(1 << 20)).round() as u64;
        for way in [Way::Directory, Way::Btrfs, Way::Snapshots] {
            let (runbook, ours, whole) = time(place, mebibytes, way)?;
            let seconds = |millis: u64| format!("{}.{:02} s", millis / 1000, millis % 1000 / 10);
            println!(
                "{:>7}  {:<18} {:>12} {:>12} {:>12}",
                format!("{size} GB"),
                way.name(),
                seconds(runbook),
                seconds(ours),
                seconds(whole)
            );
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Directories, by streaming.
    Directory,
    /// btrfs, by streaming.
    Btrfs,
    /// btrfs, by snapshots.
    Snapshots,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Directory => "dir, streaming",
            Way::Btrfs => "btrfs, streaming",
            Way::Snapshots => "btrfs, snapshots",
        }
    }
}

/// In milliseconds: without a database by the runbook, without one by the move, and all of the move.
fn time(place: &Path, mebibytes: u64, way: Way) -> Result<(u64, u64, u64)> {
    // Also the copy of the runbook, and what both write meanwhile.
    let ground = match way {
        Way::Directory => Ground::directory(place)?,
        Way::Btrfs | Way::Snapshots => Ground::btrfs(place, 6 * mebibytes + 4096)?,
    };
    let mut moved = Move::on(&ground, |options| options.peers = 1)?;
    if way == Way::Snapshots {
        moved.ask_for_snapshots(&ground)?;
    }
    moved.stage.donor_sql("create extension pgcrypto; create table noise (b bytea)")?;
    let mut left = mebibytes;
    while left > 0 {
        let part = left.min(16);
        left -= part;
        moved.stage.donor_sql(&format!(
            "insert into noise select gen_random_bytes(1000) from generate_series(1, {})",
            part * 1024
        ))?;
    }
    moved.stage.donor_sql("checkpoint")?;
    moved.wait_for_writes_to(DONOR)?;

    let begun = clock::now();
    runbook(&moved, way)?;
    moved.wait_for_writes_to(DONOR)?;
    let by_runbook = moved.writer.longest_gap_since(begun).length().0;

    let begun = clock::now();
    moved.stage.transplant(&["run", "--yes"])?;
    let whole = (clock::now() - begun).0;
    moved.wait_for_writes_to("amber")?;
    let by_move = moved.writer.longest_gap_since(begun).length().0;
    moved.check_peer(moved.primary())?;
    moved.diary.forget();
    Ok((by_runbook, by_move, whole))
}

/// Stops the donor, sends all of it elsewhere, and starts what came in its place.
fn runbook(moved: &Move, way: Way) -> Result<()> {
    let data = moved.stage.data();
    let stage = data.parent().and_then(Path::parent).context("a directory above it")?;
    moved.stage.donor_service("stop")?;
    let script = match way {
        Way::Directory => {
            "mkdir came && chown --reference=donor/data came && chmod 700 came && \
             tar --create --directory=donor/data . | tar --extract --directory=came && sync -f came && \
             mv donor/data sent && mv came donor/data"
        }
        Way::Btrfs | Way::Snapshots => {
            "btrfs -q subvolume snapshot -r donor sent && mkdir came && \
             btrfs -q send sent | btrfs -q receive came && \
             btrfs -q subvolume snapshot came/sent came/here && sync -f came && \
             mv donor was && mv came/here donor"
        }
    };
    let mut shell = Command::new("bash");
    let ended = shell.args(["-euo", "pipefail", "-c", script]).current_dir(stage).status()?;
    ensure!(ended.success(), "the runbook failed");
    moved.stage.donor_service("start").map(drop)
}
