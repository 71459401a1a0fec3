//! Time as the rules see it: handed in, never read.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// A moment of the boot clock of this host, in milliseconds: it never goes back and goes on while
/// the machine is suspended. Comparable only on one host and within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Monotonic(pub u64);

/// A length of time in milliseconds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Add<Millis> for Monotonic {
    type Output = Monotonic;
    fn add(self, length: Millis) -> Monotonic {
        Monotonic(self.0.saturating_add(length.0))
    }
}

/// How long after `earlier` this is; zero when it is not after it.
impl Sub for Monotonic {
    type Output = Millis;
    fn sub(self, earlier: Monotonic) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}
