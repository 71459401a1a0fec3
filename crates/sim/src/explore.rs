//! The explorer: every order of what may happen to a small shard, with few faults. Time stands still
//! but for the ticks that it is given, so that leases and delays play no part: what is shown is that
//! safety does not rest on them.

use crate::{
    Mutation,
    world::{Fault, Pace, Ready, Setup, Who, World},
};
use stateright::{Checker, Model, Property};
use std::{
    hash::{Hash, Hasher},
    num::NonZero,
    thread,
};

/// How much may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bounds {
    /// How many commits of clients.
    pub writes: u8,
    /// How many sessions the service ends.
    pub expiries: u8,
    /// How many hosts lose power.
    pub crashes: u8,
    /// How many writes to the service arrive late, after their writer was told that nothing is known.
    pub late: u8,
    /// How many promote requests an operator makes.
    pub requests: u8,
    /// How often a second passes.
    pub ticks: u8,
    /// After how many choices a path ends.
    pub depth: usize,
}

impl Bounds {
    /// What is explored in every run of the tests.
    pub const SMALL: Bounds =
        Bounds { writes: 1, expiries: 1, crashes: 0, late: 0, requests: 0, ticks: 0, depth: 12 };
    /// What is explored when there is time.
    pub const LARGE: Bounds =
        Bounds { writes: 1, expiries: 1, crashes: 1, late: 1, requests: 0, ticks: 1, depth: 14 };
}

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Something that is due.
    Take(Ready),
    /// Something from outside.
    Inflict(Fault),
    /// A peer comes to know that its session has ended.
    Learn(usize),
    /// A second passes.
    Tick,
}

/// A shard and what may still happen to it.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) world: World,
    pub(crate) left: Bounds,
}

impl Node {
    /// Without the depth: whoever comes first comes by the fewest choices, and has the most left.
    pub(crate) fn identity(&self) -> (Bounds, u64) {
        (Bounds { depth: 0, ..self.left }, self.world.fingerprint())
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// What a shard is doing when its exploration begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Beginning {
    /// It serves, with a sync.
    #[default]
    Serving,
    /// Its primary serves alone, and has just been told not to any more.
    LeavingAlone,
    /// It serves with a sync and nobody else, and a third peer has just come, of which nobody knows yet.
    Newcomer,
}

/// A shard of three.
#[derive(Debug, Clone)]
pub struct Shard {
    pub(crate) beginning: Beginning,
    pub(crate) bounds: Bounds,
    pub(crate) mutation: Option<Mutation>,
}

impl Shard {
    fn begin(&self) -> World {
        let mut world = World::new(Setup {
            peers: 3,
            seed: 0,
            pace: Pace::Instant,
            timeline: 1,
            manual: true,
            alone: u8::from(self.beginning == Beginning::LeavingAlone),
            own_expiry: false,
            stale_reads: false,
            mutation: self.mutation,
        });
        let newcomer = self.beginning == Beginning::Newcomer;
        for peer in 0..(if newcomer { 2 } else { 3 }) {
            world.inflict(Fault::StartHost(Who::Peer(peer)));
            world.run_until(world.now() + 100);
        }
        world.run_until(world.now() + 10_000);
        if newcomer {
            world.inflict(Fault::StartHost(Who::Peer(2)));
            while !world.service.is_active(2) {
                world.run_until(world.now() + 1);
            }
        }
        if self.beginning == Beginning::LeavingAlone {
            world.inflict(Fault::Configure(Who::Primary, false));
            world.run_until(world.now() + 10_000);
            world.inflict(Fault::Unfreeze);
        }
        world
    }
}

impl Model for Shard {
    type State = Node;
    type Action = Choice;

    fn init_states(&self) -> Vec<Node> {
        vec![Node { world: self.begin(), left: self.bounds }]
    }

    fn actions(&self, node: &Node, choices: &mut Vec<Choice>) {
        let Node { world, left } = node;
        if world.violation().is_some() || left.depth == 0 {
            return;
        }
        choices.extend(world.ready().into_iter().map(Choice::Take));
        let mut inflict = |fault| choices.push(Choice::Inflict(fault));
        for (index, host) in world.peers.iter().enumerate() {
            let peer = Who::Peer(index);
            if left.writes > 0 && host.primary().is_some_and(|server| server.clients) {
                inflict(Fault::Write { who: peer, honest: true });
            }
            if left.expiries > 0 && world.service.is_active(index) {
                inflict(Fault::ExpireSession(peer));
            }
            if left.crashes > 0 && host.up {
                inflict(Fault::KillHost(peer));
            }
            if left.late > 0 && host.up {
                inflict(Fault::NextPut(peer, crate::world::PutFault::Late));
            }
        }
        let peers = 0..world.peers.len();
        choices.extend(peers.filter(|peer| world.may_learn_of_expiry(*peer)).map(Choice::Learn));
        if left.requests > 0 {
            choices.push(Choice::Inflict(Fault::PromoteSync));
            choices.push(Choice::Inflict(Fault::PromoteAsync(0)));
            choices.push(Choice::Inflict(Fault::PromoteAsync(1)));
        }
        if left.ticks > 0 {
            choices.push(Choice::Tick);
        }
    }

    fn next_state(&self, node: &Node, choice: Choice) -> Option<Node> {
        let mut next = node.clone();
        next.left.depth -= 1;
        follow(&mut next.world, &choice);
        match choice {
            Choice::Take(_) | Choice::Learn(_) => {}
            Choice::Inflict(Fault::Write { .. }) => next.left.writes -= 1,
            Choice::Inflict(Fault::ExpireSession(_)) => next.left.expiries -= 1,
            Choice::Inflict(Fault::KillHost(_)) => next.left.crashes -= 1,
            Choice::Inflict(Fault::NextPut(..)) => next.left.late -= 1,
            Choice::Inflict(_) => next.left.requests -= 1,
            Choice::Tick => next.left.ticks -= 1,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("nothing is lost", |_, node: &Node| node.world.violation().is_none())]
    }
}

fn follow(world: &mut World, choice: &Choice) {
    match choice {
        Choice::Take(ready) => world.choose(ready),
        Choice::Inflict(fault) => {
            world.inflict(*fault);
            world.run_eager();
        }
        Choice::Learn(peer) => {
            world.learn_of_expiry(*peer);
            world.run_eager();
        }
        Choice::Tick => {
            world.run_until(world.now() + 1_000);
            world.run_eager();
        }
    }
}

/// What was explored.
#[derive(Debug)]
pub struct Explored {
    /// How many states that can be told apart.
    pub states: usize,
    /// How many choices lead to the deepest of them.
    pub depth: usize,
    /// A way to something that must not be seen, in words; as short as there is one.
    pub violation: Option<Vec<String>>,
}

/// Explores, the shallow states first.
pub fn explore(
    beginning: Beginning,
    bounds: Bounds,
    mutation: Option<Mutation>,
    jobs: Option<usize>,
) -> Explored {
    let shard = Shard { beginning, bounds, mutation };
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get));
    let checker = shard.clone().checker().threads(jobs).spawn_bfs().join();
    let path = checker.discovery("nothing is lost");
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        violation: path.map(|path| {
            let mut world = shard.begin();
            world.keep_diary();
            for choice in path.into_actions() {
                follow(&mut world, &choice);
            }
            let mut story = world.take_diary();
            story.extend(world.violation().map(|violation| format!("VIOLATED  {violation}")));
            story
        }),
    }
}
