//! The journal as a file beside the inventory, and the lock by which one runner at a time has it.

use adapters::clock;
use anyhow::{Context, Result, bail};
use cluster::Millis;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use saga::{Journal, Plan, Store};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the journal of this inventory is.
pub fn journal_of(inventory: &Path) -> PathBuf {
    inventory.with_extension("journal")
}

/// How long the lock may outlive its runner.
const PATIENCE: Millis = Millis(500);

/// Held by the one runner of a journal; its file says who that is.
#[derive(Debug)]
pub struct Locked {
    _file: File,
}

impl Locked {
    /// Takes the lock of this journal for this operator.
    ///
    /// # Errors
    /// When another runner has it: says which.
    pub fn take(journal: &Path, operator: &str) -> Result<Locked> {
        let path = journal.with_extension("lock");
        let name = path.display();
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {name}"))?;
        let begun = clock::now();
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            // A command that a killed runner was just starting has the lock for a moment longer.
            if clock::now() - begun < PATIENCE {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            let mut other = String::new();
            file.read_to_string(&mut other)?;
            bail!(
                "this transplant is being run already, by {}; wait for it, or tell it to stop after \
                 its step with `manatee transplant pause`",
                other.trim()
            );
        }
        file.set_len(0)?;
        file.write_all(operator.as_bytes())?;
        Ok(Locked { _file: file })
    }
}

/// A journal's file.
#[derive(Debug)]
pub struct JournalFile {
    file: File,
}

impl JournalFile {
    /// Reads the journal; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or was changed.
    pub fn read(path: &Path) -> Result<Option<Journal>> {
        let name = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        };
        let (journal, _) = Journal::parse(&text).with_context(|| {
            format!("{name} cannot be gone on with; look at it, and put back what was changed")
        })?;
        Ok(Some(journal))
    }

    /// Opens it to be gone on with. A line that was not written to its end is cut off.
    ///
    /// # Errors
    /// When it cannot be, or was changed.
    pub fn open(path: &Path) -> Result<(Journal, JournalFile)> {
        let name = path.display();
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {name}"))?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
        let (journal, whole) = Journal::parse(&text).with_context(|| {
            format!("{name} cannot be gone on with; look at it, and put back what was changed")
        })?;
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        Ok((journal, JournalFile { file }))
    }

    /// Begins a journal of this plan where there is none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(
        path: &Path,
        plan: Plan,
        now: Timestamp,
        operator: &str,
    ) -> Result<(Journal, JournalFile)> {
        let name = path.display();
        let (journal, line) = Journal::begin(plan, now, operator);
        let beside = path.with_extension("journal-new");
        let mut options = File::options();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file =
            options.open(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&beside, path).with_context(|| format!("cannot make {name}"))?;
        fs::remove_file(&beside)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok((journal, JournalFile { file }))
    }

    /// Renames a journal that has ended out of the way.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn set_aside(path: &Path, now: Timestamp) -> Result<PathBuf> {
        let aside = path.with_extension(format!("journal.{}", now.strftime("%Y%m%dT%H%M%SZ")));
        fs::rename(path, &aside)
            .with_context(|| format!("cannot rename {} to {}", path.display(), aside.display()))?;
        Ok(aside)
    }
}

impl Store for JournalFile {
    fn append(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.file.sync_all()
    }
}
