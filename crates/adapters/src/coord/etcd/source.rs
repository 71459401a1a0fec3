//! One follower's eyes on etcd: a watch that says when to read, and the reads.

use super::Shard;
use super::failure::Failure;
use super::keys::Keys;
use super::session::{self, Reading};
use crate::clock;
use crate::coord::CoordError;
use crate::coord::follow::{Beat, Seen, Source};
use async_trait::async_trait;
use cluster::{Millis, Monotonic};
use etcd_client::{Client, WatchOptions, WatchStream};
use std::sync::Arc;

/// How long it stays unnoticed at most that the server of the watch has fallen silent without closing
/// the connection. Members notice earlier, by their keep-alives, unless their sessions are long.
const SAFETY_LOOK: Millis = Millis(10_000);

/// How often a keep-alive is sent again because the leader changed, before that counts as a failure.
const ATTEMPTS: usize = 3;

pub(super) struct EtcdSource {
    shard: Arc<Shard>,
    lease: Option<i64>,
    watch: Option<Watching>,
    /// Which server answered the last read, and in which term.
    last: Option<(usize, u64)>,
    incarnation: Incarnation,
}

struct Watching {
    server: usize,
    stream: WatchStream,
}

/// An etcd that was set up anew, or whose data was put back to what it was before, counts anew.
#[derive(Default)]
struct Incarnation {
    number: u64,
    cluster: u64,
    revision: i64,
}

impl Incarnation {
    fn of(&mut self, reading: &Reading) -> u64 {
        if self.cluster != reading.cluster || self.revision > reading.revision {
            self.number += 1;
        }
        (self.cluster, self.revision) = (reading.cluster, reading.revision);
        self.number
    }
}

impl EtcdSource {
    pub(super) fn new(shard: Arc<Shard>, lease: Option<i64>) -> Self {
        EtcdSource { shard, lease, watch: None, last: None, incarnation: Incarnation::default() }
    }

    /// What was read, for the reader.
    pub(super) fn accept(&mut self, reading: Reading) -> Seen {
        let incarnation = self.incarnation.of(&reading);
        reading.into_seen(&self.shard, incarnation)
    }

    /// Reads by the server that the watch is at, and watches there first if nothing is watched: what
    /// changes after the read is seen by the watch. `ask` may do more before it reads.
    async fn read<T, F>(
        &mut self,
        limit: Millis,
        ask: impl Fn(Client) -> F,
    ) -> Result<(usize, T), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = clock::now() + limit;
        loop {
            let watching = match self.watch.take() {
                Some(watching) if watching.server == self.shard.servers.current() => watching,
                _ => open(&self.shard, deadline - clock::now()).await?,
            };
            let answer = self.shard.servers.call(deadline - clock::now(), &ask).await?;
            // The server of the watch did not answer, but another one.
            if answer.server == watching.server {
                self.watch = Some(watching);
                return Ok((answer.server, answer.value));
            }
        }
    }

    async fn try_look(&mut self, limit: Millis) -> Result<Seen, Failure> {
        let shard = Arc::clone(&self.shard);
        let look = |client| session::read(client, &shard.keys);
        let (server, reading) = self.read(limit, look).await?;
        self.last = Some((server, reading.term));
        Ok(self.accept(reading))
    }

    async fn try_beat(
        &mut self,
        lease: i64,
        sequence: u64,
        limit: Millis,
    ) -> Result<Beat, Failure> {
        let deadline = clock::now() + limit;
        let shard = Arc::clone(&self.shard);
        for _ in 0..ATTEMPTS {
            let beat = |mut client: Client| async {
                let alive = session::keep_alive(&mut client, lease).await?;
                Ok((alive, session::read(client, &shard.keys).await?))
            };
            let (server, (alive, reading)) = self.read(deadline - clock::now(), beat).await?;
            let now = (server, reading.term);
            let steady = self.last.replace(now) == Some(now);
            let stands = reading.entries.iter().any(|entry| entry.sequence == sequence);
            if !alive || !stands {
                return Ok(Beat::Gone);
            }
            let seen = self.accept(reading);
            if steady {
                return Ok(Beat::Alive(seen));
            }
        }
        Err(Failure::Leaders)
    }
}

/// Watches all keys of the shard, from a moment that is not after this returns.
async fn open(shard: &Shard, limit: Millis) -> Result<Watching, Failure> {
    let keys = &shard.keys;
    let watch = |mut client: Client| async move {
        match begin(&mut client, keys).await {
            // Some versions say of a token that has ended that a permission is missing. What was read was
            // read with one that holds.
            Err(Failure::WatchRefused(_)) => {
                session::read(client.clone(), keys).await?;
                begin(&mut client, keys).await
            }
            begun => begun,
        }
    };
    let answer = shard.servers.call(limit, watch).await;
    let answer = answer.map_err(|failure| failure.of("watched", keys.all(), keys))?;
    Ok(Watching { server: answer.server, stream: answer.value })
}

async fn begin(client: &mut Client, keys: &Keys) -> Result<WatchStream, Failure> {
    let mut stream = client.watch(keys.all(), Some(WatchOptions::new().with_prefix())).await?;
    match stream.message().await? {
        Some(first) if first.created() && !first.canceled() => Ok(stream),
        Some(first) if first.canceled() && !first.cancel_reason().is_empty() => {
            Err(Failure::WatchRefused(first.cancel_reason().to_owned()))
        }
        _ => Err(Failure::Incomplete("a watch")),
    }
}

#[async_trait]
impl Source for EtcdSource {
    async fn look(&mut self, limit: Millis) -> Result<Seen, CoordError> {
        let limit = limit.min(self.shard.limit);
        let seen = self.try_look(limit).await;
        seen.map_err(|failure| self.shard.error("look", failure))
    }

    async fn beat(
        &mut self,
        sequence: u64,
        _deadline: Monotonic,
        limit: Millis,
    ) -> Result<Beat, CoordError> {
        let Some(lease) = self.lease else {
            return Ok(Beat::Gone);
        };
        let limit = limit.min(self.shard.limit);
        let beat = self.try_beat(lease, sequence, limit).await;
        beat.map_err(|failure| self.shard.error("keep-alive", failure))
    }

    async fn forget(&mut self, _sequence: u64) -> Result<(), CoordError> {
        let Some(lease) = self.lease else {
            return Ok(());
        };
        let revoked = session::revoke(&self.shard, lease).await;
        revoked.map_err(|failure| self.shard.error("leave", failure))
    }

    async fn changed(&mut self) {
        let Some(watching) = &mut self.watch else {
            return std::future::pending().await;
        };
        match watching.stream.message().await {
            Ok(Some(told)) if !told.canceled() => {}
            // Lost with its connection, or what it had not told yet was compacted away: read, and
            // watch anew before that.
            _ => self.watch = None,
        }
    }

    fn safety_look(&self) -> Millis {
        SAFETY_LOOK
    }
}
