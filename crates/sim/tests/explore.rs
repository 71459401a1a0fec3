//! Every order of what may happen to a small shard: with the rules as they are nothing is lost, and
//! without quiescing the lost write is found.

use sim::{
    Mutation,
    explore::{Beginning, Bounds, explore},
};

#[test]
fn nothing_is_lost_in_any_order() {
    let explored = explore(Beginning::Serving, Bounds::SMALL, None, Some(1));
    assert_eq!(explored.violation, None);
    // Another number: something can happen that could not, or the other way round. Look which.
    assert_eq!((explored.states, explored.depth), (79_064, 13));
}

/// What rule D2 is for.
#[test]
fn without_quiescing_the_lost_write_is_found() {
    let explored = explore(Beginning::Serving, Bounds::SMALL, Some(Mutation::NoQuiesce), Some(1));
    let story = explored.violation.expect("a lost write").join("\n");
    let mut rest = story.as_str();
    for part in [
        "a client commits 101 on a",
        "the service ends the session of a",
        "b is sync: taking over from a: declaring generation 2",
        "stored: generation 2: primary b, sync c, deposed a; from 100 on timeline 1",
        "the client on a is told that 101 is safe",
        "VIOLATED  commits: peer 0 acknowledges 101 in generation 1, and generation 2 was declared",
    ] {
        let (_, after) =
            rest.split_once(part).unwrap_or_else(|| panic!("no {part:?} in:\n{story}"));
        rest = after;
    }
}

/// Rule O2: with a declaration that may come late, and a session that may end at any moment.
const LEAVING: Bounds = Bounds { late: 1, depth: 10, ..Bounds::SMALL };

#[test]
fn leaving_one_node_write_mode_loses_nothing_in_any_order() {
    let explored = explore(Beginning::LeavingAlone, LEAVING, None, Some(1));
    assert_eq!(explored.violation, None);
    assert_eq!((explored.states, explored.depth), (64_271, 11));
}

#[test]
fn who_goes_on_acknowledging_alone_is_found() {
    let stays = Some(Mutation::StayAlone);
    let explored = explore(Beginning::LeavingAlone, LEAVING, stays, Some(1));
    let story = explored.violation.expect("a violation").join("\n");
    assert!(story.contains("VIOLATED  alone: "), "{story}");
}

/// Rule D1: the sync takes in who came, beside a primary that does the same.
#[test]
fn a_sync_that_takes_a_newcomer_loses_nothing_in_any_order() {
    let explored = explore(Beginning::Newcomer, Bounds::SMALL, None, Some(1));
    assert_eq!(explored.violation, None);
    assert_eq!((explored.states, explored.depth), (50_085, 13));
}

#[test]
fn a_sync_that_takes_a_newcomer_without_quiescing_is_found() {
    let explored = explore(Beginning::Newcomer, Bounds::SMALL, Some(Mutation::NoQuiesce), Some(1));
    let story = explored.violation.expect("a lost write").join("\n");
    let declared = "stored: generation 2: primary b, sync c, deposed a";
    let unknown = "stored: generation 1: primary a, sync b, async c";
    assert!(story.contains(declared) && !story.contains(unknown), "{story}");
}
