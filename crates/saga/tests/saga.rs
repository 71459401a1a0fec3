//! A plan of made-up steps in a made-up world, whose runner ends at any moment.

use async_trait::async_trait;
use futures_executor::block_on;
use jiff::Timestamp;
use proptest::prelude::*;
use saga::{
    Broken, Check, Entry, Env, Goal, Journal, Mode, Next, Notice, Outcome, Plan, Planned, RunError,
    Runner, Step, StepError, StepId, StepState, Stopped, Store, Tell, Undo, Way, WayBack, next,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

/// How much of a step is done: 2 is all.
type Done = BTreeMap<StepId, u32>;

#[derive(Default)]
struct World {
    text: String,
    done: Done,
    released: Vec<StepId>,
    /// What may still happen before the runner ends; `None` is for ever.
    left: Option<u32>,
    blocked: bool,
    changed: bool,
}

impl World {
    /// One thing happens, unless the runner has ended.
    fn tick(&mut self) -> Result<(), StepError> {
        match &mut self.left {
            Some(0) => Err("the runner has ended".into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }
}

impl Store for Shared {
    fn append(&mut self, line: &str) -> io::Result<()> {
        self.with(|world| {
            let ended = world.tick().is_err();
            // A line may be cut anywhere.
            let written = if ended { &line[..line.len() / 2] } else { line };
            world.text.push_str(written);
            if ended { Err(io::Error::other("ended")) } else { Ok(()) }
        })
    }
}

impl Tell for Shared {
    fn tell(&self, _line: &str) {}
}

struct Fake {
    world: Shared,
    id: StepId,
}

impl Fake {
    fn bring_to(&self, wanted: u32) -> Result<(), StepError> {
        loop {
            let there = self.world.with(|world| {
                let done = world.done.get(&self.id).copied().unwrap_or_default();
                if done == wanted {
                    return Ok(true);
                }
                world.tick()?;
                let begun = Journal::parse(&world.text).unwrap().0.state(&self.id);
                let way = if wanted == 2 { Way::Apply } else { Way::Undo };
                assert_eq!(begun, StepState::Begun(way), "{} is done before its intent", self.id);
                let after = if done < wanted { done + 1 } else { done - 1 };
                world.done.insert(self.id.clone(), after);
                Ok::<_, StepError>(false)
            })?;
            if there {
                return Ok(());
            }
        }
    }
}

#[async_trait(?Send)]
impl Step for Fake {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(self.world.with(|world| match world.done.get(&self.id) {
            _ if world.blocked => Check::Blocked("the host is away: start it".to_owned()),
            Some(2) => Check::Done,
            _ => Check::Ready,
        }))
    }

    async fn apply(&self, _: &dyn Tell) -> Result<(), StepError> {
        self.bring_to(2)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        Ok(json!({ "done": self.world.with(|world| world.done.get(&self.id).copied()) }))
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        self.bring_to(0)
    }

    async fn release(&self, _: &dyn Tell) -> Result<(), StepError> {
        self.world.with(|world| {
            world.tick()?;
            world.released.push(self.id.clone());
            Ok(())
        })
    }
}

#[async_trait(?Send)]
impl Env for Shared {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn step(&self, id: &StepId, _: &Journal) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Fake { world: self.clone(), id: id.clone() }))
    }

    async fn guard(&self, _: &Journal) -> Result<(), StepError> {
        if self.with(|world| world.changed) { Err("another timeline".into()) } else { Ok(()) }
    }

    fn stop_asked(&self) -> bool {
        false
    }

    fn begins(&self, _: &Planned, _: Way) {}

    fn ends(&self, _: &Planned, _: Way, _: Option<&str>) {}

    fn progress(&self) -> &dyn Tell {
        self
    }
}

fn plan(steps: usize) -> Plan {
    let step = |number: usize| Planned {
        id: StepId(format!("step-{number}")),
        title: "does something".to_owned(),
        touches: Vec::new(),
        clients: Notice::Nothing,
        estimate: None,
        undo: "undoes it".to_owned(),
        way_back: WayBack::Reversible,
        pause: (number == 2).then(|| "look".to_owned()),
    };
    Plan {
        title: "steps".to_owned(),
        facts: json!({ "n": steps }),
        steps: (1..=steps).map(step).collect(),
    }
}

fn begun(steps: usize) -> Shared {
    let shared = Shared::default();
    let line = Journal::begin(plan(steps), Timestamp::UNIX_EPOCH, "me").1;
    shared.with(|world| world.text = line);
    shared
}

/// A runner that goes on from what is written, as after an end of the one before.
fn runner(shared: &Shared) -> Runner<'_, Shared> {
    let (journal, whole) = shared.with(|world| Journal::parse(&world.text)).expect("a journal");
    shared.with(|world| world.text.truncate(whole));
    Runner::new(journal, shared.clone(), shared, "me".to_owned())
}

const ALL: Goal = Goal { until: None, one_step: false, pass_all: true };

fn to_the_end(shared: &Shared) -> Stopped {
    shared.with(|world| world.left = None);
    block_on(runner(shared).run(&ALL)).expect("nothing ends it now")
}

fn all_done(shared: &Shared, how_much: u32, steps: usize) {
    let done = shared.with(|world| world.done.clone());
    assert!(done.values().all(|done| *done == how_much), "{done:?}");
    assert!(how_much == 0 || done.len() == steps, "{done:?}");
}

#[test]
fn runs_to_its_end_and_stops_where_a_person_should_look() {
    let shared = begun(3);
    let mut runner = runner(&shared);
    let goal = Goal::default();
    let paused = Stopped::Paused { before: "step-2".into(), why: "look".to_owned() };
    assert_eq!(block_on(runner.run(&goal)).unwrap(), paused);
    assert_eq!(block_on(runner.run(&goal)).unwrap(), paused);
    runner.pass().unwrap();
    let until = Goal { until: Some("step-2".into()), ..goal.clone() };
    assert_eq!(block_on(runner.run(&until)).unwrap(), Stopped::AsAsked);
    assert_eq!(runner.journal().outcome(&"step-2".into()), Some(&json!({ "done": 2 })));
    assert!(runner.commit().is_err(), "not all of it is done");
    assert_eq!(block_on(runner.run(&goal)).unwrap(), Stopped::Complete);
    all_done(&shared, 2, 3);
    runner.commit().unwrap();
    assert!(runner.turn_back(false).is_err(), "there is no way back");
    assert_eq!(block_on(runner.run(&goal)).unwrap(), Stopped::Committed);
    assert_eq!(shared.with(|world| world.released.len()), 3);
}

#[test]
fn ends_at_every_moment_and_goes_on() {
    for left in 0.. {
        let shared = begun(4);
        shared.with(|world| world.left = Some(left));
        let ended = block_on(runner(&shared).run(&ALL)).is_err();
        assert_eq!(to_the_end(&shared), Stopped::Complete);
        all_done(&shared, 2, 4);
        if !ended {
            assert!(left > 12, "{left}");
            break;
        }
    }
}

#[test]
fn is_undone_from_every_moment_even_when_that_ends_at_every_moment() {
    for left in 0..20 {
        for back in 0..20 {
            let shared = begun(4);
            shared.with(|world| world.left = Some(left));
            let _ends_or_not = block_on(runner(&shared).run(&ALL));
            shared.with(|world| world.left = Some(back));
            let mut undoing = runner(&shared);
            let _ends_or_not = undoing.turn_back(false).map(|()| block_on(undoing.run(&ALL)));
            shared.with(|world| world.left = None);
            runner(&shared).turn_back(false).or_else(ended).unwrap();
            assert_eq!(to_the_end(&shared), Stopped::RolledBack);
            all_done(&shared, 0, 4);
        }
    }
}

/// Whether it had been undone to its end before.
fn ended(error: RunError) -> Result<(), RunError> {
    if error.to_string().contains("it was undone") { Ok(()) } else { Err(error) }
}

#[test]
fn what_cannot_be_done_is_said_and_can_be_tried_again() {
    let shared = begun(2);
    shared.with(|world| world.blocked = true);
    let error = block_on(runner(&shared).run(&ALL)).unwrap_err();
    assert_eq!(error.to_string(), "step-1 cannot be done now: the host is away: start it");
    let mut going = runner(&shared);
    let (step, problem) = going.journal().problem().expect("it is written");
    assert_eq!((step, problem), (&"step-1".into(), error.to_string().as_str()));
    assert_eq!(going.journal().state(&"step-1".into()), StepState::Pending);
    shared.with(|world| (world.blocked, world.changed) = (false, true));
    let error = block_on(going.run(&ALL)).unwrap_err();
    assert!(matches!(error, RunError::Changed { .. }), "{error}");
    shared.with(|world| world.changed = false);
    assert_eq!(block_on(going.run(&ALL)).unwrap(), Stopped::Complete);
    assert_eq!(going.journal().problem(), None);
}

#[test]
fn a_journal_that_was_changed_is_refused() {
    let shared = begun(2);
    assert_eq!(to_the_end(&shared), Stopped::Complete);
    let text = shared.with(|world| world.text.clone());
    let parse = |text: &str| Journal::parse(text).map(|(journal, whole)| (journal.mode(), whole));
    assert_eq!(parse(&text).unwrap(), (Mode::Forward, text.len()));
    let torn = format!("{text}{}", &text[..40]);
    assert_eq!(parse(&torn).unwrap(), (Mode::Forward, text.len()), "a torn line does not count");
    let changed = text.replacen("does something", "does anything", 1);
    assert!(matches!(parse(&changed), Err(Broken::Hash { line: 1 })));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.remove(2);
    assert!(matches!(parse(&(lines.join("\n") + "\n")), Err(Broken::Hash { line: 3 })));
    assert!(matches!(parse(&text.replacen('{', "[", 1)), Err(Broken::Line { line: 1, .. })));
    assert!(matches!(parse(""), Err(Broken::Empty)));
    assert!(matches!(parse("torn"), Err(Broken::Empty)));
}

#[test]
fn nothing_is_written_out_of_turn() {
    let (mut journal, _) = Journal::begin(plan(2), Timestamp::UNIX_EPOCH, "me");
    let mut write = |entry| journal.append(entry, Timestamp::UNIX_EPOCH, "me").map(|_| ());
    let (step, way) = (StepId::from("step-2"), Way::Apply);
    for entry in [
        Entry::Intent { step: step.clone(), way },
        Entry::Done { step: step.clone(), way, outcome: json!(null) },
        Entry::Intent { step: "step-1".into(), way: Way::Undo },
        Entry::Passed { step },
        Entry::RolledBack,
        Entry::Committing,
        Entry::Committed,
    ] {
        assert!(write(entry.clone()).is_err(), "{entry:?}");
    }
    write(Entry::TurnedBack { discard_writes: false }).unwrap();
    assert_eq!(next(&journal), Next::RolledBack);
}

proptest! {
    /// However often the runner ends, and whenever it is turned back, the journal can be gone on with.
    #[test]
    fn goes_on_after_any_ends(ends in prop::collection::vec((0..9u32, any::<bool>()), 1..40)) {
        let shared = begun(5);
        let mut back = false;
        for (left, turn) in ends {
            shared.with(|world| world.left = Some(left));
            let mut runner = runner(&shared);
            // Mostly forward: each end halves the chance to be turned back.
            if turn && left == 0 {
                shared.with(|world| world.left = None);
                back |= runner.turn_back(false).is_ok();
                shared.with(|world| world.left = Some(left));
            }
            let _ends_or_not = block_on(runner.run(&ALL));
        }
        let (stopped, how_much) =
            if back { (Stopped::RolledBack, 0) } else { (Stopped::Complete, 2) };
        prop_assert_eq!(to_the_end(&shared), stopped);
        all_done(&shared, how_much, 5);
    }
}
