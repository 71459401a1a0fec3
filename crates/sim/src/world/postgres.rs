//! A PostgreSQL: starts, ends, is promoted, takes the commits of clients and acknowledges them.

use super::{
    World,
    peer::{Commit, Names, Part, Server},
};
use crate::{Mutation, checkers::Serving};
use cluster::Generation;

impl World {
    pub(super) fn boot(
        &mut self,
        peer: usize,
        primary: bool,
        names: Names,
        generation: Generation,
    ) {
        let (now, lag) = (self.now, self.delays.lag());
        let host = &mut self.peers[peer];
        let Some(disk) = &host.disk else { return };
        host.boots += 1;
        host.record = None;
        host.server = Some(Server {
            boot: host.boots,
            primary,
            clients: false,
            open: false,
            names,
            generation,
            upstream: None,
            receiver: None,
            connecting: false,
            received: disk.end,
            flushing: false,
            replayed_by: now + lag,
            replayed: disk.end.position.saturating_sub(lag / 100),
            streamed: false,
            senders: Vec::new(),
            waiting: Default::default(),
        });
    }

    /// The server ends at once. What was written is in the cache of the operating system.
    pub(super) fn crash_server(&mut self, peer: usize) {
        let host = &mut self.peers[peer];
        host.record = None;
        let Some(server) = host.server.take() else { return };
        if let Some(disk) = &mut host.disk
            && !server.primary
        {
            disk.end = server.received;
        }
        self.disconnect_all(peer);
    }

    /// The host loses its power: what was not flushed is gone.
    pub(super) fn lose_power(&mut self, peer: usize) {
        self.peers[peer].server = None;
        self.peers[peer].record = None;
        self.disconnect_all(peer);
        self.kill_sitter(peer);
        let host = &mut self.peers[peer];
        host.up = false;
        host.stopped = [false; 3];
        host.doomed = None;
        host.held.clear();
    }

    /// An orderly stop: sessions are cut, then everything goes to the standbys that stream.
    pub(super) fn stop_server(&mut self, peer: usize) {
        let Some(server) = &self.peers[peer].server else { return };
        if server.primary {
            let standbys: Vec<_> =
                server.senders.iter().map(|sender| (sender.to, sender.connection)).collect();
            let end = self.peers[peer].end().expect("a database that runs");
            for (standby, connection) in standbys {
                self.drain_to(peer, standby, connection, end);
            }
        } else {
            self.stop_receiving(peer);
        }
        self.peers[peer].server = None;
        self.peers[peer].record = None;
        self.disconnect_all(peer);
    }

    fn drain_to(&mut self, peer: usize, standby: usize, connection: u32, end: super::Point) {
        if !self.connects(peer, standby) || self.peers[standby].is_stopped(Part::Postgres) {
            return;
        }
        let host = &mut self.peers[standby];
        let (Some(server), Some(disk)) = (&mut host.server, &mut host.disk) else { return };
        let receives =
            server.receiver.as_ref().is_some_and(|receiver| receiver.connection == connection);
        if receives && self.timelines.contains(end, server.received) {
            server.received = end;
            disk.end = end;
        }
    }

    /// The standby becomes a primary on a timeline of its own, of this number at least; it replays all that it has
    /// first.
    pub(super) fn promote_server(&mut self, peer: usize, at_least: u32) {
        self.stop_receiving(peer);
        let host = &mut self.peers[peer];
        let (Some(server), Some(disk)) = (&mut host.server, &mut host.disk) else { return };
        let collide = self.setup.mutation == Some(Mutation::TimelinesCollide);
        let number = if collide { 0 } else { at_least };
        disk.end = self.timelines.promote(disk.end, number);
        let branch = disk.end.branch;
        disk.standby = false;
        server.primary = true;
        server.upstream = None;
        server.received = disk.end;
        self.note(|world| format!("{} is promoted", world.name(peer)));
        if self.timelines.has_a_namesake(branch) {
            self.checkers.namesake(self.now, peer, self.timelines.number(branch));
        }
        self.pump(peer);
    }

    /// A client commits on this server. Returns whether it was let in.
    pub(super) fn commit(&mut self, peer: usize, honest: bool) -> bool {
        let host = &mut self.peers[peer];
        let stopped = host.is_stopped(Part::Postgres);
        let (Some(server), Some(disk)) = (&mut host.server, &mut host.disk) else { return false };
        let lets = server.primary && server.clients && (server.open || !honest);
        if stopped || !lets {
            return false;
        }
        let Some(at) = self.timelines.append(disk.end) else {
            self.checkers.mixed(self.now, peer, peer);
            return false;
        };
        disk.end = at;
        let commit = Commit { at };
        let alone = server.names == Names::Empty || self.mutated(Mutation::EmptyNames);
        self.note(|world| format!("a client commits {} on {}", at.position, world.name(peer)));
        if alone {
            self.check_alone(peer);
            self.acknowledge(peer, commit);
        } else if let Some(server) = &mut self.peers[peer].server {
            server.waiting.push_back(commit);
        }
        self.pump(peer);
        true
    }

    /// A client gives up waiting: its commit stays, and nobody was told that it is safe.
    pub(super) fn cancel_waits(&mut self, peer: usize) {
        if let Some(server) = &mut self.peers[peer].server {
            server.waiting.clear();
        }
    }

    /// Releases the commits that wait for a position up to this one.
    pub(super) fn release(&mut self, peer: usize, flushed: u64) {
        while let Some(server) = &mut self.peers[peer].server
            && server.waiting.front().is_some_and(|commit| commit.at.position <= flushed)
        {
            let commit = server.waiting.pop_front().expect("just seen");
            self.acknowledge(peer, commit);
        }
    }

    fn acknowledge(&mut self, peer: usize, commit: Commit) {
        let Some(server) = &self.peers[peer].server else { return };
        let generation = server.generation;
        self.note(|world| {
            let name = world.name(peer);
            format!("the client on {name} is told that {} is safe", commit.at.position)
        });
        self.checkers.acknowledged(self.now, peer, generation, commit.at, &self.timelines);
    }

    /// Lets the checkers judge a primary that has come into force or goes on.
    pub(super) fn check_serving(&mut self, peer: usize) {
        let host = &self.peers[peer];
        // What was killed answers nobody, even where it cannot end yet.
        let serves = |server: &&Server| server.clients && host.doomed.is_none();
        let Some(server) = host.primary().filter(serves) else { return };
        let since = host.sitter.as_ref().map(|sitter| sitter.since.max(host.resumed));
        let serving = Serving {
            now: self.now,
            peer,
            generation: server.generation,
            end: host.disk.as_ref().expect("a database that runs").end,
            supervised_since: since,
        };
        self.checkers.serves(&serving, &self.timelines);
    }

    /// Lets the checkers judge a primary whose names are empty: brought to that, or acknowledging so.
    pub(super) fn check_alone(&mut self, peer: usize) {
        if self.peers[peer].acknowledges_alone() {
            let id = &self.peers[peer].ident.id;
            self.checkers.alone(self.now, id, self.service.cluster());
        }
    }

    /// A checkpoint lets go of all WAL but the newest. A standby that had not been sent it yet is cut
    /// off, and cannot go on (rule X4).
    pub(super) fn recycle(&mut self, peer: usize) {
        let host = &mut self.peers[peer];
        let (Some(server), Some(disk)) = (&mut host.server, &mut host.disk) else { return };
        disk.kept = disk.end.position;
        let kept = disk.kept;
        let late: Vec<_> = server
            .senders
            .extract_if(.., |sender| sender.sent.position < kept)
            .map(|sender| (sender.to, sender.connection))
            .collect();
        for (to, connection) in late {
            self.cut_off(to, connection);
        }
    }
}
