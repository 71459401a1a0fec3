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
    /// The backup that is made before the donor is stopped; none where it is not given.
    #[serde(default)]
    pub backup: Option<BackupConfig>,
    /// What is looked at in the copy beyond that it is the donor's.
    #[serde(default)]
    pub verify: VerifyConfig,
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
    /// The leader of a Patroni cluster.
    Patroni,
    /// A shard of Manatee's first version: who serves follows from the order of registrations.
    ManateeV1,
    /// A shard of Manatee's second version, or of this one: who serves stands in its cluster state.
    ManateeV2,
}

impl DonorKind {
    /// Whether a sitter starts and stops its server, and would open it.
    pub(crate) fn has_sitter(self) -> bool {
        matches!(self, DonorKind::ManateeV1 | DonorKind::ManateeV2)
    }
}

/// A donor that is a shard of Manatee.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DonorShard {
    /// Where its peers meet, as in a sitter's file.
    pub coordination: String,
    /// Its name.
    pub shard: String,
    /// The file of its primary's sitter, on the primary's host.
    pub sitter: String,
    /// A file on the host where the transplant runs, with the table `[zookeeper]` or `[etcd]` of a sitter's file:
    /// who we are to its coordination. Nothing else of it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

/// How the database comes to the first peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A base backup, and the WAL from there on, by PostgreSQL itself.
    #[default]
    Streaming,
    /// Snapshots of the file system, the last one of the stopped donor.
    Snapshots,
}

/// A kind of file system with snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// A subvolume.
    Btrfs,
    /// A dataset of a pool.
    Zfs,
}

impl DatasetKind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            DatasetKind::Btrfs => "btrfs",
            DatasetKind::Zfs => "zfs",
        }
    }
}

/// The dataset that the donor's data directory is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// Its kind.
    pub kind: DatasetKind,
    /// The path of a subvolume, or the name of a dataset.
    pub name: String,
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
    /// How its database comes to the first peer.
    #[serde(default)]
    pub method: Method,
    /// The program, on its host; it is used there only for [`Method::Snapshots`].
    #[serde(default = "default_program")]
    pub program: String,
    /// The dataset that its data directory is in.
    #[serde(default)]
    pub dataset: Option<DatasetConfig>,
    /// Its standbys, which are stopped after the cut-over; of a shard of Manatee, its other peers.
    #[serde(default)]
    pub standbys: Vec<DonorStandby>,
    /// What else is to be known of a shard of Manatee.
    #[serde(default)]
    pub manatee: Option<DonorShard>,
    /// Of kind `patroni`: how its cluster is reached.
    pub patroni: Option<PatroniConfig>,
}

/// How a Patroni cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatroniConfig {
    /// The REST API of any member.
    pub url: String,
    /// The user that may change things there, where it asks for one.
    pub user: Option<String>,
    /// The file with that user's password.
    pub password_file: Option<String>,
    /// The file with the certificate of the authority that its certificates are from, for https.
    pub ca: Option<String>,
}

/// A standby of the donor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DonorStandby {
    /// What it is called here; of a peer of a shard of Manatee, its id or its zone.
    pub name: String,
    /// How its host is reached.
    #[serde(default)]
    pub host: Host,
    /// How it is started and stopped.
    pub service: Service,
    /// Of a peer of a shard of Manatee, the file of its sitter.
    #[serde(default)]
    pub sitter: Option<String>,
    /// Its data directory, where that is another than the donor's.
    pub data_dir: Option<String>,
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

/// A backup of the donor, and how it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupConfig {
    /// A directory on the first peer's host.
    pub dir: String,
    /// Statements of psql that have to give the same at the donor and at what is restored.
    #[serde(default)]
    pub verify_sql: Vec<String>,
}

/// What is looked at in the copy beyond that it is the donor's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyConfig {
    /// Whether all of it is looked through for damage, before the donor is stopped.
    pub amcheck: bool,
    /// Whether the rows of every table are counted, in the donor as it ended and in the copy.
    pub row_counts: bool,
    /// Statements of psql that have to give the same at both.
    pub sql: Vec<String>,
}

impl VerifyConfig {
    /// Whether both are asked the same while nobody is served.
    pub(crate) fn compares(&self) -> bool {
        self.row_counts || !self.sql.is_empty()
    }
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How far the recipient may be behind the donor when that is stopped, in bytes of WAL.
    pub lag_bytes: u64,
    /// MiB a second that the copy is not to exceed; none where it is not given.
    pub rate_mib: Option<u64>,
    /// How long the recipient may take to come that near, in seconds.
    pub catch_up_seconds: u64,
    /// How long a server or a sitter may take to start or stop, in seconds.
    pub service_seconds: u64,
    /// How long a client may take to be well again, in seconds.
    pub client_seconds: u64,
    /// Whether indexes may be sorted in another way on the first peer's host than on the donor's.
    pub accept_collation_change: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            lag_bytes: 16 << 20,
            rate_mib: None,
            catch_up_seconds: 3600,
            service_seconds: 120,
            client_seconds: 60,
            accept_collation_change: false,
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

impl DonorConfig {
    /// That what belongs to a shard of Manatee is there, and only for one.
    fn check_sitters(&self) -> Result<()> {
        let of_shard = self.kind.has_sitter();
        if self.manatee.is_some() != of_shard {
            bail!(
                "donor.manatee: give it for a donor of kind manatee-v1 or manatee-v2, and only then"
            );
        }
        let mut files = Vec::new();
        if let Some(shard) = &self.manatee {
            files.push(("donor.manatee.sitter".to_owned(), &shard.sitter));
        }
        for (n, standby) in self.standbys.iter().enumerate() {
            let field = format!("donor.standbys[{n}].sitter");
            match &standby.sitter {
                Some(file) => files.push((field, file)),
                None if of_shard => bail!("{field}: name the file of its sitter"),
                None => {}
            }
        }
        if let Some(file) = self.manatee.as_ref().and_then(|shard| shard.access.as_ref()) {
            if let Some((field, _)) = files.iter().find(|(_, sitter)| *sitter == file) {
                bail!(
                    "donor.manatee.access: {file:?} is {field}, and sitters' files are kept aside while the \
                     shard is moved away: give it the path of a copy"
                );
            }
            files.push(("donor.manatee.access".to_owned(), file));
        }
        for (field, file) in files {
            if !file.starts_with('/') {
                bail!("{field}: {file:?} is no absolute path");
            }
        }
        Ok(())
    }
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
        let patroni = self.donor.patroni.as_ref();
        if patroni.is_some() != (self.donor.kind == DonorKind::Patroni) {
            bail!("donor.patroni: give it where donor.kind is \"patroni\", and only there");
        }
        if patroni.is_some_and(|patroni| patroni.user.is_some() != patroni.password_file.is_some())
        {
            bail!("donor.patroni: give both user and password_file, or none of them");
        }
        if self.donor.method == Method::Snapshots && self.donor.dataset.is_none() {
            bail!("donor.method is snapshots: give the dataset that they are of, [donor.dataset]");
        }
        if self.limits.rate_mib == Some(0) {
            bail!("limits.rate_mib: give at least 1, or leave it out");
        }
        let DonorConfig { data_dir, bin_dir, socket_dir, .. } = &self.donor;
        let donor = [("data_dir", data_dir), ("bin_dir", bin_dir), ("socket_dir", socket_dir)];
        let donor = donor.map(|(field, path)| (format!("donor.{field}"), path));
        let recipients = self.recipient.iter().enumerate();
        let files = recipients.map(|(n, peer)| (format!("recipient[{n}].config"), &peer.config));
        let backup = self.backup.iter().map(|backup| ("backup.dir".to_owned(), &backup.dir));
        for (field, path) in donor.into_iter().chain(files).chain(backup) {
            if !path.starts_with('/') {
                bail!("{field}: {path:?} is no absolute path");
            }
        }
        self.donor.check_sitters()
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
