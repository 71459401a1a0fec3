//! What a writer was told: the numbers of the rows whose commit was acknowledged, to be held against
//! what a database has.

use super::Peer;
use anyhow::{Context, Result};
use std::fmt;

/// How many numbers of each kind are named in a message.
const NAMED: usize = 10;

/// The rows of a writer. Numbers are tried in order and never twice.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Acknowledged numbers as runs, first and last; in order, never touching.
    runs: Vec<(i64, i64)>,
    /// The last number that was tried.
    tried: i64,
    /// The last number whose try has ended, in whatever way.
    ended: i64,
}

/// A ledger held against a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerReport {
    /// Rows that were acknowledged.
    pub acknowledged: u64,
    /// Rows that are there.
    pub present: u64,
    /// Acknowledged rows that are not there: writes that were lost.
    pub missing: Vec<i64>,
    /// Rows that are there more than once.
    pub duplicate: Vec<i64>,
    /// Rows that are there and were tried, but not acknowledged: their outcome was unknown, and is
    /// allowed to be either.
    pub extra: Vec<i64>,
    /// Rows whose try had not ended when the ledger was taken: of a writer that went on.
    pub later: u64,
}

impl LedgerReport {
    /// Whether nothing that was acknowledged is lost and nothing is there twice.
    pub fn is_good(&self) -> bool {
        self.missing.is_empty() && self.duplicate.is_empty()
    }
}

impl fmt::Display for LedgerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} acknowledged rows ", self.acknowledged)?;
        match self.missing.len() {
            0 => write!(f, "none is lost")?,
            lost => write!(f, "{lost} ARE LOST ({})", some(&self.missing))?,
        }
        match self.duplicate.len() {
            0 => write!(f, ", none is there twice")?,
            twice => write!(f, ", {twice} ARE THERE TWICE ({})", some(&self.duplicate))?,
        }
        match self.extra.len() {
            0 => Ok(()),
            extra => write!(f, "; {extra} of unknown outcome there ({})", some(&self.extra)),
        }
    }
}

fn some(numbers: &[i64]) -> String {
    let named: Vec<_> = numbers.iter().take(NAMED).map(i64::to_string).collect();
    let more = if numbers.len() > NAMED { ", …" } else { "" };
    named.join(", ") + more
}

impl Ledger {
    /// Notes that this number is about to be tried.
    pub(super) fn try_next(&mut self) -> i64 {
        self.tried += 1;
        self.tried
    }

    /// Notes that the number tried last was acknowledged.
    pub(super) fn acknowledge(&mut self) {
        self.ended = self.tried;
        match self.runs.last_mut() {
            Some((_, last)) if *last + 1 == self.tried => *last = self.tried,
            _ => self.runs.push((self.tried, self.tried)),
        }
    }

    /// Notes that the number tried last was not acknowledged, and will not be.
    pub(super) fn give_up(&mut self) {
        self.ended = self.tried;
    }

    /// How many rows were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.runs.iter().map(|(first, last)| first.abs_diff(*last) + 1).sum()
    }

    /// The last number that was tried.
    pub fn tried(&self) -> i64 {
        self.tried
    }

    /// Holds the ledger against what the database of this peer has.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub fn check(&self, peer: &Peer) -> Result<LedgerReport> {
        let rows = peer.with_database(async |client| {
            // Of the table itself: an index would not show what is there twice.
            client
                .batch_execute(
                    "set enable_indexscan = off; set enable_indexonlyscan = off; \
                     set enable_bitmapscan = off",
                )
                .await?;
            Ok(client.query("select n from ledger order by n", &[]).await?)
        });
        let rows =
            rows.with_context(|| format!("cannot read the ledger's table of {}", peer.zone()))?;
        let numbers: Result<Vec<i64>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        Ok(self.compare(&numbers?))
    }

    /// Holds the ledger against these numbers, which are in order.
    pub fn compare(&self, present: &[i64]) -> LedgerReport {
        let mut report = LedgerReport {
            acknowledged: self.acknowledged(),
            present: present.len() as u64,
            ..LedgerReport::default()
        };
        let mut acknowledged = self.runs.iter().flat_map(|(first, last)| *first..=*last).peekable();
        let mut previous = None;
        for &number in present {
            if previous.replace(number) == Some(number) {
                report.duplicate.push(number);
                continue;
            }
            while let Some(missing) = acknowledged.next_if(|expected| *expected < number) {
                report.missing.push(missing);
            }
            if acknowledged.next_if_eq(&number).is_none() {
                if number > self.ended {
                    report.later += 1;
                } else {
                    report.extra.push(number);
                }
            }
        }
        report.missing.extend(acknowledged);
        report.duplicate.dedup();
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger of six rows, the third of which was not acknowledged; the sixth is in flight.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for n in 1..=5 {
            assert_eq!(ledger.try_next(), n);
            if n == 3 {
                ledger.give_up();
            } else {
                ledger.acknowledge();
            }
        }
        ledger.try_next();
        ledger
    }

    fn check(present: &[i64], missing: &[i64], duplicate: &[i64], extra: &[i64], later: u64) {
        let expected = LedgerReport {
            acknowledged: 4,
            present: present.len() as u64,
            missing: missing.to_vec(),
            duplicate: duplicate.to_vec(),
            extra: extra.to_vec(),
            later,
        };
        assert_eq!(ledger().compare(present), expected, "{present:?}");
        assert_eq!(expected.is_good(), missing.is_empty() && duplicate.is_empty());
    }

    #[test]
    fn every_difference_is_told() {
        check(&[1, 2, 4, 5], &[], &[], &[], 0);
        check(&[1, 2, 3, 4, 5], &[], &[], &[3], 0);
        check(&[1, 2, 4, 5, 6, 7], &[], &[], &[], 2);
        check(&[1, 2, 4], &[5], &[], &[], 0);
        check(&[2, 5], &[1, 4], &[], &[], 0);
        check(&[], &[1, 2, 4, 5], &[], &[], 0);
        check(&[1, 2, 2, 2, 3, 3, 4, 5], &[], &[2, 3], &[3], 0);
        check(&[0, 1, 2, 4, 5], &[], &[], &[0], 0);
    }

    #[test]
    fn a_loss_is_not_to_be_overlooked() {
        let text = ledger().compare(&[1, 1, 3, 4, 5]).to_string();
        assert_eq!(
            text,
            "of 4 acknowledged rows 1 ARE LOST (2), 1 ARE THERE TWICE (1); 1 of unknown outcome \
             there (3)"
        );
        let text = ledger().compare(&[1, 2, 4, 5]).to_string();
        assert_eq!(text, "of 4 acknowledged rows none is lost, none is there twice");
    }
}
