//! A backup of the donor as it is shortly before it is stopped, made from the copy that follows it, or from
//! the newest snapshot that has come, and proven before it has its name: what is restored from it is the donor's database, up to at least where the
//! donor was when the step began, and answers.

use super::{Scene, position, until};
use crate::snapshots;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use cluster::Lsn;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// What was restored from a backup, as its server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Which database it is.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
    /// The timeline before that.
    pub branched_from: Option<u32>,
    /// Where it writes.
    pub position: Lsn,
    /// Its databases, and how many relations each has.
    pub databases: BTreeMap<String, u64>,
    /// What the statements gave.
    pub answers: Vec<String>,
    /// The manifest of the backup.
    pub manifest: Value,
}

/// Which databases a backup has to have.
pub(crate) const DATABASES: &str = "from pg_database where datallowconn";

/// What the donor said.
struct Donors {
    timeline: u32,
    position: Lsn,
    databases: Vec<String>,
    answers: Vec<String>,
}

impl Proof {
    /// What shows that this is not the database of that donor.
    fn problem(&self, identifier: &str, donor: &Donors, sql: &[String]) -> Option<String> {
        let Donors { timeline, position, databases, answers } = donor;
        if self.system_identifier != identifier {
            return Some(format!("it is another database, {}", self.system_identifier));
        }
        // One of a snapshot is recovered to the end of its WAL, and goes on on a timeline of its own.
        let from = if self.manifest["taken"] == "snapshot" {
            self.branched_from
        } else {
            Some(self.timeline)
        };
        if from != Some(*timeline) {
            return Some(format!("it is of timeline {from:?}, the donor's is {timeline}"));
        }
        if self.position < *position {
            return Some(format!("it ends at {}, the donor was at {position}", self.position));
        }
        if let Some(missing) = databases.iter().find(|name| !self.databases.contains_key(*name)) {
            return Some(format!("it lacks the database {missing:?}"));
        }
        let mut both = sql.iter().zip(answers.iter().zip(&self.answers));
        let (sql, (donor, restored)) = both.find(|(_, (donor, restored))| donor != restored)?;
        Some(format!("to {sql:?} the donor gives {donor:?}, it gives {restored:?}"))
    }
}

pub(super) struct Backup(pub Arc<Scene>);

impl Backup {
    fn place(&self) -> Result<[&str; 4]> {
        let backup = self.0.facts.inventory.backup.as_ref().context("no backup is asked for")?;
        Ok(["--dir", &backup.dir, "--id", &self.0.facts.id])
    }

    /// What the donor has now, and the copy too when this returns: replayed, and with a checkpoint after
    /// it, which a base backup of a standby begins at and goes beyond.
    async fn donors(&self, sql: &[String], tell: &dyn Tell) -> Result<Donors> {
        let (donor, first) = (&self.0.donor, self.0.first());
        let mut answers = Vec::new();
        for statement in sql {
            answers.push(donor.sql(statement).await?);
        }
        let names = format!("select datname {DATABASES}");
        let databases = donor.sql(&names).await?.lines().map(str::to_owned).collect();
        let at = position(&donor.sql("select pg_current_wal_lsn()").await?)?;
        if self.0.by_snapshots() {
            // What came before the position was written is in the snapshot after it.
            snapshots::sync(&self.0, tell).await?;
            return Ok(Donors {
                timeline: self.0.facts.donor.timeline,
                position: at,
                databases,
                answers,
            });
        }
        let after = position(&donor.sql("checkpoint; select pg_current_wal_lsn()").await?)?;
        until(self.0.facts.inventory.limits.catch_up_seconds, tell, async || {
            let replayed = first.replayed().await?;
            Ok(if replayed >= after {
                Ok(())
            } else {
                Err(format!("{} is at {replayed}, not yet at {after}", first.zone()))
            })
        })
        .await?;
        Ok(Donors { timeline: self.0.facts.donor.timeline, position: at, databases, answers })
    }

    async fn make(&self, tell: &dyn Tell) -> Result<()> {
        let (facts, first) = (&self.0.facts, self.0.first());
        let sql = facts.inventory.backup.as_ref().map_or(&[][..], |backup| &backup.verify_sql);
        let donor = self.donors(sql, tell).await?;
        let bytes = facts.donor.bytes.to_string();
        let mut args = self.place()?.to_vec();
        args.extend(["--bytes", &bytes]);
        if let Some(dataset) = &facts.donor.dataset {
            args.extend(["--incoming", &dataset.inside]);
        }
        args.extend(sql.iter().flat_map(|statement| ["--sql", statement]));
        // Nothing where it was made and proven before.
        let made: Option<Proof> = first.long_verb("backup make", &args, tell).await?;
        if let Some(proof) = made {
            if let Some(problem) = proof.problem(&facts.donor.system_identifier, &donor, sql) {
                bail!("what was restored from the backup is not what the donor was: {problem}");
            }
            let relations: u64 = proof.databases.values().sum();
            let count = proof.databases.len();
            tell.note(&format!(
                "proven: restored, {count} databases with {relations} relations, up to {}",
                proof.position
            ));
        }
        let _: Value = first.verb("backup keep", &self.place()?).await?;
        Ok(())
    }

    /// Says where it lies.
    async fn told(&self, verb: &str, tell: &dyn Tell) -> Result<()> {
        if self.0.is_gone(self.0.first()) {
            tell.note(&format!("the backup was on {}'s host", self.0.first().zone()));
            return Ok(());
        }
        let kept: Value = self.0.first().verb(verb, &self.place()?).await?;
        if let Some(file) = kept["file"].as_str() {
            tell.note(&format!("the backup is kept in {file} on {}'s host", self.0.first().zone()));
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Step for Backup {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        self.make(tell).await?;
        Ok(self.told("backup look", tell).await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let kept: Value = self.0.first().verb("backup look", &self.place()?).await?;
        if kept["file"].as_str().is_none() {
            return Err("the backup is not there".into());
        }
        Ok(json!({ "file": kept["file"], "manifest": kept["manifest"] }))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.told("backup settle", tell).await?)
    }

    async fn release(&self, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.told("backup look", tell).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_database_is_no_proof() {
        let lsn = |text: &str| text.parse::<Lsn>().expect("a position");
        let donor = Donors {
            timeline: 2,
            position: lsn("0/5000000"),
            databases: vec!["a".into(), "b".into()],
            answers: vec!["7".into()],
        };
        let good = Proof {
            system_identifier: "1".into(),
            timeline: 2,
            branched_from: Some(1),
            position: lsn("0/5000000"),
            databases: BTreeMap::from([("a".into(), 400), ("b".into(), 400), ("c".into(), 400)]),
            answers: vec!["7".into()],
            manifest: json!({ "taken": "baseBackup" }),
        };
        let sql = ["select 7".to_owned()];
        let check = |change: &dyn Fn(&mut Proof), expected: Option<&str>| {
            let mut proof = good.clone();
            change(&mut proof);
            let problem = proof.problem("1", &donor, &sql);
            match expected {
                None => assert_eq!(problem, None),
                Some(part) => {
                    assert!(problem.as_ref().is_some_and(|it| it.contains(part)), "{problem:?}")
                }
            }
        };
        check(&|_| {}, None);
        check(&|proof| proof.system_identifier = "2".into(), Some("another database, 2"));
        check(&|proof| proof.timeline = 1, Some("of timeline Some(1), the donor's is 2"));
        check(&|proof| proof.manifest = json!({ "taken": "snapshot" }), Some("Some(1)"));
        let snapshot = |proof: &mut Proof| {
            (proof.timeline, proof.branched_from) = (3, Some(2));
            proof.manifest = json!({ "taken": "snapshot" });
        };
        check(&snapshot, None);
        check(&|proof| proof.position = lsn("0/4FFFFFF"), Some("ends at 0/4FFFFFF"));
        check(
            &|proof| proof.databases.retain(|name, _| name != "b"),
            Some("lacks the database \"b\""),
        );
        check(&|proof| proof.answers = vec!["8".into()], Some("the donor gives \"7\""));
    }
}
