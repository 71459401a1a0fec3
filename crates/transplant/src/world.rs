//! What the runner is given: the time, the steps, the guard, and whoever watches.

use crate::{
    Without,
    donor::Control,
    manatee,
    steps::{self, Scene},
};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use jiff::Timestamp;
use saga::{Env, Journal, Mode, Planned, Step, StepError, StepId, StepState, Tell, Way};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whoever watches a run.
pub trait Screen: Tell {
    /// A step begins.
    fn begins(&self, step: &Planned, way: Way);

    /// It has ended.
    fn ends(&self, step: &Planned, way: Way, problem: Option<&str>);
}

/// The world of a transplant.
pub struct World<'a> {
    /// Whoever watches.
    pub screen: &'a dyn Screen,
    /// While this file is there, the run stops before the next step.
    pub pause_file: PathBuf,
    /// As if it were there.
    pub interrupted: &'a AtomicBool,
    /// Whose hosts are off for good.
    pub without: &'a Without,
}

#[async_trait(?Send)]
impl Env for World<'_> {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn step(&self, id: &StepId, journal: &Journal) -> Result<Box<dyn Step>, StepError> {
        Ok(steps::step(id, journal, self.without)?)
    }

    async fn guard(&self, journal: &Journal) -> Result<(), StepError> {
        Ok(guard(journal, self.without).await?)
    }

    fn stop_asked(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.pause_file.exists()
    }

    fn begins(&self, step: &Planned, way: Way) {
        self.screen.begins(step, way);
    }

    fn ends(&self, step: &Planned, way: Way, problem: Option<&str>) {
        self.screen.ends(step, way, problem);
    }

    fn progress(&self) -> &dyn Tell {
        self.screen
    }
}

/// How many transactions wrote since the recipient opened; `None` when it is not open.
///
/// # Errors
/// When that cannot be told.
pub async fn written_since(journal: &Journal, without: &Without) -> Result<Option<u64>> {
    // What was undone has been brought back, or given up, already.
    if matches!(
        journal.state(&steps::OPEN_RECIPIENT.into()),
        StepState::Pending | StepState::Ended(Way::Undo)
    ) {
        return Ok(None);
    }
    steps::opened::lost(&Scene::of(journal, without)?).await
}

/// The donor is as the transplant has left it, whichever way that goes or has ended; how that is.
///
/// # Errors
/// When it is not, and while it is being undone.
pub async fn verify(journal: &Journal) -> Result<&'static str> {
    match journal.mode() {
        Mode::Forward => {
            guard(journal, &Without::default()).await?;
            Ok("the donor is as the steps so far left it")
        }
        Mode::Back { .. } => bail!(
            "it is being undone, and the donor may be anything between: go on with `manatee transplant rollback`"
        ),
        Mode::RolledBack => {
            serves(journal).await?;
            Ok("it was undone: the donor serves")
        }
        // Its host may be gone, or the donor removed: that is said.
        Mode::Committing | Mode::Committed => {
            guard(journal, &Without::default()).await?;
            Ok("the donor is stopped and closed, as it was left: the shard has its place")
        }
    }
}

/// The donor serves, as it does when all is undone.
async fn serves(journal: &Journal) -> Result<()> {
    let Scene { donor, facts, .. } = Scene::of(journal, &Without::default())?;
    if !donor.is_running().await? {
        bail!("it was undone, and the donor does not run: start it, and look why it ended");
    }
    let found = donor.control().await?.system_identifier;
    if found != facts.donor.system_identifier {
        bail!("the donor has another database: {found}");
    }
    if donor.sql("select pg_is_in_recovery()").await? == "t" {
        bail!("it was undone, and the donor is a standby now: look who is primary in its place");
    }
    Ok(())
}

/// The donor is as the plan and the steps so far left it; nothing of them is undone. Of one whose host is gone
/// only the others are asked.
///
/// # Errors
/// When it is not.
async fn guard(journal: &Journal, without: &Without) -> Result<()> {
    let scene = Scene::of(journal, without)?;
    let (donor, planned) = (&scene.donor, &scene.facts.donor);
    let begun = |step: &str| journal.state(&step.into()) != StepState::Pending;
    // What is let go of was done, and is.
    let done = |step: &str| {
        !matches!(
            journal.state(&step.into()),
            StepState::Pending
                | StepState::Begun(Way::Apply | Way::Undo)
                | StepState::Ended(Way::Undo)
        )
    };
    if let Some(shard) = &scene.facts.shard {
        let kind = donor.config.kind;
        let now = manatee::look(&donor.config).await?;
        manatee::unchanged(kind, shard, &now, !begun(steps::STOP_DONOR))?;
        if done(steps::HOLD_DONOR) && !now.frozen {
            bail!(
                "the donor was unfrozen: a peer of it could take over; freeze it, or undo the \
                 transplant with `rollback`"
            );
        }
        let other = now.registered.iter().find(|peer| !scene.is_donor(peer));
        if let (true, Some(peer)) = (done(steps::STOP_STANDBYS), other) {
            bail!("{} was started again: stop its sitter", manatee::named(peer));
        }
        if done(steps::FENCE_DONOR) && !scene.is_donor_gone() {
            manatee::check_closed(&scene.facts).await?;
        }
    }
    if let Some(patroni) = &scene.patroni
        && done(steps::HOLD_DONOR)
    {
        // Once their end is begun, the recipient has opened, and none of them may be left to answer.
        let silent = begun(steps::STOP_STANDBYS);
        patroni.is_held(begun(steps::STOP_DONOR), silent).await?;
    }
    if scene.is_donor_gone() {
        return Ok(());
    }
    let runs = donor.is_running().await?;
    let control = donor.control().await?;
    if control.system_identifier != planned.system_identifier {
        bail!("the donor has another database: {}", control.system_identifier);
    }
    let (level, asked) = (steps::LEVEL_DONOR.into(), steps::COMPARE_ANSWERS.into());
    if [journal.state(&level), journal.state(&asked)].contains(&StepState::Begun(Way::Apply)) {
        // It may be following the shard just now, or being asked.
        return is_closed(&scene).await;
    }
    // Nothing, where it was passed over as its host was gone.
    let leveled: Option<Control> =
        if done(steps::LEVEL_DONOR) { scene.outcome(steps::LEVEL_DONOR)? } else { None };
    let left = match leveled {
        None if done(steps::STOP_DONOR) => Some(scene.outcome(steps::STOP_DONOR)?),
        left => left,
    };
    let timeline = left.as_ref().map_or(planned.timeline, |left| left.timeline);
    let found = if runs { donor.timeline(&control).await } else { control.timeline };
    if found != timeline {
        bail!("the donor is on timeline {found}, it was on {timeline}");
    }
    if !begun(steps::STOP_DONOR) {
        if !runs {
            bail!("the donor does not run: start it, and look why it ended");
        }
        if donor.sql("select pg_is_in_recovery()").await? == "t" {
            bail!("the donor is a standby now: another server was promoted in its place");
        }
    }
    if let Some(stopped) = left {
        if runs {
            bail!("the donor was started: stop it, or undo the transplant with `rollback`");
        }
        if control.checkpoint != stopped.checkpoint {
            bail!(
                "the donor was started after it had been stopped, and wrote up to {}: undo the \
                 transplant with `rollback`, and begin again",
                control.checkpoint
            );
        }
    }
    if done(steps::FENCE_DONOR) {
        is_closed(&scene).await?;
    }
    Ok(())
}

async fn is_closed(scene: &Scene) -> Result<()> {
    let signal = scene.donor.path(crate::donor::STANDBY_SIGNAL);
    let there = scene.donor.read(&signal).await?;
    there.with_context(|| format!("{signal} is gone: the donor would start open for writes"))?;
    Ok(())
}
