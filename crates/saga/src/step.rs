//! What a step has to be able to do.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Why a step did not do what it was to do.
pub type StepError = Box<dyn std::error::Error + Send + Sync>;

/// What a step found or made, for the journal and for the steps after it.
pub type Outcome = Value;

/// Which way a step is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// It is done.
    Apply,
    /// It is undone.
    Undo,
    /// What it kept for being undone is let go of.
    Release,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Apply => "do",
            Way::Undo => "undo",
            Way::Release => "let go",
        })
    }
}

/// What stands in the way of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It is done already.
    Done,
    /// It can be done.
    Ready,
    /// It cannot be done now, and this is why and what to do.
    Blocked(String),
}

/// How a step is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undo {
    /// What was written since may be lost: nothing is sent back.
    pub discard_writes: bool,
}

/// Hears how a step gets on.
pub trait Tell: Send + Sync {
    /// One line; the next one takes its place.
    fn tell(&self, line: &str);

    /// One line that has to stay to be read.
    fn note(&self, line: &str) {
        self.tell(line);
    }
}

/// One step. Each of these may be called again after any of them was interrupted anywhere: doing what is
/// done and undoing what is undone change nothing.
#[async_trait(?Send)]
pub trait Step: Send + Sync {
    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// When it cannot look.
    async fn check(&self) -> Result<Check, StepError>;

    /// Does it, from wherever an earlier attempt ended.
    ///
    /// # Errors
    /// When it is not done; what was changed can still be undone.
    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError>;

    /// Proves that it is done.
    ///
    /// # Errors
    /// When it is not.
    async fn verify(&self) -> Result<Outcome, StepError>;

    /// Makes it as if the step had not been begun, from wherever it is.
    ///
    /// # Errors
    /// When not all of it is undone yet; it can be tried again.
    async fn undo(&self, how: Undo, tell: &dyn Tell) -> Result<(), StepError>;

    /// Lets go of what was kept for undoing it.
    ///
    /// # Errors
    /// When something of it is left; it can be tried again.
    async fn release(&self, _tell: &dyn Tell) -> Result<(), StepError> {
        Ok(())
    }
}
