//! The backup service, its certificates, and periodic snapshots, as the sitter's file says.

use super::{Config, Seconds};
use crate::backup::{Limits, Secret, TlsFiles};
use serde::Deserialize;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// The backup service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupConfig {
    /// Its port; part of the peer's name.
    pub port: u16,
    /// What it listens on; the peer's address where it is not given.
    pub listen: Option<IpAddr>,
    /// How many streams are sent at once.
    pub streams: usize,
    /// MiB a second that no stream exceeds; 0 for no limit.
    pub rate_mib: u64,
    /// Whether the original's protocol is spoken, too.
    pub original_protocol: bool,
}

impl Default for BackupConfig {
    fn default() -> Self {
        BackupConfig {
            port: 12345,
            listen: None,
            streams: 4,
            rate_mib: 0,
            original_protocol: false,
        }
    }
}

/// The certificates of the shard, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The shard's authority: whoever has a certificate of it is a peer.
    pub ca_file: PathBuf,
    /// This peer's certificate; it names the peer's address.
    pub certificate_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

impl From<TlsConfig> for TlsFiles {
    fn from(config: TlsConfig) -> TlsFiles {
        TlsFiles {
            authority: config.ca_file,
            certificate: config.certificate_file,
            key: config.key_file,
        }
    }
}

/// Periodic snapshots, where the storage has them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotsConfig {
    /// Whether they are made.
    pub enabled: bool,
    /// Between two.
    pub period: Seconds,
    /// How many are kept.
    pub keep: usize,
    /// Of the file system, in percent: with less free, a warning.
    pub warn_free: u8,
    /// Of the file system, in percent: with less free, none is made.
    pub stop_free: u8,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        SnapshotsConfig {
            enabled: true,
            period: Seconds(3600.0),
            keep: 50,
            warn_free: 20,
            stop_free: 10,
        }
    }
}

impl Config {
    /// Where the backup service listens.
    pub fn backup_address(&self) -> SocketAddr {
        SocketAddr::new(self.backup.listen.unwrap_or(self.ip), self.backup.port)
    }

    /// What the backup service allows.
    pub fn backup_limits(&self) -> Limits {
        let rate = (self.backup.rate_mib > 0).then(|| self.backup.rate_mib.saturating_mul(1 << 20));
        Limits { streams: self.backup.streams, rate, ..Limits::default() }
    }

    /// What the peers of the shard prove to each other that they belong to it by.
    pub fn secret(&self) -> Secret {
        Secret::new(&self.shard, self.replication.password.as_deref().unwrap_or_default())
    }

    pub(super) fn check_backup(&self) -> Result<(), String> {
        let SnapshotsConfig { warn_free, stop_free, .. } = self.snapshots;
        if warn_free > 100 || stop_free > warn_free {
            return Err(format!(
                "snapshots: warn_free ({warn_free}) and stop_free ({stop_free}) are percentages, the \
                 second not above the first"
            ));
        }
        if self.backup.streams == 0 {
            return Err("backup.streams: give at least 1".to_owned());
        }
        Ok(())
    }
}
