//! Drives the machines of a Manatee shard in a modelled world, without a runtime or a real clock.
//!
//! Contract: deterministic. What is driven here is the same [`cluster::Machine`] that a sitter runs.

pub mod checkers;
pub mod explore;
pub mod fuzz;
mod mutation;
pub mod replay;
pub mod roles;
pub mod script;
pub mod vectors;
pub mod world;

pub use mutation::Mutation;
