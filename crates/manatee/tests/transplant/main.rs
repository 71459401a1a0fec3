//! A real donor under a writer is moved into a real shard and back out, whatever happens to whoever moves
//! it. At the end the ledger is held against whoever serves.

mod cluster;
#[path = "../../../adapters/tests/filesystems/mod.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod filesystems;
mod first_version;
mod harness;
mod manatee;
mod ours;
mod pair;
mod patroni;
mod postgres;
mod ssh;
mod v1_peer;
