//! The world in words.

use super::{Fault, Part, Who, World, faults::PutFault};
use cluster::{ClusterState, PeerIdent};
use std::fmt::Write;

impl World {
    /// The same text with the letters of the peers in place of their names.
    pub fn in_letters(&self, text: &str) -> String {
        self.peers.iter().fold(text.to_owned(), |text, peer| {
            text.replace(peer.ident.id.as_str(), &peer.ident.zone_id)
        })
    }

    /// A state in one line: `generation 2: b, c, then a; deposed d; from 104 on timeline 1`.
    pub fn in_short(&self, state: &ClusterState) -> String {
        let letters = |peers: &[PeerIdent]| {
            peers.iter().map(|peer| peer.zone_id.as_str()).collect::<Vec<_>>().join(" ")
        };
        let mut text =
            format!("generation {}: primary {}", state.generation, state.primary.zone_id);
        let mut add = |what: String| text.push_str(&what);
        if let Some(sync) = &state.sync {
            add(format!(", sync {}", sync.zone_id));
        }
        if !state.asyncs.is_empty() {
            add(format!(", async {}", letters(&state.asyncs)));
        }
        if !state.deposed.is_empty() {
            add(format!(", deposed {}", letters(&state.deposed)));
        }
        add(format!("; from {}", state.init_wal.byte()));
        if let Some(timeline) = state.init_timeline {
            add(format!(" on timeline {timeline}"));
        }
        if state.is_one_node_write_mode() {
            add("; one-node-write mode".to_owned());
        }
        if state.is_frozen() {
            add("; frozen".to_owned());
        }
        if let Some(promote) = &state.promote {
            add(format!("; promote {}", self.in_letters(promote.id.as_str())));
        }
        text
    }

    fn whom(&self, who: Who) -> String {
        let role = match who {
            Who::Peer(peer) if peer < self.peers.len() => return self.name(peer).to_owned(),
            Who::Peer(_) => return "nobody".to_owned(),
            Who::Primary => "the primary",
            Who::Sync => "the sync",
            Who::Async => "the first async",
        };
        match self.resolve(who) {
            Some(peer) => format!("{role} {}", self.name(peer)),
            None => format!("{role} (there is none)"),
        }
    }

    /// What a fault is, now.
    pub fn describe(&self, fault: Fault) -> String {
        let whom = |who| self.whom(who);
        match fault {
            Fault::Nothing => "time passes".to_owned(),
            Fault::Write { who, honest: true } => format!("a client writes on {}", whom(who)),
            Fault::Write { who, honest: false } => {
                format!("a client writes on {}, closed or not", whom(who))
            }
            Fault::CancelWaits(who) => format!("the clients that wait on {} give up", whom(who)),
            Fault::CutCoordination { who, requests, answers } => {
                let what = match (requests, answers) {
                    (true, true) => "all traffic",
                    (true, false) => "requests",
                    _ => "answers",
                };
                format!("{what} between {} and the coordination: cut", whom(who))
            }
            Fault::HealCoordination(who) => format!("{} reaches the coordination", whom(who)),
            Fault::CutLink { from, to, both } => {
                let ways = if both { "and back" } else { "one way" };
                format!("the link from {} to {} is cut, {ways}", whom(from), whom(to))
            }
            Fault::HealLinks => "all links between peers are healed".to_owned(),
            Fault::KillSitter(who) => format!("the sitter of {} is killed", whom(who)),
            Fault::StartSitter(who) => format!("the sitter of {} is started", whom(who)),
            Fault::KillPostgres(who) => format!("the PostgreSQL of {} is killed", whom(who)),
            Fault::KillHost(who) => format!("the host of {} loses power", whom(who)),
            Fault::StartHost(who) => format!("the host of {} starts", whom(who)),
            Fault::Stop(who, Part::Sitter) => format!("the sitter of {} is stopped", whom(who)),
            Fault::Stop(who, Part::Postgres) => {
                format!("the PostgreSQL of {} is stopped", whom(who))
            }
            Fault::Stop(who, Part::Disk) => format!("the disk of {} hangs", whom(who)),
            Fault::Resume(who) => format!("what is stopped on {} goes on", whom(who)),
            Fault::LoseDisk(who) => format!("the host of {} fails and loses its disk", whom(who)),
            Fault::ExpireSession(who) => format!("the service ends the session of {}", whom(who)),
            Fault::NextPut(who, fault) => {
                let what = match fault {
                    PutFault::None => "arrives",
                    PutFault::Lost => "is lost",
                    PutFault::AnswerLost => "is stored, and its answer is lost",
                    PutFault::Late => "arrives late",
                    PutFault::Refused => "is refused",
                };
                format!("the next write of {} to the service {what}", whom(who))
            }
            Fault::FailNextCommand(who) => {
                format!("the next command to the PostgreSQL of {} fails", whom(who))
            }
            Fault::Freeze => "an operator freezes the shard".to_owned(),
            Fault::Unfreeze => "an operator unfreezes the shard".to_owned(),
            Fault::PromoteSync => "an operator asks for the sync to take over".to_owned(),
            Fault::PromoteAsync(index) => {
                format!("an operator asks for async {index} to move up")
            }
            Fault::Configure(who, true) => format!("{} is configured to serve alone", whom(who)),
            Fault::Configure(who, false) => {
                format!("{} is configured not to serve alone", whom(who))
            }
            Fault::Rebuild(who) => format!("an operator asks to rebuild {}", whom(who)),
            Fault::Recycle(who) => format!("{} keeps only its newest WAL", whom(who)),
            Fault::HealAll => "everything is well again".to_owned(),
        }
    }

    /// Everything that there is to see, some lines.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let stored = self.service.cluster();
        let line = stored.map_or("nothing is stored".to_owned(), |state| self.in_short(state));
        let active: Vec<_> = self
            .service
            .shown(self.service.newest())
            .active
            .iter()
            .map(|&p| self.name(p))
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}; active: {}", active.join(" "));
        for (index, peer) in self.peers.iter().enumerate() {
            let postgres = match (&peer.server, &peer.disk) {
                (None, None) => "no database".to_owned(),
                (None, Some(disk)) => format!("PostgreSQL down at {}", self.place(disk.end)),
                (Some(server), disk) => {
                    let role = match (server.primary, server.clients && server.open) {
                        (true, true) => "primary",
                        (true, false) => "primary, closed",
                        (false, _) => "standby",
                    };
                    let end = disk.as_ref().map(|disk| self.place(disk.end)).unwrap_or_default();
                    format!("{role} at {end}")
                }
            };
            let sitter = peer.sitter.as_ref().map_or("no sitter".to_owned(), |sitter| {
                let reason = self.in_letters(&sitter.machine.reason().to_string());
                format!("{}: {reason}", sitter.machine.role())
            });
            let _ = writeln!(text, "  {}  {postgres}; {sitter}", self.name(index));
        }
        text
    }

    fn place(&self, point: super::Point) -> String {
        format!("{} on timeline {}", point.position, self.timelines.number(point.branch))
    }
}
