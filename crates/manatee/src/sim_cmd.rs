//! `manatee sim`.

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use sim::{Mutation, fuzz};
use std::{fs, num::NonZero, ops::RangeInclusive, path::PathBuf, process::ExitCode, thread};

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
}

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
    /// How many peers: a number or a range.
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
    }
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
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    let report = fuzz::fuzz(&options);
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
            "{} seeds, {} events, {} commits acknowledged; {} ended without writes, for a reason \
             that the peers showed",
            report.seeds, report.events, report.acknowledged, report.blocked
        );
    }
    Ok(if report.failure.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
