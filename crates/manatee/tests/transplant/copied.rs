//! The way back of a donor whose WAL is not kept any more.

use super::harness::{Move, wait};
use anyhow::{Context, Result, ensure};
use manatee::shard::{DONOR, Standalone};
use std::fs;

/// Of a shard that keeps little WAL.
fn prepare() -> Result<Move> {
    let moved = Move::with(
        |options| {
            let settings = toml::toml! { slot_keep_mib = 32 wal_keep_mib = 0 };
            options.overrides.insert("postgres".to_owned(), settings.into());
        },
        Standalone::make,
    )?;
    moved.wait_for_writes_to(DONOR)?;
    Ok(moved)
}

/// Writes until what the donor needs is gone.
fn lose_wal(moved: &Move) -> Result<()> {
    let noise = "create table noise as select gen_random_uuid() a from generate_series(1, 500000)";
    moved.primary().psql(noise)?;
    for _ in 0..6 {
        moved.wait_for_writes_to("amber")?;
        moved.primary().psql("select pg_switch_wal()")?;
    }
    wait("the slot to be lost", || {
        let told = |error: anyhow::Error| format!("{error:#}");
        moved.primary().psql("checkpoint").map_err(told)?;
        let asked =
            "select wal_status from pg_replication_slots where slot_name = 'transplant_donor'";
        let rows = moved.primary().psql(asked).map_err(told)?;
        let status = rows.first().and_then(|row| row[0].as_deref());
        if status == Some("lost") { Ok(()) } else { Err(format!("{status:?}")) }
    })
}

/// What the donor had is kept, once, and nothing of a copy is left.
fn check_kept(moved: &Move) -> Result<()> {
    let data = moved.stage.data();
    let mut aside = Vec::new();
    for entry in fs::read_dir(data.parent().context("a home")?)? {
        aside.push(entry?.file_name().to_string_lossy().into_owned());
    }
    aside.retain(|name| name.starts_with("data.transplant-"));
    ensure!(aside.len() == 1, "{aside:?}");
    Ok(())
}

/// The same when a person types it.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_copies_a_donor_anew() -> Result<()> {
    let moved = prepare()?;
    let own = fs::read_to_string(moved.stage.data().join("postgresql.conf"))?;
    let book = moved.runbook()?;
    book.type_until("end")?;
    lose_wal(&moved)?;
    book.go_back_with("copy=yes")?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()?;
    let now = fs::read_to_string(moved.stage.data().join("postgresql.conf"))?;
    ensure!(now == own, "its configuration changed");
    check_kept(&moved)
}

/// It is copied anew, keeps its configuration, and what it had is kept aside; also where the runner is killed
/// while it copies (rule T6).
#[test]
fn a_donor_that_was_left_behind_is_copied_anew() -> Result<()> {
    let moved = prepare()?;
    let data = moved.stage.data();
    let own = fs::read_to_string(data.join("postgresql.conf"))?;
    moved.stage.transplant(&["run", "--yes"])?;
    lose_wal(&moved)?;
    let plan = moved.read_journal()?.plan().clone();
    let id = plan.facts["id"].as_str().context("an id")?;
    let copy = data.with_file_name(format!("data.transplant-copy-{id}"));
    let mut runner = moved.spawn(&["rollback"])?;
    wait("the copy to begin", || {
        if copy.exists() {
            return Ok(());
        };
        Err(fs::read_to_string(moved.told()).map_err(|error| error.to_string())?)
    })?;
    runner.kill()?;
    runner.wait()?;
    moved.wait_for_writes_to("amber").context("the shard serves on")?;
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()?;
    ensure!(fs::read_to_string(data.join("postgresql.conf"))? == own, "its configuration changed");
    check_kept(&moved)
}
