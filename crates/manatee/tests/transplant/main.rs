//! A real donor under a writer is moved into a real shard and back out, whatever happens to whoever moves
//! it. At the end the ledger is held against whoever serves.

mod harness;
mod postgres;
