//! Shards of real sitters and real PostgreSQL under faults, each with a writer whose ledger of
//! acknowledged writes is held against the database afterwards. One at a time: each has three
//! servers and is sensitive to how long things take.

mod apart;
mod bench;
mod deaths;
mod ensemble;
mod etcd;
mod files;
#[path = "../../../adapters/tests/filesystems/mod.rs"]
mod filesystems;
mod network;
mod original_client;
mod outages;
mod rebuild;
mod service;
mod slow_disks;
mod still;
mod volumes;
mod world;
mod zookeeper;

use world::{World, limit};
