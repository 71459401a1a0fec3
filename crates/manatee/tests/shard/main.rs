//! Shards of real sitters and real PostgreSQL under faults, each with a writer whose ledger of
//! acknowledged writes is held against the database afterwards.

mod apart;
#[path = "../certificates/mod.rs"]
mod backup_certificates;
mod bench;
#[path = "../../../adapters/tests/coord_access/certificates.rs"]
mod certificates;
mod deaths;
#[path = "../common/diary.rs"]
mod diary;
mod ensemble;
mod etcd;
mod files;
#[path = "../../../adapters/tests/filesystems/mod.rs"]
mod filesystems;
#[path = "../../../adapters/tests/coord_access/guarded.rs"]
mod guarded;
mod hung_disk;
mod network;
mod original_client;
mod outages;
mod promote;
mod rebuild;
mod service;
mod slow_disks;
mod still;
mod volumes;
mod world;
mod zookeeper;

use world::{World, limit, slowly};
