//! The terminal: events go up line by line and stay; below them stands a panel with the chain, drawn
//! anew in place. Where there is no terminal, only events are printed, and every change of a peer is
//! one.

use super::table::{self, Line, Tone, WIDTH, WriterLine};
use crate::shard::{PeerView, Shard, ShardView, WriterHandle};
use adapters::clock;
use anyhow::{Context, Result};
use cluster::{Millis, Monotonic};
use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Over how long the writer's rate is taken.
const RATE_OVER: Millis = Millis(2000);

/// What the time before an event takes.
const MARGIN: usize = 11;
/// Narrower than this no panel can be: its lines may wrap then, and be drawn askew.
const NARROWEST: usize = 40;

/// What the demonstration prints on.
pub(super) struct Screen {
    directory: String,
    terminal: bool,
    colours: bool,
    start: Monotonic,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Lines of the panel that stand below the cursor's line of events.
    drawn: usize,
    writer: Option<(WriterHandle, Monotonic)>,
    /// Rows acknowledged, of late.
    samples: VecDeque<(Monotonic, u64)>,
    before: Vec<PeerView>,
}

impl Screen {
    pub fn new(directory: String) -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Screen {
            directory,
            terminal: terminal && !dumb,
            colours: terminal && !dumb && !wanted("NO_COLOR"),
            start: clock::now(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the panel shows this writer.
    pub fn follow(&self, writer: &WriterHandle) {
        self.state().writer = Some((writer.clone(), clock::now()));
    }

    /// Prints an event.
    pub fn say(&self, text: &str) -> Result<()> {
        self.event(&mut self.state(), Tone::Plain, text)
    }

    /// Prints an event of this tone.
    pub fn say_in(&self, tone: Tone, text: &str) -> Result<()> {
        self.event(&mut self.state(), tone, text)
    }

    fn event(&self, state: &mut State, tone: Tone, text: &str) -> Result<()> {
        let at = clock::now() - self.start;
        #[expect(clippy::cast_precision_loss)] // far below 2^52
        let seconds = at.0 as f64 / 1000.0;
        let mut output = self.erased(state);
        let room = if self.terminal { self.width() - MARGIN } else { usize::MAX };
        for (index, line) in text.lines().flat_map(|line| table::wrap(line, room)).enumerate() {
            match index {
                0 => output.push_str(&format!("{seconds:7.1} s  ")),
                _ if table::is_verbatim(&line) => {}
                _ => output.push_str(&" ".repeat(MARGIN)),
            }
            output.push_str(&self.coloured(tone, &line));
            output.push('\n');
        }
        print(&output)
    }

    /// Draws the panel anew.
    pub fn draw(&self, shard: &Shard) -> Result<()> {
        let view = shard.view();
        let mut state = self.state();
        self.tell_changes(&mut state, &view)?;
        if !self.terminal {
            return Ok(());
        }
        let writer = state.writer_line();
        let width = self.width();
        let mut output = self.erased(&mut state);
        let lines = table::panel(&view, writer.as_ref(), &self.directory);
        for Line { tone, text } in &lines {
            output.push_str(&self.coloured(*tone, &table::clip(text, width)));
            output.push('\n');
        }
        state.drawn = lines.len();
        print(&output)
    }

    /// Takes the panel away, so that what is printed next does not tear it.
    pub fn clear(&self) -> Result<()> {
        print(&self.erased(&mut self.state()))
    }

    fn tell_changes(&self, state: &mut State, view: &ShardView) -> Result<()> {
        let before = std::mem::replace(&mut state.before, view.peers.clone());
        for text in table::changes(&before, view) {
            self.event(state, Tone::Dim, &text)?;
        }
        Ok(())
    }

    /// The escapes that put the cursor where the panel began, and clear from there on.
    fn erased(&self, state: &mut State) -> String {
        match std::mem::take(&mut state.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    fn coloured(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.colours => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Title => "1",
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// One less than the terminal has: some wrap when the last column is written.
    fn width(&self) -> usize {
        let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
        // Some terminals do not know their size, and say 0.
        let columns = if columns == 0 { WIDTH } else { usize::from(columns) };
        (columns - 1).clamp(NARROWEST, WIDTH)
    }
}

impl State {
    fn writer_line(&mut self) -> Option<WriterLine> {
        let (writer, start) = self.writer.as_ref()?;
        let (now, progress) = (clock::now(), writer.progress());
        let longest = writer.longest_gap_since(*start);
        self.samples.push_back((now, progress.acknowledged));
        while self.samples.front().is_some_and(|(at, _)| now - *at > RATE_OVER) {
            self.samples.pop_front();
        }
        let (since, count) = self.samples.front().copied().unwrap_or((now, progress.acknowledged));
        #[expect(clippy::cast_precision_loss)] // far below 2^52
        let rate = (progress.acknowledged - count) as f64 * 1000.0 / (now - since).0.max(1) as f64;
        Some(WriterLine { progress, rate, longest })
    }
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.context("cannot print")
}
