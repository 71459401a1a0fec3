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

fn rebuilt(peer: &Peer, more: &[&str]) -> Result<String> {
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

    let failed = world.failed_writes();
    let last = world.in_role(Role::Async)?;
    let mark = last.data().join("only-before");
    for more in [&[][..], &["--full"]] {
        fs::write(&mark, "")?;
        let said = rebuilt(last, more)?;
        ensure!(said.contains("an operator asked for it"), "{said}");
        ensure!(said.trim_end().contains(" streams from "), "{said}");
        ensure!(!mark.exists(), "the database is another one");
    }
    world.ensure_unnoticed(failed)?;
    world.shard.wait_whole(limit())?;

    let old = world.in_role(Role::Primary)?;
    old.kill_host()?;
    world.wait("a takeover", |view| {
        view.primary().is_some_and(|primary| primary.zone != old.zone())
    })?;
    world.wait_for_writes()?;
    refused(old, "the sitter of this peer does not answer")?;
    old.start_sitter()?;
    world.wait("the old primary to wait for an operator", |view| {
        let status = view.peer(old.zone()).status.as_ref();
        status.is_ok_and(|status| status.reason.kind == "deposedManual")
    })?;
    let said = rebuilt(old, &[])?;
    ensure!(said.contains("deposed: "), "{said}");
    ensure!(world.shard.view().peer(old.zone()).role() != Some(Role::Deposed), "it is back");
    world.finish()
}
