//! Changes of the cluster state by an operator's hand: read, decide, write only if nothing came in
//! between, and begin again if something did.

use super::Shard;
use super::history::instant;
use super::view::Stored;
use adapters::coord::{CoordError, PutOutcome, Registration, Version};
use anyhow::{Context, Result, bail};
use cluster::{ClusterState, Freeze, FreezeInfo};
use jiff::Timestamp;
use std::sync::Mutex;

/// How often a change begins again. Peers write seldom; a shard that changes faster than this is in
/// a state that an operator wants to look at first.
const ATTEMPTS: usize = 5;

/// What is to be done about the state that was read.
#[derive(Debug)]
pub enum Step {
    /// Write this in its place.
    Write(Box<ClusterState>),
    /// It is as it should be: a write of ours whose answer was lost had arrived.
    Arrived,
}

/// Reads the state and writes what `decide` makes of it. `decide` may refuse, and is told whether
/// an earlier write of this change may have arrived.
///
/// # Errors
/// When there is no state, or one that nobody can act on, `decide` refuses, or it is not known in
/// the end whether the change was stored.
pub async fn change(
    shard: &Shard,
    decide: impl Fn(&ClusterState, bool) -> Result<Step>,
) -> Result<()> {
    change_among(shard, |state, _active, unsure| decide(state, unsure)).await
}

/// As [`change`]; `decide` is told the live registrations as well, as they were when the state was
/// read. They may change before the write: only what stays harmless then may rest on them.
///
/// # Errors
/// As [`change`].
pub async fn change_among(
    shard: &Shard,
    decide: impl Fn(&ClusterState, &[Registration], bool) -> Result<Step>,
) -> Result<()> {
    let mut lost: Option<(CoordError, Version)> = None;
    for _ in 0..ATTEMPTS {
        let read = match (shard.coord.read().await, lost.take()) {
            (Ok(read), unknown) => {
                lost = unknown;
                read
            }
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some((unknown, _))) => {
                let error = anyhow::Error::from(error);
                return Err(unsettled(unknown).context(format!("cannot read it again: {error:#}")));
            }
        };
        let stored = read.state.map(Stored::new);
        let (version, state) = settled(shard, stored)?;
        let step = match (decide(&state, &read.active, lost.is_some()), lost.take()) {
            // What it was to replace still stands, so it may replace it yet.
            (Err(error), Some((unknown, expected))) if expected == version => {
                return Err(unsettled(unknown).context(format!("on a second look: {error:#}")));
            }
            (step, unknown) => {
                lost = unknown;
                step?
            }
        };
        match step {
            Step::Arrived => return Ok(()),
            Step::Write(next) => {
                next.validate().context("refusing to write an illegal state")?;
                match shard.coord.put(Some(version), &next).await {
                    PutOutcome::Committed(_) => return Ok(()),
                    PutOutcome::Conflict => {}
                    PutOutcome::Refused(error) => {
                        return Err(refused(error, lost.map(|(unknown, _)| unknown)));
                    }
                    PutOutcome::Unknown(error) => lost = Some((error, version)),
                }
            }
        }
    }
    match lost {
        Some((error, _)) => Err(unsettled(error)),
        None => bail!(
            "not changed: the cluster state of shard {:?} was written by others {ATTEMPTS} times \
             in a row meanwhile; look at it with `manatee adm history` and try again",
            shard.target.shard
        ),
    }
}

fn settled(shard: &Shard, stored: Option<Stored>) -> Result<(Version, ClusterState)> {
    let name = &shard.target.shard;
    match stored {
        None => bail!("shard {name:?} has no cluster state yet: nothing to change"),
        Some(Stored { error: Some(error), .. }) => bail!(
            "not changed: no peer can act on the state that is stored for shard {name:?}, and \
             writing over it could lose what is right in it: {error}; see `manatee adm zk-state`"
        ),
        Some(Stored { raw, state: Some(state), error: None }) => Ok((raw.version, state)),
        Some(Stored { state: None, error: None, .. }) => {
            bail!("not changed: the state that is stored for shard {name:?} cannot be read")
        }
    }
}

/// That a write was refused, for the operator; or, after one whose answer was lost, that the second
/// attempt was.
pub fn refused(error: CoordError, lost: Option<CoordError>) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    match lost {
        None => error.context("not changed"),
        Some(lost) => unsettled(lost).context(format!("refused when tried again: {error:#}")),
    }
}

/// That a write may be stored or not, for the operator.
pub fn unsettled(error: CoordError) -> anyhow::Error {
    anyhow::Error::from(error).context(
        "it is not known whether the change was stored, it may even arrive later: look with \
         `manatee adm show`",
    )
}

/// Freezes the shard.
///
/// # Errors
/// When it is frozen already; otherwise as [`change`].
pub async fn freeze(shard: &Shard, reason: &str, now: Timestamp) -> Result<String> {
    // The original writes milliseconds.
    let date = Timestamp::from_millisecond(now.as_millisecond())?;
    let info = FreezeInfo { date, reason: reason.to_owned(), extra: serde_json::Map::new() };
    change(shard, |state, unsure| {
        if unsure && state.freeze == Some(Freeze::Since(info.clone())) {
            return Ok(Step::Arrived);
        }
        match &state.freeze {
            Some(Freeze::Since(other)) => bail!(
                "shard {:?} is frozen already, since {}: {}",
                shard.target.shard,
                instant(other.date),
                other.reason
            ),
            Some(Freeze::Bare(true)) => bail!(
                "shard {:?} is frozen already; since when and why was not written down",
                shard.target.shard
            ),
            Some(Freeze::Bare(false)) | None => {}
        }
        let freeze = Some(Freeze::Since(info.clone()));
        Ok(Step::Write(Box::new(ClusterState { freeze, ..state.clone() })))
    })
    .await?;
    Ok(format!("frozen since {}: {reason}\n", instant(date)))
}

/// Unfreezes the shard.
///
/// # Errors
/// When it is not frozen, or frozen by somebody else in the meantime; otherwise as [`change`].
pub async fn unfreeze(shard: &Shard) -> Result<String> {
    let found = Mutex::new(None);
    change(shard, |state, unsure| {
        let mut found = found.lock().expect("no holder panics");
        match (state.is_frozen(), unsure) {
            (false, true) => return Ok(Step::Arrived),
            (false, false) => bail!("shard {:?} is not frozen", shard.target.shard),
            (true, _) if found.as_ref().is_some_and(|found| *found != state.freeze) => {
                bail!(
                    "shard {:?} was frozen anew meanwhile: see `manatee adm show`",
                    shard.target.shard
                )
            }
            (true, _) => {}
        }
        *found = Some(state.freeze.clone());
        Ok(Step::Write(Box::new(ClusterState { freeze: None, ..state.clone() })))
    })
    .await?;
    Ok("unfrozen\n".to_owned())
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
