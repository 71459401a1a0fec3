//! A shard that meets in a real etcd.

use super::{
    World,
    guarded::{Guarded, ROOT},
    limit,
};
use adapters::{clock, testing::Etcd};
use anyhow::{Result, ensure};
use cluster::{Millis, Role};
use etcd_client::Permission;
use manatee::shard::{Peer, ShardView};

/// Setup, the loss of each server in turn, a server that accepts and never answers, the loss of the
/// primary's host: all of it through etcd, and nothing is lost.
#[test]
fn a_shard_over_etcd() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let etcd = Etcd::start(directory.path(), 3)?;
    let world = World::start_at(etcd.url(), "")?;
    let generation = world.generation()?;
    for server in 0..3 {
        etcd.kill(server);
        world.wait_for_writes()?;
        etcd.launch(server)?;
        etcd.wait_serving(server)?;
    }
    ensure!(world.generation()? == generation, "a server that is lost costs no takeover");
    etcd.freeze(0);

    world.survive_the_primary()?;
    etcd.thaw(0);
    world.finish()
}

/// Over TLS both ways, as a user, with tokens that end after two seconds: setup, a takeover, and what an
/// operator asks by a sitter's file; nothing is lost, and who shows nothing is told what is missing.
#[test]
fn a_shard_over_an_etcd_that_asks_who_one_is() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let token = "jwt,pub-key={}server.public,priv-key={}server.key,sign-method=RS256,ttl=2s";
    let guarded = runtime.block_on(Guarded::closed(true, &["--auth-token", token]));
    let password = guarded.certificates.path("password");
    std::fs::write(&password, "manatee secret\n")?;
    let file = |name: &str| guarded.certificates.path(name).display().to_string();
    let table = format!(
        "[etcd]\nuser = 'manatee'\npassword_file = '{}'\nca_file = '{}'\n\
         certificate_file = '{}'\nkey_file = '{}'\n",
        file("password"),
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    let world = World::start_at(guarded.etcd.url() + ROOT, &table)?;
    let config = world.in_role(Role::Primary)?.config_file().display().to_string();
    let stranger = world.adm(&["show"]).expect_err("nobody").to_string();
    ensure!(stranger.contains("if it talks TLS: give ca_file"), "{stranger}");
    world.adm(&["verify", "--config", &config])?;
    world.adm(&["freeze", "-r", "a test", "--config", &config])?;
    world.adm(&["unfreeze", "--config", &config])?;
    world.survive_the_primary()?;
    world.finish()
}

/// A role that may only read any more: the primary serves on, says so, asks seldom, and does what it was
/// refused when it may again; a sync that may not take over does so as soon as it may.
#[test]
fn a_permission_that_is_taken_away() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let guarded = runtime.block_on(Guarded::closed(false, &[]));
    let may = |write: bool| runtime.block_on(guarded.allow(if write { read_write } else { read }));
    std::fs::write(guarded.certificates.path("password"), "manatee secret\n")?;
    let password = guarded.certificates.path("password").display().to_string();
    let table = format!("[etcd]\nuser = 'manatee'\npassword_file = '{password}'\n");
    let world = World::start_at(guarded.etcd.url() + ROOT, &table)?;
    let refused = |zone: &str| {
        let zone = zone.to_owned();
        move |view: &ShardView| {
            let status = &view.peer(&zone).status;
            status.as_ref().is_ok_and(|status| {
                status.reason.rule == "M4"
                    && status.reason.text.contains("state may not be written")
            })
        }
    };

    let (primary, last) = (world.in_role(Role::Primary)?, world.in_role(Role::Async)?);
    let generation = world.generation()?;
    may(false);
    last.kill_host()?;
    world.wait("the primary to be refused", refused(primary.zone()))?;
    let (begin, before) = (clock::now(), refusals(primary)?);
    world.wait("eight seconds to pass", |_| clock::now() - begin > Millis(8000))?;
    let tried = refusals(primary)? - before;
    println!("refused {tried} times in {} ms", (clock::now() - begin).0);
    ensure!(tried <= 8, "it was refused {tried} times");
    let config = primary.config_file().display().to_string();
    let told = world.adm(&["freeze", "-r", "a test", "--config", &config]);
    let told = told.expect_err("it may not be written").to_string();
    ensure!(told.contains("not changed") && told.contains("may not be written"), "{told}");
    world.wait_for_writes()?;
    ensure!(world.in_role(Role::Primary)?.zone() == primary.zone(), "the primary stays");
    ensure!(world.generation()? == generation, "the generation changed");
    may(true);
    last.start_sitter()?;
    world.shard.wait_whole(limit())?;

    let sync = world.in_role(Role::Sync)?;
    may(false);
    primary.kill_host()?;
    world.wait("the sync to be refused", refused(sync.zone()))?;
    may(true);
    world.wait("the sync to take over", |view| {
        view.primary().is_some_and(|primary| primary.zone == sync.zone())
    })?;
    world.wait_for_writes()?;
    ensure!(world.generation()? == generation.next(), "one takeover, one generation");
    primary.start_sitter()?;
    world.finish()
}

fn read(prefix: &str) -> Permission {
    Permission::read(prefix)
}

fn read_write(prefix: &str) -> Permission {
    Permission::read_write(prefix)
}

/// How often a peer's sitter was refused a write, as its trace has it.
fn refusals(peer: &Peer) -> Result<usize> {
    let trace = std::fs::read_to_string(peer.dataset().join("trace/sitter.jsonl"))?;
    Ok(trace.lines().filter(|line| line.contains(r#""PutDone":{"Refused""#)).count())
}
