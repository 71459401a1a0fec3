//! From answered heartbeats to what they prove about the session's end.
//!
//! A server that answers a request has noted that the session lives, but the leader, which alone
//! ends sessions, hears of that only with the server's answer to the leader's next ping: every half
//! tick. If the server dies before, the leader ends the session by what it heard last. So a
//! heartbeat proves that the session lives for a whole timeout from when it was sent only once
//! another, sent at least half a tick after that answer came, was answered through the leader. A
//! timeout is at least two ticks: half a tick is at most a quarter of it.

use cluster::{Millis, Monotonic};
use std::collections::VecDeque;

/// The heartbeats of one session that were answered and are not settled yet.
#[derive(Debug)]
pub(super) struct Proofs {
    half_tick: Millis,
    /// When each was sent and answered.
    answered: VecDeque<(Monotonic, Monotonic)>,
}

impl Proofs {
    pub(super) fn new(timeout: Millis) -> Self {
        Proofs { half_tick: Millis(timeout.0.div_ceil(4)), answered: VecDeque::new() }
    }

    /// Takes an answered heartbeat. The moment that it settles: the session lives at the leader for
    /// a timeout from then on, at least.
    pub(super) fn answered(&mut self, sent: Monotonic, now: Monotonic) -> Option<Monotonic> {
        let mut settled = None;
        while let Some((earlier, answer)) = self.answered.front().copied()
            && answer + self.half_tick <= sent
        {
            self.answered.pop_front();
            settled = Some(earlier);
        }
        self.answered.push_back((sent, now));
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(beats: &[(u64, u64)], expected: &[Option<u64>]) {
        let mut proofs = Proofs::new(Millis(400));
        let settled: Vec<_> = beats
            .iter()
            .map(|&(sent, now)| proofs.answered(Monotonic(sent), Monotonic(now)))
            .map(|settled| settled.map(|moment| moment.0))
            .collect();
        assert_eq!(settled, expected, "{beats:?}");
    }

    #[test]
    fn a_heartbeat_is_settled_by_one_that_was_sent_half_a_tick_after_its_answer() {
        check(
            &[(0, 5), (40, 45), (80, 85), (120, 125), (160, 165)],
            &[None, None, None, Some(0), Some(40)],
        );
        check(&[(0, 5), (104, 110)], &[None, None]);
        check(&[(0, 5), (105, 110)], &[None, Some(0)]);
        // Of several the latest; a late answer waits longer.
        check(&[(0, 5), (10, 90), (120, 125), (400, 401)], &[None, None, Some(0), Some(120)]);
    }
}
