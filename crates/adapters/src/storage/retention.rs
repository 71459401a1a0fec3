//! Which snapshots are no longer kept. Pure.

use super::{Guid, Purpose, Snapshot, SnapshotName};
use std::collections::BTreeSet;

/// The periodic snapshots to destroy, oldest first, so that the newest `keep` of them stay.
///
/// Never one that is held or cloned from, or whose GUID is in `needed` (what a seeding is about to
/// send, or the last that a peer has in common with us): such a one stays beyond the number. Those
/// with another purpose, and other people's, are not counted and not touched. Without snapshots to
/// count, or with `keep` above their number, nothing is destroyed.
pub fn superfluous(
    snapshots: &[Snapshot],
    keep: usize,
    needed: &BTreeSet<Guid>,
) -> Vec<SnapshotName> {
    let mut periodic: Vec<&Snapshot> =
        snapshots.iter().filter(|snapshot| snapshot.name.purpose() == Purpose::Periodic).collect();
    periodic.sort_by(|a, b| a.name.cmp(&b.name));
    periodic.truncate(periodic.len().saturating_sub(keep));
    periodic
        .into_iter()
        .filter(|old| old.holds == 0 && old.clones.is_empty() && !needed.contains(&old.guid))
        .map(|old| old.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::DatasetName;
    use proptest::prelude::*;

    fn snapshot(name: &str) -> Snapshot {
        Snapshot {
            name: SnapshotName::new(name).expect(name),
            guid: Guid::new(format!("guid-{name}")),
            created: jiff::Timestamp::UNIX_EPOCH,
            size: None,
            holds: 0,
            clones: Vec::new(),
        }
    }

    fn check(snapshots: &[Snapshot], keep: usize, needed: &[&str], expected: &[&str]) {
        let needed = needed.iter().map(|name| Guid::new(format!("guid-{name}"))).collect();
        let found = superfluous(snapshots, keep, &needed);
        let found: Vec<_> = found.iter().map(SnapshotName::as_str).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_oldest_periodic_ones_go() {
        let names = ["1000000000001", "1000000000002", "1000000000003", "1000000000004"];
        let mut all: Vec<_> = names.map(snapshot).into();
        all.push(snapshot("0000000000001-diverged"));
        all.push(snapshot("mine"));
        check(&all, 2, &[], &names[..2]);
        check(&all, 0, &[], &names);
        check(&all, 4, &[], &[]);
        check(&all, 50, &[], &[]);
        check(&[], 0, &[], &[]);
        all.reverse();
        check(&all, 2, &[], &names[..2]);
    }

    #[test]
    fn what_somebody_needs_stays() {
        let names = ["1000000000001", "1000000000002", "1000000000003", "1000000000004"];
        let mut all: Vec<_> = names.map(snapshot).into();
        all[0].holds = 1;
        all[1].clones.push(DatasetName::new("restored").expect("a name"));
        check(&all, 0, &[names[2]], &[names[3]]);
        check(&all, 1, &[], &[names[2]]);
    }

    proptest! {
        #[test]
        fn the_newest_and_the_needed_always_stay(
            times in prop::collection::btree_set(0_u64..40, 0..20),
            holds in prop::collection::vec(0_u64..2, 20),
            needed in prop::collection::btree_set(0_u64..40, 0..5),
            keep in 0_usize..25,
        ) {
            let all: Vec<_> = times.iter().zip(holds).map(|(time, holds)| {
                let mut made = snapshot(SnapshotName::periodic(*time).as_str());
                made.holds = holds;
                made
            }).collect();
            let needed: BTreeSet<_> = needed
                .iter()
                .map(|time| Guid::new(format!("guid-{}", SnapshotName::periodic(*time))))
                .collect();
            let gone = superfluous(&all, keep, &needed);
            let left: Vec<_> = all.iter().filter(|one| !gone.contains(&one.name)).cloned().collect();
            for one in &all {
                let protected = one.holds > 0 || needed.contains(&one.guid);
                prop_assert!(!(protected && gone.contains(&one.name)));
            }
            for newest in all.iter().rev().take(keep) {
                prop_assert!(left.contains(newest));
            }
            prop_assert!(gone.is_sorted());
            // What is left beyond the number is protected, and doing it again does nothing.
            prop_assert!(superfluous(&left, keep, &needed).is_empty());
        }
    }
}
