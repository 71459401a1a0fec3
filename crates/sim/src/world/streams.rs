//! Streaming: connections between a standby and where it streams from, what is received, flushed
//! and reported, and which report releases a commit.
//!
//! A cut link loses nothing that TCP would not lose: what was on its way is sent again when the
//! link heals, and a connection lives until one of its ends does not.

use super::{
    Happening, World,
    pace::Delay,
    peer::{Names, Part, Receiver, Sender},
    timelines::{Point, Refusal},
};
use crate::Mutation;

impl World {
    /// A standby that should stream and does not tries again, in a while.
    pub(super) fn reconnect(&mut self, peer: usize) {
        let Some(server) = &mut self.peers[peer].server else { return };
        if server.upstream.is_some() && server.receiver.is_none() && !server.connecting {
            server.connecting = true;
            let boot = server.boot;
            self.schedule(Delay::Reconnect, Happening::Connect { peer, boot });
        }
    }

    pub(super) fn connect(&mut self, peer: usize, boot: u32) {
        let Some(server) = &mut self.peers[peer].server else { return };
        if server.boot != boot {
            return;
        }
        server.connecting = false;
        let (Some(from), None) = (server.upstream, &server.receiver) else { return };
        let received = server.received;
        // What is on its own disk comes first.
        let replayed = server.replayed_by <= self.now;
        let upstream = &self.peers[from];
        let reachable = self.connects(peer, from) && !upstream.is_stopped(Part::Postgres);
        let (true, true, Some(_), Some(disk)) =
            (replayed, reachable, &upstream.server, &upstream.disk)
        else {
            return self.reconnect(peer);
        };
        let (end, kept) = (disk.end, disk.kept);
        let allowed = self.timelines.may_stream(end, received);
        match allowed.and_then(|()| received.is_kept(kept)) {
            Err(refusal) => {
                self.note(|world| {
                    let why = match refusal {
                        Refusal::System => "it is another database",
                        Refusal::Diverged => "its data has diverged",
                        Refusal::Ahead => "it is ahead",
                        Refusal::Removed => "the WAL that comes next is no longer kept there",
                    };
                    format!("{} cannot stream from {}: {why}", world.name(peer), world.name(from))
                });
                self.reconnect(peer);
                if refusal != Refusal::Ahead && !self.peers[peer].is_stopped(Part::Sitter) {
                    let from = self.peers[from].ident.id.clone();
                    self.tell(peer, cluster::Event::Diverged { from });
                }
            }
            Ok(()) => self.stream(peer, from, received, end),
        }
    }

    fn stream(&mut self, peer: usize, from: usize, received: Point, end: Point) {
        self.connections += 1;
        let connection = self.connections;
        let standby = self.peers[peer].server.as_mut().expect("connects");
        standby.receiver = Some(Receiver { from, connection });
        standby.streamed = true;
        let upstream = self.peers[from].server.as_mut().expect("is connected to");
        let sent = received;
        upstream.senders.retain(|sender| sender.to != peer);
        let sender = Sender {
            to: peer,
            connection,
            sent,
            sending: false,
            flushed: None,
            replied: self.now,
            names: upstream.names,
            streaming: sent == end,
        };
        upstream.senders.push(sender);
        self.note(|world| format!("{} streams from {}", world.name(peer), world.name(from)));
        self.report(peer, from, connection);
        self.pump(from);
    }

    /// Sends what each standby of this server has not been sent.
    pub(super) fn pump(&mut self, from: usize) {
        let host = &self.peers[from];
        let (Some(server), Some(end)) = (&host.server, host.end()) else { return };
        if host.is_stopped(Part::Postgres) {
            return;
        }
        for index in 0..server.senders.len() {
            let Some(server) = &self.peers[from].server else { return };
            let sender = &server.senders[index];
            let (to, connection) = (sender.to, sender.connection);
            if sender.sending || sender.sent == end || !self.connects(from, to) {
                continue;
            }
            if let Some(server) = &mut self.peers[from].server {
                server.senders[index].sending = true;
            }
            self.schedule(Delay::Message, Happening::Data { peer: to, connection, upto: end });
        }
    }

    fn sender_of(&mut self, from: usize, connection: u32) -> Option<&mut Sender> {
        let server = self.peers[from].server.as_mut()?;
        server.senders.iter_mut().find(|sender| sender.connection == connection)
    }

    pub(super) fn data(&mut self, peer: usize, connection: u32, upto: Point) {
        let Some(server) = &self.peers[peer].server else { return };
        let Some(receiver) = &server.receiver else { return };
        if receiver.connection != connection {
            return;
        }
        let (from, before, boot) = (receiver.from, server.received, server.boot);
        let arrives = self.connects(from, peer);
        let Some(end) = self.peers[from].end() else { return };
        let Some(sender) = self.sender_of(from, connection) else { return };
        sender.sending = false;
        if !arrives {
            return;
        }
        sender.sent = upto;
        sender.streaming |= upto == end;
        if !self.timelines.contains(upto, before) {
            self.checkers.mixed(self.now, peer, from);
            return;
        }
        let replayed_by = self.now + self.delays.lag();
        let server = self.peers[peer].server.as_mut().expect("receives");
        server.received = upto;
        server.replayed_by = server.replayed_by.max(replayed_by);
        if self.setup.mutation == Some(Mutation::ReportUnflushed) {
            let flushed = upto;
            let reply = Happening::Reply { peer: from, from: peer, connection, flushed };
            self.schedule(Delay::Message, reply);
        }
        let server = self.peers[peer].server.as_mut().expect("receives");
        if !std::mem::replace(&mut server.flushing, true) {
            self.schedule(Delay::Flush, Happening::Flush { peer, boot });
        }
        self.pump(from);
    }

    /// What was received is on disk now: it is reported, and may be sent on.
    pub(super) fn flush(&mut self, peer: usize, boot: u32) {
        let host = &mut self.peers[peer];
        let (Some(server), Some(disk)) = (&mut host.server, &mut host.disk) else { return };
        if server.boot != boot || server.primary {
            return;
        }
        server.flushing = false;
        disk.end = server.received;
        if let Some(Receiver { from, connection }) = server.receiver {
            self.report(peer, from, connection);
        }
        self.pump(peer);
    }

    /// A report arrives: the walsender of the peer that counts releases what is flushed there.
    pub(super) fn reply(&mut self, peer: usize, from: usize, connection: u32, flushed: Point) {
        if !self.connects(from, peer) {
            return;
        }
        let now = self.now;
        let Some(sender) = self.sender_of(peer, connection) else { return };
        sender.flushed = sender.flushed.max(Some(flushed.position));
        sender.replied = now;
        if sender.names == Names::Peer(from) {
            self.release(peer, flushed.position);
        }
    }

    pub(super) fn sender_reloads(&mut self, peer: usize, connection: u32) {
        let Some(names) = self.peers[peer].server.as_ref().map(|server| server.names) else {
            return;
        };
        let Some(sender) = self.sender_of(peer, connection) else { return };
        sender.names = names;
        let to = sender.to;
        // The next report, which comes by itself sooner or later, releases.
        self.report(to, peer, connection);
    }

    /// The receiver ends: what was received is flushed, and no report follows.
    pub(super) fn stop_receiving(&mut self, peer: usize) {
        let host = &mut self.peers[peer];
        let (Some(server), Some(disk)) = (&mut host.server, &mut host.disk) else { return };
        disk.end = server.received;
        server.flushing = false;
        let Some(Receiver { from, connection }) = server.receiver.take() else { return };
        if self.connects(peer, from)
            && let Some(upstream) = &mut self.peers[from].server
        {
            upstream.senders.retain(|sender| sender.connection != connection);
        }
        self.pump(peer);
    }

    /// The other end of a connection has ended it.
    pub(super) fn cut_off(&mut self, peer: usize, connection: u32) {
        let Some(server) = &mut self.peers[peer].server else { return };
        if server.receiver.as_ref().is_some_and(|receiver| receiver.connection == connection) {
            server.receiver = None;
            self.reconnect(peer);
        }
    }

    /// The server of `peer` is gone: so are its connections.
    pub(super) fn disconnect_all(&mut self, peer: usize) {
        for other in 0..self.peers.len() {
            let connected = self.connects(peer, other);
            let Some(server) = &mut self.peers[other].server else { continue };
            if connected {
                server.senders.retain(|sender| sender.to != peer);
            }
            if server.receiver.as_ref().is_some_and(|receiver| receiver.from == peer) {
                server.receiver = None;
                self.reconnect(other);
            }
        }
    }

    /// What a healed link or a resumed server brings: connections whose other end is gone are
    /// found dead, what was lost on the way is sent again.
    pub(super) fn revive_streams(&mut self) {
        for from in 0..self.peers.len() {
            let Some(server) = &self.peers[from].server else { continue };
            let connections: Vec<_> =
                server.senders.iter().map(|sender| (sender.to, sender.connection)).collect();
            for (to, connection) in connections {
                if !self.connects(from, to) {
                    continue;
                }
                let alive = self.peers[to].server.as_ref().is_some_and(|server| {
                    server.receiver.as_ref().is_some_and(|one| one.connection == connection)
                });
                if alive {
                    self.report(to, from, connection);
                } else if let Some(server) = &mut self.peers[from].server {
                    server.senders.retain(|sender| sender.connection != connection);
                }
            }
            self.pump(from);
        }
    }
}
