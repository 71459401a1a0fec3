//! What was begun and what is done: lines of JSON, each with a hash of all before it.
//!
//! ```text
//! {"hash":"…","record":{"seq":3,"at":"…","operator":"…","entry":"intent","step":"…","way":"apply"}}
//! ```
//!
//! The hash is SHA-256 of the hash before (64 zeroes at first), a line feed, and the record's text. A
//! last line without a line feed was being written when its writer ended: it was not yet promised to
//! anybody, and does not count. Anything else that does not fit is refused: somebody has changed it.

use crate::{Outcome, Plan, StepId, Way};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt};

/// The version of what stands in a journal.
pub const SCHEMA: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// When, by the runner's clock.
    pub at: Timestamp,
    /// Who ran it: user, host and process.
    pub operator: String,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What can be told in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Entry {
    /// The first one: this plan is run.
    Begun {
        /// [`SCHEMA`].
        schema: u32,
        /// What is run, to its end, whatever happens to what it was made from.
        plan: Box<Plan>,
    },
    /// A step is going to be gone this way.
    Intent {
        /// Which.
        step: StepId,
        /// Which way.
        way: Way,
    },
    /// It was.
    Done {
        /// Which.
        step: StepId,
        /// Which way.
        way: Way,
        /// What it found or made.
        outcome: Outcome,
    },
    /// It was not, or not all of it.
    Failed {
        /// Which.
        step: StepId,
        /// Which way.
        way: Way,
        /// Why.
        problem: String,
    },
    /// A person has looked before this step, and lets it be done.
    Passed {
        /// Which.
        step: StepId,
    },
    /// From here on it is undone.
    TurnedBack {
        /// What was written since may be lost.
        discard_writes: bool,
    },
    /// Everything is undone.
    RolledBack,
    /// From here on what was kept is let go of: there is no way back.
    Committing,
    /// Everything is done, and nothing kept.
    Committed,
}

/// Which way the whole goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Forward.
    Forward,
    /// Back.
    Back {
        /// What was written since may be lost.
        discard_writes: bool,
    },
    /// All was done, and what was kept is let go of.
    Committing,
    /// It ended where it began.
    RolledBack,
    /// It ended.
    Committed,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Forward => "it goes forward",
            Mode::Back { .. } => "it is being undone",
            Mode::Committing => "it is being committed",
            Mode::RolledBack => "it was undone",
            Mode::Committed => "it was committed",
        })
    }
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun: something of it may be done.
    Begun(Way),
    /// Gone this way to its end.
    Ended(Way),
}

/// Why a text is no journal.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
    /// A line is not one of ours.
    #[error("line {line} is no record of a journal")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        cause: serde_json::Error,
    },
    /// A line does not follow from those before it.
    #[error("line {line} was changed, or one before it: its hash does not fit")]
    Hash {
        /// Which, from 1.
        line: usize,
    },
    /// Another version wrote it.
    #[error("it has schema {0}, this program reads schema {SCHEMA}")]
    Schema(u32),
    /// A line tells of what cannot have happened then.
    #[error("line {line} cannot stand there")]
    Illegal {
        /// Which, from 1.
        line: usize,
        /// Why.
        #[source]
        cause: Illegal,
    },
}

/// An entry that cannot come now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(String);

/// All that was written, and what it means.
#[derive(Debug, Clone)]
pub struct Journal {
    records: Vec<Record>,
    plan: Plan,
    mode: Mode,
    steps: BTreeMap<StepId, StepState>,
    outcomes: BTreeMap<StepId, Outcome>,
    passed: Vec<StepId>,
    problem: Option<(StepId, String)>,
    hash: String,
}

#[derive(Deserialize)]
struct Line<'a> {
    hash: String,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// What the first line is chained to.
fn first_hash() -> String {
    "0".repeat(64)
}

fn chained(before: &str, record: &str) -> String {
    let digest = Sha256::digest(format!("{before}\n{record}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Journal {
    /// A journal of this plan, and its first line.
    pub fn begin(plan: Plan, at: Timestamp, operator: &str) -> (Journal, String) {
        let entry = Entry::Begun { schema: SCHEMA, plan: Box::new(plan.clone()) };
        let record = Record { seq: 1, at, operator: operator.to_owned(), entry };
        let mut journal = Journal {
            records: Vec::new(),
            plan,
            mode: Mode::Forward,
            steps: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            passed: Vec::new(),
            problem: None,
            hash: first_hash(),
        };
        let line = journal.write(record);
        (journal, line)
    }

    /// Reads one. Gives the number of bytes of it that count as well: what follows is a line that was
    /// not written to its end, and is to be cut off before another is written.
    ///
    /// # Errors
    /// When it is none, or somebody has changed it.
    pub fn parse(text: &str) -> Result<(Journal, usize), Broken> {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut journal: Option<Journal> = None;
        for (index, text) in text[..whole].lines().enumerate() {
            let line = index + 1;
            let fail = |cause| Broken::Line { line, cause };
            let Line { hash, record: text } = serde_json::from_str(text).map_err(fail)?;
            let before = journal.as_ref().map_or_else(first_hash, |journal| journal.hash.clone());
            if hash != chained(&before, text.get()) {
                return Err(Broken::Hash { line });
            }
            let record: Record = serde_json::from_str(text.get()).map_err(fail)?;
            match &mut journal {
                None => {
                    let Entry::Begun { schema, plan } = record.entry.clone() else {
                        let cause = Illegal("a journal begins with its plan".to_owned());
                        return Err(Broken::Illegal { line, cause });
                    };
                    if schema != SCHEMA {
                        return Err(Broken::Schema(schema));
                    }
                    let mut begun = Journal::begin(*plan, record.at, &record.operator).0;
                    begun.records = vec![record];
                    begun.hash = hash;
                    journal = Some(begun);
                }
                Some(journal) => {
                    journal.take(&record.entry).map_err(|cause| Broken::Illegal { line, cause })?;
                    journal.records.push(record);
                    journal.hash = hash;
                }
            }
        }
        Ok((journal.ok_or(Broken::Empty)?, whole))
    }

    /// One more entry; gives its line, with its line feed, which must be stored before anything else
    /// is done.
    ///
    /// # Errors
    /// When this cannot come now; nothing has changed then.
    pub fn append(
        &mut self,
        entry: Entry,
        at: Timestamp,
        operator: &str,
    ) -> Result<String, Illegal> {
        self.take(&entry)?;
        let seq = self.records.len() as u64 + 1;
        Ok(self.write(Record { seq, at, operator: operator.to_owned(), entry }))
    }

    fn write(&mut self, record: Record) -> String {
        let text = serde_json::to_string(&record).expect("a record is JSON");
        self.hash = chained(&self.hash, &text);
        self.records.push(record);
        format!("{{\"hash\":\"{}\",\"record\":{text}}}\n", self.hash)
    }

    fn take(&mut self, entry: &Entry) -> Result<(), Illegal> {
        let illegal = |why: String| Err(Illegal(why));
        match entry {
            Entry::Begun { .. } => return illegal("it has begun already".to_owned()),
            Entry::Intent { step, way } => {
                self.may_go(step, *way)?;
                self.steps.insert(step.clone(), StepState::Begun(*way));
            }
            Entry::Done { step, way, outcome } => {
                if self.state(step) != StepState::Begun(*way) {
                    return illegal(format!("{step}: to {way} it was not begun"));
                }
                self.steps.insert(step.clone(), StepState::Ended(*way));
                if *way == Way::Apply {
                    self.outcomes.insert(step.clone(), outcome.clone());
                }
                self.problem = None;
            }
            Entry::Failed { step, way, problem } => {
                self.may_go(step, *way)?;
                self.problem = Some((step.clone(), problem.clone()));
            }
            Entry::Passed { step } => {
                self.may_go(step, Way::Apply)?;
                self.passed.push(step.clone());
            }
            Entry::TurnedBack { discard_writes } => match self.mode {
                Mode::Forward | Mode::Back { .. } => {
                    self.mode = Mode::Back { discard_writes: *discard_writes };
                    self.problem = None;
                }
                mode => return illegal(format!("there is no way back: {mode}")),
            },
            Entry::RolledBack => match self.mode {
                Mode::Back { .. } if self.last_begun().is_none() => self.mode = Mode::RolledBack,
                mode => return illegal(format!("not all of it is undone: {mode}")),
            },
            Entry::Committing => match self.mode {
                Mode::Forward if self.first_not(Way::Apply).is_none() => {
                    self.mode = Mode::Committing;
                }
                mode => return illegal(format!("not all of it is done: {mode}")),
            },
            Entry::Committed => match self.mode {
                Mode::Committing if self.first_not(Way::Release).is_none() => {
                    self.mode = Mode::Committed;
                }
                mode => return illegal(format!("not all of it is let go of: {mode}")),
            },
        }
        Ok(())
    }

    /// Whether this step is the one whose turn it is.
    fn may_go(&self, step: &StepId, way: Way) -> Result<(), Illegal> {
        let turn = match (self.mode, way) {
            (Mode::Forward, Way::Apply) => self.first_not(Way::Apply),
            (Mode::Back { .. }, Way::Undo) => self.last_begun(),
            (Mode::Committing, Way::Release) => self.first_not(Way::Release),
            (mode, way) => return Err(Illegal(format!("{step}: no time to {way} it: {mode}"))),
        };
        match turn {
            Some(turn) if turn == step => Ok(()),
            Some(turn) => Err(Illegal(format!("to {way} {step}: it is the turn of {turn}"))),
            None => Err(Illegal(format!("to {way} {step}: nothing is left to {way}"))),
        }
    }

    /// The first step that is not gone this way.
    pub(crate) fn first_not(&self, way: Way) -> Option<&StepId> {
        let ids = self.plan.steps.iter().map(|step| &step.id);
        ids.into_iter().find(|id| self.state(id) != StepState::Ended(way))
    }

    /// The last step of which something may be done.
    pub(crate) fn last_begun(&self) -> Option<&StepId> {
        let ids = self.plan.steps.iter().rev().map(|step| &step.id);
        ids.into_iter()
            .find(|id| !matches!(self.state(id), StepState::Pending | StepState::Ended(Way::Undo)))
    }

    /// All lines.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Which way it goes.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How far a step is.
    pub fn state(&self, step: &StepId) -> StepState {
        self.steps.get(step).copied().unwrap_or(StepState::Pending)
    }

    /// What a step found or made when it was done.
    pub fn outcome(&self, step: &StepId) -> Option<&Outcome> {
        self.outcomes.get(step)
    }

    /// Whether a person has let this step be done.
    pub fn is_passed(&self, step: &StepId) -> bool {
        self.passed.contains(step)
    }

    /// Which step failed last and why, if it has not been done since.
    pub fn problem(&self) -> Option<(&StepId, &str)> {
        self.problem.as_ref().map(|(step, problem)| (step, problem.as_str()))
    }
}
