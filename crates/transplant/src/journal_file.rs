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

    /// Who has the lock of this journal; `None` when nobody has.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn holder(journal: &Path) -> Result<Option<String>> {
        let path = journal.with_extension("lock");
        let told = || format!("cannot look at {}", path.display());
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(told),
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let mut holder = String::new();
        file.read_to_string(&mut holder).with_context(told)?;
        Ok(Some(holder.trim().to_owned()))
    }
}

/// What a journal says, and how many bytes of it count. A last line that was not written to its end may end
/// within a character.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Journal, usize)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let told = || {
        let name = path.display();
        format!("{name} cannot be gone on with; look at it, and put back what was changed")
    };
    let text = std::str::from_utf8(&bytes[..whole]).with_context(told)?;
    Journal::parse(text).with_context(told)
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
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        };
        Ok(Some(parse(path, &bytes)?.0))
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
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        let (journal, whole) = parse(path, &bytes)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_line_that_ends_within_a_character_does_not_count() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("move.journal");
        let plan = Plan { title: "moves señor".to_owned(), facts: Value::Null, steps: Vec::new() };
        let begun = JournalFile::begin(&path, plan, Timestamp::UNIX_EPOCH, "josé");
        drop(begun.expect("a journal"));
        let whole = fs::read(&path).expect("its bytes");
        let at = whole.iter().position(|byte| !byte.is_ascii()).expect("a longer character");
        let torn = [&whole[..], &whole[..=at]].concat();
        assert!(std::str::from_utf8(&torn).is_err(), "it is torn within a character");
        fs::write(&path, &torn).expect("written");
        let read = JournalFile::read(&path).expect("it is read").expect("it is there");
        assert_eq!(read.records().len(), 1);
        let (opened, _file) = JournalFile::open(&path).expect("it is opened");
        assert_eq!(opened.records().len(), 1);
        assert_eq!(fs::read(&path).expect("its bytes"), whole, "what was torn is cut off");
        fs::write(&path, [&torn[..], b"\n"].concat()).expect("written");
        let told = format!("{:#}", JournalFile::read(&path).expect_err("a line of its own"));
        assert!(told.contains("put back what was changed"), "{told}");
    }
}
