//! Donors that are shards of Manatee.

use super::{
    guarded::{Guarded, ROOT},
    harness::{LIMIT, Move},
};
use adapters::testing::Ensemble;
use anyhow::{Context, Result, ensure};
use manatee::shard::{DONOR, Donor};
use saga::Mode;
use std::fs;

/// Rules T1, T2, T3, T4, T9 and K1.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_shard_moves_into_another_for_good() -> Result<()> {
    let moved = Move::of_ours(None)?;
    let begun = adapters::clock::now();
    let told = moved.stage.transplant(&["run", "--yes"])?;
    ensure!(told.contains("complete; the way back is kept"), "{told}");
    moved.wait_for_writes_to("amber")?;
    println!("cut-over: {} ms", moved.writer.longest_gap_since(begun).length().0);
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    moved.stage.transplant(&["verify"])?;

    // Started by mistake, the donor's sitters say why they do not run, and nothing opens.
    let donor = moved.stage.donor();
    for peer in donor.shard().peers() {
        let told = donor.start_by_mistake(peer)?;
        ensure!(told.contains("moved away by manatee transplant"), "{told}");
        ensure!(peer.psql("select 1").is_err(), "{} runs", peer.zone());
    }
    moved.stage.transplant(&["verify"])?;

    // Somebody who puts the file back is told of.
    let file = donor.primary().config_file();
    let aside = format!("{}.fenced-by-transplant", file.display());
    let notice = fs::read(&file)?;
    fs::copy(&aside, &file)?;
    let told = moved.stage.transplant(&["verify"]).unwrap_err().to_string();
    ensure!(told.contains("somebody put back"), "{told}");
    fs::write(&file, notice)?;

    moved.stage.transplant(&["commit", "--yes"])?;
    moved.primary().kill_host()?;
    moved.wait_for_writes_to("birch")?;
    moved.check_peer(&moved.stage.peers()[1])
}

/// What the recipient took is in the donor afterwards, on all of its peers, and it is a shard as before: it
/// takes over when its primary is lost (rule T6).
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_shard_that_was_moved_comes_back_whole() -> Result<()> {
    let moved = Move::of_ours(None)?;
    let before = moved.stage.donor().state()?;
    moved.ask_to_verify()?;
    moved.stage.transplant(&["run", "--yes", "--until", "compare-answers"])?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(DONOR)?;
    moved.check_ours()?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(DONOR)?;
    moved.check_ours()?;
    let donor = moved.stage.donor();
    let after = donor.state()?;
    ensure!(!after.is_frozen(), "it is frozen yet: {after:?}");
    ensure!(after.generation == before.generation, "{after:?}");
    let slots = "select count(*) from pg_replication_slots where slot_name like 'transplant%'";
    ensure!(donor.primary().psql(slots)?[0][0].as_deref() == Some("0"), "a slot is left");

    donor.primary().kill_host()?;
    let sync = after.sync.context("a sync")?;
    moved.wait_for_writes_to(&format!("{DONOR}-{}", sync.zone_id))?;
    moved.check_peer(donor.shard().peer_of(&sync.zone_id))
}

/// As a server by itself it is not moved: its sitter would start it again.
#[test]
fn a_shard_is_no_server_by_itself() -> Result<()> {
    let moved = Move::of_ours(None)?;
    let mut table: toml::Table = fs::read_to_string(moved.stage.inventory())?.parse()?;
    let donor = table["donor"].as_table_mut().context("a donor")?;
    donor.insert("kind".to_owned(), "postgres".into());
    donor.remove("manatee");
    donor.remove("standbys");
    fs::write(moved.stage.inventory(), toml::to_string(&table)?)?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    ensure!(told.contains("a sitter of Manatee has it"), "{told}");
    ensure!(!moved.journal().exists(), "nothing was begun");
    Ok(())
}

/// A donor that somebody had frozen stays frozen (rule T6). It meets where the original's shards do.
#[test]
fn a_shard_in_zookeeper_comes_back_before_the_other_opened() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ensemble = Ensemble::start(directory.path(), 1)?;
    let moved = Move::of_ours(Some(ensemble.url()))?;
    moved.stage.donor().adm(&["freeze", "--reason", "a person's"])?;
    moved.stage.transplant(&["run", "--yes", "--until", "compare"])?;
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(DONOR)?;
    moved.check_ours()?;
    ensure!(moved.stage.donor().state()?.is_frozen(), "it was frozen before");
    Ok(())
}

/// Its coordination talks TLS and asks who one is: whoever does not say so is told, and changes nothing.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_shard_that_asks_who_one_is_moves_and_comes_back() -> Result<()> {
    let guarded = tokio::runtime::Runtime::new()?
        .block_on(Guarded::closed(true, &["--auth-token", "simple"]));
    let file = |name: &str| guarded.certificates.path(name).display().to_string();
    fs::write(file("password"), "manatee secret\n")?;
    let [password, ca, certificate, key] =
        ["password", "ca.pem", "client.pem", "client.key"].map(file);
    let table = toml::toml! {
        [etcd]
        user = "manatee"
        password_file = password
        ca_file = ca
        certificate_file = certificate
        key_file = key
    };
    let access = file("access.toml");
    fs::write(&access, table.to_string())?;
    let moved = Move::of_ours_for(Some(guarded.etcd.url() + ROOT), Some(access))?;

    let inventory = fs::read_to_string(moved.stage.inventory())?;
    let line = inventory.lines().find(|line| line.starts_with("access")).context("the file")?;
    fs::write(moved.stage.inventory(), inventory.replace(line, ""))?;
    let told = moved.stage.transplant(&["preflight"]).unwrap_err().to_string();
    ensure!(told.contains("if it talks TLS: give ca_file"), "{told}");
    fs::write(moved.stage.inventory(), inventory)?;

    moved.stage.transplant(&["run", "--yes", "--until", "compare"])?;
    ensure!(moved.stage.donor().state()?.is_frozen(), "it is held");
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(DONOR)?;
    moved.check_ours()?;
    moved.type_there_and_back("catch-up")?;
    ensure!(!moved.stage.donor().state()?.is_frozen(), "it is as it was");
    Ok(())
}

/// Rule K1.
#[test]
fn a_failover_of_the_shard_stops_the_move() -> Result<()> {
    let moved = Move::of_ours(None)?;
    let donor = moved.stage.donor();
    moved.stage.transplant(&["run", "--yes", "--until", "catch-up"])?;
    let state = donor.state()?;
    ensure!(state.is_frozen(), "it is held");
    donor.adm(&["unfreeze"])?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("the donor was unfrozen"), "{told}");

    donor.primary().kill_host()?;
    let sync = state.sync.context("a sync")?.zone_id;
    moved.wait_for_writes_to(&format!("{DONOR}-{sync}"))?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("the donor has failed over: it has generation 2"), "{told}");
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(&format!("{DONOR}-{sync}"))?;
    donor.shard().wait_for(LIMIT, "the donor's new primary", |view| view.primary().is_some())?;
    moved.check_peer(donor.shard().peer_of(&sync))
}

/// Rules T1 and K1, where nothing holds a takeover back.
#[test]
fn a_shard_of_the_first_version_moves_for_good() -> Result<()> {
    let moved = Move::of_first_version()?;
    let begun = adapters::clock::now();
    let told = moved.stage.transplant(&["run", "--yes"])?;
    ensure!(told.contains("complete; the way back is kept"), "{told}");
    moved.wait_for_writes_to("amber")?;
    println!("cut-over: {} ms", moved.writer.longest_gap_since(begun).length().0);
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    let donor = moved.stage.donor();
    for told in donor.start_by_mistake()? {
        ensure!(told.contains("moved away by manatee transplant"), "{told}");
    }
    ensure!(donor.order()?.is_empty(), "{:?}", donor.order()?);
    moved.stage.transplant(&["verify"])?;
    moved.stage.transplant(&["commit", "--yes"])?;
    moved.primary().kill_host()?;
    moved.wait_for_writes_to("birch")?;
    moved.check_peer(&moved.stage.peers()[1])
}

/// Before the recipient opened, and with what it took (rule T6); the order of registrations is that of
/// before.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_shard_of_the_first_version_comes_back() -> Result<()> {
    let moved = Move::of_first_version()?;
    moved.ask_to_verify()?;
    for until in ["compare-answers", "level-donor"] {
        moved.stage.transplant(&["run", "--yes", "--until", until])?;
        if until == "level-donor" {
            moved.wait_for_writes_to("amber")?;
        }
        let told = moved.stage.transplant(&["rollback"])?;
        ensure!(told.contains("everything is undone"), "{until}: {told}");
        moved.wait_for_writes_to(DONOR).context(until)?;
        moved.check_first_version().context(until)?;
        let slots = moved.stage.donor_sql("select count(*) from pg_replication_slots")?;
        ensure!(slots == "0", "{until}: {slots} slots are left");
    }
    Ok(())
}

/// Rule K1.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_failover_of_the_first_version_stops_the_move() -> Result<()> {
    let moved = Move::of_first_version()?;
    moved.stage.transplant(&["run", "--yes", "--until", "catch-up"])?;
    moved.stage.donor().kill(0)?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("the donor has failed over: its primary is v1-"), "{told}");
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to(&format!("{DONOR}-1"))?;
    moved.stage.donor().check_peer(1, &moved.writer.handle().ledger())
}

/// As a person does it who types what the runbook says: back before the recipient opened, and with what it
/// took.
fn type_a_runbook<D: Donor>(moved: &Move<D>, check: fn(&Move<D>) -> Result<()>) -> Result<()> {
    for until in ["compare", "end"] {
        moved.type_there_and_back(until)?;
        check(moved).context(until)?;
    }
    Ok(())
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_moves_a_shard() -> Result<()> {
    let moved = Move::of_ours(None)?;
    type_a_runbook(&moved, Move::check_ours)?;
    ensure!(!moved.stage.donor().state()?.is_frozen(), "it is frozen yet");
    Ok(())
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_moves_a_shard_of_the_first_version() -> Result<()> {
    type_a_runbook(&Move::of_first_version()?, Move::check_first_version)
}

/// Rules T5 and T6.
fn undo_from_every_step<D: Donor>(
    moved: &Move<D>,
    check: fn(&Move<D>) -> Result<()>,
) -> Result<()> {
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
        moved.wait_for_writes_to(DONOR).with_context(|| step.id.clone())?;
        check(moved).with_context(|| step.id.clone())?;
    }
    fs::remove_file(moved.journal())?;
    let kills = moved.run_through_kills(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    let back = moved.run_through_kills(&["rollback"])?;
    ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "it was undone");
    // Where a step takes no time, its end and the beginning of the next one come before the kill.
    ensure!(kills > 10 && back > 8, "{kills} kills forward, {back} back");
    moved.wait_for_writes_to(DONOR)?;
    check(moved)
}

#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_shard_comes_back_from_every_step() -> Result<()> {
    undo_from_every_step(&Move::of_ours(None)?, Move::check_ours)
}

#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_shard_of_the_first_version_comes_back_from_every_step() -> Result<()> {
    undo_from_every_step(&Move::of_first_version()?, Move::check_first_version)
}

#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runbook_of_a_shard_goes_back_from_every_section() -> Result<()> {
    let moved = Move::of_ours(None)?;
    moved.ask_to_verify()?;
    moved.type_from_every_section(DONOR, Move::check_ours)
}

#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runbook_of_the_first_version_goes_back_from_every_section() -> Result<()> {
    let moved = Move::of_first_version()?;
    moved.ask_to_verify()?;
    moved.type_from_every_section(DONOR, Move::check_first_version)
}

/// All at once, each with what to do; nothing is changed.
#[test]
fn what_is_wrong_with_a_shard_is_said_at_once() -> Result<()> {
    let moved = Move::of_first_version()?;
    let inventory = fs::read_to_string(moved.stage.inventory())?;
    let mut table: toml::Table = inventory.parse()?;
    let donor = table["donor"].as_table_mut().context("a donor")?;
    let standbys = donor["standbys"].as_array_mut().context("standbys")?;
    standbys[0]["name"] = "nobody".into();
    standbys[1]["sitter"] = "/nowhere/sitter.toml".into();
    donor["address"] = "localhost".into();
    fs::write(moved.stage.inventory(), toml::to_string(&table)?)?;
    for peer in moved.stage.peers() {
        let file = fs::read_to_string(peer.config_file())?;
        let other = file.replace("max_wal_senders = 10", "max_wal_senders = 11");
        ensure!(file != other, "{file}");
        fs::write(peer.config_file(), other)?;
    }
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    for problem in [
        "\"nobody\" is none of its standbys",
        "is not in the inventory",
        "there is no sitter's file /nowhere/sitter.toml",
        "not localhost:",
        "its max_wal_senders is 11, the donor's is 10",
    ] {
        ensure!(told.contains(problem), "{problem}: {told}");
    }
    let donor = table["donor"].as_table_mut().context("a donor")?;
    donor.insert("kind".to_owned(), "manatee-v2".into());
    fs::write(moved.stage.inventory(), toml::to_string(&table)?)?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    ensure!(told.contains("it has no cluster state"), "{told}");
    ensure!(!moved.journal().exists(), "nothing was begun");
    Ok(())
}
