//! `manatee transplant …`: moves an existing PostgreSQL into a shard, and back out.
//!
//! Contract: nothing is changed before the plan is in the journal, beside the inventory; one runner at a
//! time has it; and whatever happens to that one, `run` or `rollback` go on from there.

mod ask;
mod backup;
mod beside;
mod discover;
mod donor;
mod frames;
mod incoming;
mod peer;
mod place;
mod screen;
mod show;
mod watch;

use anyhow::{Context, Result, bail};
use ask::{Absent, confirm};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use saga::{Goal, Journal, Mode, RunError, Runner, StepId, Stopped};
use screen::Output;
use std::{
    fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};
use transplant::{Facts, Inventory, JournalFile, Locked, Without, World, journal_of};

/// Set by the first Ctrl-C: the run stops after the step that it is at.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// `manatee transplant`.
#[derive(Debug, Subcommand)]
pub enum TransplantCommand {
    /// Print a draft of an inventory, from what a server, a shard of Manatee or a Patroni cluster says of
    /// itself. Changes nothing.
    Discover(Box<discover::Discover>),
    /// Look at everything that the inventory names, and say all that stands in the way.
    ///
    /// Exits with 0 only if nothing does.
    Preflight(Told),
    /// Say what would be done, step by step; does nothing.
    Plan(Told),
    /// Print the plan and the way back as a runbook: what a person types who may not let a tool do it, with
    /// checks in between. Changes nothing.
    Runbook {
        /// The inventory (TOML).
        inventory: PathBuf,
    },
    /// Do it, or go on with it. Stops where a person should look; Ctrl-C stops it after its step.
    ///
    /// Exits with 0 also where it stops before its end, for a person or as it was told; `status --json`
    /// says how far it is.
    Run(Run),
    /// Go on after a person has looked.
    ///
    /// Exits with 0 also where it stops before its end, for a person or as it was told; `status --json`
    /// says how far it is.
    Resume(Run),
    /// Tell a run to stop after the step that it is at.
    Pause(Which),
    /// Say how far it is.
    Status(Told),
    /// Look whether what was moved is still as the steps so far left it.
    ///
    /// Exits with 0 only if it is.
    Verify(Told),
    /// Undo everything, from wherever it is. What the shard took since it opened goes back, too.
    ///
    /// Exits with 0 also where it was told to stop (Ctrl-C, `pause`) before all is undone; `status --json`
    /// says how far it is.
    Rollback {
        /// Which transplant.
        #[command(flatten)]
        which: Which,
        /// Send nothing back: what was written since the shard opened is lost. Says how much, and asks.
        #[arg(long)]
        discard_writes: bool,
        /// Whose hosts are off for good.
        #[command(flatten)]
        without: Absent,
        /// Ask nothing.
        #[arg(short, long)]
        yes: bool,
    },
    /// Give up the way back: the only thing that cannot be undone. The donor stays as it is, stopped and
    /// closed, until somebody removes it.
    ///
    /// Exits with 0 also where it was told to stop (Ctrl-C, `pause`) before its end; `status --json` says
    /// how far it is.
    Commit {
        /// Which transplant.
        #[command(flatten)]
        which: Which,
        /// Whose hosts are off for good.
        #[command(flatten)]
        without: Absent,
        /// Ask nothing.
        #[arg(short, long)]
        yes: bool,
    },
    /// What is done on the host of a peer; called by the others.
    #[command(subcommand, hide = true)]
    Peer(peer::PeerCommand),
    /// What is done on the host of the donor; called by the others.
    #[command(subcommand, hide = true)]
    Donor(donor::DonorCommand),
}

/// Which transplant.
#[derive(Debug, Args)]
pub struct Which {
    /// The inventory (TOML). Its journal lies beside it, with the ending `.journal`.
    inventory: PathBuf,
}

/// Which transplant, and how it is told of.
#[derive(Debug, Args)]
pub struct Told {
    #[command(flatten)]
    which: Which,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How far.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    which: Which,
    /// Stop after this step.
    #[arg(long, value_name = "STEP")]
    until: Option<String>,
    /// Stop after one step.
    #[arg(long)]
    step: bool,
    #[command(flatten)]
    without: Absent,
    /// Nobody is there to look: stop nowhere.
    #[arg(short, long)]
    yes: bool,
}

/// Runs `manatee transplant …`.
///
/// # Errors
/// When it is not done; the journal says how far it came.
pub fn run(command: TransplantCommand) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")?.block_on(async {
        match command {
            TransplantCommand::Discover(asked) => print(&discover::run(*asked).await?),
            TransplantCommand::Preflight(told) => preflight(&told).await,
            TransplantCommand::Plan(told) => plan(&told).await,
            TransplantCommand::Runbook { inventory } => runbook(&inventory).await,
            TransplantCommand::Run(run) => forward(&run, false).await,
            TransplantCommand::Resume(run) => forward(&run, true).await,
            TransplantCommand::Pause(which) => watch::pause(&which),
            TransplantCommand::Status(told) => watch::status(&told),
            TransplantCommand::Verify(told) => watch::verify(&told).await,
            TransplantCommand::Rollback { which, discard_writes, without, yes } => {
                rollback(&which, discard_writes, &without, yes).await
            }
            TransplantCommand::Commit { which, without, yes } => {
                commit(&which, &without, yes).await
            }
            TransplantCommand::Donor(command) => {
                if let Some(answer) = donor::run(command).await? {
                    println!("{answer}");
                }
                Ok(ExitCode::SUCCESS)
            }
            TransplantCommand::Peer(command) => {
                match peer::run(command).await? {
                    serde_json::Value::String(text) => println!("{text}"),
                    value => println!("{value}"),
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

fn print(text: &str) -> Result<ExitCode> {
    stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Looks at everything; what a plan is made from, or all that stands in the way.
async fn look(
    inventory: Inventory,
) -> Result<std::result::Result<Facts, Vec<transplant::Problem>>> {
    let seen = transplant::look(&inventory).await;
    let problems = transplant::problems(&inventory, &seen);
    if !problems.is_empty() {
        return Ok(Err(problems));
    }
    Ok(Ok(seen.facts(inventory, uuid::Uuid::new_v4().to_string())?))
}

async fn preflight(Told { which, json }: &Told) -> Result<ExitCode> {
    let inventory = Inventory::load(&which.inventory)?;
    let seen = transplant::look(&inventory).await;
    let notes = transplant::notes(&inventory, &seen);
    let problems = transplant::problems(&inventory, &seen);
    if *json {
        print(&format!("{}\n", serde_json::json!({ "problems": problems, "notes": notes })))?;
    } else {
        let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
        let told = match problems.is_empty() {
            true => "nothing stands in the way\n".to_owned(),
            false => show::problems(&problems),
        };
        print(&(told + &notes))?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// That something stands in the way, all of it.
fn refused(problems: &[transplant::Problem]) -> anyhow::Error {
    anyhow::anyhow!(
        "nothing was changed: this stands in the way:\n{}",
        show::problems(problems).trim_end()
    )
}

async fn plan(Told { which, json }: &Told) -> Result<ExitCode> {
    // One that is under way is run to its end by the plan that it began with.
    let plan = match JournalFile::read(&journal_of(&which.inventory))? {
        Some(journal) if !has_ended(&journal) => journal.plan().clone(),
        _ => {
            let facts = look(Inventory::load(&which.inventory)?).await?;
            transplant::plan(&facts.map_err(|problems| refused(&problems))?)
        }
    };
    if *json {
        return print(&(serde_json::to_string_pretty(&plan)? + "\n"));
    }
    let facts: Facts = serde_json::from_value(plan.facts.clone())?;
    print(&show::plan(&plan, &facts.after_opening))
}

async fn runbook(path: &Path) -> Result<ExitCode> {
    if let Some(journal) = JournalFile::read(&journal_of(path))?
        && !has_ended(&journal)
    {
        bail!(
            "this transplant is under way: go on with `manatee transplant run {0}`, or undo it with \
             `manatee transplant rollback {0}`",
            path.display()
        );
    }
    let facts = look(Inventory::load(path)?).await?;
    let plan = transplant::plan(&facts.map_err(|problems| refused(&problems))?);
    let program = std::env::current_exe().context("this program has no path")?;
    print(&transplant::runbook(&plan, &program.display().to_string())?)
}

fn has_ended(journal: &Journal) -> bool {
    matches!(journal.mode(), Mode::RolledBack | Mode::Committed)
}

fn operator() -> Result<String> {
    let user = adapters::exec::OsUser::own_name()?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{user}@{host}, process {}", std::process::id()))
}

fn pause_file(inventory: &Path) -> PathBuf {
    inventory.with_extension("pause")
}

/// The first Ctrl-C stops the run after its step, the second one at once: the journal knows how far it is.
fn watch_interrupts() {
    tokio::spawn(async {
        while tokio::signal::ctrl_c().await.is_ok() {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            screen::warn("stopping after this step; Ctrl-C again stops at once\n");
        }
    });
}

/// The right to run it. Whoever said before that it is to be paused meant somebody else.
fn take(which: &Which, operator: &str) -> Result<Locked> {
    let lock = Locked::take(&journal_of(&which.inventory), operator)?;
    match fs::remove_file(pause_file(&which.inventory)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(lock),
    }
}

/// The journal of a transplant that has begun, and the right to go on with it.
fn open(which: &Which, operator: &str) -> Result<(Locked, Journal, JournalFile)> {
    let path = journal_of(&which.inventory);
    let lock = take(which, operator)?;
    if !path.exists() {
        bail!("{} was not begun: there is no {}", which.inventory.display(), path.display());
    }
    let (journal, file) = JournalFile::open(&path)?;
    Ok((lock, journal, file))
}

async fn forward(run: &Run, resume: bool) -> Result<ExitCode> {
    let (inventory, operator) = (&run.which.inventory, operator()?);
    let path = journal_of(inventory);
    let _lock = take(&run.which, &operator)?;
    let asked = Inventory::load(inventory)?;
    if let Some(journal) = JournalFile::read(&path)? {
        match journal.mode() {
            Mode::Committed => bail!("it was committed: there is nothing left to run"),
            Mode::RolledBack => {
                let aside = JournalFile::set_aside(&path, Timestamp::now())?;
                let aside = aside.display();
                screen::say(&format!(
                    "the journal of the one that was undone is kept in {aside}\n"
                ));
            }
            _ => {}
        }
    }
    let (journal, file) = if path.exists() {
        JournalFile::open(&path)?
    } else {
        let facts = look(asked.clone()).await?.map_err(|problems| refused(&problems))?;
        JournalFile::begin(&path, transplant::plan(&facts), Timestamp::now(), &operator)?
    };
    let facts: Facts = serde_json::from_value(journal.plan().facts.clone())?;
    if facts.inventory != asked {
        bail!(
            "{} was changed since this transplant was begun: put it back, or undo the transplant first",
            inventory.display()
        );
    }
    match journal.mode() {
        Mode::Forward => {}
        mode => bail!("{mode}: see `manatee transplant status {}`", inventory.display()),
    }
    let until = run.until.as_deref().map(StepId::from);
    if let Some(step) = until.as_ref().filter(|step| journal.plan().step(step).is_none()) {
        let steps: Vec<&str> = journal.plan().steps.iter().map(|step| step.id.0.as_str()).collect();
        bail!("there is no step {step}; there are {}", steps.join(", "));
    }
    Without::parse(run.without.names(), &facts)?.check_forward(&journal)?;
    let without = run.without.confirmed(&journal, run.yes)?;
    let goal = Goal { until, one_step: run.step, pass_all: run.yes };
    go(&run.which, (&without, run.without.names()), journal, file, operator, &goal, |runner| {
        if resume { runner.pass() } else { Ok(()) }
    })
    .await
}

/// Goes on, and says how it ended.
async fn go(
    which: &Which,
    (without, names): (&Without, &[String]),
    journal: Journal,
    file: JournalFile,
    operator: String,
    goal: &Goal,
    first: impl FnOnce(&mut Runner<'_, JournalFile>) -> std::result::Result<(), RunError>,
) -> Result<ExitCode> {
    let screen = Output::new();
    let pause_file = pause_file(&which.inventory);
    watch_interrupts();
    let world = World { screen: &screen, pause_file, interrupted: &INTERRUPTED, without };
    let mut runner = Runner::new(journal, file, &world, operator);
    first(&mut runner)?;
    let result = runner.run(goal).await;
    screen::say("\n");
    match result {
        Ok(stopped) => told(&stopped, &show::status(runner.journal(), &which.inventory, names)),
        // The screen has said why.
        Err(RunError::Step { .. } | RunError::Blocked { .. } | RunError::Changed { .. }) => {
            let hint = show::hint(runner.journal(), &which.inventory, names);
            screen::say(&format!("{hint}\n"));
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn told(stopped: &Stopped, status: &str) {
    match stopped {
        Stopped::RolledBack => screen::say("everything is undone: the donor serves, as before\n"),
        Stopped::Committed => screen::say(
            "committed: nothing is kept for a way back; the donor stays stopped and closed, remove it \
             when you like\n",
        ),
        _ => screen::say(status),
    }
}

async fn rollback(
    which: &Which,
    discard_writes: bool,
    absent: &Absent,
    yes: bool,
) -> Result<ExitCode> {
    let operator = operator()?;
    let (_lock, journal, file) = open(which, &operator)?;
    match journal.mode() {
        Mode::RolledBack => return print("it was undone: there is nothing left to undo\n"),
        Mode::Committed => bail!("it was committed: there is no way back"),
        _ => {}
    }
    let without = absent.confirmed(&journal, yes)?;
    if without.is_without_donor() {
        bail!("without the donor there is nothing to go back to: restore its host, or its backup");
    }
    if discard_writes {
        let lost = match transplant::written_since(&journal, &without).await {
            Ok(Some(lost)) => {
                format!("up to {lost} transactions that wrote since the shard opened")
            }
            Ok(None) => "nothing: the shard is not open".to_owned(),
            Err(error) => format!("writes that cannot be counted ({error:#})"),
        };
        confirm(&format!("this loses {lost}; undo the transplant"), yes)?;
    }
    let without = (&without, absent.names());
    go(which, without, journal, file, operator, &Goal::default(), |runner| {
        runner.turn_back(discard_writes)
    })
    .await
}

async fn commit(which: &Which, absent: &Absent, yes: bool) -> Result<ExitCode> {
    let operator = operator()?;
    let (_lock, journal, file) = open(which, &operator)?;
    if journal.mode() == Mode::Committed {
        return print("it was committed\n");
    }
    let without = absent.confirmed(&journal, yes)?;
    confirm("after this there is no way back; commit", yes)?;
    let without = (&without, absent.names());
    go(which, without, journal, file, operator, &Goal::default(), |runner| runner.commit()).await
}
