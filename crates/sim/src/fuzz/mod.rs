//! The fuzzer: many seeds, each a whole run with faults, each judged by all checkers; a seed that
//! fails is made small and told step by step.

mod plan;
mod shrink;

pub use plan::{Plan, Step};

use crate::{
    Mutation,
    checkers::{Blocked, Verdict, Violation, settle},
    world::World,
};
use serde::Serialize;
use std::{
    any::Any,
    collections::BTreeMap,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The first seed.
    pub seed: u64,
    /// How many.
    pub seeds: u64,
    /// How many faults each.
    pub steps: usize,
    /// How many peers.
    pub peers: RangeInclusive<usize>,
    /// How many threads.
    pub jobs: usize,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
}

/// How one run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What was wrong, if anything.
    pub violation: Option<Violation>,
    /// How many events there were.
    pub events: u64,
    /// How many commits were acknowledged.
    pub acknowledged: u64,
    /// Why no write was possible in the end, where the rules allow none.
    pub blocked: Option<Blocked>,
}

/// A seed that fails, made small.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Which checker complains, about what.
    pub violation: String,
    /// How many steps are left of how many.
    pub steps: (usize, usize),
    /// What happened, in words; the faults are marked with a star.
    pub story: Vec<String>,
}

/// What all runs gave together.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// How many seeds were run.
    pub seeds: u64,
    /// How many events there were.
    pub events: u64,
    /// How many commits were acknowledged.
    pub acknowledged: u64,
    /// How many runs ended without writes, because the rules allow none, by what is to blame.
    pub blocked: BTreeMap<Blocked, u64>,
    /// The seed that failed, of those that did the lowest that was found.
    pub failure: Option<Failure>,
}

/// Runs one plan.
pub fn run(plan: &Plan) -> Outcome {
    let mut world = World::new(plan.setup.clone());
    let verdict = catch_unwind(AssertUnwindSafe(|| drive(&mut world, plan)));
    let (violation, blocked) = match verdict {
        Ok(Verdict::Blocked(blocked)) => (world.violation().cloned(), Some(blocked)),
        Ok(_) => (world.violation().cloned(), None),
        Err(panic) => (Some(panicked(world.now(), panic.as_ref())), None),
    };
    let (events, acknowledged) = (world.handled(), world.checkers.acknowledgements());
    Outcome { violation, events, acknowledged, blocked }
}

fn drive(world: &mut World, plan: &Plan) -> Verdict {
    for step in &plan.steps {
        world.run_until(world.now() + step.after);
        if world.violation().is_some() {
            return Verdict::Violated;
        }
        world.inflict(step.fault);
    }
    settle(world)
}

fn panicked(at: u64, panic: &(dyn Any + Send)) -> Violation {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    Violation { checker: "panic", at, problem: text.unwrap_or("a panic").to_owned() }
}

/// Tells what happens in a run.
pub fn tell(plan: &Plan) -> Vec<String> {
    let mut world = World::new(plan.setup.clone());
    world.keep_diary();
    // A panic is told by what was written down before it, and by its own message.
    let _ = catch_unwind(AssertUnwindSafe(|| drive(&mut world, plan)));
    let mut story = world.take_diary();
    if let Some(violation) = world.violation() {
        story.push(format!("VIOLATED  {violation}"));
    }
    story
}

/// Runs the seeds until one fails, and makes that one small. After each it is told what there is so far.
pub fn fuzz(options: &Options, told: &(dyn Fn(&Report) + Sync)) -> Report {
    let (mut report, failed) = hunt(options, told);
    report.failure = failed.map(|(seed, violation)| explain(options, seed, &violation));
    report
}

/// Runs the seeds until one fails.
pub fn hunt(
    options: &Options,
    told: &(dyn Fn(&Report) + Sync),
) -> (Report, Option<(u64, Violation)>) {
    let (next, stop) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let end = options.seed.saturating_add(options.seeds);
    let total = Mutex::new((Report::default(), None::<(u64, Violation)>));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = run(&draw(options, seed));
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.0.seeds += 1;
            total.0.events += outcome.events;
            total.0.acknowledged += outcome.acknowledged;
            if let Some(blocked) = outcome.blocked {
                *total.0.blocked.entry(blocked).or_default() += 1;
            }
            told(&total.0);
            if let Some(violation) = outcome.violation {
                stop.store(true, Ordering::Relaxed);
                if total.1.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                    total.1 = Some((seed, violation));
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The run of a seed.
pub fn draw(options: &Options, seed: u64) -> Plan {
    Plan::draw(seed, options.steps, options.peers.clone(), options.mutation)
}

fn explain(options: &Options, seed: u64, violation: &Violation) -> Failure {
    let plan = draw(options, seed);
    let (small, violation) = shrink::shrink(&plan, violation);
    Failure {
        seed,
        violation: violation.to_string(),
        steps: (small.steps.len(), plan.steps.len()),
        story: tell(&small),
    }
}
