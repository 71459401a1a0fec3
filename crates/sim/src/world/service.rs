//! The coordination service: sessions that expire by its own clock, registrations in order, and the
//! one state with its version and history. Everything that ever was visible is kept by number, so
//! that a reader can be shown what was true a while ago.

use super::Peer;
use cluster::{ClusterState, PeerIdent, StateSeen, Version};
use std::sync::Arc;

/// A number that is given to a session, never twice.
pub type SessionId = u32;

/// A stored state.
pub type Stored = (Version, Arc<ClusterState>);

/// What the service showed at one moment.
#[derive(Debug, Clone, Hash)]
pub struct Shown {
    /// The stored state.
    pub state: Option<Stored>,
    /// The peers with live sessions, in the order of their registrations.
    pub active: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    id: SessionId,
    peer: usize,
    deadline: u64,
}

/// The service.
#[derive(Debug, Clone, Hash)]
pub struct Service {
    timeout: u64,
    sessions: Vec<Session>,
    opened: SessionId,
    shown: Vec<Shown>,
}

impl Service {
    pub(super) fn new(timeout: u64) -> Self {
        let shown = vec![Shown { state: None, active: Vec::new() }];
        Service { timeout, sessions: Vec::new(), opened: 0, shown }
    }

    /// The number of what is shown now.
    pub fn newest(&self) -> usize {
        self.shown.len() - 1
    }

    /// What was shown then.
    pub fn shown(&self, number: usize) -> &Shown {
        &self.shown[number]
    }

    /// The stored state.
    pub fn state(&self) -> Option<&Stored> {
        self.shown[self.newest()].state.as_ref()
    }

    /// The stored cluster state.
    pub fn cluster(&self) -> Option<&ClusterState> {
        self.state().map(|(_, state)| state.as_ref())
    }

    pub(super) fn is_alive(&self, id: SessionId) -> bool {
        self.sessions.iter().any(|session| session.id == id)
    }

    /// Whether the peer holds a live session.
    pub fn is_active(&self, peer: usize) -> bool {
        self.sessions.iter().any(|session| session.peer == peer)
    }

    fn show_sessions(&mut self) {
        let active = self.sessions.iter().map(|session| session.peer).collect();
        let state = self.state().cloned();
        self.shown.push(Shown { state, active });
    }

    /// Opens a session with a registration at the end.
    pub(super) fn open(&mut self, peer: usize, now: u64) -> SessionId {
        self.opened += 1;
        let (id, deadline) = (self.opened, now + self.timeout);
        self.sessions.push(Session { id, peer, deadline });
        self.show_sessions();
        id
    }

    /// A heartbeat: whether the session is alive.
    pub(super) fn beat(&mut self, id: SessionId, now: u64) -> bool {
        let deadline = now + self.timeout;
        let session = self.sessions.iter_mut().find(|session| session.id == id);
        session.map(|session| session.deadline = deadline).is_some()
    }

    /// Ends a session; whether there was one.
    pub(super) fn close(&mut self, id: SessionId) -> bool {
        let before = self.sessions.len();
        self.sessions.retain(|session| session.id != id);
        let closed = self.sessions.len() < before;
        if closed {
            self.show_sessions();
        }
        closed
    }

    /// Ends every session of a peer.
    pub(super) fn close_all_of(&mut self, peer: usize) -> bool {
        let ids: Vec<_> =
            self.sessions.iter().filter(|one| one.peer == peer).map(|one| one.id).collect();
        let before = self.sessions.len();
        for id in ids {
            self.close(id);
        }
        self.sessions.len() < before
    }

    /// Ends the session if its time has come; else says when to look again.
    pub(super) fn expire(&mut self, id: SessionId, now: u64) -> Result<bool, u64> {
        match self.sessions.iter().find(|session| session.id == id) {
            None => Ok(false),
            Some(session) if session.deadline > now => Err(session.deadline),
            Some(_) => Ok(self.close(id)),
        }
    }

    /// Stores a state if the version is the expected one.
    pub(super) fn put(
        &mut self,
        expected: Option<Version>,
        state: ClusterState,
    ) -> Option<Version> {
        let present = self.state().map(|(version, _)| *version);
        if present != expected {
            return None;
        }
        let version = Version(present.map_or(0, |version| version.0 + 1));
        let active = self.shown[self.newest()].active.clone();
        self.shown.push(Shown { state: Some((version, Arc::new(state))), active });
        Some(version)
    }
}

impl Shown {
    /// The state as the machine takes it.
    pub(super) fn seen(&self) -> Option<StateSeen> {
        self.state.as_ref().map(|(version, state)| StateSeen {
            version: *version,
            state: Ok(ClusterState::clone(state)),
        })
    }

    /// The registrations as the machine takes them.
    pub(super) fn registered(&self, peers: &[Peer]) -> Vec<PeerIdent> {
        self.active.iter().map(|&index| peers[index].ident.clone()).collect()
    }
}
