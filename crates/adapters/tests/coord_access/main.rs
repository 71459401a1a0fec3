//! Coordination that asks who we are, and talks to nobody else: users, permissions, certificates, on real
//! servers.

mod certificates;
#[path = "../common/mod.rs"]
mod common;
mod etcd;
mod guarded;
mod zookeeper;

use adapters::coord::{Access, Credentials, TlsAccess};
use certificates::Certificates;

/// As this user, in plain text.
fn as_user(user: &str, password: &str) -> Access {
    let credentials = Credentials { user: user.to_owned(), password: password.to_owned() };
    Access { credentials: Some(credentials), tls: None }
}

/// Over TLS, trusting these, and showing the client's certificate of those.
fn over_tls(trusted: &Certificates, own: Option<&Certificates>) -> Access {
    let identity = own.map(|own| (own.path("client.pem"), own.path("client.key")));
    let tls = TlsAccess { ca_file: trusted.path("ca.pem"), identity };
    Access { credentials: None, tls: Some(tls) }
}

/// What somebody is told who was refused.
fn check(told: &str, parts: &[&str]) {
    println!("{told}");
    let missing: Vec<_> = parts.iter().filter(|part| !told.contains(**part)).collect();
    assert!(missing.is_empty(), "{told:?} is without {missing:?}");
}
