//! What is asked of etcd, each as one request: leases, registrations and the read that everything that
//! is told comes from.

use super::Shard;
use super::failure::Failure;
use super::keys::Keys;
use crate::coord::follow::{self, Member, Seen};
use crate::coord::{Registration, StoredState, Version};
use cluster::{Millis, Monotonic};
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, GetResponse, PutOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use std::collections::BTreeSet;

/// Our own session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    pub(super) member: Member,
    pub(super) lease: i64,
}

/// A registration as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) sequence: u64,
    json: Vec<u8>,
}

/// What stood there at one moment.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    /// Of the leader, as far as the server that answered knew then.
    pub(super) term: u64,
    pub(super) state: Option<StoredState>,
    /// In order of `sequence`.
    pub(super) entries: Vec<Entry>,
}

impl Reading {
    fn new(answer: &TxnResponse) -> Result<Self, Failure> {
        let header = answer.header().ok_or(Failure::Incomplete("a header"))?;
        let mut gets = answer.op_responses().into_iter().filter_map(|part| match part {
            TxnOpResponse::Get(get) => Some(get),
            _ => None,
        });
        let mut next = || gets.next().ok_or(Failure::Incomplete("what was asked for"));
        let (state, election) = (next()?, next()?);
        let mut entries: Vec<Entry> = election.kvs().iter().map(entry).collect();
        entries.sort_by_key(|entry| entry.sequence);
        Ok(Reading {
            cluster: header.cluster_id(),
            revision: header.revision(),
            term: header.raft_term(),
            state: stored(&state)?,
            entries,
        })
    }

    pub(super) fn sequence_of(&self, key: &str) -> Option<u64> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.sequence)
    }

    /// As those who follow take it. A peer that we cannot read, of a version to come or written by
    /// hand, is passed over: if it failed all of the reading, it would end the sessions of everybody
    /// else. When others expire is for etcd to know, so nobody here waits for it.
    pub(super) fn into_seen(self, shard: &Shard, incarnation: u64) -> Seen {
        let mut unreadable = BTreeSet::new();
        let mut sessions = Vec::new();
        for Entry { key, sequence, json } in self.entries {
            match serde_json::from_slice(&json) {
                Ok(peer) => sessions.push(follow::Session {
                    registration: Registration { sequence, peer },
                    deadline: Monotonic(u64::MAX),
                }),
                Err(error) => {
                    unreadable.insert(key.clone());
                    if !shard.unreadable().contains(&key) {
                        let etcd = &shard.target;
                        tracing::warn!(%etcd, %key, %error, "passing over a peer that cannot be read");
                    }
                }
            }
        }
        *shard.unreadable() = unreadable;
        Seen { incarnation, state: self.state, sessions }
    }
}

fn entry(kv: &etcd_client::KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        sequence: kv.create_revision().unsigned_abs(),
        json: kv.value().to_vec(),
    }
}

fn stored(get: &GetResponse) -> Result<Option<StoredState>, Failure> {
    let state = get.kvs().first().map(|kv| {
        let json = kv.value_str().map_err(|error| Failure::content("state", error))?;
        Ok(StoredState { version: Version(kv.mod_revision()), json: json.to_owned() })
    });
    state.transpose()
}

fn gets(keys: &Keys) -> [TxnOp; 2] {
    let all = GetOptions::new().with_prefix();
    [TxnOp::get(keys.state(), None), TxnOp::get(keys.election(), Some(all))]
}

/// State and registrations at one moment that is not before this was asked.
pub(super) async fn read(mut client: Client, keys: &Keys) -> Result<Reading, Failure> {
    let read = client.txn(Txn::new().and_then(gets(keys))).await;
    Reading::new(&read.map_err(|error| Failure::from(error).of("read", keys.all(), keys))?)
}

/// A new lease, and how long it is. When the answer is lost, one may be left that runs out by itself.
pub(super) async fn grant(
    shard: &Shard,
    timeout: Millis,
    limit: Millis,
) -> Result<(i64, Millis), Failure> {
    let seconds = i64::try_from(timeout.0.div_ceil(1000)).unwrap_or(i64::MAX);
    let grant = |mut client: Client| async move {
        let granted = client.lease_grant(seconds, None).await?;
        Ok((granted.id(), Millis(granted.ttl().unsigned_abs() * 1000)))
    };
    Ok(shard.servers.call(limit, grant).await?.value)
}

/// Registers, unless that has been done with this lease, and reads in the same moment.
pub(super) async fn register(
    shard: &Shard,
    key: &str,
    json: String,
    lease: i64,
    limit: Millis,
) -> Result<Reading, Failure> {
    let absent = Compare::create_revision(key, CompareOp::Equal, 0);
    let put = TxnOp::put(key, json, Some(PutOptions::new().with_lease(lease)));
    let [state, election] = gets(&shard.keys);
    let txn = Txn::new().when([absent]).and_then([put, state, election]).or_else(gets(&shard.keys));
    let work = |mut client: Client| {
        let txn = txn.clone();
        async move { Reading::new(&client.txn(txn).await?) }
    };
    let registered = shard.servers.call(limit, work).await;
    Ok(registered.map_err(|failure| failure.of("written", key, &shard.keys))?.value)
}

/// Asks the leader to extend the lease; whether it is alive. That the answer is worth something is
/// for the caller to see to, by a read.
pub(super) async fn keep_alive(client: &mut Client, lease: i64) -> Result<bool, Failure> {
    match client.lease_keep_alive(lease).await.map_err(Failure::from) {
        Ok(_) => Ok(true),
        Err(failure) if failure.is_lease_gone() => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Ends a lease, and with it the registration. One that is gone already is no failure.
pub(super) async fn revoke(shard: &Shard, lease: i64) -> Result<(), Failure> {
    let revoke = |mut client: Client| async move {
        match client.lease_revoke(lease).await.map_err(Failure::from) {
            Err(failure) if !failure.is_lease_gone() => Err(failure),
            _ => Ok(()),
        }
    };
    let revoked = shard.servers.call(shard.limit, revoke).await;
    let keys = &shard.keys;
    revoked.map_err(|failure| failure.of("deleted", keys.election(), keys))?;
    Ok(())
}
