//! Why a call to etcd failed.

use super::keys::Keys;
use crate::coord::access::TlsFileError;
use cluster::Millis;
use etcd_client::Error;
use std::fmt;

/// Why a call failed, with what an operator can do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {} ms", .0.0)]
    TimedOut(Millis),
    #[error("{}", Told(.0))]
    Etcd(Error),
    /// What each server that was tried had to say.
    #[error("{}", .0.join("; "))]
    Servers(Vec<String>),
    #[error("it answered without {0}, which no etcd does")]
    Incomplete(&'static str),
    #[error("a session needs a timeout of at least 1 ms")]
    NoTimeout,
    #[error(transparent)]
    TlsFile(#[from] TlsFileError),
    #[error(
        "the servers refused the user {0:?} or the password: see user and password_file in the table \
         [etcd] of the sitter's file"
    )]
    Login(String),
    #[error(
        "the servers ask who we are: give user and password_file in the table [etcd] of the sitter's file"
    )]
    Nobody,
    #[error(
        "{key} may not be {action} by us: our user (that of the table [etcd] in the sitter's file, or else \
         the name in our certificate) lacks the permission; give it a role that has it (`etcdctl role \
         grant-permission ROLE readwrite --prefix=true {prefix}`)"
    )]
    Forbidden { action: &'static str, key: String, prefix: String },
    /// A watch that was ended in place of being begun.
    #[error("the watch was refused: {0}")]
    WatchRefused(String),
    #[error("etcd changed its leader again and again meanwhile")]
    Leaders,
    #[error("a stored {what} cannot be read")]
    Content { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

/// gRPC's numbers of errors that a server gives when it cannot serve now, and another may.
const ELSEWHERE: [i32; 5] = [1, 2, 4, 13, 14];

/// Its number for what is not there.
const NOT_FOUND: i32 = 5;

/// Its number for what a role does not allow.
const PERMISSION_DENIED: i32 = 7;

/// Its number for a token that does not hold, because it has expired or the server was started anew.
const UNAUTHENTICATED: i32 = 16;

/// What etcd says of a token that was given before users or roles were changed.
const OLD_REVISION: &str = "revision of auth store is old";

/// What it says to whom it does not know.
const USER_EMPTY: &str = "user name is empty";

/// What it says to who gives a wrong password, or one for a user that has none.
const LOGIN_REFUSED: &str = "authentication failed";

/// What it says to who logs in where nobody has to.
const NOT_ENABLED: &str = "authentication is not enabled";

impl Failure {
    /// Whether another server may do what this one did not.
    pub(super) fn may_succeed_elsewhere(&self) -> bool {
        match self {
            Failure::TimedOut(_) | Failure::Incomplete(_) => true,
            Failure::Etcd(Error::GRpcStatus(status)) => ELSEWHERE.contains(&(status.code() as i32)),
            Failure::Etcd(error) => !matches!(error, Error::InvalidArgs(_) | Error::InvalidUri(_)),
            _ => false,
        }
    }

    /// Whether etcd did not do, for want of a permission, what it was asked. It looks at permissions
    /// when it applies a request, before anything of it, and on all servers alike.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Failure::Login(_) | Failure::Nobody | Failure::Forbidden { .. })
    }

    /// Whether the lease that was asked for is no more.
    pub(super) fn is_lease_gone(&self) -> bool {
        match self {
            Failure::Etcd(Error::GRpcStatus(status)) => status.code() as i32 == NOT_FOUND,
            // The crate's own answer to a keep-alive that leaves no time to live.
            Failure::Etcd(Error::LeaseKeepAliveError(text)) => text == "lease not found",
            _ => false,
        }
    }

    /// Whether the connection failed, or could not be made; no server has said so.
    pub(super) fn is_of_the_connection(&self) -> bool {
        match self {
            Failure::Etcd(Error::GRpcStatus(status)) => std::error::Error::source(status).is_some(),
            Failure::Etcd(Error::TransportError(_)) => true,
            _ => false,
        }
    }

    fn says(&self, part: &str) -> bool {
        matches!(self, Failure::Etcd(Error::GRpcStatus(status)) if status.message().contains(part))
    }

    fn has_code(&self, code: i32) -> bool {
        matches!(self, Failure::Etcd(Error::GRpcStatus(status)) if status.code() as i32 == code)
    }

    /// Whether all that is wrong may be the token that we showed, or that we showed none: then nothing
    /// was done.
    pub(super) fn is_of_the_token(&self) -> bool {
        self.has_code(UNAUTHENTICATED)
            || self.says(OLD_REVISION)
            || self.is_login_needless()
            || matches!(self, Failure::Nobody)
    }

    pub(super) fn is_login_refused(&self) -> bool {
        self.says(LOGIN_REFUSED)
    }

    pub(super) fn is_login_needless(&self) -> bool {
        self.says(NOT_ENABLED)
    }

    /// As it is told of what was to be done with these keys.
    pub(super) fn of(self, action: &'static str, key: impl Into<String>, keys: &Keys) -> Self {
        if self.has_code(PERMISSION_DENIED) || matches!(self, Failure::WatchRefused(_)) {
            let prefix = keys.all().to_owned();
            Failure::Forbidden { action, key: key.into(), prefix }
        } else {
            self
        }
    }

    pub(super) fn content(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Failure::Content { what, source: source.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Failure::Etcd(error);
        if failure.says(USER_EMPTY) { Failure::Nobody } else { failure }
    }
}

/// What to do about a connection that a server, or we, ended at its beginning. A server without TLS may
/// break the handshake off, or answer it with what is none and reset the connection.
pub(super) fn hint(failure: &str, secure: bool) -> &'static str {
    const IDENTITY: &str = "if it wants a certificate of us, or another one: see certificate_file and key_file in \
                            the table [etcd] of the sitter's file";
    const IDENTITY_OR_PLAIN: &str = "if it wants a certificate of us, or another one: see certificate_file and key_file in the table [etcd] of \
         the sitter's file; if it does not talk TLS: give no ca_file there";
    let ended = ["connection closed", "connection reset", "broken pipe"];
    let failure = failure.to_lowercase();
    let says = |part: &&str| failure.contains(*part);
    if says(&"invalid peer certificate") {
        "ca_file in the table [etcd] of the sitter's file has to hold who vouches for the servers, and \
         `coordination` the names that are in their certificates"
    } else if says(&"fatal alert") {
        IDENTITY
    } else if says(&"handshake eof") {
        "if it does not talk TLS: give no ca_file in the table [etcd] of the sitter's file"
    } else if ended.iter().any(says) {
        if secure {
            IDENTITY_OR_PLAIN
        } else {
            "if it talks TLS: give ca_file in the table [etcd] of the sitter's file"
        }
    } else {
        ""
    }
}

/// An error of the crate in words: what gRPC wraps around it says nothing to an operator.
struct Told<'a>(&'a Error);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (message, error): (&str, &dyn std::error::Error) = match self.0 {
            Error::GRpcStatus(status) if status.message().is_empty() => ("", status),
            Error::GRpcStatus(status) => (status.message(), status),
            Error::TransportError(error) => ("", error),
            other => return write!(f, "{other}"),
        };
        let deepest = std::iter::successors(error.source(), |cause| cause.source()).last();
        match (message, deepest) {
            ("", None) => write!(f, "{error}"),
            ("", Some(cause)) => write!(f, "{cause}"),
            (message, None) => f.write_str(message),
            (message, Some(cause)) if message.contains(&cause.to_string()) => f.write_str(message),
            (message, Some(cause)) => write!(f, "{message}: {cause}"),
        }
    }
}
