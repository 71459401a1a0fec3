//! What a run shows: each step as it begins and ends, and how it gets on.

use adapters::clock;
use cluster::{Millis, Monotonic};
use saga::{Planned, Tell, Way};
use std::{
    io::{IsTerminal, Write, stderr, stdout},
    sync::Mutex,
};
use transplant::Screen;

/// Between two lines of progress where there is no terminal.
const PERIOD: Millis = Millis(5_000);

/// Prints this to whoever still reads. That nobody does stops no transplant, nor anything in the middle of it.
pub(super) fn say(text: &str) {
    let mut out = stdout();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        warn(text);
    }
}

/// The same by the standard error.
pub(super) fn warn(text: &str) {
    let _ = stderr().write_all(text.as_bytes());
}

/// The standard output.
pub(super) struct Output {
    terminal: bool,
    state: Mutex<State>,
}

struct State {
    begun: Monotonic,
    told: Monotonic,
    last: String,
}

impl Output {
    pub fn new() -> Output {
        let now = clock::now();
        let state = State { begun: now, told: now, last: String::new() };
        Output { terminal: stdout().is_terminal(), state: Mutex::new(state) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("no holder panics"))
    }

    /// Prints a line.
    fn line(&self, line: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        say(&format!("{clear}{line}\n"));
    }
}

impl Tell for Output {
    fn tell(&self, line: &str) {
        let now = clock::now();
        let due = self.with(|state| {
            let due = state.last != line && (self.terminal || now - state.told >= PERIOD);
            if due {
                state.last = line.to_owned();
                state.told = now;
            }
            due
        });
        if due && self.terminal {
            let line: String = line.chars().take(76).collect();
            say(&format!("\r\x1b[K    {line}"));
        } else if due {
            self.line(&format!("    {line}"));
        }
    }

    fn note(&self, line: &str) {
        self.line(&format!("    {line}"));
    }
}

impl Screen for Output {
    fn begins(&self, step: &Planned, way: Way) {
        let now = clock::now();
        self.with(|state| *state = State { begun: now, told: now, last: String::new() });
        let what = match way {
            Way::Apply => step.title.clone(),
            Way::Undo => step.undo.clone(),
            Way::Release => "let go of what was kept for undoing it".to_owned(),
        };
        self.line(&format!("{way} {}: {what}", step.id));
        if way == Way::Apply {
            self.line(&format!("    clients notice: {}; to undo: {}", step.clients, step.undo));
        }
    }

    fn ends(&self, _: &Planned, _: Way, problem: Option<&str>) {
        let millis = self.with(|state| clock::now() - state.begun).0;
        let seconds = format!("{}.{} s", millis / 1000, millis % 1000 / 100);
        match problem {
            None => self.line(&format!("    done in {seconds}")),
            Some(problem) => self.line(&format!("    not done after {seconds}: {problem}")),
        }
    }
}
