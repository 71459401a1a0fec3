//! The receiver of a stream.

use super::auth::{HEADER, Secret};
use super::pace::Pace;
use super::segment::{checksum, decompressed};
use super::tls::{TlsFiles, provider};
use super::wire::{
    CHECKSUM, JobStatus, LENGTH, Offer, Problem, RebuildRequest, SEGMENT, SnapshotInfo,
    SnapshotRequest, StreamRequest, StreamStarted, WAITED, WHOLE,
};
use adapters::{clock, storage::ReceiveStream};
use anyhow::Context;
use cluster::{Millis, Monotonic};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read},
    sync::{Arc, mpsc as blocking},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
};
use ureq::{
    Agent, Body,
    http::Response,
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider},
};
use xxhash_rust::xxh3::Xxh3;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(60);
/// How long a sender may be out of reach before the stream is given up.
const PATIENCE: Millis = Millis(60_000);
/// Before the second try; doubled each time...
const RETRY: Duration = Duration::from_millis(20);
/// ...up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How many segments may wait to be written here while the next ones come.
const AHEAD: usize = 4;
/// The longest answer that is no segment, in bytes.
const ANSWER: u64 = 16 << 20;

/// Why a stream did not come in.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The sender answered that it does not, and why.
    #[error("{url}: {problem}")]
    Refused {
        /// What was asked.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// What it said.
        problem: String,
    },
    /// The sender was out of reach for as long as we wait.
    #[error("{url} cannot be reached: {cause}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why not.
        cause: String,
    },
    /// What came is not what was sent.
    #[error("{url}: what came is not what was sent: {what}")]
    Corrupt {
        /// What was asked.
        url: String,
        /// What differs.
        what: &'static str,
    },
    /// The stream came, and could not be written.
    #[error("the stream cannot be written here")]
    Write(#[source] io::Error),
}

/// How far a stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the stream that were written here.
    pub bytes: u64,
    /// Bytes that came over the network for them.
    pub transferred: u64,
}

/// What takes a stream.
pub trait Sink: Send {
    /// Takes the next part, and gives the buffer back.
    fn put(&mut self, part: Vec<u8>) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
}

impl Sink for ReceiveStream {
    fn put(&mut self, part: Vec<u8>) -> impl Future<Output = io::Result<Vec<u8>>> + Send {
        ReceiveStream::put(self, part)
    }
}

/// Keeps all of it.
impl Sink for Vec<u8> {
    async fn put(&mut self, part: Vec<u8>) -> io::Result<Vec<u8>> {
        self.extend_from_slice(&part);
        Ok(part)
    }
}

/// The backup service of another peer.
#[derive(Debug, Clone)]
pub struct Remote {
    base: String,
    secret: Arc<Secret>,
    agent: Agent,
}

/// One segment, as it came.
struct Arrived {
    bytes: Vec<u8>,
    transferred: u64,
    /// On the last one, what the checksum of all is to be.
    whole: Option<u128>,
    /// How long it took, but for the sender's reading.
    took: Millis,
}

impl Remote {
    /// The service at this address: `host:port`.
    ///
    /// # Errors
    /// When a certificate cannot be used.
    pub fn new(
        address: &str,
        secret: Secret,
        tls: Option<&TlsFiles>,
    ) -> Result<Remote, super::TlsError> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST))
            .timeout_connect(Some(Duration::from_secs(5)))
            .proxy(None);
        if let Some(files) = tls {
            config = config.tls_config(client_config(files)?);
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Remote {
            base: format!("{scheme}://{address}"),
            secret: Arc::new(secret),
            agent: config.build().into(),
        })
    }

    /// What can be had.
    ///
    /// # Errors
    /// When it is not told.
    pub async fn offer(&self) -> Result<Offer, FetchError> {
        self.get("/v1/snapshots".to_owned()).await
    }

    /// Asks its sitter to rebuild the database there, all of it if `full`.
    ///
    /// # Errors
    /// When it does not; [`FetchError::Refused`] says why.
    pub async fn rebuild(&self, full: bool) -> Result<(), FetchError> {
        self.post("/v1/rebuild".to_owned(), &RebuildRequest { full }).await
    }

    /// The streams that it sends.
    ///
    /// # Errors
    /// When it is not told.
    pub async fn streams(&self) -> Result<Vec<JobStatus>, FetchError> {
        self.get("/v1/streams".to_owned()).await
    }

    /// Has a new snapshot made.
    ///
    /// # Errors
    /// When it is not.
    pub async fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotInfo, FetchError> {
        self.post("/v1/snapshots".to_owned(), request).await
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// When the sender does not.
    pub async fn begin(&self, request: &StreamRequest) -> Result<StreamStarted, FetchError> {
        self.post("/v1/streams".to_owned(), request).await
    }

    /// Ends a stream that was begun and is not wanted.
    ///
    /// # Errors
    /// When the sender is not told; it ends by itself then, when it was not asked for in a while.
    pub async fn end(&self, started: &StreamStarted) -> Result<(), FetchError> {
        let (remote, target) = (self.clone(), stream(started.id));
        let ended = spawn_blocking(move || remote.call("DELETE", &target, &[]).map(drop));
        ended.await.map_err(|error| FetchError::Write(io::Error::other(error)))?
    }

    /// Writes a stream that was begun to `sink`, all of it, and says how far it is. A sender that cannot
    /// be reached is tried again for a minute. Dropping the future stops it.
    ///
    /// # Errors
    /// When it does not come whole.
    pub async fn pull(
        &self,
        started: &StreamStarted,
        sink: &mut impl Sink,
        progress: &watch::Sender<Progress>,
    ) -> Result<Progress, FetchError> {
        let (sender, mut segments) = mpsc::channel::<Result<Arrived, FetchError>>(AHEAD);
        let (remote, id) = (self.clone(), started.id);
        // What was written is filled again: new memory costs more than what is copied into it.
        let (written, free) = blocking::channel();
        // Ends when nobody takes its segments any more.
        let puller = spawn_blocking(move || remote.pull_all(id, &sender, &free));
        let (mut done, mut finished) = (Progress::default(), false);
        while let Some(arrived) = segments.recv().await {
            let arrived = arrived?;
            done.bytes += arrived.bytes.len() as u64;
            done.transferred += arrived.transferred;
            let buffer = sink.put(arrived.bytes).await.map_err(FetchError::Write)?;
            progress.send_replace(done);
            finished = arrived.whole.is_some();
            // Nobody fills it any more when the last segment has come.
            written.send(buffer).ok();
        }
        puller.await.map_err(|error| FetchError::Write(io::Error::other(error)))?;
        if !finished {
            return Err(self.corrupt(&stream(id), "it has no end"));
        }
        Ok(done)
    }

    /// Blocks. Hands over one segment after the other, and lets go of the stream at its end.
    fn pull_all(
        &self,
        id: uuid::Uuid,
        segments: &mpsc::Sender<Result<Arrived, FetchError>>,
        free: &blocking::Receiver<Vec<u8>>,
    ) {
        let (mut pace, mut whole) = (Pace::default(), Xxh3::new());
        for index in 0.. {
            let smaller = pace.compresses(segments.capacity() > 0);
            let buffer = free.try_recv().unwrap_or_default();
            let mut arrived = self.pull_one((id, index, smaller), buffer, &mut whole, segments);
            let all = arrived.as_ref().ok().and_then(|arrived| arrived.whole);
            let last = arrived.is_err() || all.is_some();
            if all.is_some_and(|all| all != whole.digest128()) {
                arrived = Err(self.corrupt(&stream(id), "the checksum of the whole stream"));
            }
            if let Ok(arrived) = &arrived {
                pace.came(arrived.took);
            }
            if segments.blocking_send(arrived).is_err() || last {
                break;
            }
        }
        if let Err(error) = self.call("DELETE", &stream(id), &[]) {
            tracing::debug!("the stream was not let go of, and ends by itself: {error}");
        }
    }

    /// Tries until it is there, or has been in vain for too long.
    fn pull_one(
        &self,
        (id, index, smaller): (uuid::Uuid, u64, bool),
        mut buffer: Vec<u8>,
        whole: &mut Xxh3,
        segments: &mpsc::Sender<Result<Arrived, FetchError>>,
    ) -> Result<Arrived, FetchError> {
        let target = format!("{}/{index}{}", stream(id), if smaller { "?zstd" } else { "" });
        let since = clock::now();
        let mut pause = RETRY;
        loop {
            let error = match self.try_one(&target, std::mem::take(&mut buffer), whole) {
                Ok(arrived) => return Ok(arrived),
                Err(error) => error,
            };
            let transient = match &error {
                FetchError::Unreachable { .. } | FetchError::Corrupt { .. } => true,
                FetchError::Refused { .. } | FetchError::Write(_) => false,
            };
            if !transient || segments.is_closed() || clock::now() - since > PATIENCE {
                return Err(error);
            }
            tracing::debug!("trying again: {error}");
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_RETRY);
        }
    }

    /// `whole` is the checksum of all that came before, and then of this as well.
    fn try_one(
        &self,
        target: &str,
        mut buffer: Vec<u8>,
        whole: &mut Xxh3,
    ) -> Result<Arrived, FetchError> {
        let asked: Monotonic = clock::now();
        let mut response = self.call("GET", target, &[])?;
        let header = |name: &str| response.headers().get(name).and_then(|text| text.to_str().ok());
        let number = |name| header(name).and_then(|text| text.parse::<u64>().ok());
        let length = number(LENGTH).and_then(|length| usize::try_from(length).ok());
        let sent = header(CHECKSUM).and_then(|text| u64::from_str_radix(text, 16).ok());
        let (Some(length), Some(expected)) = (length.filter(|it| *it <= SEGMENT), sent) else {
            return Err(self.corrupt(target, "its headers are not those of a segment"));
        };
        let whole_sent = header(WHOLE).and_then(|text| u128::from_str_radix(text, 16).ok());
        if whole_sent.is_none() && length < SEGMENT {
            return Err(self.corrupt(target, "a short segment that is not the last"));
        }
        let waited = Millis(number(WAITED).unwrap_or(0));
        let compressed = header("content-encoding") == Some("zstd");
        let mut reader = response.body_mut().with_config().limit(2 * SEGMENT as u64).reader();
        let unreachable = |error: io::Error| self.unreachable(target, &error);
        let (bytes, transferred) = if compressed {
            let mut packed = Vec::new();
            reader.read_to_end(&mut packed).map_err(unreachable)?;
            let bytes = decompressed(&packed);
            (bytes.map_err(|_| self.corrupt(target, "it does not unpack"))?, packed.len())
        } else {
            // One that was filled before has this length already.
            buffer.resize(length, 0);
            reader.read_exact(&mut buffer).map_err(unreachable)?;
            if reader.read(&mut [0]).map_err(unreachable)? > 0 {
                return Err(self.corrupt(target, "the length of a segment"));
            }
            (buffer, length)
        };
        let mut through_here = whole.clone();
        if bytes.len() != length || checksum(&bytes, &mut through_here) != expected {
            return Err(self.corrupt(target, "the checksum of a segment"));
        }
        *whole = through_here;
        let took = Millis((clock::now() - asked).0.saturating_sub(waited.0));
        Ok(Arrived { bytes, transferred: transferred as u64, whole: whole_sent, took })
    }

    async fn get<T: DeserializeOwned + Send + 'static>(
        &self,
        target: String,
    ) -> Result<T, FetchError> {
        self.ask("GET", target, Vec::new()).await
    }

    async fn post<T: DeserializeOwned + Send + 'static>(
        &self,
        target: String,
        request: &impl Serialize,
    ) -> Result<T, FetchError> {
        let body = serde_json::to_vec(request).expect("requests are JSON");
        self.ask("POST", target, body).await
    }

    async fn ask<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &'static str,
        target: String,
        body: Vec<u8>,
    ) -> Result<T, FetchError> {
        let remote = self.clone();
        let asked = spawn_blocking(move || {
            let mut response = remote.call(method, &target, &body)?;
            let bytes = response.body_mut().with_config().limit(ANSWER).read_to_vec();
            let bytes = bytes.map_err(|error| remote.unreachable(&target, &error))?;
            serde_json::from_slice(&bytes)
                .map_err(|_| remote.corrupt(&target, "no answer of a backup service"))
        });
        asked.await.map_err(|error| FetchError::Write(io::Error::other(error)))?
    }

    /// One signed request, whose answer is not an error.
    fn call(&self, method: &str, target: &str, body: &[u8]) -> Result<Response<Body>, FetchError> {
        let signature = self.secret.sign(Timestamp::now().as_second(), method, target, body);
        let url = format!("{}{target}", self.base);
        let agent = &self.agent;
        let sent = match method {
            "POST" => agent
                .post(&url)
                .header(HEADER, signature)
                .header("content-type", "application/json")
                .send(body),
            "DELETE" => agent.delete(&url).header(HEADER, signature).call(),
            _ => agent.get(&url).header(HEADER, signature).call(),
        };
        let mut response = sent.map_err(|error| self.unreachable(target, &error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let problem = serde_json::from_str(&text).map_or(text, |problem: Problem| problem.error);
        Err(FetchError::Refused { url, status: status.as_u16(), problem })
    }

    fn unreachable(&self, target: &str, cause: &dyn std::fmt::Display) -> FetchError {
        FetchError::Unreachable { url: format!("{}{target}", self.base), cause: cause.to_string() }
    }

    fn corrupt(&self, target: &str, what: &'static str) -> FetchError {
        FetchError::Corrupt { url: format!("{}{target}", self.base), what }
    }
}

fn stream(id: uuid::Uuid) -> String {
    format!("/v1/streams/{id}")
}

fn client_config(files: &TlsFiles) -> Result<TlsConfig, super::TlsError> {
    let material = files.load()?;
    let own = |certificate: &[u8]| Certificate::from_der(certificate).to_owned();
    let chain: Vec<_> = material.chain.iter().map(|certificate| own(certificate)).collect();
    let roots: Vec<_> = material.authority.iter().map(|certificate| own(certificate)).collect();
    let key = std::fs::read(&files.key)
        .context("cannot be read")
        .and_then(|pem| Ok(PrivateKey::from_pem(&pem)?))
        .map_err(|error| super::TlsError {
            path: files.key.clone(),
            problem: format!("{error:#}"),
        })?;
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider())
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(Some(ClientCert::new_with_certs(&chain, key)))
        .build())
}
