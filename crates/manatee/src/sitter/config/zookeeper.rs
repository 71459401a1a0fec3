//! The table `[zookeeper]`: who we are to the ensemble, and how we talk to it.

use adapters::coord::zookeeper::{Credentials, TlsAccess, ZkAccess};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// For coordination through `zk:`. Secrets stand in files of their own, so that this one may be read
/// by whoever operates the shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZooKeeperConfig {
    /// The user of digest authentication.
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

impl ZooKeeperConfig {
    /// With the password read. `file` is the one that this stands in, for messages.
    ///
    /// # Errors
    /// When only a half of something is given, or the password cannot be read.
    pub fn access(&self, file: &Path) -> Result<ZkAccess> {
        let name = file.display();
        let credentials = match (&self.user, &self.password_file) {
            (None, None) => None,
            (Some(user), Some(path)) => {
                if user.is_empty() || user.contains(':') {
                    bail!("{name}: zookeeper.user {user:?}: not empty, without a colon");
                }
                let password = fs::read_to_string(path).with_context(|| {
                    format!("{name}: zookeeper.password_file: cannot read {}", path.display())
                })?;
                let password = password.trim_end_matches('\n').to_owned();
                if password.is_empty() {
                    bail!("{name}: zookeeper.password_file: {} is empty", path.display());
                }
                Some(Credentials { user: user.clone(), password })
            }
            _ => bail!("{name}: zookeeper: user and password_file belong together: give both"),
        };
        let identity = match (&self.certificate_file, &self.key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            _ => {
                bail!("{name}: zookeeper: certificate_file and key_file belong together: give both")
            }
        };
        let tls = match (&self.ca_file, identity) {
            (Some(ca_file), identity) => Some(TlsAccess { ca_file: ca_file.clone(), identity }),
            (None, None) => None,
            (None, Some(_)) => bail!(
                "{name}: zookeeper.certificate_file is for TLS: give ca_file, which says whom we trust"
            ),
        };
        Ok(ZkAccess { credentials, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(text: &str) -> Result<ZkAccess> {
        let config: ZooKeeperConfig = toml::from_str(text)?;
        config.access(Path::new("sitter.toml"))
    }

    #[test]
    fn halves_are_refused() {
        let check = |text: &str, part: &str| {
            let error = format!("{:#}", access(text).expect_err("a half"));
            assert!(error.contains("sitter.toml") && error.contains(part), "{error}");
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
}
