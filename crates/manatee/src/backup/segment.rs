//! A stream, cut into segments that are checked one by one and as a whole.

use super::wire::SEGMENT;
use bytes::{Bytes, BytesMut};
use std::{io, pin::Pin};
use tokio::io::{AsyncRead, AsyncReadExt};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// How hard zstd tries: the fastest that is worth it.
const LEVEL: i32 = 1;

/// What a stream is read from.
pub(crate) type Input = Pin<Box<dyn AsyncRead + Send>>;

/// A part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub bytes: Bytes,
    /// XXH3 of these bytes.
    pub checksum: u64,
    /// On the last segment, that of the whole stream.
    pub whole: Option<u128>,
}

impl Segment {
    /// Its bytes, smaller; none when that would hardly make them so.
    pub fn compressed(&self) -> io::Result<Option<Bytes>> {
        let smaller = zstd::bulk::compress(&self.bytes, LEVEL)?;
        let helps = smaller.len() < self.bytes.len() / 10 * 9;
        Ok(helps.then(|| smaller.into()))
    }
}

/// Undoes [`Segment::compressed`].
pub(super) fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(bytes, SEGMENT)
}

/// Cuts what it reads.
pub(crate) struct Cutter {
    input: Input,
    whole: Xxh3,
}

impl Cutter {
    pub fn new(input: Input) -> Cutter {
        Cutter { input, whole: Xxh3::new() }
    }

    /// The next segment. It is the last one when it is shorter than the others, if need be empty.
    ///
    /// # Errors
    /// Those of the input.
    pub async fn next(&mut self) -> io::Result<Segment> {
        let mut bytes = BytesMut::with_capacity(SEGMENT);
        while bytes.len() < SEGMENT {
            let room = SEGMENT - bytes.len();
            if (&mut self.input).take(room as u64).read_buf(&mut bytes).await? == 0 {
                break;
            }
        }
        let bytes = bytes.freeze();
        self.whole.update(&bytes);
        let whole = (bytes.len() < SEGMENT).then(|| self.whole.digest128());
        Ok(Segment { checksum: xxh3_64(&bytes), bytes, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_128;

    #[tokio::test]
    async fn the_segments_make_up_the_stream() {
        for length in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 3 * SEGMENT + 7] {
            let all: Vec<u8> = (0..length).map(|at| (at / 7 % 251) as u8).collect();
            let mut cutter = Cutter::new(Box::pin(io::Cursor::new(all.clone())));
            let mut got = Vec::new();
            let whole = loop {
                let segment = cutter.next().await.expect("from memory");
                assert_eq!(segment.checksum, xxh3_64(&segment.bytes));
                got.extend_from_slice(&segment.bytes);
                if let Some(whole) = segment.whole {
                    break whole;
                }
            };
            assert_eq!(got, all, "{length}");
            assert_eq!(whole, xxh3_128(&all), "{length}");
        }
    }

    #[test]
    fn only_what_gets_smaller_is_compressed() {
        let segment = |bytes: Vec<u8>| Segment { checksum: 0, bytes: bytes.into(), whole: None };
        let text = b"all work and no play ".repeat(1000);
        let smaller = segment(text.clone()).compressed().expect("to compress").expect("smaller");
        assert!(smaller.len() < text.len() / 2);
        assert_eq!(decompressed(&smaller).expect("to decompress"), text);
        let noise: Vec<u8> = (0..1000).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).collect();
        assert_eq!(segment(noise).compressed().expect("to compress"), None);
        assert_eq!(segment(Vec::new()).compressed().expect("to compress"), None);
    }
}
