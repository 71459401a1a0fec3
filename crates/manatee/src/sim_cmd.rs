//! `manatee sim`.

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use sim::{
    Mutation,
    explore::{Beginning, Bounds, explore},
    fuzz,
    script::{self, Script},
};
use std::{
    fs,
    num::NonZero,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

/// `manatee sim …`.
#[derive(Debug, Subcommand)]
pub enum SimCommand {
    /// Check conformance vectors: recorded behaviour of a single peer, one JSON object a line.
    ///
    /// Prints each vector that fails with its step and difference, then `N passed, M failed`. Exits
    /// with 0 only if all passed.
    Check {
        /// Files of vectors.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Let faults befall whole shards, one shard a seed, and check that none of them breaks a rule.
    ///
    /// A seed that fails is made small and told step by step; the same seed fails again. Exits with
    /// 0 only if none failed.
    Fuzz(FuzzArgs),
    /// Try every order of what may happen to a small shard, with few faults.
    ///
    /// Prints the shortest way to something that must not be seen, if there is one. Exits with 0 only
    /// if there is none.
    Explore {
        /// Allow more faults; takes minutes and gigabytes.
        #[arg(long)]
        large: bool,
        /// Begin with a shard that is about to leave one-node-write mode.
        #[arg(long)]
        alone: bool,
        /// After how many choices a path ends; where it is not given, 12, and 14 with --large.
        #[arg(long)]
        depth: Option<usize>,
        /// How many threads; all processors where it is not given.
        #[arg(long)]
        jobs: Option<usize>,
        /// Break a rule on purpose, to see that it is noticed.
        #[arg(long)]
        mutation: Option<Mutation>,
        /// Print which roles peers go through, and by which rules (docs/roles.md), instead.
        #[arg(long, conflicts_with_all = ["large", "alone", "depth", "jobs", "mutation"])]
        graph: bool,
    },
    /// Run scenarios: text files, or lines from standard input (`help` lists what can be said).
    ///
    /// What a file FILE.txt prints is compared with FILE.out, where that exists. Exits with 0 only if
    /// everything was as expected.
    Script {
        /// Files; standard input where there are none.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Write what each prints to its `.out` file instead.
        #[arg(long)]
        bless: bool,
    },
    /// Replay the trace of a sitter (`trace/sitter.jsonl` in its dataset) and show where this version
    /// would have done something else.
    Replay {
        /// The trace.
        trace: PathBuf,
    },
}

/// After how many seeds it is told how far a hunt is.
const SEEDS_TOLD: u64 = 10_000;

/// What to run.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// How many faults and writes each.
    #[arg(long, default_value_t = 500)]
    steps: usize,
    /// How many peers, from 3 to 7: a number, or a range with its last number.
    #[arg(long, default_value = "3..5", value_parser = peers)]
    peers: RangeInclusive<usize>,
    /// How many threads; all processors where it is not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Break a rule on purpose, to see that it is noticed.
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn peers(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| {
        let number: usize = text.parse().map_err(|_| format!("{text:?} is no number"))?;
        if (3..=7).contains(&number) { Ok(number) } else { Err("three to seven peers".to_owned()) }
    };
    let (low, high) = (number(low)?, number(high.trim_start_matches('='))?);
    if low <= high { Ok(low..=high) } else { Err("the range is empty".to_owned()) }
}

/// Runs `manatee sim …`.
pub fn run(command: &SimCommand) -> Result<ExitCode> {
    match command {
        SimCommand::Check { files } => check(files),
        SimCommand::Fuzz(args) => run_fuzz(args),
        SimCommand::Explore { graph: true, .. } => {
            print!("{}", sim::roles::page(&sim::roles::explore_moves()));
            Ok(ExitCode::SUCCESS)
        }
        SimCommand::Explore { large, alone, depth, jobs, mutation, .. } => {
            let bounds = if *large { Bounds::LARGE } else { Bounds::SMALL };
            let depth = depth.unwrap_or(bounds.depth);
            let beginning = if *alone { Beginning::LeavingAlone } else { Beginning::Serving };
            run_explore(beginning, Bounds { depth, ..bounds }, *jobs, *mutation)
        }
        SimCommand::Script { files, .. } if files.is_empty() => read_script(),
        SimCommand::Script { files, bless } => run_scripts(files, *bless),
        SimCommand::Replay { trace } => run_replay(trace),
    }
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_explore(
    beginning: Beginning,
    bounds: Bounds,
    jobs: Option<usize>,
    mutation: Option<Mutation>,
) -> Result<ExitCode> {
    let explored = explore(beginning, bounds, mutation, jobs);
    for line in explored.violation.iter().flatten() {
        println!("{line}");
    }
    println!("{} states, up to {} choices deep", explored.states, explored.depth);
    Ok(code(explored.violation.is_none()))
}

fn run_scripts(files: &[PathBuf], bless: bool) -> Result<ExitCode> {
    let mut well = true;
    for file in files {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        let (output, met) = script::run(&text);
        let golden = file.with_extension("out");
        if bless {
            fs::write(&golden, &output)
                .with_context(|| format!("cannot write {}", golden.display()))?;
        } else if golden.exists() {
            let expected = fs::read_to_string(&golden)
                .with_context(|| format!("cannot read {}", golden.display()))?;
            if output != expected {
                well = false;
                println!("{name} prints something else than {}:", golden.display());
                print!("{output}");
            }
        } else {
            print!("{output}");
        }
        if !met {
            well = false;
            println!("{name}: {}", output.lines().last().unwrap_or_default());
        }
    }
    Ok(code(well))
}

/// Line by line, so that a person sees what each does; a mistake ends nothing.
fn read_script() -> Result<ExitCode> {
    let (mut script, mut well) = (Script::default(), true);
    for line in std::io::stdin().lines() {
        match script.line(&line.context("cannot read standard input")?) {
            Ok(said) => print!("{said}"),
            Err(problem) => {
                well = false;
                println!("{problem}");
            }
        }
    }
    Ok(code(well))
}

fn run_replay(trace: &Path) -> Result<ExitCode> {
    let name = trace.display();
    let text = fs::read_to_string(trace).with_context(|| format!("cannot read {name}"))?;
    let replayed = sim::replay::replay(&text).with_context(|| format!("cannot replay {name}"))?;
    for difference in &replayed.differences {
        println!("{difference}");
    }
    println!(
        "{} events of version {}; {} differ",
        replayed.events,
        replayed.version,
        replayed.differences.len()
    );
    Ok(code(replayed.differences.is_empty()))
}

fn check(files: &[PathBuf]) -> Result<ExitCode> {
    let (mut passed, mut failed) = (0, 0);
    for file in files {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        for vector in sim::vectors::parse(&text).with_context(|| name.to_string())? {
            match sim::vectors::check(&vector) {
                Ok(()) => passed += 1,
                Err(difference) => {
                    failed += 1;
                    println!("{difference}");
                }
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    ensure!(passed + failed > 0, "no vectors in {} files", files.len());
    Ok(code(failed == 0))
}

fn run_fuzz(args: &FuzzArgs) -> Result<ExitCode> {
    let jobs = args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get));
    let options = fuzz::Options {
        seed: args.seed,
        seeds: args.seeds,
        steps: args.steps,
        peers: args.peers.clone(),
        jobs,
        mutation: args.mutation,
    };
    let report = fuzz::fuzz(&options, &|so_far| {
        if so_far.seeds.is_multiple_of(SEEDS_TOLD) {
            eprintln!("{} of {} seeds", so_far.seeds, options.seeds);
        }
    });
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        if let Some(failure) = &report.failure {
            println!("{}", failure.story.join("\n"));
            let (steps, of) = failure.steps;
            println!("seed {} fails: {}", failure.seed, failure.violation);
            println!("({steps} of its {of} steps are enough and were told above)");
        }
        println!(
            "{} seeds, {} events, {} commits acknowledged; {} ended without writes, as the rules \
             want it",
            report.seeds,
            report.events,
            report.acknowledged,
            report.blocked.values().sum::<u64>()
        );
        for (why, seeds) in &report.blocked {
            println!("{seeds:>8}  {why}");
        }
    }
    Ok(code(report.failure.is_none()))
}
