//! A stream on its way from one host to another, through the runner: in segments with a checksum each, and
//! one of all of it at the end. What has no end of its own is no stream.
//!
//! ```text
//! length (4 bytes), XXH3 (8 bytes), the bytes; … the last segment is shorter than the others, then XXH3 of
//! all of it (16 bytes)
//! ```

use crate::backup::{Cutter, Input, SEGMENT};
use adapters::clock;
use anyhow::{Context, Result, bail, ensure};
use cluster::Monotonic;
use std::{fs::File, os::fd::AsFd, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// An input or output of this process.
pub(super) fn own(stream: impl AsFd) -> Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(File::from(stream.as_fd().try_clone_to_owned()?)))
}

/// Sends all of the input, at no more than this rate in bytes a second.
pub(super) async fn send(
    input: Input,
    output: &mut (impl AsyncWrite + Unpin),
    rate: Option<u64>,
) -> Result<()> {
    let mut cutter = Cutter::new(input);
    let (begun, mut sent) = (clock::now(), 0);
    loop {
        let segment = cutter.next().await?;
        let length = u32::try_from(segment.bytes.len()).context("a segment")?;
        output.write_u32_le(length).await?;
        output.write_u64_le(segment.checksum).await?;
        output.write_all(&segment.bytes).await?;
        if let Some(whole) = segment.whole {
            output.write_u128_le(whole).await?;
            return Ok(output.flush().await?);
        }
        sent += u64::from(length);
        if let Some(rate) = rate.filter(|rate| *rate > 0) {
            let due = Monotonic(begun.0 + sent * 1000 / rate);
            tokio::time::sleep(Duration::from_millis((due - clock::now()).0)).await;
        }
    }
}

/// Takes all of it, checked.
///
/// # Errors
/// When it broke off, or is not what was sent. What the output was given is then to be thrown away.
pub(super) async fn take(
    input: &mut (impl AsyncRead + Unpin),
    output: &mut (impl AsyncWrite + Unpin),
) -> Result<()> {
    let (mut whole, mut bytes) = (Xxh3::new(), vec![0; SEGMENT]);
    loop {
        let broke_off = "the stream broke off";
        let length = input.read_u32_le().await.context(broke_off)? as usize;
        ensure!(length <= SEGMENT, "the stream is damaged: a segment of {length} bytes");
        let checksum = input.read_u64_le().await.context(broke_off)?;
        let bytes = &mut bytes[..length];
        input.read_exact(bytes).await.context(broke_off)?;
        ensure!(
            xxh3_64(bytes) == checksum,
            "the stream is damaged: a segment is not what was sent"
        );
        whole.update(bytes);
        output.write_all(bytes).await?;
        if length < SEGMENT {
            let sent = input.read_u128_le().await.context(broke_off)?;
            if whole.digest128() != sent {
                bail!("the stream is damaged: all of it is not what was sent");
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    async fn sent(bytes: &[u8]) -> Vec<u8> {
        let mut stream = Vec::new();
        send(Input::other(Cursor::new(bytes.to_vec())), &mut stream, None).await.expect("memory");
        stream
    }

    #[tokio::test]
    async fn what_is_sent_is_taken() {
        for length in [0, 1, SEGMENT - 1, SEGMENT, 2 * SEGMENT + 7] {
            let all: Vec<u8> = (0..length).map(|at| (at / 7 % 251) as u8).collect();
            let mut taken = Vec::new();
            take(&mut Cursor::new(sent(&all).await), &mut taken).await.expect("whole");
            assert_eq!(taken, all, "{length}");
        }
    }

    #[tokio::test]
    async fn what_is_not_whole_is_refused() {
        let stream = sent(b"a stream, or what stands for one here").await;
        for length in 0..stream.len() {
            let error = take(&mut Cursor::new(&stream[..length]), &mut Vec::new()).await;
            assert!(error.expect_err("cut short").to_string().contains("broke off"), "{length}");
        }
        for at in 0..stream.len() {
            let mut other = stream.clone();
            other[at] ^= 1;
            take(&mut Cursor::new(other), &mut Vec::new()).await.expect_err("damaged");
        }
    }

    #[tokio::test]
    async fn a_rate_is_kept_to() {
        let all = vec![7; 3 * SEGMENT];
        let begun = clock::now();
        let rate = Some(20 * SEGMENT as u64);
        send(Input::other(Cursor::new(all)), &mut Vec::new(), rate).await.expect("memory");
        assert!((clock::now() - begun).0 >= 140, "three of twenty segments a second");
    }
}
