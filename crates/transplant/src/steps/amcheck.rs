//! Looks all of the copy through for damage, while the donor serves and the copy does not: every table, and
//! of every B-tree whether it is in order and has all rows. The copy stands still meanwhile, because a
//! server that replays ends whoever reads what it is to clear away; it goes on receiving. What comes by
//! snapshots is looked at in a clone of the last one: nothing may run on what the next one is a difference to.

use super::{Scene, both, catch_up::level, until};
use crate::{recipient::Recipient, snapshots};
use adapters::exec::{ExecCause, ExecError};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::{Value, json};
use std::sync::Arc;

/// How pg_amcheck ends where it has looked and found damage.
const FOUND: i32 = 2;
/// How it begins to say that it does not look at a database.
const SKIPPING: &str = "skipping database";

/// The port, which is a part of a socket's name and nothing more, of a server that listens on no address.
pub const PORT_BESIDE: u16 = 65432;

/// Which databases are looked at.
pub(crate) const NAMES: &str =
    "from pg_database where datallowconn and datconnlimit <> -2 and not datistemplate";

pub(super) struct Amcheck(pub Arc<Scene>);

/// A name as a pattern of pg_amcheck, which means it alone.
fn pattern(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Amcheck {
    async fn look(&self, first: &Recipient, tell: &dyn Tell) -> Result<()> {
        let facts = &first.facts;
        let names = first.sql(&format!("select datname {NAMES}")).await?;
        let (program, port) = (format!("{}/pg_amcheck", facts.bin_dir), facts.port.to_string());
        let mut command = vec![program.as_str(), "--heapallindexed", "--progress"];
        command.extend(["-h", &facts.socket_dir, "-p", &port, "-U", &facts.superuser]);
        command.push("--maintenance-db=postgres");
        let patterns: Vec<String> = names.lines().map(pattern).collect();
        command.extend(patterns.iter().flat_map(|name| ["-d", name]));
        let mut skipped = Vec::new();
        let on_line = |line: &str| {
            if line.contains(SKIPPING) {
                skipped.push(line.to_owned());
            }
            tell.tell(line.trim());
        };
        let exec = first.config.host.exec_alone(facts.os_user.as_deref(), &command)?;
        match exec.run_with(on_line).await {
            Ok(_) if skipped.is_empty() => {
                tell.note(&format!("pg_amcheck finds no damage in {} databases", patterns.len()));
                Ok(())
            }
            Ok(_) => bail!("not all was looked at: {}", skipped.join("; ")),
            Err(ExecError { cause: ExecCause::Failed { status, output }, .. })
                if status.code() == Some(FOUND) =>
            {
                bail!(
                    "there is damage in {}'s copy, and then most likely in the donor: look there with pg_amcheck, \
                     mend it (reindexdb, where it is in indexes), and try again: {output}",
                    first.zone()
                )
            }
            Err(error) => Err(error).context("pg_amcheck cannot look"),
        }
    }

    async fn look_at_clone(&self, tell: &dyn Tell) -> Result<()> {
        let mut first = self.0.first().clone();
        first.facts.port = PORT_BESIDE;
        let inside = ["--inside", snapshots::inside(&self.0.facts)?];
        // Of an earlier try: what it is a clone of may have to go.
        let _: Value = first.verb("incoming shut", &inside).await?;
        // Whatever was found before may have been mended.
        snapshots::sync(&self.0, tell).await?;
        tell.tell("starting a server on a clone of what has come");
        let _: Value = first.verb("incoming open", &inside).await?;
        let looked = self.look(&first, tell).await;
        // Whatever was found.
        let shut: Result<Value> = first.verb("incoming shut", &inside).await;
        both(looked, shut.map(drop))
    }
}

#[async_trait(?Send)]
impl Step for Amcheck {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        if self.0.by_snapshots() {
            return Ok(self.look_at_clone(tell).await?);
        }
        let first = self.0.first();
        first.sql("select pg_wal_replay_pause()").await?;
        until(self.0.facts.inventory.limits.service_seconds, tell, async || {
            let paused = first.sql("select pg_get_wal_replay_pause_state()").await?;
            Ok(if paused == "paused" {
                Ok(())
            } else {
                Err(format!("{} does not stand still yet", first.zone()))
            })
        })
        .await?;
        let looked = self.look(first, tell).await;
        // Whatever was found.
        both(looked, first.sql("select pg_wal_replay_resume()").await.map(drop))?;
        level(&self.0, tell).await
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if self.0.by_snapshots() {
            return Ok(snapshots::newest(&self.0).await?);
        }
        let first = self.0.first();
        if first.sql("select pg_is_wal_replay_paused()").await? != "f" {
            return Err(format!("{} does not replay", first.zone()).into());
        }
        Ok(json!({ "lagBytes": self.0.lag().await? }))
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        if self.0.by_snapshots() && !self.0.is_gone(self.0.first()) {
            let inside = ["--inside", snapshots::inside(&self.0.facts)?];
            let _: Value = self.0.first().verb("incoming shut", &inside).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_itself_alone() {
        assert_eq!(pattern("shop"), "\"shop\"");
        assert_eq!(pattern("a*.\"b"), "\"a*.\"\"b\"");
    }
}
