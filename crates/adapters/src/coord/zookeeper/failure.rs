//! Why a call failed.

use crate::coord::access::TlsFileError;
use std::path::PathBuf;
use zookeeper_client::Error;

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(
        "no session from any of {servers} within {limit} ms: they do not run, cannot be reached from here, \
         or most of the ensemble is away"
    )]
    NoSession { servers: String, limit: u64 },
    #[error("no answer within {0} ms")]
    TimedOut(u64),
    #[error("the servers refused the credentials")]
    Refused,
    #[error(
        "{path} may not be {action} by us: its ACL asks for somebody else; give user and password_file of \
         who made it in the table [zookeeper] of the sitter's file, or let them change its ACL"
    )]
    Forbidden { action: &'static str, path: String },
    #[error(
        "these peers are registered without credentials, and would be locked out: {0}; give their sitters, too, \
         user and password_file in the table [zookeeper], and start them again"
    )]
    WithoutCredentials(String),
    #[error(
        "these servers do not know the transaction that a state is stored by: they have to be ZooKeeper 3.5 \
         or later; what is stored in older ones can only be read"
    )]
    TooOld,
    #[error(
        "a new shard would be set up over an old one: {0} has entries, and there is no state; bring the \
         old peers back and run `manatee adm state-backfill`, or, if nothing of that shard is wanted any \
         more, remove {0}"
    )]
    HasHistory(String),
    #[error("a session needs a timeout")]
    NoTimeout,
    #[error("{path} holds what is no {what}")]
    Content {
        path: String,
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    TlsFile(#[from] TlsFileError),
    #[error("{0}")]
    Tls(String),
    #[error("cannot write the peer as JSON")]
    Peer(#[source] serde_json::Error),
    #[error("the connection was lost: {0}")]
    Lost(Error),
    #[error("{path}: {source}")]
    Node { path: String, source: Error },
    #[error(transparent)]
    Client(#[from] Error),
}

impl Failure {
    /// An error of the service about one node.
    pub(super) fn node(action: &'static str, path: &str, error: Error) -> Self {
        let path = path.to_owned();
        match error {
            Error::NoAuth => Failure::Forbidden { action, path },
            Error::AuthFailed => Failure::Refused,
            // What the client says of itself has no code: a server that hangs, a broken stream.
            Error::ConnectionLoss
            | Error::SessionExpired
            | Error::SessionMoved
            | Error::ClientClosed
            | Error::Custom(_) => Failure::Lost(error),
            source => Failure::Node { path, source },
        }
    }

    /// Whether the service, or what stands in it, did not let us write: nothing was, and nothing will be.
    pub(super) fn is_refusal(&self) -> bool {
        use Failure::{Forbidden, HasHistory, Refused, TooOld};
        matches!(self, Refused | Forbidden { .. } | HasHistory(_) | TooOld)
    }

    /// Whether another session may do what this one could not.
    pub(super) fn is_of_the_connection(&self) -> bool {
        matches!(self, Failure::Lost(_))
    }
}
