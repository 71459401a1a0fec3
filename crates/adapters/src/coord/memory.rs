//! Coordination inside one process: the model that the other backends are measured by, and what
//! tests run on.
//!
//! A [`MemoryService`] is the service of one shard and the hand that breaks it; each
//! [`MemoryCoord`] is one client of it. Time is the boot clock, as everywhere.

use super::follow::{self, Beat, Member, Seen, Session, Source};
use super::mailbox::{self, mailbox};
use super::{
    CoordError, CoordEvent, Coordination, HistoryEntry, Membership, PutOutcome, Registration,
    StoredState, Version, View, Watch,
};
use crate::clock;
use async_trait::async_trait;
use cluster::{ClusterState, Millis, Monotonic, PeerId, PeerIdent};
use jiff::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The service of one shard, and what a test may do to it. Clones are the same service.
#[derive(Debug, Clone)]
pub struct MemoryService {
    shared: Arc<Shared>,
}

/// What becomes of a put whose answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostPut {
    /// It is stored all the same, if it does not conflict.
    Stored,
    /// It never arrived.
    NotStored,
}

/// A request that the service did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Lost {
    #[error("the service cannot be reached")]
    Cut,
    #[error("the answer was lost")]
    Answer,
    #[error("a session needs a timeout of at least 1 ms")]
    NoTimeout,
}

#[derive(Debug)]
struct Shared {
    name: String,
    model: Mutex<Model>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Model {
    last_sequence: u64,
    sessions: Vec<Session>,
    history: Vec<HistoryEntry>,
    cut: bool,
    lost_put: Option<LostPut>,
}

impl Model {
    /// What is there now; the dead are taken away by whoever comes first.
    fn seen(&mut self) -> Seen {
        let now = clock::now();
        self.sessions.retain(|session| now < session.deadline);
        Seen { incarnation: 0, state: self.state(), sessions: self.sessions.clone() }
    }

    fn state(&self) -> Option<StoredState> {
        self.history
            .last()
            .map(|last| StoredState { version: self.version(), json: last.json.clone() })
    }

    fn version(&self) -> Version {
        Version(i64::try_from(self.history.len()).expect("fewer writes than memory"))
    }

    /// Whether it was stored.
    fn put(&mut self, expected: Option<Version>, state: &ClusterState) -> bool {
        let stored = (!self.history.is_empty()).then(|| self.version());
        let matches = stored == expected;
        if matches {
            self.history.push(HistoryEntry {
                sequence: self.version().0.unsigned_abs() + 1,
                time: Timestamp::now(),
                generation: state.generation,
                json: state.to_json(),
            });
        }
        matches
    }
}

impl MemoryService {
    /// The service of a shard that nobody has set up yet.
    pub fn new(shard: &str) -> Self {
        let shared = Shared {
            name: shard.to_owned(),
            model: Mutex::default(),
            changes: watch::Sender::new(()),
        };
        MemoryService { shared: Arc::new(shared) }
    }

    /// Another client, with a line of its own to the service.
    pub fn client(&self) -> MemoryCoord {
        MemoryCoord { line: Line { shared: Arc::clone(&self.shared), cut: Arc::default() } }
    }

    /// Ends all sessions of this peer now, as if their timeouts had passed. How many there were.
    pub fn expire(&self, peer: &PeerId) -> usize {
        let mut model = self.shared.model();
        let before = model.sessions.len();
        model.sessions.retain(|session| session.registration.peer.id != *peer);
        let ended = before - model.sessions.len();
        drop(model);
        self.shared.changes.send_replace(());
        ended
    }

    /// Loses the answer to the next put, whoever makes it.
    pub fn lose_next_put(&self, fate: LostPut) {
        self.shared.model().lost_put = Some(fate);
    }

    /// Whether anybody can reach the service. Sessions run out meanwhile.
    pub fn set_reachable(&self, reachable: bool) {
        self.shared.model().cut = !reachable;
        self.shared.changes.send_replace(());
    }
}

/// One client of a [`MemoryService`].
#[derive(Debug, Clone)]
pub struct MemoryCoord {
    line: Line,
}

impl MemoryCoord {
    /// Whether this client can reach the service; its clones and memberships share its fate.
    pub fn set_reachable(&self, reachable: bool) {
        self.line.cut.store(!reachable, Ordering::SeqCst);
        self.line.shared.changes.send_replace(());
    }
}

/// A client's way to the service.
#[derive(Debug, Clone)]
struct Line {
    shared: Arc<Shared>,
    cut: Arc<AtomicBool>,
}

impl Shared {
    /// No code panics while it holds the lock, so a poisoned lock still guards a sound model.
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn target(&self) -> String {
        format!("memory: (shard {})", self.shared.name)
    }

    fn error(&self, operation: &'static str, cause: Lost) -> CoordError {
        CoordError { target: self.target(), operation, cause: cause.into() }
    }

    fn reach(&self, operation: &'static str) -> Result<MutexGuard<'_, Model>, CoordError> {
        let model = self.shared.model();
        if model.cut || self.cut.load(Ordering::SeqCst) {
            Err(self.error(operation, Lost::Cut))
        } else {
            Ok(model)
        }
    }

    fn source(&self) -> MemorySource {
        MemorySource { line: self.clone(), changes: self.shared.changes.subscribe() }
    }
}

#[async_trait]
impl Coordination for MemoryCoord {
    fn target(&self) -> String {
        self.line.target()
    }

    async fn join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, CoordError> {
        if timeout.0 == 0 {
            return Err(self.line.error("join", Lost::NoTimeout));
        }
        let source = self.line.source();
        let (member, first) = {
            let mut model = self.line.reach("join")?;
            model.last_sequence += 1;
            let (sequence, deadline) = (model.last_sequence, clock::now() + timeout);
            model.sessions.push(Session {
                registration: Registration { sequence, peer: peer.clone() },
                deadline,
            });
            let member = Member { sequence, timeout, deadline };
            (member, model.seen())
        };
        self.line.shared.changes.send_replace(());
        let (outbox, inbox) = mailbox();
        follow::spawn(source, outbox, first, Some(member));
        Ok(Box::new(MemoryMembership { line: self.line.clone(), sequence: member.sequence, inbox }))
    }

    async fn watch(&self) -> Result<Watch, CoordError> {
        let source = self.line.source();
        let first = self.line.reach("watch")?.seen();
        let (outbox, inbox) = mailbox();
        follow::spawn(source, outbox, first, None);
        Ok(inbox.into_channel())
    }

    async fn read(&self) -> Result<View, CoordError> {
        Ok(self.line.reach("read")?.seen().into())
    }

    async fn put(&self, expected: Option<Version>, state: &ClusterState) -> PutOutcome {
        let (stored, version, lost) = {
            let mut model = match self.line.reach("put") {
                Ok(model) => model,
                Err(error) => return PutOutcome::Unknown(error),
            };
            let lost = model.lost_put.take();
            let stored = lost != Some(LostPut::NotStored) && model.put(expected, state);
            (stored, model.version(), lost)
        };
        if stored {
            self.line.shared.changes.send_replace(());
        }
        match (lost, stored) {
            (Some(_), _) => PutOutcome::Unknown(self.line.error("put", Lost::Answer)),
            (None, true) => PutOutcome::Committed(version),
            (None, false) => PutOutcome::Conflict,
        }
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, CoordError> {
        Ok(self.line.reach("history")?.history.clone())
    }
}

struct MemoryMembership {
    line: Line,
    sequence: u64,
    inbox: mailbox::Receiver,
}

#[async_trait]
impl Membership for MemoryMembership {
    async fn next(&mut self) -> Option<CoordEvent> {
        self.inbox.next().await
    }

    async fn leave(self: Box<Self>) -> Result<(), CoordError> {
        let MemoryMembership { line, sequence, inbox } = *self;
        // The heartbeats end first, so that there is nobody left to be told of an expiry.
        drop(inbox);
        line.forget(sequence)
    }
}

impl Line {
    fn forget(&self, sequence: u64) -> Result<(), CoordError> {
        self.reach("leave")?.sessions.retain(|session| session.registration.sequence != sequence);
        self.shared.changes.send_replace(());
        Ok(())
    }
}

struct MemorySource {
    line: Line,
    changes: watch::Receiver<()>,
}

#[async_trait]
impl Source for MemorySource {
    async fn look(&mut self, _limit: Millis) -> Result<Seen, CoordError> {
        Ok(self.line.reach("look")?.seen())
    }

    async fn beat(
        &mut self,
        sequence: u64,
        deadline: Monotonic,
        _limit: Millis,
    ) -> Result<Beat, CoordError> {
        let mut model = self.line.reach("heartbeat")?;
        let now = clock::now();
        let own = model
            .sessions
            .iter_mut()
            .find(|session| session.registration.sequence == sequence && now < session.deadline);
        match own {
            None => Ok(Beat::Gone),
            Some(session) => {
                session.deadline = deadline;
                Ok(Beat::Alive(model.seen()))
            }
        }
    }

    async fn forget(&mut self, sequence: u64) -> Result<(), CoordError> {
        self.line.forget(sequence)
    }

    async fn changed(&mut self) {
        // It ends only with the service, which `line` holds.
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Reads on until this event, which is neither of the kinds that carry what is there.
    async fn until(member: &mut Box<dyn Membership>, wanted: fn(&CoordEvent) -> bool) {
        let reading = async {
            while let Some(event) = member.next().await {
                if wanted(&event) {
                    return;
                }
            }
            panic!("ended before the event came");
        };
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("the event in time");
    }

    /// The hand that breaks the service takes one peer's session and leaves the other's.
    #[tokio::test]
    async fn a_session_can_be_expired_at_will() {
        let service = MemoryService::new("1.example");
        let coord = service.client();
        let peer = |ip| PeerIdent::new(ip, 5432, 12345, "zone");
        let (one, two) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let long = Millis(60_000);
        let mut member = coord.join(&one, long).await.expect("to join");
        let _other = coord.join(&two, long).await.expect("to join");
        assert_eq!(service.expire(&one.id), 1);
        assert_eq!(service.expire(&one.id), 0);
        until(&mut member, |event| *event == CoordEvent::Expired).await;
        let active = coord.read().await.expect("to read").active;
        assert_eq!(active.len(), 1);
        assert_eq!(active[0].peer, two);
    }

    /// One client's line can be cut, or everybody's.
    #[tokio::test]
    async fn a_cut_is_of_one_client_or_of_the_service() {
        let service = MemoryService::new("1.example");
        let (here, there) = (service.client(), service.client());
        here.set_reachable(false);
        assert!(here.read().await.is_err());
        assert!(there.read().await.is_ok());
        here.set_reachable(true);
        service.set_reachable(false);
        assert!(here.read().await.is_err());
        assert!(there.read().await.is_err());
        service.set_reachable(true);
        assert!(here.read().await.is_ok());
    }
}
