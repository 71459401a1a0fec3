//! What is asked of the database, each as one transaction.

use super::failure::Failure;
use super::store::{Place, Store};
use crate::clock;
use crate::coord::follow::{Beat, Member, Seen, Session};
use crate::coord::{HistoryEntry, Registration, StoredState, Version};
use cluster::{Generation, Millis, Monotonic, PeerIdent};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeSet;

impl Store {
    /// State and live sessions.
    pub(super) fn look(&mut self) -> Result<Seen, Failure> {
        let (cached, incarnation) = (self.cached.take(), self.incarnation);
        let seen =
            self.reading(|transaction, place| Scope(place).seen(transaction, cached, incarnation))?;
        self.cached.clone_from(&seen.state);
        Ok(seen)
    }

    /// Registers a peer, at the end of the order.
    pub(super) fn join(
        &mut self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<(Member, Seen), Failure> {
        if timeout.0 == 0 {
            return Err(Failure::NoTimeout);
        }
        let json = serde_json::to_string(peer).map_err(|error| Failure::content("peer", error))?;
        let (cached, incarnation) = (self.cached.take(), self.incarnation);
        let joined = self.writing(|transaction, place| {
            let scope = Scope(place);
            scope.bury(transaction)?;
            let deadline = clock::now() + timeout;
            transaction
                .prepare_cached(
                    "INSERT INTO session (shard, peer, boot, deadline) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![place.shard, json, place.boot, deadline.0])?;
            let sequence = u64::try_from(transaction.last_insert_rowid())
                .map_err(|error| Failure::content("sequence", error))?;
            let member = Member { sequence, timeout, deadline };
            Ok((member, scope.seen(transaction, cached, incarnation)?))
        })?;
        self.announce();
        Ok(joined)
    }

    /// Moves the deadline of a session, if it has not passed before this is committed.
    pub(super) fn beat(&mut self, sequence: u64, deadline: Monotonic) -> Result<Beat, Failure> {
        let (cached, incarnation) = (self.cached.take(), self.incarnation);
        let alive = self.writing(|transaction, place| {
            let scope = Scope(place);
            scope.bury(transaction)?;
            let before: Option<u64> = transaction
                .prepare_cached("SELECT deadline FROM session WHERE sequence = ?1 AND shard = ?2")?
                .query_row(params![sequence, place.shard], |row| row.get(0))
                .optional()?;
            let Some(before) = before else {
                return Ok(None);
            };
            transaction
                .prepare_cached("UPDATE session SET deadline = ?2 WHERE sequence = ?1")?
                .execute(params![sequence, deadline.0])?;
            let seen = scope.seen(transaction, cached, incarnation)?;
            Ok(Some((Monotonic(before), seen)))
        })?;
        match alive {
            None => Ok(Beat::Gone),
            // The commit took so long (or this process was stopped in it) that others may have
            // seen the session dead. Then it is.
            Some((before, _)) if clock::now() >= before => {
                self.leave(sequence)?;
                Ok(Beat::Gone)
            }
            Some((_, seen)) => {
                self.cached.clone_from(&seen.state);
                Ok(Beat::Alive(seen))
            }
        }
    }

    /// Takes a session away.
    pub(super) fn leave(&mut self, sequence: u64) -> Result<(), Failure> {
        self.writing(|transaction, place| {
            transaction
                .prepare_cached("DELETE FROM session WHERE sequence = ?1 AND shard = ?2")?
                .execute(params![sequence, place.shard])?;
            Ok(())
        })?;
        self.announce();
        Ok(())
    }

    /// Stores a state if the stored version is the expected one. `None` is a conflict.
    pub(super) fn put(
        &mut self,
        expected: Option<Version>,
        generation: Generation,
        json: &str,
    ) -> Result<Option<Version>, Failure> {
        let stored = self.writing(|transaction, place| {
            let current = current_version(transaction, &place.shard)?;
            if current != expected {
                return Ok(None);
            }
            let version = Version(current.map_or(0, |version| version.0) + 1);
            transaction
                .prepare_cached(
                    "INSERT INTO history (shard, version, time, generation, json)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    place.shard,
                    version.0,
                    Timestamp::now().to_string(),
                    generation.0,
                    json
                ])?;
            Ok(Some(version))
        })?;
        if stored.is_some() {
            self.announce();
        }
        Ok(stored)
    }

    /// Every write of the shard, oldest first.
    pub(super) fn history(&mut self) -> Result<Vec<HistoryEntry>, Failure> {
        self.reading(|transaction, place| {
            let mut statement = transaction.prepare_cached(
                "SELECT version, time, generation, json FROM history WHERE shard = ?1
                 ORDER BY version",
            )?;
            let mut rows = statement.query([&place.shard])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let time: String = row.get(1)?;
                entries.push(HistoryEntry {
                    sequence: row.get(0)?,
                    time: time.parse().map_err(|error| Failure::content("time", error))?,
                    generation: Generation(row.get(2)?),
                    json: row.get(3)?,
                });
            }
            Ok(entries)
        })
    }
}

/// The part of the database that is ours.
struct Scope<'a>(&'a Place);

impl Scope<'_> {
    /// Takes the dead away, of all shards; writes nothing when there are none.
    fn bury(&self, transaction: &Connection) -> Result<(), Failure> {
        transaction
            .prepare_cached("DELETE FROM session WHERE boot <> ?1 OR deadline <= ?2")?
            .execute(params![self.0.boot, clock::now().0])?;
        Ok(())
    }

    fn seen(
        &self,
        transaction: &Connection,
        cached: Option<StoredState>,
        incarnation: u64,
    ) -> Result<Seen, Failure> {
        let state = match (current_version(transaction, &self.0.shard)?, cached) {
            (None, _) => None,
            (Some(version), Some(cached)) if cached.version == version => Some(cached),
            (Some(version), _) => Some(StoredState {
                version,
                json: transaction
                    .prepare_cached("SELECT json FROM history WHERE shard = ?1 AND version = ?2")?
                    .query_row(params![self.0.shard, version.0], |row| row.get(0))?,
            }),
        };
        Ok(Seen { incarnation, state, sessions: self.sessions(transaction)? })
    }

    /// The live ones, in order. Whoever is dead by the clock is dead, buried or not. A peer that we
    /// cannot read, of a version to come or written by hand, is passed over: if it failed all of the
    /// reading, it would end the sessions of everybody else.
    fn sessions(&self, transaction: &Connection) -> Result<Vec<Session>, Failure> {
        let mut statement = transaction.prepare_cached(
            "SELECT sequence, peer, deadline FROM session
             WHERE shard = ?1 AND boot = ?2 AND deadline > ?3 ORDER BY sequence",
        )?;
        let mut rows = statement.query(params![self.0.shard, self.0.boot, clock::now().0])?;
        let mut sessions = Vec::new();
        let mut unreadable = BTreeSet::new();
        while let Some(row) = rows.next()? {
            let sequence = row.get(0)?;
            match serde_json::from_slice(row.get_ref(1)?.as_bytes().unwrap_or_default()) {
                Ok(peer) => sessions.push(Session {
                    registration: Registration { sequence, peer },
                    deadline: Monotonic(row.get(2)?),
                }),
                Err(error) => {
                    unreadable.insert(sequence);
                    self.0.report_unreadable(sequence, &error);
                }
            }
        }
        self.0.forget_unreadable(&unreadable);
        Ok(sessions)
    }
}

fn current_version(transaction: &Connection, shard: &str) -> Result<Option<Version>, Failure> {
    let version: Option<i64> = transaction
        .prepare_cached("SELECT max(version) FROM history WHERE shard = ?1")?
        .query_row([shard], |row| row.get(0))?;
    Ok(version.map(Version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::sqlite::store::Durability;
    use std::sync::Arc;

    const AMPLE: Millis = Millis(20_000);

    fn store(directory: &tempfile::TempDir) -> Store {
        let place = Place {
            path: directory.path().join("shard.db"),
            shard: "1.example".to_owned(),
            boot: "this one".to_owned(),
            unreadable: Arc::default(),
        };
        Store::new(place, Durability::PowerLoss, true)
    }

    fn wait_until(moment: Monotonic) {
        while clock::now() < moment {
            std::thread::yield_now();
        }
    }

    /// Nobody has buried it, and yet it is dead: to its holder, to readers and for good.
    #[test]
    fn a_heartbeat_after_the_deadline_does_not_resurrect() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = store(&directory);
        let peer = PeerIdent::new("10.0.0.1", 5432, 12345, "zone");
        let limit = clock::now() + AMPLE;
        let (member, _) =
            store.within(limit, |store| store.join(&peer, Millis(20))).expect("to join");
        wait_until(member.deadline);
        let sessions = store.within(limit, Store::look).expect("to look").sessions;
        assert_eq!(sessions, []);
        let beat = store.within(limit, |store| store.beat(member.sequence, clock::now() + AMPLE));
        assert!(matches!(beat, Ok(Beat::Gone)), "{beat:?}");
        let (next, seen) = store.within(limit, |store| store.join(&peer, AMPLE)).expect("to join");
        assert!(next.sequence > member.sequence);
        assert_eq!(seen.sessions.len(), 1);
    }

    /// What the caller has given up on is not stored behind its back.
    #[test]
    fn a_write_that_is_too_late_is_undone() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = store(&directory);
        let limit = clock::now() + AMPLE;
        store.within(limit, Store::look).expect("to look");
        let soon = clock::now() + Millis(200);
        let late = store.within(soon, |store| {
            store.writing(|transaction, _| {
                transaction.execute_batch(
                    "INSERT INTO history VALUES ('1.example', 1, '2020-01-01T00:00:00Z', 1, '{}')",
                )?;
                wait_until(soon);
                Ok(())
            })
        });
        assert!(matches!(late, Err(Failure::TooLate)), "{late:?}");
        let history = store.within(limit, Store::history).expect("to read");
        assert_eq!(history, []);
        let put = store.within(limit, |store| store.put(None, Generation(1), "{}"));
        assert!(matches!(put, Ok(Some(Version(1)))), "{put:?}");
    }
}
