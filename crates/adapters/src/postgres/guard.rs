//! What is for us alone to set, and what an operator may not ask for. Pure.

use super::{PgCause, Settings};
use cluster::PeerId;
use std::collections::BTreeMap;

/// The longest name that PostgreSQL keeps whole.
const LONGEST_NAME: usize = 63;

/// Settings of the operator that are refused whatever their value: ours, and what would make
/// recovery stop, wait or read WAL that the shard did not send.
const REFUSED: &[&str] = &[
    "allow_alter_system",
    "archive_cleanup_command",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "default_transaction_read_only",
    "event_source",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "ignore_invalid_pages",
    "include",
    "include_dir",
    "include_if_exists",
    "lc_messages",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "restore_command",
    "synchronous_standby_names",
    "transaction_read_only",
    "unix_socket_directories",
    "wal_keep_size",
    "wal_log_hints",
    "wal_receiver_create_temp_slot",
    "wal_receiver_status_interval",
    "wal_retrieve_retry_interval",
    "zero_damaged_pages",
];

/// Whether this setting is for us alone to make.
pub(super) fn is_guarded(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    REFUSED.contains(&name.as_str()) || name.starts_with("manatee.")
}

/// Checks the operator's settings and everything else that ends up in a file.
///
/// # Errors
/// At the first one that would break a rule of the shard or a file.
pub(super) fn check(settings: &Settings) -> Result<(), PgCause> {
    check_names(&settings.user_settings)?;
    check_name(&settings.me)?;
    let printable = |what: &str, text: &str| {
        if text.chars().any(char::is_control) {
            let remedy = "it cannot hold line breaks or other control characters";
            return Err(PgCause::settings(what, remedy));
        }
        Ok(())
    };
    printable("superuser", &settings.superuser)?;
    printable("replication user", &settings.replication_user)?;
    printable("replication password", &settings.replication_password)?;
    printable("listen address", &settings.listen)?;
    printable("superuser password", settings.superuser_password.as_deref().unwrap_or(""))?;
    for client in &settings.client_hba {
        printable("line of pg_hba for clients", client)?;
    }
    if settings.replication_user.is_empty() || settings.superuser.is_empty() {
        return Err(PgCause::settings("a role without a name", "name it"));
    }
    if settings.replication_user == settings.superuser {
        return Err(PgCause::settings(
            format!("role {:?} is both superuser and for replication", settings.superuser),
            "use two roles: the one for replication must not be able to read or write data",
        ));
    }
    // The address of a Unix socket has room for 107 bytes.
    let socket = settings.socket_dir.join(format!(".s.PGSQL.{}", settings.port));
    if socket.as_os_str().len() > 107 {
        return Err(PgCause::settings(
            format!("socket {} is longer than 107 bytes", socket.display()),
            "use a shorter socket directory",
        ));
    }
    Ok(())
}

/// A setting that the operator may not make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL setting {name} = {value:?}: {remedy}")]
pub struct RefusedSetting {
    /// Its name, as it was written.
    pub name: String,
    /// The value that it was to have.
    pub value: String,
    /// What to do.
    pub remedy: &'static str,
}

impl From<RefusedSetting> for PgCause {
    fn from(refused: RefusedSetting) -> PgCause {
        let RefusedSetting { name, value, remedy } = refused;
        PgCause::settings(format!("PostgreSQL setting {name} = {value:?}"), remedy)
    }
}

/// Checks the operator's settings for what is not theirs to set. It asks no server, so it does not
/// know which settings exist; [`super::Postgres::check_settings`] does.
///
/// # Errors
/// At the first one that is refused.
pub fn check_names(settings: &BTreeMap<String, String>) -> Result<(), RefusedSetting> {
    for (name, value) in settings {
        if let Some(remedy) = refusal(name, value) {
            return Err(RefusedSetting { name: name.clone(), value: value.clone(), remedy });
        }
    }
    Ok(())
}

/// What to do about this setting, if it cannot stay.
fn refusal(name: &str, value: &str) -> Option<&'static str> {
    let well_formed = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    if !well_formed || value.chars().any(char::is_control) {
        return Some("a name has letters, digits, _ and dots, a value no control characters");
    }
    if is_guarded(name) {
        return Some("Manatee sets this itself: remove it");
    }
    if lacks_room(name, value) {
        return Some("standbys stream and are copied by these: give at least 3, or remove it");
    }
    weakens(name, value).then_some("it weakens what the shard rests on: remove it")
}

/// Whether this leaves standbys no way to stream: one streams, and a copy needs two more.
fn lacks_room(name: &str, value: &str) -> bool {
    let is_room = ["max_wal_senders", "max_replication_slots"]
        .iter()
        .any(|room| name.eq_ignore_ascii_case(room));
    is_room && value.trim().parse::<i64>().is_ok_and(|count| count < 3)
}

/// Whether this value of a setting that is otherwise the operator's breaks a promise of the shard:
/// commits that do not wait for the flush of the standby, or WAL that no standby can replay.
pub(super) fn weakens(name: &str, value: &str) -> bool {
    // All that PostgreSQL understands: unknown values are refused rather than trusted.
    let enough: &[&str] = match name.to_ascii_lowercase().as_str() {
        "synchronous_commit" => &["on", "remote_apply", "true", "yes", "1"],
        "wal_level" => &["replica", "logical", "archive", "hot_standby"],
        _ => return false,
    };
    !enough.iter().any(|enough| value.trim().eq_ignore_ascii_case(enough))
}

/// Whether nobody but us may make this setting have this value, wherever it stands.
pub(super) fn is_forbidden(name: &str, value: &str) -> bool {
    is_guarded(name) || weakens(name, value)
}

/// Whether a standby can carry this peer's name unchanged.
///
/// # Errors
/// When PostgreSQL would cut or change it: another name would count, or none.
pub(super) fn check_name(peer: &PeerId) -> Result<(), PgCause> {
    let name = peer.as_str();
    let plain = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if plain && (1..=LONGEST_NAME).contains(&name.len()) && name != "*" {
        return Ok(());
    }
    Err(PgCause::settings(
        format!("peer {name:?} cannot be the name of a standby"),
        "use 1 to 63 printable ASCII characters",
    ))
}

/// `postgresql.auto.conf` without settings that are for us alone to make or that weaken what the
/// shard rests on, and their names; `None` when there are none.
pub(super) fn stripped(auto_conf: &str) -> Option<(String, Vec<String>)> {
    let forbidden = |line: &str| {
        let (name, value) = assignment(line);
        is_forbidden(name, &value).then(|| name.to_owned())
    };
    let names: Vec<String> = auto_conf.lines().filter_map(forbidden).collect();
    if names.is_empty() {
        return None;
    }
    let kept = auto_conf.lines().filter(|line| forbidden(line).is_none());
    Some((kept.fold(String::new(), |text, line| text + line + "\n"), names))
}

/// Name and value of a line of a configuration file: `name = 'value' # comment`, the sign and the
/// quotes being optional. What it makes of a malformed one is no good value of anything.
fn assignment(line: &str) -> (&str, String) {
    let line = line.trim();
    let end = line.find(|c: char| c == '=' || c == '#' || c.is_whitespace()).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        // No value that is looked for has a quote in it.
        Some(quoted) => quoted.split('\'').next(),
        None => rest.split(|c: char| c == '#' || c.is_whitespace()).next(),
    };
    (name, value.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_conf_keeps_what_does_no_harm() {
        let kept = "# comment\nwork_mem = '5MB'\nsynchronous_commit = 'remote_apply'\n\
            synchronous_commit on # why\nSynchronous_Commit=TRUE\nwal_level = 'logical'\n";
        assert_eq!(stripped(kept), None);
        for line in [
            "synchronous_commit = 'off'",
            "synchronous_commit=local",
            "  Synchronous_Commit 'remote_write' # faster",
            "synchronous_commit = 'no'",
            "synchronous_commit = 0",
            "synchronous_commit =",
            "wal_level = minimal",
            "fsync = on",
            "port=1",
        ] {
            let text = format!("{kept}{line}\n");
            let (text, names) = stripped(&text).unwrap_or_else(|| panic!("kept: {line}"));
            assert_eq!((text.as_str(), names.len()), (kept, 1), "{line}");
        }
    }
}
