//! Following a shard in one session: a task that looks when a watch fires, beats, and tells its
//! reader.
//!
//! Contract: this task alone turns what it saw into [`CoordEvent`]s and keeps their promises.
//!
//! - *Nothing is lost between watches.* Each read sets the watch that tells of the next change, in
//!   one request. The client sets watches again when it connects anew, from the last change that
//!   it has seen, so that a change in between fires them.
//! - *A heartbeat is a `sync`*: the leader answers it behind everything that it has committed; the
//!   answer comes after the notices of all watches that these changes fire, and not at all when the
//!   session's end is among them. So when it is there, and what fired has been read again, the reader knows
//!   every change that was committed before the heartbeat was sent. When that is told as
//!   `Confirmed` is [`Proofs`]' part.
//! - *Nothing waits in the client's queue*: while the connection is down nothing is asked.
//! - *Our own clock ends the session*, a timeout after the last answered heartbeat was sent: a
//!   client that is cut off hears of its end only when it is connected again.

use super::calls::{self, RawChild, Unreadables};
use super::failure::Failure;
use super::layout::Layout;
use super::link::{End, Link};
use super::proofs::Proofs;
use crate::clock;
use crate::coord::follow::describe;
use crate::coord::mailbox::Sender;
use crate::coord::{CoordEvent, Registration, StoredState};
use cluster::{Millis, Monotonic};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::time::Duration;
use zookeeper_client::{Client, Error, OneshotWatcher, SessionState, StateWatcher};

/// How soon what failed on a live connection is tried again.
const RETRY: Millis = Millis(200);

/// The runtime's timers stand still while the machine is suspended, deadlines do not: look at the
/// clock at least this often.
const LONGEST_SLEEP: Millis = Millis(1000);

/// What a follower needs to know of its shard.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    pub(super) link: Link,
    pub(super) layout: Layout,
    pub(super) unreadables: Unreadables,
}

/// Our own registration.
#[derive(Debug)]
pub(super) struct Member {
    /// The name of its node.
    name: String,
    timeout: Millis,
    /// By how much the timeout is shorter than the one that was asked for.
    shorter: Millis,
    proofs: Proofs,
    next_beat: Monotonic,
    /// By our clock the session is dead from this moment on, unless it is heard of before.
    deadline: Monotonic,
}

impl Member {
    /// Of a session with this timeout, which was asked for at `since`.
    pub(super) fn new(name: String, timeout: Millis, since: Monotonic, shorter: Millis) -> Self {
        let (proofs, next_beat) = (Proofs::new(timeout), clock::now());
        Member { name, timeout, shorter, proofs, next_beat, deadline: since + timeout }
    }

    /// A tenth of the timeout: often enough that the latest proof, which lags by up to half a tick,
    /// is never older than two fifths of the timeout; and that the client has no need of pings.
    fn interval(&self) -> Millis {
        Millis((self.timeout.0 / 10).max(1))
    }
}

/// Which read a watch belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    State,
    Election,
}

/// What a look has found, as far as it was not known.
#[derive(Default)]
pub(super) struct Looked {
    state: Option<(Option<StoredState>, OneshotWatcher)>,
    election: Option<(Vec<RawChild>, OneshotWatcher)>,
}

/// Reads what is asked for, and has what comes next told.
async fn look(
    client: Client,
    shard: Shard,
    state: bool,
    election: bool,
) -> Result<Looked, Failure> {
    let mut looked = Looked::default();
    if state {
        looked.state = Some(calls::watched_state(&client, &shard.layout).await?);
    }
    if election {
        let (names, watcher) = calls::watched_election(&client, &shard.layout).await?;
        let children = calls::read_children(&client, &shard.layout.election, names).await?;
        looked.election = Some((children, watcher));
    }
    Ok(looked)
}

/// Everything there is, for the first time.
pub(super) async fn first_look(client: &Client, shard: &Shard) -> Result<Looked, Failure> {
    look(client.clone(), shard.clone(), true, true).await
}

/// Why following in this session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Nobody reads any more.
    Unread,
    /// The session, or our registration in it, is gone.
    Expired,
}

/// Keeps a member's session and tells everything that follows; ends with the session or its reader.
/// `asked` is when that session was asked for.
pub(super) fn spawn_member(
    shard: Shard,
    client: Client,
    outbox: Sender,
    first: Looked,
    member: Member,
    asked: Monotonic,
) {
    let confirmed = Monotonic(asked.0.saturating_sub(member.shorter.0));
    let mut follower = Follower::new(shard, client, outbox, Told::default(), Some(member));
    let missing = follower.take(first).is_err();
    follower.outbox.push(CoordEvent::Confirmed { sent: confirmed });
    tokio::spawn(async move {
        let over = if missing { Over::Expired } else { follower.run().await };
        if over == Over::Expired {
            follower.outbox.push(CoordEvent::Expired);
        }
    });
}

/// Tells everything that follows until the reader is gone, in one session after the other.
pub(super) fn spawn_watcher(shard: Shard, client: Client, outbox: Sender, first: Looked) {
    tokio::spawn(async move {
        let mut follower = Follower::new(shard.clone(), client, outbox, Told::default(), None);
        let mut looked = Some(first);
        loop {
            if let Some(first) = looked.take() {
                // Only a member can miss its own.
                let _ = follower.take(first);
            }
            if follower.run().await == Over::Unread {
                return;
            }
            let Follower { outbox, told, .. } = follower;
            let Some((client, first)) = reopen(&shard, &outbox).await else { return };
            follower = Follower::new(shard.clone(), client, outbox, told, None);
            looked = Some(first);
        }
    });
}

/// Another session in the place of one that expired; `None` when nobody reads any more.
async fn reopen(shard: &Shard, outbox: &Sender) -> Option<(Client, Looked)> {
    loop {
        let attempt = async {
            let client = shard.link.open(shard.link.limit, End::WithClient).await?;
            let limit = Duration::from_millis(shard.link.limit.0);
            match tokio::time::timeout(limit, first_look(&client, shard)).await {
                Ok(looked) => Ok((client, looked?)),
                Err(_) => Err(Failure::TimedOut(shard.link.limit.0)),
            }
        };
        tokio::select! {
            () = outbox.closed() => return None,
            result = attempt => match result {
                Ok(opened) => return Some(opened),
                Err(failure) => outbox.push(CoordEvent::Unreachable(describe(&failure))),
            }
        }
        tokio::select! {
            () = outbox.closed() => return None,
            () = tokio::time::sleep(Duration::from_millis(RETRY.0)) => {}
        }
    }
}

struct Follower {
    shard: Shard,
    client: Client,
    states: StateWatcher,
    outbox: Sender,
    told: Told,
    member: Option<Member>,
    watches: FuturesUnordered<BoxFuture<'static, Kind>>,
    /// Which reads have a watch that has not fired.
    armed: (bool, bool),
    /// The heartbeat that waits for its answer, and when it was sent.
    beat: Option<(Monotonic, BoxFuture<'static, Result<(), Error>>)>,
    /// What is to be told as confirmed once everything that fired has been read again.
    confirm: Option<Monotonic>,
    look_at: Monotonic,
}

/// What the reader knows already.
#[derive(Default)]
struct Told {
    state: Option<Option<StoredState>>,
    active: Option<Vec<Registration>>,
    unreachable: Option<String>,
}

impl Follower {
    fn new(
        shard: Shard,
        client: Client,
        outbox: Sender,
        told: Told,
        member: Option<Member>,
    ) -> Self {
        Follower {
            shard,
            states: client.state_watcher(),
            client,
            outbox,
            told,
            member,
            watches: FuturesUnordered::new(),
            armed: (false, false),
            beat: None,
            confirm: None,
            look_at: Monotonic(0),
        }
    }

    fn is_connected(&self) -> bool {
        self.client.state() == SessionState::SyncConnected
    }

    async fn run(&mut self) -> Over {
        if let Err(over) = self.turn(self.client.state()) {
            return over;
        }
        loop {
            let done = match self.is_stale() {
                true => self.look().await,
                false => self.wait().await,
            };
            if let Err(over) = done {
                return over;
            }
            self.confirm_if_known();
            self.beat_if_due();
        }
    }

    /// Whether something has changed that has not been read again, and can be now.
    fn is_stale(&self) -> bool {
        self.armed != (true, true) && self.is_connected() && clock::now() >= self.look_at
    }

    /// Waits for whatever comes first.
    async fn wait(&mut self) -> Result<(), Over> {
        let pause = self.pause();
        tokio::select! {
            biased;
            () = self.outbox.closed() => return Err(Over::Unread),
            state = self.states.changed() => return self.turn(state),
            Some(kind) = self.watches.next(), if !self.watches.is_empty() => self.disarm(kind),
            result = answer(&mut self.beat), if self.beat.is_some() => self.take_beat(result),
            () = tokio::time::sleep(Duration::from_millis(pause.0.max(1))) => {}
        }
        self.check_deadline()
    }

    /// Until the next moment at which something is to be done.
    fn pause(&self) -> Millis {
        let look = (self.armed != (true, true) && self.is_connected()).then_some(self.look_at);
        let beat = self.member.as_ref().filter(|_| self.beat.is_none() && self.is_connected());
        let beat = beat.map(|member| member.next_beat);
        let end = self.member.as_ref().map(|member| member.deadline);
        let now = clock::now();
        let next = [look, beat, end].into_iter().flatten().min();
        next.map_or(LONGEST_SLEEP, |next| next - now).min(LONGEST_SLEEP)
    }

    fn check_deadline(&self) -> Result<(), Over> {
        match &self.member {
            Some(member) if clock::now() >= member.deadline => Err(Over::Expired),
            _ => Ok(()),
        }
    }

    /// The connection went or came.
    fn turn(&mut self, state: SessionState) -> Result<(), Over> {
        match state {
            SessionState::SyncConnected => {
                // The proof that is missing since the connection went is wanted at once.
                if let Some(member) = &mut self.member {
                    member.next_beat = clock::now();
                }
                self.look_at = Monotonic(0);
                self.check_deadline()
            }
            SessionState::Disconnected | SessionState::ConnectedReadOnly => {
                let servers = self.shard.link.servers();
                self.fail(format!(
                    "the connection to ZooKeeper ({servers}) was lost; trying again"
                ));
                self.check_deadline()
            }
            SessionState::AuthFailed => {
                self.fail("the servers refused the credentials".to_owned());
                Err(Over::Expired)
            }
            _ => Err(Over::Expired),
        }
    }

    fn disarm(&mut self, kind: Kind) {
        match kind {
            Kind::State => self.armed.0 = false,
            Kind::Election => self.armed.1 = false,
        }
    }

    /// Reads what may have changed; given up when the connection goes, the session is dead by our
    /// clock, or nobody reads any more.
    async fn look(&mut self) -> Result<(), Over> {
        let (state, election) = (!self.armed.0, !self.armed.1);
        let looking = look(self.client.clone(), self.shard.clone(), state, election);
        let limit = self.member.as_ref().map_or(self.shard.link.limit, |member| {
            (member.deadline - clock::now()).min(self.shard.link.limit)
        });
        let result = tokio::select! {
            biased;
            () = self.outbox.closed() => return Err(Over::Unread),
            state = self.states.changed() => return self.turn(state),
            result = tokio::time::timeout(Duration::from_millis(limit.0), looking) => result,
        };
        match result {
            Ok(Ok(looked)) => self.take(looked)?,
            Ok(Err(failure)) => {
                self.look_at = clock::now() + RETRY;
                self.fail(describe(&failure));
            }
            Err(_) => {
                self.look_at = clock::now() + RETRY;
                self.fail(Failure::TimedOut(limit.0).to_string());
            }
        }
        self.check_deadline()
    }

    fn take(&mut self, looked: Looked) -> Result<(), Over> {
        self.told.unreachable = None;
        if let Some((state, watcher)) = looked.state {
            self.arm(Kind::State, watcher);
            if self.told.state.as_ref() != Some(&state) {
                self.told.state = Some(state.clone());
                self.outbox.push(CoordEvent::State(state));
            }
        }
        if let Some((children, watcher)) = looked.election {
            self.arm(Kind::Election, watcher);
            let link = &self.shard.link;
            let active = calls::registrations(&link.target, &self.shard.unreadables, &children);
            if self.told.active.as_ref() != Some(&active) {
                self.told.active = Some(active.clone());
                self.outbox.push(CoordEvent::Active(active));
            }
            if let Some(member) = &self.member
                && !children.iter().any(|child| child.name == member.name)
            {
                return Err(Over::Expired);
            }
        }
        Ok(())
    }

    fn arm(&mut self, kind: Kind, watcher: OneshotWatcher) {
        match kind {
            Kind::State => self.armed.0 = true,
            Kind::Election => self.armed.1 = true,
        }
        self.watches.push(watcher.changed().map(move |_| kind).boxed());
    }

    fn beat_if_due(&mut self) {
        let now = clock::now();
        let connected = self.is_connected();
        if let Some(member) = &mut self.member
            && self.beat.is_none()
            && connected
            && now >= member.next_beat
        {
            member.next_beat = now + member.interval();
            let (client, path) = (self.client.clone(), self.shard.layout.shard.clone());
            self.beat = Some((now, async move { client.sync(&path).await }.boxed()));
        }
    }

    fn take_beat(&mut self, result: Result<(), Error>) {
        let (Some((sent, _)), Some(member)) = (self.beat.take(), &mut self.member) else { return };
        if let Err(error) = result {
            member.next_beat = clock::now() + RETRY.min(member.interval());
            return self.fail(format!("a heartbeat failed: {error}"));
        }
        member.deadline = sent + member.timeout;
        if let Some(settled) = member.proofs.answered(sent, clock::now()) {
            // Whoever counts the timeout that was asked for from here on ends when this one ends.
            self.confirm = Some(Monotonic(settled.0.saturating_sub(member.shorter.0)));
        }
        // The notices of everything that came before the answer are here.
        while let Some(Some(kind)) = self.watches.next().now_or_never() {
            self.disarm(kind);
        }
    }

    /// Nothing that was committed before the heartbeat is still to be read.
    fn confirm_if_known(&mut self) {
        if self.armed == (true, true)
            && let Some(sent) = self.confirm.take()
        {
            self.told.unreachable = None;
            self.outbox.push(CoordEvent::Confirmed { sent });
        }
    }

    fn fail(&mut self, reason: String) {
        if self.told.unreachable.as_ref() != Some(&reason) {
            self.told.unreachable = Some(reason.clone());
            self.outbox.push(CoordEvent::Unreachable(reason));
        }
    }
}

async fn answer(
    beat: &mut Option<(Monotonic, BoxFuture<'static, Result<(), Error>>)>,
) -> Result<(), Error> {
    match beat {
        Some((_, answer)) => answer.await,
        None => std::future::pending().await,
    }
}
