//! What the `manatee` binary is made of. A library so that tests of whole shards can use the same
//! code as the demonstration; not an interface for other programs.

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod adm;
mod archive;
pub mod backup;
pub mod demo;
pub mod shard;
pub mod sim_cmd;
pub mod sitter;
pub mod status;
pub mod transplant;
