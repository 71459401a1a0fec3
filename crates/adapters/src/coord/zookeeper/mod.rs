//! Coordination through ZooKeeper, in the original's layout, so that its tools and clients read a
//! shard of ours, and ours read a shard of theirs.
//!
//! - A registration is an ephemeral node in a session of its own ([`follow`]); every other call has
//!   a short session of its own ([`link`]), so that nothing waits behind a lost connection.
//! - The state is written by test-and-set, with its history entry in the same transaction.
//! - Only what ZooKeeper 3.4 knows is asked for, but for one thing: the client library creates nodes in
//!   transactions in the form of 3.5 (`create2`), and offers no other. An ensemble that is older can be
//!   joined, read and followed; a put is refused there.
//!
//! SPEC.md says what a heartbeat proves and what it does not.

mod address;
mod calls;
mod closing;
mod failure;
mod follow;
mod layout;
mod link;
mod predecessor;
mod proofs;

pub use address::{Address, AddressError};
pub use calls::RawChild;

use super::mailbox::{self, mailbox};
use super::{
    Access, CoordError, CoordEvent, Coordination, HistoryEntry, Membership, PutOutcome,
    StoredState, Version, View, Watch,
};
use crate::clock;
use async_trait::async_trait;
use calls::Unreadables;
use cluster::v1::V1Event;
use cluster::{ClusterState, Millis, PeerIdent};
use failure::Failure;
use follow::{Member, Shard};
use layout::Layout;
use link::{End, Link};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use zookeeper_client::{Client, CreateMode, Error};

/// The coordination of one shard in a ZooKeeper ensemble.
#[derive(Debug, Clone)]
pub struct ZkCoord {
    shard: Shard,
    session_file: Option<PathBuf>,
}

impl ZkCoord {
    /// Does not connect yet. Every call ends within `call_timeout`. In `session_file` is written
    /// down which session registered last, to take its registration over; whoever gives it holds a
    /// lock that allows for one sitter only.
    ///
    /// # Errors
    /// When files of certificates cannot be used.
    pub fn open(
        address: Address,
        access: &Access,
        call_timeout: Millis,
        session_file: Option<PathBuf>,
    ) -> Result<Self, CoordError> {
        let Address { servers, shard_path } = address;
        let (root, name) = shard_path.rsplit_once('/').unwrap_or(("", &shard_path));
        let target = format!("zk://{}{root} (shard {name})", servers.join(","));
        let layout = Layout::new(&shard_path);
        let link = Link::new(target.clone(), servers, access, call_timeout)
            .map_err(|failure| CoordError { target, operation: "open", cause: failure.into() })?;
        let shard = Shard { link, layout, unreadables: Unreadables::default() };
        Ok(ZkCoord { shard, session_file })
    }

    /// The children of `election` as they are stored, in the order of their numbers, those that are
    /// no registrations included (first, by name).
    ///
    /// # Errors
    /// When they cannot be read within the limit.
    pub async fn election(&self) -> Result<Vec<RawChild>, CoordError> {
        let layout = &self.shard.layout;
        let work = |client| async move { calls::children(&client, &layout.election).await };
        self.shard.link.ask("read of the election", work).await
    }

    /// The children of `history` as they are stored, those of the first version included, in the
    /// order of their numbers.
    ///
    /// # Errors
    /// When they cannot be read within the limit.
    pub async fn raw_history(&self) -> Result<Vec<RawChild>, CoordError> {
        let layout = &self.shard.layout;
        let work = |client| async move { calls::children(&client, &layout.history).await };
        self.shard.link.ask("history", work).await
    }

    /// The stored cluster state alone.
    ///
    /// # Errors
    /// When it cannot be read within the limit.
    pub async fn state(&self) -> Result<Option<StoredState>, CoordError> {
        let layout = &self.shard.layout;
        let work = |client| async move { calls::state(&client, layout).await };
        self.shard.link.ask("read", work).await
    }

    /// Whether there is a node at this absolute path.
    ///
    /// # Errors
    /// When that cannot be told within the limit.
    pub async fn exists(&self, path: &str) -> Result<bool, CoordError> {
        let work = |client: Client| async move {
            let stat = client.check_stat(path).await;
            Ok(stat.map_err(|error| Failure::node("read", path, error))?.is_some())
        };
        self.shard.link.ask("check", work).await
    }

    async fn try_join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, Failure> {
        if timeout.0 == 0 {
            return Err(Failure::NoTimeout);
        }
        let data = layout::registration_data(peer).map_err(Failure::Peer)?;
        let before = match &self.session_file {
            Some(path) => predecessor::read(path)?,
            None => None,
        };
        let Shard { link, layout, .. } = &self.shard;
        let asked = clock::now();
        let client = link.open(timeout, End::ByExpiry).await?;
        let granted = Millis(client.session_timeout().as_millis().try_into().unwrap_or(timeout.0));
        if let Some(path) = &self.session_file {
            predecessor::write(path, client.session_id().0)?;
        }
        let name = self.register(&client, peer, &data).await?;
        if let Some(before) = before {
            self.bury(&client, peer, before).await?;
        }
        let first = follow::first_look(&client, &self.shard).await?;
        let (outbox, inbox) = mailbox();
        // A session that the ensemble grants for less than was asked lets its proofs end earlier.
        let shorter = Millis(timeout.0.saturating_sub(granted.0));
        if shorter.0 > 0 {
            let (asked, granted) = (timeout.0, granted.0);
            tracing::warn!(
                asked,
                granted,
                "the ensemble grants less than session_timeout (ms): see its maxSessionTimeout"
            );
        }
        let path = format!("{}/{name}", layout.election);
        let member = Member::new(name, granted, asked, shorter);
        follow::spawn_member(self.shard.clone(), client.clone(), outbox, first, member, asked);
        let mut closing = JoinSet::new();
        if link.has_credentials() {
            closing.spawn(closing::keep_trying(self.shard.clone()));
        }
        Ok(Box::new(ZkMembership { client, path, link: link.clone(), inbox, _closing: closing }))
    }

    /// Makes the node of our registration, at the end of the order. Its name.
    async fn register(
        &self,
        client: &Client,
        peer: &PeerIdent,
        data: &[u8],
    ) -> Result<String, Failure> {
        let Shard { link, layout, .. } = &self.shard;
        let prefix = format!("{}/{}-", layout.election, peer.id);
        let options = CreateMode::EphemeralSequential.with_acls(link.acls());
        let created = match client.create(&prefix, data, &options).await {
            Err(Error::NoNode) => {
                calls::make_path(client, &layout.election, link.acls()).await?;
                client.create(&prefix, data, &options).await
            }
            created => created,
        };
        let (_, sequence) =
            created.map_err(|error| Failure::node("written", &layout.election, error))?;
        Ok(format!("{}-{sequence}", peer.id))
    }

    /// Takes the registrations of this peer away that go with the session `before`.
    async fn bury(&self, client: &Client, peer: &PeerIdent, before: i64) -> Result<(), Failure> {
        let election = &self.shard.layout.election;
        for child in calls::children(client, election).await? {
            let ours = layout::numbered(&child.name).is_some_and(|(id, _)| id == peer.id.as_str());
            if !ours || child.owner != before || before == client.session_id().0 {
                continue;
            }
            let path = format!("{election}/{}", child.name);
            match client.delete(&path, None).await {
                Ok(()) => tracing::info!(path, "taken over from the sitter before this one"),
                Err(Error::NoNode) => {}
                Err(error) => return Err(Failure::node("deleted", &path, error)),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Coordination for ZkCoord {
    fn target(&self) -> String {
        self.shard.link.target.clone()
    }

    async fn join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, CoordError> {
        let link = &self.shard.link;
        let limit = Duration::from_millis(link.limit.0);
        match tokio::time::timeout(limit, self.try_join(peer, timeout)).await {
            Ok(joined) => joined,
            Err(_) => Err(Failure::TimedOut(link.limit.0)),
        }
        .map_err(|failure| link.error("join", failure))
    }

    async fn watch(&self) -> Result<Watch, CoordError> {
        let Shard { link, .. } = &self.shard;
        let work = |client: Client| async move {
            let first = follow::first_look(&client, &self.shard).await?;
            let (outbox, inbox) = mailbox();
            follow::spawn_watcher(self.shard.clone(), client, outbox, first);
            Ok(inbox.into_channel())
        };
        link.ask("watch", work).await
    }

    async fn read(&self) -> Result<View, CoordError> {
        let Shard { link, layout, unreadables } = &self.shard;
        let work = |client: Client| async move {
            let children = calls::children(&client, &layout.election).await?;
            let active = calls::registrations(&link.target, unreadables, &children);
            Ok(View { state: calls::state(&client, layout).await?, active })
        };
        link.ask("read", work).await
    }

    async fn put(&self, expected: Option<Version>, state: &ClusterState) -> PutOutcome {
        let (generation, json) = (state.generation, state.to_json());
        let Shard { link, layout, .. } = self.shard.clone();
        let acls = link.acls();
        let work = |client: Client| async move {
            calls::put(&client, &layout, acls, expected, (generation, &json)).await
        };
        match link.call("put", work).await {
            Ok(Some(version)) => PutOutcome::Committed(version),
            Ok(None) => PutOutcome::Conflict,
            Err(error) if error.cause.downcast_ref().is_some_and(Failure::is_refusal) => {
                PutOutcome::Refused(error)
            }
            Err(error) => PutOutcome::Unknown(error),
        }
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, CoordError> {
        let layout = &self.shard.layout;
        let work = |client: Client| async move { calls::history(&client, layout).await };
        self.shard.link.ask("history", work).await
    }

    async fn first_version_history(&self) -> Result<Vec<V1Event>, CoordError> {
        let children = self.raw_history().await?;
        Ok(children.iter().filter_map(|child| V1Event::parse(&child.name).ok()).collect())
    }
}

struct ZkMembership {
    client: Client,
    /// Of the node of our registration.
    path: String,
    link: Link,
    inbox: mailbox::Receiver,
    /// Ends with the membership.
    _closing: JoinSet<()>,
}

#[async_trait]
impl Membership for ZkMembership {
    async fn next(&mut self) -> Option<CoordEvent> {
        self.inbox.next().await
    }

    async fn leave(self: Box<Self>) -> Result<(), CoordError> {
        let ZkMembership { client, path, link, inbox, .. } = *self;
        let limit = Duration::from_millis(link.limit.0);
        let left = match tokio::time::timeout(limit, client.delete(&path, None)).await {
            Ok(Ok(()) | Err(Error::NoNode)) => Ok(()),
            Ok(Err(error)) => Err(Failure::node("deleted", &path, error)),
            Err(_) => Err(Failure::TimedOut(link.limit.0)),
        };
        // The session itself, in which nothing is left, is nobody's any more and expires.
        drop((inbox, client));
        left.map_err(|failure| link.error("leave", failure))
    }
}
