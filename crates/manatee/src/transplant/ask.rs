//! What only a person can say.

use anyhow::{Result, bail};
use clap::Args;
use saga::Journal;
use std::io::{IsTerminal, Write, stdin, stdout};
use transplant::{Facts, Without};

/// Asks, unless nobody is to be asked.
pub(super) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        bail!("{question}? Nobody is there to answer: give --yes");
    }
    let mut out = stdout();
    write!(out, "{question} (y/n)? ").and_then(|()| out.flush())?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "yes") { Ok(()) } else { bail!("nothing was changed") }
}

/// Whose hosts are off for good.
#[derive(Debug, Args)]
pub struct Absent {
    /// A host that is off for good and would block this: a peer of the shard by its zone, a standby of the
    /// donor by its name, or "donor". Nothing is asked of it. Asks. Once for each. Of `run` and `resume` only the
    /// donor and its standbys, once the shard has opened, and there is no way back then; of `rollback` not "donor".
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

impl Absent {
    /// As they were named.
    pub(super) fn names(&self) -> &[String] {
        &self.without
    }

    /// Those of this transplant, once a person has said that they are off.
    pub(super) fn confirmed(&self, journal: &Journal, yes: bool) -> Result<Without> {
        let facts: Facts = serde_json::from_value(journal.plan().facts.clone())?;
        let without = Without::parse(&self.without, &facts)?;
        if !self.without.is_empty() {
            let names = self.without.join(", ");
            confirm(
                &format!(
                    "nothing is asked of {names}: a server that runs there takes writes that nobody else \
                     has. Is it off, and will it never be started as it is"
                ),
                yes,
            )?;
        }
        Ok(without)
    }
}
