//! The backup service: how a snapshot of one peer's dataset reaches another.
//!
//! The receiver pulls the stream in numbered segments, each with its checksum. The sender keeps the
//! newest one until the next is asked for, so that a lost answer costs one segment and no more; it
//! reads the next meanwhile. So memory is bounded by a few segments a stream, and a cut of the network
//! is nothing. When either process dies, the stream is over, and whoever receives begins another,
//! from where its file system can go on.
//!
//! Both sides prove that they belong to the shard: by the shard's secret always, and by certificates
//! where TLS is configured.

mod auth;
mod fetch;
mod jobs;
mod legacy;
mod outlet;
mod pace;
mod receive;
mod segment;
mod service;
mod tls;
mod wire;

pub use auth::Secret;
pub use fetch::{FetchError, Progress, Remote, Sink};
pub use jobs::{Jobs, Limits, Outgoing, Outlet, Refusal};
pub use legacy::LegacyOutlet;
pub use outlet::{StorageOutlet, release_leftovers};
pub use receive::{ReceiveError, Received, Reception, SEED, take};
pub(crate) use segment::Cutter;
pub use segment::Input;
pub use service::{Service, Serving, serve};
pub use tls::{TlsError, TlsFiles};
pub(crate) use wire::SEGMENT;
pub use wire::{
    JobState, JobStatus, Offer, Part, RebuildRequest, SnapshotInfo, SnapshotRequest, StreamRequest,
    StreamStarted,
};
