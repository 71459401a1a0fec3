//! What comes next.

use crate::{Journal, Mode, Planned, Way};

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// This step is gone this way.
    Go(&'a Planned, Way),
    /// A person should look before this step is done.
    Pause(&'a Planned, &'a str),
    /// All steps are done; what was kept is kept until `commit`.
    Complete,
    /// All is undone: this is to be written down.
    RolledBack,
    /// All is let go of: this is to be written down.
    Committed,
    /// Nothing: it has ended.
    Ended,
}

/// What comes next after all that is written.
pub fn next(journal: &Journal) -> Next<'_> {
    let planned = |id| journal.plan().step(id).expect("a step of the plan");
    let go = |id, way| Next::Go(planned(id), way);
    match journal.mode() {
        Mode::Forward => match journal.first_not(Way::Apply).map(planned) {
            None => Next::Complete,
            Some(step) => match &step.pause {
                Some(why) if !journal.is_passed(&step.id) => Next::Pause(step, why),
                _ => Next::Go(step, Way::Apply),
            },
        },
        Mode::Back { .. } => {
            journal.last_begun().map_or(Next::RolledBack, |step| go(step, Way::Undo))
        }
        Mode::Committing => {
            journal.first_not(Way::Release).map_or(Next::Committed, |step| go(step, Way::Release))
        }
        Mode::RolledBack | Mode::Committed => Next::Ended,
    }
}
