//! The process that all members live in.

use super::{MEMBERS, Outcome, SESSION};
use adapters::coord::zookeeper::{Address, ZkCoord};
use adapters::coord::{Access, CoordEvent, Coordination, Membership, PutOutcome};
use cluster::{ClusterState, Millis, PeerIdent};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The word that starts it.
pub const MODE: &str = "members";

/// How many shards are made at once.
const AT_ONCE: usize = 16;
/// Bounds a call, on a machine that is busy with all the others.
const CALL: Millis = Millis(30_000);

/// Says `started`; then `idle`, when all are members that know each other; then, when its input ends,
/// of how many changes they were told since.
pub fn run(servers: &str, shards: usize) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    say("started")?;
    let told = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let made: Vec<_> = stream::iter(0..shards)
            .map(|number| shard(servers, number))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for mut member in made.into_iter().flatten() {
            let told = Arc::clone(&told);
            settle(&mut *member).await?;
            tokio::spawn(async move {
                while let Some(event) = member.next().await {
                    if !matches!(event, CoordEvent::Confirmed { .. }) {
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // Its session is over, which counts as well.
                told.fetch_add(1, Ordering::Relaxed);
            });
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    told.store(0, Ordering::Relaxed);
    say("idle")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    say(&told.load(Ordering::Relaxed).to_string())
}

fn say(word: &str) -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// A shard with its members and its state. A client for each, as each peer has its own.
async fn shard(servers: &str, number: usize) -> Result<Vec<Box<dyn Membership>>, String> {
    let name = format!("{number}.idle");
    let peer = |member: usize| {
        PeerIdent::new(&format!("10.{}.{}.{member}", number / 256, number % 256), 5432, 12345, "z")
    };
    let mut members = Vec::new();
    let mut last = None;
    for member in 0..MEMBERS {
        let address = Address::parse(&format!("//{servers}/manatee"), &name);
        let address = address.map_err(|error| error.to_string())?;
        let coord = ZkCoord::open(address, &Access::default(), CALL, None);
        let coord = coord.map_err(|error| error.to_string())?;
        let joined = coord.join(&peer(member), SESSION).await;
        members.push(joined.map_err(|error| format!("{error}: {}", error.cause))?);
        last = Some(coord);
    }
    let [primary, sync, third] = [0, 1, 2].map(|member| serde_json::json!(peer(member)));
    let state = serde_json::json!({
        "generation": 1, "primary": primary, "sync": sync, "async": [third], "deposed": [],
        "initWal": "0/0"
    });
    let state = ClusterState::parse(&state.to_string()).map_err(|error| error.to_string())?;
    match last.expect("there are members").put(None, &state).await {
        PutOutcome::Committed(_) => Ok(members),
        other => Err(format!("shard {number}: {other:?}")),
    }
}

/// Reads until it knows the state and everybody else, and is confirmed behind that.
async fn settle(member: &mut dyn Membership) -> Result<(), String> {
    let (mut knows_state, mut knows_all) = (false, false);
    loop {
        match member.next().await {
            Some(CoordEvent::State(state)) => knows_state = state.is_some(),
            Some(CoordEvent::Active(active)) => knows_all = active.len() == MEMBERS,
            Some(CoordEvent::Confirmed { .. }) if knows_state && knows_all => return Ok(()),
            Some(CoordEvent::Expired) | None => return Err("a session expired".to_owned()),
            Some(_) => {}
        }
    }
}
