//! How a member or a watcher follows the database: a worker of its own to ask, and inotify to know
//! when.

use super::failure::Failure;
use super::store::Store;
use super::worker::Worker;
use crate::coord::CoordError;
use crate::coord::follow::{Beat, Seen, Source};
use async_trait::async_trait;
use cluster::{Millis, Monotonic};
use futures_util::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use std::path::PathBuf;

/// Room for many events; all of them mean the same.
const BUFFER: usize = 1024;

/// How calls are bounded and their errors named.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) target: String,
    pub(super) limit: Millis,
}

impl Terms {
    pub(super) fn error(&self, operation: &'static str, failure: Failure) -> CoordError {
        CoordError { target: self.target.clone(), operation, cause: failure.into() }
    }
}

pub(super) struct SqliteSource {
    worker: Worker,
    terms: Terms,
    path: PathBuf,
    events: EventStream<[u8; BUFFER]>,
    /// Of the file that is being watched.
    incarnation: u64,
}

impl SqliteSource {
    /// Watches from now on; what was committed before is for the caller to read.
    pub(super) fn new(worker: Worker, terms: Terms, path: PathBuf) -> Result<Self, Failure> {
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; BUFFER]));
        let mut source = SqliteSource {
            worker,
            terms,
            events: events.map_err(|source| Failure::Inotify { path: path.clone(), source })?,
            path,
            incarnation: 0,
        };
        source.watch_file()?;
        Ok(source)
    }

    /// What `Store::announce` does to the file changes its attributes, and nothing else does
    /// while it has its name: the writes of heartbeats wake nobody up.
    fn watch_file(&mut self) -> Result<(), Failure> {
        let added = self.events.watches().add(&self.path, WatchMask::ATTRIB);
        added.map(drop).map_err(|source| Failure::Inotify { path: self.path.clone(), source })
    }

    async fn ask<T: Send + 'static>(
        &mut self,
        operation: &'static str,
        limit: Millis,
        work: impl FnOnce(&mut Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CoordError> {
        let limit = limit.min(self.terms.limit);
        let work = move |store: &mut Store| Ok((work(store)?, store.incarnation));
        let result = self.worker.call(limit, work).await;
        let result = result.and_then(|(answer, incarnation)| {
            if self.incarnation != incarnation {
                self.watch_file()?;
                self.incarnation = incarnation;
            }
            Ok(answer)
        });
        result.map_err(|failure| self.terms.error(operation, failure))
    }
}

#[async_trait]
impl Source for SqliteSource {
    async fn look(&mut self, limit: Millis) -> Result<Seen, CoordError> {
        self.ask("look", limit, Store::look).await
    }

    async fn beat(
        &mut self,
        sequence: u64,
        deadline: Monotonic,
        limit: Millis,
    ) -> Result<Beat, CoordError> {
        let work = move |store: &mut Store| store.beat(sequence, deadline);
        self.ask("heartbeat", limit, work).await
    }

    async fn forget(&mut self, sequence: u64) -> Result<(), CoordError> {
        let work = move |store: &mut Store| store.leave(sequence);
        self.ask("leave", self.terms.limit, work).await
    }

    async fn changed(&mut self) {
        match self.events.next().await {
            // Many changes at once are one to those who look.
            Some(Ok(_)) => while let Some(Some(Ok(_))) = self.events.next().now_or_never() {},
            // Reading an inotify descriptor does not fail, nor does it end; if it did, what is
            // left is the look once a second.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }
}
