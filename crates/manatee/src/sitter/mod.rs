//! `manatee sitter`.

pub mod config;

use anyhow::Result;
use std::{path::Path, process::ExitCode};

/// Runs the sitter until it is told to stop.
pub fn run(path: &Path) -> Result<ExitCode> {
    let config = config::Config::load(path)?;
    anyhow::bail!("{}: not yet: {}", path.display(), config.shard)
}
