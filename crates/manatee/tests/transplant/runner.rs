//! Whoever runs a move, and whoever watches that.

use super::harness::{Move, wait};
use anyhow::{Context, Result, ensure};
use manatee::shard::DONOR;
use std::process::{Command, Stdio};

/// As when Ctrl-C ends the `tee` that its output goes to.
#[test]
fn a_run_that_nobody_reads_any_more_goes_on() -> Result<()> {
    let moved = Move::prepare()?;
    let mut runner = Command::new(env!("CARGO_BIN_EXE_manatee"))
        .args(["transplant", "run"])
        .arg(moved.stage.inventory())
        .args(["--until", "catch-up"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop((runner.stdout.take(), runner.stderr.take()));
    ensure!(runner.wait()?.success(), "{}", moved.stage.transplant(&["status"])?);
    ensure!(moved.read_journal()?.outcome(&"catch-up".into()).is_some(), "it went on to there");
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)
}

/// It says whom it stops, and nothing where there is nobody to be stopped.
#[test]
fn a_pause_is_for_somebody_who_runs() -> Result<()> {
    let moved = Move::prepare()?;
    let refused = || moved.stage.transplant(&["pause"]).unwrap_err().to_string();
    ensure!(refused().contains("there is nothing to stop"), "{}", refused());
    let mut runner = moved.spawn(&["run", "--yes"])?;
    wait("the journal", || moved.read_journal().map(drop).map_err(|error| format!("{error:#}")))?;
    let told = moved.stage.transplant(&["pause"])?;
    ensure!(told.contains(&format!("process {} stops", runner.id())), "{told}");
    ensure!(told.contains("`manatee transplant run` goes on"), "{told}");
    ensure!(runner.wait()?.success(), "it stopped");
    ensure!(moved.read_journal()?.outcome(&"catch-up".into()).is_none(), "it went on");
    ensure!(refused().contains("nobody runs it; go on with"), "{}", refused());
    moved.stage.transplant(&["rollback"])?;
    ensure!(refused().contains("there is nothing to stop"), "{}", refused());
    moved.wait_for_writes_to(DONOR)
}

/// One that an earlier move made, which came along with the database.
#[test]
fn a_role_of_an_earlier_move_is_not_dropped() -> Result<()> {
    let moved = Move::prepare()?;
    let file = std::fs::read_to_string(moved.primary().config_file())?;
    let file: toml::Table = toml::from_str(&file)?;
    let password = file["replication"]["password"].as_str().context("no password")?;
    let before = "b66aedc2-509f-4413-ab0e-d356246449bf";
    moved.stage.donor_sql(&format!(
        "create role manatee_replication with login replication password '{password}'; \
         comment on role manatee_replication is 'made by manatee transplant {before}'"
    ))?;
    moved.stage.transplant(&["run", "--until", "receive"])?;
    moved.stage.transplant(&["rollback"])?;
    let there =
        "select count(*) from pg_roles where rolname = 'manatee_replication' and rolreplication";
    ensure!(moved.stage.donor_sql(there)? == "1", "it was dropped");
    moved.stage.donor_sql("drop role manatee_replication")?;
    moved.stage.transplant(&["run", "--until", "receive"])?;
    ensure!(moved.stage.donor_sql(there)? == "1", "it is made anew");
    moved.stage.transplant(&["rollback"])?;
    ensure!(moved.stage.donor_sql(there)? == "0", "it is still there");
    Ok(())
}
