//! Making a failing run small: steps are left out as long as the same checker still complains.

use super::{plan::Plan, run};
use crate::checkers::Violation;

/// How many runs it may take.
const RUNS: usize = 4_000;

/// The smallest run found that the same checker complains about, with what it says.
pub(super) fn shrink(plan: &Plan, violation: &Violation) -> (Plan, Violation) {
    let mut best = (plan.clone(), violation.clone());
    let mut runs = 0;
    let mut length = best.0.steps.len().div_ceil(2);
    loop {
        let mut place = 0;
        let before = best.0.steps.len();
        while place < best.0.steps.len() && runs < RUNS {
            // Without the time that they took, and with it.
            let found = [false, true].into_iter().find_map(|keep_time| {
                runs += 1;
                let smaller = without(&best.0, place, length, keep_time);
                let seen = run(&smaller).violation?;
                (seen.checker == violation.checker).then_some((smaller, seen))
            });
            match found {
                Some(smaller) => best = smaller,
                None => place += length,
            }
        }
        let shrunk = best.0.steps.len() < before;
        if runs >= RUNS || (length == 1 && !shrunk) {
            return best;
        }
        length = if length == 1 { 1 } else { length.div_ceil(2) };
    }
}

fn without(plan: &Plan, place: usize, length: usize, keep_time: bool) -> Plan {
    let mut plan = plan.clone();
    let end = (place + length).min(plan.steps.len());
    let gone: u64 = plan.steps.drain(place..end).map(|step| step.after).sum();
    if let (true, Some(next)) = (keep_time, plan.steps.get_mut(place)) {
        next.after += gone;
    }
    plan
}
