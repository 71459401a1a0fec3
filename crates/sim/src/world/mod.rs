//! A whole shard in one process: real [`cluster::Machine`]s over a modelled coordination service,
//! a modelled PostgreSQL that loses data the way PostgreSQL does, links, clocks and hosts.
//!
//! Contract: deterministic. What is to come lies in a queue; whoever drives the world (a seeded
//! random choice, a script, an explorer) says what is taken next and which faults happen. The
//! world itself judges nothing but hands what it sees to the [`Checkers`].

mod choices;
mod commands;
mod disguise;
mod faults;
mod happening;
mod moves;
mod pace;
mod peer;
mod postgres;
mod probe;
mod report;
mod service;
mod session;
mod sitter;
mod streams;
mod timelines;

pub use choices::Ready;
pub use faults::{Fault, PutFault, Who};
pub use moves::Move;
pub use pace::Pace;
pub use peer::{Part, Peer, Server};
pub use service::{Service, Shown};
pub use timelines::{Point, Timelines};

use crate::{
    Mutation,
    checkers::{Checkers, Violation},
};
use cluster::{Generation, Millis, PeerId, PeerIdent};
use happening::{Happening, Put};
use pace::{Delay, Delays};
use peer::Clock;
use std::collections::BTreeMap;

/// After how long without a heartbeat the service ends a session.
pub const SESSION_TIMEOUT: u64 = 6_000;
/// How long one proof lets a primary serve.
pub const LEASE: Millis = Millis(SESSION_TIMEOUT);
/// How long a call to the coordination may take.
const CALL_LIMIT: u64 = 2_000;
/// How many events at one moment are too many: somebody does the same again and again.
const AT_ONCE: u32 = 10_000;
/// By how much a clock may run fast or slow, in millionths.
pub const DRIFT: i64 = 10_000;

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many peers.
    pub peers: usize,
    /// From where delays and drifts are drawn.
    pub seed: u64,
    /// How long things take.
    pub pace: Pace,
    /// The timeline that a new database begins with: a shard that was made of one which had been promoted
    /// before has one that is ahead of its generation.
    pub timeline: u32,
    /// Whether deposed peers wait for an operator.
    pub manual: bool,
    /// Bits of the peers that are configured for one-node-write mode to begin with.
    pub alone: u8,
    /// Whether a sitter notices by its own clock that its session must have expired.
    pub own_expiry: bool,
    /// Whether a reader may be shown what was true a while ago, as far as the contract allows.
    pub stale_reads: bool,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
}

/// The shard and everything around it.
#[derive(Debug, Clone)]
pub struct World {
    setup: Setup,
    now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    scheduled: u64,
    delays: Delays,
    /// The coordination service.
    pub service: Service,
    /// The hosts.
    pub peers: Vec<Peer>,
    /// All WAL.
    pub timelines: Timelines,
    /// `links[from]` has the bit of `to` when nothing gets from one to the other.
    links: Vec<u8>,
    /// Bits of the peers whose requests do not reach the service, and of those that its answers do
    /// not reach.
    deaf: u8,
    mute: u8,
    connections: u32,
    /// Who watches.
    pub checkers: Checkers,
    handled: u64,
    /// How many events there were without time passing.
    at_once: u32,
    /// What happened, in words, when somebody wants to read it.
    diary: Option<Vec<String>>,
    /// Which peer went from which role to which, when somebody wants to know.
    moves: Option<moves::Moves>,
}

impl World {
    /// Hosts that are all down, and a service with nothing in it.
    pub fn new(setup: Setup) -> Self {
        assert!((2..=7).contains(&setup.peers), "two to seven peers");
        let mut delays = Delays::new(setup.pace, setup.seed);
        let peers = (0..setup.peers).map(|index| {
            let letter = char::from(b'a' + u8::try_from(index).expect("few peers"));
            let ident =
                PeerIdent::new(&format!("10.0.0.{}", index + 1), 5432, 12345, &letter.to_string());
            let drift = delays.drift();
            let alone = setup.alone & (1 << index) != 0;
            Peer::new(ident, Clock { base: 1_000 * (index as u64 + 1), drift }, alone)
        });
        let peers: Vec<_> = peers.collect();
        World {
            now: 0,
            queue: BTreeMap::new(),
            scheduled: 0,
            service: Service::new(SESSION_TIMEOUT),
            links: vec![0; peers.len()],
            peers,
            timelines: Timelines::default(),
            deaf: 0,
            mute: 0,
            connections: 0,
            checkers: Checkers::default(),
            handled: 0,
            at_once: 0,
            diary: None,
            moves: None,
            delays,
            setup,
        }
    }

    /// Writes down what happens from now on.
    pub fn keep_diary(&mut self) {
        self.diary.get_or_insert_with(Vec::new);
    }

    /// What was written down since it was asked last.
    pub fn take_diary(&mut self) -> Vec<String> {
        self.diary.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The time, by the service's clock.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// How many events there have been.
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// What was found to be wrong, first.
    pub fn violation(&self) -> Option<&Violation> {
        self.checkers.violation()
    }

    /// What this world is made of.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Takes everything that is to come up to this time, unless something is wrong before.
    pub fn run_until(&mut self, time: u64) {
        while let Some((&(at, _), _)) = self.queue.first_key_value()
            && at <= time
            && self.checkers.violation().is_none()
        {
            let ((at, _), happening) = self.queue.pop_first().expect("just seen");
            if at > self.now {
                (self.now, self.at_once) = (at, 0);
            }
            self.at_once += 1;
            if self.at_once > AT_ONCE {
                let problem = format!("time stands still: {happening:?}");
                self.checkers.stuck(self.now, problem);
            }
            self.take(happening);
        }
        self.now = self.now.max(time);
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
    }

    fn schedule(&mut self, delay: Delay, happening: Happening) -> (u64, u64) {
        let after = self.delays.draw(delay);
        self.schedule_in(after, happening)
    }

    fn schedule_in(&mut self, after: u64, happening: Happening) -> (u64, u64) {
        let key = (self.now + after, self.scheduled);
        self.scheduled += 1;
        self.queue.insert(key, happening);
        key
    }

    fn note(&mut self, text: impl FnOnce(&World) -> String) {
        if self.diary.is_some() {
            let line = text(self);
            let time = self.now;
            if let Some(diary) = &mut self.diary {
                diary.push(format!("{:>4}.{:03}  {line}", time / 1000, time % 1000));
            }
        }
    }

    /// The letter of a peer.
    pub fn name(&self, peer: usize) -> &str {
        &self.peers[peer].ident.zone_id
    }

    /// Which peer has this name in the shard.
    pub fn index_of(&self, id: &PeerId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.ident.id == *id)
    }

    /// The generation that is stored.
    pub fn generation(&self) -> Generation {
        self.service.cluster().map_or(Generation(0), |state| state.generation)
    }

    /// Whether a message gets from one peer to another.
    fn reaches(&self, from: usize, to: usize) -> bool {
        self.links[from] & (1 << to) == 0
    }

    fn connects(&self, one: usize, other: usize) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    fn take(&mut self, happening: Happening) {
        if let Some((peer, part)) = happening.needs()
            && self.peers[peer].is_stopped(part)
        {
            self.peers[peer].held.push(happening);
            return;
        }
        self.handled += 1;
        match happening {
            Happening::Wake { peer, life } => self.wake(peer, life),
            Happening::Inspected { peer, life } => self.inspected(peer, life),
            Happening::Probe { peer, life } => self.probe(peer, life),
            Happening::JoinArrives { peer, life, call, sent } => {
                self.join_arrives(peer, life, call, sent);
            }
            Happening::Joined { peer, life, call, session, shown, sent } => {
                self.joined(peer, life, call, session, shown, sent);
            }
            Happening::JoinLimit { peer, life, call } => self.join_limit(peer, life, call),
            Happening::Beat { peer, session } => self.beat(peer, session),
            Happening::BeatArrives { peer, session, sent } => {
                self.beat_arrives(peer, session, sent);
            }
            Happening::BeatAnswered { peer, session, alive, shown, sent } => {
                self.beat_answered(peer, session, alive, shown, sent);
            }
            Happening::Notice { peer, session, shown } => self.notice(peer, session, shown),
            Happening::SessionDue { session } => self.session_due(session),
            Happening::Left { peer, life } => self.left(peer, life),
            Happening::PutArrives { peer, life, call, put } => {
                self.put_arrives(peer, life, call, *put);
            }
            Happening::PutAnswered { peer, life, call, outcome } => {
                self.put_answered(peer, life, call, outcome);
            }
            Happening::PutLimit { peer, life, call } => self.put_limit(peer, life, call),
            Happening::ReadArrives { peer, life, call } => self.read_arrives(peer, life, call),
            Happening::ReadAnswered { peer, life, call, shown } => {
                self.read_answered(peer, life, call, shown);
            }
            Happening::ReadLimit { peer, life, call } => self.read_limit(peer, life, call),
            Happening::Command { peer, life, operation } => self.go_on(peer, life, operation),
            Happening::CommandLimit { peer, life, operation } => {
                self.command_limit(peer, life, operation);
            }
            Happening::Fenced { peer, life } => self.fenced(peer, life),
            Happening::Exited { peer, life } => self.exited(peer, life),
            Happening::Connect { peer, boot } => self.connect(peer, boot),
            Happening::Data { peer, connection, upto } => self.data(peer, connection, upto),
            Happening::Flush { peer, boot } => self.flush(peer, boot),
            Happening::Reply { peer, from, connection, flushed } => {
                self.reply(peer, from, connection, flushed);
            }
            Happening::Reload { peer, connection } => self.sender_reloads(peer, connection),
        }
    }
}
