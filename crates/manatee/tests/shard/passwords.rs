//! Another replication password, while the shard runs.

use super::rebuild::rebuilt;
use super::{World, limit};
use anyhow::{Context, Result};
use cluster::Role;
use manatee::shard::Peer;
use std::fs;

/// Whoever streams from this peer.
fn follower(peer: &Peer) -> Option<String> {
    let rows = peer.psql("select pid::text from pg_stat_replication where state = 'streaming'");
    rows.ok()?.first()?.first()?.clone()
}

/// Writes these fields of a table into the sitter's file.
pub fn set(peer: &Peer, table: &str, fields: &[(&str, &str)]) -> Result<()> {
    let mut file: toml::Table = fs::read_to_string(peer.config_file())?.parse()?;
    let empty = || toml::Value::Table(toml::Table::new());
    let table = file.entry(table).or_insert_with(empty).as_table_mut().context("a table")?;
    for (field, value) in fields {
        table.insert((*field).to_owned(), (*value).into());
    }
    Ok(fs::write(peer.config_file(), toml::to_string(&file)?)?)
}

/// Written into all files and taken by the primary's sitter first, it is everybody's: standbys connect anew with
/// it, an operator's request that is signed with it is taken, and clients notice nothing.
#[test]
fn another_replication_password_is_taken() -> Result<()> {
    let world = World::start()?;
    let failed = world.count_failures();
    let chain = [Role::Primary, Role::Sync, Role::Async].map(|role| world.in_role(role));
    let chain = chain.into_iter().collect::<Result<Vec<_>>>()?;
    for peer in &chain {
        set(peer, "replication", &[("password", "another one")])?;
    }
    let taken = |peer: &Peer, text: &str| {
        fs::read_to_string(peer.log_file()).is_ok_and(|log| log.contains(text))
    };
    for peer in &chain {
        peer.reload_sitter()?;
        world.wait("the file to be taken", |_| taken(peer, "the file was read again and taken"))?;
    }
    world.wait("the role to have it", |_| taken(chain[0], "the password of the sitter's file"))?;
    for upstream in &chain[..2] {
        // It may be connecting anew by itself just now.
        let mut before = None;
        world.wait("somebody to stream", |_| {
            before = follower(upstream);
            before.is_some()
        })?;
        upstream.psql("select pg_terminate_backend(pid) from pg_stat_replication")?;
        world.wait("its standby to connect anew", |_| {
            follower(upstream).is_some_and(|now| Some(&now) != before.as_ref())
        })?;
    }
    world.shard.wait_whole(limit())?;
    rebuilt(chain[2], &["--full"])?;
    world.ensure_unnoticed(failed)?;
    world.finish()
}
