//! The servers of one etcd: one of them is asked, and others when it fails or is slow to answer.
//!
//! Contract: a call ends within its limit. Each server has a connection of its own, which is given up
//! when it does not answer in time: a connection that leads nowhere would else be waited for until the
//! system gives it up, long after the way is clear again.
//!
//! Where there is a user, each connection logs in at its own server, and shows the token that it was given.
//! Tokens end: unused ones after a while, all with their server, some at a certain time, some when anything
//! about users or roles changes. So a call that is refused for its token is done once more with a new one.
//! etcd looks at the token before it does anything, so nothing is done twice.

use super::failure::{Failure, hint};
use crate::clock;
use crate::coord::Credentials;
use cluster::{Millis, Monotonic};
use etcd_client::{Client, ConnectOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a login that was refused is not tried again: each costs etcd a tenth of a second of a processor,
/// and whoever follows a shard asks several times a second.
const LOGIN_PAUSE: Millis = Millis(1000);

/// The servers.
pub(super) struct Servers {
    servers: Vec<Server>,
    options: ConnectOptions,
    credentials: Option<Credentials>,
    /// When a login was last refused.
    refused: Mutex<Option<Monotonic>>,
    /// Whether it was said that nobody has to log in.
    said_needless: AtomicBool,
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
    pub(super) fn new(
        urls: Vec<String>,
        options: ConnectOptions,
        credentials: Option<Credentials>,
    ) -> Self {
        let server = |url| Server { url, client: Mutex::default() };
        let servers = urls.into_iter().map(server).collect();
        let (refused, said_needless) = (Mutex::default(), AtomicBool::new(false));
        let current = AtomicUsize::new(0);
        Servers { servers, options, credentials, refused, said_needless, current }
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
            async move {
                let mut answer = self.ask(index, deadline - clock::now(), work).await;
                // A connection that ended since it was last used is known to have only when it is used.
                if answer.as_ref().is_err_and(Failure::is_of_the_connection) {
                    answer = self.ask(index, deadline - clock::now(), work).await;
                }
                (index, answer)
            }
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
                        told.push(self.tell(index, &failure));
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

    fn tell(&self, index: usize, failure: &Failure) -> String {
        let (url, what) = (&self.servers[index].url, failure.to_string());
        match hint(&what, url.starts_with("https")) {
            "" => format!("{url}: {what}"),
            hint => format!("{url}: {what} ({hint})"),
        }
    }

    /// Does this with one server, once.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        index: usize,
        limit: Millis,
        work: impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let asking = async {
            match self.attempt(index, &work).await {
                Err(failure) if self.credentials.is_some() && failure.is_of_the_token() => {
                    *self.servers[index].client() = None;
                    self.attempt(index, &work).await
                }
                result => result,
            }
        };
        match tokio::time::timeout(Duration::from_millis(limit.0), asking).await {
            Ok(result) => result,
            Err(_) => {
                *self.servers[index].client() = None;
                Err(Failure::TimedOut(limit))
            }
        }
    }

    /// Does this with the connection that there is, or else a new one.
    async fn attempt<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        index: usize,
        work: impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let server = &self.servers[index];
        let there = server.client().clone();
        let client = match there {
            Some(client) => client,
            None => {
                let client = self.connect(&server.url).await?;
                *server.client() = Some(client.clone());
                client
            }
        };
        match (work(client).await, &self.credentials) {
            // The client found its token expired, and was refused another one.
            (Err(failure), Some(credentials)) if failure.is_login_refused() => {
                *server.client() = None;
                Err(self.refuse(credentials))
            }
            (result, _) => result,
        }
    }

    async fn connect(&self, url: &str) -> Result<Client, Failure> {
        let open = |options: ConnectOptions| async {
            Client::connect([url], Some(options)).await.map_err(Failure::from)
        };
        let Some(credentials) = &self.credentials else {
            return open(self.options.clone()).await;
        };
        let Credentials { user, password } = credentials;
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.is_some_and(|at| clock::now() - at < LOGIN_PAUSE) {
            return Err(Failure::Login(user.clone()));
        }
        match open(self.options.clone().with_user(user, password)).await {
            Err(failure) if failure.is_login_refused() => Err(self.refuse(credentials)),
            // Those who know their password are not shut out while an operator switches it on or off.
            Err(failure) if failure.is_login_needless() => {
                if !self.said_needless.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        url,
                        user,
                        "whoever reaches this etcd may change everything in it: it asks for no user \
                         (`etcdctl auth enable` makes it)"
                    );
                }
                open(self.options.clone()).await
            }
            result => result,
        }
    }

    fn refuse(&self, credentials: &Credentials) -> Failure {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = Some(clock::now());
        Failure::Login(credentials.user.clone())
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
