//! A disk that hangs: who waits for it cannot even be killed.

use super::{
    World,
    filesystems::{ZfsFile, isolated},
    limit,
};
use anyhow::{Context, Result, ensure};
use cluster::Role;
use manatee::shard::Peer;
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, io::Write};

/// Makes whoever waits for this pool wait until this is dropped.
struct Hanging(Pid);

impl Hanging {
    fn new(daemon: u32) -> Result<Hanging> {
        let daemon = i32::try_from(daemon).ok().and_then(Pid::from_raw).context("no process")?;
        kill_process(daemon, Signal::STOP)?;
        Ok(Hanging(daemon))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // It is a child of ours that runs until the test has ended.
        kill_process(self.0, Signal::CONT).expect("the daemon of the file system");
    }
}

/// This peer has lost its database and comes back with one on that pool.
fn move_to(pool: &str, world: &World, peer: &Peer) -> Result<()> {
    peer.kill_host()?;
    fs::remove_dir_all(peer.data())?;
    let mut file = fs::File::options().append(true).open(peer.config_file())?;
    write!(file, "\n[storage]\nbackend = \"zfs\"\nname = \"{pool}/{}\"\n", peer.zone())?;
    peer.start_sitter()?;
    world.wait_back(peer)
}

/// The disk of the primary hangs. Its sitter answers still, and leaves so that the sync can take over; when the disk
/// is back the peer is an async.
#[test]
fn the_disk_of_the_primary_hangs() {
    on_zfs("hung_disk::the_disk_of_the_primary_hangs", |_| Ok(()));
}

/// Its PostgreSQL has just died: what is to start it again hangs, and nobody can be asked.
#[test]
fn the_disk_hangs_while_postgresql_is_started() {
    on_zfs("hung_disk::the_disk_hangs_while_postgresql_is_started", |peer| {
        let server = peer.psql("select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")?;
        let server = server[0][0].as_deref().context("no server")?.parse()?;
        Ok(kill_process(Pid::from_raw(server).context("no process")?, Signal::KILL)?)
    });
}

fn on_zfs(test: &str, before: fn(&Peer) -> Result<()>) {
    isolated(test, |place| {
        let pool = ZfsFile::new(place, 2048);
        let Some(daemon) = pool.daemon() else {
            println!("not done: a pool that the kernel serves cannot be held up");
            return;
        };
        take_over(&pool.parent("manatee"), daemon, before).expect("a takeover");
    });
}

fn take_over(pool: &str, daemon: u32, before: fn(&Peer) -> Result<()>) -> Result<()> {
    let world = World::start()?;
    let peer = world.lose_primary()?;
    move_to(pool, &world, peer)?;
    world.shard.wait_whole(limit())?;
    // Everybody moves up twice.
    world.survive_the_primary()?;
    world.shard.wait_whole(limit())?;
    world.survive_the_primary()?;
    world.shard.wait_whole(limit())?;
    ensure!(world.in_role(Role::Primary)?.zone() == peer.zone(), "another one is primary");
    let generation = world.generation()?;
    before(peer)?;
    let hanging = Hanging::new(daemon)?;
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone != peer.zone())
    })?;
    world.wait_for_writes()?;
    let status = peer.status().context("its sitter does not answer")?;
    ensure!(!status.in_session, "it is in a session: {status:?}");
    ensure!(status.failure.is_some(), "it does not say what is wrong: {status:?}");
    ensure!(world.generation()? == generation.next(), "one takeover, one generation");
    drop(hanging);
    world.wait_back(peer)?;
    world.finish()
}
