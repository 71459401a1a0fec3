//! How one peer knows that another belongs to the shard: each request is signed with a secret that
//! all peers have. The secret never travels.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::sync::{Arc, PoisonError, RwLock};

/// The header that carries a signature: `seconds-since-the-epoch:hexadecimal HMAC-SHA-256`.
pub(super) const HEADER: &str = "manatee-auth";

/// How old a signature may be, and how far two clocks may be apart, in seconds.
const TOLERANCE: i64 = 300;

/// What the peers of a shard share and nobody else knows. Clones change together.
#[derive(Clone)]
pub struct Secret(Arc<RwLock<Hmac<Sha256>>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unproven {
    #[error("the request is not signed: only peers of the shard are served")]
    Missing,
    #[error(
        "the signature is not that of this shard: do both peers have the same replication password?"
    )]
    Wrong,
    #[error(
        "the signature is {0} s away from the time here: set the clocks of both hosts (at most \
         {TOLERANCE} s apart)"
    )]
    Stale(i64),
}

impl Secret {
    /// The secret of a shard, from its name and the password of its replication role.
    ///
    /// # Panics
    /// Never: HMAC takes keys of every length.
    pub fn new(shard: &str, password: &str) -> Secret {
        let mut mac = Hmac::<Sha256>::new_from_slice(password.as_bytes()).expect("any length");
        mac.update(format!("manatee backup service\n{shard}\n").as_bytes());
        Secret(Arc::new(RwLock::new(mac)))
    }

    /// Becomes another one, with all clones.
    pub fn replace(&self, other: &Secret) {
        let other = other.keyed();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other;
    }

    fn keyed(&self) -> Hmac<Sha256> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The value of the header for this request, at this time (in seconds since the epoch).
    pub(super) fn sign(&self, time: i64, method: &str, target: &str, body: &[u8]) -> String {
        let tag = self.mac(time, method, target, body).finalize().into_bytes();
        let hex: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{time}:{hex}")
    }

    /// Whether the header proves that the request comes from a peer, now.
    pub(super) fn check(
        &self,
        header: Option<&str>,
        now: i64,
        (method, target, body): (&str, &str, &[u8]),
    ) -> Result<(), Unproven> {
        let header = header.ok_or(Unproven::Missing)?;
        let (time, hex) = header.split_once(':').ok_or(Unproven::Wrong)?;
        let time: i64 = time.parse().map_err(|_| Unproven::Wrong)?;
        let tag = unhex(hex).ok_or(Unproven::Wrong)?;
        let mac = self.mac(time, method, target, body);
        mac.verify_slice(&tag).map_err(|_| Unproven::Wrong)?;
        let away = now.abs_diff(time);
        if away > TOLERANCE.unsigned_abs() {
            return Err(Unproven::Stale(i64::try_from(away).unwrap_or(i64::MAX)));
        }
        Ok(())
    }

    fn mac(&self, time: i64, method: &str, target: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed();
        mac.update(format!("{time}\n{method}\n{target}\n").as_bytes());
        mac.update(body);
        mac
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_request_of_the_same_shard_is_proven() {
        let secret = Secret::new("1.example", "password");
        let request = ("POST", "/v1/streams", b"{}".as_slice());
        let header = secret.sign(1000, request.0, request.1, request.2);
        let check = |secret: &Secret, header: Option<&str>, now, request| {
            secret.check(header, now, request)
        };
        assert_eq!(check(&secret, Some(&header), 1200, request), Ok(()));
        assert_eq!(check(&secret, None, 1000, request), Err(Unproven::Missing));
        assert_eq!(check(&secret, Some(&header), 1400, request), Err(Unproven::Stale(400)));
        assert_eq!(check(&secret, Some(&header), 600, request), Err(Unproven::Stale(400)));
        for other in [
            ("GET", "/v1/streams", b"{}".as_slice()),
            ("POST", "/v1/streams/", b"{}".as_slice()),
            ("POST", "/v1/streams", b"{ }".as_slice()),
        ] {
            assert_eq!(
                check(&secret, Some(&header), 1000, other),
                Err(Unproven::Wrong),
                "{other:?}"
            );
        }
        for stranger in [Secret::new("2.example", "password"), Secret::new("1.example", "other")] {
            assert_eq!(check(&stranger, Some(&header), 1000, request), Err(Unproven::Wrong));
        }
        let (clone, other) = (secret.clone(), Secret::new("1.example", "other"));
        clone.replace(&other);
        assert_eq!(check(&secret, Some(&header), 1000, request), Err(Unproven::Wrong));
        let signed = secret.sign(1000, request.0, request.1, request.2);
        assert_eq!(check(&other, Some(&signed), 1000, request), Ok(()));
        for bad in ["", "1000", "1000:", "1000:zz", "1000:€", "x:00", &header[..header.len() - 1]]
        {
            assert_eq!(check(&secret, Some(bad), 1000, request), Err(Unproven::Wrong), "{bad:?}");
        }
    }
}
