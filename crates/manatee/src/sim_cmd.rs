//! `manatee sim`.

use anyhow::{Context, Result};
use clap::Subcommand;
use std::{fs, path::PathBuf, process::ExitCode};

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
}

/// Runs `manatee sim …`.
pub fn run(command: &SimCommand) -> Result<ExitCode> {
    let SimCommand::Check { files } = command;
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
    anyhow::ensure!(passed + failed > 0, "no vectors in {} files", files.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
