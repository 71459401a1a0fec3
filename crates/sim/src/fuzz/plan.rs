//! What one run does: a world and the faults that befall it, drawn from a seed.

use crate::{
    Mutation,
    world::{Fault, Pace, Part, PutFault, Setup, Who},
};
use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};
use std::ops::RangeInclusive;

/// A fault, and how long after the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// In milliseconds.
    pub after: u64,
    /// What happens.
    pub fault: Fault,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The world.
    pub setup: Setup,
    /// What befalls it.
    pub steps: Vec<Step>,
}

/// How many of a thousand steps are of which kind.
const WEIGHTS: &[(u64, Kind)] = &[
    (420, Kind::Write),
    (70, Kind::Nothing),
    (45, Kind::CutCoordination),
    (45, Kind::HealCoordination),
    (45, Kind::CutLink),
    (40, Kind::HealLinks),
    (20, Kind::KillSitter),
    (50, Kind::StartSitter),
    (20, Kind::KillPostgres),
    (30, Kind::KillHost),
    (70, Kind::StartHost),
    (25, Kind::Stop),
    (45, Kind::Resume),
    (15, Kind::ExpireSession),
    (40, Kind::NextPut),
    (15, Kind::FailNextCommand),
    (6, Kind::Freeze),
    (12, Kind::Unfreeze),
    (22, Kind::Promote),
    (10, Kind::CancelWaits),
    (12, Kind::HealAll),
    (1, Kind::LoseDisk),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Write,
    Nothing,
    CutCoordination,
    HealCoordination,
    CutLink,
    HealLinks,
    KillSitter,
    StartSitter,
    KillPostgres,
    KillHost,
    StartHost,
    Stop,
    Resume,
    ExpireSession,
    NextPut,
    FailNextCommand,
    Freeze,
    Unfreeze,
    Promote,
    CancelWaits,
    HealAll,
    LoseDisk,
    Recycle,
    Rebuild,
    Configure,
    LeaveAlone,
}

/// How many of a thousand steps are replaced by these, drawn beside the others: a kind that is added
/// here changes nothing of what else a seed holds.
const RARE: &[(u64, Kind)] = &[(6, Kind::Recycle), (3, Kind::Configure), (8, Kind::Rebuild)];
/// The same in a shard with a peer that is configured to serve alone.
const RARE_ALONE: &[(u64, Kind)] =
    &[(6, Kind::Recycle), (15, Kind::LeaveAlone), (15, Kind::Unfreeze), (8, Kind::Configure)];

struct Dice {
    random: Xoshiro256PlusPlus,
    peers: usize,
    disk_lost: bool,
    /// What stops is the disk of a server, and not its processes.
    disk_hangs: bool,
}

impl Plan {
    /// The run of this seed.
    pub fn draw(
        seed: u64,
        steps: usize,
        peers: RangeInclusive<usize>,
        mutation: Option<Mutation>,
    ) -> Plan {
        let mut dice = Dice::new(!seed);
        dice.peers = peers.start() + dice.below(peers.end() - peers.start() + 1);
        let mut rare = Dice { peers: dice.peers, ..Dice::new(seed ^ 0xa10e) };
        let alone = match rare.below(24) {
            0..4 => 1 << rare.below(dice.peers),
            4 => u8::MAX,
            _ => 0,
        };
        // Beside the dice, so that it changes nothing of what else a seed holds.
        let rare_timeline = seed % 4 == 3;
        (dice.disk_hangs, rare.disk_hangs) = (seed % 8 == 6, seed % 8 == 6);
        let setup = Setup {
            peers: dice.peers,
            seed,
            pace: Pace::Random,
            timeline: if rare_timeline { 7 } else { 1 },
            manual: dice.below(8) == 0,
            alone,
            own_expiry: dice.below(2) == 0,
            stale_reads: dice.below(2) == 0,
            mutation,
        };
        let arrivals = (0..dice.peers).map(|peer| Fault::StartHost(Who::Peer(peer)));
        let mut plan: Vec<Step> = arrivals.map(|fault| Step { after: 300, fault }).collect();
        plan.push(Step { after: 15_000, fault: Fault::Nothing });
        let kinds = if alone == 0 { RARE } else { RARE_ALONE };
        plan.extend((0..steps).map(|_| {
            let (after, common) = (dice.gap(), dice.fault());
            Step { after, fault: rare.rare_fault(kinds).unwrap_or(common) }
        }));
        Plan { setup, steps: plan }
    }
}

impl Dice {
    fn new(seed: u64) -> Self {
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        Dice { random, peers: 0, disk_lost: false, disk_hangs: false }
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("small");
        usize::try_from(self.random.next_u64() % bound).expect("below a usize")
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.random.next_u64() % (high - low)
    }

    fn gap(&mut self) -> u64 {
        match self.below(100) {
            0..60 => self.between(0, 300),
            60..90 => self.between(300, 2_000),
            90..98 => self.between(2_000, 8_000),
            _ => self.between(8_000, 30_000),
        }
    }

    fn who(&mut self) -> Who {
        match self.below(100) {
            0..35 => Who::Primary,
            35..60 => Who::Sync,
            60..75 => Who::Async,
            _ => self.peer(),
        }
    }

    fn peer(&mut self) -> Who {
        Who::Peer(self.below(self.peers))
    }

    fn fault(&mut self) -> Fault {
        let total = WEIGHTS.iter().map(|(weight, _)| weight).sum();
        self.draw_of(WEIGHTS, total).expect("drawn below the total")
    }

    fn rare_fault(&mut self, kinds: &[(u64, Kind)]) -> Option<Fault> {
        self.draw_of(kinds, 1_000)
    }

    fn draw_of(&mut self, kinds: &[(u64, Kind)], total: u64) -> Option<Fault> {
        let mut drawn = self.between(0, total);
        for (weight, kind) in kinds {
            if drawn < *weight {
                return Some(self.fault_of(*kind));
            }
            drawn -= weight;
        }
        None
    }

    fn fault_of(&mut self, kind: Kind) -> Fault {
        match kind {
            Kind::Nothing => Fault::Nothing,
            Kind::Write => Fault::Write {
                // Mostly where writes are taken; sometimes on a peer that was primary once.
                who: if self.below(4) == 0 { self.peer() } else { Who::Primary },
                honest: self.below(12) != 0,
            },
            Kind::CutCoordination => {
                let (requests, answers) =
                    [(true, true), (true, true), (true, false), (false, true)][self.below(4)];
                Fault::CutCoordination { who: self.who(), requests, answers }
            }
            Kind::HealCoordination => Fault::HealCoordination(self.peer()),
            Kind::CutLink => {
                Fault::CutLink { from: self.who(), to: self.peer(), both: self.below(2) == 0 }
            }
            Kind::HealLinks => Fault::HealLinks,
            Kind::KillSitter => Fault::KillSitter(self.who()),
            Kind::StartSitter => Fault::StartSitter(self.peer()),
            Kind::KillPostgres => Fault::KillPostgres(self.who()),
            Kind::KillHost => Fault::KillHost(self.who()),
            Kind::StartHost => Fault::StartHost(self.peer()),
            Kind::Stop => {
                let postgres = if self.disk_hangs { Part::Disk } else { Part::Postgres };
                let part = [Part::Sitter, postgres][self.below(2)];
                Fault::Stop(self.who(), part)
            }
            Kind::Resume => Fault::Resume(self.peer()),
            Kind::ExpireSession => Fault::ExpireSession(self.who()),
            Kind::NextPut => {
                use PutFault::{AnswerLost, Late, Lost, Refused};
                let fault = [Lost, AnswerLost, Late, Refused][self.below(4)];
                Fault::NextPut(self.who(), fault)
            }
            Kind::FailNextCommand => Fault::FailNextCommand(self.who()),
            Kind::Freeze => Fault::Freeze,
            Kind::Unfreeze => Fault::Unfreeze,
            Kind::Promote => {
                if self.below(2) == 0 {
                    Fault::PromoteSync
                } else {
                    Fault::PromoteAsync(self.below(2))
                }
            }
            Kind::CancelWaits => Fault::CancelWaits(self.who()),
            Kind::HealAll => Fault::HealAll,
            Kind::Recycle => Fault::Recycle(self.who()),
            Kind::Rebuild => Fault::Rebuild(self.peer()),
            Kind::Configure => Fault::Configure(self.peer(), self.below(2) == 0),
            Kind::LeaveAlone => Fault::Configure(Who::Primary, false),
            Kind::LoseDisk if self.disk_lost => Fault::Nothing,
            Kind::LoseDisk => {
                self.disk_lost = true;
                Fault::LoseDisk(self.who())
            }
        }
    }
}
