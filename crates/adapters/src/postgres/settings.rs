//! What a server is run with.

use cluster::{Millis, PeerId};
use std::{collections::BTreeMap, path::PathBuf};

/// How PostgreSQL is run on this host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the server programs are; `None` for the newest of the usual places.
    pub bin_dir: Option<PathBuf>,
    /// The mount point of the dataset; the database lives in `data` in it.
    pub dataset: PathBuf,
    /// Where what belongs to this host stays when the dataset is replaced: the log, and what the
    /// running server was brought to. May be the dataset itself.
    pub home: PathBuf,
    /// Where the Unix socket is made.
    pub socket_dir: PathBuf,
    /// This peer: its `application_name` as a standby.
    pub me: PeerId,
    /// `listen_addresses`.
    pub listen: String,
    /// The TCP port, also part of the socket's name.
    pub port: u16,
    /// Who runs PostgreSQL when the sitter runs as root; `None` is `postgres`.
    pub os_user: Option<String>,
    /// The database superuser.
    pub superuser: String,
    /// Lets the superuser in over TCP, with this password; without it only over the Unix socket.
    pub superuser_password: Option<String>,
    /// The role that standbys connect as.
    pub replication_user: String,
    /// Its password.
    pub replication_password: String,
    /// Its replication slot at an upstream that does not make one for it by its name.
    pub upstream_slot: Option<String>,
    /// Lines of `pg_hba.conf` for clients, before our last one.
    pub client_hba: Vec<String>,
    /// The operator's settings of `postgresql.conf`.
    pub user_settings: BTreeMap<String, String>,
    /// `max_slot_wal_keep_size` in MiB: what a slot may hold back.
    pub slot_keep_size: u64,
    /// `wal_keep_size` in MiB: what is kept without a slot.
    pub wal_keep_size: u64,
    /// How often a standby reports, at least; rounded up to whole seconds.
    pub status_interval: Millis,
    /// How long a start, a promotion or a standstill of replay may take.
    pub start_timeout: Millis,
    /// How long an orderly shutdown may take before it becomes an immediate one.
    pub stop_timeout: Millis,
    /// How long a query or a reload may take.
    pub query_timeout: Millis,
}
