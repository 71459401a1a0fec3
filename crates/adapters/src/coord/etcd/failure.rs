//! Why a call to etcd failed.

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
    #[error("etcd changed its leader again and again meanwhile")]
    Leaders,
    #[error("a stored {what} cannot be read")]
    Content { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

/// gRPC's numbers of errors that a server gives when it cannot serve now, and another may.
const ELSEWHERE: [i32; 5] = [1, 2, 4, 13, 14];

/// Its number for what is not there.
const NOT_FOUND: i32 = 5;

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

    /// Whether the lease that was asked for is no more.
    pub(super) fn is_lease_gone(&self) -> bool {
        match self {
            Failure::Etcd(Error::GRpcStatus(status)) => status.code() as i32 == NOT_FOUND,
            // The crate's own answer to a keep-alive that leaves no time to live.
            Failure::Etcd(Error::LeaseKeepAliveError(text)) => text == "lease not found",
            _ => false,
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
        Failure::Etcd(error)
    }
}

/// An error of the crate in words: what gRPC wraps around it says nothing to an operator.
struct Told<'a>(&'a Error);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error::GRpcStatus(status) = self.0 else {
            return write!(f, "{}", self.0);
        };
        let mut cause = std::error::Error::source(status);
        while let Some(deeper) = cause.and_then(std::error::Error::source) {
            cause = Some(deeper);
        }
        match (status.message(), cause) {
            ("", None) => write!(f, "{}", status.code()),
            ("", Some(cause)) => write!(f, "{cause}"),
            (message, None) => f.write_str(message),
            (message, Some(cause)) => write!(f, "{message}: {cause}"),
        }
    }
}
