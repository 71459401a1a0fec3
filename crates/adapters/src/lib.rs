//! What Manatee touches of the world: coordination ([`coord`]) and storage ([`storage`]), a trait each with
//! its backends beside it; PostgreSQL ([`postgres`]), and hosts with their services ([`service`]).
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
