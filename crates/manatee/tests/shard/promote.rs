//! `manatee adm promote` on a real shard.

use super::{World, limit};
use adapters::clock;
use anyhow::{Result, ensure};
use cluster::{Generation, Role};
use manatee::shard::Peer;
use serde_json::Value;
use std::process::{Command, Output};

/// Asks for this peer, by the file of its sitter.
fn promote(peer: &Peer, more: &[&str]) -> Result<Output> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_manatee"));
    program.args(["adm", "promote", "--json", "-n", peer.zone()]).args(more);
    Ok(program.arg("-c").arg(peer.config_file()).output()?)
}

fn promoted(peer: &Peer, more: &[&str], expected: Generation) -> Result<()> {
    let output = promote(peer, &[more, &["-y"]].concat())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", peer.zone());
    let said: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(said["generation"] == expected.0, "{said}, not in generation {expected}");
    Ok(())
}

fn refused(peer: &Peer, more: &[&str], expected: &str) -> Result<()> {
    let output = promote(peer, more)?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && error.contains(expected), "{error:?}, not {expected:?}");
    Ok(())
}

/// An async is asked to become the sync, and that one to become the primary: each time it is, writes go on,
/// and whoever had the place comes back as an async. What cannot be granted is refused, and changes nothing.
#[test]
fn peers_move_up_when_an_operator_asks() -> Result<()> {
    let world = World::start()?;
    let (first, peer) = (world.in_role(Role::Primary)?, world.in_role(Role::Async)?);
    let generation = world.generation()?;
    refused(first, &["-y"], "is the primary")?;
    refused(peer, &["-y", "--role", "sync"], "is async 0")?;
    // The question, of which nobody says yes.
    refused(peer, &[], "not asked for: it was not confirmed")?;
    ensure!(world.generation()? == generation, "nothing was asked for");

    promoted(peer, &["-r", "async", "-i", "0"], generation.next())?;
    ensure!(world.in_role(Role::Sync)?.zone() == peer.zone());
    world.wait_for_writes()?;
    world.shard.wait_whole(limit())?;

    let mark = clock::now();
    promoted(peer, &["-r", "sync"], generation.next().next())?;
    println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
    ensure!(world.in_role(Role::Primary)?.zone() == peer.zone());
    world.wait_for_writes()?;
    world.wait_back(first)?;
    ensure!(world.generation()? == generation.next().next(), "one generation each");
    world.finish()
}
