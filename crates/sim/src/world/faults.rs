//! What may be done to a shard from outside: by clients, by operators, by bad luck. Each of them is
//! total: where it does not apply, nothing happens.

use super::{CALL_LIMIT, Part, World};
use cluster::{ClusterState, Freeze, Promote, PromoteRole, Version};
use jiff::Timestamp;
use std::fmt;

/// Whom it happens to, told by name or by place in the stored state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This peer.
    Peer(usize),
    /// The primary of the stored state.
    Primary,
    /// Its sync.
    Sync,
    /// Its first async.
    Async,
}

/// What happens to the next put of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum PutFault {
    /// Nothing.
    #[default]
    None,
    /// It never arrives.
    Lost,
    /// It is stored, and nobody is told.
    AnswerLost,
    /// It arrives after its writer has been told that nothing is known.
    Late,
    /// The service does not let its writer write.
    Refused,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each says it all by its name and by how it is printed
pub enum Fault {
    /// Only time passes.
    Nothing,
    /// A client commits; an honest one stops at a closed gate.
    Write {
        who: Who,
        honest: bool,
    },
    /// The clients that wait for an acknowledgement give up.
    CancelWaits(Who),
    /// Requests do not reach the service, or its answers do not come back, or both.
    CutCoordination {
        who: Who,
        requests: bool,
        answers: bool,
    },
    HealCoordination(Who),
    /// Nothing gets from the one to the other; both ways if so.
    CutLink {
        from: Who,
        to: Who,
        both: bool,
    },
    HealLinks,
    KillSitter(Who),
    StartSitter(Who),
    KillPostgres(Who),
    KillHost(Who),
    StartHost(Who),
    Stop(Who, Part),
    Resume(Who),
    LoseDisk(Who),
    /// The service ends the sessions of a peer that is well.
    ExpireSession(Who),
    NextPut(Who, PutFault),
    FailNextCommand(Who),
    Freeze,
    Unfreeze,
    PromoteSync,
    PromoteAsync(usize),
    /// An operator configures a peer to serve alone (one-node-write mode), or not to.
    Configure(Who, bool),
    /// A server lets go of all WAL but the newest, whoever still needs it.
    Recycle(Who),
    /// An operator asks the sitter of a peer to rebuild its database.
    Rebuild(Who),
    /// Everything is well again, and frozen no more.
    HealAll,
}

impl World {
    /// Whom this means now.
    pub fn resolve(&self, who: Who) -> Option<usize> {
        let state = self.service.cluster();
        let peer = match who {
            Who::Peer(peer) => return (peer < self.peers.len()).then_some(peer),
            Who::Primary => &state?.primary,
            Who::Sync => state?.sync.as_ref()?,
            Who::Async => state?.asyncs.first()?,
        };
        self.index_of(&peer.id)
    }

    /// Lets something happen now.
    pub fn inflict(&mut self, fault: Fault) {
        if fault != Fault::Nothing {
            self.note(|world| format!("* {}", world.describe(fault)));
        }
        match fault {
            Fault::Nothing => {}
            Fault::Write { who, honest } => {
                self.with(who, |world, peer| {
                    world.commit(peer, honest);
                });
            }
            Fault::CancelWaits(who) => self.with(who, Self::cancel_waits),
            Fault::CutCoordination { who, requests, answers } => self.with(who, |world, peer| {
                world.deaf |= u8::from(requests) << peer;
                world.mute |= u8::from(answers) << peer;
            }),
            Fault::HealCoordination(who) => self.with(who, |world, peer| {
                world.deaf &= !(1 << peer);
                world.mute &= !(1 << peer);
            }),
            Fault::CutLink { from, to, both } => {
                if let (Some(from), Some(to)) = (self.resolve(from), self.resolve(to))
                    && from != to
                {
                    self.links[from] |= 1 << to;
                    self.links[to] |= u8::from(both) << from;
                }
            }
            Fault::HealLinks => self.heal_links(),
            Fault::KillSitter(who) => self.with(who, Self::kill_sitter),
            Fault::StartSitter(who) => self.with(who, Self::start_sitter),
            Fault::KillPostgres(who) => self.with(who, Self::kill_postgres),
            Fault::KillHost(who) => self.with(who, Self::lose_power),
            Fault::StartHost(who) => self.with(who, Self::start_host),
            Fault::Stop(who, part) => self.with(who, |world, peer| world.stop(peer, part)),
            Fault::Resume(who) => self.with(who, Self::resume),
            Fault::LoseDisk(who) => self.with(who, |world, peer| {
                world.lose_power(peer);
                world.peers[peer].disk = None;
                world.checkers.disk_lost(peer);
            }),
            Fault::ExpireSession(who) => self.with(who, |world, peer| {
                if world.service.close_all_of(peer) {
                    world.spread();
                }
            }),
            Fault::NextPut(who, fault) => {
                self.with(who, |world, peer| world.peers[peer].next_put = fault);
            }
            Fault::FailNextCommand(who) => {
                self.with(who, |world, peer| world.peers[peer].fail_next = true);
            }
            Fault::Freeze => self.operate(|state| {
                state.freeze = Some(Freeze::Bare(true));
            }),
            Fault::Unfreeze => self.operate(|state| state.freeze = None),
            Fault::PromoteSync => self.request(PromoteRole::Sync, None),
            Fault::PromoteAsync(index) => self.request(PromoteRole::Async, Some(index)),
            Fault::Configure(who, alone) => {
                self.with(who, |world, peer| world.configure(peer, alone));
            }
            Fault::Recycle(who) => self.with(who, Self::recycle),
            Fault::Rebuild(who) => self.with(who, |world, peer| {
                if !world.peers[peer].is_stopped(Part::Sitter) {
                    world.tell(peer, cluster::Event::RebuildAsked { full: false });
                }
            }),
            Fault::HealAll => self.heal_all(),
        }
    }

    fn with(&mut self, who: Who, inflict: impl FnOnce(&mut Self, usize)) {
        if let Some(peer) = self.resolve(who) {
            inflict(self, peer);
        }
    }

    fn heal_links(&mut self) {
        self.links.fill(0);
        self.revive_streams();
    }

    fn start_host(&mut self, peer: usize) {
        if !self.peers[peer].up {
            self.peers[peer].up = true;
            self.start_sitter(peer);
        }
    }

    fn kill_postgres(&mut self, peer: usize) {
        if self.peers[peer].server.is_none() {
            return;
        }
        self.crash_server(peer);
        let life = self.peers[peer].life;
        let Some(sitter) = &mut self.peers[peer].sitter else { return };
        let operation = sitter.operation.as_mut().map(|operation| {
            operation.cancelled = true;
            operation.id
        });
        self.schedule_in(1, super::Happening::Exited { peer, life });
        if let Some(operation) = operation {
            self.schedule_in(2, super::Happening::CommandLimit { peer, life, operation });
        }
    }

    fn stop(&mut self, peer: usize, part: Part) {
        if self.peers[peer].up {
            self.peers[peer].stopped[part as usize] = true;
        }
    }

    /// Whatever was due in the meantime happens now, in its order.
    fn resume(&mut self, peer: usize) {
        let host = &mut self.peers[peer];
        if host.stopped == [false; 3] {
            return;
        }
        host.stopped = [false; 3];
        host.resumed = self.now;
        match host.doomed.take() {
            Some(life) if life == host.life => self.crash_server(peer),
            Some(_) => self.kill_postgres(peer),
            None => {}
        }
        for happening in std::mem::take(&mut self.peers[peer].held) {
            self.schedule_in(0, happening);
        }
        self.revive_streams();
        let alone = self.peers[peer].alone;
        if self.peers[peer].sitter.as_ref().is_some_and(|sitter| sitter.sole != alone) {
            self.configure(peer, alone);
        }
    }

    fn heal_all(&mut self) {
        (self.deaf, self.mute) = (0, 0);
        self.heal_links();
        for peer in 0..self.peers.len() {
            self.resume(peer);
            self.start_host(peer);
            self.start_sitter(peer);
            self.peers[peer].next_put = PutFault::None;
            self.peers[peer].fail_next = false;
        }
        if self.service.cluster().is_some_and(ClusterState::is_frozen) {
            self.operate(|state| state.freeze = None);
        }
    }

    /// An operator changes the stored state.
    fn operate(&mut self, change: impl FnOnce(&mut ClusterState)) {
        let Some((version, state)) = self.service.state().cloned() else { return };
        let mut state = ClusterState::clone(&state);
        change(&mut state);
        let expected: Option<Version> = Some(version);
        if self.service.put(expected, state).is_some() {
            self.spread();
        }
    }

    fn request(&mut self, role: PromoteRole, index: Option<usize>) {
        let Some(state) = self.service.cluster() else { return };
        let peer = match index {
            None => state.sync.as_ref(),
            Some(index) => state.asyncs.get(index),
        };
        let Some(peer) = peer else { return };
        let expiry = i64::try_from(self.now + 10 * CALL_LIMIT).expect("not that late");
        let promote = Promote {
            id: peer.id.clone(),
            role,
            async_index: index,
            generation: state.generation,
            expire_time: Timestamp::from_millisecond(expiry).expect("not that late"),
            extra: serde_json::Map::new(),
        };
        self.operate(|state| state.promote = Some(promote));
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Sitter => "the sitter",
            Part::Postgres => "PostgreSQL",
            Part::Disk => "the disk",
        })
    }
}
