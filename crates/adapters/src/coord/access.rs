//! Who we are to a coordination service, and how we talk to it: the same for each of those that are
//! reached over a network.

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};

/// Who we are to a service, and how we talk to it. By default nobody, in plain text.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// With these, what we make may be written by us alone. In ZooKeeper everybody may read it; in etcd
    /// the roles of the user say what we may do ourselves.
    pub credentials: Option<Credentials>,
    /// Talk TLS.
    pub tls: Option<TlsAccess>,
}

/// A user: of digest authentication in ZooKeeper, of etcd.
#[derive(Clone)]
pub struct Credentials {
    /// The user, without a colon.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct TlsAccess {
    /// Who vouches for the servers.
    pub ca_file: PathBuf,
    /// Our own certificate and its key, where the servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What the files of a [`TlsAccess`] hold.
pub(super) struct Pem {
    pub(super) ca: String,
    /// A certificate and its key.
    pub(super) identity: Option<(String, String)>,
}

/// A file for TLS that is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsFileError {
    #[error("cannot read {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no usable {what} in PEM{why}")]
    Content { path: PathBuf, what: &'static str, why: String },
    #[error("{key} is not the key of the certificate in {certificate}: {why}")]
    NotItsKey { certificate: PathBuf, key: PathBuf, why: rustls::Error },
}

impl TlsAccess {
    /// Reads the files, and finds out what is wrong with them here, where it can be said which one it is.
    pub(super) fn read(&self) -> Result<Pem, TlsFileError> {
        let (ca, _) = certificates(&self.ca_file)?;
        let Some((certificate, key)) = &self.identity else {
            return Ok(Pem { ca, identity: None });
        };
        let (ours, chain) = certificates(certificate)?;
        let secret = text(key)?;
        let parsed = PrivateKeyDer::from_pem_slice(secret.as_bytes())
            .map_err(|error| content(key, "key", &error))?;
        CertifiedKey::from_der(chain, parsed, &aws_lc_rs::default_provider()).map_err(|why| {
            TlsFileError::NotItsKey { certificate: certificate.clone(), key: key.clone(), why }
        })?;
        Ok(Pem { ca, identity: Some((ours, secret)) })
    }
}

/// The certificates in a file, at least one: as text, and taken apart.
fn certificates(path: &Path) -> Result<(String, Vec<CertificateDer<'static>>), TlsFileError> {
    let text = text(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| content(path, "certificate", &error))?;
    if chain.is_empty() {
        let why = String::new();
        return Err(TlsFileError::Content { path: path.to_owned(), what: "certificate", why });
    }
    Ok((text, chain))
}

fn content(path: &Path, what: &'static str, error: &dyn std::fmt::Display) -> TlsFileError {
    TlsFileError::Content { path: path.to_owned(), what, why: format!(": {error}") }
}

fn text(path: &Path) -> Result<String, TlsFileError> {
    std::fs::read_to_string(path)
        .map_err(|source| TlsFileError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_of_no_use_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let check = |access: TlsAccess, parts: &[&str]| {
            let error = access.read().map(drop).expect_err("refused").to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        let (nothing, rubbish) = (file("nothing", ""), file("rubbish", "rubbish"));
        let [one, two] = ["one", "two"].map(|name| {
            rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate")
        });
        let certificate = file("one.pem", &one.cert.pem());
        let own = file("one.key", &one.signing_key.serialize_pem());
        let other = file("two.key", &two.signing_key.serialize_pem());
        let ca = |ca_file: &Path| TlsAccess { ca_file: ca_file.to_owned(), identity: None };
        check(ca(&directory.path().join("absent")), &["cannot read", "absent"]);
        check(ca(&nothing), &["nothing holds no usable certificate"]);
        check(ca(&rubbish), &["rubbish holds no usable certificate"]);
        let with = |key: &Path| TlsAccess {
            ca_file: certificate.clone(),
            identity: Some((certificate.clone(), key.to_owned())),
        };
        check(with(&rubbish), &["rubbish holds no usable key"]);
        check(with(&other), &["two.key is not the key of the certificate", "one.pem"]);
        assert!(ca(&certificate).read().expect("usable").identity.is_none());
        assert!(with(&own).read().expect("usable").identity.is_some());
    }
}
