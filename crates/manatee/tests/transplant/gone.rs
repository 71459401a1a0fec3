//! Hosts that are lost for good while something is moved (rule K8): nobody is left stuck.

use super::harness::{Move, wait};
use anyhow::{Context, Result, ensure};
use manatee::shard::{DONOR, Peer, sh};
use std::fs;

/// Ends everything of a peer, and makes its host answer nothing.
fn lose(peer: &Peer) -> Result<()> {
    peer.kill_host()?;
    Ok(fs::rename(peer.config_file(), peer.config_file().with_extension("lost"))?)
}

/// Its host is started after all, as it was.
fn comes_back(peer: &Peer) -> Result<()> {
    fs::rename(peer.config_file().with_extension("lost"), peer.config_file())?;
    let before = fs::metadata(peer.log_file())?.len();
    sh(&peer.service().0)?;
    wait("its sitter to say why it does nothing", || {
        let log = fs::read(peer.log_file()).map_err(|error| error.to_string())?;
        let new = String::from_utf8_lossy(&log[before as usize..]).into_owned();
        if new.contains("nothing is served here") {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&log).into_owned())
        }
    })?;
    ensure!(peer.psql("select 1").is_err(), "{} serves", peer.zone());
    sh(&peer.service().1)?;
    Ok(())
}

/// Another peer than the primary: undone without it, with all that was acknowledged.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_lost_peer_does_not_block_the_way_back() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let cedar = &moved.stage.peers()[2];
    lose(cedar)?;
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains(cedar.zone()) && told.contains("not done"), "{told}");
    let told = moved.stage.transplant(&["rollback", "--without", "nobody"]).unwrap_err();
    ensure!(told.to_string().contains("there is no such host; there are amber, "), "{told}");
    let told = moved.stage.transplant(&["rollback", "--without", cedar.zone()]).unwrap_err();
    ensure!(told.to_string().contains("Is it off"), "{told}");
    let told = moved.stage.transplant(&["rollback", "--without", cedar.zone(), "--yes"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()?;
    comes_back(cedar)
}

/// The primary, when only its stop was left of the way back: nobody is stopped who could take over from it.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_lost_primary_leaves_the_others_to_take_over() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let [amber, others @ ..] = moved.stage.peers() else { anyhow::bail!("no peers") };
    let adm = |what: &str| {
        let file = others[0].config_file();
        sh(&format!("{} adm --config {} {what}", env!("CARGO_BIN_EXE_manatee"), file.display()))
    };
    adm("freeze --reason test")?;
    moved.leave_only_the_opening()?;
    lose(amber)?;
    let told = moved.stage.transplant(&["rollback"]).unwrap_err().to_string();
    ensure!(told.contains("If it has a sync, let that take over"), "{told}");
    for peer in others {
        peer.psql("select 1").with_context(|| format!("{} was stopped", peer.zone()))?;
    }
    adm("unfreeze")?;
    moved.wait_for_writes_to("birch")?;
    moved.stage.transplant(&["rollback", "--without", "amber", "--yes"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_donor()
}

/// The only peer that served: what it took is given up in as many words, and it never serves again.
#[test]
fn a_lost_shard_of_one_is_given_up() -> Result<()> {
    let moved = Move::prepare()?;
    let before = moved.writer.handle().ledger();
    moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    moved.wait_for_writes_to("amber")?;
    let amber = moved.primary();
    lose(amber)?;
    let without = ["rollback", "--without", "amber", "--yes"];
    let told = moved.stage.transplant(&without).unwrap_err().to_string();
    ensure!(told.contains("give up what the shard took, with --discard-writes"), "{told}");
    let told = moved.stage.transplant(&[&without[..], &["--discard-writes"]].concat())?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(DONOR)?;
    moved.check_given_up(&before)?;
    comes_back(amber)
}

/// What is kept for the way back is let go of on whoever is left.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_lost_peer_does_not_block_the_end() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let cedar = &moved.stage.peers()[2];
    lose(cedar)?;
    moved.stage.transplant(&["commit", "--yes"]).unwrap_err();
    moved.stage.transplant(&["commit", "--without", cedar.zone(), "--yes"])?;
    let slots = "select count(*) from pg_replication_slots where slot_name like 'transplant%'";
    for peer in &moved.stage.peers()[..2] {
        ensure!(peer.psql(slots)?[0][0].as_deref() == Some("0"), "{} has one", peer.zone());
    }
    moved.wait_for_writes_to("amber")?;
    moved.check_peer(moved.primary())
}

/// The donor, after the cut-over: the shard grows without it, and only the way back is lost.
#[test]
fn a_lost_donor_does_not_block_the_shard() -> Result<()> {
    let moved = Move::prepare()?;
    let without = ["run", "--yes", "--without", DONOR];
    moved.stage.transplant(&["run", "--yes", "--until", "compare"])?;
    let told = moved.stage.transplant(&without).unwrap_err().to_string();
    ensure!(told.contains("the shard has not opened"), "{told}");
    moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    moved.wait_for_writes_to("amber")?;
    let data = moved.stage.data();
    fs::rename(&data, data.with_file_name("lost"))?;
    moved.stage.transplant(&["run", "--yes"]).unwrap_err();
    let told = moved.stage.transplant(&["run", "--yes", "--without", "amber"]).unwrap_err();
    ensure!(told.to_string().contains("give amber another host"), "{told}");
    let told = moved.stage.transplant(&without)?;
    ensure!(told.contains("what is left is `commit`"), "{told}");
    ensure!(told.contains("--without donor` ends it"), "{told}");
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    moved.stage.transplant(&["commit", "--without", DONOR, "--yes"])?;
    moved.wait_for_writes_to("amber")
}
