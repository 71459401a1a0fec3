//! Drives the machines of a shard in a modelled world.
