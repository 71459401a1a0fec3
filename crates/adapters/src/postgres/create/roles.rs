//! The roles that the sitter's file names, and their passwords: a primary's database has what the file says.
//!
//! A password travels to the server, and into its log if anything does, as a verifier (RFC 5803) only.

use crate::postgres::{
    Inner, PgCause,
    session::{Session, identifier, literal},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// How often a new verifier's password is hashed: what PostgreSQL takes by default.
const ITERATIONS: u32 = 4096;

impl Inner {
    /// An operator's database may lack the role that standbys connect as, and the file may have other
    /// passwords than the database.
    pub async fn ensure_roles(&self, session: &Session) -> Result<(), PgCause> {
        let user = &self.settings.replication_user;
        let found = session
            .rows(&format!(
                "select rolreplication and rolcanlogin, rolsuper from pg_roles where rolname = {}",
                literal(user)
            ))
            .await?;
        match found.first().map(Vec::as_slice) {
            None => quietly(session, &self.replication_role()).await?,
            Some([Some(able), Some(superuser)]) if able == "t" && superuser == "f" => {
                set_password(session, user, &self.settings.replication_password).await?;
            }
            Some(_) => {
                return Err(PgCause::settings(
                    format!("role {user:?} is a superuser, or lacks LOGIN or REPLICATION"),
                    "name another replication user, or alter the role",
                ));
            }
        }
        if let Some(password) = &self.settings.superuser_password {
            set_password(session, &self.settings.superuser, password).await?;
        }
        let able = format!(
            "has_function_privilege({}, 'pg_read_binary_file(text, bigint, bigint, boolean)', 'execute')",
            literal(user)
        );
        if !session.is(&able).await? {
            session.rows(&self.rewind_grants()).await?;
        }
        Ok(())
    }

    /// The statement that makes the role which standbys connect as.
    pub fn replication_role(&self) -> String {
        format!(
            "create role {} login replication nosuperuser password {}",
            identifier(&self.settings.replication_user),
            literal(&new_verifier(&self.settings.replication_password))
        )
    }
}

/// The statement that gives a role this password.
pub(super) fn password_statement(role: &str, password: &str) -> String {
    let verifier = literal(&new_verifier(password));
    format!("alter role {} password {verifier}", identifier(role))
}

/// Gives a role this password, if it has another one.
async fn set_password(session: &Session, role: &str, password: &str) -> Result<(), PgCause> {
    let stored = session
        .value(&format!("select rolpassword from pg_authid where rolname = {}", literal(role)))
        .await?;
    let is_known = {
        let password = password.to_owned();
        // An operator may have asked for so many rounds that it takes a while.
        tokio::task::spawn_blocking(move || is_of(&stored, &password))
    };
    if is_known.await.expect("a panic ends the sitter") {
        return Ok(());
    }
    quietly(session, &password_statement(role, password)).await?;
    tracing::info!(role, "has the password of the sitter's file now");
    Ok(())
}

/// Does this without a word in the server's log.
async fn quietly(session: &Session, statement: &str) -> Result<(), PgCause> {
    let quiet = "begin; set local log_statement = 'none'; \
                 set local log_min_duration_statement = -1; \
                 set local log_min_error_statement = 'panic'";
    for sql in [quiet, statement, "commit"] {
        session.sets(sql).await?;
    }
    Ok(())
}

/// Whether this is a verifier of this password. Those of another kind, which we do not let in by, are not.
fn is_of(stored: &str, password: &str) -> bool {
    let salted = stored.strip_prefix("SCRAM-SHA-256$").and_then(|rest| {
        let (iterations, salt) = rest.split_once('$')?.0.split_once(':')?;
        Some((iterations.parse().ok()?, BASE64_STANDARD.decode(salt).ok()?))
    });
    salted.is_some_and(|(iterations, salt)| verifier(password, iterations, &salt) == stored)
}

fn new_verifier(password: &str) -> String {
    verifier(password, ITERATIONS, uuid::Uuid::new_v4().as_bytes())
}

/// As PostgreSQL stores it: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
fn verifier(password: &str, iterations: u32, salt: &[u8]) -> String {
    // Both ends take a password that cannot be prepared as it is.
    let prepared = stringprep::saslprep(password);
    let by_password = keyed(prepared.as_deref().unwrap_or(password).as_bytes());
    let mut block = tag(&by_password, &[salt, &1_u32.to_be_bytes()]);
    let mut salted = block;
    for _ in 1..iterations {
        block = tag(&by_password, &[&block]);
        salted.iter_mut().zip(block).for_each(|(sum, byte)| *sum ^= byte);
    }
    let by_salted = keyed(&salted);
    let stored = Sha256::digest(tag(&by_salted, &[b"Client Key"]));
    let server = tag(&by_salted, &[b"Server Key"]);
    let (salt, stored, server) = (
        BASE64_STANDARD.encode(salt),
        BASE64_STANDARD.encode(stored),
        BASE64_STANDARD.encode(server),
    );
    format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("any length")
}

fn tag(keyed: &Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed.clone();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, and what PostgreSQL makes of passwords is for the tests with a server.
    #[test]
    fn a_verifier_is_of_one_password() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let made = verifier("pencil", 4096, &salt);
        assert_eq!(
            made,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
             WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        assert!(is_of(&made, "pencil"));
        // Prepared: a soft hyphen is nothing.
        assert!(is_of(&made, "pen\u{ad}cil"));
        for (stored, password) in [
            (made.as_str(), "Pencil"),
            (made.as_str(), ""),
            ("", ""),
            ("md5a3556571e93b0d20722ba62be61e8c2d", "pencil"),
            ("SCRAM-SHA-256$4096", "pencil"),
            ("SCRAM-SHA-256$many:AAAA$AAAA:AAAA", "pencil"),
            ("SCRAM-SHA-256$1:-$AAAA:AAAA", "pencil"),
        ] {
            assert!(!is_of(stored, password), "{stored:?} {password:?}");
        }
        let (one, two) = (new_verifier("é\u{301}x"), new_verifier("é\u{301}x"));
        assert_ne!(one, two, "salted");
        assert!(is_of(&one, "é\u{301}x") && is_of(&two, "é\u{301}x"));
    }
}
