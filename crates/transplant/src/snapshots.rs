//! How a donor's dataset reaches the recipient: a snapshot, then what has changed, again and again, through
//! the runner. What comes in has a name of its own; nobody starts a server on it.

use crate::{DonorConfig, Facts, recipient::Progress, steps::Scene};
use adapters::{
    clock,
    exec::Exec,
    storage::{
        Base, Guid, Mark, Receivable, ResumeToken, SendPlan, Sendable, SnapshotName, Unfinished,
        plan_send,
    },
};
use anyhow::{Context, Result, bail};
use cluster::Millis;
use saga::Tell;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is passed on at once.
const CHUNK: usize = 1 << 18;
/// Between two lines of progress.
const PERIOD: Millis = Millis(500);
/// How long a question may take.
const QUERY_LIMIT: Millis = Millis(600_000);

/// What a donor's dataset is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetFacts {
    /// Where in it the data directory is; `.` when it is the dataset itself.
    pub inside: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotFacts {
    /// Its name.
    pub name: String,
    /// Which it is, everywhere.
    pub guid: String,
}

/// What has come to the recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrived {
    /// The snapshots, oldest first.
    pub snapshots: Vec<SnapshotFacts>,
    /// A stream that broke off.
    pub rest: Option<Rest>,
    /// What streams may contain.
    pub features: BTreeSet<String>,
}

/// A stream that broke off and can go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rest {
    /// Where it goes on.
    pub token: String,
    /// The snapshot that was coming.
    pub to: String,
}

impl SnapshotFacts {
    fn mark(&self) -> Result<Mark> {
        Ok(Mark { name: SnapshotName::new(&self.name)?, guid: Guid::new(&self.guid) })
    }
}

/// Runs a verb of `manatee transplant donor` on the donor's host.
fn verb(donor: &DonorConfig, verb: &str, args: &[&str]) -> Result<Exec> {
    let dataset = donor.dataset.as_ref().context("the inventory names no dataset of the donor")?;
    let command = [donor.program.as_str(), "transplant", "donor", verb];
    let which = ["--kind", dataset.kind.name(), "--name", &dataset.name];
    let command = [&command[..], &which, args].concat();
    Ok(match verb {
        "send" => donor.host.exec_alone(None, &command)?,
        _ => donor.host.exec(None, &command)?,
    })
}

async fn ask<T: DeserializeOwned>(donor: &DonorConfig, name: &str, args: &[&str]) -> Result<T> {
    let told = || format!("`manatee transplant donor {name}` on {}", donor.host);
    let output = verb(donor, name, args)?.limit(QUERY_LIMIT).run().await.with_context(told)?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .with_context(|| format!("{} answers something unexpected: {text}", told()))
}

/// What the dataset of a donor is.
pub(crate) async fn look(donor: &DonorConfig) -> Result<DatasetFacts> {
    ask(donor, "look", &["--data-dir", &donor.data_dir]).await
}

/// Where in the donor's dataset its data directory is.
pub(crate) fn inside(facts: &Facts) -> Result<&str> {
    let dataset = facts.donor.dataset.as_ref().context("no dataset was looked at")?;
    Ok(&dataset.inside)
}

/// Destroys the donor's snapshots of this transplant.
pub(crate) async fn drop_all(scene: &Scene) -> Result<()> {
    let _: Value = ask(&scene.donor.config, "drop", &["--id", &scene.facts.id]).await?;
    Ok(())
}

async fn arrived(scene: &Scene) -> Result<Arrived> {
    scene.first().verb("incoming look", &[]).await
}

/// Whether what came has been put in place.
pub(crate) async fn in_place(scene: &Scene) -> Result<bool> {
    let none = arrived(scene).await?.snapshots.is_empty();
    Ok(none && scene.first().control().await.is_ok())
}

/// The newest snapshot that has come, which must be the donor's newest.
pub(crate) async fn newest(scene: &Scene) -> Result<Value> {
    let id = ["--id", scene.facts.id.as_str()];
    let made: Vec<SnapshotFacts> = ask(&scene.donor.config, "list", &id).await?;
    let came = arrived(scene).await?.snapshots;
    match (made.last(), came.last()) {
        (Some(made), Some(came)) if made.guid == came.guid => Ok(serde_json::to_value(came)?),
        (made, came) => bail!("the donor's newest snapshot is {made:?}, and {came:?} has come"),
    }
}

/// Sends what has changed until that is no more than the limit.
pub(crate) async fn level(scene: &Scene, tell: &dyn Tell) -> Result<()> {
    let limits = &scene.facts.inventory.limits;
    let begun = clock::now();
    loop {
        let bytes = sync(scene, tell).await?;
        if bytes <= limits.lag_bytes {
            return Ok(());
        }
        if clock::now() - begun > Millis(limits.catch_up_seconds * 1000) {
            bail!(
                "for {} s, and still {} MiB had changed when they were sent: raise limits.lag_bytes, or \
                 wait for a time with less to do",
                limits.catch_up_seconds,
                bytes >> 20
            );
        }
    }
}

/// Makes a snapshot of the donor's dataset and sends what the recipient lacks of it; how many bytes that
/// were.
pub(crate) async fn sync(scene: &Scene, tell: &dyn Tell) -> Result<u64> {
    let (donor, id) = (&scene.donor, ["--id", scene.facts.id.as_str()]);
    let mut came = arrived(scene).await?;
    let made: Vec<SnapshotFacts> = ask(&donor.config, "list", &id).await?;
    let mut sent = 0;
    if came.rest.is_some() {
        let plan = plan(&made, &came, None)?;
        if matches!(plan, SendPlan::Resume { .. }) {
            tell.tell("going on where the last stream broke off");
            sent += transfer(scene, &plan, &came, tell).await?;
        } else {
            let _: Value = scene.first().verb("incoming abandon", &[]).await?;
        }
        came = arrived(scene).await?;
    }
    let common = |one: &SnapshotFacts| made.iter().any(|other| other.guid == one.guid);
    if !came.snapshots.is_empty() && !came.snapshots.iter().any(common) {
        // Left by something else under this name: of no use, and nobody's.
        let _: Value = scene.first().verb("incoming clear", &[]).await?;
        came.snapshots.clear();
    }
    if donor.is_running().await? {
        // So that the snapshot after this one has less to carry.
        donor.sql("checkpoint").await?;
    }
    let new: SnapshotFacts = ask(&donor.config, "snapshot", &id).await?;
    let all = [&made[..], std::slice::from_ref(&new)].concat();
    let plan = plan(&all, &came, Some(&new))?;
    sent += transfer(scene, &plan, &came, tell).await?;
    let came = arrived(scene).await?.snapshots;
    match came.last() {
        Some(last) if last.guid == new.guid => Ok(sent),
        last => bail!("snapshot {new:?} was sent, and {last:?} came"),
    }
}

fn plan(
    made: &[SnapshotFacts],
    came: &Arrived,
    wanted: Option<&SnapshotFacts>,
) -> Result<SendPlan> {
    let marks =
        |all: &[SnapshotFacts]| all.iter().map(SnapshotFacts::mark).collect::<Result<Vec<_>>>();
    let sendable = Sendable { snapshots: marks(made)?, bookmarks: Vec::new() };
    let rest = came.rest.as_ref().filter(|_| wanted.is_none());
    let unfinished = rest
        .map(|rest| Unfinished { token: ResumeToken::new(&rest.token), to: Guid::new(&rest.to) });
    let receivable = Receivable { snapshots: marks(&came.snapshots)?, unfinished };
    let wanted = wanted.map(|wanted| Guid::new(&wanted.guid));
    Ok(plan_send(&sendable, &receivable, wanted.as_ref())?)
}

/// Passes a stream from the donor's host to the recipient's; how many bytes.
async fn transfer(scene: &Scene, plan: &SendPlan, came: &Arrived, tell: &dyn Tell) -> Result<u64> {
    let (facts, donor, first) = (&scene.facts, &scene.donor.config, scene.first());
    let mut args = vec!["--id", facts.id.as_str()];
    let total = match plan {
        SendPlan::UpToDate(_) => return Ok(0),
        SendPlan::Full { to } => {
            args.extend(["--to", to.name.as_str()]);
            Some(facts.donor.bytes)
        }
        SendPlan::Incremental { from: Base::Snapshot(from) | Base::Bookmark(from), to } => {
            args.extend(["--to", to.name.as_str(), "--from", from.name.as_str()]);
            None
        }
        SendPlan::Resume { token, to } => {
            args.extend(["--to", to.name.as_str(), "--token", token.as_str()]);
            None
        }
    };
    args.extend(came.features.iter().flat_map(|feature| ["--accept", feature]));
    // Of a donor that is stopped nobody is served worse by it.
    let limited = scene.donor.is_running().await?;
    let rate = facts.inventory.limits.rate_mib.filter(|_| limited);
    let rate = rate.map(|rate| (rate << 20).to_string());
    args.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
    let mut from = verb(donor, "send", &args)?.reader().context("the donor's stream")?;
    let mut to = first.exec("incoming take", &[])?.writer().context("the recipient's stream")?;
    let (mut chunk, mut bytes) = (vec![0; CHUNK], 0);
    let begun = clock::now();
    let mut told = begun;
    loop {
        let read = match from.read(&mut chunk).await {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                to.abort().await;
                return Err(error).context("the donor's snapshot cannot be sent");
            }
        };
        if let Err(error) = to.write_all(&chunk[..read]).await {
            // It says why at its end.
            to.shutdown().await.context("the recipient does not take the snapshot")?;
            return Err(error).context("the recipient takes no more of the snapshot");
        }
        bytes += read as u64;
        let now = clock::now();
        if now - told >= PERIOD {
            told = now;
            tell.tell(&Progress::after(now - begun, bytes, total).to_string());
        }
    }
    to.shutdown().await.context("the recipient does not take the snapshot")?;
    Ok(bytes)
}
