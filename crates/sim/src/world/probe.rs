//! Looking at PostgreSQL, as the prober of the sitter does: what counts as an answer of the sync,
//! and when it has caught up.

use super::{
    Happening, LEASE, World,
    pace::Delay,
    peer::{Answer, Names, Part, Sender, lsn},
};
use cluster::{Counts, Event, Gate, PgCommand, PgConfig};

const INTERVAL: u64 = 1_000;
const WHILE_WAITING: u64 = 100;

impl World {
    pub(super) fn probe(&mut self, peer: usize, life: u32) {
        if self.sitter(peer, life).is_none() {
            return;
        }
        self.look_at_disk(peer);
        self.look(peer);
        let Some(sitter) = &self.peers[peer].sitter else { return };
        let pause = match sitter.machine.applied().map(|applied| &applied.config) {
            Some(PgConfig::Primary { gate: Gate::Closed, .. }) => WHILE_WAITING,
            Some(PgConfig::Primary { .. }) => INTERVAL.min(LEASE.0 / 6),
            _ => INTERVAL,
        };
        self.schedule_in(pause, Happening::Probe { peer, life });
    }

    /// While a command may wait for the disk, the sitter writes to it.
    fn look_at_disk(&mut self, peer: usize) {
        let hangs = self.peers[peer].is_stopped(Part::Disk);
        let Some(sitter) = &mut self.peers[peer].sitter else { return };
        let waits = sitter.operation.as_ref().is_some_and(|operation| {
            matches!(operation.command, PgCommand::Apply(_) | PgCommand::Stop)
        });
        let event = match (sitter.disk_hangs, hangs) {
            (false, true) if waits => Event::DiskHangs("a write does not come back".to_owned()),
            (true, false) => Event::DiskAnswers,
            _ => return,
        };
        sitter.disk_hangs = hangs;
        self.tell(peer, event);
    }

    fn look(&mut self, peer: usize) {
        let host = &self.peers[peer];
        let Some(sitter) = host.sitter.as_ref().filter(|sitter| sitter.machine.is_running()) else {
            if let Some(sitter) = &mut self.peers[peer].sitter {
                sitter.answer = None;
            }
            return;
        };
        let (Some(server), Some(disk)) = (&host.server, &host.disk) else { return };
        if host.is_stopped(Part::Disk) {
            return self.tell(peer, Event::ProbeFailed("it does not answer in time".to_owned()));
        }
        if host.is_stopped(Part::Postgres) {
            return;
        }
        let looked = host.clock.read(self.now);
        let counting = match sitter.machine.applied().map(|applied| &applied.config) {
            Some(PgConfig::Primary { counts: Counts::Sync(id), .. }) => self.index_of(id),
            _ => None,
        };
        let sender = counting.and_then(|sync| {
            server.senders.iter().find(|one| one.to == sync && one.names == Names::Peer(sync))
        });
        let answer = sender.map(|Sender { to, replied, flushed, .. }| Answer {
            looked,
            peer: *to,
            replied: *replied,
            flushed: *flushed,
        });
        // An answer that was not there at the look before came after that look began.
        let sync_answered = match (&sitter.answer, &answer) {
            (Some(old), Some(new))
                if old.peer == new.peer
                    && (old.replied != new.replied || old.flushed != new.flushed) =>
            {
                Some(old.looked)
            }
            _ => None,
        };
        let caught_up = sender
            .filter(|sender| sender.streaming && sender.flushed.is_some())
            .map(|sender| self.peers[sender.to].ident.id.clone());
        // The newest timeline that is known: a standby also knows the one that it follows.
        let timeline = Some(self.timelines.number(disk.end.branch));
        let connection = sender.map(|sender| (sender.to, sender.connection));
        let wal = lsn(host.known_end(self.now).expect("a database that runs"));
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.answer = answer;
        }
        if let Some((sync, connection)) = connection {
            self.report(sync, peer, connection);
        }
        self.tell(peer, Event::Probed { wal, timeline, caught_up, sync_answered });
    }

    /// A standby reports up to where it has flushed, as it does whenever that grows and every now
    /// and then.
    pub(super) fn report(&mut self, standby: usize, from: usize, connection: u32) {
        let Some(flushed) = self.peers[standby].end() else { return };
        let alive = self.peers[standby].server.as_ref().is_some_and(|server| {
            server.receiver.as_ref().is_some_and(|receiver| receiver.connection == connection)
        });
        if alive && !self.peers[standby].is_stopped(Part::Postgres) && self.connects(standby, from)
        {
            let reply = Happening::Reply { peer: from, from: standby, connection, flushed };
            self.schedule(Delay::Message, reply);
        }
    }
}
