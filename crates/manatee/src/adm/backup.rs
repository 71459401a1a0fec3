//! `adm backup`: the database of this peer in one file.
//!
//! Where the storage has snapshots, the files of one: the file system makes it at once, and PostgreSQL
//! notices nothing. Elsewhere PostgreSQL's own base backup of the server that runs here. Both are a data
//! directory in a tar archive.

mod snapshot;

pub(super) use snapshot::BACKUP;
pub(crate) use snapshot::{Came, clear};

use super::command::Json;
use crate::VERSION;
use crate::archive::{Manifest, Taken, Writer};
use crate::sitter::{config::Config, executor};
use adapters::{clock, exec::Exec, postgres::Postgres};
use anyhow::{Context, Result, bail};
use cluster::{Lsn, Millis, PeerIdent};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

/// Between two lines of progress.
const PERIOD: Millis = Millis(5_000);

/// Hears how far a backup is.
pub(crate) struct Watch<'a> {
    /// How often.
    pub period: Millis,
    /// Bytes that were read, bytes that were written, and how long it took.
    pub tell: &'a dyn Fn(u64, u64, Millis),
}
/// What is read at once.
const CHUNK: usize = 1 << 18;
/// How much of the beginning is looked through for `backup_label`, which comes first.
const HEAD: usize = 64 << 10;

/// Writes a backup of the peer whose sitter has this file; what is to be printed.
///
/// # Errors
/// When there is no database, its server does not run where it has to, or the file cannot be written. No
/// file is left then.
pub async fn backup(file: &Path, to: &Path, json: Json) -> Result<String> {
    let config = Config::load(file)?;
    let target = target(to, &config, &config.ident()?, Timestamp::now())?;
    let tell = |bytes, written, took| eprintln!("{}", progress(bytes, written, took));
    let manifest = make(&config, &target, None, &Watch { period: PERIOD, tell: &tell }).await?;
    if json.json {
        return Ok(format!("{}\n", serde_json::json!({ "file": target, "manifest": manifest })));
    }
    let of = if manifest.taken == Taken::Snapshot { "a snapshot" } else { "a base backup" };
    Ok(format!(
        "{}: {of}, {} MiB in {} MiB, timeline {} from {}\n",
        target.display(),
        manifest.bytes >> 20,
        manifest.compressed_bytes >> 20,
        manifest.timeline,
        manifest.lsn
    ))
}

/// Writes a backup of the peer with this configuration, or of what came to it, into a file of this name,
/// which must not exist.
///
/// # Errors
/// As [`backup`].
pub(crate) async fn make(
    config: &Config,
    target: &Path,
    came: Option<&Came>,
    watch: &Watch<'_>,
) -> Result<Manifest> {
    let me = config.ident()?;
    let postgres = Postgres::open(executor::settings(config, &me)?)?;
    let identity = postgres.identity()?;
    if identity.is_none() && came.is_none() {
        bail!("there is no database in {}", postgres.data().display());
    }
    let begun = Timestamp::now();
    let unfinished = Unfinished::create(target)?;
    let mut writer = Writer::new(BufWriter::new(unfinished.file.try_clone()?))?;
    let (taken, identifier, major, (timeline, lsn)) = match config.open_storage()?.volume() {
        Some(volume) => {
            let copied = snapshot::copy(config, volume, &postgres, came, &mut writer, watch);
            let facts = copied.await?;
            let at = (facts.timeline, facts.checkpoint);
            (Taken::Snapshot, facts.system_identifier, facts.version, at)
        }
        None => {
            let identifier = identity.context("there is no database")?;
            let major = fs::read_to_string(postgres.data().join("PG_VERSION"));
            let at = base_backup(config, &postgres, &mut writer, watch).await?;
            (Taken::BaseBackup, identifier, major.context("PG_VERSION")?, at)
        }
    };
    let (mut buffer, manifest) = writer.finish(|contents| Manifest {
        format: 1,
        made_by: format!("manatee {VERSION}"),
        shard: config.shard.clone(),
        peer: me.id.to_string(),
        zone: me.zone_id.clone(),
        system_identifier: identifier.to_string(),
        taken,
        timeline,
        lsn,
        postgres_version: major.trim().to_owned(),
        begun,
        finished: Timestamp::now(),
        bytes: contents.bytes,
        compressed_bytes: contents.compressed_bytes,
        checksum: contents.checksum,
    })?;
    buffer.flush()?;
    drop(buffer);
    unfinished.keep(target)?;
    Ok(manifest)
}

/// The file that is meant, which must not exist.
fn target(to: &Path, config: &Config, me: &PeerIdent, begun: Timestamp) -> Result<PathBuf> {
    let target = if to.is_dir() {
        let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let name: String = format!("{}-{}", config.shard, me.zone_id).chars().map(plain).collect();
        to.join(format!("{name}-{}.tar.zst", begun.strftime("%Y%m%dT%H%M%SZ")))
    } else {
        to.to_owned()
    };
    if target.symlink_metadata().is_ok() {
        bail!("{} exists and is not replaced: give another name", target.display());
    }
    Ok(target)
}

/// A file that has another name until it is complete; removed when it does not become so, or when the next
/// one is begun there.
struct Unfinished {
    path: PathBuf,
    /// Locked for as long as it is written.
    file: File,
}

/// Between the name of the backup and the process that writes it.
const UNFINISHED: &str = ".unfinished-";

impl Unfinished {
    fn create(target: &Path) -> Result<Unfinished> {
        let name = target.file_name().context("give a file or a directory")?.to_string_lossy();
        Unfinished::sweep(directory(target))?;
        let path = target.with_file_name(format!(".{name}{UNFINISHED}{}", std::process::id()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        // Where nothing can be locked, nobody takes it for one that was left, either.
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok();
        Ok(Unfinished { path, file })
    }

    /// Removes what those left that were killed: their process is gone, here, and nobody locks it, anywhere.
    fn sweep(directory: &Path) -> Result<()> {
        let entries = fs::read_dir(directory);
        for entry in entries.with_context(|| format!("cannot read {}", directory.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let writer =
                name.to_str().and_then(|name| name.strip_prefix('.')?.rsplit_once(UNFINISHED));
            let Some(Ok(pid)) = writer.map(|(_, pid)| pid.parse::<u32>()) else { continue };
            if Path::new("/proc").join(pid.to_string()).exists() {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let path = entry.path();
                fs::remove_file(&path).with_context(|| {
                    format!("cannot remove {}, which was cut off", path.display())
                })?;
            }
        }
        Ok(())
    }

    /// Gives it its name, if nobody has taken that meanwhile.
    fn keep(self, target: &Path) -> Result<()> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        fs::hard_link(&self.path, target).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("{} has appeared meanwhile and is not replaced", target.display())
            }
            _ => anyhow::Error::from(error).context(format!("cannot make {}", target.display())),
        })?;
        // What a cut of power leaves is under both names or under one: never half of it under the last.
        File::open(directory(target))?.sync_all()?;
        Ok(())
    }
}

fn directory(file: &Path) -> &Path {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// A backup that is being written to its file.
type Output = Writer<BufWriter<File>>;

/// `pg_basebackup` of the server that runs here, as one tar archive with the WAL that it needs; where it
/// begins.
async fn base_backup(
    config: &Config,
    postgres: &Postgres,
    writer: &mut Output,
    watch: &Watch<'_>,
) -> Result<(u32, Lsn)> {
    let settings = postgres.settings();
    let host = match settings.listen.split(',').next().unwrap_or_default().trim() {
        "" | "*" | "0.0.0.0" | "::" => config.ip.to_string(),
        host => host.to_owned(),
    };
    let command = Exec::new(postgres.bin_dir().join("pg_basebackup"))
        .env("PGPASSWORD", &settings.replication_password)
        .env("PGCONNECT_TIMEOUT", "10")
        .env("PGAPPNAME", "manatee backup")
        .redact(&settings.replication_password)
        .args(["--no-password", "--format=tar", "--pgdata=-", "--wal-method=fetch"])
        .args(["--checkpoint=fast", "--host", &host])
        .args(["--port", &settings.port.to_string(), "--username", &settings.replication_user]);
    let head = copy(command, writer, watch).await.context("the base backup failed")?;
    label(&head).context("the base backup does not say where it begins")
}

/// Copies all that the command prints and says how far it is; its beginning.
async fn copy(command: Exec, writer: &mut Output, watch: &Watch<'_>) -> Result<Vec<u8>> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut input = command.reader()?;
    let (mut chunk, mut head) = (vec![0; CHUNK], Vec::new());
    let begun = clock::now();
    let mut told = begun;
    loop {
        let read = tokio::select! {
            read = input.read(&mut chunk) => read?,
            _ = interrupted.recv() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
            _ = hung_up.recv() => bail!("hung up"),
        };
        if read == 0 {
            return Ok(head);
        }
        writer.write(&chunk[..read]).context("the backup cannot be written")?;
        if head.len() < HEAD {
            head.extend_from_slice(&chunk[..read.min(HEAD - head.len())]);
        }
        let now = clock::now();
        if now - told >= watch.period {
            told = now;
            let (bytes, written) = writer.progress();
            (watch.tell)(bytes, written, now - begun);
        }
    }
}

fn progress(bytes: u64, written: u64, took: Millis) -> String {
    let rate = bytes * 1000 / took.0.max(1);
    let mib = |bytes: u64| bytes >> 20;
    format!("{} MiB read, {} MiB written, {} MiB/s", mib(bytes), mib(written), mib(rate))
}

/// Timeline and position from the `backup_label` at the beginning of a tar archive.
fn label(head: &[u8]) -> Option<(u32, Lsn)> {
    let name = head.get(..100)?;
    let name = std::str::from_utf8(name).ok()?.trim_end_matches('\0');
    let size = std::str::from_utf8(head.get(124..136)?).ok()?;
    let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).ok()?;
    let text = std::str::from_utf8(head.get(512..512 + size)?).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let lsn = field("START WAL LOCATION: ")?.split_whitespace().next()?;
    let timeline = field("START TIMELINE: ")?.trim().parse().ok()?;
    (name == "backup_label").then_some((timeline, lsn.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_base_backup_begins() {
        let text = "START WAL LOCATION: 0/3000028 (file 000000020000000000000003)\n\
                    CHECKPOINT LOCATION: 0/3000060\nSTART TIMELINE: 2\n";
        let mut head = vec![0; 2048];
        head[..12].copy_from_slice(b"backup_label");
        head[124..135].copy_from_slice(format!("{:011o}", text.len()).as_bytes());
        head[512..512 + text.len()].copy_from_slice(text.as_bytes());
        assert_eq!(label(&head), Some((2, Lsn::new(0x300_0028))));
        head[0] = b'x';
        assert_eq!(label(&head), None);
        assert_eq!(label(&head[..600]), None);
    }

    #[tokio::test]
    async fn what_ends_a_backup_leaves_no_file() -> Result<()> {
        let place = tempfile::tempdir()?;
        for (signal, said) in [("INT", "interrupted"), ("TERM", "terminated"), ("HUP", "hung up")] {
            let unfinished = Unfinished::create(&place.path().join("one"))?;
            let mut writer = Writer::new(BufWriter::new(unfinished.file.try_clone()?))?;
            let script = format!("kill -{signal} {}; exec sleep 600", std::process::id());
            let command = Exec::new("sh").args(["-c", &script]);
            let watch = Watch { period: PERIOD, tell: &|_, _, _| {} };
            let copied = copy(command, &mut writer, &watch).await;
            assert_eq!(copied.expect_err("a signal came").to_string(), said);
            drop((writer, unfinished));
            assert_eq!(fs::read_dir(place.path())?.count(), 0, "after {signal}");
        }
        Ok(())
    }

    #[test]
    fn what_was_killed_is_swept_and_nobody_elses() -> Result<()> {
        let place = tempfile::tempdir()?;
        let mut child = std::process::Command::new("true").spawn()?;
        let gone = child.id();
        child.wait()?;
        let own = std::process::id();
        let name = |name: String| place.path().join(name);
        let left = name(format!(".a.tar.zst{UNFINISHED}{gone}"));
        let stays = [
            name(format!(".b.tar.zst{UNFINISHED}{own}")),
            name(format!(".locked{UNFINISHED}{gone}")),
            name(format!("mine{UNFINISHED}{gone}")),
            name(format!(".mine{UNFINISHED}")),
        ];
        for path in stays.iter().chain([&left]) {
            fs::write(path, "half")?;
        }
        // As somebody does on another host, in a directory that both have.
        let elsewhere = File::open(&stays[1])?;
        flock(&elsewhere, FlockOperation::NonBlockingLockExclusive)?;
        let unfinished = Unfinished::create(&place.path().join("c"))?;
        assert!(!left.exists());
        assert!(stays.iter().all(|path| path.exists()));
        // Our own is locked as well.
        let ours = File::open(&unfinished.path)?;
        flock(&ours, FlockOperation::NonBlockingLockExclusive).expect_err("it is being written");
        Ok(())
    }
}
