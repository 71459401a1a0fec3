//! `adm topology`: who serves what, in the order of the chain, from a shard of either version.

use super::{Shard, print, print_if_read};
use adapters::coord::{CoordEvent, Registration};
use anyhow::{Result, bail};
use cluster::{Resolver, Seen, StateError, Topology};
use serde_json::json;

/// Prints the topology once.
///
/// # Errors
/// When it cannot be read or understood, or there is none.
pub async fn print_once(shard: &Shard, json: bool) -> Result<()> {
    let read = shard.coord.read().await?;
    let mut resolver = Resolver::default();
    resolver.see(registered(read.active));
    let told = resolver.see(Seen::State(read.state.map(|state| state.json)));
    let name = &shard.target.shard;
    match told {
        Some(Ok(topology)) if topology.urls.is_empty() => bail!(
            "shard {name:?} at {} has no topology: there is no cluster state, and nobody is registered",
            shard.target.url
        ),
        Some(Ok(topology)) if json => print(&line(&topology, true)),
        Some(Ok(topology)) => print(&(topology.urls.join("\n") + "\n")),
        Some(Err(error)) => bail!(not_understood(name, &error)),
        None => bail!("shard {name:?} has no topology"),
    }
}

/// Prints it and then each change of it, a line each, until nobody reads any more.
///
/// # Errors
/// When the coordination cannot be reached at the beginning. Later, that is said and waited for.
pub async fn print_changes(shard: &Shard, json: bool) -> Result<()> {
    let mut watch = shard.coord.watch().await?;
    let mut resolver = Resolver::default();
    while let Some(event) = watch.recv().await {
        let seen = match event {
            CoordEvent::State(state) => Seen::State(state.map(|state| state.json)),
            CoordEvent::Active(active) => registered(active),
            CoordEvent::Unreachable(reason) => {
                eprintln!("manatee: {reason}; waiting for it");
                continue;
            }
            CoordEvent::Confirmed { .. } | CoordEvent::Expired => continue,
        };
        let topology = match resolver.see(seen) {
            Some(Ok(topology)) => topology,
            Some(Err(error)) => {
                let problem = not_understood(&shard.target.shard, &error);
                eprintln!("manatee: {problem}; what was printed last may still hold");
                continue;
            }
            None => continue,
        };
        if !print_if_read(&line(&topology, json))? {
            return Ok(());
        }
    }
    bail!("coordination {}: nothing is told any more", shard.target.url)
}

fn registered(active: Vec<Registration>) -> Seen {
    Seen::Registered(active.into_iter().map(|registration| registration.peer).collect())
}

fn not_understood(shard: &str, error: &StateError) -> String {
    format!("what is stored for shard {shard:?} is no {error}; see `manatee adm zk-state`")
}

/// One line; nobody at all is a dash.
fn line(topology: &Topology, json: bool) -> String {
    if json {
        format!("{}\n", json!(topology))
    } else if topology.urls.is_empty() {
        "-\n".to_owned()
    } else {
        topology.urls.join(" ") + "\n"
    }
}
