//! Commands to PostgreSQL, step by step, by the contract of the adapter: when a configuration is
//! answered as applied it is in force, and the position was read after that.

use super::{
    Happening, World,
    pace::Delay,
    peer::{Disk, Names, Operation, Phase, lsn},
};
use crate::Mutation;
use cluster::{
    ApplyError, Counts, Database, Event, Gate, Generation, PeerIdent, PgCommand, PgConfig,
    PgOutcome, Way,
};

/// How long a command waits for a server that does not answer.
const PATIENCE: u64 = 5_000;

pub(super) fn names(world: &World, counts: &Counts) -> Names {
    match counts {
        Counts::Sync(id) => world.index_of(id).map_or(Names::Nobody, Names::Peer),
        Counts::Nobody => Names::Nobody,
        Counts::Alone => Names::Empty,
    }
}

impl World {
    pub(super) fn command(&mut self, peer: usize, command: PgCommand) {
        self.note(|world| {
            format!("{}: {}", world.name(peer), world.in_letters(&command.to_string()))
        });
        let generation =
            self.peers[peer].sitter.as_ref().and_then(|sitter| sitter.machine.decided_in());
        let host = &mut self.peers[peer];
        host.operations += 1;
        let (operation, life) = (host.operations, host.life);
        if let Some(sitter) = &mut host.sitter {
            sitter.operation = Some(Operation {
                id: operation,
                command,
                generation: generation.unwrap_or(Generation(0)),
                phase: Phase::Begun,
                cancelled: false,
            });
        }
        self.schedule(Delay::Local, Happening::Command { peer, life, operation });
    }

    pub(super) fn cancel(&mut self, peer: usize) {
        let life = self.peers[peer].life;
        let Some(sitter) = &mut self.peers[peer].sitter else { return };
        let Some(operation) = &mut sitter.operation else { return };
        operation.cancelled = true;
        let operation = operation.id;
        self.schedule(Delay::Local, Happening::Command { peer, life, operation });
    }

    fn operation(&mut self, peer: usize, life: u32, id: u32) -> Option<&mut Operation> {
        let sitter = self.sitter(peer, life)?;
        sitter.operation.as_mut().filter(|operation| operation.id == id)
    }

    /// The next step of a command.
    pub(super) fn go_on(&mut self, peer: usize, life: u32, id: u32) {
        let Some(operation) = self.operation(peer, life, id) else { return };
        let (command, phase) = (operation.command.clone(), operation.phase);
        if operation.cancelled || std::mem::take(&mut self.peers[peer].fail_next) {
            return self.fail(peer, "given up");
        }
        // What a mutation answers without doing it.
        if self.mutated(Mutation::NoQuiesce)
            && self.peers[peer].server.is_some()
            && matches!(&command, PgCommand::Apply(config) if config.is_quiesced())
        {
            return self.applied(peer);
        }
        match command {
            PgCommand::Prepare => {
                let end = self.timelines.create(self.setup.timeline);
                let database = Database::Prepared;
                let kept = end.position;
                self.peers[peer].disk = Some(Disk { end, database, standby: false, kept });
                self.finish(peer, PgOutcome::Prepared);
            }
            PgCommand::Stop => {
                if self.hangs(peer, life, id) {
                    return;
                }
                self.stop_server(peer);
                self.finish(peer, PgOutcome::Stopped);
            }
            PgCommand::Seed(sources) => self.copy(peer, life, id, phase, &sources),
            PgCommand::Rebuild(sources, way) => {
                let sources = self.sources_of_rebuild(peer, sources, way);
                self.copy(peer, life, id, phase, &sources);
            }
            PgCommand::Apply(config) => {
                if self.peers[peer].disk.is_none() {
                    return self.fail(peer, "there is no database");
                }
                if self.hangs(peer, life, id) {
                    return;
                }
                match &config {
                    PgConfig::Primary { .. } => self.be_primary(peer, life, id, phase, &config),
                    PgConfig::Standby { .. } => self.be_standby(peer, life, id, phase, &config),
                }
            }
        }
    }

    /// A stopped server answers nothing: the command runs into its limit; with its disk, it waits for that.
    fn hangs(&mut self, peer: usize, life: u32, operation: u32) -> bool {
        let host = &mut self.peers[peer];
        if host.is_stopped(super::Part::Disk) {
            host.held.push(Happening::Command { peer, life, operation });
            return true;
        }
        let hangs = host.server.is_some() && host.is_stopped(super::Part::Postgres);
        if hangs {
            self.schedule_in(PATIENCE, Happening::CommandLimit { peer, life, operation });
        }
        hangs
    }

    pub(super) fn command_limit(&mut self, peer: usize, life: u32, id: u32) {
        if self.operation(peer, life, id).is_some() {
            self.fail(peer, "it did not answer in time, or was stopped");
        }
    }

    fn fail(&mut self, peer: usize, problem: &str) {
        let host = &mut self.peers[peer];
        host.record = None;
        let error = ApplyError {
            problem: problem.to_owned(),
            running: host.server.is_some(),
            database: Some(host.disk.as_ref().map_or(Database::None, |disk| disk.database)),
        };
        if let Some(sitter) = &mut host.sitter {
            sitter.operation = None;
        }
        self.note(|world| format!("{}: that failed: {problem}", world.name(peer)));
        self.tell(peer, Event::PgFailed(error));
    }

    fn finish(&mut self, peer: usize, outcome: PgOutcome) {
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.operation = None;
        }
        self.tell(peer, Event::PgDone(outcome));
    }

    /// The configuration is in force: the position is read.
    fn applied(&mut self, peer: usize) {
        let host = &self.peers[peer];
        let position = lsn(host.known_end(self.now).expect("a database that runs"));
        let end = host.disk.as_ref().map(|disk| disk.end);
        let timeline = end.map(|end| self.timelines.number(end.branch));
        self.finish(peer, PgOutcome::Applied { position, timeline });
    }

    fn next_phase(&mut self, peer: usize, life: u32, id: u32, phase: Phase, after: u64) {
        if let Some(operation) = self.operation(peer, life, id) {
            operation.phase = phase;
            self.schedule_in(after, Happening::Command { peer, life, operation: id });
        }
    }

    fn be_primary(&mut self, peer: usize, life: u32, id: u32, phase: Phase, config: &PgConfig) {
        let PgConfig::Primary { timeline, counts, gate, .. } = config else { return };
        let names = self.names_of(counts);
        let generation = self.operation(peer, life, id).map_or(Generation(0), |one| one.generation);
        let standby = self.peers[peer].disk.as_ref().is_some_and(|disk| disk.standby);
        let Some(server) = &mut self.peers[peer].server else {
            if phase != Phase::Starting {
                let after = self.delays.draw(Delay::Start);
                return self.next_phase(peer, life, id, Phase::Starting, after);
            }
            // Only a promotion begins a timeline of its own: a standby is started as one first.
            let first = if standby { Names::Nobody } else { names };
            self.boot(peer, !standby, first, generation);
            return self.next_phase(peer, life, id, Phase::Begun, 0);
        };
        if !server.primary {
            if phase != Phase::Promoting {
                // All that was received is replayed first.
                let replay = server.replayed_by.saturating_sub(self.now);
                let after = self.delays.draw(Delay::Promote).max(replay);
                return self.next_phase(peer, life, id, Phase::Promoting, after);
            }
            server.names = names;
            server.open = *gate == Gate::Open;
            server.generation = generation;
            for sender in &mut server.senders {
                sender.names = names;
            }
            let generation = u32::try_from(generation.0).expect("few generations");
            let stored = timeline.filter(|_| !self.mutated(Mutation::TimelinesByGeneration));
            self.promote_server(peer, stored.unwrap_or(generation));
            self.check_alone(peer);
            self.check_serving(peer);
            return self.next_phase(peer, life, id, Phase::Begun, 0);
        }
        if phase != Phase::Reloading {
            let after = self.reload(peer, names, *gate == Gate::Open, generation);
            return self.next_phase(peer, life, id, Phase::Reloading, after);
        }
        let counts_another = server.senders.iter().any(|sender| {
            matches!(sender.names, Names::Peer(peer) if peer == sender.to && sender.names != names)
        });
        if counts_another {
            return self.next_phase(peer, life, id, Phase::Reloading, 10);
        }
        self.peers[peer].record = Some(config.clone());
        self.applied(peer);
    }

    /// Writes the files and asks for a reload; says when every process has seen it.
    fn reload(&mut self, peer: usize, names: Names, open: bool, generation: Generation) -> u64 {
        let host = &mut self.peers[peer];
        host.record = None;
        if let Some(disk) = &mut host.disk {
            disk.database = Database::Established;
        }
        let stays_alone = self.setup.mutation == Some(Mutation::StayAlone);
        let Some(server) = &mut host.server else { return 0 };
        let names = if stays_alone && server.names == Names::Empty { Names::Empty } else { names };
        (server.names, server.open, server.clients) = (names, open, true);
        server.generation = generation;
        let connections: Vec<_> = server
            .senders
            .iter()
            .filter(|sender| sender.names != names)
            .map(|sender| sender.connection)
            .collect();
        let mut last = 0;
        for connection in connections {
            let after = self.delays.draw(Delay::Reload);
            last = last.max(after);
            self.schedule_in(after, Happening::Reload { peer, connection });
        }
        self.check_alone(peer);
        if names == Names::Empty {
            // PostgreSQL lets everybody go who waits when there is nobody to wait for any more.
            self.release(peer, u64::MAX);
        }
        self.check_serving(peer);
        last + self.delays.draw(Delay::Local)
    }

    fn be_standby(&mut self, peer: usize, life: u32, id: u32, phase: Phase, config: &PgConfig) {
        let PgConfig::Standby { upstream, .. } = config else { return };
        let upstream = upstream.as_ref().and_then(|upstream| self.index_of(&upstream.id));
        let generation = self.operation(peer, life, id).map_or(Generation(0), |one| one.generation);
        if self.peers[peer].primary().is_some() {
            self.stop_server(peer);
        }
        let Some(server) = &mut self.peers[peer].server else {
            if phase != Phase::Starting {
                let after = self.delays.draw(Delay::Start);
                return self.next_phase(peer, life, id, Phase::Starting, after);
            }
            if let Some(disk) = &mut self.peers[peer].disk {
                disk.standby = true;
            }
            self.boot(peer, false, Names::Nobody, generation);
            return self.next_phase(peer, life, id, Phase::Begun, 0);
        };
        if phase != Phase::Reloading {
            self.peers[peer].record = None;
            let after = self.delays.draw(Delay::Reload);
            return self.next_phase(peer, life, id, Phase::Reloading, after);
        }
        server.clients = true;
        server.generation = generation;
        let changed = server.upstream != upstream;
        server.upstream = upstream;
        if changed || upstream.is_none() {
            self.stop_receiving(peer);
        }
        // Detached, all that was received is replayed before the position is read (rule D2).
        let replay = self.left_to_replay(peer);
        if upstream.is_none() && replay > 0 {
            if replay > PATIENCE {
                let limit = Happening::CommandLimit { peer, life, operation: id };
                self.schedule_in(PATIENCE, limit);
                return;
            }
            return self.next_phase(peer, life, id, Phase::Reloading, replay);
        }
        self.reconnect(peer);
        self.peers[peer].record = Some(config.clone());
        self.applied(peer);
    }

    fn left_to_replay(&self, peer: usize) -> u64 {
        let server = self.peers[peer].server.as_ref();
        server.map_or(0, |server| server.replayed_by.saturating_sub(self.now))
    }

    fn sources_of_rebuild(&self, peer: usize, told: Vec<PeerIdent>, way: Way) -> Vec<PeerIdent> {
        if way == Way::Cheapest || !self.mutated(Mutation::CopyAnybody) {
            return told;
        }
        let others = (0..self.peers.len()).filter(|other| *other != peer);
        let others = others.map(|other| self.peers[other].ident.clone());
        others.filter(|other| told.iter().all(|one| one.id != other.id)).collect()
    }

    /// A copy of a running database as it is when the copy ends, from the first source that gives
    /// one.
    fn copy(&mut self, peer: usize, life: u32, id: u32, phase: Phase, sources: &[PeerIdent]) {
        if self.mutated(Mutation::RejoinUnrepaired) && self.peers[peer].disk.is_some() {
            return self.finish(peer, PgOutcome::Copied);
        }
        let source_at = |world: &World, place: usize| {
            let source = world.index_of(&sources.get(place)?.id)?;
            let host = &world.peers[source];
            let gives = world.connects(peer, source) && !host.is_stopped(super::Part::Postgres);
            let end = host.end().filter(|_| gives)?.position;
            host.server.as_ref().map(|server| (source, server.boot, end))
        };
        let mut place = 0;
        if let Phase::Copying(copied, boot, kept) = phase {
            match source_at(self, copied) {
                Some((source, now, _)) if now == boot => {
                    let end = self.peers[source].end().expect("a database that runs");
                    let database = Database::Established;
                    self.peers[peer].disk = Some(Disk { end, database, standby: true, kept });
                    self.note(|world| {
                        format!("{} is a copy of {} now", world.name(peer), world.name(source))
                    });
                    return self.finish(peer, PgOutcome::Copied);
                }
                _ => place = copied + 1,
            }
        } else {
            // Kept aside, out of the way.
            self.peers[peer].disk = None;
        }
        while place < sources.len() {
            if let Some((_, boot, kept)) = source_at(self, place) {
                let after = self.delays.draw(Delay::Copy);
                return self.next_phase(peer, life, id, Phase::Copying(place, boot, kept), after);
            }
            place += 1;
        }
        self.fail(peer, "no source gives a copy");
    }
}
