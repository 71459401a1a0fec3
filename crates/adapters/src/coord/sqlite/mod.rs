//! Coordination of several sitters on **one machine**: a database file that they share.
//!
//! - A session is a row with a deadline by the boot clock, which all processes of a machine share,
//!   and the name of the boot: at or after its deadline, and in any other boot, it is dead, to
//!   everybody in the same moment, whether its row was taken away yet or not. Its holder moves the
//!   deadline only while it has not passed.
//! - Whoever changes something touches the file; inotify wakes those who follow it.
//! - The cluster state is the newest row of its history.
//!
//! The file has to be on a local file system, and all sitters in one time namespace. A process that
//! is stopped (not killed) in the few microseconds of a commit keeps the write lock: until it goes
//! on, nobody can beat, join or put; everybody can read.

mod calls;
mod failure;
mod schema;
mod source;
mod store;
mod worker;

use super::follow;
use super::mailbox::{self, mailbox};
use super::{
    CoordError, CoordEvent, Coordination, HistoryEntry, Membership, PutOutcome, Version, View,
    Watch,
};
use async_trait::async_trait;
use cluster::{ClusterState, Millis, PeerIdent};
use failure::Failure;
use source::{SqliteSource, Terms};
use std::path::{Path, PathBuf};
use store::{Durability, Place, Store};
use worker::Worker;

/// What names the boot of this machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The coordination of one shard in a database file.
#[derive(Debug)]
pub struct SqliteCoord {
    place: Place,
    terms: Terms,
    worker: Worker,
}

impl SqliteCoord {
    /// Opens the database at this absolute path, and makes it, for its owner only, if there is
    /// nothing. Several shards may share a file. Blocks for at most `call_timeout`, which also
    /// bounds every call afterwards.
    ///
    /// # Errors
    /// When the path cannot be used, or holds something that is no database of this schema.
    pub fn open(path: &Path, shard: &str, call_timeout: Millis) -> Result<Self, CoordError> {
        let terms = Terms {
            target: format!("sqlite:{} (shard {shard})", path.display()),
            limit: call_timeout,
        };
        let open = || {
            let boot = std::fs::read_to_string(BOOT_ID).map_err(|source| Failure::Io {
                action: "read the boot id from",
                path: PathBuf::from(BOOT_ID),
                source,
            })?;
            let place = Place {
                path: path.to_owned(),
                shard: shard.to_owned(),
                boot: boot.trim().to_owned(),
                unreadable: std::sync::Arc::default(),
            };
            let worker = Worker::start(place.clone(), Durability::PowerLoss, true)?;
            worker.call_blocking(call_timeout, |_| Ok(()))?;
            Ok((place, worker))
        };
        match open() {
            Ok((place, worker)) => Ok(SqliteCoord { place, terms, worker }),
            Err(failure) => Err(terms.error("open", failure)),
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CoordError> {
        let result = self.worker.call(self.terms.limit, work).await;
        result.map_err(|failure| self.terms.error(operation, failure))
    }

    /// Its own connection, so that a heartbeat never waits behind somebody's reading.
    fn source(&self) -> Result<SqliteSource, Failure> {
        let worker = Worker::start(self.place.clone(), Durability::Crash, false)?;
        SqliteSource::new(worker, self.terms.clone(), self.place.path.clone())
    }
}

#[async_trait]
impl Coordination for SqliteCoord {
    fn target(&self) -> String {
        self.terms.target.clone()
    }

    async fn join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, CoordError> {
        let source = self.source();
        let source = source.map_err(|failure| self.terms.error("join", failure))?;
        let peer = peer.clone();
        let join = move |store: &mut Store| store.join(&peer, timeout);
        let (member, first) = self.call("join", join).await?;
        let (outbox, inbox) = mailbox();
        follow::spawn(source, outbox, first, Some(member));
        Ok(Box::new(SqliteMembership {
            worker: self.worker.clone(),
            terms: self.terms.clone(),
            sequence: member.sequence,
            inbox,
        }))
    }

    async fn watch(&self) -> Result<Watch, CoordError> {
        let source = self.source();
        let source = source.map_err(|failure| self.terms.error("watch", failure))?;
        let first = self.call("watch", Store::look).await?;
        let (outbox, inbox) = mailbox();
        follow::spawn(source, outbox, first, None);
        Ok(inbox.into_channel())
    }

    async fn read(&self) -> Result<View, CoordError> {
        Ok(self.call("read", Store::look).await?.into())
    }

    async fn put(&self, expected: Option<Version>, state: &ClusterState) -> PutOutcome {
        let (generation, json) = (state.generation, state.to_json());
        let put = move |store: &mut Store| store.put(expected, generation, &json);
        match self.call("put", put).await {
            Ok(Some(version)) => PutOutcome::Committed(version),
            Ok(None) => PutOutcome::Conflict,
            Err(error) => PutOutcome::Unknown(error),
        }
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, CoordError> {
        self.call("history", Store::history).await
    }
}

struct SqliteMembership {
    worker: Worker,
    terms: Terms,
    sequence: u64,
    inbox: mailbox::Receiver,
}

#[async_trait]
impl Membership for SqliteMembership {
    async fn next(&mut self) -> Option<CoordEvent> {
        self.inbox.next().await
    }

    async fn leave(self: Box<Self>) -> Result<(), CoordError> {
        let SqliteMembership { worker, terms, sequence, inbox } = *self;
        // The heartbeats end first, so that there is nobody left to be told of an expiry.
        drop(inbox);
        let leave = move |store: &mut Store| store.leave(sequence);
        let left = worker.call(terms.limit, leave).await;
        left.map_err(|failure| terms.error("leave", failure))
    }
}
