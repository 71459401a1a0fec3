//! Does what comes next, and writes it down.

use crate::{
    Check, Entry, Illegal, Journal, Mode, Next, Planned, Step, StepError, StepId, StepState, Tell,
    Undo, Way, next,
};
use async_trait::async_trait;
use jiff::Timestamp;

/// Where a journal lies.
pub trait Store: Send {
    /// Adds a line. When this returns the line outlives the loss of power.
    ///
    /// # Errors
    /// When it does not.
    fn append(&mut self, line: &str) -> std::io::Result<()>;
}

/// What a runner is given of the world.
#[async_trait(?Send)]
pub trait Env: Send + Sync {
    /// The time.
    fn now(&self) -> Timestamp;

    /// The step of this name, seeing what is in the journal.
    ///
    /// # Errors
    /// When it cannot be made from the plan.
    fn step(&self, id: &StepId, journal: &Journal) -> Result<Box<dyn Step>, StepError>;

    /// Looks whether what the plan was made from is still so.
    ///
    /// # Errors
    /// When it is not, and nothing may be done before a person has looked.
    async fn guard(&self, journal: &Journal) -> Result<(), StepError>;

    /// Whether somebody wants the run to stop before the next step.
    fn stop_asked(&self) -> bool;

    /// A step begins.
    fn begins(&self, step: &Planned, way: Way);

    /// It has ended: well, or with a problem.
    fn ends(&self, step: &Planned, way: Way, problem: Option<&str>);

    /// Hears how it gets on.
    fn progress(&self) -> &dyn Tell;
}

/// How far a run goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Goal {
    /// It stops after this step.
    pub until: Option<StepId>,
    /// It stops after one step.
    pub one_step: bool,
    /// Nobody is there to look: it stops at no pause.
    pub pass_all: bool,
}

/// Why a run stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// All steps are done.
    Complete,
    /// A person should look before this step.
    Paused {
        /// Which.
        before: StepId,
        /// Why.
        why: String,
    },
    /// It went as far as was asked for.
    AsAsked,
    /// Everything is undone.
    RolledBack,
    /// Everything is done, and nothing kept.
    Committed,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A step cannot be done now.
    #[error("{step} cannot be done now: {why}")]
    Blocked {
        /// Which.
        step: StepId,
        /// Why, and what to do.
        why: String,
    },
    /// What the plan was made from has changed.
    #[error("stopped before {step}: this is not as it was when the plan was made")]
    Changed {
        /// Before which.
        step: StepId,
        /// What.
        #[source]
        cause: StepError,
    },
    /// A step failed.
    #[error("to {way} {step} failed")]
    Step {
        /// Which.
        step: StepId,
        /// Which way.
        way: Way,
        /// Why.
        #[source]
        cause: StepError,
    },
    /// The journal cannot be written.
    #[error("the journal cannot be written: nothing more is done")]
    Store(#[from] std::io::Error),
    /// What was asked for cannot come now.
    #[error(transparent)]
    Illegal(#[from] Illegal),
}

/// Runs the plan of a journal.
pub struct Runner<'a, S> {
    journal: Journal,
    store: S,
    env: &'a dyn Env,
    operator: String,
}

impl<'a, S: Store> Runner<'a, S> {
    /// Goes on with this journal, of which everything is stored.
    pub fn new(journal: Journal, store: S, env: &'a dyn Env, operator: String) -> Self {
        Runner { journal, store, env, operator }
    }

    /// What is written.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    fn write(&mut self, entry: Entry) -> Result<(), RunError> {
        // A line that could not be stored must not count here either.
        let mut after = self.journal.clone();
        let line = after.append(entry, self.env.now(), &self.operator)?;
        self.store.append(&line)?;
        self.journal = after;
        Ok(())
    }

    /// From here on it is undone.
    ///
    /// # Errors
    /// When there is no way back any more, or it cannot be written.
    pub fn turn_back(&mut self, discard_writes: bool) -> Result<(), RunError> {
        if self.journal.mode() == (Mode::Back { discard_writes }) {
            return Ok(());
        }
        self.write(Entry::TurnedBack { discard_writes })
    }

    /// From here on what was kept is let go of.
    ///
    /// # Errors
    /// When not all is done, or it cannot be written.
    pub fn commit(&mut self) -> Result<(), RunError> {
        match self.journal.mode() {
            Mode::Committing => Ok(()),
            _ => self.write(Entry::Committing),
        }
    }

    /// A person has looked before the step that a run stopped at. Does nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn pass(&mut self) -> Result<(), RunError> {
        match next(&self.journal) {
            Next::Pause(step, _) => {
                let step = step.id.clone();
                self.write(Entry::Passed { step })
            }
            _ => Ok(()),
        }
    }

    /// Goes on, whichever way it is, until it is as far as it goes.
    ///
    /// # Errors
    /// When a step cannot be done or the journal cannot be written. It can be gone on with later.
    pub async fn run(&mut self, goal: &Goal) -> Result<Stopped, RunError> {
        loop {
            let (step, way) = match next(&self.journal) {
                Next::Go(step, way) => (step.clone(), way),
                Next::Pause(..) if goal.pass_all => {
                    self.pass()?;
                    continue;
                }
                Next::Pause(step, why) => {
                    return Ok(Stopped::Paused { before: step.id.clone(), why: why.to_owned() });
                }
                Next::Complete => return Ok(Stopped::Complete),
                Next::RolledBack => {
                    self.write(Entry::RolledBack)?;
                    continue;
                }
                Next::Committed => {
                    self.write(Entry::Committed)?;
                    continue;
                }
                Next::Ended if self.journal.mode() == Mode::Committed => {
                    return Ok(Stopped::Committed);
                }
                Next::Ended => return Ok(Stopped::RolledBack),
            };
            if self.env.stop_asked() {
                return Ok(Stopped::AsAsked);
            }
            self.env.begins(&step, way);
            let result = self.go(&step, way).await;
            let problem = result.as_ref().err().map(chain);
            self.env.ends(&step, way, problem.as_deref());
            if let Some(problem) = problem
                && !matches!(result, Err(RunError::Store(_) | RunError::Illegal(_)))
            {
                self.write(Entry::Failed { step: step.id.clone(), way, problem })?;
            }
            result?;
            if goal.one_step || goal.until.as_ref() == Some(&step.id) {
                return Ok(Stopped::AsAsked);
            }
        }
    }

    async fn go(&mut self, planned: &Planned, way: Way) -> Result<(), RunError> {
        let id = &planned.id;
        let failed = |cause| RunError::Step { step: id.clone(), way, cause };
        let step = self.env.step(id, &self.journal).map_err(failed)?;
        let (env, tell) = (self.env, self.env.progress());
        let mut ready = true;
        if way == Way::Apply {
            let changed = |cause| RunError::Changed { step: id.clone(), cause };
            env.guard(&self.journal).await.map_err(changed)?;
            ready = match step.check().await.map_err(failed)? {
                Check::Ready => true,
                Check::Done => false,
                Check::Blocked(why) => return Err(RunError::Blocked { step: id.clone(), why }),
            };
        }
        // Of one that was begun before, the intent is written already.
        if self.journal.state(id) != StepState::Begun(way) {
            self.write(Entry::Intent { step: id.clone(), way })?;
        }
        let outcome = match way {
            Way::Apply => {
                if ready {
                    step.apply(tell).await.map_err(failed)?;
                }
                step.verify().await.map_err(failed)?
            }
            Way::Undo => {
                let discard_writes =
                    matches!(self.journal.mode(), Mode::Back { discard_writes: true });
                step.undo(Undo { discard_writes }, tell).await.map_err(failed)?;
                serde_json::Value::Null
            }
            Way::Release => {
                step.release(tell).await.map_err(failed)?;
                serde_json::Value::Null
            }
        };
        self.write(Entry::Done { step: id.clone(), way, outcome })
    }
}

/// An error with all that caused it, in a line.
fn chain(error: &RunError) -> String {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(first.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
