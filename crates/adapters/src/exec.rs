//! Commands: the only place that spawns them.
