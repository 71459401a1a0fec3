//! How to get a session: which servers, with which credentials, within which time.

use super::failure::Failure;
use crate::clock;
use crate::coord::{Access, CoordError, TlsAccess};
use cluster::Millis;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use zookeeper_client::{Acl, Acls, Client, Connector, Error, Permission, TlsOptions};

/// Who may do what with the nodes that we make: without credentials everybody everything, as the
/// original had it; with them we alone may change anything, and everybody may read.
static OPEN: [Acl; 1] = [Acl::new_const(Permission::ALL, "world", "anyone")];
pub(super) static OWNED: [Acl; 2] = [
    Acl::new_const(Permission::ALL, "auth", ""),
    Acl::new_const(Permission::READ, "world", "anyone"),
];

/// The newest protocol that an ensemble of the original's age understands.
const OLDEST_SERVER: (u32, u32, u32) = (3, 4, 0);

/// From one attempt to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// What every session of a backend has in common.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) target: String,
    /// Bounds each call.
    pub(super) limit: Millis,
    servers: Vec<String>,
    secret: Option<Secret>,
    tls: Option<TlsOptions>,
}

/// `user:password`; not for eyes.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Whether the session ends with its client, or lives on until it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    WithClient,
    ByExpiry,
}

impl Link {
    pub(super) fn new(
        target: String,
        servers: Vec<String>,
        access: &Access,
        limit: Millis,
    ) -> Result<Self, Failure> {
        let secret = access
            .credentials
            .as_ref()
            .map(|credentials| Secret(format!("{}:{}", credentials.user, credentials.password)));
        let tls = access.tls.as_ref().map(tls_options).transpose()?;
        Ok(Link { target, limit, servers, secret, tls })
    }

    pub(super) fn error(&self, operation: &'static str, failure: Failure) -> CoordError {
        CoordError { target: self.target.clone(), operation, cause: failure.into() }
    }

    pub(super) fn servers(&self) -> String {
        self.servers.join(", ")
    }

    /// Whether we are somebody to the servers.
    pub(super) fn has_credentials(&self) -> bool {
        self.secret.is_some()
    }

    pub(super) fn acls(&self) -> Acls<'static> {
        Acls::new(if self.secret.is_some() { &OWNED } else { &OPEN })
    }

    /// A session of its own. The server may grant another timeout than the one that is asked for.
    pub(super) async fn open(&self, timeout: Millis, end: End) -> Result<Client, Failure> {
        // The client takes a server for lost, and turns to another, so long after it heard of it
        // last. It asks for signs of life all the more often the shorter this is. A session that is
        // to last needs time for another server or two; a call has one answer to wait for, and the
        // client does not wait for longer.
        let silence = match end {
            End::ByExpiry => timeout.0 / 3,
            End::WithClient => timeout.0 * 3 / 5,
        };
        let silence = Duration::from_millis(silence.max(1));
        let (major, minor, patch) = OLDEST_SERVER;
        let mut connector = Client::connector()
            .with_session_timeout(Duration::from_millis(timeout.0))
            .with_connection_timeout(silence)
            .with_server_version(major, minor, patch);
        if end == End::ByExpiry {
            connector = connector.with_detached();
        }
        if let Some(Secret(secret)) = &self.secret {
            connector = connector.with_auth("digest", secret.as_bytes());
        }
        // A little less than the call has, so that its caller gets this answer and not a bare timeout.
        let limit = Duration::from_millis(self.limit.0 - self.limit.0 / 20);
        match tokio::time::timeout(limit, self.try_open(connector)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::NoSession { servers: self.servers(), limit: self.limit.0 }),
        }
    }

    /// Tries until it has a session. A server that takes the connection and says nothing may hold up
    /// one attempt, not all that there is time for. The client begins each with any server that it is
    /// told of; so the first is told of all, and each later one of all but one, another one each time.
    async fn try_open(&self, connector: Connector) -> Result<Client, Failure> {
        let share = self.limit.0 / (self.servers.len() as u64 + 1);
        let share = Duration::from_millis(share.max(1));
        let mut turn = 0;
        loop {
            let (begin, servers) = (clock::now(), self.servers_at(turn));
            let connecting = self.connect(connector.clone(), &servers);
            match tokio::time::timeout(share, connecting).await {
                Ok(Ok(client)) => return Ok(client),
                Err(_) | Ok(Err(Error::Timeout | Error::NoHosts | Error::ConnectionLoss)) => {}
                Ok(Err(Error::AuthFailed)) => return Err(Failure::Refused),
                Ok(Err(error)) => return Err(error.into()),
            }
            // One that failed at once is not to be tried in a busy loop.
            let spent = Duration::from_millis((clock::now() - begin).0);
            tokio::time::sleep(PAUSE.saturating_sub(spent)).await;
            turn += 1;
        }
    }

    fn servers_at(&self, turn: usize) -> String {
        let count = self.servers.len();
        let without = turn.checked_sub(1).filter(|_| count > 1).map(|turn| turn % count);
        let servers = self.servers.iter().enumerate();
        let servers = servers.filter(|(index, _)| Some(*index) != without);
        servers.map(|(_, server)| server.as_str()).collect::<Vec<_>>().join(",")
    }

    async fn connect(&self, connector: Connector, servers: &str) -> Result<Client, Error> {
        match &self.tls {
            Some(tls) => connector.with_tls(tls.clone()).secure_connect(servers).await,
            None => connector.connect(servers).await,
        }
    }

    /// Does this in a session of its own, all of it within the limit of a call. Nothing of it is
    /// left waiting in a queue when the time is up.
    ///
    /// The session is made by a write of the ensemble: what is read in it is no older than the call.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        work: impl FnOnce(Client) -> F,
    ) -> Result<T, CoordError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let whole = async { work(self.open(self.limit, End::WithClient).await?).await };
        self.within_limit(operation, whole).await
    }

    /// As [`Link::call`], for what may be done again when the connection is lost on the way.
    pub(super) async fn ask<T, F>(
        &self,
        operation: &'static str,
        work: impl Fn(Client) -> F,
    ) -> Result<T, CoordError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let whole = async {
            loop {
                match work(self.open(self.limit, End::WithClient).await?).await {
                    Err(failure) if failure.is_of_the_connection() => {}
                    result => return result,
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        self.within_limit(operation, whole).await
    }

    async fn within_limit<T>(
        &self,
        operation: &'static str,
        whole: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, CoordError> {
        match tokio::time::timeout(Duration::from_millis(self.limit.0), whole).await {
            Ok(result) => result,
            Err(_) => Err(Failure::TimedOut(self.limit.0)),
        }
        .map_err(|failure| self.error(operation, failure))
    }
}

fn tls_options(access: &TlsAccess) -> Result<TlsOptions, Failure> {
    let wrong = |path: &Path, error: Error| {
        Failure::Tls(format!("{} cannot be used for TLS: {error}", path.display()))
    };
    let pem = access.read()?;
    let options = TlsOptions::new().with_pem_ca(&pem.ca);
    let options = options.map_err(|error| wrong(&access.ca_file, error))?;
    match (&access.identity, &pem.identity) {
        (Some((path, _)), Some((certificate, key))) => {
            options.with_pem_identity(certificate, key).map_err(|error| wrong(path, error))
        }
        _ => Ok(options),
    }
}
