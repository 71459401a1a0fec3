//! Following a service that has to be asked: one task for each member or watcher, which beats,
//! looks when something changed, and tells its reader.
//!
//! Contract: this task alone turns what it saw into [`CoordEvent`]s and keeps their promises. It
//! never polls for a deadline: it sleeps until the next one, or until the source reports a change.
//! A slow [`SAFETY_LOOK`] covers a report that never came (its sender died just after its commit).
//!
//! A member is told that somebody is gone only together with the proof that it is not gone itself. A
//! store that takes no heartbeats lets every session run out, one a moment before the other: whoever
//! acted on the first one's end would act on nothing but the outage.

use super::mailbox::Sender;
use super::{CoordError, CoordEvent, Registration, StoredState, View};
use crate::clock;
use async_trait::async_trait;
use cluster::{Millis, Monotonic};
use std::time::Duration;

/// How long a lost report of a change stays unnoticed at most. Once a second is far below what
/// anybody waits for by hand and costs about a ten-thousandth of a processor.
const SAFETY_LOOK: Millis = Millis(1000);

/// How soon a failed look is tried again; a failed heartbeat sooner when its session is short.
const RETRY: Millis = Millis(200);

/// A live session as it stands at the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) registration: Registration,
    /// It is dead from this moment on unless it beats before.
    pub(super) deadline: Monotonic,
}

/// What the service held at one moment.
#[derive(Debug)]
pub(super) struct Seen {
    /// Changes when the store behind the service was opened anew: it may be another one now.
    pub(super) incarnation: u64,
    pub(super) state: Option<StoredState>,
    /// Those alive at that moment, in order.
    pub(super) sessions: Vec<Session>,
}

impl From<Seen> for View {
    fn from(seen: Seen) -> View {
        let registrations = seen.sessions.into_iter();
        View {
            state: seen.state,
            active: registrations.map(|session| session.registration).collect(),
        }
    }
}

impl Seen {
    fn holds(&self, sequence: u64) -> bool {
        self.sessions.iter().any(|session| session.registration.sequence == sequence)
    }
}

/// How a heartbeat was answered.
#[derive(Debug)]
pub(super) enum Beat {
    /// The session lives until the deadline that was asked for; and what was there in that moment.
    Alive(Seen),
    /// The session is dead.
    Gone,
}

/// A service that can be asked. Each question ends within the limit and the backend's own.
#[async_trait]
pub(super) trait Source: Send {
    /// What is there now.
    async fn look(&mut self, limit: Millis) -> Result<Seen, CoordError>;

    /// Moves the deadline of a session that is still alive, and looks in the same moment.
    async fn beat(
        &mut self,
        sequence: u64,
        deadline: Monotonic,
        limit: Millis,
    ) -> Result<Beat, CoordError>;

    /// Takes a session away, as far as the service can be reached.
    async fn forget(&mut self, sequence: u64) -> Result<(), CoordError>;

    /// Returns when something may have changed; may never return. Cancel-safe.
    async fn changed(&mut self);
}

/// Our own session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) sequence: u64,
    pub(super) timeout: Millis,
    /// The last one that the service is known to have taken.
    pub(super) deadline: Monotonic,
}

impl Member {
    /// A third of the timeout: two beats may fail before the session does.
    fn interval(self) -> Millis {
        Millis((self.timeout.0 / 3).max(1))
    }

    fn retry(self) -> Millis {
        Millis((self.timeout.0 / 10).clamp(5, RETRY.0))
    }
}

/// Tells `first` and then everything that follows, until the reader is gone; keeps `member`'s
/// session alive meanwhile, if there is one, and ends with it.
pub(super) fn spawn(
    source: impl Source + 'static,
    outbox: Sender,
    first: Seen,
    member: Option<Member>,
) {
    let mut follower = Follower {
        source,
        outbox,
        told: Told::default(),
        member,
        next_beat: Monotonic(0),
        next_look: Monotonic(0),
        unreachable: None,
    };
    follower.tell(first);
    tokio::spawn(follower.run());
}

struct Follower<S> {
    source: S,
    outbox: Sender,
    told: Told,
    member: Option<Member>,
    next_beat: Monotonic,
    next_look: Monotonic,
    unreachable: Option<String>,
}

impl<S: Source> Follower<S> {
    async fn run(mut self) {
        loop {
            let now = clock::now();
            let ended = match self.member {
                // By our own clock and no answer of the service: it may be what hangs.
                Some(member) if now >= member.deadline => {
                    self.expire(member.sequence).await;
                    true
                }
                Some(member) if now >= self.next_beat => self.beat(member, now).await,
                _ => self.look(now).await,
            };
            if ended {
                return;
            }
            let pause = self.next_wake() - clock::now();
            tokio::select! {
                () = self.outbox.closed() => return,
                () = self.source.changed() => {}
                // A timer that fires a little early must not turn this into a busy loop.
                () = tokio::time::sleep(Duration::from_millis(pause.0.max(1))) => {}
            }
        }
    }

    async fn expire(&mut self, sequence: u64) {
        self.outbox.push(CoordEvent::Expired);
        // A heartbeat that the service took without our knowing may hold the registration up for
        // one more timeout; it dies by itself then, if it cannot be taken away now.
        if let Err(error) = self.source.forget(sequence).await {
            let error = describe(&error);
            tracing::debug!(sequence, error, "an expired registration runs out by itself");
        }
    }

    async fn beat(&mut self, member: Member, sent: Monotonic) -> bool {
        let deadline = sent + member.timeout;
        let limit = member.deadline - sent;
        match self.source.beat(member.sequence, deadline, limit).await {
            Ok(Beat::Alive(seen)) => {
                self.member = Some(Member { deadline, ..member });
                self.next_beat = sent + member.interval();
                self.tell(seen);
                self.outbox.push(CoordEvent::Confirmed { sent });
                false
            }
            Ok(Beat::Gone) => {
                self.outbox.push(CoordEvent::Expired);
                true
            }
            Err(error) => {
                self.next_beat = clock::now() + member.retry();
                self.fail(&error);
                false
            }
        }
    }

    async fn look(&mut self, now: Monotonic) -> bool {
        let limit = self.member.map_or(Millis(u64::MAX), |member| member.deadline - now);
        match (self.source.look(limit).await, self.member) {
            (Ok(seen), Some(member)) if !seen.holds(member.sequence) => {
                self.outbox.push(CoordEvent::Expired);
                return true;
            }
            (Ok(seen), Some(member)) if self.told.misses(&seen) => {
                self.next_look = clock::now() + RETRY;
                return self.beat(member, clock::now()).await;
            }
            (Ok(seen), _) => self.tell(seen),
            (Err(error), _) => {
                self.next_look = clock::now() + RETRY;
                self.fail(&error);
            }
        }
        false
    }

    fn tell(&mut self, seen: Seen) {
        self.unreachable = None;
        self.next_look = clock::now() + SAFETY_LOOK;
        for event in self.told.news(seen) {
            self.outbox.push(event);
        }
    }

    fn fail(&mut self, error: &CoordError) {
        let reason = describe(error);
        if self.unreachable.as_ref() != Some(&reason) {
            self.unreachable = Some(reason.clone());
            self.outbox.push(CoordEvent::Unreachable(reason));
        }
    }

    /// The next moment at which something is to be done or somebody may have died.
    fn next_wake(&self) -> Monotonic {
        let own = self.member.map(|member| self.next_beat.min(member.deadline));
        // While the service does not answer, deadlines of others tell nothing.
        let others = self.told.next_deadline.filter(|_| self.unreachable.is_none());
        [Some(self.next_look), own, others].into_iter().flatten().min().unwrap_or(self.next_look)
    }
}

/// An error with all its causes, on one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// What the reader knows already.
#[derive(Default)]
struct Told {
    state: Option<Option<StoredState>>,
    active: Option<Vec<Registration>>,
    incarnation: u64,
    highest: u64,
    next_deadline: Option<Monotonic>,
}

impl Told {
    /// Whether somebody is not there any more who was there for the reader.
    fn misses(&self, seen: &Seen) -> bool {
        self.active.iter().flatten().any(|known| !seen.holds(known.sequence))
    }

    /// What the reader does not know yet.
    fn news(&mut self, mut seen: Seen) -> Vec<CoordEvent> {
        self.drop_resurrected(&mut seen);
        self.next_deadline = seen.sessions.iter().map(|session| session.deadline).min();
        let mut news = Vec::new();
        let View { state, active } = seen.into();
        if self.state.as_ref() != Some(&state) {
            self.state = Some(state.clone());
            news.push(CoordEvent::State(state));
        }
        if self.active.as_ref() != Some(&active) {
            self.active = Some(active.clone());
            news.push(CoordEvent::Active(active));
        }
        news
    }

    /// A heartbeat may pass its check in time and be committed only after its session's deadline.
    /// Its holder finds out and gives the session up; until then it would seem to be alive again
    /// to those who saw it dead. A new registration has a higher sequence than any before it, so
    /// one that is neither new nor was there the last time is such a dead one.
    fn drop_resurrected(&mut self, seen: &mut Seen) {
        if self.incarnation != seen.incarnation {
            *self = Told { incarnation: seen.incarnation, highest: 0, ..std::mem::take(self) };
        } else if let Some(active) = &self.active {
            let highest = self.highest;
            seen.sessions.retain(|session| {
                let sequence = session.registration.sequence;
                sequence > highest || active.iter().any(|known| known.sequence == sequence)
            });
        }
        let latest = seen.sessions.last();
        self.highest = self.highest.max(latest.map_or(0, |session| session.registration.sequence));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::Version;
    use cluster::PeerIdent;

    fn seen(incarnation: u64, version: i64, sequences: &[u64]) -> Seen {
        let session = |&sequence| Session {
            registration: Registration {
                sequence,
                peer: PeerIdent::new("10.0.0.1", 5432, 12345, "zone"),
            },
            deadline: Monotonic(1000 + sequence),
        };
        let json = String::new();
        Seen {
            incarnation,
            state: Some(StoredState { version: Version(version), json }),
            sessions: sequences.iter().map(session).collect(),
        }
    }

    /// What is told of a row of looks: `v` and the version for a state, the sequences for the
    /// active ones.
    fn check(looks: &[(u64, i64, &[u64])], expected: &[&str]) {
        let mut told = Told::default();
        let mut news = Vec::new();
        for &(incarnation, version, sequences) in looks {
            for event in told.news(seen(incarnation, version, sequences)) {
                news.push(match event {
                    CoordEvent::State(Some(state)) => format!("v{}", state.version.0),
                    CoordEvent::Active(active) => {
                        format!("{:?}", active.iter().map(|one| one.sequence).collect::<Vec<_>>())
                    }
                    other => format!("{other:?}"),
                });
            }
        }
        assert_eq!(news, expected, "of {looks:?}");
    }

    #[test]
    fn tells_everything_once_and_then_what_changed() {
        check(&[(0, 1, &[1, 2]), (0, 1, &[1, 2])], &["v1", "[1, 2]"]);
        check(&[(0, 1, &[1]), (0, 2, &[1])], &["v1", "[1]", "v2"]);
        check(&[(0, 1, &[1]), (0, 1, &[1, 2])], &["v1", "[1]", "[1, 2]"]);
    }

    #[test]
    fn who_is_dead_stays_dead() {
        let looks: [(u64, i64, &[u64]); 3] = [(0, 1, &[1, 2]), (0, 1, &[2]), (0, 1, &[1, 2])];
        check(&looks, &["v1", "[1, 2]", "[2]"]);
        let looks: [(u64, i64, &[u64]); 3] = [(0, 1, &[1]), (0, 1, &[]), (0, 1, &[1])];
        check(&looks, &["v1", "[1]", "[]"]);
        let looks: [(u64, i64, &[u64]); 3] = [(0, 1, &[]), (0, 1, &[7]), (0, 1, &[7, 8])];
        check(&looks, &["v1", "[]", "[7]", "[7, 8]"]);
    }

    #[test]
    fn another_store_counts_anew() {
        let looks: [(u64, i64, &[u64]); 2] = [(1, 9, &[8, 9]), (2, 1, &[1])];
        check(&looks, &["v9", "[8, 9]", "v1", "[1]"]);
    }

    #[test]
    fn wakes_at_the_first_deadline() {
        let mut told = Told::default();
        told.news(seen(0, 1, &[5, 3]));
        assert_eq!(told.next_deadline, Some(Monotonic(1003)));
    }
}
