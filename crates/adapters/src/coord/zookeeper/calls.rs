//! What is asked of the ensemble, in any session.

use super::failure::Failure;
use super::layout::{self, Layout};
use crate::coord::{HistoryEntry, Registration, StoredState, Version};
use cluster::Generation;
use cluster::v1::V1Error;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use zookeeper_client::{
    Acls, Client, CreateMode, Error, MultiWriteError, MultiWriteResult, OneshotWatcher, Stat,
};

/// How many answers are waited for at once where many nodes are read.
pub(super) const AT_ONCE: usize = 64;

/// A child as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawChild {
    /// The last part of its path.
    pub name: String,
    /// What it holds.
    pub data: Vec<u8>,
    /// When it was made.
    pub created: Timestamp,
    /// The session that it goes with; 0 when it stays.
    pub owner: i64,
}

/// The children of `election` that could not be read, each of them reported once.
#[derive(Debug, Clone, Default)]
pub(super) struct Unreadables(Arc<Mutex<BTreeSet<String>>>);

impl Unreadables {
    fn retain(&self, children: &[RawChild]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name| children.iter().any(|child| child.name == *name));
    }

    fn report(&self, target: &str, name: &str, error: &V1Error) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            let error = crate::coord::follow::describe(error);
            tracing::warn!(target, name, error, "passing over a peer that cannot be read");
        }
    }
}

/// The stored state; `None` when there is none.
pub(super) async fn state(
    client: &Client,
    layout: &Layout,
) -> Result<Option<StoredState>, Failure> {
    match client.get_data(&layout.state).await {
        Ok((data, stat)) => Ok(Some(stored(layout, data, &stat)?)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(Failure::node("read", &layout.state, error)),
    }
}

/// As [`state`], with a watch that tells of the next change.
pub(super) async fn watched_state(
    client: &Client,
    layout: &Layout,
) -> Result<(Option<StoredState>, OneshotWatcher), Failure> {
    let path = &layout.state;
    match client.get_and_watch_data(path).await {
        Ok((data, stat, watcher)) => return Ok((Some(stored(layout, data, &stat)?), watcher)),
        Err(Error::NoNode) => {}
        Err(error) => return Err(Failure::node("read", path, error)),
    }
    let watched = client.check_and_watch_stat(path).await;
    let (stat, watcher) = watched.map_err(|error| Failure::node("read", path, error))?;
    // It may have come in between; then the watch tells of its next change.
    let state = if stat.is_some() { state(client, layout).await? } else { None };
    Ok((state, watcher))
}

/// The names of the registrations, with a watch that tells of the next change of them.
pub(super) async fn watched_election(
    client: &Client,
    layout: &Layout,
) -> Result<(Vec<String>, OneshotWatcher), Failure> {
    let path = &layout.election;
    let wrong = |error| Failure::node("read", path, error);
    loop {
        match client.list_and_watch_children(path).await {
            Ok(listed) => return Ok(listed),
            Err(Error::NoNode) => {}
            Err(error) => return Err(wrong(error)),
        }
        let (stat, watcher) = client.check_and_watch_stat(path).await.map_err(wrong)?;
        // A node that came in between tells by this watch of other things than its children.
        if stat.is_none() {
            return Ok((Vec::new(), watcher));
        }
    }
}

/// Children of a node; none when there is no such node. Those that go meanwhile are left out.
pub(super) async fn children(client: &Client, path: &str) -> Result<Vec<RawChild>, Failure> {
    let names = match client.list_children(path).await {
        Ok(names) => names,
        Err(Error::NoNode) => Vec::new(),
        Err(error) => return Err(Failure::node("read", path, error)),
    };
    read_children(client, path, names).await
}

/// Those of these children that are still there, in the order of their numbers.
pub(super) async fn read_children(
    client: &Client,
    parent: &str,
    mut names: Vec<String>,
) -> Result<Vec<RawChild>, Failure> {
    names.sort_by(|a, b| {
        let key = |name: &str| layout::numbered(name).map(|(_, number)| number);
        key(a).cmp(&key(b)).then_with(|| a.cmp(b))
    });
    let mut children = Vec::with_capacity(names.len());
    for some in names.chunks(AT_ONCE) {
        let paths: Vec<String> = some.iter().map(|name| format!("{parent}/{name}")).collect();
        // Each request is sent when its future is made: they are answered together.
        let answers: Vec<_> = paths.iter().map(|path| client.get_data(path)).collect();
        for ((name, path), answer) in some.iter().zip(&paths).zip(answers) {
            match answer.await {
                Ok((data, stat)) => children.push(RawChild {
                    name: name.clone(),
                    data,
                    created: time(path, &stat)?,
                    owner: stat.ephemeral_owner,
                }),
                Err(Error::NoNode) => {}
                Err(error) => return Err(Failure::node("read", path, error)),
            }
        }
    }
    Ok(children)
}

/// The children of `election` as registrations; those that are none are reported once and passed
/// over.
pub(super) fn registrations(
    target: &str,
    unreadables: &Unreadables,
    children: &[RawChild],
) -> Vec<Registration> {
    unreadables.retain(children);
    let mut registrations = Vec::new();
    for child in children {
        match layout::registration(&child.name, &child.data) {
            Ok(registration) => registrations.push(registration),
            Err(error) => unreadables.report(target, &child.name, &error),
        }
    }
    registrations
}

/// Makes a persistent node, and those above it that are missing.
pub(super) async fn make_path(client: &Client, path: &str, acls: Acls<'_>) -> Result<(), Failure> {
    let options = CreateMode::Persistent.with_acls(acls);
    client.mkdir(path, &options).await.map_err(|error| Failure::node("made", path, error))
}

/// What setting a shard up declares.
const SETUP: Generation = Generation(1);

/// Stores a state if the stored version is the expected one, and its history entry with it. `None`
/// is a conflict.
pub(super) async fn put(
    client: &Client,
    layout: &Layout,
    acls: Acls<'_>,
    expected: Option<Version>,
    (generation, json): (Generation, &str),
) -> Result<Option<Version>, Failure> {
    if expected.is_none() && generation == SETUP {
        refuse_a_second_setup(client, layout).await?;
    }
    let mut made = false;
    loop {
        let mut writer = client.new_multi_writer();
        match expected {
            Some(Version(version)) => {
                let Ok(version) = i32::try_from(version) else { return Ok(None) };
                writer.add_set_data(&layout.state, json.as_bytes(), Some(version))?;
            }
            None => {
                let options = CreateMode::Persistent.with_acls(acls);
                writer.add_create(&layout.state, json.as_bytes(), &options)?;
            }
        }
        let entry = format!("{}/{generation}-", layout.history);
        let options = CreateMode::PersistentSequential.with_acls(acls);
        writer.add_create(&entry, json.as_bytes(), &options)?;
        match writer.commit().await {
            Ok(results) => return committed(&layout.state, &results).map(Some),
            Err(MultiWriteError::OperationFailed {
                index: 0,
                source: Error::NodeExists | Error::BadVersion,
            }) => return Ok(None),
            // Nothing is stored, where something was expected.
            Err(MultiWriteError::OperationFailed { index: 0, source: Error::NoNode })
                if expected.is_some() =>
            {
                return Ok(None);
            }
            Err(MultiWriteError::OperationFailed { source: Error::NoNode, .. }) if !made => {
                made = true;
                make_path(client, &layout.history, acls).await?;
            }
            Err(MultiWriteError::OperationFailed { index, source }) => {
                let paths = [(&layout.state, "written"), (&layout.history, "added to")];
                let (path, action) = paths[index.min(1)];
                return Err(put_failure(action, path, source));
            }
            Err(error) => return Err(put_failure("written", &layout.state, error.into())),
        }
    }
}

/// A shard is set up once. Where there is a history and no state, the state was deleted, or the shard is
/// of the original's first version and none of its peers has a session now: their databases are there
/// (rule G2).
async fn refuse_a_second_setup(client: &Client, layout: &Layout) -> Result<(), Failure> {
    match client.list_children(&layout.history).await {
        Ok(entries) if entries.is_empty() => Ok(()),
        Err(Error::NoNode) => Ok(()),
        // Where there is a state as well, that is what its writer is to be told of.
        Ok(_) if state(client, layout).await?.is_some() => Ok(()),
        Ok(_) => Err(Failure::HasHistory(layout.history.clone())),
        Err(error) => Err(Failure::node("read", &layout.history, error)),
    }
}

fn committed(path: &str, results: &[MultiWriteResult]) -> Result<Version, Failure> {
    match results.first() {
        Some(MultiWriteResult::SetData { stat }) => Ok(Version(stat.version.into())),
        Some(MultiWriteResult::Create { .. }) => Ok(Version(0)),
        other => Err(Failure::Client(Error::UnexpectedError(format!(
            "the transaction on {path} was answered with {other:?}"
        )))),
    }
}

fn put_failure(action: &'static str, path: &str, error: Error) -> Failure {
    match error {
        Error::MarshallingError | Error::Unimplemented => Failure::TooOld,
        // On a new connection, while the answer was waited for: what was asked may have been done.
        Error::AuthFailed => Failure::Lost(error),
        error => Failure::node(action, path, error),
    }
}

/// Every write, in order. Entries of the first version are not among them.
pub(super) async fn history(
    client: &Client,
    layout: &Layout,
) -> Result<Vec<HistoryEntry>, Failure> {
    let mut entries = Vec::new();
    for child in children(client, &layout.history).await? {
        let Some((generation, sequence)) = layout::history_name(&child.name) else { continue };
        let path = format!("{}/{}", layout.history, child.name);
        let json = text(&path, child.data)?;
        entries.push(HistoryEntry { sequence, time: child.created, generation, json });
    }
    Ok(entries)
}

fn stored(layout: &Layout, data: Vec<u8>, stat: &Stat) -> Result<StoredState, Failure> {
    let json = text(&layout.state, data)?;
    Ok(StoredState { version: Version(stat.version.into()), json })
}

fn text(path: &str, data: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(data).map_err(|error| Failure::Content {
        path: path.to_owned(),
        what: "text",
        source: error.into(),
    })
}

fn time(path: &str, stat: &Stat) -> Result<Timestamp, Failure> {
    Timestamp::from_millisecond(stat.ctime).map_err(|error| Failure::Content {
        path: path.to_owned(),
        what: "time",
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what certainly was not stored counts as refused (rule M4).
    #[test]
    fn what_is_refused() {
        let check = |error: Error, refused: bool, part: &str| {
            let failure = put_failure("written", "/manatee/1.example/state", error);
            assert_eq!(failure.is_refusal(), refused, "{failure}");
            assert!(failure.to_string().contains(part), "{failure}");
        };
        check(Error::NoAuth, true, "/manatee/1.example/state may not be written");
        // How a server of 3.4 answers.
        check(Error::MarshallingError, true, "3.5 or later");
        check(Error::AuthFailed, false, "connection was lost");
        check(Error::ConnectionLoss, false, "connection was lost");
        check(Error::RuntimeInconsistent, false, "/manatee/1.example/state");
    }
}
