//! `manatee`: the sitter, the operator's commands, the simulator and the demonstration in one
//! binary. Started as `manatee-adm` it is `manatee adm`.

use clap::{Parser, Subcommand};
use manatee::{adm, demo, sim_cmd, sitter, transplant};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

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
    /// SIGTERM and SIGINT stop PostgreSQL and the sitter in an orderly way. SIGHUP reads the file again
    /// and takes `[postgres]` but its port and superuser, `one_node_write_mode`, `deposed`, `[replication]`, and
    /// `[health]` but its interval. Where another field differs nothing is taken, and the log says which:
    /// restart the sitter for that.
    Sitter {
        /// The sitter's file (TOML; every field is documented in etc/sitter.toml).
        #[arg(short, long, env = "MANATEE_SITTER_CONFIG")]
        config: PathBuf,
    },
    /// Run a real shard on this machine, kill its primary's host under a writer, and check that no
    /// acknowledged write was lost.
    Demo(demo::DemoArgs),
    /// Look at a shard and administer it by hand. Started as `manatee-adm`, this program is this.
    Adm(Box<adm::Adm>),
    /// Move an existing PostgreSQL into a shard, and back out: with a plan, a journal and an undo.
    #[command(subcommand)]
    Transplant(transplant::TransplantCommand),
    /// The simulator: the rules of a shard in a modelled world.
    #[command(subcommand)]
    Sim(sim_cmd::SimCommand),
}

fn main() -> ExitCode {
    let result = match Cli::parse_from(arguments(std::env::args_os())).command {
        Command::Sitter { config } => sitter::run(&config),
        Command::Demo(args) => demo::run(&args),
        Command::Adm(adm) => adm::run(*adm),
        Command::Transplant(command) => transplant::run(command),
        Command::Sim(command) => sim_cmd::run(&command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("manatee: {error:#}");
        ExitCode::FAILURE
    })
}

/// The arguments, with `adm` in front where the name of the program says so.
fn arguments(mut given: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let program = given.next();
    let named = program.as_ref().and_then(|program| Path::new(program).file_name());
    let adm = named.is_some_and(|name| name == "manatee-adm").then(|| OsString::from("adm"));
    program.into_iter().chain(adm).chain(given)
}
