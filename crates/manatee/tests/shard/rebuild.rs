//! `manatee adm rebuild` on peers of a real shard.

use super::{World, limit};
use anyhow::{Result, ensure};
use cluster::Role;
use manatee::shard::Peer;
use std::{
    fs,
    process::{Command, Output},
};

fn rebuild(peer: &Peer, more: &[&str]) -> Result<Output> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_manatee"));
    program.args(["adm", "rebuild", "-y", "-c"]).arg(peer.config_file()).args(more);
    Ok(program.output()?)
}

/// Rebuilds this peer; what is said.
pub fn rebuilt(peer: &Peer, more: &[&str]) -> Result<String> {
    let output = rebuild(peer, more)?;
    let said = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}{errors}", peer.zone());
    Ok(said)
}

fn refused(peer: &Peer, expected: &str) -> Result<()> {
    let output = rebuild(peer, &[])?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && error.contains(expected), "{error:?}, not {expected:?}");
    Ok(())
}

/// A deposed peer that waits for an operator comes back when it is asked, an async is copied although
/// nothing is wrong, and nobody else is rebuilt. Nothing that was acknowledged is lost, and clients
/// notice nothing of an async's rebuild.
#[test]
fn peers_are_rebuilt_when_an_operator_asks() -> Result<()> {
    let world = World::start_with("deposed = \"manual\"")?;
    refused(world.in_role(Role::Primary)?, "this peer is the primary")?;
    refused(world.in_role(Role::Sync)?, "this peer is the sync")?;

    let failed = world.count_failures();
    let last = world.in_role(Role::Async)?;
    let mark = last.data().join("only-before");
    for more in [&[][..], &["--full"]] {
        fs::write(&mark, "")?;
        let before = fs::read_to_string(last.log_file())?.len();
        let said = rebuilt(last, more)?;
        // It may be over before the sitter is asked a second time what it does: its log tells all.
        let log = fs::read_to_string(last.log_file())?.split_off(before);
        ensure!(log.contains("an operator asked for it"), "{log}");
        ensure!(said.contains("the sitter has taken the request"), "{said}");
        ensure!(said.trim_end().contains(" streams from "), "{said}");
        ensure!(!mark.exists(), "the database is another one");
    }
    world.ensure_unnoticed(failed)?;
    world.shard.wait_whole(limit())?;

    let old = world.lose_primary()?;
    refused(old, "the sitter of this peer does not answer")?;
    old.start_sitter()?;
    world.wait("the old primary to wait for an operator", |view| {
        let status = view.peer(old.zone()).status.as_ref();
        status.is_ok_and(|status| status.reason.kind == "deposedManual")
    })?;
    let said = rebuilt(old, &[])?;
    ensure!(said.trim_end().contains(" streams from "), "{said}");
    ensure!(world.shard.view().peer(old.zone()).role() != Some(Role::Deposed), "it is back");
    world.finish()
}

fn value(peer: &Peer, sql: &str) -> Result<String> {
    Ok(peer.psql(sql)?[0][0].clone().unwrap_or_default())
}

/// Lets a standby come to where the primary is, and let go of the WAL before.
fn checkpoint(world: &World, standby: &Peer, primary: &Peer) -> Result<()> {
    let end = value(primary, "select pg_current_wal_flush_lsn()::text")?;
    let replayed = format!("select (pg_last_wal_replay_lsn() >= '{end}')::text");
    world.wait("the standby to replay it", |_| {
        value(standby, &replayed).is_ok_and(|replayed| replayed == "true")
    })?;
    standby.psql("checkpoint").map(drop)
}

/// An async was away while its upstream let go of the WAL that comes next for it: it never can stream
/// again. It is a standby's database, which is not rewound, and so it is kept and copied.
#[test]
fn a_standby_that_was_away_for_too_long_is_copied() -> Result<()> {
    let world = World::start_with("[postgres]\nwal_keep_mib = 16")?;
    let (primary, upstream) = (world.in_role(Role::Primary)?, world.in_role(Role::Sync)?);
    let away = world.in_role(Role::Async)?;
    away.kill_host()?;
    world.wait("its slot to be given up", |_| {
        let slots = value(upstream, "select count(*)::text from pg_replication_slots");
        slots.is_ok_and(|slots| slots == "0")
    })?;
    for _ in 0..4 {
        world.wait_for_writes()?;
        primary.psql("select pg_switch_wal()")?;
    }
    primary.psql("checkpoint")?;
    checkpoint(&world, upstream, primary)?;
    away.start_sitter()?;
    world.shard.wait_whole(limit())?;
    let log = fs::read_to_string(away.log_file())?;
    let refusal = log.find("it was a standby's, which does not say where the WAL");
    let kept = log.find("the old database is kept in");
    ensure!(refusal.is_some() && refusal < kept, "it was copied otherwise: {log}");
    ensure!(!log.contains("the database was rewound"), "it was rewound: {log}");
    world.finish()
}

/// A primary comes back to a successor that has let go of all WAL since before the two parted.
fn comes_back_late(world: &World, upstream_keeps_it: bool) -> Result<String> {
    let old = world.lose_primary()?;
    let new = world.in_role(Role::Primary)?;
    for _ in 0..4 {
        world.wait_for_writes()?;
        for sql in ["select pg_switch_wal()", "checkpoint"] {
            new.psql(sql)?;
        }
    }
    if !upstream_keeps_it {
        checkpoint(world, world.in_role(Role::Sync)?, new)?;
    }
    old.start_sitter()?;
    world.shard.wait_whole(limit())?;
    Ok(fs::read_to_string(old.log_file())?)
}

/// What is rewound then has no WAL of the new timeline to begin with, and must not go on along the old one,
/// with what nobody else has. Here the peer that it follows has what it lacks.
#[test]
fn a_primary_gets_the_wal_that_its_successor_has_not() -> Result<()> {
    let world = World::start_with("[postgres]\nwal_keep_mib = 16")?;
    let log = comes_back_late(&world, true)?;
    ensure!(log.contains("the database was rewound"), "it was copied: {log}");
    ensure!(!log.contains("the database is copied"), "it was copied: {log}");
    world.finish()
}

/// And here nobody has it: what is rewound never becomes whole. That is noticed, and it is copied.
#[test]
fn a_primary_that_was_away_for_too_long_is_copied() -> Result<()> {
    let world = World::start_with("[postgres]\nwal_keep_mib = 16")?;
    let log = comes_back_late(&world, false)?;
    let rewound = log.find("the database was rewound");
    let given_up = log.find("any more: the WAL that is needed next is no longer kept");
    let copied = log.find("the database is copied");
    ensure!(rewound.is_some() && rewound < given_up && given_up < copied, "another way: {log}");
    world.finish()
}
