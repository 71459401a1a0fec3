//! `manatee`: the sitter, the operator's commands, the simulator and the demonstration in one
//! binary. Started as `manatee-adm` it is `manatee adm`.

use clap::{Parser, Subcommand};
use manatee::{demo, sim_cmd, sitter};
use std::{path::PathBuf, process::ExitCode};

/// Keeps a PostgreSQL shard writable through the loss of any one host, without losing a write that
/// it acknowledged.
#[derive(Debug, Parser)]
#[command(name = "manatee", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of one peer: keeps its session, decides, runs its PostgreSQL.
    ///
    /// SIGTERM and SIGINT stop PostgreSQL and the sitter in an orderly way; SIGHUP reads the file
    /// again.
    Sitter {
        /// The sitter's file (TOML; every field is documented in etc/sitter.toml).
        #[arg(short, long, env = "MANATEE_SITTER_CONFIG")]
        config: PathBuf,
    },
    /// Run a real shard on this machine, kill its primary's host under a writer, and check that no
    /// acknowledged write was lost.
    Demo(demo::DemoArgs),
    /// The simulator: the rules of a shard in a modelled world.
    #[command(subcommand)]
    Sim(sim_cmd::SimCommand),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Sitter { config } => sitter::run(&config),
        Command::Demo(args) => demo::run(&args),
        Command::Sim(command) => sim_cmd::run(&command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("manatee: {error:#}");
        ExitCode::FAILURE
    })
}
