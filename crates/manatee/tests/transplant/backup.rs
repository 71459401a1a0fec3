//! The backup of a donor before it is stopped.

use super::harness::Move;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?)
}

/// It is kept by a rollback, and holds what the donor had.
#[test]
fn a_backup_is_proven_and_kept() -> Result<()> {
    let moved = Move::prepare()?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("note: no backup is made"), "{told}");
    // What is restored must take nothing from whom the donor subscribes to; nor does the donor do it here.
    let sql = "alter system set max_logical_replication_workers = 0";
    moved.stage.donor_sql(sql)?;
    for verb in ["stop", "start"] {
        moved.stage.donor_service(verb)?;
    }
    let subscribes =
        "select count(*) from pg_stat_activity where backend_type like 'logical replication%'";
    let backups = moved.ask_for_backup(&[
        "select count(*) from pg_roles",
        "select 7; select 8",
        subscribes,
    ])?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(!told.contains("note:"), "{told}");
    moved.stage.donor_sql("create database \"an other=one\"")?;
    let told = moved.stage.transplant(&["run", "--yes", "--until", "backup"])?;
    ensure!(told.contains("proven: restored, 3 databases"), "{told}");
    let left = files(&backups)?;
    let [file] = &left[..] else { anyhow::bail!("not one file: {left:?}") };
    ensure!(told.contains(&format!("the backup is kept in {}", file.display())), "{told}");
    let outcome = moved.read_journal()?;
    let outcome = outcome.outcome(&"backup".into()).context("an outcome")?;
    ensure!(outcome["manifest"]["taken"] == "baseBackup", "{outcome}");
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("the backup is kept in"), "{told}");
    ensure!(files(&backups)? == left, "it is still there");
    moved.check_donor()
}

/// What does not answer as the donor does gets no name, and is removed by the rollback (rule K6).
#[test]
fn a_backup_that_is_not_what_the_donor_was_gets_no_name() -> Result<()> {
    let moved = Move::prepare()?;
    let backups = moved.ask_for_backup(&["select pg_postmaster_start_time()"])?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(
        told.contains("is not what the donor was: to \"select pg_postmaster_start_time()\""),
        "{told}"
    );
    let hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    let left = files(&backups)?;
    ensure!(!left.is_empty() && left.iter().all(hidden), "{left:?}");
    moved.stage.transplant(&["rollback"])?;
    ensure!(files(&backups)?.is_empty(), "{:?}", files(&backups)?);
    moved.check_donor()
}

#[test]
fn a_place_that_takes_no_backup_is_told_of_before() -> Result<()> {
    let moved = Move::prepare()?;
    let backups = moved.ask_for_backup(&[])?;
    fs::remove_dir(&backups)?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    ensure!(told.contains("backup.dir: No such file"), "{told}");
    ensure!(!moved.journal().exists(), "nothing was begun");
    Ok(())
}
