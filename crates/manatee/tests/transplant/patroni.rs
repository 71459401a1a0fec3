//! A donor that Patroni looks after.

use super::{
    certificates::Certificates,
    cluster::Cluster,
    harness::{Move, wait},
};
use anyhow::{Context, Result, ensure};
use saga::Mode;
use serde_json::{Value, json};
use std::fs;

fn prepare(nodes: usize, settings: Value) -> Result<Move<Cluster>> {
    prepare_with(nodes, settings, None)
}

/// One whose REST API talks TLS.
fn prepare_over_tls(nodes: usize, settings: Value) -> Result<Move<Cluster>> {
    prepare_with(nodes, settings, Some(&Certificates::make()))
}

fn prepare_with(
    nodes: usize,
    settings: Value,
    certificates: Option<&Certificates>,
) -> Result<Move<Cluster>> {
    let make =
        |directory: &_, setup: &_| Cluster::make(directory, setup, nodes, settings, certificates);
    let moved = Move::with(|_| {}, make)?;
    moved.wait_for_writes_to("one")?;
    Ok(moved)
}

/// Rules T1 to T4: moved, and nobody can undo that by a mistake.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_patroni_cluster_that_was_moved_is_started_by_mistake() -> Result<()> {
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
    // Nor when it is resumed besides: it cannot log in to what is closed, and promotes nothing.
    cluster.api(two, "PATCH", "/config", json!({ "pause": null }))?;
    for node in &cluster.nodes {
        cluster.wait_member(node, |member| member.get("pause").is_none())?;
        wait(node.name, || {
            if cluster.runs(node) { Ok(()) } else { Err("it is not started".to_owned()) }
        })?;
        let tries = |log: String| log.matches("Error communicating with PostgreSQL").count();
        let before = tries(cluster.log(node));
        wait("Patroni to try to log in", || {
            let log = cluster.log(node);
            if tries(log.clone()) > before + 3 { Ok(()) } else { Err(log) }
        })?;
        let refused = cluster.sql_at(node, "create table mistake ()").unwrap_err();
        ensure!(format!("{refused:#}").contains("read-only"), "{}: {refused:#}", node.name);
    }
    let told = moved.stage.transplant(&["verify"]).unwrap_err().to_string();
    ensure!(told.contains("the Patroni cluster was resumed"), "{told}");
    moved.wait_for_writes_to("amber")?;

    // And from all that it still goes back.
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("one")?;
    moved.check_donor()?;
    cluster.check_whole()
}

/// What is wrong is said at once, with what to do; a cluster that changes under the plan stops it; and one
/// that does not moves for good (rules T1 to T4 and T9).
#[test]
#[ignore = "takes a while: make test-transplant"]
fn what_becomes_of_a_patroni_cluster_meanwhile_is_noticed() -> Result<()> {
    let moved = prepare(2, json!({}))?;
    let cluster = moved.stage.donor();
    let [one, two] = &cluster.nodes[..] else { anyhow::bail!("two nodes") };
    let good = fs::read_to_string(moved.stage.inventory())?;
    let bad = good.replace("\"two\"", "\"zwei\"").replace("patroni/two/data", "patroni/two");
    fs::write(moved.stage.inventory(), bad)?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    for problem in
        ["member two is not among", "it has no standby zwei", "zwei: ", "set host and data_dir"]
    {
        ensure!(told.contains(problem), "{problem}: {told}");
    }
    ensure!(!moved.journal().exists(), "nothing was begun");
    fs::write(moved.stage.inventory(), good)?;

    let password = fs::read(cluster.password_file())?;
    fs::write(cluster.password_file(), "another")?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("status 401") && told.contains("password_file"), "{told}");
    fs::write(cluster.password_file(), password)?;

    moved.stage.transplant(&["run", "--yes", "--until", "catch-up"])?;
    cluster.api(two, "PATCH", "/config", json!({ "pause": null }))?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("the Patroni cluster was resumed"), "{told}");
    cluster.switch_over(one, two)?;
    moved.wait_for_writes_to("two")?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("two leads the Patroni cluster"), "{told}");
    wait("the donor to follow", || {
        let follows =
            cluster.sql_at(one, "select pg_is_in_recovery()").map_err(|e| format!("{e:#}"))?;
        if follows == "t" { Ok(()) } else { Err(follows) }
    })?;
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("the donor is a standby now"), "{told}");

    cluster.switch_over(two, one)?;
    moved.wait_for_writes_to("one")?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("one")?;
    moved.check_donor()?;
    cluster.check_whole()?;

    // Where nobody of Patroni answers, a standby's may still run, and may have been resumed.
    moved.stage.transplant(&["run", "--yes", "--until", "compare"])?;
    cluster.service(two, "stop")?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("whether the Patroni cluster is still paused cannot be seen"), "{told}");
    ensure!(moved.read_journal()?.outcome(&"open-recipient".into()).is_none(), "it has opened");
    cluster.service(two, "start")?;
    cluster.wait_member(two, |member| member["pause"] == json!(true))?;

    // Left alone, it moves, for good.
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let told = moved.stage.transplant(&["commit", "--yes"])?;
    ensure!(told.contains("committed"), "{told}");
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    for node in &cluster.nodes {
        ensure!(!cluster.runs(node), "{} runs", node.name);
    }
    Ok(())
}

/// Rules T1 and T6: back before and after the shard took writes.
#[test]
fn a_patroni_cluster_comes_back_with_what_the_shard_took() -> Result<()> {
    let moved = prepare_over_tls(3, json!({ "synchronous_mode": true }))?;
    let cluster = moved.stage.donor();
    moved.ask_to_verify()?;
    // Before: it is only stopped and closed, and asked. What was paused before is so afterwards.
    cluster.api(&cluster.nodes[0], "PATCH", "/config", json!({ "pause": true }))?;
    moved.stage.transplant(&["run", "--yes", "--until", "compare-answers"])?;
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("the donor serves, as before"), "{told}");
    moved.wait_for_writes_to("one")?;
    cluster.wait_member(&cluster.nodes[1], |member| member["pause"] == json!(true))?;
    cluster.api(&cluster.nodes[0], "PATCH", "/config", json!({ "pause": null }))?;
    cluster.check_whole()?;

    // After: all that the shard took is there.
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let begun = adapters::clock::now();
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("one")?;
    println!("back: {} ms", moved.writer.longest_gap_since(begun).length().0);
    ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "{:?}", moved.read_journal()?.mode());
    moved.check_donor()?;
    cluster.check_whole()
}

/// As a person does it who types what the runbook says.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_moves_a_patroni_cluster() -> Result<()> {
    let moved = prepare_over_tls(2, json!({ "synchronous_mode": true }))?;
    let cluster = moved.stage.donor();
    let book = moved.runbook()?;
    book.type_until("compare")?;
    ensure!(!cluster.runs(&cluster.nodes[0]), "the donor runs");
    book.go_back()?;
    moved.wait_for_writes_to("one")?;
    cluster.check_whole()?;

    book.type_until("end")?;
    moved.wait_for_writes_to("amber")?;
    for node in &cluster.nodes {
        ensure!(!cluster.runs(node), "{} runs", node.name);
    }
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    book.go_back()?;
    moved.wait_for_writes_to("one")?;
    moved.check_donor()?;
    cluster.check_whole()
}

/// Rule T6, from each step.
#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_patroni_cluster_is_as_it_was_from_every_step() -> Result<()> {
    let moved = prepare(2, json!({ "synchronous_mode": true }))?;
    let cluster = moved.stage.donor();
    moved.ask_to_verify()?;
    let plan = moved.stage.transplant(&["plan", "--json"])?;
    let plan: saga::Plan = serde_json::from_str(&plan)?;
    for step in &plan.steps {
        moved.stage.transplant(&["run", "--yes", "--until", &step.id.0])?;
        if moved.read_journal()?.outcome(&"open-recipient".into()).is_some() {
            moved.wait_for_writes_to("amber")?;
        }
        let told = moved.stage.transplant(&["rollback"])?;
        ensure!(told.contains("everything is undone"), "{}: {told}", step.id);
        moved.wait_for_writes_to("one").with_context(|| step.id.clone())?;
        moved.check_donor().with_context(|| step.id.clone())?;
        cluster.check_whole().with_context(|| step.id.clone())?;
    }
    Ok(())
}

/// The same for a person.
#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runbook_of_a_patroni_cluster_goes_back_from_every_section() -> Result<()> {
    let moved = prepare(2, json!({ "synchronous_mode": true }))?;
    moved.ask_to_verify()?;
    moved.type_from_every_section("one", |moved| {
        moved.check_donor()?;
        moved.stage.donor().check_whole()
    })
}

/// Rule T5: a runner that ends anywhere is gone on from, here, too.
#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runner_that_moves_a_patroni_cluster_ends_anywhere() -> Result<()> {
    let moved = prepare(2, json!({}))?;
    println!("{} kills forward", moved.run_through_kills(&["run", "--yes"])?);
    moved.wait_for_writes_to("amber")?;
    println!("{} kills back", moved.run_through_kills(&["rollback"])?);
    moved.wait_for_writes_to("one")?;
    moved.check_donor()?;
    moved.stage.donor().check_whole()
}
