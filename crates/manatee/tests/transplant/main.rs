//! A real donor under a writer is moved into a real shard and back out, whatever happens to whoever moves
//! it. At the end the ledger is held against whoever serves.

mod first_version;
mod harness;
mod manatee;
mod ours;
mod postgres;
mod v1_peer;
