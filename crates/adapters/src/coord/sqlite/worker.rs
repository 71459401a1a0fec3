//! A thread that owns one connection, so that nothing that waits for a disk or a lock runs on the
//! asynchronous runtime.
//!
//! Calls of one worker are done in the order in which they were made: a call that was given up on
//! is over, one way or the other, before the next one begins.

use super::failure::Failure;
use super::store::{Durability, Place, Store};
use crate::clock;
use cluster::Millis;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many calls may wait. A caller beyond that waits outside, within its limit.
const WAITING: usize = 16;

type Job = Box<dyn FnOnce(&mut Store) + Send>;

/// The way to the thread. It ends when the last of these is dropped and its work is done.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread; `creates` lets its first call make the file.
    pub(super) fn start(
        place: Place,
        durability: Durability,
        creates: bool,
    ) -> Result<Self, Failure> {
        let (jobs, mut received) = mpsc::channel::<Job>(WAITING);
        let path = place.path.clone();
        std::thread::Builder::new()
            .name("coord-sqlite".to_owned())
            .spawn(move || {
                let mut store = Store::new(place, durability, creates);
                while let Some(job) = received.blocking_recv() {
                    job(&mut store);
                }
            })
            .map_err(|source| Failure::Io { action: "start a thread for", path, source })?;
        Ok(Worker { jobs })
    }

    /// Has the thread do this, and waits for the answer within the limit. After
    /// [`Failure::TimedOut`] it may have been done or not.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        limit: Millis,
        work: impl FnOnce(&mut Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        let deadline = clock::now() + limit;
        let job: Job = Box::new(move |store| {
            // An error means that the caller has given up.
            let _ = answer.send(store.within(deadline, work));
        });
        let exchange = async {
            self.jobs.send(job).await.map_err(|_| Failure::Ended)?;
            answered.await.map_err(|_| Failure::Ended)?
        };
        let time = Duration::from_millis(limit.0);
        match tokio::time::timeout(time, exchange).await {
            Ok(result) => result,
            Err(_) => Err(Failure::TimedOut(limit.0)),
        }
    }

    /// As [`Worker::call`], for a thread that may block.
    pub(super) fn call_blocking<T: Send + 'static>(
        &self,
        limit: Millis,
        work: impl FnOnce(&mut Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let deadline = clock::now() + limit;
        let job: Job = Box::new(move |store| {
            // An error means that the caller has given up.
            let _ = answer.send(store.within(deadline, work));
        });
        self.jobs.try_send(job).map_err(|_| Failure::Ended)?;
        match answered.recv_timeout(Duration::from_millis(limit.0)) {
            Ok(result) => result,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(Failure::TimedOut(limit.0)),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(Failure::Ended),
        }
    }
}
