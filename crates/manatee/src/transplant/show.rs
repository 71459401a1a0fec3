//! Plans and journals as tables.

use saga::{Journal, Mode, Next, Plan, Planned, StepState, Way, WayBack, next};
use serde_json::{Value, json};
use std::path::Path;
use transplant::{Problem, was_without_donor};

fn seconds(step: &Planned) -> String {
    step.estimate.map_or_else(String::new, |seconds| match seconds {
        0..120 => format!("{seconds} s"),
        _ => format!("{} min", seconds.div_ceil(60)),
    })
}

/// A plan, before it is run.
pub(super) fn plan(plan: &Plan, after_opening: &[String]) -> String {
    let mut text = format!("{}\n\n", plan.title);
    text +=
        &format!("{:<17} {:>7}  {:<15} {}\n", "STEP", "ABOUT", "CLIENTS NOTICE", "WHAT IT DOES");
    for step in &plan.steps {
        let (id, about, clients) = (&step.id, seconds(step), step.clients);
        text += &format!("{id:<17} {about:>7}  {clients:<15} {}\n", step.title);
        if !step.touches.is_empty() {
            text += &format!("{:27}{:<15} changes: {}\n", "", "", step.touches.join(", "));
        }
        text += &format!("{:27}{:<15} to undo: {}\n", "", "", step.undo);
        if let Some(why) = &step.pause {
            text += &format!("{:27}{:<15} stops before it: {why}\n", "", "");
        }
        if let WayBack::PointOfNoReturn(why) = &step.way_back {
            text += &format!("{:27}{:<15} NO WAY BACK: {why}\n", "", "");
        }
    }
    text += "\nEverything can be undone until `manatee transplant commit`.\n";
    if !after_opening.is_empty() {
        text += "As soon as the recipient is open, on its primary's host, for another collation:\n";
        text.extend(after_opening.iter().map(|command| format!("    {command}\n")));
    }
    text
}

/// What is wrong, all of it.
pub(super) fn problems(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn word(state: StepState) -> &'static str {
    match state {
        StepState::Pending => "",
        StepState::Begun(Way::Apply) => "begun",
        StepState::Begun(Way::Undo) => "being undone",
        StepState::Begun(Way::Release) => "being let go",
        StepState::Ended(Way::Apply) => "done",
        StepState::Ended(Way::Undo) => "undone",
        StepState::Ended(Way::Release) => "done for good",
    }
}

/// What can be done now, as a command, where these hosts were named as gone for what is under way.
pub(super) fn hint(journal: &Journal, inventory: &Path, without: &[String]) -> String {
    let file = inventory.display();
    let without: String = without.iter().map(|name| format!(" --without {name}")).collect();
    match (next(journal), journal.mode()) {
        (Next::Pause(step, why), _) => format!(
            "stopped before {}: {why}\ngo on with `manatee transplant resume {file}{without}`, or undo it all \
             with `manatee transplant rollback {file}`",
            step.id
        ),
        (Next::Complete, _) if was_without_donor(journal) => format!(
            "complete, without the donor: there is no way back; `manatee transplant commit {file} --without donor` \
             ends it"
        ),
        (Next::Complete, _) => format!(
            "complete; the way back is kept: `manatee transplant rollback {file}` takes it, `manatee \
             transplant commit {file}` gives it up"
        ),
        (Next::Ended, mode) => mode.to_string(),
        (_, Mode::Forward) => format!(
            "go on with `manatee transplant run {file}{without}`, or undo it all with `manatee transplant \
             rollback {file}`"
        ),
        (_, Mode::Back { discard_writes }) => {
            let discard = if discard_writes { " --discard-writes" } else { "" };
            format!(
                "it is being undone: go on with `manatee transplant rollback {file}{without}{discard}`"
            )
        }
        (_, _) => {
            format!("it is being committed: go on with `manatee transplant commit {file}{without}`")
        }
    }
}

/// How far a transplant is.
pub(super) fn status(journal: &Journal, inventory: &Path, without: &[String]) -> String {
    let mut text = format!("{}\n\n", journal.plan().title);
    text += &format!("{:<17} {:<14} {}\n", "STEP", "", "WHAT IT DOES");
    for step in &journal.plan().steps {
        text += &format!("{:<17} {:<14} {}\n", step.id, word(journal.state(&step.id)), step.title);
    }
    if let Some((step, problem)) = journal.problem() {
        let problem = problem.trim_start_matches(&format!("to do {step} failed: "));
        text += &format!("\n{step}: {problem}\n");
    }
    text + "\n" + &hint(journal, inventory, without) + "\n"
}

/// The same for programs.
pub(super) fn status_json(journal: &Journal, inventory: &Path) -> Value {
    let step = |step: &Planned| {
        json!({
            "id": step.id,
            "title": step.title,
            "state": word(journal.state(&step.id)),
            "outcome": journal.outcome(&step.id),
        })
    };
    let problem = journal.problem().map(|(step, why)| json!({ "step": step, "problem": why }));
    let at = journal.records().last().map(|record| record.at);
    json!({
        "title": journal.plan().title,
        "mode": journal.mode().to_string(),
        "steps": journal.plan().steps.iter().map(step).collect::<Vec<_>>(),
        "problem": problem,
        "next": hint(journal, inventory, &[]),
        "changed": at,
    })
}
