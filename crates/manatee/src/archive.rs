//! A backup in one file: a database as a tar archive, compressed, with a manifest that says what it is
//! and by which all of it is checked.
//!
//! ```text
//! zstd frame            the tar archive
//! zstd skippable frame  the manifest (JSON), its length, its checksum, MAGIC
//! ```
//!
//! So `zstd -dc FILE | tar -x` unpacks it without this program. The manifest comes last because only then
//! is it known; a file without one is no backup. The archive holds the files of a data directory, whatever
//! file system they were on, so that it can be restored on any.

use cluster::Lsn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The last bytes of every backup.
const MAGIC: &[u8; 8] = b"MANATEE1";
/// What a skippable frame of zstd begins with.
const SKIPPABLE: u32 = 0x184D_2A50;
/// Length and checksum of the manifest, and the magic.
const TRAILER: u64 = 24;
/// Beyond this, what stands there is no manifest.
const LONGEST: u64 = 1 << 20;
/// How hard zstd tries: its own default.
const LEVEL: i32 = 3;
/// What is read at once.
const CHUNK: usize = 1 << 18;

/// How the files of a backup were got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Taken {
    /// By a base backup of the running server: the database as it was in the end.
    #[default]
    BaseBackup,
    /// From a snapshot of the file system: the database as it was in the beginning, as after a crash.
    Snapshot,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The version of this format: 1.
    pub format: u32,
    /// The program that made it.
    pub made_by: String,
    /// The shard.
    pub shard: String,
    /// The peer that it was made on.
    pub peer: String,
    /// Its zone.
    pub zone: String,
    /// Which database it is, on all its peers; as text, because not every program keeps such numbers.
    pub system_identifier: String,
    /// How it was taken; those that do not say so are base backups.
    #[serde(default)]
    pub taken: Taken,
    /// The timeline that the backup begins on.
    pub timeline: u32,
    /// Where recovery begins.
    pub lsn: Lsn,
    /// The major version of PostgreSQL.
    pub postgres_version: String,
    /// When it was begun.
    pub begun: Timestamp,
    /// When it was complete.
    pub finished: Timestamp,
    /// Bytes of the tar archive.
    pub bytes: u64,
    /// Bytes of it in the file.
    pub compressed_bytes: u64,
    /// XXH3 (128 bits) of the tar archive, in hexadecimal.
    pub checksum: String,
}

impl Manifest {
    /// When the database was as it is in the backup.
    pub fn as_of(&self) -> Timestamp {
        match self.taken {
            Taken::BaseBackup => self.finished,
            Taken::Snapshot => self.begun,
        }
    }
}

/// Why a file is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It does not end like one.
    #[error("it is no backup of manatee, or not all of one: {0}")]
    NoBackup(&'static str),
    /// Another version made it.
    #[error("it has format {0}, this program reads format 1")]
    Format(u32),
    /// It is not what it was.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// How much a backup holds, and its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of the tar archive.
    pub bytes: u64,
    /// Bytes of it in the file.
    pub compressed_bytes: u64,
    /// As in [`Manifest`].
    pub checksum: String,
}

/// A backup that is being written.
pub struct Writer<W: Write> {
    encoder: zstd::stream::write::Encoder<'static, Counted<W>>,
    bytes: u64,
    hash: Xxh3,
}

struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> Writer<W> {
    /// Begins one.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new(inner: W) -> io::Result<Self> {
        let encoder = zstd::stream::write::Encoder::new(Counted { inner, bytes: 0 }, LEVEL)?;
        Ok(Writer { encoder, bytes: 0, hash: Xxh3::new() })
    }

    /// Takes more of the tar archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.encoder.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Bytes of the archive, and of the file, so far.
    pub fn progress(&self) -> (u64, u64) {
        (self.bytes, self.encoder.get_ref().bytes)
    }

    /// Ends it with the manifest that `describe` makes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self, describe: impl FnOnce(Contents) -> Manifest) -> io::Result<(W, Manifest)> {
        let Counted { mut inner, bytes: compressed_bytes } = self.encoder.finish()?;
        let checksum = format!("{:032x}", self.hash.digest128());
        let manifest = describe(Contents { bytes: self.bytes, compressed_bytes, checksum });
        let json = serde_json::to_vec(&manifest)?;
        let length = u32::try_from(json.len() as u64 + TRAILER).map_err(io::Error::other)?;
        inner.write_all(&SKIPPABLE.to_le_bytes())?;
        inner.write_all(&length.to_le_bytes())?;
        inner.write_all(&json)?;
        inner.write_all(&(json.len() as u64).to_le_bytes())?;
        inner.write_all(&xxh3_64(&json).to_le_bytes())?;
        inner.write_all(MAGIC)?;
        inner.flush()?;
        Ok((inner, manifest))
    }
}

/// Reads what a file says of itself, and that it is as long as it says.
///
/// # Errors
/// When it is no backup, or not all of one.
pub fn manifest(file: &mut File) -> Result<Manifest, Broken> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.checked_sub(TRAILER).ok_or(Broken::NoBackup("it is too short"))?;
    file.seek(SeekFrom::Start(start))?;
    let mut trailer = [0; TRAILER as usize];
    file.read_exact(&mut trailer)?;
    let number = |at: usize| {
        u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes of a trailer"))
    };
    if trailer[16..] != *MAGIC {
        return Err(Broken::NoBackup("it does not end with a manifest"));
    }
    let (size, checksum) = (number(0), number(8));
    let start = start.checked_sub(size).filter(|_| size <= LONGEST);
    let start = start.ok_or(Broken::Damaged("the length of its manifest"))?;
    file.seek(SeekFrom::Start(start))?;
    let mut json = Vec::new();
    file.take(size).read_to_end(&mut json)?;
    if xxh3_64(&json) != checksum {
        return Err(Broken::Damaged("the checksum of its manifest"));
    }
    let value: serde_json::Value =
        serde_json::from_slice(&json).map_err(|_| Broken::Damaged("its manifest is no JSON"))?;
    match value["format"].as_u64().map(u32::try_from) {
        Some(Ok(1)) => {}
        Some(Ok(other)) => return Err(Broken::Format(other)),
        _ => return Err(Broken::Damaged("its manifest names no format")),
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|_| Broken::Damaged("its manifest is not whole"))?;
    // Eight bytes begin the frame that the manifest is in.
    if manifest.compressed_bytes.checked_add(8) != Some(start) {
        return Err(Broken::Damaged("its length"));
    }
    Ok(manifest)
}

/// Reads all of a backup, hands the tar archive to `sink`, and checks it. What `sink` was given is to be
/// used only if this succeeds.
///
/// # Errors
/// When it is not what it was, or `sink` fails.
pub fn unpack<E: From<Broken>>(
    file: &mut File,
    manifest: &Manifest,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let broken = |error: io::Error| E::from(Broken::Read(error));
    file.seek(SeekFrom::Start(0)).map_err(broken)?;
    let compressed = file.take(manifest.compressed_bytes);
    let mut decoder = zstd::stream::read::Decoder::new(compressed).map_err(broken)?;
    let (mut bytes, mut hash) = (0, Xxh3::new());
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match decoder.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(_) => return Err(Broken::Damaged("it does not unpack").into()),
        };
        hash.update(&chunk[..read]);
        bytes += read as u64;
        sink(&chunk[..read])?;
    }
    if bytes != manifest.bytes {
        return Err(Broken::Damaged("the length of what it holds").into());
    }
    if format!("{:032x}", hash.digest128()) != manifest.checksum {
        return Err(Broken::Damaged("the checksum of what it holds").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(payload: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).expect("zstd");
        for part in payload.chunks(1000) {
            writer.write(part).expect("memory");
        }
        let described = writer.finish(|contents| Manifest {
            format: 1,
            made_by: "manatee test".to_owned(),
            shard: "1.example".to_owned(),
            peer: "10.0.0.1:5432:12345".to_owned(),
            zone: "a".to_owned(),
            system_identifier: "7445212345678901234".to_owned(),
            taken: Taken::BaseBackup,
            timeline: 2,
            lsn: Lsn::new(0x300_0028),
            postgres_version: "15".to_owned(),
            begun: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            bytes: contents.bytes,
            compressed_bytes: contents.compressed_bytes,
            checksum: contents.checksum,
        });
        described.expect("memory").0
    }

    fn read(bytes: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let manifest = manifest(&mut file)?;
        let mut all = Vec::new();
        unpack(&mut file, &manifest, |part| {
            all.extend_from_slice(part);
            Ok::<_, Broken>(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_was_written_is_read() {
        let payload: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(read(&backup(&payload)).expect("whole"), payload);
        assert_eq!(read(&backup(b"")).expect("empty"), b"");
    }

    #[test]
    fn a_byte_that_is_missing_or_another_is_noticed() {
        let payload = b"a database, or what stands for one here";
        let whole = backup(payload);
        for length in 0..whole.len() {
            read(&whole[..length]).expect_err("cut short");
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 1;
            // A bit that means nothing to zstd may be another.
            if let Ok(all) = read(&other) {
                assert_eq!(all, payload, "byte {at} is another");
            }
        }
    }
}
