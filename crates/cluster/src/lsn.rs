//! A position in the write-ahead log, as PostgreSQL prints it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// A log sequence number: a byte position in the WAL. Printed `X/X` in upper-case hexadecimal, the
/// high and the low 32 bits (PostgreSQL's `pg_lsn`); leading zeros and lower case are accepted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

/// A text that is no LSN.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{text:?} is no WAL position: expected two hexadecimal numbers, as in 0/17B7188")]
pub struct LsnError {
    text: String,
}

impl Lsn {
    /// `0/0`: no WAL at all; PostgreSQL calls it `InvalidXLogRecPtr`.
    pub const ZERO: Lsn = Lsn(0);

    /// The position of this byte.
    pub const fn new(byte: u64) -> Self {
        Lsn(byte)
    }

    /// The byte position.
    pub const fn byte(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Self, LsnError> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| LsnError { text: text.to_owned() })
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_postgresql_and_the_original_print() {
        for (text, byte) in [
            ("0/0", 0),
            ("0/00000000", 0),
            ("0/0000000", 0),
            ("0/17B7188", 0x17B_7188),
            ("0/0000000a", 10),
            ("16/B374D848", 0x16_B374_D848),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Lsn(byte)), "{text}");
        }
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
    }

    #[test]
    fn refuses_everything_else() {
        for text in
            ["", "/", "0", "0/", "/0", "0/0/0", "g/0", "0/123456789", "+1/0", " 0/0", "-1/0"]
        {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
