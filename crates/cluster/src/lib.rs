//! The rules of a Manatee shard: the vocabulary of its state, the decision that a peer takes from
//! what it sees, and the machine around it that knows what is in flight.
//!
//! Contract: pure. Time, identities and every outcome of an operation are arguments; what is to be
//! done is returned as data. This crate deliberately has no runtime, no clock, no randomness and
//! no hash tables.

mod ident;
mod lsn;
mod pg;
mod state;
mod time;

pub use ident::{PeerId, PeerIdent, PeerIdentError};
pub use lsn::{Lsn, LsnError};
pub use pg::{Counts, Gate, PgConfig, StandbyRole};
pub use state::{ClusterState, Freeze, FreezeInfo, Generation, Promote, PromoteRole, StateError};
pub use time::{Millis, Monotonic};
