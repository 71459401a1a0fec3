//! The servers of one etcd: one of them is asked, and others when it fails or is slow to answer.
//!
//! Contract: a call ends within its limit. Each server has a connection of its own, which is given up
//! when it does not answer in time: a connection that leads nowhere would else be waited for until the
//! system gives it up, long after the way is clear again.

use super::failure::Failure;
use crate::clock;
use cluster::Millis;
use etcd_client::{Client, ConnectOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The servers.
pub(super) struct Servers {
    servers: Vec<Server>,
    options: ConnectOptions,
    /// The one that answered last.
    current: AtomicUsize,
}

struct Server {
    /// `http://host:port`.
    url: String,
    client: Mutex<Option<Client>>,
}

impl Server {
    /// No code panics while it holds the lock.
    fn client(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server answered, and which one it was.
pub(super) struct Answer<T> {
    pub(super) server: usize,
    pub(super) value: T,
}

impl Servers {
    /// These servers, at least one; nothing is connected yet.
    pub(super) fn new(urls: Vec<String>, options: ConnectOptions) -> Self {
        let server = |url| Server { url, client: Mutex::default() };
        let servers = urls.into_iter().map(server).collect();
        Servers { servers, options, current: AtomicUsize::new(0) }
    }

    /// Which server is asked first.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Does this with the first server that answers. One that is slow is not given up when the next one
    /// is asked, too: on a machine that is busy with others, all of them are slow. So what is done may
    /// be done by several.
    pub(super) async fn call<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        limit: Millis,
        work: impl Fn(Client) -> F,
    ) -> Result<Answer<T>, Failure> {
        let deadline = clock::now() + limit;
        let (first, count) = (self.current(), self.servers.len());
        let patience = Duration::from_millis(limit.0 / (2 * count as u64));
        let ask = |turn: usize| {
            let (index, work) = ((first + turn) % count, &work);
            async move { (index, self.ask(index, deadline - clock::now(), work).await) }
        };
        let mut asked = FuturesUnordered::from_iter([ask(0)]);
        let mut told = Vec::new();
        loop {
            let begun = told.len() + asked.len();
            tokio::select! {
                answer = asked.next() => match answer {
                    Some((server, Ok(value))) => {
                        self.settle_on(server);
                        return Ok(Answer { server, value });
                    }
                    Some((_, Err(failure))) if !failure.may_succeed_elsewhere() => {
                        return Err(failure);
                    }
                    Some((index, Err(failure))) => {
                        told.push(format!("{}: {failure}", self.servers[index].url));
                        if begun < count {
                            asked.push(ask(begun));
                        }
                    }
                    None => return Err(Failure::Servers(told)),
                },
                () = tokio::time::sleep(patience), if begun < count => asked.push(ask(begun)),
            }
        }
    }

    /// Does this with one server, once.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        index: usize,
        limit: Millis,
        work: impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let asking = async { work(self.client(index).await?).await };
        match tokio::time::timeout(Duration::from_millis(limit.0), asking).await {
            Ok(result) => result,
            Err(_) => {
                *self.servers[index].client() = None;
                Err(Failure::TimedOut(limit))
            }
        }
    }

    async fn client(&self, index: usize) -> Result<Client, Failure> {
        let server = &self.servers[index];
        let there = server.client().clone();
        if let Some(client) = there {
            return Ok(client);
        }
        let client = Client::connect([&server.url], Some(self.options.clone())).await?;
        *server.client() = Some(client.clone());
        Ok(client)
    }

    /// Asks this one first from now on. The connection to the one that was asked first before is given
    /// up: it may be what did not answer.
    fn settle_on(&self, index: usize) {
        let before = self.current.swap(index, Ordering::Relaxed);
        if before != index {
            *self.servers[before].client() = None;
        }
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls: Vec<_> = self.servers.iter().map(|server| &server.url).collect();
        f.debug_struct("Servers").field("urls", &urls).finish_non_exhaustive()
    }
}
