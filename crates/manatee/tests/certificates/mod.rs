//! Certificates for tests.

use anyhow::Result;
use manatee::backup::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::Path;

/// An authority and a certificate of it for the loopback address, in files of this directory whose names
/// begin so.
pub fn make(directory: &Path, name: &str) -> Result<TlsFiles> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    let own = own.signed_by(&key, &issuer)?;
    let file = |part: &str, pem: String| -> Result<_> {
        let path = directory.join(format!("{name}-{part}.pem"));
        std::fs::write(&path, pem)?;
        Ok(path)
    };
    Ok(TlsFiles {
        authority: file("authority", authority_certificate.pem())?,
        certificate: file("certificate", own.pem())?,
        key: file("key", key.serialize_pem())?,
    })
}
