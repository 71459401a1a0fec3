//! PostgreSQL: one server of one peer.
