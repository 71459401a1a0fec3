//! A saga: a [`Plan`] of steps that are done in order, each of which can be undone until the whole is
//! committed; a [`Journal`] that says at every moment how far it is; an [`engine`](next) that says what
//! comes next; and a [`Runner`] that does it with the [`Step`]s and the [`Store`] that it is given.
//!
//! Contract: an intent is in the journal before its deed, and the deed's end after it. Whoever reads
//! the journal knows, whatever happened to the runner before, what may have been begun; and as every step
//! can be done twice and undone twice, it can go on either way.

mod engine;
mod journal;
mod plan;
mod run;
mod step;

pub use engine::{Next, next};
pub use journal::{Broken, Entry, Illegal, Journal, Mode, Record, SCHEMA, StepState};
pub use plan::{Notice, Plan, Planned, StepId, WayBack};
pub use run::{Env, Goal, RunError, Runner, Stopped, Store};
pub use step::{Check, Outcome, Step, StepError, Tell, Undo, Way};
