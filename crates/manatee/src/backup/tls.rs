//! TLS between the peers of a shard: each shows a certificate of the shard's own authority, and takes
//! nobody who cannot.

use anyhow::{Context, Result};
use axum::serve::Listener;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that are shaken hands with and not yet served.
const WAITING: usize = 16;

/// Where the certificates are, all of them in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority whose certificates are accepted.
    pub authority: PathBuf,
    /// This peer's certificate, with the intermediate ones. It names the peer's address.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A file of [`TlsFiles`] that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsError {
    /// Which.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// What the files hold.
pub(super) struct Material {
    pub authority: Vec<CertificateDer<'static>>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl TlsFiles {
    /// Reads all of them.
    pub(super) fn load(&self) -> Result<Material, TlsError> {
        let key = PrivateKeyDer::from_pem_file(&self.key);
        let key = key.map_err(|error| bad(&self.key, &format!("no private key: {error}")))?;
        Ok(Material {
            authority: certificates(&self.authority)?,
            chain: certificates(&self.certificate)?,
            key,
        })
    }
}

fn bad(path: &std::path::Path, problem: &str) -> TlsError {
    TlsError { path: path.to_owned(), problem: problem.to_owned() }
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = read.map_err(|error| bad(path, &format!("no certificate: {error}")))?;
    if all.is_empty() {
        return Err(bad(path, "no certificate in it"));
    }
    Ok(all)
}

/// What does the cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig> {
    let material = files.load()?;
    let mut roots = RootCertStore::empty();
    for certificate in material.authority {
        roots.add(certificate).map_err(|error| bad(&files.authority, &error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| bad(&files.authority, &error.to_string()))?;
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(material.chain, material.key)
        .with_context(|| format!("{} and {}", files.certificate.display(), files.key.display()))
}

/// Accepts connections and shakes hands with each, so that a slow one keeps nobody waiting.
pub(super) struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    pub fn new(listener: TcpListener, files: &TlsFiles) -> Result<TlsListener> {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(files)?));
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(WAITING);
        tokio::spawn(accept(listener, acceptor, sender));
        Ok(TlsListener { address, ready })
    }
}

async fn accept(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    loop {
        let (stream, from) = tokio::select! {
            // Tries again by itself when the process has no file descriptors left.
            accepted = Listener::accept(&mut listener) => accepted,
            () = ready.closed() => return,
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                // The receiver is gone when the service ends.
                Ok(Ok(stream)) => drop(ready.send((stream, from)).await),
                Ok(Err(error)) => tracing::warn!(%from, "backup service: no TLS: {error}"),
                Err(_) => tracing::warn!(%from, "backup service: no TLS within {HANDSHAKE:?}"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // Only when the runtime shuts down.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
