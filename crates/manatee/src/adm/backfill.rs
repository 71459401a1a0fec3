//! `adm state-backfill`: gives a shard of the first version the cluster state of the second.

use super::Shard;
use super::change::{refused, unsettled};
use adapters::coord::{PutOutcome, StoredState};
use anyhow::{Context, Result, bail};
use cluster::{ClusterState, PeerIdent, v1};
use jiff::Timestamp;
use std::io::{BufRead, Write};

/// Why the shard is frozen, in the original's words.
const REASON: &str = "manatee-adm state-backfill";

/// How often the write is tried when its answer is lost.
const ATTEMPTS: usize = 3;

/// The state that would be written.
///
/// # Errors
/// When there is a state already, or fewer than two peers are registered.
pub async fn propose(shard: &Shard, now: Timestamp) -> Result<ClusterState> {
    let read = shard.coord.read().await?;
    refuse_stored(shard, read.state.as_ref())?;
    let registered: Vec<PeerIdent> = read.active.into_iter().map(|one| one.peer).collect();
    // The original writes milliseconds.
    let date = Timestamp::from_millisecond(now.as_millisecond())?;
    v1::backfill(&registered, REASON, date)
        .with_context(|| format!("no state can be made for shard {:?}", shard.target.shard))
}

fn refuse_stored(shard: &Shard, stored: Option<&StoredState>) -> Result<()> {
    if stored.is_some() {
        bail!(
            "not written: a cluster state exists already for shard {:?}; see `manatee adm show`",
            shard.target.shard
        );
    }
    Ok(())
}

/// Shows what would be written, and asks.
///
/// # Errors
/// When nobody says yes.
pub fn confirm(
    state: &ClusterState,
    input: &mut impl BufRead,
    tell: &mut impl Write,
) -> Result<()> {
    let shown = serde_json::to_string_pretty(state)?;
    let question = format!("Computed new cluster state:\n{shown}\nis this correct");
    if confirmed(&question, input, tell)? {
        return Ok(());
    }
    bail!("not written: it was not confirmed (`-y` confirms without asking)")
}

/// Asks, and says whether the answer is yes.
pub fn confirmed(question: &str, input: &mut impl BufRead, tell: &mut impl Write) -> Result<bool> {
    write!(tell, "{question} (y/n)? ")?;
    tell.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

/// Writes it, with its entry of the history, unless something has changed since it was proposed.
///
/// # Errors
/// When a state appeared or the registrations changed meanwhile, or it is not known whether it was
/// written.
pub async fn write(shard: &Shard, state: &ClusterState) -> Result<()> {
    let mut lost = None;
    for _ in 0..ATTEMPTS {
        let read = match (shard.coord.read().await, lost.take()) {
            (Ok(read), unknown) => {
                lost = unknown;
                read
            }
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(unknown)) => {
                let error = anyhow::Error::from(error);
                return Err(unsettled(unknown).context(format!("cannot read it again: {error:#}")));
            }
        };
        if lost.is_some()
            && read.state.as_ref().is_some_and(|stored| stored.json == state.to_json())
        {
            return Ok(());
        }
        refuse_stored(shard, read.state.as_ref())?;
        let registered: Vec<PeerIdent> = read.active.into_iter().map(|one| one.peer).collect();
        let date = match &state.freeze {
            Some(cluster::Freeze::Since(info)) => info.date,
            _ => bail!("a state that is not frozen is not for a shard of the first version"),
        };
        if v1::backfill(&registered, REASON, date).as_ref() != Ok(state) {
            let changed = "the registrations have changed meanwhile; look again";
            return Err(match lost {
                None => anyhow::anyhow!("not written: {changed}"),
                // There is no state yet, so it may still come.
                Some(unknown) => unsettled(unknown).context(changed),
            });
        }
        match shard.coord.put(None, state).await {
            PutOutcome::Committed(_) => return Ok(()),
            PutOutcome::Conflict => {}
            PutOutcome::Refused(error) => return Err(refused(error, lost)),
            PutOutcome::Unknown(error) => lost = Some(error),
        }
    }
    match lost {
        Some(error) => Err(unsettled(error)),
        None => bail!("not written: a cluster state appeared meanwhile; see `manatee adm show`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::peer;
    use crate::adm::reach::Target;
    use adapters::coord::memory::{LostPut, MemoryService};
    use adapters::coord::{Coordination, Membership};
    use cluster::Millis;
    use std::sync::Arc;

    struct World {
        service: MemoryService,
        shard: Shard,
        sessions: Vec<Box<dyn Membership>>,
    }

    async fn world(peers: &[usize]) -> World {
        let service = MemoryService::new("1.example");
        let client = service.client();
        let mut sessions = Vec::new();
        for n in peers {
            sessions.push(client.join(&peer(*n), Millis(60_000)).await.expect("joined"));
        }
        let target =
            Target { url: "memory:".to_owned(), shard: "1.example".to_owned(), access: None };
        World { service, shard: Shard { coord: Arc::new(client), target }, sessions }
    }

    fn now() -> Timestamp {
        "2026-05-04T10:00:00.123456Z".parse().expect("a time")
    }

    async fn stored(shard: &Shard) -> Option<ClusterState> {
        let read = shard.coord.read().await.expect("reachable");
        read.state.map(|stored| ClusterState::parse(&stored.json).expect("legal"))
    }

    #[tokio::test]
    async fn what_is_written_is_what_was_shown() {
        let world = world(&[1, 2, 3]).await;
        let state = propose(&world.shard, now()).await.expect("a state");
        let mut told = Vec::new();
        confirm(&state, &mut "y\n".as_bytes(), &mut told).expect("confirmed");
        let told = String::from_utf8(told).expect("UTF-8");
        assert!(told.contains("\"reason\": \"manatee-adm state-backfill\""), "{told}");
        assert_eq!(stored(&world.shard).await, None);
        write(&world.shard, &state).await.expect("written");
        assert_eq!(stored(&world.shard).await, Some(state.clone()));
        let chain: Vec<_> = state.chain().map(|peer| peer.ip.clone()).collect();
        assert_eq!(chain, ["10.0.0.1", "10.0.0.3", "10.0.0.2"]);
        assert_eq!(world.shard.coord.history().await.expect("history").len(), 1);
        let again = propose(&world.shard, now()).await.expect_err("there is one").to_string();
        assert!(again.contains("exists already"), "{again}");
        assert!(write(&world.shard, &state).await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_written_without_a_yes() {
        let world = world(&[1, 2]).await;
        let state = propose(&world.shard, now()).await.expect("a state");
        for answer in ["n\n", "", "yellow\n"] {
            let refused = confirm(&state, &mut answer.as_bytes(), &mut Vec::new());
            assert!(refused.is_err(), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn one_peer_is_no_shard() {
        let world = world(&[1]).await;
        let error = format!("{:#}", propose(&world.shard, now()).await.expect_err("too few"));
        assert!(error.contains("1 registered"), "{error}");
    }

    #[tokio::test]
    async fn nothing_is_written_over_what_changed_meanwhile() {
        let mut world = world(&[1, 2, 3]).await;
        let state = propose(&world.shard, now()).await.expect("a state");
        world.sessions.remove(1).leave().await.expect("left");
        let error = write(&world.shard, &state).await.expect_err("changed").to_string();
        assert!(error.contains("have changed"), "{error}");
        assert_eq!(stored(&world.shard).await, None);
    }

    #[tokio::test]
    async fn a_lost_answer_is_settled() {
        for fate in [LostPut::Stored, LostPut::NotStored] {
            let world = world(&[1, 2]).await;
            let state = propose(&world.shard, now()).await.expect("a state");
            world.service.lose_next_put(fate);
            write(&world.shard, &state).await.expect("written");
            assert_eq!(stored(&world.shard).await, Some(state));
            assert_eq!(world.shard.coord.history().await.expect("history").len(), 1);
        }
    }
}
