//! The longest gap between two acknowledgements, since any moment, in little memory.

use cluster::{Millis, Monotonic};

/// Two acknowledged writes in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The number of the row before it; 0 when there was none.
    pub before: i64,
    /// When that was acknowledged.
    pub from: Monotonic,
    /// The number of the row after it; 0 when there is none yet.
    pub after: i64,
    /// When that was acknowledged, or now.
    pub to: Monotonic,
}

impl Gap {
    /// How long no write was acknowledged.
    pub fn length(&self) -> Millis {
        self.to - self.from
    }
}

/// The gaps that can still be the longest since some moment: each is longer than all after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Gaps {
    candidates: Vec<Gap>,
}

impl Gaps {
    pub(super) fn push(&mut self, gap: Gap) {
        while self.candidates.last().is_some_and(|last| last.length() <= gap.length()) {
            self.candidates.pop();
        }
        self.candidates.push(gap);
    }

    /// The longest that ended after `mark`.
    pub(super) fn longest_since(&self, mark: Monotonic) -> Option<Gap> {
        self.candidates.iter().find(|gap| gap.to > mark).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(acknowledged_at: &[u64], mark: u64, expected: Option<u64>) {
        let mut gaps = Gaps::default();
        for (n, pair) in (1..).zip(acknowledged_at.windows(2)) {
            let (from, to) = (Monotonic(pair[0]), Monotonic(pair[1]));
            gaps.push(Gap { before: n, from, after: n + 1, to });
        }
        let longest = gaps.longest_since(Monotonic(mark)).map(|gap| gap.length().0);
        assert_eq!(longest, expected, "{acknowledged_at:?} since {mark}");
    }

    #[test]
    fn longest_since_any_moment() {
        let times = [0, 10, 510, 520, 820, 821];
        check(&times, 0, Some(500));
        check(&times, 509, Some(500));
        check(&times, 510, Some(300));
        check(&times, 819, Some(300));
        check(&times, 820, Some(1));
        check(&times, 821, None);
        check(&[5], 0, None);
    }
}
