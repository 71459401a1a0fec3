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
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            lag_bytes: 16 << 20,
            rate_mib: None,
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

impl DonorConfig {
    /// That what belongs to a shard of Manatee is there, and only for one.
    fn check_sitters(&self) -> Result<()> {
        let of_shard = self.kind.has_sitter();
        if self.manatee.is_some() != of_shard {
            bail!(
                "donor.manatee: give it for a donor of kind manatee-v1 or manatee-v2, and only then"
            );
        }
        let primary =
            self.manatee.iter().map(|shard| ("donor.manatee.sitter".to_owned(), &shard.sitter));
        let mut files: Vec<(String, &String)> = primary.collect();
        for (n, standby) in self.standbys.iter().enumerate() {
            let field = format!("donor.standbys[{n}].sitter");
            match &standby.sitter {
                Some(file) => files.push((field, file)),
                None if of_shard => bail!("{field}: name the file of its sitter"),
                None => {}
            }
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
        if self.donor.method == Method::Snapshots && self.donor.kind != DonorKind::Postgres {
            bail!(
                "donor.method is snapshots: that is there for donors of kind \"postgres\" alone; leave it out"
            );
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
mod tests {
    use super::*;
    use std::io::Write;

    const EXAMPLE: &str = include_str!("../../../etc/transplant.toml");
    const LEAST: &str = r#"[donor]
kind = "postgres"
address = "10.0.0.9"
data_dir = "/data"
bin_dir = "/bin"
service = { kind = "systemd", unit = "postgresql" }
[[recipient]]
config = "/etc/manatee/sitter.toml"
service = { kind = "smf", fmri = "manatee/sitter" }
"#;

    fn load(text: &str) -> Result<Inventory> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let loaded = Inventory::load(file.path());
        loaded.map_err(|error| {
            let told = format!("{error:#}");
            assert!(told.starts_with(&file.path().display().to_string()), "no file: {told}");
            error
        })
    }

    fn check_refused(text: &str, expected: &[&str]) {
        let error = format!("{:#}", load(text).expect_err("a refused file"));
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }

    /// The example with every field that is commented out set to what is written there.
    fn everything_set() -> String {
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let set = |line: &str| match line.strip_prefix("# ") {
            Some(table) if table.starts_with('[') => table.to_owned(),
            Some(field) if field.split_once(" = ").is_some_and(|(name, _)| is_name(name)) => {
                field.to_owned()
            }
            _ => line.to_owned(),
        };
        EXAMPLE.lines().map(set).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_shows_every_field_with_its_default() {
        let plain = load(EXAMPLE).expect("the example");
        // As no donor can have it: what belongs to other kinds is in it, too.
        let mut shown: Inventory =
            toml::from_str(&everything_set()).expect("the example with everything set");
        // Lists are empty by default, and shown with one in them.
        assert_eq!((shown.donor.standbys.len(), shown.clients.len()), (1, 1));
        let standbys = std::mem::take(&mut shown.donor.standbys);
        let manatee = shown.donor.manatee.take();
        assert!(manatee.is_some() && standbys[0].sitter.is_some());
        let clients = std::mem::take(&mut shown.clients);
        let patroni = shown.donor.patroni.take();
        let backup = shown.backup.take();
        let (dataset, rate) = (shown.donor.dataset.take(), shown.limits.rate_mib.take());
        assert!(backup.is_some() && dataset.is_some() && rate.is_some(), "they are shown");
        assert_eq!(shown, plain);
        assert_eq!(plain.limits, Limits::default());

        // Whatever there is, the example names.
        shown.donor.standbys = standbys;
        shown.donor.manatee = manatee;
        shown.clients = clients;
        shown.donor.patroni = patroni;
        shown.backup = backup;
        (shown.donor.dataset, shown.limits.rate_mib) = (dataset, rate);
        let mut names = Vec::new();
        field_names(&toml::Table::try_from(&shown).expect("TOML").into(), &mut names);
        assert!(names.len() > 25, "{names:?}");
        for name in names {
            assert!(
                EXAMPLE.contains(&format!("{name} = ")) || EXAMPLE.contains(&format!("{name}]")),
                "the example does not name {name}"
            );
        }
    }

    fn field_names(value: &toml::Value, names: &mut Vec<String>) {
        match value {
            toml::Value::Table(table) => {
                for (name, value) in table {
                    names.push(name.clone());
                    field_names(value, names);
                }
            }
            toml::Value::Array(values) => values.iter().for_each(|value| field_names(value, names)),
            _ => {}
        }
    }

    #[test]
    fn what_will_not_do_is_refused() {
        load(LEAST).expect("the least");
        let with = |from: &str, to: &str| LEAST.replace(from, to);
        check_refused(&with("bin_dir", "bindir"), &["line 5", "bindir", "bin_dir"]);
        check_refused(&format!("{LEAST}[limits]\nlag = 1\n"), &["line 11", "lag_bytes"]);
        check_refused(
            &with("\"/data\"", "\"data\""),
            &["donor.data_dir", "\"data\" is no absolute path"],
        );
        check_refused(&with("\"/bin\"", "\"bin\""), &["donor.bin_dir", "no absolute path"]);
        check_refused(
            &with("\"/etc/manatee/sitter.toml\"", "\"sitter.toml\""),
            &["recipient[0].config", "\"sitter.toml\" is no absolute path"],
        );
        check_refused(
            &with("[[recipient]]", "[[recipient]]\nhost = \"db1\""),
            &["line 8", "\"db1\" is no host", "ssh:user@host"],
        );
        check_refused(&with("\"smf\"", "\"upstart\""), &["line 9", "upstart", "systemd"]);
        check_refused(&with("\"postgres\"\n", "\"mysql\"\n"), &["line 2", "mysql", "postgres"]);
        let patroni = "donor.patroni: give it where donor.kind is \"patroni\", and only there";
        check_refused(&with("\"postgres\"", "\"patroni\""), &[patroni]);
        let reached = "[donor.patroni]\nurl = \"http://h:8008\"\n";
        check_refused(&format!("{LEAST}{reached}"), &[patroni]);
        let half = format!("{}{reached}user = \"u\"\n", with("\"postgres\"", "\"patroni\""));
        check_refused(&half, &["give both user and password_file"]);
        check_refused(
            &with("address", "method = \"snapshots\"\naddress"),
            &["give the dataset that they are of, [donor.dataset]"],
        );
        check_refused(&format!("{LEAST}[limits]\nrate_mib = 0\n"), &["rate_mib", "at least 1"]);
        let backup = format!("{LEAST}[backup]\ndir = \"backups\"\n");
        check_refused(&backup, &["backup.dir", "\"backups\" is no absolute path"]);
        let (donor, _) = LEAST.split_once("[[recipient]]").expect("a recipient");
        check_refused(donor, &["missing field `recipient`"]);
        let none = format!("recipient = []\n{donor}");
        check_refused(&none, &["recipient: give the peers of the shard"]);
    }

    #[test]
    fn a_shard_has_sitters_and_others_have_none() {
        let table =
            "[donor.manatee]\ncoordination = \"sqlite:/x\"\nshard = \"x\"\nsitter = \"/x.toml\"\n";
        let standby = "[[donor.standbys]]\nname = \"db2\"\n\
                       service = { kind = \"smf\", fmri = \"x\" }\n";
        let shard = LEAST.replace("\"postgres\"\n", "\"manatee-v2\"\n");
        load(&format!("{shard}{table}")).expect("a shard of one");
        check_refused(&shard, &["donor.manatee: give it for a donor of kind manatee-v1"]);
        check_refused(&format!("{LEAST}{table}"), &["donor.manatee", "only then"]);
        let two = format!("{shard}{table}{standby}");
        check_refused(&two, &["donor.standbys[0].sitter: name the file of its sitter"]);
        let relative = format!("{two}sitter = \"x.toml\"\n");
        check_refused(&relative, &["donor.standbys[0].sitter", "\"x.toml\" is no absolute path"]);
        load(&format!("{two}sitter = \"/x.toml\"\n")).expect("a shard of two");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Inventory::load(Path::new("/nowhere/move.toml")).expect_err("no file");
        assert!(format!("{error:#}").contains("cannot read /nowhere/move.toml"), "{error:#}");
    }
}
