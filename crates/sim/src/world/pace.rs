//! How long things take.

use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};

/// Who says how long things take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Drawn from the seed: mostly short, now and then long.
    Random,
    /// The same each time, for scripts.
    Steady,
    /// No time at all: the order is the driver's choice alone.
    Instant,
}

/// What takes time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Delay {
    /// A message between peers, or between a peer and the service.
    Message,
    /// The news of a change at the service.
    Watch,
    /// The service's noticing that a session has run out.
    Expiry,
    /// Something local and quick.
    Local,
    /// A flush to disk.
    Flush,
    /// A WAL sender's reading of new files.
    Reload,
    Start,
    Promote,
    Stop,
    Copy,
    Reconnect,
    /// How long after its limit a delayed put arrives.
    Late,
}

impl Delay {
    /// Usual bounds, how many in a thousand are long, and the bound of those; in milliseconds.
    fn range(self) -> (u64, u64, u64, u64) {
        match self {
            Delay::Message => (1, 20, 20, 900),
            Delay::Watch => (1, 100, 60, 4_000),
            Delay::Expiry => (0, 50, 100, 3_000),
            Delay::Local => (1, 20, 10, 300),
            Delay::Flush => (1, 10, 30, 800),
            Delay::Reload => (1, 50, 80, 2_000),
            Delay::Start => (100, 1_500, 50, 8_000),
            Delay::Promote => (50, 500, 50, 4_000),
            Delay::Stop => (50, 500, 50, 3_000),
            Delay::Copy => (500, 3_000, 50, 15_000),
            Delay::Reconnect => (100, 1_000, 50, 5_000),
            Delay::Late => (1, 6_000, 0, 1),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Delays {
    pace: Pace,
    random: Xoshiro256PlusPlus,
    /// For replay alone.
    replay: Xoshiro256PlusPlus,
}

impl Delays {
    pub(crate) fn new(pace: Pace, seed: u64) -> Self {
        let stream = Xoshiro256PlusPlus::seed_from_u64;
        Delays { pace, random: stream(seed), replay: stream(seed ^ 0x5e91a7) }
    }

    pub(crate) fn draw(&mut self, what: Delay) -> u64 {
        let (low, high, long, longest) = what.range();
        match self.pace {
            // Trying again at once would never end.
            Pace::Instant => {
                if matches!(what, Delay::Reconnect) {
                    100
                } else {
                    0
                }
            }
            Pace::Steady => (low + high) / 2,
            Pace::Random => {
                let bits = self.random.next_u64();
                let high = if (bits >> 48) % 1_000 < long { longest } else { high };
                low + (bits & 0xffff_ffff) * (high - low + 1) / (1 << 32)
            }
        }
    }

    /// How far the replay of a standby is behind what it has received: mostly nearly nothing, now and
    /// then as long as a long query of a reader holds it up.
    pub(crate) fn lag(&mut self) -> u64 {
        if self.pace != Pace::Random {
            return 0;
        }
        let bits = self.replay.next_u64();
        let bound = if (bits >> 48) % 1_000 < 20 { 9_000 } else { 50 };
        (bits & 0xffff_ffff) % bound
    }

    /// Something below `bound`, zero unless drawn at random.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if self.pace == Pace::Random { self.random.next_u64() % bound } else { 0 }
    }

    /// How much a clock drifts, in millionths.
    pub(crate) fn drift(&mut self) -> i64 {
        let range = super::DRIFT.unsigned_abs();
        if self.pace != Pace::Random {
            return 0;
        }
        i64::try_from(self.random.next_u64() % (2 * range + 1)).expect("small") - super::DRIFT
    }
}
