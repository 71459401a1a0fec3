//! Tables of what both sides have and what is sent, and properties of any two sides.

use super::*;
use proptest::prelude::*;

/// `1=a 2=b`: snapshots of these times with these GUIDs; without `=`, the GUID is the time.
fn marks(text: &str) -> Vec<Mark> {
    text.split_whitespace()
        .map(|word| {
            let (time, guid) = word.split_once('=').unwrap_or((word, word));
            let name = SnapshotName::periodic(time.parse().expect("a time"));
            Mark { name, guid: Guid::new(guid) }
        })
        .collect()
}

fn show(plan: &Result<SendPlan, SendConflict>) -> String {
    let guids =
        |marks: &[Mark]| marks.iter().map(|m| m.guid.as_str()).collect::<Vec<_>>().join(" ");
    match plan {
        Ok(SendPlan::UpToDate(to)) => format!("up to date at {}", to.guid),
        Ok(SendPlan::Full { to }) => format!("full {}", to.guid),
        Ok(SendPlan::Incremental { from: Base::Snapshot(from), to }) => {
            format!("{}..{}", from.guid, to.guid)
        }
        Ok(SendPlan::Incremental { from: Base::Bookmark(from), to }) => {
            format!("#{}..{}", from.guid, to.guid)
        }
        Ok(SendPlan::Resume { to, .. }) => format!("resume to {}", to.guid),
        Err(SendConflict::NothingToSend { .. }) => "nothing to send".to_owned(),
        Err(SendConflict::NothingInCommon { only_receiver, only_sender }) => {
            format!("nothing in common: {} | {}", guids(only_receiver), guids(only_sender))
        }
        Err(SendConflict::Diverged { common, only_receiver, only_sender }) => {
            format!(
                "diverged at {}: {} | {}",
                common.guid,
                guids(only_receiver),
                guids(only_sender)
            )
        }
        Err(SendConflict::ReceiverAhead { to, later }) => {
            format!("ahead of {}: {}", to.guid, guids(later))
        }
        Err(SendConflict::NameTaken { to, there }) => format!("{} is {}", to.guid, there.guid),
    }
}

struct Case {
    snapshots: &'static str,
    bookmarks: &'static str,
    receiver: &'static str,
    unfinished: Option<&'static str>,
    wanted: Option<&'static str>,
}

const NONE: Case =
    Case { snapshots: "", bookmarks: "", receiver: "", unfinished: None, wanted: None };

fn check(case: &Case, expected: &str) {
    let sender = Sendable { snapshots: marks(case.snapshots), bookmarks: marks(case.bookmarks) };
    let unfinished = case
        .unfinished
        .map(|to| Unfinished { token: ResumeToken::new("token"), to: Guid::new(to) });
    let receiver = Receivable { snapshots: marks(case.receiver), unfinished };
    let wanted = case.wanted.map(Guid::new);
    assert_eq!(show(&plan_send(&sender, &receiver, wanted.as_ref())), expected);
}

#[test]
fn what_is_sent() {
    check(&NONE, "nothing to send");
    check(&Case { receiver: "1", ..NONE }, "nothing to send");
    check(&Case { snapshots: "1 2 3", ..NONE }, "full 3");
    check(&Case { snapshots: "1 2 3", wanted: Some("2"), ..NONE }, "full 2");
    check(&Case { snapshots: "1 2 3", wanted: Some("9"), ..NONE }, "nothing to send");
    check(&Case { snapshots: "1 2 3", receiver: "1 2", ..NONE }, "2..3");
    check(&Case { snapshots: "1 2 3", receiver: "0 1", ..NONE }, "1..3");
    check(&Case { snapshots: "1 2 3", receiver: "1 2 3", ..NONE }, "up to date at 3");
    check(&Case { snapshots: "3", bookmarks: "1 2", receiver: "1 2", ..NONE }, "#2..3");
    check(&Case { snapshots: "2 3", bookmarks: "1 2", receiver: "1 2", ..NONE }, "2..3");
}

#[test]
fn what_broke_off_goes_on() {
    check(&Case { snapshots: "1 2", unfinished: Some("1"), ..NONE }, "resume to 1");
    check(
        &Case { snapshots: "1 2 3", receiver: "1", unfinished: Some("2"), ..NONE },
        "resume to 2",
    );
    // The sender does not have it any more: from the start.
    check(&Case { snapshots: "2", unfinished: Some("1"), ..NONE }, "full 2");
}

#[test]
fn what_is_in_the_way_is_told() {
    check(&Case { snapshots: "1 2 4", receiver: "1 2 3", ..NONE }, "diverged at 2: 3 | 4");
    check(
        &Case { snapshots: "1 3=b 4=c", receiver: "1 2=x 3=y", ..NONE },
        "diverged at 1: x y | b c",
    );
    check(&Case { snapshots: "3 4", receiver: "1 2", ..NONE }, "nothing in common: 1 2 | 3 4");
    check(
        &Case { snapshots: "1 2 3", receiver: "1 2 3", wanted: Some("2"), ..NONE },
        "ahead of 2: 3",
    );
    // Received out of order: 3 would come in under the name of another.
    check(&Case { snapshots: "1 3=b", receiver: "3=a 1", ..NONE }, "b is a");
    check(
        &Case { snapshots: "4", bookmarks: "2", receiver: "1 2 3", ..NONE },
        "diverged at 2: 3 | 4",
    );
}

fn line() -> impl Strategy<Value = Vec<Mark>> {
    prop::collection::btree_map(0_u64..12, 0_u64..3, 0..8).prop_map(|line| {
        let mark = |(time, branch): (u64, u64)| Mark {
            name: SnapshotName::periodic(time),
            guid: Guid::new(format!("{time}.{branch}")),
        };
        line.into_iter().map(mark).collect()
    })
}

proptest! {
    /// Whatever both have: a difference is taken only from the receiver's newest, to one that it
    /// does not have; all is sent only to one that has nothing; and a conflict names only what is
    /// there.
    #[test]
    fn nothing_is_ever_overwritten(
        snapshots in line(), bookmarks in line(), theirs in line(), wanted in 0_usize..10,
    ) {
        let sender = Sendable { snapshots, bookmarks };
        let receiver = Receivable { snapshots: theirs.clone(), unfinished: None };
        let wanted = sender.snapshots.get(wanted).map(|mark| mark.guid.clone());
        match plan_send(&sender, &receiver, wanted.as_ref()) {
            Ok(SendPlan::UpToDate(to)) => prop_assert_eq!(theirs.last(), Some(&to)),
            Ok(SendPlan::Full { to }) => {
                prop_assert!(theirs.is_empty());
                prop_assert!(sender.snapshots.contains(&to));
            }
            Ok(SendPlan::Incremental { from, to }) => {
                let newest = theirs.last().expect("something to go on from");
                let (Base::Snapshot(from) | Base::Bookmark(from)) = from;
                prop_assert_eq!(&from.guid, &newest.guid);
                prop_assert!(theirs.iter().all(|mark| mark.guid != to.guid && mark.name != to.name));
            }
            Ok(SendPlan::Resume { .. }) => prop_assert!(false, "nothing broke off"),
            Err(SendConflict::NothingToSend { .. }) => prop_assert!(sender.snapshots.is_empty()),
            Err(SendConflict::NothingInCommon { only_receiver, .. }) => {
                prop_assert_eq!(only_receiver, theirs);
            }
            Err(SendConflict::Diverged { common, only_receiver, only_sender }) => {
                prop_assert!(theirs.contains(&common));
                prop_assert!(!only_receiver.is_empty() && !only_sender.is_empty());
                prop_assert!(only_sender.iter().all(|mark| !theirs.contains(mark)));
            }
            Err(SendConflict::ReceiverAhead { to, later }) => {
                prop_assert!(theirs.contains(&to) && !later.is_empty());
            }
            Err(SendConflict::NameTaken { there, .. }) => prop_assert!(theirs.contains(&there)),
        }
    }
}
