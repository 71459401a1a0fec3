//! What is looked at in the copy before the recipient opens.

use super::harness::Move;
use anyhow::{Result, ensure};
use saga::Mode;
use std::fs;

/// Everything is asked for, and found good; the donor is as it ended, and closed (rules T2, T3 and K7).
#[test]
#[ignore = "takes a while: make test-transplant"]
fn the_copy_is_looked_through_and_compared() -> Result<()> {
    let moved = Move::prepare()?;
    moved.ask_to_verify()?;
    moved.stage.donor_sql("create database \"an other=one\"")?;
    let told = moved.stage.transplant(&["preflight"]).unwrap_err().to_string();
    ensure!(told.contains("database an other=one lacks it"), "{told}");
    moved.donor_sql_in("an other=one", "create extension amcheck")?;
    // More tables than are counted at once.
    moved.stage.donor_sql(
        "do $$ begin for n in 1..1000 loop execute format('create table many_%s ()', n); \
         if n % 100 = 0 then commit; end if; end loop; end $$",
    )?;
    moved.stage.donor_sql("create unlogged table \"Un'logged\" as select 1")?;
    moved.stage.donor_sql("create materialized view \"un,populated\" as select 1 with no data")?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("unlogged tables of database postgres: 1 (\"Un'logged\"):"), "{told}");
    let plan = moved.stage.transplant(&["plan"])?;
    ensure!(plan.contains("look amber's copy through for damage (pg_amcheck)"), "{plan}");
    let told = moved.stage.transplant(&["run", "--yes", "--until", "amcheck"])?;
    ensure!(told.contains("pg_amcheck finds no damage in 2 databases"), "{told}");
    let told = moved.stage.transplant(&["run", "--yes", "--until", "compare-answers"])?;
    let answers = told.lines().find_map(|line| line.trim().strip_suffix(" answers are the same"));
    let answers: u64 = answers.unwrap_or_default().parse()?;
    ensure!(answers > 1100, "{told}");
    moved.stage.transplant(&["verify"])?;
    moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    moved.wait_for_writes_to("amber")?;
    moved.check_peer(moved.primary())?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn damage_is_found_while_the_donor_serves() -> Result<()> {
    let moved = Move::prepare()?;
    find_damage(&moved, || {
        let replays = moved.stage.donor_sql(
            "select count(*) from pg_stat_replication where state = 'streaming' and replay_lsn is not null",
        )?;
        ensure!(replays == "1", "the copy goes on: {replays}");
        Ok(())
    })
}

/// An index that lacks rows is found before the donor is stopped, and all is as it was.
pub fn find_damage(moved: &Move, goes_on: impl FnOnce() -> Result<()>) -> Result<()> {
    moved.ask_to_verify()?;
    let file = moved.stage.donor_sql(
        "create table broken as select generate_series(1, 5000) n; \
         create index broken_n on broken (n); checkpoint; \
         select pg_relation_filepath('broken_n')",
    )?;
    moved.stage.donor_service("stop")?;
    // Two pages of leaves take each other's place; what their headers say fits all the same.
    let path = moved.stage.data().join(file);
    let mut pages = fs::read(&path)?;
    let (one, other) = (8192, 2 * 8192);
    let header = 24;
    for offset in header..8192 {
        pages.swap(one + offset, other + offset);
    }
    fs::write(&path, pages)?;
    let bin_dir = adapters::postgres::programs(None)?.0;
    let data = moved.stage.data().display().to_string();
    // As if memory had been at fault, before the checksums were made.
    for verb in ["--disable", "--enable"] {
        manatee::shard::sh(&format!(
            "chown --reference={data} {} && {} {verb} -D {data}",
            path.display(),
            bin_dir.join("pg_checksums").display()
        ))?;
    }
    moved.stage.donor_service("start")?;
    moved.wait_for_writes_to("donor")?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(
        told.contains("there is damage in amber's copy") && told.contains("broken_n"),
        "{told}"
    );
    ensure!(moved.read_journal()?.outcome(&"stop-donor".into()).is_none(), "it serves");
    moved.wait_for_writes_to("donor")?;
    goes_on()?;
    // Mended, it goes on where it was.
    moved.stage.donor_sql("reindex index broken_n")?;
    moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    moved.wait_for_writes_to("amber")?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

/// Where both do not say the same, the recipient does not open, and the donor is as it ended.
#[test]
fn answers_that_differ_keep_the_recipient_closed() -> Result<()> {
    let moved = Move::prepare()?;
    moved.add("[verify]\nsql = ['select 1', 'select pg_postmaster_start_time()']")?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(
        told.contains("the copy is not what the donor was: select pg_postmaster_start_time():"),
        "{told}"
    );
    ensure!(!told.contains("select 1:"), "{told}");
    moved.stage.transplant(&["verify"])?;
    ensure!(moved.read_journal()?.outcome(&"open-recipient".into()).is_none(), "it is closed");
    moved.stage.transplant(&["rollback"])?;
    ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "it was undone");
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}
