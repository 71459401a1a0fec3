//! The original's client library (node-manatee), reading a shard of ours.
//!
//! It is in no package registry. Where there is a checkout of it, with its dependencies installed, its
//! directory is given in `MANATEE_NODE_CLIENT`; `node` has to be in PATH.

use super::World;
use adapters::testing::Ensemble;
use anyhow::{Context, Result, ensure};
use cluster::Role;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The library's reports so far. Ends with this.
struct Client {
    child: Child,
    told: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Client {
    fn start(library: &str, path: &str, servers: &str) -> Result<Client> {
        let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shard/original_client.js");
        let mut child = Command::new("node")
            .args([driver, library, path, servers])
            .env("LOG_LEVEL", "fatal")
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start node")?;
        let out = child.stdout.take().context("a pipe")?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let urls = serde_json::from_str(&line).unwrap_or_else(|_| vec![line]);
                telling.lock().unwrap_or_else(PoisonError::into_inner).push(urls);
            }
        });
        Ok(Client { child, told })
    }

    fn told(&self) -> Vec<Vec<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// The topology of a state, as the library has it.
fn urls(state: &Value) -> Vec<String> {
    let asyncs = state["async"].as_array().into_iter().flatten();
    let chain = [&state["primary"], &state["sync"]].into_iter().chain(asyncs);
    chain.filter_map(|peer| peer["pgUrl"].as_str()).map(str::to_owned).collect()
}

fn history(world: &World) -> Result<Vec<Vec<String>>> {
    let output = world.adm(&["history", "-j"])?;
    let lines = String::from_utf8(output.stdout)?;
    let mut topologies = Vec::new();
    for line in lines.lines() {
        topologies.push(urls(&serde_json::from_str::<Value>(line)?["state"]));
    }
    Ok(topologies)
}

/// Through two takeovers it reports topologies that the shard had, in the order in which it had them, and
/// the present one last.
#[test]
#[ignore = "needs a checkout of that library: make client"]
fn the_original_client_follows_takeovers() -> Result<()> {
    let library = std::env::var("MANATEE_NODE_CLIENT").context(
        "MANATEE_NODE_CLIENT names no checkout of the original's client library (node-manatee, \
         with `npm install` done in it)",
    )?;
    let directory = tempfile::tempdir()?;
    let ensemble = Ensemble::start(directory.path(), 1)?;
    let world = World::start_as("", |options| {
        options.coordination = Some(ensemble.url());
        options.session_timeout = 4.0;
    })?;
    let path = format!("/manatee/{}", world.shard.name());
    let client = Client::start(&library, &path, &ensemble.address(0).to_string())?;
    let up_to_date = |world: &World| -> Result<()> {
        world.wait("the client to report the present topology", |_| {
            let last = history(world).ok().and_then(|topologies| topologies.last().cloned());
            last.is_some() && client.told().last() == last.as_ref()
        })
    };
    up_to_date(&world)?;
    for _ in 0..2 {
        let old = world.in_role(Role::Primary)?;
        old.kill_host()?;
        let lost = old.zone().to_owned();
        world.wait("the sync to take over", |view| {
            view.primary().is_some_and(|primary| primary.zone != lost)
        })?;
        old.start_sitter()?;
        world.wait("the old primary to come back as async", |view| {
            view.peer(&lost).role() == Some(Role::Async)
        })?;
        world.wait_for_writes()?;
        up_to_date(&world)?;
    }
    let (told, had) = (client.told(), history(&world)?);
    println!("reported: {told:#?}");
    let mut rest = had.iter();
    let in_order = told.iter().all(|told| rest.any(|had| had == told));
    ensure!(in_order && told.len() >= 3, "reported {told:?} of {had:?}");
    drop(client);
    world.finish()
}
