//! How a receiver gets a snapshot from a sender: all of it, the difference, the rest, or not at all,
//! and why. Pure: from what both sides have.

use super::{Guid, ResumeToken, SnapshotName};
use std::collections::{BTreeMap, BTreeSet};

/// A snapshot or bookmark, as either side names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Its name there.
    pub name: SnapshotName,
    /// Which it is, everywhere.
    pub guid: Guid,
}

/// What a sender has, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sendable {
    /// Its snapshots.
    pub snapshots: Vec<Mark>,
    /// Snapshots that are gone but can still be sent from.
    pub bookmarks: Vec<Mark>,
}

/// What a receiver has in the dataset that is to be brought up to date.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receivable {
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Mark>,
    /// A receive that broke off.
    pub unfinished: Option<Unfinished>,
}

/// A receive that broke off and can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// What the receiving side says of how far it is.
    pub token: ResumeToken,
    /// The snapshot that was coming in.
    pub to: Guid,
}

/// What a difference is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A snapshot that both have.
    Snapshot(Mark),
    /// A snapshot that the receiver has, and of which the sender kept a bookmark.
    Bookmark(Mark),
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendPlan {
    /// Nothing: the receiver has it.
    UpToDate(Mark),
    /// All of this snapshot, into a dataset that is not there yet.
    Full {
        /// The snapshot.
        to: Mark,
    },
    /// The difference from what both have.
    Incremental {
        /// From here.
        from: Base,
        /// To here.
        to: Mark,
    },
    /// The rest of a stream that broke off.
    Resume {
        /// Where it goes on.
        token: ResumeToken,
        /// What will be there then.
        to: Mark,
    },
}

/// Why nothing can be sent, with what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendConflict {
    /// The sender has no snapshot, or not the one that was asked for.
    #[error("the sender does not have {}", wanted.as_ref().map_or("any snapshot".to_owned(), |guid| format!("the snapshot {guid}")))]
    NothingToSend {
        /// What was asked for.
        wanted: Option<Guid>,
    },
    /// The receiver has snapshots, and the sender has none of them: only all of it can be sent, into
    /// another dataset.
    #[error(
        "the two have no snapshot in common: the receiver's {} would have to be set aside",
        names(only_receiver)
    )]
    NothingInCommon {
        /// What only the receiver has.
        only_receiver: Vec<Mark>,
        /// What only the sender has.
        only_sender: Vec<Mark>,
    },
    /// After the last common one each went its own way: the receiver has to go back to it first, and
    /// keep what it has aside.
    #[error("the receiver went its own way after {}: {} would have to be set aside", common.name, names(only_receiver))]
    Diverged {
        /// The last that both have.
        common: Mark,
        /// What only the receiver has, after it.
        only_receiver: Vec<Mark>,
        /// What only the sender has, after it.
        only_sender: Vec<Mark>,
    },
    /// The receiver has the one that is wanted, and later ones of the same line.
    #[error("the receiver has {} already, and {} after it", to.name, names(later))]
    ReceiverAhead {
        /// What was wanted.
        to: Mark,
        /// What the receiver has after it.
        later: Vec<Mark>,
    },
    /// A snapshot that is to come in has the name of another one at the receiver.
    #[error("the receiver has another snapshot of the name {}", to.name)]
    NameTaken {
        /// What was to come in.
        to: Mark,
        /// What is there.
        there: Mark,
    },
}

fn names(marks: &[Mark]) -> String {
    marks.iter().map(|mark| mark.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Decides what to send, so that the receiver has `wanted`, or else the sender's newest snapshot.
///
/// # Errors
/// When no stream would bring it there without something being overwritten; says what both have.
pub fn plan_send(
    sender: &Sendable,
    receiver: &Receivable,
    wanted: Option<&Guid>,
) -> Result<SendPlan, SendConflict> {
    let nothing = || SendConflict::NothingToSend { wanted: wanted.cloned() };
    let end = match wanted {
        Some(guid) => sender.snapshots.iter().position(|mark| mark.guid == *guid),
        None => sender.snapshots.len().checked_sub(1),
    };
    let end = end.ok_or_else(nothing)?;
    let to = sender.snapshots[end].clone();
    // A stream that broke off is finished first, whatever is newest by now: a difference brings the
    // rest afterwards.
    if let Some(unfinished) = &receiver.unfinished
        && let Some(to) = sender.snapshots.iter().find(|mark| mark.guid == unfinished.to)
    {
        return Ok(SendPlan::Resume { token: unfinished.token.clone(), to: to.clone() });
    }
    let Some(newest) = receiver.snapshots.last() else {
        return Ok(SendPlan::Full { to });
    };
    if newest.guid == to.guid {
        return Ok(SendPlan::UpToDate(to));
    }
    if let Some(at) = receiver.snapshots.iter().position(|mark| mark.guid == to.guid) {
        return Err(SendConflict::ReceiverAhead { to, later: receiver.snapshots[at + 1..].into() });
    }
    let before = &sender.snapshots[..end];
    // A snapshot is the better base: from a bookmark nothing can be said about what was deleted in
    // between.
    let bases: BTreeMap<&Guid, Base> = sender
        .bookmarks
        .iter()
        .map(|mark| (&mark.guid, Base::Bookmark(mark.clone())))
        .chain(before.iter().map(|mark| (&mark.guid, Base::Snapshot(mark.clone()))))
        .collect();
    let common = receiver.snapshots.iter().rposition(|mark| bases.contains_key(&mark.guid));
    let theirs: BTreeSet<&Guid> = receiver.snapshots.iter().map(|mark| &mark.guid).collect();
    let Some(common) = common else {
        return Err(SendConflict::NothingInCommon {
            only_receiver: receiver.snapshots.clone(),
            only_sender: before.iter().chain([&to]).cloned().collect(),
        });
    };
    let shared = &receiver.snapshots[common];
    let after = &receiver.snapshots[common + 1..];
    if !after.is_empty() {
        let since = before.iter().rposition(|mark| mark.guid == shared.guid).map_or(0, |at| at + 1);
        let news = before[since..].iter().chain([&to]);
        return Err(SendConflict::Diverged {
            common: shared.clone(),
            only_receiver: after.to_vec(),
            only_sender: news.filter(|mark| !theirs.contains(&mark.guid)).cloned().collect(),
        });
    }
    if let Some(there) = receiver.snapshots.iter().find(|mark| mark.name == to.name) {
        return Err(SendConflict::NameTaken { to, there: there.clone() });
    }
    Ok(SendPlan::Incremental { from: bases[&shared.guid].clone(), to })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
