//! A donor that Patroni looks after.

use super::{
    cluster::Cluster,
    harness::{Move, wait},
};
use anyhow::{Result, ensure};
use saga::Mode;
use serde_json::{Value, json};

fn prepare(nodes: usize, settings: Value) -> Result<Move<Cluster>> {
    let make = |directory: &_, setup: &_| Cluster::make(directory, setup, nodes, settings);
    let moved = Move::with(|_| {}, make)?;
    moved.wait_for_writes_to("one")?;
    Ok(moved)
}

/// Rules T1 to T4 and T9: moved for good, and nobody can undo that by a mistake.
#[test]
fn a_patroni_cluster_moves_into_a_shard_for_good() -> Result<()> {
    let moved = prepare(2, json!({}))?;
    let cluster = moved.stage.donor();
    let [one, two] = &cluster.nodes[..] else { anyhow::bail!("two nodes") };
    let begun = adapters::clock::now();
    let told = moved.stage.transplant(&["run", "--yes"])?;
    ensure!(told.contains("complete; the way back is kept"), "{told}");
    moved.wait_for_writes_to("amber")?;
    println!("cut-over: {} ms", moved.writer.longest_gap_since(begun).length().0);
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    moved.stage.transplant(&["verify"])?;
    for node in &cluster.nodes {
        ensure!(!cluster.runs(node), "{} runs", node.name);
    }

    // Started by mistake, Patroni starts nothing, and promotes nothing.
    for node in &cluster.nodes {
        cluster.service(node, "start")?;
        cluster.wait_member(node, |member| {
            member["state"] == "stopped" && member["pause"] == json!(true)
        })?;
    }
    moved.stage.transplant(&["verify"])?;
    // Nor when it is told to start the donor: that would start closed.
    let told = cluster.api(one, "POST", "/restart", json!({}))?;
    wait("the donor to run", || if cluster.runs(one) { Ok(()) } else { Err(told.clone()) })?;
    let refused = cluster.sql_at(one, "create table mistake ()").unwrap_err();
    ensure!(format!("{refused:#}").contains("read-only"), "{refused:#}");
    let told = moved.stage.transplant(&["verify"]).unwrap_err().to_string();
    ensure!(told.contains("the donor was started"), "{told}");
    for node in [two, one] {
        cluster.service(node, "stop")?;
    }
    moved.wait_for_writes_to("amber")?;
    Ok(())
}

/// Rules T1 and T6: back before and after the shard took writes.
#[test]
fn a_patroni_cluster_comes_back_with_what_the_shard_took() -> Result<()> {
    let moved = prepare(2, json!({ "synchronous_mode": true }))?;
    let cluster = moved.stage.donor();
    // Before: it is only stopped and closed.
    moved.stage.transplant(&["run", "--yes", "--until", "compare"])?;
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("the donor serves, as before"), "{told}");
    moved.wait_for_writes_to("one")?;
    cluster.check_whole()?;

    // After: all that the shard took is there.
    println!("{}", moved.stage.transplant(&["run", "--yes"])?);
    moved.wait_for_writes_to("amber")?;
    let begun = adapters::clock::now();
    println!("{}", moved.stage.transplant(&["rollback"])?);
    moved.wait_for_writes_to("one")?;
    println!("back: {} ms", moved.writer.longest_gap_since(begun).length().0);
    ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "{:?}", moved.read_journal()?.mode());
    moved.check_donor()?;
    cluster.check_whole()
}
