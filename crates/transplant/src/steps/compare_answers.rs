//! Asks the donor, as it ended, and the copy the same, while nobody is let in to either: how many rows each
//! table has, and whatever the inventory asks. The donor is started for that closed as it is, so that it
//! takes no write and lets nobody else in, and is stopped again; so is a copy that came by snapshots, as a standby,
//! which writes no WAL.

use super::{STOP_DONOR, Scene, both, fence_donor};
use crate::donor::Control;
use anyhow::{Result, bail};
use async_trait::async_trait;
use cluster::Millis;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::{Value, json};
use std::sync::Arc;

/// How long an answer may take: a count over a large table reads all of it.
const LIMIT: Millis = Millis(24 * 3_600_000);
/// How many tables are asked for at once: what they say is far below what is kept of a command's output.
const TABLES: usize = 1000;
/// What the closed donor is not to do while it is asked: look for more than it has.
pub(crate) const ALONE: &str = "primary_conninfo = ''\nrestore_command = ''\nhot_standby = on\n";

pub(super) struct CompareAnswers(pub Arc<Scene>);

/// Counts the rows of each of the next tables.
fn counts(after: usize) -> String {
    count_some(&format!("offset {after} limit {TABLES}"))
}

/// Counts those of all tables.
pub(crate) fn all_counts() -> String {
    count_some("")
}

/// A standby has no unlogged ones.
fn count_some(which: &str) -> String {
    format!(
        "select format('select %L, count(*) from only %s', to_json(name::text), name) from (\
           select c.oid::regclass as name from pg_class c where c.relkind in ('r', 'm') \
             and c.relpersistence = 'p' and c.relispopulated order by c.oid {which}) t \
         \\gexec\n"
    )
}

/// Where two answers are not the same.
fn difference(asked: &str, donor: &str, copy: &str) -> Option<String> {
    if donor == copy {
        return None;
    }
    let mut both = donor.lines().zip(copy.lines());
    let (donor, copy) = both.find(|(donor, copy)| donor != copy).unwrap_or((donor, copy));
    Some(format!("{asked}: the donor says {donor:?}, the copy {copy:?}"))
}

impl CompareAnswers {
    async fn of_both(&self, database: &str, sql: &str) -> Result<(String, String)> {
        // Whatever limit the superuser has for itself.
        let sql = format!("set statement_timeout = 0;\n{sql}");
        let donor = self.0.donor.sql_in(database, &sql, Some(LIMIT));
        let copy = self.0.first().sql_in(database, &sql, Some(LIMIT));
        tokio::try_join!(donor, copy)
    }

    /// Stops a copy that was started to be asked. One that came by streaming follows, and goes on.
    async fn rest(&self) -> Result<()> {
        let first = self.0.first();
        if self.0.by_snapshots() && !self.0.is_gone(first) {
            first.rest().await?;
        }
        Ok(())
    }

    /// Compares what both say; how many answers there were.
    async fn ask(&self, tell: &dyn Tell) -> Result<u64> {
        let verify = &self.0.facts.inventory.verify;
        let (mut answers, mut differences) = (0, Vec::new());
        let names = "select datname from pg_database \
            where datallowconn and datconnlimit <> -2 order by datname";
        let (names, theirs) = self.of_both("postgres", names).await?;
        differences.extend(difference("databases", &names, &theirs));
        for name in names.lines().filter(|_| verify.row_counts && names == theirs) {
            for after in (0..).step_by(TABLES) {
                tell.tell(&format!("counting the rows of database {name}, after {after} tables"));
                let (donor, copy) = self.of_both(name, &counts(after)).await?;
                differences.extend(difference(&format!("rows in {name}"), &donor, &copy));
                let tables = donor.lines().count();
                answers += tables as u64;
                if tables < TABLES {
                    break;
                }
            }
        }
        for statement in &verify.sql {
            tell.tell(statement);
            let (donor, copy) = self.of_both("postgres", statement).await?;
            answers += 1;
            differences.extend(difference(statement, &donor, &copy));
        }
        if !differences.is_empty() {
            bail!(
                "the copy is not what the donor was: {}; undo the transplant with `rollback`, and look for damage \
                 in both (verify.amcheck)",
                differences.join("; ")
            );
        }
        Ok(answers)
    }
}

#[async_trait(?Send)]
impl Step for CompareAnswers {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        let donor = &self.0.donor;
        if !donor.is_running().await? {
            fence_donor::close(donor, ALONE).await?;
            tell.tell("starting the donor, closed");
            donor.start().await?;
        }
        let asked = async {
            if self.0.by_snapshots() {
                tell.tell("starting the copy, which follows nobody");
                let _: Value = self.0.first().verb("stand", &[]).await?;
            }
            self.ask(tell).await
        };
        let asked = asked.await;
        // Whatever they said.
        let rested = self.rest().await;
        let shut = async {
            donor.halt().await?;
            fence_donor::close(donor, "").await
        };
        let answers = both(both(asked, rested), shut.await)?;
        tell.note(&format!("{answers} answers are the same"));
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let (donor, stopped): (_, Control) = (&self.0.donor, self.0.outcome(STOP_DONOR)?);
        if donor.is_running().await? || !donor.is_closed().await? {
            return Err("the donor runs, or would start open for writes".into());
        }
        let now = donor.control().await?;
        let same = |one: &Control| (one.system_identifier.clone(), one.timeline, one.checkpoint);
        if same(&now) != same(&stopped) {
            return Err(format!("the donor changed when it was asked: {now:?}").into());
        }
        Ok(json!({ "state": now.state }))
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(self.rest().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told() {
        assert_eq!(difference("rows", "\"a\"|1\n\"b\"|2", "\"a\"|1\n\"b\"|2"), None);
        let told = difference("rows", "\"a\"|1\n\"b\"|2", "\"a\"|1\n\"b\"|3");
        assert_eq!(told.as_deref(), Some(r#"rows: the donor says "\"b\"|2", the copy "\"b\"|3""#));
        let told = difference("select 1", "1", "1\n2");
        assert_eq!(told.as_deref(), Some(r#"select 1: the donor says "1", the copy "1\n2""#));
    }

    #[test]
    fn counts_go_on_where_they_were() {
        assert!(counts(2000).contains("offset 2000 limit 1000"), "{}", counts(2000));
    }
}
