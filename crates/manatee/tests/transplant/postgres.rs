//! A donor that stands by itself.

use super::harness::{Move, wait};
use anyhow::{Context, Result, ensure};
use manatee::shard::{Peer, sh};
use saga::{Entry, Mode};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// As after a failover of whatever kept it before: its timeline is ahead of the generation of any young shard.
fn promote_donor(moved: &Move) -> Result<()> {
    restart_as_standby(moved)?;
    moved.stage.donor_sql("select pg_promote()")?;
    moved.wait_for_writes_to("donor")
}

fn restart_as_standby(moved: &Move) -> Result<()> {
    moved.stage.donor_service("stop")?;
    fs::write(moved.stage.data().join("standby.signal"), "")?;
    moved.stage.donor_service("start")?;
    Ok(())
}

/// Rules T1, T2, T3, T4 and T9; and D7, of a donor that was promoted before.
#[test]
fn a_server_moves_into_a_shard_for_good() -> Result<()> {
    let moved = Move::prepare()?;
    let backups = moved.ask_for_backup(&[])?;
    for _ in 0..2 {
        promote_donor(&moved)?;
    }
    // Its control file does not know of this promotion when the move is begun: the checkpoint after it takes a while.
    restart_as_standby(&moved)?;
    let checkpointer = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
    let checkpointer = moved.stage.donor_sql(checkpointer)?;
    sh(&format!("kill -STOP {checkpointer}"))?;
    moved.stage.donor_sql("select pg_promote()")?;
    moved.wait_for_writes_to("donor")?;
    let known = moved.stage.donor_sql("select timeline_id from pg_control_checkpoint()")?;
    ensure!(known == "3", "the control file says {known}");
    moved.stage.transplant(&["run", "--yes", "--until", "open-replication"])?;
    sh(&format!("kill -CONT {checkpointer}"))?;
    let writes = |peer: &Peer| -> Result<Option<String>> {
        let segment = peer.psql("select left(pg_walfile_name(pg_current_wal_lsn()), 8)")?;
        Ok(segment[0][0].clone())
    };
    let begun = adapters::clock::now();
    let told = moved.stage.transplant(&["run", "--yes"])?;
    ensure!(told.contains("complete; the way back is kept"), "{told}");
    moved.wait_for_writes_to("amber")?;
    println!("cut-over: {} ms", moved.writer.longest_gap_since(begun).length().0);
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    moved.stage.transplant(&["verify"])?;

    // Started by mistake, the donor takes nothing, and says that it is one.
    moved.stage.donor_service("start")?;
    let refused = moved.stage.donor_sql("create table mistake ()").unwrap_err();
    ensure!(format!("{refused:#}").contains("read-only"), "{refused:#}");
    let told = moved.stage.transplant(&["verify"]).unwrap_err().to_string();
    ensure!(told.contains("the donor was started"), "{told}");
    moved.stage.donor_service("stop")?;
    moved.stage.transplant(&["verify"])?;

    let told = moved.stage.transplant(&["commit", "--yes"])?;
    ensure!(told.contains("committed") && told.contains("the backup is kept in"), "{told}");
    ensure!(fs::read_dir(backups)?.count() == 1, "it is there");
    let told = moved.stage.transplant(&["verify"])?;
    ensure!(told.contains("the donor is stopped and closed, as it was left"), "{told}");
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("it was committed"), "{told}");
    let slots = "select count(*) from pg_replication_slots where slot_name = 'transplant_donor'";
    ensure!(moved.primary().psql(slots)?[0][0].as_deref() == Some("0"), "the slot is still there");
    ensure!(writes(moved.primary())?.as_deref() == Some("00000005"), "one more than the donor's");
    moved.primary().kill_host()?;
    moved.wait_for_writes_to("birch")?;
    let birch = &moved.stage.peers()[1];
    ensure!(writes(birch)?.as_deref() == Some("00000006"), "one more than any before");
    moved.check_peer(birch)
}

/// Rule T5.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runner_that_ends_anywhere_is_gone_on_from_both_ways() -> Result<()> {
    let moved = Move::prepare()?;
    let backups = moved.ask_for_backup(&["select count(*) from pg_roles"])?;
    moved.ask_to_verify()?;
    let kills = moved.run_through_kills(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    moved.check_peer(moved.primary())?;
    let back = moved.run_through_kills(&["rollback"])?;
    ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "it was undone");
    moved.wait_for_writes_to("donor")?;
    println!("{kills} kills forward, {back} back");
    // Where a step takes no time, its end and the beginning of the next one come before the kill.
    ensure!(kills > 10 && back > 8, "{kills} kills forward, {back} back");
    ensure!(fs::read_dir(backups)?.count() == 1, "one backup, and nothing beside it");
    moved.check_donor()
}

/// Rule T6. A move and its undoing for each step: minutes, so that only `make test-transplant` runs it.
#[test]
#[ignore = "takes minutes: make test-transplant"]
fn everything_is_undone_from_every_step() -> Result<()> {
    let moved = Move::prepare()?;
    moved.ask_for_backup(&[])?;
    moved.ask_to_verify()?;
    let plan = moved.stage.transplant(&["plan", "--json"])?;
    let plan: saga::Plan = serde_json::from_str(&plan)?;
    for step in &plan.steps {
        moved.stage.transplant(&["run", "--yes", "--until", &step.id.0])?;
        let serves = moved.read_journal()?.outcome(&"open-recipient".into()).is_some();
        if serves {
            moved.wait_for_writes_to("amber")?;
        }
        let told = moved.stage.transplant(&["rollback"])?;
        ensure!(told.contains("everything is undone"), "{}: {told}", step.id);
        moved.wait_for_writes_to("donor").with_context(|| step.id.clone())?;
        moved.check_donor().with_context(|| step.id.clone())?;
        let left = moved.stage.donor_sql(
            "select (select count(*) from pg_replication_slots), \
             (select count(*) from pg_roles where rolname = 'manatee_replication')",
        )?;
        ensure!(left == "0|0", "{}: slots and roles are left: {left}", step.id);
    }
    Ok(())
}

/// The donor is brought back by a peer that was seeded long after it was stopped (rule T7).
#[test]
fn the_way_back_outlives_the_primary() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    // What the others are seeded with begins in a later segment than the donor ended in.
    for _ in 0..3 {
        moved.wait_for_writes_to("amber")?;
        moved.primary().psql("select pg_switch_wal()")?;
        moved.primary().psql("checkpoint")?;
    }
    moved.stage.transplant(&["run", "--yes"])?;
    moved.stage.transplant(&["verify"])?;
    moved.primary().kill_host()?;
    moved.wait_for_writes_to("birch")?;
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

/// A primary that died just after it was promoted has a control file of before; what it took is not given
/// up for that (rule T6).
#[test]
fn a_primary_that_died_with_writes_is_waited_for() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes", "--until", "open-recipient"])?;
    moved.wait_for_writes_to("amber")?;
    moved.primary().kill_host()?;
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("was not shut down in an orderly way"), "{told}");
    moved.stage.start_peer(moved.primary())?;
    moved.wait_for_writes_to("amber")?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

/// As when a way back ended after it had copied the shard, before it put that in the donor's place.
fn leave_copy(moved: &Move) -> Result<PathBuf> {
    let plan = moved.read_journal()?.plan().clone();
    let id = plan.facts["id"].as_str().context("an id")?.to_owned();
    let copy = moved.stage.data().with_file_name(format!("data.transplant-copy-{id}"));
    fs::create_dir(&copy)?;
    fs::write(copy.join("mark"), "")?;
    fs::write(copy.with_extension(format!("transplant-copy-{id}.done")), "")?;
    let user = moved.stage.data().display().to_string();
    sh(&format!("chown -R --reference={user} {}*", copy.display()))?;
    Ok(copy)
}

/// Rule T8.
#[test]
fn writes_are_given_up_only_when_that_is_asked_for() -> Result<()> {
    let moved = Move::prepare()?;
    let before = moved.writer.handle().ledger();
    moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    moved.wait_for_writes_to("amber")?;
    let told = moved.stage.transplant(&["rollback", "--discard-writes"]).unwrap_err().to_string();
    ensure!(told.contains("transactions that wrote since the shard opened"), "{told}");
    moved.wait_for_writes_to("amber")?;
    let copy = leave_copy(&moved)?;
    let told = moved.stage.transplant(&["rollback", "--discard-writes", "--yes"])?;
    moved.wait_for_writes_to("donor")?;
    moved.check_given_up(&before)?;
    ensure!(!copy.exists(), "{} is there", copy.display());
    let kept = told.split_once("in the donor's place is kept in ").context(told.clone())?.1;
    ensure!(Path::new(kept.lines().next().unwrap_or_default()).join("mark").exists(), "{told}");

    let told = moved.stage.transplant(&["verify"])?;
    ensure!(told.contains("it was undone: the donor serves"), "{told}");
    moved.stage.donor_service("stop")?;
    let told = moved.stage.transplant(&["verify"]).unwrap_err().to_string();
    ensure!(told.contains("the donor does not run"), "{told}");
    moved.stage.donor_service("start").map(drop)
}

#[test]
fn a_copy_keeps_to_its_rate() -> Result<()> {
    let moved = Move::prepare()?;
    let inventory = moved.stage.inventory();
    let text = fs::read_to_string(&inventory)?;
    fs::write(&inventory, format!("{text}\n[limits]\nrate_mib = 8\n"))?;
    moved.stage.transplant(&["run", "--until", "receive"])?;
    let size = moved.stage.donor_sql("select sum(pg_database_size(oid)) from pg_database")?;
    let least = size.parse::<i64>()? * 1000 / (8 << 20);
    let journal = moved.read_journal()?;
    let at = |done: bool| {
        let mut records = journal.records().iter();
        let found = records.find(|record| match &record.entry {
            Entry::Intent { step, .. } => !done && step.0 == "receive",
            Entry::Done { step, .. } => done && step.0 == "receive",
            _ => false,
        });
        found.map(|record| record.at).context("a line of the journal")
    };
    let took = (at(true)? - at(false)?).total(jiff::Unit::Millisecond)?;
    #[expect(clippy::cast_precision_loss)]
    let least = least as f64 * 0.8;
    ensure!(took >= least, "{size} bytes in {took} ms");
    moved.stage.transplant(&["rollback"])?;
    moved.check_donor()
}

#[test]
fn a_second_runner_and_a_changed_donor_are_refused() -> Result<()> {
    let moved = Move::prepare()?;
    let mut first = moved.spawn(&["run", "--until", "catch-up"])?;
    wait("the journal", || moved.read_journal().map(drop).map_err(|error| format!("{error:#}")))?;
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    let named = format!("process {}", first.id());
    ensure!(told.contains("is being run already") && told.contains(&named), "{told}");
    ensure!(first.wait()?.success(), "the first one goes on");

    // As after a failover of the donor: another timeline.
    moved.stage.donor_service("stop")?;
    fs::write(moved.stage.data().join("standby.signal"), "")?;
    moved.stage.donor_service("start")?;
    moved.stage.donor_sql("select pg_promote(true, 60)")?;
    moved.stage.donor_sql("checkpoint")?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("the donor is on timeline 2, it was on 1"), "{told}");
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

/// Rules T1, T2, T3, T4, T6 and T7, as a person keeps them who types what the runbook says.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_does_what_a_run_does() -> Result<()> {
    let moved = Move::prepare()?;
    let backups = moved.ask_for_backup(&[
        "select count(*) from pg_roles",
        "select E'it''s \"\\\\\\n'",
        "select 7",
    ])?;
    moved.ask_to_verify()?;
    moved.stage.donor_sql("create database \"an other=one\"")?;
    moved.donor_sql_in("an other=one", "create extension amcheck")?;
    let seen = moved.stage.inventory().with_file_name("seen");
    moved.add(
        &format!("[[clients]]\nname = 'it''s'\ncommand = 'touch {}; exit 0'", seen.display())
            .replace("''", " "),
    )?;
    let book = moved.runbook()?;
    // Back before the shard took anything.
    book.type_until("compare-answers")?;
    ensure!(fs::read_dir(&backups)?.count() == 1, "one backup, and nothing beside it");
    book.go_back()?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()?;

    book.type_until("end")?;
    ensure!(seen.exists(), "nobody has looked at the client");
    moved.wait_for_writes_to("amber")?;
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    // And with what it took, when another peer has taken over; once more, there is nothing left to do.
    moved.primary().kill_host()?;
    moved.wait_for_writes_to("birch")?;
    for _ in 0..2 {
        book.go_back()?;
    }
    moved.wait_for_writes_to("donor")?;
    let left = moved.stage.donor_sql(
        "select (select count(*) from pg_replication_slots), \
         (select count(*) from pg_roles where rolname = 'manatee_replication')",
    )?;
    ensure!(left == "0|0", "slots and roles are left: {left}");
    moved.check_donor()
}

/// Rule T8, for a person.
#[test]
fn a_runbook_gives_up_what_the_shard_wrote_when_that_is_said() -> Result<()> {
    let moved = Move::prepare()?;
    let before = moved.writer.handle().ledger();
    let book = moved.runbook()?;
    book.type_until("end")?;
    moved.wait_for_writes_to("amber")?;
    let told = book.go_back_with("discard_writes_of_shard=yes")?;
    let given_up = told.lines().find(|line| line.starts_with("given up: "));
    ensure!(given_up.is_some_and(|line| line.ends_with(" of WAL that the shard wrote")), "{told}");
    moved.wait_for_writes_to("donor")?;
    moved.check_given_up(&before)
}

/// Rule T6, for a person.
#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runbook_goes_back_from_every_section() -> Result<()> {
    let moved = Move::prepare()?;
    moved.ask_for_backup(&[])?;
    moved.ask_to_verify()?;
    moved.type_from_every_section("donor", Move::check_donor)
}

#[test]
fn all_that_stands_in_the_way_is_said_at_once() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.donor_service("stop")?;
    let settings = moved.stage.data().join("postgresql.conf");
    let text = fs::read_to_string(&settings)?;
    fs::write(
        &settings,
        text + "wal_level = minimal\nmax_wal_senders = 0\nmax_connections = 200\n",
    )?;
    moved.stage.donor_service("start")?;
    let data = moved.primary().data();
    fs::create_dir_all(&data)?;
    fs::write(data.join("PG_VERSION"), "15\n")?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    for problem in [
        "wal_level is minimal",
        "free WAL senders",
        "there is a database in",
        "set wal_level = replica",
        "its max_connections is 50, the donor's is 200",
    ] {
        ensure!(told.contains(problem), "{problem}: {told}");
    }
    ensure!(!moved.journal().exists(), "nothing was begun");
    Ok(())
}
