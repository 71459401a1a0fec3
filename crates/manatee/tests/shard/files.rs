//! `manatee adm backup` and `restore`: a database in one file, and what is in it.

use super::World;
use adapters::testing::free_ports;
use anyhow::{Context, Result, ensure};
use cluster::Role;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn adm(arguments: &[&OsStr]) -> Result<(bool, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_manatee")).arg("adm").args(arguments).output()?;
    let good = output.status.success();
    let said = if good { output.stdout } else { output.stderr };
    Ok((good, String::from_utf8(said)?))
}

fn backup(config: &Path, to: &Path) -> Result<(bool, String)> {
    adm(&[
        "backup".as_ref(),
        "--json".as_ref(),
        "-c".as_ref(),
        config.as_ref(),
        "--to".as_ref(),
        to.as_ref(),
    ])
}

fn restore(from: &Path, at: &Path, port: u16) -> Result<(bool, String)> {
    let port = port.to_string();
    let words = ["restore".as_ref(), "--json".as_ref(), "--from".as_ref(), from.as_ref()];
    let more = ["--at".as_ref(), at.as_ref(), "--port".as_ref(), OsStr::new(&port)];
    adm(&[&words[..], &more[..]].concat())
}

/// A restored server; stopped when this is dropped.
struct Restored<'a> {
    at: &'a Path,
    port: u16,
}

impl Restored<'_> {
    fn start<'a>(start: &str, at: &'a Path, port: u16) -> Result<Restored<'a>> {
        let restored = Restored { at, port };
        let (null, log) = (Stdio::null, at.join("log"));
        let mut command = Command::new("sh");
        let status =
            command.args(["-c", start]).stdin(null()).stdout(null()).stderr(null()).status()?;
        ensure!(status.success(), "{start}: {}", fs::read_to_string(log).unwrap_or_default());
        Ok(restored)
    }

    fn query(&self, sql: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.arg("-h").arg(self.at).args(["-p", &self.port.to_string(), "-U", "postgres"]);
        let output = psql.args(["-d", "postgres", "-tAc", sql]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.at.join("postmaster.pid")).ok();
        let pid = pid.and_then(|text| text.lines().next()?.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It has ended by itself otherwise.
            kill_process(pid, Signal::QUIT).ok();
        }
    }
}

/// What is in `directory`.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?)
}

/// A backup of a primary and one of a standby hold all that was acknowledged when they were begun, can be
/// started beside the shard, and disturb nobody. One that is damaged by a single byte is not restored.
#[test]
fn a_backup_is_restored_beside_the_shard() -> Result<()> {
    let world = World::start()?;
    let failed = world.count_failures();
    for role in [Role::Primary, Role::Async] {
        let (file, at) = made(&world, role, "baseBackup")?;
        let directory = file.parent().context("a directory")?;
        let (good, said) = backup(&world.in_role(role)?.config_file(), &file)?;
        ensure!(!good && said.contains("is not replaced"), "{said}");
        let port = free_ports(1)?[0];
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let damaged = directory.join("damaged");
        fs::write(&damaged, &bytes)?;
        let (good, said) = restore(&damaged, &at, port)?;
        ensure!(!good && said.contains("it is damaged") && !at.exists(), "{said}");
        fs::write(&damaged, &bytes[..middle])?;
        let (good, said) = restore(&damaged, &at, port)?;
        ensure!(!good && said.contains("or not all of one") && !at.exists(), "{said}");
        let (good, said) = restore(&file, directory, port)?;
        ensure!(!good && said.contains("is not empty"), "{said}");
        restored(&world, role, "baseBackup")?;
    }
    world.ensure_unnoticed(failed)?;
    world.finish()
}

/// Makes a backup of the peer in this role, in a directory of its own; the file, and where it may be
/// restored.
fn made(world: &World, role: Role, taken: &str) -> Result<(PathBuf, PathBuf)> {
    let places = (1..).map(|number| world.shard.directory().join(format!("backup{number}")));
    let place = places.into_iter().find(|place| !place.exists()).context("a number")?;
    fs::create_dir(&place)?;
    let peer = world.in_role(role)?;
    let (good, said) = backup(&peer.config_file(), &place)?;
    ensure!(good, "{said}");
    let made: serde_json::Value = serde_json::from_str(&said)?;
    let file = PathBuf::from(made["file"].as_str().context("a file")?);
    ensure!(entries(&place)? == [file.clone()], "one file, and nothing beside it");
    let manifest = &made["manifest"];
    ensure!(manifest["zone"] == peer.zone() && manifest["taken"] == taken, "{made}");
    Ok((file, place.with_extension("out")))
}

/// Restores a new backup of the peer in this role beside the shard: it is taken in this way, it holds all
/// that the peer had, and it is a database of its own.
pub fn restored(world: &World, role: Role, taken: &str) -> Result<()> {
    let rows = world.in_role(role)?.psql("select count(*)::text from ledger")?;
    let before: u64 = rows[0][0].clone().context("a number")?.parse()?;
    let (file, at) = made(world, role, taken)?;
    let port = free_ports(1)?[0];
    let (good, said) = restore(&file, &at, port)?;
    ensure!(good, "{said}");
    let done: serde_json::Value = serde_json::from_str(&said)?;
    let restored = Restored::start(done["start"].as_str().context("a command")?, &at, port)?;
    let after: u64 = restored.query("select count(*) from ledger")?.parse()?;
    ensure!(after >= before, "{after} rows of {before}");
    let alone = "select not pg_is_in_recovery() and current_setting('primary_conninfo') = ''";
    ensure!(restored.query(alone)? == "t", "it is a database of its own");
    let slots = restored.query("select count(*) from pg_replication_slots")?;
    ensure!(slots == "0", "it holds back no WAL for anybody");
    Ok(())
}
