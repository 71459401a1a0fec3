//! A stream, cut into segments that are checked one by one and as a whole.

use super::wire::SEGMENT;
use adapters::storage::SendStream;
use bytes::Bytes;
use std::{fmt, io, pin::Pin};
use tokio::io::{AsyncRead, AsyncReadExt};
use xxhash_rust::xxh3::Xxh3;

/// How hard zstd tries: the fastest that is worth it.
const LEVEL: i32 = 1;

/// Checksums are made of so much at a time: what is in the processor's cache for one is there for the other.
const AT_A_TIME: usize = 64 << 10;

/// Takes the next segment of a stream into the checksum of all of it; the segment's own.
pub(super) fn checksum(segment: &[u8], whole: &mut Xxh3) -> u64 {
    let mut own = Xxh3::new();
    for bytes in segment.chunks(AT_A_TIME) {
        own.update(bytes);
        whole.update(bytes);
    }
    own.digest()
}

/// What a stream is read from. It ends only when it is complete: what goes wrong is an error of reading it.
pub struct Input(From);

enum From {
    /// A file system's command, in parts.
    Command(SendStream),
    Other(Pin<Box<dyn AsyncRead + Send>>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}

impl Input {
    /// What the file system sends.
    pub fn of(stream: SendStream) -> Input {
        Input(From::Command(stream))
    }

    /// Anything else.
    pub fn other(input: impl AsyncRead + Send + 'static) -> Input {
        Input(From::Other(Box::pin(input)))
    }

    /// The next so many bytes; fewer only at the end.
    pub(super) async fn part(&mut self, length: usize) -> io::Result<Vec<u8>> {
        match &mut self.0 {
            From::Command(stream) => stream.part(length).await,
            From::Other(input) => {
                let mut part = Vec::with_capacity(length);
                input.take(length as u64).read_to_end(&mut part).await?;
                Ok(part)
            }
        }
    }
}

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
        let bytes = Bytes::from(self.input.part(SEGMENT).await?);
        let checksum = checksum(&bytes, &mut self.whole);
        let whole = (bytes.len() < SEGMENT).then(|| self.whole.digest128());
        Ok(Segment { checksum, bytes, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

    #[tokio::test]
    async fn the_segments_make_up_the_stream() {
        for length in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 3 * SEGMENT + 7] {
            let all: Vec<u8> = (0..length).map(|at| (at / 7 % 251) as u8).collect();
            let mut cutter = Cutter::new(Input::other(io::Cursor::new(all.clone())));
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
