//! Coordination through etcd: leases, transactions and watches, the layout of ZooKeeper as keys
//! ([`keys`]), the same JSON.
//!
//! - A session is a lease; the registration is bound to it and goes with it. etcd counts leases in whole
//!   seconds and has a least length (2 s with its defaults), so a session may be longer than what was
//!   asked for, never shorter. Its holder takes it for dead when that time has passed by its own clock
//!   since it sent the last keep-alive that counted; etcd, whose time begins later, not before.
//! - What is told was read: by a transaction that only reads, so of one moment, and linearizable, so not
//!   older than its request. The watch is nothing but the reason to read again. Nothing rests on what it
//!   says, in which order, or whether a part was compacted away: when it ends, it is opened anew before
//!   the next read. (Progress notifications of a watch would not do: before 3.4.25 and 3.5.8 etcd may
//!   send them ahead of the changes that they vouch for.)
//! - `Confirmed { sent }` is told after a keep-alive and then such a read, both begun after `sent`, the
//!   read telling that the registration stands. So the session was alive after `sent`, and every change
//!   that was committed before `sent` is in what was read, which is told first.
//! - A lease is extended by the leader alone, without asking the others. One that has just been replaced
//!   may still say that it did. So the keep-alive counts only if the term in which the read was
//!   answered is the one of the last read before it, by the same server; else it is sent again.
//! - With a user, etcd asks for a permission at everything but leases. What it refuses for that is told with
//!   the keys, and what to do ([`failure`]); a token that has ended is replaced ([`servers`]).
//! - A put is one transaction: on condition that the state is of the expected revision, write it and its
//!   entry of the history. It goes to a server that has just answered a read.

pub(super) mod address;
mod failure;
mod keys;
mod servers;
mod session;
mod source;

use super::follow::{self, Member, Seen};
use super::mailbox::{self, mailbox};
use super::{
    Access, CoordError, CoordEvent, Coordination, HistoryEntry, Membership, PutOutcome, TlsAccess,
    Version, View, Watch,
};
use crate::clock;
use async_trait::async_trait;
use cluster::{ClusterState, Millis, PeerIdent};
use etcd_client::{
    Certificate, Compare, CompareOp, ConnectOptions, GetOptions, Identity, TlsOptions, Txn, TxnOp,
};
use failure::Failure;
use jiff::Timestamp;
use keys::{Keys, parse_written};
use servers::Servers;
use session::{Reading, Session};
use source::EtcdSource;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many entries of the history are asked for at once: gRPC refuses answers of more than 4 MiB,
/// and a state of a large shard has a few KiB.
const PAGE: i64 = 200;

/// The coordination of one shard in etcd.
#[derive(Debug)]
pub struct EtcdCoord {
    shard: Arc<Shard>,
}

/// What all parts of it share.
#[derive(Debug)]
struct Shard {
    target: String,
    limit: Millis,
    keys: Keys,
    servers: Servers,
    /// The keys of peers that cannot be read, each of them reported once.
    unreadable: Mutex<BTreeSet<String>>,
}

impl Shard {
    /// No code panics while it holds the lock.
    fn unreadable(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, operation: &'static str, failure: Failure) -> CoordError {
        CoordError { target: self.target.clone(), operation, cause: failure.into() }
    }
}

impl EtcdCoord {
    /// The shard below `root` (empty, or `/` and a name) at these servers (`host:port`), at least one
    /// of which has to be reachable at each call. Connects to nobody yet.
    ///
    /// # Errors
    /// When files of certificates cannot be used.
    pub fn open(
        servers: &[String],
        root: &str,
        shard: &str,
        access: &Access,
        call_timeout: Millis,
    ) -> Result<Self, CoordError> {
        let target = format!("etcd://{}{root} (shard {shard})", servers.join(","));
        let part = call_timeout.0 / servers.len().max(1) as u64;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_millis(part.max(1)))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &access.tls {
            let tls = tls_options(tls).map_err(|failure| CoordError {
                target: target.clone(),
                operation: "open",
                cause: failure.into(),
            })?;
            options = options.with_tls(tls);
        }
        let scheme = if access.tls.is_some() { "https" } else { "http" };
        let urls = servers.iter().map(|server| format!("{scheme}://{server}")).collect();
        let shard = Shard {
            target,
            limit: call_timeout,
            keys: Keys::new(root, shard),
            servers: Servers::new(urls, options, access.credentials.clone()),
            unreadable: Mutex::default(),
        };
        Ok(EtcdCoord { shard: Arc::new(shard) })
    }

    async fn try_join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<(EtcdSource, Session, Seen), Failure> {
        if timeout.0 == 0 {
            return Err(Failure::NoTimeout);
        }
        let shard = &self.shard;
        let sent = clock::now();
        let deadline = sent + shard.limit;
        let json = serde_json::to_string(peer).map_err(|error| Failure::content("peer", error))?;
        let (lease, timeout) = session::grant(shard, timeout, shard.limit).await?;
        let key = shard.keys.registration(&peer.id, lease);
        let rest = deadline - clock::now();
        let reading = session::register(shard, &key, json, lease, rest).await?;
        let own = reading.sequence_of(&key).ok_or(Failure::Incomplete("our registration"))?;
        let member = Member { sequence: own, timeout, deadline: sent + timeout };
        let session = Session { member, lease };
        let mut source = EtcdSource::new(Arc::clone(shard), Some(lease));
        let seen = source.accept(reading);
        Ok((source, session, seen))
    }

    async fn try_put(
        &self,
        expected: Option<Version>,
        state: &ClusterState,
    ) -> Result<Option<Version>, Failure> {
        let Shard { keys, servers, limit, .. } = &*self.shard;
        let deadline = clock::now() + *limit;
        let read = servers.call(*limit, |client| session::read(client, keys)).await?;
        if read.value.state.as_ref().map(|state| state.version) != expected {
            return Ok(None);
        }
        let (key, json) = (keys.state(), state.to_json());
        // The first state is written on what was read; any other on the write that it replaces.
        let number = expected.map_or(read.value.revision, |version| version.0);
        let written = keys.written(number, state.generation, Timestamp::now());
        let unchanged = match expected {
            Some(version) => Compare::mod_revision(&*key, CompareOp::Equal, version.0),
            None => Compare::create_revision(&*key, CompareOp::Equal, 0),
        };
        let unwritten = Compare::create_revision(&*written, CompareOp::Equal, 0);
        let puts = [TxnOp::put(&*key, &*json, None), TxnOp::put(&*written, &*json, None)];
        let txn = Txn::new().when([unchanged, unwritten]).and_then(puts);
        let work = |mut client: etcd_client::Client| {
            let txn = txn.clone();
            async move { Ok(client.txn(txn).await?) }
        };
        // Once: after a lost answer, a second attempt would be told of a conflict with the first.
        let answer = servers.ask(read.server, deadline - clock::now(), work).await;
        let answer = answer.map_err(|failure| failure.of("written", key, keys))?;
        let header = answer.header().ok_or(Failure::Incomplete("a header"))?;
        Ok(answer.succeeded().then(|| Version(header.revision())))
    }

    async fn try_history(&self) -> Result<Vec<HistoryEntry>, Failure> {
        let Shard { keys, servers, limit, .. } = &*self.shard;
        let deadline = clock::now() + *limit;
        let prefix = keys.history();
        // The first key behind all those that begin with the prefix, which ends with a slash.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let mut from = prefix;
        let mut entries = Vec::new();
        loop {
            let page = |mut client: etcd_client::Client| {
                let options = GetOptions::new().with_range(&*end).with_limit(PAGE);
                let from = from.clone();
                async move { Ok(client.get(from, Some(options)).await?) }
            };
            let page = servers.call(deadline - clock::now(), page).await;
            let page = page.map_err(|failure| failure.of("read", keys.history(), keys))?.value;
            for kv in page.kvs() {
                let key = String::from_utf8_lossy(kv.key());
                let (generation, time) = parse_written(&key).ok_or_else(|| {
                    Failure::content("name of a write", format!("{key} is none of ours"))
                })?;
                let json = kv.value_str().map_err(|error| Failure::content("state", error))?;
                entries.push(HistoryEntry {
                    sequence: kv.create_revision().unsigned_abs(),
                    time,
                    generation,
                    json: json.to_owned(),
                });
            }
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from = format!("{}\0", String::from_utf8_lossy(last.key()));
                }
                _ => break,
            }
        }
        entries.sort_by_key(|entry| entry.sequence);
        Ok(entries)
    }
}

#[async_trait]
impl Coordination for EtcdCoord {
    fn target(&self) -> String {
        self.shard.target.clone()
    }

    async fn join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, CoordError> {
        let joined = self.try_join(peer, timeout).await;
        let (source, session, first) =
            joined.map_err(|failure| self.shard.error("join", failure))?;
        let (outbox, inbox) = mailbox();
        follow::spawn(source, outbox, first, Some(session.member));
        let shard = Arc::clone(&self.shard);
        Ok(Box::new(EtcdMembership { shard, lease: session.lease, inbox }))
    }

    async fn watch(&self) -> Result<Watch, CoordError> {
        let mut source = EtcdSource::new(Arc::clone(&self.shard), None);
        let first = follow::Source::look(&mut source, self.shard.limit).await?;
        let (outbox, inbox) = mailbox();
        follow::spawn(source, outbox, first, None);
        Ok(inbox.into_channel())
    }

    async fn read(&self) -> Result<View, CoordError> {
        let Shard { keys, servers, limit, .. } = &*self.shard;
        let read = servers.call(*limit, |client| session::read(client, keys)).await;
        let read: Reading = read.map_err(|failure| self.shard.error("read", failure))?.value;
        Ok(read.into_seen(&self.shard, 0).into())
    }

    async fn put(&self, expected: Option<Version>, state: &ClusterState) -> PutOutcome {
        match self.try_put(expected, state).await {
            Ok(Some(version)) => PutOutcome::Committed(version),
            Ok(None) => PutOutcome::Conflict,
            Err(failure) if failure.is_refusal() => {
                PutOutcome::Refused(self.shard.error("put", failure))
            }
            Err(failure) => PutOutcome::Unknown(self.shard.error("put", failure)),
        }
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, CoordError> {
        self.try_history().await.map_err(|failure| self.shard.error("history", failure))
    }
}

fn tls_options(access: &TlsAccess) -> Result<TlsOptions, Failure> {
    let pem = access.read()?;
    let options = TlsOptions::new().ca_certificate(Certificate::from_pem(pem.ca));
    Ok(match pem.identity {
        Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key)),
        None => options,
    })
}

struct EtcdMembership {
    shard: Arc<Shard>,
    lease: i64,
    inbox: mailbox::Receiver,
}

#[async_trait]
impl Membership for EtcdMembership {
    async fn next(&mut self) -> Option<CoordEvent> {
        self.inbox.next().await
    }

    async fn leave(self: Box<Self>) -> Result<(), CoordError> {
        let EtcdMembership { shard, lease, inbox } = *self;
        // The keep-alives end first, so that there is nobody left to be told of an expiry.
        drop(inbox);
        let left = session::revoke(&shard, lease).await;
        left.map_err(|failure| shard.error("leave", failure))
    }
}
