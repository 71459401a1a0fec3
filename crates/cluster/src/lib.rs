//! The rules of a Manatee shard: the vocabulary of its state, the decision that a peer takes from
//! what it sees ([`decide`](fn@decide)), and the machine around it that knows what is in flight
//! ([`Machine`]).
//!
//! Contract: pure. Time, identities and every outcome of an operation are arguments; what is to be
//! done is returned as data. This crate deliberately has no runtime, no clock, no randomness and
//! no hash tables. The rules themselves are stated in `SPEC.md`; their ids stand in [`Reason`].

mod decide;
mod ident;
mod lsn;
mod machine;
mod pg;
mod reason;
mod state;
mod successor;
mod time;
mod topology;
pub mod v1;
mod view;

pub use decide::{Decision, PgTarget, decide};
pub use ident::{PeerId, PeerIdent, PeerIdentError};
pub use lsn::{Lsn, LsnError};
pub use machine::{
    Action, ApplyError, Event, Machine, MachineConfig, Now, PgCommand, PgOutcome, PutOutcome,
    Snapshot, StateSeen, Version, Way,
};
pub use pg::{Counts, Gate, PgConfig, StandbyRole};
pub use reason::{Reason, Role};
pub use state::{ClusterState, Freeze, FreezeInfo, Generation, Promote, PromoteRole, StateError};
pub use successor::{IllegalSuccessor, check_successor};
pub use time::{Millis, Monotonic};
pub use topology::{Resolver, Seen, Topology, TopologySource};
pub use view::{Applied, Database, DeposedPolicy, View};
