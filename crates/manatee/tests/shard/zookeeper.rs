//! A shard that meets in a real ZooKeeper ensemble.

use super::passwords::set;
use super::{World, limit};
use adapters::testing::Ensemble;
use anyhow::{Context, Result, ensure};
use cluster::Role;
use std::{fs, os::unix::fs::PermissionsExt};

/// Setup, the loss of the ensemble's leader, a sitter that is killed and started again within its
/// session, the loss of the primary's host: all of it through ZooKeeper, and nothing is lost.
#[test]
fn a_shard_over_an_ensemble() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ensemble = Ensemble::start(directory.path(), 3)?;
    // Long enough for a sitter to come back within it.
    let world = World::start_at(ensemble.url(), "session_timeout = 8.0")?;
    let leader = ensemble.wait_for_leader().context("an ensemble has a leader")?;
    ensemble.kill(leader);
    world.wait_for_writes()?;
    ensemble.launch(leader)?;
    ensemble.wait_serving(leader)?;

    let (old, generation) = (world.in_role(Role::Primary)?, world.generation()?);
    old.kill_sitter()?;
    old.start_sitter()?;
    world.shard.wait_for(limit(), "each peer to be registered once", |_| {
        world.adm(&["zk-active"]).is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).matches("\"zoneId\"").count() == 3
        })
    })?;
    world.wait_for_writes()?;
    ensure!(world.generation()? == generation, "a sitter that is back in time costs no takeover");

    world.survive_the_primary()?;
    world.finish()
}

/// Credentials are given to sitters of a shard that was made without, one after the other, as the README says. The
/// last one closes it; takeovers go on before and after.
#[test]
fn credentials_come_to_a_shard_that_runs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ensemble = Ensemble::start(directory.path(), 1)?;
    let world = World::start_at(ensemble.url(), "")?;
    let secret = directory.path().join("zookeeper.password");
    fs::write(&secret, "secret\n")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let secret = secret.to_str().context("UTF-8")?;
    for peer in world.shard.peers() {
        set(peer, "zookeeper", &[("user", "manatee"), ("password_file", secret)])?;
    }
    world.adm(&["freeze", "-r", "open still"])?;
    world.adm(&["unfreeze"])?;
    for peer in world.shard.peers() {
        peer.stop_sitter()?;
        peer.start_sitter()?;
        world.shard.wait_whole(limit())?;
        world.wait_for_writes()?;
    }
    world.wait("the last one to close the shard", |_| {
        world.shard.peers().iter().any(|peer| {
            fs::read_to_string(peer.log_file())
                .is_ok_and(|log| log.contains("closed to everybody but our user"))
        })
    })?;
    let refused = world.adm(&["freeze", "-r", "by a stranger"]).map(drop);
    let refused = refused.err().context("a stranger froze the shard")?.to_string();
    ensure!(refused.contains("may not be written") && refused.contains("[zookeeper]"), "{refused}");
    world.survive_the_primary()?;
    world.finish()
}
