//! Whether a shard has opened when its cluster state does not say so, and who of it may be brought back.

use super::harness::{Move, wait};
use adapters::coord::{self, Coordination, PutOutcome};
use anyhow::{Context, Result, bail, ensure};
use cluster::{ClusterState, Millis};
use jiff::Timestamp;
use manatee::shard::{DONOR, sh};
use saga::{Entry, StepState, Way};
use std::{fs, io::Write, sync::Arc};

/// What the sitter's file of the first peer says of the coordination.
fn coordination(moved: &Move) -> Result<String> {
    let file: toml::Table = toml::from_str(&fs::read_to_string(moved.primary().config_file())?)?;
    Ok(file["coordination"].as_str().context("no coordination")?.to_owned())
}

/// The files of the sitters lead elsewhere, where there is no cluster state; the sitters go on as they are.
fn lose_state(moved: &Move) -> Result<()> {
    let old = coordination(moved)?;
    for peer in moved.stage.peers() {
        let text = fs::read_to_string(peer.config_file())?;
        ensure!(text.contains(&old), "{text}");
        fs::write(peer.config_file(), text.replace(&old, &format!("{old}.other")))?;
    }
    Ok(())
}

fn restore_state(moved: &Move) -> Result<()> {
    let other = coordination(moved)?;
    let old = other.strip_suffix(".other").context("it is not lost")?;
    for peer in moved.stage.peers() {
        let text = fs::read_to_string(peer.config_file())?;
        fs::write(peer.config_file(), text.replace(&other, old))?;
    }
    Ok(())
}

/// Rules T1, T5 and T8: that the step was not ended, and that there is no cluster state, is not that it never
/// opened.
#[test]
fn a_shard_whose_state_is_lost_may_have_opened() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes", "--until", "open-recipient"])?;
    moved.wait_for_writes_to("amber")?;
    // As if its runner had ended before it said so.
    let text = fs::read_to_string(moved.journal())?;
    let whole = text.trim_end().rfind('\n').context("more than a line")?;
    fs::write(moved.journal(), &text[..=whole])?;
    ensure!(moved.read_journal()?.outcome(&"open-recipient".into()).is_none(), "it is only begun");

    lose_state(&moved)?;
    let told = moved.stage.transplant(&["rollback", "--discard-writes"]).unwrap_err().to_string();
    ensure!(told.contains("this loses writes that cannot be counted"), "{told}");
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("Restore the cluster state"), "{told}");
    moved.wait_for_writes_to("amber").context("nobody was stopped")?;
    let told = moved.stage.transplant(&["verify"]).unwrap_err().to_string();
    ensure!(told.contains("it is being undone"), "{told}");

    restore_state(&moved)?;
    let told = moved.stage.transplant(&["rollback", "--discard-writes"]).unwrap_err().to_string();
    ensure!(told.contains("this loses writes that cannot be counted"), "{told}");
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()
}

/// Rule T6: begun and not declared, it is as if it had not been begun.
#[test]
fn a_shard_that_was_only_going_to_open_is_known_by_its_database() -> Result<()> {
    let moved = Move::prepare()?;
    moved.ask_to_verify()?;
    moved.stage.transplant(&["run", "--yes", "--until", "compare-answers"])?;
    let intent = Entry::Intent { step: "open-recipient".into(), way: Way::Apply };
    let line = moved.read_journal()?.append(intent, Timestamp::now(), "somebody")?;
    fs::OpenOptions::new().append(true).open(moved.journal())?.write_all(line.as_bytes())?;
    let told = moved.stage.transplant(&["rollback", "--discard-writes"]).unwrap_err().to_string();
    ensure!(told.contains("this loses nothing: the shard is not open"), "{told}");
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()
}

/// Rules T1 and T8, for a person.
#[test]
fn a_runbook_knows_a_shard_that_has_opened_by_its_databases() -> Result<()> {
    let moved = Move::prepare()?;
    let before = moved.writer.handle().ledger();
    let book = moved.runbook()?;
    book.type_until("end")?;
    moved.wait_for_writes_to("amber")?;
    lose_state(&moved)?;
    let told = book.go_back().unwrap_err().to_string();
    let stopped = told.lines().find(|line| line.starts_with("STOP: "));
    ensure!(stopped.is_some_and(|line| line.contains("no cluster state of this move")), "{told}");
    moved.wait_for_writes_to("amber").context("nobody was stopped")?;
    book.go_back_with("discard_writes_of_shard=yes")?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_given_up(&before)
}

/// Somebody else is made the primary, as by a takeover.
async fn hand_over(shard: &Arc<dyn Coordination>) -> Result<()> {
    let stored = shard.read().await?.state.context("no cluster state")?;
    let old = ClusterState::parse(&stored.json)?;
    let mut asyncs = old.asyncs.clone();
    ensure!(!asyncs.is_empty(), "nobody is left: {old:?}");
    let state = ClusterState {
        generation: old.generation.next(),
        primary: old.sync.clone().context("no sync")?,
        sync: Some(asyncs.remove(0)),
        asyncs,
        deposed: vec![old.primary.clone()],
        primary_timeline: old.primary_timeline.map(|timeline| timeline + 1),
        ..old
    };
    match shard.put(Some(stored.version), &state).await {
        PutOutcome::Committed(_) => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// Rule T6: whoever took over has what was acknowledged before, and shows it only when it has served.
#[test]
fn a_primary_that_took_over_is_brought_back_only_when_it_has_served() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let peers = moved.stage.peers();
    let options = coord::Options::new(Millis(10_000));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let first: toml::Table = toml::from_str(&fs::read_to_string(peers[0].config_file())?)?;
    let name = first["shard"].as_str().context("no shard")?;
    // Both at once: nobody takes over by himself, and the new one is not promoted yet.
    peers[1].kill_host()?;
    peers[0].kill_host()?;
    runtime.block_on(async {
        hand_over(&coord::open(&coordination(&moved)?, name, &options)?).await
    })?;
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("birch took over and has not served yet"), "{told}");
    ensure!(peers[2].psql("select 1").is_ok(), "cedar was stopped");
    moved.stage.start_peer(&peers[1])?;
    moved.wait_for_writes_to("birch")?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()
}

/// Rule T6: whoever could still take over goes on while nobody knows what the primary has.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn nobody_is_stopped_for_a_primary_that_is_down() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let peers = moved.stage.peers();
    let (program, file) =
        (env!("CARGO_BIN_EXE_manatee"), peers[0].config_file().display().to_string());
    sh(&format!("{program} adm --config {file} freeze --reason test"))?;
    moved.leave_only_the_opening()?;
    peers[0].kill_host()?;
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("was not shut down in an orderly way"), "{told}");
    ensure!(told.contains("start the sitters of all peers"), "{told}");
    for peer in &peers[1..] {
        peer.psql("select 1").with_context(|| format!("{} was stopped", peer.zone()))?;
    }
    moved.stage.start_peer(&peers[0])?;
    moved.wait_for_writes_to("amber")?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()
}

/// Rule T6: with all that the shard wrote in it, the donor may be down when this is done again.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_donor_that_has_everything_need_not_run_again() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes", "--until", "open-recipient"])?;
    moved.wait_for_writes_to("amber")?;
    let step = "open-recipient".into();
    let mut rollback = moved.spawn(&["rollback"])?;
    wait("the step to be undone", || {
        match moved.read_journal().map(|journal| journal.state(&step)) {
            Ok(StepState::Begun(Way::Undo)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    moved.stage.transplant(&["pause"])?;
    ensure!(rollback.wait()?.success(), "it was not paused");
    ensure!(moved.read_journal()?.state(&step) == StepState::Ended(Way::Undo), "it goes on");
    // As if the host of the runner and the donor had lost its power before the last line was written.
    let text = fs::read_to_string(moved.journal())?;
    let whole = text.trim_end().rfind('\n').context("more than a line")?;
    fs::write(moved.journal(), &text[..=whole])?;
    ensure!(
        moved.read_journal()?.state(&step) == StepState::Begun(Way::Undo),
        "another line was the last"
    );
    moved.stage.donor_service("stop")?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()
}
