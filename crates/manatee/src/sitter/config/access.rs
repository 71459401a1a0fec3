//! The tables `[zookeeper]` and `[etcd]`: who we are to the coordination, and how we talk to it.

use adapters::coord::{Access, Credentials, TlsAccess};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Both tables, of which the address of the coordination chooses one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessTables {
    /// `[zookeeper]`.
    pub zookeeper: AccessConfig,
    /// `[etcd]`.
    pub etcd: AccessConfig,
    /// The file that they stand in, for messages.
    pub file: PathBuf,
}

impl AccessTables {
    /// Who we are to the coordination at this address.
    ///
    /// # Errors
    /// When only a half of something is given, or the password cannot be read.
    pub fn access(&self, coordination: &str) -> Result<Access> {
        match coordination.split_once(':') {
            Some(("zk", _)) => self.zookeeper.access("zookeeper", &self.file),
            Some(("etcd", _)) => self.etcd.access("etcd", &self.file),
            _ => Ok(Access::default()),
        }
    }
}

/// For coordination over a network. Secrets stand in files of their own, so that this one may be read
/// by whoever operates the shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// The user: of digest authentication in ZooKeeper, of etcd.
    pub user: Option<String>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// Certificates, in PEM, of who vouches for the servers; given, all connections are TLS.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, in PEM.
    pub certificate_file: Option<PathBuf>,
    /// Its key, in PEM.
    pub key_file: Option<PathBuf>,
}

impl AccessConfig {
    /// With the password read. `table` and `file` are where this stands.
    fn access(&self, table: &str, file: &Path) -> Result<Access> {
        let name = file.display();
        let credentials = match (&self.user, &self.password_file) {
            (None, None) => None,
            (Some(user), Some(path)) => {
                if user.is_empty() || user.contains(':') {
                    bail!("{name}: {table}.user {user:?}: not empty, without a colon");
                }
                let password = fs::read_to_string(path).with_context(|| {
                    format!("{name}: {table}.password_file: cannot read {}", path.display())
                })?;
                let password = password.trim_end_matches('\n').to_owned();
                if password.is_empty() {
                    bail!("{name}: {table}.password_file: {} is empty", path.display());
                }
                Some(Credentials { user: user.clone(), password })
            }
            _ => bail!("{name}: {table}: user and password_file belong together: give both"),
        };
        let identity = match (&self.certificate_file, &self.key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            _ => {
                bail!("{name}: {table}: certificate_file and key_file belong together: give both")
            }
        };
        let tls = match (&self.ca_file, identity) {
            (Some(ca_file), identity) => Some(TlsAccess { ca_file: ca_file.clone(), identity }),
            (None, None) => None,
            (None, Some(_)) => bail!(
                "{name}: {table}.certificate_file is for TLS: give ca_file, which says whom we trust"
            ),
        };
        Ok(Access { credentials, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(text: &str) -> Result<Access> {
        let etcd = toml::from_str(text)?;
        let (zookeeper, file) = (AccessConfig::default(), PathBuf::from("sitter.toml"));
        AccessTables { zookeeper, etcd, file }.access("etcd://10.0.0.1")
    }

    #[test]
    fn halves_are_refused() {
        let check = |text: &str, part: &str| {
            let error = format!("{:#}", access(text).expect_err("a half"));
            assert!(error.contains("sitter.toml: etcd") && error.contains(part), "{error}");
        };
        check("user = 'm'", "belong together");
        check("password_file = '/p'", "belong together");
        check("key_file = '/k'", "belong together");
        check("certificate_file = '/c'\nkey_file = '/k'", "give ca_file");
        check("user = 'm'\npassword_file = '/nonexistent'", "cannot read /nonexistent");
        check("user = 'a:b'\npassword_file = '/p'", "without a colon");
    }

    #[test]
    fn a_password_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("password");
        fs::write(&path, "secret\n").expect("written");
        let text = format!("user = 'm'\npassword_file = {path:?}\nca_file = '/ca'");
        let access = access(&text).expect("access");
        let credentials = access.credentials.expect("credentials");
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("m", "secret"));
        assert!(!format!("{credentials:?}").contains("secret"));
        assert!(access.tls.expect("tls").identity.is_none());
    }

    #[test]
    fn the_address_chooses_the_table() {
        let half = AccessConfig { user: Some("m".to_owned()), ..AccessConfig::default() };
        let (zookeeper, file) = (half, PathBuf::from("sitter.toml"));
        let tables = AccessTables { zookeeper, etcd: AccessConfig::default(), file };
        let error = tables.access("zk://a:1").expect_err("a half").to_string();
        assert!(error.contains("sitter.toml: zookeeper:"), "{error}");
        for other in ["etcd://a:1", "sqlite:/x.db"] {
            assert!(tables.access(other).expect("nothing of it is used").credentials.is_none());
        }
    }
}
