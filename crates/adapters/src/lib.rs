//! What Manatee touches of the world, one trait a kind with its backends beside it: coordination
//! ([`coord`]), storage ([`storage`]), PostgreSQL ([`postgres`]), and hosts with their services ([`service`]).
//!
//! Contract: no adapter decides anything, none knows the driver, and only [`exec`] spawns
//! commands.

pub mod clock;
pub mod coord;
pub mod exec;
pub mod postgres;
pub mod service;
pub mod storage;
pub mod testing;
