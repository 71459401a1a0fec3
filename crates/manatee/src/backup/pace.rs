//! Whether segments travel compressed: whichever way they come sooner, as measured. Compressing helps
//! where the network is slow, and costs where processors are, and which it is may change on the way.

use cluster::Millis;

/// How many segments are timed each way...
const SAMPLE: u64 = 8;
/// ...and how many then travel the better way, before both are timed again.
const RUN: u64 = 128;

/// How long segments took of late.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How many have come since both ways began to be timed.
    count: u64,
    plain: u64,
    compressed: u64,
}

impl Pace {
    /// Whether the next segment is to be compressed. `waited_for` says that whoever takes the segments has
    /// been waiting for this one: otherwise nothing is gained by its coming sooner.
    pub fn compresses(&self, waited_for: bool) -> bool {
        match self.count {
            ..SAMPLE => false,
            SAMPLE..RUN_BEGINS => true,
            // A tenth is not worth the work.
            _ => waited_for && self.compressed * 10 < self.plain * 9,
        }
    }

    /// A segment came, after this time.
    pub fn came(&mut self, took: Millis) {
        match self.count {
            ..SAMPLE => self.plain += took.0,
            SAMPLE..RUN_BEGINS => self.compressed += took.0,
            _ => {}
        }
        self.count += 1;
        if self.count == RUN_BEGINS + RUN {
            *self = Pace::default();
        }
    }
}

const RUN_BEGINS: u64 = 2 * SAMPLE;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many segments are compressed, with the time that each way takes.
    fn compressed(segments: u64, plain: u64, compressed: u64, waited_for: bool) -> u64 {
        let mut pace = Pace::default();
        let mut count = 0;
        for _ in 0..segments {
            let way = pace.compresses(waited_for);
            count += u64::from(way);
            pace.came(Millis(if way { compressed } else { plain }));
        }
        count
    }

    #[test]
    fn the_way_that_is_faster_is_taken() {
        let all = 2 * SAMPLE + RUN;
        assert_eq!(compressed(all, 20, 8, true), SAMPLE + RUN, "a slow network");
        assert_eq!(compressed(all, 5, 9, true), SAMPLE, "a slow processor");
        assert_eq!(compressed(all, 100, 95, true), SAMPLE, "hardly any difference");
        assert_eq!(compressed(all, 20, 8, false), SAMPLE, "a slow disk");
        assert_eq!(compressed(3 * all, 20, 8, true), 3 * (SAMPLE + RUN), "and again");
    }

    #[test]
    fn it_is_found_out_that_things_have_changed() {
        let mut pace = Pace::default();
        for _ in 0..2 * SAMPLE + RUN {
            let took = if pace.compresses(true) { 8 } else { 20 };
            pace.came(Millis(took));
        }
        for _ in 0..2 * SAMPLE {
            let took = if pace.compresses(true) { 8 } else { 2 };
            pace.came(Millis(took));
        }
        assert!(!pace.compresses(true));
    }
}
