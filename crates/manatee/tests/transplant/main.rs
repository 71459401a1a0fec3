//! A real donor under a writer is moved into a real shard and back out, whatever happens to whoever moves
//! it. At the end the ledger is held against whoever serves.

mod backup;
mod bench;
#[path = "../../../adapters/tests/coord_access/certificates.rs"]
mod certificates;
mod cluster;
mod copied;
#[path = "../common/diary.rs"]
mod diary;
mod discover;
#[path = "../../../adapters/tests/filesystems/mod.rs"]
mod filesystems;
mod first_version;
mod gone;
mod ground;
#[path = "../../../adapters/tests/coord_access/guarded.rs"]
mod guarded;
mod harness;
mod manatee;
mod opened;
mod ours;
mod pair;
mod patroni;
mod postgres;
mod preflight;
mod runner;
mod snapshots;
mod ssh;
mod systemd;
mod v1_peer;
mod verify;
