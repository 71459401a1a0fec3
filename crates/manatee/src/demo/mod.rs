//! `manatee demo`: a real shard on this machine, its primary killed under a writer, and the proof
//! that nothing was lost.

mod screen;
mod table;
mod transplant;

use crate::shard::{
    Gap, Interrupted, LedgerReport, Peer, Shard, ShardOptions, SitterState, Writer,
};
use adapters::clock;
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use cluster::{Millis, Monotonic};
use screen::Screen;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use table::{Tone, length};
use tokio::signal::unix::{SignalKind, signal};

/// How long a shard may take to set itself up: initdb and two copies, on a slow machine.
const SETUP_LIMIT: Millis = Millis(120_000);
/// How long a takeover may take, beyond the session timeout.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(60);
/// How long the old primary may take to be a standby again.
const REBUILD_LIMIT: Millis = Millis(180_000);
/// How long a standby may take to have what the primary has acknowledged.
const CATCH_UP_LIMIT: Millis = Millis(30_000);
/// Between two drawings of the panel.
const DRAW: Duration = Duration::from_millis(150);
/// Rows that are written before the primary is killed: about five seconds' worth.
const ROWS_BEFORE: u64 = 400;
/// Rows that are written after the takeover before the ledger is checked.
const ROWS_AFTER: u64 = 100;

/// `manatee demo`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    other: Option<Other>,
    /// End after the check; the exit status is 0 only if no acknowledged write was lost and the shard
    /// became whole again.
    #[arg(long)]
    once: bool,
    /// How many peers, from 3 to 9.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    peers: u8,
    /// Where everything goes; empty, or not there yet. Default: a new directory for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds after which a peer that is silent is taken for dead, from 2 to 60.
    #[arg(long, default_value_t = 3.0, value_parser = session_timeout)]
    session_timeout: f64,
}

/// Other demonstrations.
#[derive(Debug, Subcommand)]
enum Other {
    /// Move a PostgreSQL that stands by itself into a shard under a writer, kill the shard's primary, and
    /// move it back out; exit status 0 only if no acknowledged write was lost.
    Transplant(transplant::TransplantArgs),
}

fn session_timeout(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (2.0..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds from 2 to 60".to_owned()),
    }
}

/// Runs the demonstration.
///
/// # Errors
/// When the shard did not do what it is to do, or could not be run.
pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    if let Some(Other::Transplant(args)) = &args.other {
        return transplant::run(args);
    }
    let mut options = options(args.dir.clone())?;
    options.peers = args.peers.into();
    options.session_timeout = args.session_timeout;
    stop_on_signals(options.interrupt.clone())?;
    let shard = Shard::start(&options)?;
    let screen = Screen::new(shard.directory().display().to_string());
    let result = show(args, &shard, &screen, &options.interrupt);
    screen.clear()?;
    screen.say("stopping everything")?;
    let forced = shard.stop().context("not everything could be stopped")?;
    for how in forced {
        screen.say_in(Tone::Bad, &how)?;
    }
    let kept = shard.directory().display();
    screen.say(&format!("no process is left; what it wrote is in {kept}, to be removed by you"))?;
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => {
            screen.say("interrupted before the ledger was checked")?;
            Ok(ExitCode::from(130)) // as the shell has it: ended by SIGINT
        }
        Err(error) => Err(error),
    }
}

/// What there is to be in this directory, or in a new one.
fn options(directory: Option<PathBuf>) -> Result<ShardOptions> {
    let directory = directory.unwrap_or_else(|| {
        let name = uuid::Uuid::new_v4().simple().to_string();
        std::env::temp_dir().join(format!("manatee-demo-{}", &name[..8]))
    });
    let binary = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(ShardOptions::new(binary, directory))
}

/// Lets the first signal that asks for it end every wait.
fn stop_on_signals(interrupt: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).context("cannot take signals")?);
    }
    drop(guard);
    for mut signal in signals {
        let (interrupt, handle) = (interrupt.clone(), runtime.handle().clone());
        handle.spawn(async move {
            while signal.recv().await.is_some() {
                interrupt.store(true, Ordering::Relaxed);
            }
        });
    }
    // For as long as this program lives.
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok(())
}

/// Sets a flag when it goes, in whatever way that happens.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the story while another thread keeps the panel up to date.
fn show(args: &DemoArgs, shard: &Shard, screen: &Screen, interrupt: &AtomicBool) -> Result<()> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Err(error) = screen.draw(shard) {
                    eprintln!("manatee: {error:#}");
                    interrupt.store(true, Ordering::Relaxed);
                    break;
                }
                std::thread::sleep(DRAW);
            }
        });
        let session_timeout = Duration::from_secs_f64(args.session_timeout);
        let takeover_limit = TAKEOVER_LIMIT + session_timeout;
        let takeover_limit = Millis(u64::try_from(takeover_limit.as_millis())?);
        let story = Story { shard, screen, interrupt, takeover_limit };
        let writer = story.tell()?;
        if !args.once {
            story.stay(&writer)?;
        }
        writer.stop().map(drop)
    })
}

struct Story<'a> {
    shard: &'a Shard,
    screen: &'a Screen,
    interrupt: &'a AtomicBool,
    takeover_limit: Millis,
}

impl Story<'_> {
    /// From nothing to a shard that has lost its primary's host and has it back.
    fn tell(&self) -> Result<Writer> {
        let (shard, screen) = (self.shard, self.screen);
        let start = clock::now();
        let zones: Vec<_> = shard.peers().iter().map(Peer::zone).collect();
        screen.say(&format!("sitters started: {}", zones.join(", ")))?;
        shard.wait_whole(SETUP_LIMIT)?;
        screen.say_in(Tone::Good, &format!("the shard is whole after {}", since(start)))?;
        let writer = Writer::start(shard)?;
        screen.follow(writer.handle());
        screen.say(
            "a writer commits one numbered row after another, and notes each that is acknowledged",
        )?;
        self.wait_rows(&writer, ROWS_BEFORE)?;
        shard.wait_whole(self.takeover_limit)?;

        let victim = shard.primary()?;
        let killed_at = self.take_over(&writer, victim)?;
        victim.start_sitter()?;
        let back = clock::now();
        screen.say(&format!("the host of {} is back: its sitter is started", victim.zone()))?;
        shard.wait_whole(REBUILD_LIMIT)?;
        screen.say_in(
            Tone::Good,
            &format!(
                "the shard is whole again {} after its host came back, {} after it was killed",
                since(back),
                since(killed_at)
            ),
        )?;
        for peer in shard.peers() {
            self.check_standby(&writer, peer)?;
        }
        Ok(writer)
    }

    /// Kills the primary's host and sees another take over. Says when it was killed.
    fn take_over(&self, writer: &Writer, victim: &Peer) -> Result<Monotonic> {
        let (shard, screen) = (self.shard, self.screen);
        let zone = victim.zone();
        let killed_at = clock::now();
        let killed = victim.kill_host()?;
        screen.say_in(
            Tone::Bad,
            &format!("kill -9 of the primary's host, {zone}: its sitter and all of its PostgreSQL, {killed} processes"),
        )?;
        let what = "another peer to take over";
        shard.wait_for(self.takeover_limit, what, |view| {
            view.primary().is_some_and(|primary| primary.zone != zone)
        })?;
        let rows = writer.acknowledged() + ROWS_AFTER;
        self.wait_rows(writer, rows)?;
        let primary = shard.primary()?;
        let outage: Gap = writer.longest_gap_since(killed_at);
        screen.say_in(
            Tone::Good,
            &format!(
                "{} has taken over; writes were out for {} (row {} acknowledged before, row {} after)",
                primary.zone(),
                length(outage.length()),
                outage.before,
                outage.after
            ),
        )?;
        let report = writer.handle().ledger().check(primary)?;
        self.judge(primary, &report)?;
        Ok(killed_at)
    }

    /// Waits until so many rows are acknowledged.
    fn wait_rows(&self, writer: &Writer, rows: u64) -> Result<()> {
        let waited = self.shard.wait_for(self.takeover_limit, "rows to be acknowledged", |_| {
            writer.acknowledged() >= rows
        });
        let error = || writer.handle().progress().error;
        waited.map(drop).map_err(|wait| match error() {
            Some(last) if !wait.is::<Interrupted>() => wait.context(format!("the writer: {last}")),
            _ => wait,
        })
    }

    /// A standby has what was acknowledged, as soon as it has replayed it.
    fn check_standby(&self, writer: &Writer, peer: &Peer) -> Result<()> {
        let ledger = writer.handle().ledger();
        let mut found = LedgerReport::default();
        let what = format!("{} to have every acknowledged row", peer.zone());
        self.shard.wait_until(CATCH_UP_LIMIT, &what, |_| {
            found = ledger.check(peer).map_err(|error| format!("{error:#}"))?;
            if found.missing.is_empty() { Ok(()) } else { Err(found.to_string()) }
        })?;
        self.judge(peer, &found)
    }

    fn judge(&self, peer: &Peer, report: &LedgerReport) -> Result<()> {
        let text = format!("ledger on {}: {report}", peer.zone());
        ensure!(report.is_good(), "{text}");
        self.screen.say_in(Tone::Good, &text)
    }

    /// Keeps running for whoever wants to look closer, until told to stop.
    fn stay(&self, writer: &Writer) -> Result<()> {
        let (shard, screen) = (self.shard, self.screen);
        let url = shard.url();
        screen.say(&format!(
            "it all keeps running: look around, or kill something. Ctrl-C stops it. Connect to \
             whoever is primary with\n  psql '{url}'"
        ))?;
        let binary = std::env::current_exe().context("cannot tell where this program is")?;
        let mut told = BTreeSet::new();
        while !self.interrupt.load(Ordering::Relaxed) {
            ensure!(
                !writer.has_ended(),
                "{}",
                writer.handle().progress().error.unwrap_or_default()
            );
            for peer in shard.peers() {
                let ended = matches!(peer.sitter_state(), SitterState::Ended(_));
                if ended && told.insert(peer.zone()) {
                    let config = peer.config_file();
                    screen.say_in(Tone::Bad, &peer.obituary())?;
                    screen.say(&format!(
                        "to start it again:\n  {} sitter --config {}",
                        binary.display(),
                        config.display()
                    ))?;
                }
            }
            shard.pause_for_news();
        }
        Ok(())
    }
}

fn since(start: Monotonic) -> String {
    length(clock::now() - start)
}
