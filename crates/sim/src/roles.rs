//! The roles of a peer and what leads from one to another, as exploration sees it: a graph for people,
//! generated, so that it says what the rules do and not what somebody once thought that they do.

use crate::{
    explore::{Beginning, Bounds, Node, Shard},
    world::{Fault, Move, Pace, Setup, Who, World},
};
use stateright::Model;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write,
};

/// How long each explored path goes on by itself at its end, everything being well again: what takes
/// long (copies, coming back) is in no short path.
const AFTERWARDS: u64 = 60_000;

/// What may happen from each beginning.
const BOUNDS: Bounds =
    Bounds { writes: 0, expiries: 1, crashes: 1, late: 0, requests: 1, ticks: 0, depth: 4 };

/// From where walks begin: what was inflicted before, and for how long it then went on.
type Before = (usize, &'static [(Fault, u64)]);

const BEGINNINGS: &[Before] = &[
    // Four that have just come.
    (4, &[]),
    // A chain of four that serves.
    (4, &[(Fault::Nothing, 15_000)]),
    // One that serves alone, and is about to leave that mode.
    (
        3,
        &[
            (Fault::Nothing, 5_000),
            (Fault::Configure(Who::Primary, false), 1_000),
            (Fault::Unfreeze, 0),
        ],
    ),
    // One whose sync is the last one left, and one of the others comes back.
    (
        3,
        &[
            (Fault::Nothing, 15_000),
            (Fault::KillHost(Who::Async), 10_000),
            (Fault::KillHost(Who::Primary), 10_000),
            (Fault::StartHost(Who::Peer(2)), 0),
        ],
    ),
];

/// Every move from one role to another that was seen.
pub fn explore_moves() -> BTreeSet<Move> {
    let mut moves = BTreeSet::new();
    for (index, beginning) in BEGINNINGS.iter().enumerate() {
        let world = begin(*beginning, index == 2, &mut moves);
        walk(world, &mut moves);
    }
    moves
}

fn begin((peers, before): Before, alone: bool, moves: &mut BTreeSet<Move>) -> World {
    let mut world = World::new(Setup {
        peers,
        seed: 0,
        pace: Pace::Instant,
        timeline: 1,
        manual: false,
        alone: u8::from(alone),
        own_expiry: false,
        stale_reads: false,
        mutation: None,
    });
    world.keep_moves();
    for peer in 0..peers {
        world.inflict(Fault::StartHost(Who::Peer(peer)));
        // One after the other, so that it is known who comes first.
        world.run_until(world.now() + 10);
    }
    for (fault, time) in before {
        world.inflict(*fault);
        world.run_until(world.now() + time);
    }
    moves.extend(world.take_moves());
    world
}

/// Goes every way from here within the bounds, and each of them on to its end.
fn walk(world: World, moves: &mut BTreeSet<Move>) {
    let shard = Shard { beginning: Beginning::default(), bounds: BOUNDS, mutation: None };
    let (mut seen, mut next) = (BTreeSet::new(), VecDeque::new());
    next.push_back(Node { world, left: BOUNDS });
    while let Some(node) = next.pop_front() {
        let mut choices = Vec::new();
        shard.actions(&node, &mut choices);
        for choice in choices {
            let Some(mut reached) = shard.next_state(&node, choice) else { continue };
            moves.extend(reached.world.take_moves());
            if seen.insert(reached.identity()) {
                next.push_back(reached);
            }
        }
        if node.left.depth > 0 {
            continue;
        }
        let mut world = node.world;
        world.inflict(Fault::HealAll);
        world.run_until(world.now() + AFTERWARDS);
        assert_eq!(world.violation(), None, "a rule is broken in a short walk");
        moves.extend(world.take_moves());
    }
}

/// The page with the graph, as it is checked in.
pub fn page(moves: &BTreeSet<Move>) -> String {
    let mut text = PROSE.to_owned();
    let mut edges: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for Move { from, to, rule } in moves {
        edges.entry((from, to)).or_default().push(rule);
    }
    text += "\n```mermaid\nflowchart LR\n";
    for ((from, to), rules) in edges {
        // Writing to a string does not fail.
        let _ = writeln!(text, "    {from} -->|{}| {to}", rules.join(", "));
    }
    text + "```\n"
}

const PROSE: &str = "\
# The roles of a peer

Which role a peer takes after which, and by which rule of [SPEC.md](../SPEC.md): the one by which the
state was written that gives it the new role, by whomever. A sitter that starts is `unknown` until it
has read the state of its shard (M1).

Generated from exploration by `manatee sim explore --graph`, as the rules do it in small shards with a
few faults; a test fails when it is stale. Do not edit.
";
