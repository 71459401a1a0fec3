//! What is going to be done, before anything is.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// The name of a step within its plan: `stop-donor`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub String);

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for StepId {
    fn from(id: &str) -> Self {
        StepId(id.to_owned())
    }
}

/// The steps in their order, and what they were planned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What it does, in a line.
    pub title: String,
    /// What it was made from, as its steps read it: what was asked for, and what was found.
    pub facts: Value,
    /// The steps.
    pub steps: Vec<Planned>,
}

/// One step as it is planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// Its name.
    pub id: StepId,
    /// What it does, in a line.
    pub title: String,
    /// What it changes: hosts, servers, directories. Empty when it only looks.
    pub touches: Vec<String>,
    /// What clients notice of it.
    pub clients: Notice,
    /// How long it takes, in seconds, as far as that can be told before.
    pub estimate: Option<u64>,
    /// How it is undone, in a line.
    pub undo: String,
    /// Whether there is a way back.
    pub way_back: WayBack,
    /// Why a person should look before it is done; by default a run stops here.
    pub pause: Option<String>,
}

/// What clients notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Notice {
    /// Nothing.
    Nothing,
    /// A read on a standby may fail.
    FewerStandbys,
    /// Neither reads nor writes until the step that ends it.
    Outage,
    /// The outage ends here: they connect to the new place.
    Reconnect,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Notice::Nothing => "nothing",
            Notice::FewerStandbys => "fewer standbys",
            Notice::Outage => "no database",
            Notice::Reconnect => "they reconnect",
        })
    }
}

/// Whether a step can be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WayBack {
    /// It can.
    Reversible,
    /// It cannot, and this is why.
    PointOfNoReturn(String),
}

impl Plan {
    /// The step of this name.
    pub fn step(&self, id: &StepId) -> Option<&Planned> {
        self.steps.iter().find(|step| step.id == *id)
    }
}
