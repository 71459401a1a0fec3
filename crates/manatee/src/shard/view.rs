//! What the peers of a shard say, side by side.

use super::Peer;
use crate::status::PeerStatus;
use cluster::{Generation, Monotonic, PeerId, Role};

/// Whether the process of a sitter is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SitterState {
    /// Not started, or ended by us.
    Stopped,
    /// There.
    Running,
    /// It ended by itself, in this way.
    Ended(String),
}

/// What one sitter answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// When it was asked.
    pub asked: Monotonic,
    /// What it said, or why it said nothing.
    pub status: Result<PeerStatus, String>,
}

/// One peer, as it was when it was last asked.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Its zone.
    pub zone: String,
    /// Its name in the shard.
    pub id: PeerId,
    /// Its sitter's process.
    pub sitter: SitterState,
    /// When it was last asked; never, at first.
    pub asked: Option<Monotonic>,
    /// What it answered, or why it did not.
    pub status: Result<PeerStatus, String>,
}

impl PeerView {
    pub(super) fn new(peer: &Peer, answer: Option<Answer>) -> Self {
        let (asked, status) = match answer {
            Some(answer) => (Some(answer.asked), answer.status),
            None => (None, Err("not asked yet".to_owned())),
        };
        let (zone, id) = (peer.zone().to_owned(), peer.id());
        PeerView { zone, id, sitter: peer.sitter_state(), asked, status }
    }

    /// How its sitter ended, if nobody had asked it to.
    pub fn ended_by_itself(&self) -> Option<&str> {
        match &self.sitter {
            SitterState::Ended(how) => Some(how),
            SitterState::Stopped | SitterState::Running => None,
        }
    }

    /// Its place in the shard, if it answered.
    pub fn role(&self) -> Option<Role> {
        self.status.as_ref().ok().map(|status| status.role)
    }

    /// Whether it is the primary and open for writes.
    pub fn is_open(&self) -> bool {
        let open = |status: &PeerStatus| {
            status.role == Role::Primary && status.postgres.online && status.postgres.writable
        };
        self.status.as_ref().is_ok_and(open)
    }

    /// What its PostgreSQL does, in a word or two.
    pub fn postgres(&self) -> &'static str {
        let Ok(status) = &self.status else { return "-" };
        let postgres = &status.postgres;
        match (&status.copying, status.fenced) {
            (Some(copying), _) if copying.phase != "done" => "copying",
            (_, true) => "fenced",
            _ if !postgres.online => "down",
            _ if postgres.writable => "open",
            _ if status.role == Role::Primary => "closed",
            _ if postgres.streaming == Some(true) => "streaming",
            _ => "not streaming",
        }
    }

    /// Everything on one line, for messages.
    pub fn summary(&self) -> String {
        let zone = &self.zone;
        match (&self.sitter, &self.status) {
            (SitterState::Stopped, _) => format!("{zone}: its sitter does not run"),
            (SitterState::Ended(how), _) => format!("{zone}: its sitter ended: {how}"),
            (SitterState::Running, Err(problem)) => format!("{zone}: {problem}"),
            (SitterState::Running, Ok(status)) => {
                let generation = status.generation.map_or("none".to_owned(), |g| g.to_string());
                let failure = status.failure.iter().chain(&status.postgres.error);
                let failure: String = failure.map(|text| format!("; {text}")).collect();
                format!(
                    "{zone}: {} in generation {generation}, PostgreSQL {}, {}{failure}",
                    status.role.label(),
                    self.postgres(),
                    status.reason.text
                )
            }
        }
    }

    /// Whether what it says of its PostgreSQL was found out after `mark`.
    fn looked_since(&self, mark: Monotonic) -> bool {
        let age = self.status.as_ref().ok().and_then(|status| status.postgres.age_ms);
        match (self.asked, age) {
            (Some(asked), Some(age)) => asked.0.saturating_sub(age) >= mark.0,
            _ => false,
        }
    }
}

/// All peers of a shard, in the order of their making.
#[derive(Debug, Clone)]
pub struct ShardView {
    /// The peers.
    pub peers: Vec<PeerView>,
}

impl ShardView {
    /// The peer of this zone.
    ///
    /// # Panics
    /// When there is none.
    pub fn peer(&self, zone: &str) -> &PeerView {
        let found = self.peers.iter().find(|peer| peer.zone == zone);
        found.unwrap_or_else(|| panic!("no peer has the zone {zone}"))
    }

    /// The peer that is primary and open for writes; of several, the one of the newest generation.
    pub fn primary(&self) -> Option<&PeerView> {
        let generation = |peer: &&PeerView| peer.status.as_ref().ok().and_then(|s| s.generation);
        self.peers.iter().filter(|peer| peer.is_open()).max_by_key(generation)
    }

    /// A text of the sitters with the zones of peers in place of their ids, as people name them.
    pub fn by_zone(&self, text: &str) -> String {
        let peers = self.peers.iter();
        peers.fold(text.to_owned(), |text, peer| text.replace(peer.id.as_str(), &peer.zone))
    }

    /// The newest generation that a peer knows.
    pub fn generation(&self) -> Option<Generation> {
        self.peers.iter().filter_map(|peer| peer.status.as_ref().ok()?.generation).max()
    }

    /// Whether every peer has been asked, with its answer, after `mark`.
    pub(super) fn heard_since(&self, mark: Monotonic) -> bool {
        self.peers.iter().all(|peer| peer.asked.is_some_and(|asked| asked >= mark))
    }

    /// Nothing, if by what was found out after `mark` the shard is whole; else what is missing.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn whole_since(&self, mark: Monotonic) -> Result<(), String> {
        let newest = self.generation().ok_or("no peer knows a generation")?;
        for peer in &self.peers {
            let zone = &peer.zone;
            let status = peer.status.as_ref().map_err(|problem| format!("{zone}: {problem}"))?;
            if status.generation != Some(newest) {
                return Err(format!("{zone} does not know of generation {newest} yet"));
            }
            if !peer.looked_since(mark) {
                return Err(format!("{zone} has not looked at its PostgreSQL"));
            }
            let fit = match status.role {
                Role::Primary => peer.is_open() && counts_a_sync(status),
                Role::Sync | Role::Async => status.postgres.streaming == Some(true),
                Role::Unknown | Role::Unassigned | Role::Deposed => false,
            };
            if !fit {
                return Err(peer.summary());
            }
        }
        for role in [Role::Primary, Role::Sync] {
            let count = self.peers.iter().filter(|peer| peer.role() == Some(role)).count();
            if count != 1 {
                return Err(format!("{count} peers say that they are {}", role.label()));
            }
        }
        Ok(())
    }
}

/// Whether commits of this primary wait for a standby that streams.
fn counts_a_sync(primary: &PeerStatus) -> bool {
    primary.postgres.senders.iter().any(|s| s.state == "streaming" && s.sync_state == "sync")
}
