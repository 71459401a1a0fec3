//! The inventory: what is moved, where to, and within which limits (TOML).

use adapters::service::{Host, Service};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// Everything that a transplant is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// What is moved.
    pub donor: DonorConfig,
    /// The peers of the shard that it is moved into, in the order of its chain. The first one receives the
    /// database from the donor, the others from the shard.
    pub recipient: Vec<RecipientPeer>,
    /// How it is seen that clients are well.
    #[serde(default)]
    pub clients: Vec<ClientCheck>,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Of which kind a donor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DonorKind {
    /// A PostgreSQL by itself, or a primary with standbys.
    Postgres,
}

/// The donor's primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DonorConfig {
    /// Of which kind it is.
    pub kind: DonorKind,
    /// How its host is reached.
    #[serde(default)]
    pub host: Host,
    /// The address at which the recipient's hosts reach its server.
    pub address: String,
    /// The port of its server.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Its data directory.
    pub data_dir: String,
    /// Where its programs are.
    pub bin_dir: String,
    /// Where its Unix socket is. The superuser must be let in there without a password.
    #[serde(default = "default_socket_dir")]
    pub socket_dir: String,
    /// Who runs it.
    #[serde(default = "default_user")]
    pub os_user: String,
    /// The database superuser.
    #[serde(default = "default_user")]
    pub superuser: String,
    /// How it is started and stopped.
    pub service: Service,
    /// Its standbys, which are stopped before the cut-over.
    #[serde(default)]
    pub standbys: Vec<DonorStandby>,
}

/// A standby of the donor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DonorStandby {
    /// What it is called here.
    pub name: String,
    /// How its host is reached.
    #[serde(default)]
    pub host: Host,
    /// How it is started and stopped.
    pub service: Service,
}

/// A peer of the shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipientPeer {
    /// How its host is reached.
    #[serde(default)]
    pub host: Host,
    /// Its sitter's file, on that host.
    pub config: String,
    /// The program, on that host.
    #[serde(default = "default_program")]
    pub manatee: String,
    /// How its sitter is started and stopped.
    pub service: Service,
}

/// One way to see that clients are well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCheck {
    /// What it is called here.
    pub name: String,
    /// Where it is run.
    #[serde(default)]
    pub host: Host,
    /// A command of the POSIX shell that succeeds when this client is well.
    pub command: String,
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How far the recipient may be behind the donor when that is stopped, in bytes of WAL.
    pub lag_bytes: u64,
    /// How long the recipient may take to come that near, in seconds.
    pub catch_up_seconds: u64,
    /// How long a server or a sitter may take to start or stop, in seconds.
    pub service_seconds: u64,
    /// How long a client may take to be well again, in seconds.
    pub client_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            lag_bytes: 16 << 20,
            catch_up_seconds: 3600,
            service_seconds: 120,
            client_seconds: 60,
        }
    }
}

fn default_port() -> u16 {
    5432
}

fn default_socket_dir() -> String {
    "/var/run/postgresql".to_owned()
}

fn default_user() -> String {
    "postgres".to_owned()
}

fn default_program() -> String {
    "manatee".to_owned()
}

impl Inventory {
    /// Reads one.
    ///
    /// # Errors
    /// Names the file, and the line and the field where there is one.
    pub fn load(path: &Path) -> Result<Inventory> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let inventory: Inventory =
            toml::from_str(&text).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        inventory.check().with_context(|| name.to_string())?;
        Ok(inventory)
    }

    fn check(&self) -> Result<()> {
        if self.recipient.is_empty() {
            bail!("recipient: give the peers of the shard, at least the first one");
        }
        for directory in [&self.donor.data_dir, &self.donor.bin_dir, &self.donor.socket_dir] {
            if !directory.starts_with('/') {
                bail!("donor: {directory:?} is no absolute path");
            }
        }
        Ok(())
    }
}
