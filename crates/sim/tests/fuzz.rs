//! The fuzzer finds nothing in the rules as they are, and finds each rule that is broken on purpose.
//! What runs here is small; `manatee sim fuzz` runs as much as one likes.

use sim::{
    Mutation,
    fuzz::{Options, draw, fuzz, hunt, run, tell},
};

fn options(seed: u64, seeds: u64, mutation: Option<Mutation>) -> Options {
    Options { seed, seeds, steps: 500, peers: 3..=5, jobs: 2, mutation }
}

#[test]
fn nothing_breaks_the_rules() {
    let report = fuzz(&options(0, 2000, None), &|_| {});
    let failure = report.failure.as_ref().map(|failure| failure.story.join("\n"));
    assert_eq!(failure, None);
    assert_eq!(report.seeds, 2000);
    // A world in which nobody gets anything done would be safe as well.
    assert!(report.acknowledged > 40 * report.seeds, "too few commits: {report:?}");
    let blocked: u64 = report.blocked.values().sum();
    assert!(blocked * 8 < report.seeds, "too often nothing goes on: {report:?}");
}

/// What is modelled also happens: in one seed out of a few, each of these is told.
#[test]
fn what_is_rare_is_not_too_rare() {
    const RARE: [&str; 6] = [
        "the WAL that comes next is no longer kept there",
        "cannot follow",
        "one-node-write mode: serving alone",
        "leaving one-node-write mode with",
        "it did not answer in time, or was stopped",
        "fenced: PostgreSQL was stopped",
    ];
    let mut told = [0; RARE.len()];
    for seed in 0..60 {
        let story = tell(&draw(&options(0, 0, None), seed)).join("\n");
        for (count, rare) in told.iter_mut().zip(RARE) {
            *count += u32::from(story.contains(rare));
        }
    }
    assert!(
        told.iter().all(|count| *count >= 4),
        "{:?}",
        RARE.iter().zip(told).collect::<Vec<_>>()
    );
}

/// Seeds in which earlier versions of the rules lost a write in the world as it was then, one for each
/// interleaving; the interleavings themselves are told by scripts.
#[test]
fn what_once_broke_the_rules_does_not_any_more() {
    for seed in [
        12, 27, 480, 693, 1542, 2034, 6374, 7373, 27_625, 99_807, 101_000, 113_513, 226_626,
        764_775,
    ] {
        let plan = draw(&options(0, 0, None), seed);
        assert_eq!(run(&plan).violation, None, "seed {seed}");
    }
}

#[test]
fn a_seed_runs_the_same_again() {
    let plan = draw(&options(0, 0, None), 7);
    let story = tell(&plan);
    assert!(story.len() > 200, "{story:?}");
    assert_eq!(story, tell(&plan));
}

/// Each mutation, a seed near which it is seen, and what sees it.
const SEEN: &[(Mutation, u64, &[&str])] = &[
    // What is not detached also goes on answering the one that it supersedes.
    (Mutation::NoQuiesce, 0, &["commits", "one primary"]),
    (Mutation::IgnoreInitWal, 0, &["writes", "commits"]),
    (Mutation::EmptyNames, 0, &["commits"]),
    (Mutation::IgnoreFreeze, 0, &["writes"]),
    (Mutation::AssumeStored, 0, &["commits", "writes", "deposed", "histories"]),
    (Mutation::FenceWaits, 0, &["one primary"]),
    (Mutation::RejoinUnrepaired, 0, &["deposed"]),
    (Mutation::CopyAnybody, 44_300, &["commits"]),
    (Mutation::NeverSettle, 150, &["commits", "writes"]),
    (Mutation::ReportUnflushed, 1080, &["commits", "histories"]),
    (Mutation::StayAlone, 0, &["alone"]),
    (Mutation::TimelinesCollide, 520, &["histories", "commits"]),
    (Mutation::TimelinesByGeneration, 700_960, &["histories", "commits"]),
];

#[test]
fn every_rule_that_is_broken_on_purpose_is_seen() {
    assert_eq!(SEEN.len(), Mutation::ALL.len());
    for (mutation, seed, checkers) in SEEN {
        let (report, failed) = hunt(&options(*seed, 150, Some(*mutation)), &|_| {});
        let seen = failed.map(|(_, violation)| violation.checker).unwrap_or("nothing");
        assert!(checkers.contains(&seen), "{mutation}: {seen} in {} seeds", report.seeds);
    }
}

#[test]
fn a_failure_is_made_small() {
    let report = fuzz(&options(20, 20, Some(Mutation::EmptyNames)), &|_| {});
    let failure = report.failure.expect("a commit that is lost");
    assert!(failure.steps.0 <= 8 && failure.steps.1 > 500, "{:?}", failure.steps);
    assert!(failure.violation.starts_with("commits: "), "{}", failure.violation);
    assert!(failure.story.last().is_some_and(|line| line.starts_with("VIOLATED")));
}
