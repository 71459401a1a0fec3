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
    /// Its standbys, which are stopped after the cut-over.
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
        let DonorConfig { data_dir, bin_dir, socket_dir, .. } = &self.donor;
        let donor = [("data_dir", data_dir), ("bin_dir", bin_dir), ("socket_dir", socket_dir)];
        let donor = donor.map(|(field, path)| (format!("donor.{field}"), path));
        let recipients = self.recipient.iter().enumerate();
        let files = recipients.map(|(n, peer)| (format!("recipient[{n}].config"), &peer.config));
        for (field, path) in donor.into_iter().chain(files) {
            if !path.starts_with('/') {
                bail!("{field}: {path:?} is no absolute path");
            }
        }
        Ok(())
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
            Some(table) if table.starts_with("[[") => table.to_owned(),
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
        let mut shown = load(&everything_set()).expect("the example with everything set");
        // Lists are empty by default, and shown with one in them.
        assert_eq!((shown.donor.standbys.len(), shown.clients.len()), (1, 1));
        let standbys = std::mem::take(&mut shown.donor.standbys);
        let clients = std::mem::take(&mut shown.clients);
        assert_eq!(shown, plain);
        assert_eq!(plain.limits, Limits::default());

        // Whatever there is, the example names.
        shown.donor.standbys = standbys;
        shown.clients = clients;
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
        let (donor, _) = LEAST.split_once("[[recipient]]").expect("a recipient");
        check_refused(donor, &["missing field `recipient`"]);
        let none = format!("recipient = []\n{donor}");
        check_refused(&none, &["recipient: give the peers of the shard"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Inventory::load(Path::new("/nowhere/move.toml")).expect_err("no file");
        assert!(format!("{error:#}").contains("cannot read /nowhere/move.toml"), "{error:#}");
    }
}
