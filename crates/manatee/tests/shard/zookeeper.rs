//! A shard that meets in a real ZooKeeper ensemble.

use super::{World, limit};
use adapters::testing::Ensemble;
use anyhow::{Context, Result, ensure};
use cluster::Role;

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
