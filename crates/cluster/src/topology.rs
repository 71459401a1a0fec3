//! Who serves what, for those that only want to connect: from the cluster state where there is one, and
//! from the order of registrations where there is none, as in a shard of the first version.

use crate::{ClusterState, PeerIdent, StateError, v1};
use serde::Serialize;

/// What a topology was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TopologySource {
    /// The cluster state: a shard of the second version, or of ours.
    State,
    /// The order of registrations: a shard of the first version.
    Election,
}

/// The chain of a shard: primary, sync, asyncs. Who is deposed is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Topology {
    /// What it was taken from.
    pub source: TopologySource,
    /// `pgUrl` of each, in the order of the chain. Empty when nobody is registered.
    pub urls: Vec<String>,
}

impl Topology {
    fn new<'a>(source: TopologySource, chain: impl Iterator<Item = &'a PeerIdent>) -> Self {
        Topology { source, urls: chain.map(|peer| peer.pg_url.clone()).collect() }
    }
}

/// Something that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The stored cluster state as text; `None` when there is none.
    State(Option<String>),
    /// The live registrations, in order.
    Registered(Vec<PeerIdent>),
}

/// Follows a shard of either version, from one to the other and back as the state appears and
/// disappears.
///
/// Says nothing before it has read what it needs, and nothing twice. A state that cannot be understood is
/// no reason to take the order of registrations for the topology: it is told as an error.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    state: Option<Option<Result<ClusterState, StateError>>>,
    registered: Option<Vec<PeerIdent>>,
    told: Option<Result<Topology, StateError>>,
}

impl Resolver {
    /// The topology, if what was seen makes it another one.
    ///
    /// # Errors
    /// When the state that is stored now cannot be understood; the topology before it is what is known.
    pub fn see(&mut self, seen: Seen) -> Option<Result<Topology, StateError>> {
        match seen {
            Seen::State(text) => self.state = Some(text.map(|text| ClusterState::parse(&text))),
            Seen::Registered(peers) => self.registered = Some(peers),
        }
        let now = self.resolve()?;
        if self.told.as_ref() == Some(&now) {
            return None;
        }
        self.told = Some(now.clone());
        Some(now)
    }

    fn resolve(&self) -> Option<Result<Topology, StateError>> {
        match self.state.as_ref()? {
            Some(Ok(state)) => Some(Ok(Topology::new(TopologySource::State, state.chain()))),
            Some(Err(error)) => Some(Err(error.clone())),
            None => {
                let roles = v1::roles(self.registered.as_ref()?).into_iter();
                Some(Ok(Topology::new(TopologySource::Election, roles.map(|(_, peer)| peer))))
            }
        }
    }
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
