//! The tables `[zookeeper]` and `[etcd]` of a file: who we are to the coordination, and how we talk to it.

use super::{Access, Credentials, TlsAccess};
use serde::Deserialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What is wrong with such a file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct AccessError {
    /// The file.
    pub file: PathBuf,
    /// What, and where in it.
    pub problem: String,
    /// Why, where something could not be read.
    #[source]
    pub source: Option<io::Error>,
}

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
    /// Those of a file, whatever else stands in it.
    ///
    /// # Errors
    /// When it cannot be read, or is no TOML, or a table has a field that it does not know.
    pub fn load(file: &Path) -> Result<AccessTables, AccessError> {
        #[derive(Deserialize)]
        struct Tables {
            #[serde(default)]
            zookeeper: AccessConfig,
            #[serde(default)]
            etcd: AccessConfig,
        }
        let wrong =
            |problem: String, source| AccessError { file: file.to_owned(), problem, source };
        let text = fs::read_to_string(file)
            .map_err(|error| wrong("cannot be read".to_owned(), Some(error)))?;
        let Tables { zookeeper, etcd } =
            toml::from_str(&text).map_err(|error| wrong(error.to_string(), None))?;
        Ok(AccessTables { zookeeper, etcd, file: file.to_owned() })
    }

    /// Who we are to the coordination at this address.
    ///
    /// # Errors
    /// When only a half of something is given, or the password cannot be read.
    pub fn access(&self, coordination: &str) -> Result<Access, AccessError> {
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
    fn access(&self, table: &str, file: &Path) -> Result<Access, AccessError> {
        let wrong = |problem: String, source| AccessError {
            file: file.to_owned(),
            problem: format!("{table}{problem}"),
            source,
        };
        let half = |problem: &str| wrong(problem.to_owned(), None);
        let credentials = match (&self.user, &self.password_file) {
            (None, None) => None,
            (Some(user), Some(path)) => {
                if user.is_empty() || user.contains(':') {
                    return Err(half(&format!(".user {user:?}: not empty, without a colon")));
                }
                let password = fs::read_to_string(path).map_err(|error| {
                    let problem = format!(".password_file: cannot read {}", path.display());
                    wrong(problem, Some(error))
                })?;
                let password = password.trim_end_matches('\n').to_owned();
                if password.is_empty() {
                    return Err(half(&format!(".password_file: {} is empty", path.display())));
                }
                Some(Credentials { user: user.clone(), password })
            }
            _ => return Err(half(": user and password_file belong together: give both")),
        };
        let identity = match (&self.certificate_file, &self.key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            _ => return Err(half(": certificate_file and key_file belong together: give both")),
        };
        let tls = match (&self.ca_file, identity) {
            (Some(ca_file), identity) => Some(TlsAccess { ca_file: ca_file.clone(), identity }),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(half(
                    ".certificate_file is for TLS: give ca_file, which says whom we trust",
                ));
            }
        };
        Ok(Access { credentials, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(text: &str) -> Result<Access, AccessError> {
        let etcd = toml::from_str(text).expect("TOML");
        let (zookeeper, file) = (AccessConfig::default(), PathBuf::from("sitter.toml"));
        AccessTables { zookeeper, etcd, file }.access("etcd://10.0.0.1")
    }

    #[test]
    fn halves_are_refused() {
        let check = |text: &str, part: &str| {
            let error = access(text).expect_err("a half").to_string();
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

    #[test]
    fn a_file_may_hold_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sitter.toml");
        let check = |text: &str, part: Option<&str>| {
            fs::write(&path, text).expect("written");
            let told = AccessTables::load(&path).err().map(|error| error.to_string());
            match (told, part) {
                (None, None) => {}
                (Some(told), Some(part)) => assert!(told.contains(part), "{told}"),
                other => panic!("{text}: {other:?}"),
            }
        };
        check("shard = '1'\n[postgres]\nport = 1\n[etcd]\nuser = 'm'\n", None);
        check("", None);
        check("[etcd]\nname = 'm'\n", Some("name"));
        check("[etcd", Some("sitter.toml"));
        let nowhere = AccessTables::load(Path::new("/nowhere")).expect_err("nothing there");
        assert!(nowhere.to_string().contains("/nowhere: cannot be read"), "{nowhere}");
    }
}
