//! The configuration files, as text. Pure.
//!
//! The operator's settings come first in `manatee.conf`, ours after them, and `manatee.conf` is the
//! last thing that `postgresql.conf` includes: ours win. `postgresql.auto.conf` (ALTER SYSTEM) is
//! read after all of it, so what it says of our settings is taken out of it, and of the operator's
//! what weakens the shard.

use super::{
    Settings,
    connection::{KEEPALIVES, quoted},
};
use cluster::{Counts, PeerId};
use std::{collections::BTreeMap, fmt::Write};

/// Ours, in the data directory.
pub(super) const CONF: &str = "manatee.conf";
/// Who may connect.
pub(super) const HBA: &str = "manatee-hba.conf";
/// Which operating system user is which role.
pub(super) const IDENT: &str = "manatee-ident.conf";
/// A setting of ours that PostgreSQL keeps without knowing it: the hash of all that was rendered.
/// A session that sees it proves that the postmaster has read these very files.
pub(super) const NONCE: &str = "manatee.rendered";

/// Counts as nobody. PostgreSQL cuts `application_name` to 63 bytes, so no standby can ever have a
/// name as long as this one.
pub(super) const NOBODY: &str =
    "manatee-nobody-counts-and-no-commit-is-acknowledged-until-another-name-stands-here";

/// What a server is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Primary {
        /// `synchronous_standby_names`.
        names: String,
        /// `default_transaction_read_only`.
        read_only: bool,
    },
    Standby {
        /// Host and port; `None` when detached.
        upstream: Option<(String, u16)>,
    },
}

impl Shape {
    /// `synchronous_standby_names`: a standby has nobody's, lest it acknowledge alone when somebody
    /// promotes it by hand.
    pub fn names(&self) -> String {
        match self {
            Shape::Primary { names, .. } => names.clone(),
            Shape::Standby { .. } => names(&Counts::Nobody),
        }
    }
}

/// `synchronous_standby_names` for this.
pub(super) fn names(counts: &Counts) -> String {
    let first = |name: &str| format!("FIRST 1 (\"{}\")", name.replace('"', "\"\""));
    match counts {
        Counts::Sync(peer) => first(peer.as_str()),
        Counts::Nobody => first(NOBODY),
        Counts::Alone => String::new(),
    }
}

/// The text of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub conf: String,
    pub hba: String,
    pub ident: String,
    /// The value of [`NONCE`].
    pub nonce: String,
    pub names: String,
}

/// Renders all files. Without `clients` only we and standbys may connect.
pub(super) fn files(
    settings: &Settings,
    data: &str,
    major: u32,
    shape: &Shape,
    clients: bool,
) -> Files {
    let hba = hba(settings, clients);
    let ident = ident(settings);
    let mut conf = String::from("# Written by Manatee; changes made here are lost.\n");
    for (name, value) in DEFAULTS {
        line(&mut conf, name, value);
    }
    conf += "\n# The operator's.\n";
    for (name, value) in &settings.user_settings {
        line(&mut conf, name, value);
    }
    conf += "\n# Manatee's: what the safety of the shard rests on.\n";
    for (name, value) in ours(settings, data, major, shape) {
        line(&mut conf, &name, &value);
    }
    let nonce = format!("{:016x}", fnv(&[&conf, &hba, &ident]));
    line(&mut conf, NONCE, &nonce);
    Files { conf, hba, ident, nonce, names: shape.names() }
}

/// These settings alone.
pub(super) fn settings(settings: &BTreeMap<String, String>) -> String {
    settings.iter().fold(String::new(), |mut conf, (name, value)| {
        line(&mut conf, name, value);
        conf
    })
}

/// The setting that names who counts.
pub(super) const NAMES: &str = "synchronous_standby_names";

fn line(conf: &mut String, name: &str, value: &str) {
    let value = value.replace('\\', "\\\\").replace('\'', "''");
    // Writing to a String cannot fail.
    let _ = writeln!(conf, "{name} = '{value}'");
}

/// What the operator may set otherwise.
pub(super) const DEFAULTS: [(&str, &str); 7] = [
    ("max_wal_senders", "32"),
    ("max_replication_slots", "32"),
    ("wal_level", "replica"),
    ("synchronous_commit", "on"),
    ("password_encryption", "scram-sha-256"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("wal_receiver_timeout", "10s"),
];

/// What must be as it is here.
pub(super) fn ours(
    settings: &Settings,
    data: &str,
    major: u32,
    shape: &Shape,
) -> BTreeMap<String, String> {
    let onoff = |on: bool| if on { "on" } else { "off" }.to_owned();
    let seconds = settings.status_interval.0.div_ceil(1000).max(1);
    let detached = matches!(shape, Shape::Standby { upstream: None });
    let read_only = matches!(shape, Shape::Primary { read_only: true, .. });
    let conninfo = match shape {
        Shape::Standby { upstream: Some((host, port)) } => conninfo(settings, host, *port),
        _ => String::new(),
    };
    let slot = match &settings.upstream_slot {
        _ if conninfo.is_empty() => String::new(),
        Some(slot) => slot.clone(),
        None => slot_name(&settings.me),
    };
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
    set("listen_addresses", settings.listen.clone());
    set("port", settings.port.to_string());
    set("unix_socket_directories", settings.socket_dir.display().to_string());
    set("hba_file", format!("{data}/{HBA}"));
    set("ident_file", format!("{data}/{IDENT}"));
    set(NAMES, shape.names());
    set("default_transaction_read_only", onoff(read_only));
    set("fsync", onoff(true));
    set("full_page_writes", onoff(true));
    set("wal_log_hints", onoff(true));
    set("hot_standby", onoff(true));
    set("data_sync_retry", onoff(false));
    // After a crash of one backend the postmaster would start the others anew by itself, with
    // shared memory that has forgotten that commits wait until the checkpointer has run. It ends
    // instead, and we start it with the clients kept out until that is done.
    set("restart_after_crash", onoff(false));
    set("max_slot_wal_keep_size", format!("{}MB", settings.slot_keep_size));
    set("wal_keep_size", format!("{}MB", settings.wal_keep_size));
    set("primary_conninfo", conninfo);
    set("primary_slot_name", slot);
    set("recovery_target_timeline", "latest".to_owned());
    set("restore_command", String::new());
    set("recovery_min_apply_delay", "0".to_owned());
    set("wal_receiver_create_temp_slot", onoff(false));
    set("wal_receiver_status_interval", format!("{seconds}s"));
    // Detached, a standby is about to take over: it looks for more WAL on its disk more often,
    // and no reader may hold up what it has still to replay.
    set("wal_retrieve_retry_interval", if detached { "100ms" } else { "500ms" }.to_owned());
    if detached {
        set("max_standby_streaming_delay", "0".to_owned());
        set("max_standby_archive_delay", "0".to_owned());
    }
    set("logging_collector", onoff(false));
    set("log_destination", "stderr".to_owned());
    // What the log says is read by us.
    set("lc_messages", "C".to_owned());
    if major >= 17 {
        set("allow_alter_system", onoff(false));
    }
    all
}

fn conninfo(settings: &Settings, host: &str, port: u16) -> String {
    format!(
        "host={} port={port} user={} password={} application_name={} connect_timeout=5 {KEEPALIVES}",
        quoted(host),
        quoted(&settings.replication_user),
        quoted(&settings.replication_password),
        quoted(settings.me.as_str()),
    )
}

/// Quotes a name for `pg_hba.conf` and `pg_ident.conf`.
fn hba_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn hba(settings: &Settings, clients: bool) -> String {
    let superuser = hba_name(&settings.superuser);
    let replication = hba_name(&settings.replication_user);
    let mut hba = format!(
        "# Written by Manatee; changes made here are lost.\n\
         local all {superuser} peer map=manatee\n\
         host replication {replication} all scram-sha-256\n\
         host postgres {replication} all scram-sha-256\n\
         local all {replication} reject\n\
         host all {replication} all reject\n"
    );
    if !clients {
        return hba + "# No clients until it is certain that commits wait.\n";
    }
    let method = match settings.superuser_password {
        Some(_) => "scram-sha-256",
        None => "reject",
    };
    let _ = writeln!(hba, "host all {superuser} all {method}");
    for client in &settings.client_hba {
        let _ = writeln!(hba, "{client}");
    }
    hba + "local all all peer\n"
}

fn ident(settings: &Settings) -> String {
    let superuser = hba_name(&settings.superuser);
    let os_user = settings.os_user.as_deref().unwrap_or("postgres");
    ["root", os_user]
        .iter()
        .fold(String::from("# Written by Manatee; changes made here are lost.\n"), |text, user| {
            format!("{text}manatee {} {superuser}\n", hba_name(user))
        })
}

/// The start of every replication slot of ours.
pub(super) const SLOT_PREFIX: &str = "manatee_";

/// The replication slot of a peer: readable, and made distinct by a hash of the whole name, since
/// a slot's name has few characters to choose from and at most 63 of them.
pub(super) fn slot_name(peer: &PeerId) -> String {
    let readable: String = peer
        .as_str()
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(38)
        .collect();
    format!("{SLOT_PREFIX}{readable}_{:016x}", fnv(&[peer.as_str()]))
}

/// FNV-1a, 64 bits: the same on every host and in every release.
fn fnv(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What a `manatee.conf` says of a setting.
pub(super) fn setting<'a>(conf: &'a str, name: &str) -> Option<&'a str> {
    conf.lines().find(|line| line.split(' ').next() == Some(name))
}

/// `postgresql.conf` with `manatee.conf` included last, and only there; `None` when it is so.
pub(super) fn included(conf: &str) -> Option<String> {
    let ours = format!("include '{CONF}'");
    let meant: Vec<_> = conf
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let count = meant.iter().filter(|line| **line == ours).count();
    if count == 1 && meant.last() == Some(&ours.as_str()) {
        return None;
    }
    let mut text: String = conf
        .lines()
        .filter(|line| line.trim() != ours)
        .fold(String::new(), |text, line| text + line + "\n");
    let _ = writeln!(text, "{ours}");
    Some(text)
}
