//! `manatee demo transplant`: a real PostgreSQL under a writer is moved into a shard, the shard loses its
//! primary, and the database is moved back out; the ledger is held against whoever serves.

use super::table::length;
use crate::shard::{DONOR, Interrupted, LedgerReport, Peer, ShardOptions, Stage, Writer};
use adapters::clock;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use cluster::{Millis, Monotonic};
use std::{
    io::{BufRead, BufReader, Write, stdout},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

/// How long anything may take that happens by itself.
const LIMIT: Millis = Millis(60_000);
/// Between two looks at what has no event.
const POLL: Duration = Duration::from_millis(50);
/// Rows that are written before anything is done, and after each thing that was.
const ROWS: u64 = 100;
/// No line is longer.
const WIDTH: usize = 80;
/// By how much what the runner prints is indented.
const INDENT: &str = "  ";

/// `manatee demo transplant`.
#[derive(Debug, Args)]
pub struct TransplantArgs {
    /// Where everything goes; empty, or not there yet. Default: a new directory for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the demonstration.
///
/// # Errors
/// When the move did not do what it is to do, or could not be run.
pub(super) fn run(args: &TransplantArgs) -> Result<ExitCode> {
    let options = super::options(args.dir.clone())?;
    super::stop_on_signals(options.interrupt.clone())?;
    let stage = Stage::set(&options)?;
    let story = Story { stage: &stage, options: &options };
    let result = story.tell();
    say("stopping everything")?;
    stage.end_all().context("not everything could be stopped")?;
    say(&format!(
        "no process is left; what it wrote is in {}, to be removed by you",
        options.directory.display()
    ))?;
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => {
            say("interrupted before the ledger was checked to the end")?;
            Ok(ExitCode::from(130)) // as the shell has it: ended by SIGINT
        }
        Err(error) => Err(error),
    }
}

struct Story<'a> {
    stage: &'a Stage,
    options: &'a ShardOptions,
}

impl Story<'_> {
    fn tell(&self) -> Result<()> {
        let (stage, zones) = (self.stage, self.stage.peers().iter().map(Peer::zone));
        let zones: Vec<&str> = zones.collect();
        say(&format!(
            "a PostgreSQL by itself, the donor, and files of three sitters that do not run yet: {}",
            zones.join(", ")
        ))?;
        let writer = stage.writer()?;
        say("a writer commits one numbered row after another, and notes what is acknowledged")?;
        self.wait_for_writes(&writer, DONOR)?;

        say("== into the shard")?;
        let begun = clock::now();
        self.transplant(&["preflight"])?;
        self.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
        self.wait_for_writes(&writer, zones[0])?;
        self.tell_outage(&writer, begun, "the cut-over")?;
        let begun = clock::now();
        self.transplant(&["run", "--yes"])?;
        self.wait_for_writes(&writer, zones[0])?;
        self.tell_outage(&writer, begun, "growing")?;
        for peer in stage.peers() {
            self.check_peer(&writer, peer)?;
        }

        say("== the shard loses its primary")?;
        let victim = &stage.peers()[0];
        let begun = clock::now();
        let killed = victim.kill_host()?;
        say(&format!("kill -9 of the host of {}: {killed} processes", victim.zone()))?;
        self.wait_for_writes(&writer, zones[1])?;
        self.tell_outage(&writer, begun, "the takeover")?;
        self.check_peer(&writer, &stage.peers()[1])?;

        say(&format!("== back out, while {} stays dead", victim.zone()))?;
        let begun = clock::now();
        self.transplant(&["rollback"])?;
        self.wait_for_writes(&writer, DONOR)?;
        self.tell_outage(&writer, begun, "the way back")?;
        judge(DONOR, &stage.check_donor(&writer.handle().ledger())?)?;
        writer.stop().map(drop)
    }

    fn tell_outage(&self, writer: &Writer, begun: Monotonic, of: &str) -> Result<()> {
        let outage = writer.longest_gap_since(begun);
        say(&format!(
            "{of}: no write was acknowledged for {} (row {} before, row {} after)",
            length(outage.length()),
            outage.before,
            outage.after
        ))
    }

    /// Waits until this one has acknowledged rows that were tried after this call.
    fn wait_for_writes(&self, writer: &Writer, name: &str) -> Result<()> {
        let before = writer.handle().ledger().tried();
        let rows = writer.acknowledged() + ROWS;
        self.wait(&format!("rows to be acknowledged by {name}"), || {
            let progress = writer.handle().progress();
            let there = progress.connected_to.as_deref() == Some(name);
            let newest = progress.newest.is_some_and(|(number, _)| number > before);
            let enough = there && newest && progress.acknowledged >= rows;
            if enough { Ok(()) } else { Err(format!("{progress:?}")) }
        })
    }

    /// This peer has what was acknowledged, as soon as it has replayed it.
    fn check_peer(&self, writer: &Writer, peer: &Peer) -> Result<()> {
        let ledger = writer.handle().ledger();
        let mut found = LedgerReport::default();
        self.wait(&format!("{} to have every acknowledged row", peer.zone()), || {
            found = ledger.check(peer).map_err(|error| format!("{error:#}"))?;
            if found.missing.is_empty() { Ok(()) } else { Err(found.to_string()) }
        })?;
        judge(peer.zone(), &found)
    }

    fn wait(&self, what: &str, mut look: impl FnMut() -> Result<(), String>) -> Result<()> {
        let begun = clock::now();
        loop {
            let Err(missing) = look() else { return Ok(()) };
            self.go_on()?;
            ensure!(
                clock::now() - begun < LIMIT,
                "waited {} s for {what}: {missing}",
                LIMIT.0 / 1000
            );
            std::thread::sleep(POLL);
        }
    }

    fn go_on(&self) -> Result<()> {
        let interrupt: &AtomicBool = &self.options.interrupt;
        if interrupt.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// Runs `manatee transplant …` and shows what it prints.
    fn transplant(&self, args: &[&str]) -> Result<()> {
        let file = self.stage.inventory();
        let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        say(&format!("$ manatee transplant {} {name}", args.join(" ")))?;
        let mut child = Command::new(&self.options.binary)
            .arg("transplant")
            .arg(args[0])
            .arg(&file)
            .args(&args[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C in our terminal is for us.
            .process_group(0)
            .spawn()
            .context("the runner cannot be started")?;
        let shown = self.show(&mut child, &file.display().to_string(), &name);
        if shown.is_err() {
            // It may have ended by itself.
            drop(child.kill());
        }
        let status = child.wait()?;
        shown?;
        ensure!(status.success(), "manatee transplant {}: {status}", args[0]);
        Ok(())
    }

    fn show(&self, child: &mut Child, file: &str, name: &str) -> Result<()> {
        let output = child.stdout.take().context("the runner has no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Nobody listens any more when we were interrupted.
            BufReader::new(output).lines().all(|line| sender.send(line).is_ok())
        });
        loop {
            match lines.recv_timeout(POLL) {
                Ok(line) => print(&line?.replace(file, name), INDENT)?,
                Err(RecvTimeoutError::Timeout) => self.go_on()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn judge(name: &str, report: &LedgerReport) -> Result<()> {
    let text = format!("ledger on {name}: {report}");
    if !report.is_good() {
        bail!(text);
    }
    say(&text)
}

fn say(text: &str) -> Result<()> {
    print(text, "")
}

/// Prints a line on as many as it needs, each of them indented as it is.
fn print(line: &str, indent: &str) -> Result<()> {
    let mut text = line.trim_start();
    let indent = format!("{indent}{}", " ".repeat(line.len() - text.len()));
    let mut further = "";
    let mut out = stdout().lock();
    loop {
        let room = WIDTH - indent.len() - further.len();
        let end = text.char_indices().nth(room).map(|(end, _)| end);
        // A word that is longer than a line is not torn.
        let end = end.and_then(|end| {
            let space = usize::from(text[end..].starts_with(' '));
            text[..end + space].rfind(' ').or_else(|| text.find(' '))
        });
        let (part, rest) = text.split_at(end.unwrap_or(text.len()));
        let part = format!("{indent}{further}{part}");
        writeln!(out, "{}", part.trim_end()).context("cannot print")?;
        text = rest.trim_start();
        if text.is_empty() {
            return Ok(());
        }
        further = "  ";
    }
}
