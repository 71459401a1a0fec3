//! Disks that stand still again and again, under the servers of an ensemble: file systems of their
//! own on loop devices, frozen and thawed, so that what is written or synced to them waits.
//!
//! Contract: within `alone` only, whose namespace of mounts keeps them from everybody else. A disk
//! that is dropped, also by a panic, is thawed and unmounted, and its loop device goes with it.

use super::{
    ensemble::{SESSION, Stage},
    network::{alone, run},
};
use adapters::testing::{Ensemble, EnsembleOptions};
use anyhow::{Context, Result, ensure};
use cluster::{Millis, Role};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

/// How long a disk stands still, and how long it goes on before it does again.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    still: Millis,
    going: Millis,
}

/// A file system of its own.
pub struct SlowDisk {
    mounted: PathBuf,
    /// Closed to end the thread, which thaws it.
    pulses: Option<(Sender<()>, JoinHandle<()>)>,
}

impl SlowDisk {
    /// Makes one, still as quick as any, and mounts it at `place`, with its image beside.
    pub fn make(place: &Path) -> Result<SlowDisk> {
        let image = place.with_extension("image");
        fs::create_dir_all(place)?;
        File::create(&image)?.set_len(256 << 20)?;
        let text = |path: &Path| path.display().to_string();
        run("mkfs.ext4", &["-q", "-F", &text(&image)])?;
        run("mount", &["-o", "loop", &text(&image), &text(place)])?;
        Ok(SlowDisk { mounted: place.to_owned(), pulses: None })
    }

    fn pulse(&mut self, pulse: Pulse) {
        let (end, ended) = channel();
        let mounted = self.mounted.clone();
        let thread = std::thread::spawn(move || {
            let goes_on = |time: Millis| {
                let told = ended.recv_timeout(Duration::from_millis(time.0));
                told == Err(RecvTimeoutError::Timeout)
            };
            loop {
                freeze("-f", &mounted);
                let go_on = goes_on(pulse.still);
                freeze("-u", &mounted);
                if !go_on || !goes_on(pulse.going) {
                    return;
                }
            }
        });
        self.pulses = Some((end, thread));
    }

    /// As quick again as any.
    fn calm(&mut self) {
        if let Some((end, thread)) = self.pulses.take() {
            drop(end);
            thread.join().expect("nothing in it panics");
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.calm();
        if let Err(error) = run("umount", &[&self.mounted.display().to_string()]) {
            eprintln!("{error:#}");
        }
    }
}

/// What was not frozen is not found to be slow, which the tests check; and thawing goes on.
fn freeze(how: &str, mounted: &Path) {
    match Command::new("fsfreeze").arg(how).arg(mounted).status() {
        Ok(status) if status.success() => {}
        failed => eprintln!("fsfreeze {how} {}: {failed:?}", mounted.display()),
    }
}

/// Three servers that wait for their disks, which can be slowed down.
fn start() -> Result<Stage> {
    let options = EnsembleOptions {
        syncs: true,
        // In ticks of half a second: a server whose disk is slow is not to be sent away for it.
        lines: vec!["syncLimit=40".to_owned()],
        ..EnsembleOptions::default()
    };
    Stage::start_with(options, |directory| {
        (0..3).map(|index| SlowDisk::make(&Ensemble::data_directory(directory, index))).collect()
    })
}

/// That it took a server so long at least to have something on its disk.
fn ensure_slow(stage: &Stage, index: usize, least: Millis) -> Result<()> {
    let told = stage.ensemble.four_letters(index, "mntr")?;
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

/// One disk of three stands still for longer than a session, again and again; its server is the only
/// one that the primary reaches.
#[test]
fn the_only_server_that_the_primary_reaches_has_a_slow_disk() -> Result<()> {
    alone("slow_disks::the_only_server_that_the_primary_reaches_has_a_slow_disk", || {
        let mut stage = start()?;
        let leader = stage.wait_for_leader()?;
        let server = (0..3).find(|index| *index != leader).context("a follower")?;
        let (generation, failed) = (stage.world.generation()?, stage.world.failed_writes());
        let primary = stage.world.in_role(Role::Primary)?.host().0;
        for other in (0..3).filter(|index| *index != server) {
            stage.network.cut(primary, stage.ensemble.address(other).ip())?;
        }
        let still = Millis(SESSION.0 * 3 / 2);
        stage.disks[server].pulse(Pulse { still, going: Millis(500) });
        for _ in 0..3 {
            have_something_written(&stage)?;
            stage.let_pass(SESSION)?;
            stage.world.wait_for_writes()?;
        }
        stage.disks[server].calm();
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        ensure_slow(&stage, server, SESSION)?;
        stage.network.heal()?;
        stage.world.finish()
    })
}

/// All disks stand still most of the time, so that nothing is stored but in between.
#[test]
fn the_disks_of_all_servers_are_slow() -> Result<()> {
    alone("slow_disks::the_disks_of_all_servers_are_slow", || {
        let mut stage = start()?;
        let (generation, failed) = (stage.world.generation()?, stage.world.failed_writes());
        let pulse = Pulse { still: Millis(1500), going: Millis(500) };
        stage.disks.iter_mut().for_each(|disk| disk.pulse(pulse));
        for _ in 0..3 {
            have_something_written(&stage)?;
            stage.let_pass(SESSION)?;
            stage.world.wait_for_writes()?;
        }
        stage.disks.iter_mut().for_each(SlowDisk::calm);
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        (0..3).try_for_each(|index| ensure_slow(&stage, index, Millis(500)))?;
        stage.world.finish()
    })
}
