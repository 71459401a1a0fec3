//! One connection to the database, owned by one thread.

use super::failure::Failure;
use super::schema;
use crate::clock;
use crate::coord::StoredState;
use cluster::Monotonic;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Which shard in which file, and which boot of the machine.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) shard: String,
    pub(super) boot: String,
    /// The sessions of peers that cannot be read, each of them reported once.
    pub(super) unreadable: Arc<Mutex<BTreeSet<u64>>>,
}

impl Place {
    /// Says that the peer of this session is passed over, the first time.
    pub(super) fn report_unreadable(&self, sequence: u64, error: &serde_json::Error) {
        if self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).insert(sequence) {
            let (path, shard) = (self.path.display(), &self.shard);
            tracing::warn!(%path, %shard, sequence, %error, "passing over a peer that cannot be read");
        }
    }

    /// Keeps in mind only these, which are still there.
    pub(super) fn forget_unreadable(&self, there: &BTreeSet<u64>) {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|sequence| there.contains(sequence));
    }
}

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// What is committed survives a power loss.
    PowerLoss,
    /// What is committed survives the end of this process, which is enough for a heartbeat: no
    /// session outlives the boot. It keeps the log in order, so it never harms what the other kind
    /// has committed.
    Crash,
}

/// The file, as the system knows it.
type Identity = (u64, u64);

/// One connection. Opened at the first call and, after an error, at the next one.
pub(super) struct Store {
    pub(super) place: Place,
    durability: Durability,
    /// Whether the first call makes the file if it is not there.
    creates: bool,
    connection: Option<(Connection, Identity)>,
    /// Grows each time that it is opened.
    pub(super) incarnation: u64,
    /// The state that was last read, to save reading it again.
    pub(super) cached: Option<StoredState>,
    deadline: Monotonic,
}

impl Store {
    pub(super) fn new(place: Place, durability: Durability, creates: bool) -> Self {
        Store {
            place,
            durability,
            creates,
            connection: None,
            incarnation: 0,
            cached: None,
            deadline: Monotonic(0),
        }
    }

    /// Does some work, waiting for locks until `deadline` at most. A write that has not come to
    /// its commit by then is undone.
    pub(super) fn within<T>(
        &mut self,
        deadline: Monotonic,
        work: impl FnOnce(&mut Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.deadline = deadline;
        self.check_deadline()?;
        let result = self.ready().and_then(|()| work(self));
        if let Err(failure) = &result
            && !failure.leaves_connection_sound()
        {
            self.connection = None;
        }
        result
    }

    fn check_deadline(&self) -> Result<(), Failure> {
        if clock::now() < self.deadline { Ok(()) } else { Err(Failure::TooLate) }
    }

    /// A connection to the file that has the name now.
    fn ready(&mut self) -> Result<(), Failure> {
        if self.creates && self.incarnation == 0 {
            schema::create_unless_there(&self.place.path)?;
        }
        // A little less than there is, so that the caller gets this answer and not a bare timeout.
        let rest = self.deadline - clock::now();
        let patience = Duration::from_millis(rest.0 - (rest.0 / 5).min(100));
        let there = identity(&self.place.path)?;
        if self.connection.as_ref().map(|(_, opened)| *opened) != Some(there) {
            self.connection = None;
            self.cached = None;
            let connection = schema::open(&self.place.path, patience)?;
            connection.execute_batch(match self.durability {
                Durability::PowerLoss => "PRAGMA synchronous = FULL",
                Durability::Crash => "PRAGMA synchronous = NORMAL",
            })?;
            self.connection = Some((connection, there));
            self.incarnation += 1;
        }
        let (connection, _) = self.parts()?;
        connection.busy_timeout(patience)?;
        Ok(())
    }

    fn parts(&mut self) -> Result<(&mut Connection, &Place), Failure> {
        match &mut self.connection {
            Some((connection, _)) => Ok((connection, &self.place)),
            None => Err(Failure::Missing(self.place.path.clone())),
        }
    }

    /// Everything that `work` reads is of one moment.
    pub(super) fn reading<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>, &Place) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (connection, place) = self.parts()?;
        let transaction = connection.transaction()?;
        let value = work(&transaction, place)?;
        transaction.commit()?;
        Ok(value)
    }

    /// All that `work` writes is stored, or nothing.
    pub(super) fn writing<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>, &Place) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = self.deadline;
        let (connection, place) = self.parts()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction, place)?;
        // The caller has given up by now: it must not find later what it was told nothing of.
        if clock::now() >= deadline {
            return Err(Failure::TooLate);
        }
        transaction.commit()?;
        Ok(value)
    }

    /// Tells all who follow this database that something changed. A commit alone would not: it
    /// becomes visible in shared memory, of which nobody is notified. The file is touched by name,
    /// because opening and closing it would drop the locks that this process has on it.
    pub(super) fn announce(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        // The change is stored all the same, and those who follow look once a second anyway.
        if let Err(error) = utimensat(CWD, &self.place.path, &times, AtFlags::empty()) {
            let path = self.place.path.display();
            tracing::warn!(%path, %error, "cannot announce a change; others see it a little later");
        }
    }
}

fn identity(path: &Path) -> Result<Identity, Failure> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok((metadata.dev(), metadata.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Failure::Missing(path.to_owned())),
        Err(source) => Err(Failure::Io { action: "look at", path: path.to_owned(), source }),
    }
}
