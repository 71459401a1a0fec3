//! A sitter's side of the coordination: joining, heartbeats, news, puts and reads, each of which may
//! be lost on its way there or back, or come late.

use super::{
    CALL_LIMIT, Happening, Put, SESSION_TIMEOUT, World, faults::PutFault, pace::Delay,
    service::SessionId,
};
use crate::{Mutation, checkers::Write};
use cluster::{ClusterState, Event, Millis, Monotonic, PutOutcome, StateSeen, Version};

/// How often a session beats, and how often it is tried when nothing is heard.
const BEAT: u64 = SESSION_TIMEOUT / 3;
const BEAT_RETRY: u64 = 500;

impl World {
    fn is_deaf(&self, peer: usize) -> bool {
        self.deaf & (1 << peer) != 0
    }

    fn is_mute(&self, peer: usize) -> bool {
        self.mute & (1 << peer) != 0
    }

    fn next_call(&mut self, peer: usize) -> u32 {
        let sitter = self.peers[peer].sitter.as_mut().expect("a sitter that calls");
        sitter.calls += 1;
        sitter.calls
    }

    fn clock(&self, peer: usize) -> Monotonic {
        self.peers[peer].clock.read(self.now)
    }

    pub(super) fn join(&mut self, peer: usize) {
        let (call, life, sent) = (self.next_call(peer), self.peers[peer].life, self.clock(peer));
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.joining = Some(call);
        }
        if !self.is_deaf(peer) {
            self.schedule(Delay::Message, Happening::JoinArrives { peer, life, call, sent });
        }
        self.schedule_in(CALL_LIMIT, Happening::JoinLimit { peer, life, call });
    }

    pub(super) fn join_arrives(&mut self, peer: usize, life: u32, call: u32, sent: Monotonic) {
        let session = self.service.open(peer, self.now);
        self.schedule_in(SESSION_TIMEOUT, Happening::SessionDue { session });
        self.spread();
        if !self.is_mute(peer) {
            let shown = self.lagging(0);
            let joined = Happening::Joined { peer, life, call, session, shown, sent };
            self.schedule(Delay::Message, joined);
        }
    }

    /// The number of what a reader sees who may be shown what was true a while ago.
    fn lagging(&mut self, at_least: usize) -> usize {
        let newest = self.service.newest();
        let behind =
            if self.setup.stale_reads { self.delays.below(8).saturating_sub(4) } else { 0 };
        newest.saturating_sub(usize::try_from(behind).unwrap_or(0)).max(at_least)
    }

    pub(super) fn joined(
        &mut self,
        peer: usize,
        life: u32,
        call: u32,
        session: SessionId,
        shown: usize,
        sent: Monotonic,
    ) {
        let Some(sitter) = self.sitter(peer, life) else { return };
        if sitter.joining != Some(call) {
            return;
        }
        sitter.joining = None;
        sitter.session = Some(session);
        sitter.leaving = false;
        sitter.confirmed = sent;
        sitter.delivered = shown;
        self.call_ended(peer);
        self.tell(peer, Event::Joined);
        let (state, active) = self.seen(shown);
        self.tell(peer, Event::State(state));
        self.tell(peer, Event::Active(active));
        self.schedule(Delay::Local, Happening::Beat { peer, session });
    }

    pub(super) fn join_limit(&mut self, peer: usize, life: u32, call: u32) {
        let Some(sitter) = self.sitter(peer, life) else { return };
        if sitter.joining == Some(call) {
            sitter.joining = None;
            self.call_ended(peer);
            self.tell(peer, Event::JoinFailed("no answer".to_owned()));
        }
    }

    fn seen(&self, shown: usize) -> (Option<StateSeen>, Vec<cluster::PeerIdent>) {
        let shown = self.service.shown(shown);
        let state = shown.seen().map(|seen| self.disguised(seen));
        (state, shown.registered(&self.peers))
    }

    /// Whether this sitter holds this session.
    fn holds(&self, peer: usize, session: SessionId) -> bool {
        self.peers[peer].sitter.as_ref().is_some_and(|sitter| sitter.session == Some(session))
    }

    pub(super) fn beat(&mut self, peer: usize, session: SessionId) {
        if !self.holds(peer, session) {
            return;
        }
        let sent = self.clock(peer);
        let confirmed = self.peers[peer].sitter.as_ref().expect("holds a session").confirmed;
        if self.setup.own_expiry && sent - confirmed >= Millis(SESSION_TIMEOUT) {
            self.lose_session(peer);
            return;
        }
        let cut = self.is_deaf(peer) || self.is_mute(peer);
        if !self.is_deaf(peer) {
            self.schedule(Delay::Message, Happening::BeatArrives { peer, session, sent });
        }
        let pause = if cut { BEAT_RETRY } else { BEAT };
        self.schedule_in(pause, Happening::Beat { peer, session });
    }

    /// Whether this peer holds a session that has ended, and does not know it yet.
    pub fn may_learn_of_expiry(&self, peer: usize) -> bool {
        let session = self.peers[peer].sitter.as_ref().and_then(|sitter| sitter.session);
        session.is_some_and(|session| !self.service.is_alive(session))
    }

    /// Lets it know.
    pub fn learn_of_expiry(&mut self, peer: usize) {
        if self.may_learn_of_expiry(peer) {
            self.lose_session(peer);
        }
    }

    fn lose_session(&mut self, peer: usize) {
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.session = None;
        }
        self.note(|world| format!("{} has lost its session", world.name(peer)));
        self.tell(peer, Event::Expired);
    }

    pub(super) fn beat_arrives(&mut self, peer: usize, session: SessionId, sent: Monotonic) {
        let alive = self.service.beat(session, self.now);
        if !self.is_mute(peer) {
            let shown = self.service.newest();
            let answer = Happening::BeatAnswered { peer, session, alive, shown, sent };
            self.schedule(Delay::Message, answer);
        }
    }

    pub(super) fn beat_answered(
        &mut self,
        peer: usize,
        session: SessionId,
        alive: bool,
        shown: usize,
        sent: Monotonic,
    ) {
        if !self.holds(peer, session) {
            return;
        }
        if !alive {
            return self.lose_session(peer);
        }
        self.deliver(peer, shown);
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.confirmed = sitter.confirmed.max(sent);
        }
        self.tell(peer, Event::Confirmed { sent });
    }

    /// Tells a sitter what is new for it.
    fn deliver(&mut self, peer: usize, shown: usize) {
        let Some(sitter) = &mut self.peers[peer].sitter else { return };
        let before = sitter.delivered;
        sitter.delivered = before.max(shown);
        if shown <= before {
            return;
        }
        let (old, new) = (self.service.shown(before), self.service.shown(shown));
        let version = |shown: &super::Shown| shown.state.as_ref().map(|(version, _)| *version);
        let (state, active) = (version(old) != version(new), old.active != new.active);
        if state {
            let seen = self.seen(shown).0;
            self.tell(peer, Event::State(seen));
        }
        if active {
            let active = self.service.shown(shown).registered(&self.peers);
            self.tell(peer, Event::Active(active));
        }
    }

    /// Sends the news of a change to everybody who has a session.
    pub(super) fn spread(&mut self) {
        let shown = self.service.newest();
        for peer in 0..self.peers.len() {
            let session = self.peers[peer].sitter.as_ref().and_then(|sitter| sitter.session);
            if let (Some(session), false) = (session, self.is_mute(peer)) {
                self.schedule(Delay::Watch, Happening::Notice { peer, session, shown });
            }
        }
    }

    pub(super) fn notice(&mut self, peer: usize, session: SessionId, shown: usize) {
        if self.holds(peer, session) && !self.is_mute(peer) && self.service.is_alive(session) {
            self.deliver(peer, shown);
        }
    }

    pub(super) fn session_due(&mut self, session: SessionId) {
        match self.service.expire(session, self.now) {
            Ok(false) => {}
            Ok(true) => self.spread(),
            Err(deadline) => {
                let late = self.delays.draw(Delay::Expiry);
                self.schedule_in(deadline - self.now + late, Happening::SessionDue { session });
            }
        }
    }

    pub(super) fn leave(&mut self, peer: usize) {
        let life = self.peers[peer].life;
        let Some(sitter) = &mut self.peers[peer].sitter else { return };
        sitter.leaving = true;
        let session = sitter.session.take();
        if let Some(session) = session
            && !self.is_deaf(peer)
            && self.service.close(session)
        {
            self.spread();
        }
        self.schedule(Delay::Message, Happening::Left { peer, life });
    }

    pub(super) fn left(&mut self, peer: usize, life: u32) {
        if self.sitter(peer, life).is_some_and(|sitter| std::mem::take(&mut sitter.leaving)) {
            self.tell(peer, Event::Left);
        }
    }

    pub(super) fn put(&mut self, peer: usize, expected: Option<Version>, state: ClusterState) {
        let (call, life) = (self.next_call(peer), self.peers[peer].life);
        let host = &mut self.peers[peer];
        let fault = std::mem::take(&mut host.next_put);
        let content = host.end();
        let sole = host.sitter.as_ref().is_some_and(|sitter| sitter.sole);
        let rule = host.sitter.as_ref().map_or("", |sitter| sitter.machine.reason().rule());
        if let Some(sitter) = &mut host.sitter {
            sitter.put = Some(call);
        }
        self.note(|world| format!("{} stores: {}", world.name(peer), world.in_short(&state)));
        self.schedule_in(CALL_LIMIT, Happening::PutLimit { peer, life, call });
        let state = self.undisguised(expected, state);
        let same = self.service.cluster().is_some_and(|stored| *stored == state);
        if same && self.mutated(Mutation::NeverSettle) {
            let outcome = PutOutcome::Committed(Version(expected.map_or(0, |old| old.0 + 1)));
            self.schedule(Delay::Message, Happening::PutAnswered { peer, life, call, outcome });
            return;
        }
        let assumed = self.mutated(Mutation::AssumeStored);
        if assumed {
            let outcome = PutOutcome::Committed(Version(expected.map_or(0, |old| old.0 + 1)));
            self.schedule_in(0, Happening::PutAnswered { peer, life, call, outcome });
        }
        let put = Box::new(Put { expected, state, content, sole, rule, assumed });
        let arrives = Happening::PutArrives { peer, life, call, put };
        match fault {
            PutFault::Late => {
                let after = CALL_LIMIT + self.delays.draw(Delay::Late);
                self.schedule_in(after, arrives);
            }
            PutFault::Refused if !self.is_deaf(peer) && !self.is_mute(peer) => {
                let outcome = PutOutcome::Refused("no permission".to_owned());
                self.schedule(Delay::Message, Happening::PutAnswered { peer, life, call, outcome });
            }
            PutFault::Refused | PutFault::Lost => {}
            _ if self.is_deaf(peer) => {}
            PutFault::AnswerLost => {
                // Arrives as usual, and nobody is told: the number of no call.
                let Happening::PutArrives { put, .. } = arrives else { unreachable!() };
                self.schedule(Delay::Message, Happening::PutArrives { peer, life, call: 0, put });
            }
            PutFault::None => {
                self.schedule(Delay::Message, arrives);
            }
        }
    }

    pub(super) fn put_arrives(&mut self, peer: usize, life: u32, call: u32, put: Put) {
        let Put { expected, state, content, sole, rule, assumed } = put;
        let before = self.service.state().cloned();
        let content = content.map(|end| self.timelines.at(end, state.init_wal.byte().max(1)));
        let stored = self.service.put(expected, state);
        let outcome = match stored {
            Some(version) => {
                let before = before.as_ref().map(|(_, state)| state.as_ref());
                self.placed(before, rule);
                self.stored(peer, before, content, sole);
                PutOutcome::Committed(version)
            }
            None => {
                self.note(|world| format!("a write of {} comes too late", world.name(peer)));
                PutOutcome::Conflict
            }
        };
        if call != 0 && !assumed && !self.is_mute(peer) {
            self.schedule(Delay::Message, Happening::PutAnswered { peer, life, call, outcome });
        }
    }

    /// A state has been stored by a peer: everybody is told, the checkers first.
    fn stored(
        &mut self,
        peer: usize,
        before: Option<&ClusterState>,
        content: Option<super::Point>,
        writer_is_sole: bool,
    ) {
        self.note(|world| {
            let state = world.service.cluster().expect("just stored");
            format!("stored: {}", world.in_short(state))
        });
        let state = self.service.cluster().expect("just stored");
        let writer = &self.peers[peer].ident.id;
        let primary = self.index_of(&state.primary.id);
        let write = Write {
            now: self.now,
            before,
            next: state,
            writer,
            primary,
            content,
            writer_data: self.peers[peer].end(),
            primary_data: primary.and_then(|primary| self.peers[primary].end()),
            writer_is_sole,
            writer_acknowledges_alone: self.peers[peer].acknowledges_alone(),
        };
        self.checkers.stored(&write, &self.timelines);
        self.spread();
    }

    pub(super) fn put_answered(&mut self, peer: usize, life: u32, call: u32, outcome: PutOutcome) {
        let Some(sitter) = self.sitter(peer, life) else { return };
        if sitter.put == Some(call) {
            sitter.put = None;
            self.call_ended(peer);
            self.tell(peer, Event::PutDone(outcome));
        }
    }

    pub(super) fn put_limit(&mut self, peer: usize, life: u32, call: u32) {
        self.put_answered(peer, life, call, PutOutcome::Unknown("no answer".to_owned()));
    }

    pub(super) fn read(&mut self, peer: usize) {
        let (call, life) = (self.next_call(peer), self.peers[peer].life);
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.read = Some(call);
        }
        if !self.is_deaf(peer) {
            self.schedule(Delay::Message, Happening::ReadArrives { peer, life, call });
        }
        self.schedule_in(CALL_LIMIT, Happening::ReadLimit { peer, life, call });
    }

    pub(super) fn read_arrives(&mut self, peer: usize, life: u32, call: u32) {
        let known = self.peers[peer].sitter.as_ref().map_or(0, |sitter| sitter.delivered);
        let shown = self.lagging(known);
        if !self.is_mute(peer) {
            self.schedule(Delay::Message, Happening::ReadAnswered { peer, life, call, shown });
        }
    }

    pub(super) fn read_answered(&mut self, peer: usize, life: u32, call: u32, shown: usize) {
        let state = self.seen(shown).0;
        self.end_read(peer, life, call, Ok(state));
    }

    pub(super) fn read_limit(&mut self, peer: usize, life: u32, call: u32) {
        self.end_read(peer, life, call, Err("no answer".to_owned()));
    }

    fn end_read(
        &mut self,
        peer: usize,
        life: u32,
        call: u32,
        result: Result<Option<StateSeen>, String>,
    ) {
        let Some(sitter) = self.sitter(peer, life) else { return };
        if sitter.read == Some(call) {
            sitter.read = None;
            self.call_ended(peer);
            self.tell(peer, Event::ReadDone(result));
        }
    }
}
