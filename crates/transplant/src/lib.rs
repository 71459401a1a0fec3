//! Moves an existing PostgreSQL, the *donor*, into a Manatee shard, the *recipient*, and back out.
//!
//! Contract: until [`commit`](saga::Entry::Committing) every step can be undone and nothing that was there
//! is gone. At every moment at most one of the two takes writes: the donor until it is stopped and fenced,
//! the recipient from when it is proven to have all that the donor had, and after a rollback the donor
//! again, with all that the recipient took (SPEC.md, "The transplant").

mod discover;
mod donor;
mod inventory;
mod journal_file;
mod manatee;
mod patroni;
mod plan;
mod preflight;
mod recipient;
mod runbook;
mod snapshots;
mod steps;
mod without;
mod world;

pub use discover::{Asking, Draft, Source, discover, is_here};
pub use donor::{Control, Donor, without_block};
pub use inventory::{
    BackupConfig, ClientCheck, DatasetConfig, DatasetKind, DonorConfig, DonorKind, DonorShard,
    DonorStandby, Inventory, Limits, Method, PatroniConfig, RecipientPeer, VerifyConfig,
};
pub use journal_file::{JournalFile, Locked, journal_of};
pub use manatee::ShardFacts;
pub use patroni::PatroniFacts;
pub use plan::{Facts, MADE_BY, ROLLED_BACK, plan};
pub use preflight::{LIBRARY_SETTINGS, Problem, Seen, look, notes, problems};
pub use recipient::{BackupPlace, Hindrance, PeerFacts, Progress, REPLICATED};
pub use runbook::runbook;
pub use snapshots::{Arrived, DatasetFacts, Rest, SnapshotFacts};
pub use steps::{FENCE_FILES, PORT_BESIDE, Proof};
pub use without::{Without, was_without_donor};
pub use world::{Screen, World, verify, written_since};
