//! Disks that take long, under the servers of an ensemble: a tracer holds up whoever waits for the disk.
//!
//! Not by a file system that is frozen: whatever waits for one could not be killed, and if the test were
//! killed meanwhile nobody would thaw it.

use super::{
    ensemble::{SESSION, Stage},
    network::alone,
    slowly,
};
use adapters::testing::EnsembleOptions;
use anyhow::{Context, Result, ensure};
use cluster::Millis;
use std::process::{Child, Command, Stdio};

/// Every wait for the disk of one server takes longer, until this is dropped.
struct SlowDisk {
    tracer: Child,
}

impl SlowDisk {
    /// By so much.
    fn under(stage: &Stage, index: usize, longer: Millis) -> Result<SlowDisk> {
        let process = stage.ensemble.process(index).context("the server was killed")?;
        let calls = "fsync,fdatasync,msync,sync_file_range";
        let tracer = Command::new("strace")
            .args(["--quiet=all", "--follow-forks", "--output=/dev/null"])
            .arg(format!("--trace={calls}"))
            .arg(format!("--inject={calls}:delay_exit={}", 1000 * longer.0))
            .arg(format!("--attach={process}"))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run strace")?;
        Ok(SlowDisk { tracer })
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // It is our child, not waited for yet: the id is its own. What it held up goes on.
        let _ = (self.tracer.kill(), self.tracer.wait());
    }
}

/// Of three servers that wait for their disks.
fn options() -> EnsembleOptions {
    EnsembleOptions {
        syncs: true,
        // In ticks of half a second: a server whose disk is slow is not to be sent away for it.
        lines: vec!["syncLimit=40".to_owned()],
        ..EnsembleOptions::default()
    }
}

/// That it took a server so long at least to have something on its disk.
fn ensure_slow(stage: &Stage, index: usize, least: Millis) -> Result<()> {
    let told = stage.ensemble.ask(index, "mntr").context("no answer")?;
    let name = "zk_max_sync_processor_queue_flush_time_ms";
    let value = told.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
    let slowest: f64 = value.trim().parse()?;
    println!("the slowest write of server {index} took {slowest} ms");
    ensure!(slowest >= least.0 as f64, "the disk of server {index} was not slow: {slowest} ms");
    Ok(())
}

/// A put, of which nobody but the operator takes notice.
fn have_something_written(stage: &Stage) -> Result<()> {
    stage.world.adm(&["freeze", "-r", "slow disks"])?;
    stage.world.adm(&["unfreeze"]).map(drop)
}

/// One disk of three takes longer than a session each time; its server, which does not lead, is the only one
/// that the peers ever reach.
#[test]
fn the_only_server_that_peers_reach_has_a_slow_disk() -> Result<()> {
    alone("slow_disks::the_only_server_that_peers_reach_has_a_slow_disk", || {
        let mut server = 0;
        let stage = Stage::start_with(options(), |ensemble, network| {
            let leader = ensemble.wait_for_leader().context("a leader")?;
            server = (0..3).find(|index| *index != leader).context("a follower")?;
            let others = (0..3).filter(|index| *index != server);
            others.flat_map(|other| (1..=3).map(move |peer| (peer, other))).try_for_each(
                |(peer, other)| network.cut(network.address(peer), ensemble.address(other).ip()),
            )
        })?;
        let (generation, failed) = (stage.world.generation()?, stage.world.count_failures());
        let slow = SlowDisk::under(&stage, server, slowly(Millis(SESSION.0 * 3 / 2)))?;
        for _ in 0..3 {
            have_something_written(&stage)?;
            stage.let_pass(SESSION)?;
            stage.world.wait_for_writes()?;
        }
        drop(slow);
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        ensure_slow(&stage, server, slowly(SESSION))?;
        stage.network.heal()?;
        stage.world.finish()
    })
}

/// All disks are so slow that whatever is written takes a good part of a session.
#[test]
fn the_disks_of_all_servers_are_slow() -> Result<()> {
    alone("slow_disks::the_disks_of_all_servers_are_slow", || {
        let stage = Stage::start_with(options(), |_, _| Ok(()))?;
        let (generation, failed) = (stage.world.generation()?, stage.world.count_failures());
        let under = |index| SlowDisk::under(&stage, index, Millis(1000));
        let slow: Vec<SlowDisk> = (0..3).map(under).collect::<Result<_>>()?;
        for _ in 0..3 {
            have_something_written(&stage)?;
            stage.let_pass(SESSION)?;
            stage.world.wait_for_writes()?;
        }
        drop(slow);
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        (0..3).try_for_each(|index| ensure_slow(&stage, index, Millis(1000)))?;
        stage.world.finish()
    })
}
