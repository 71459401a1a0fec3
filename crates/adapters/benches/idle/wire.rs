//! The way from the members to the servers, on which requests are counted by their kind.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// The kind of what begins a session, which has no number of its own on the wire.
const CONNECT: i32 = i32::MIN;
const SYNC: i32 = 9;
const PING: i32 = 11;

/// What a request is, by its number.
pub fn name(kind: i32) -> String {
    let known = match kind {
        CONNECT => "connect",
        1 => "create",
        2 => "delete",
        3 => "exists",
        4 => "getData",
        5 => "setData",
        8 => "getChildren",
        SYNC => "sync",
        PING => "ping",
        12 => "getChildren2",
        13 => "check",
        14 => "multi",
        15 => "create2",
        -11 => "closeSession",
        other => return format!("kind {other}"),
    };
    known.to_owned()
}

/// Whether it only shows that somebody is there.
pub fn is_heartbeat(kind: i32) -> bool {
    [SYNC, PING].contains(&kind)
}

type Counts = Arc<Mutex<BTreeMap<i32, u64>>>;

/// A port for each server.
pub struct Wire {
    ports: Vec<SocketAddr>,
    counts: Counts,
    _runtime: Runtime,
}

impl Wire {
    pub fn start(servers: Vec<SocketAddr>) -> io::Result<Wire> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let counts = Counts::default();
        let mut ports = Vec::new();
        for server in servers {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
            ports.push(listener.local_addr()?);
            runtime.spawn(accept(listener, server, Arc::clone(&counts)));
        }
        Ok(Wire { ports, counts, _runtime: runtime })
    }

    /// Where the members find them.
    pub fn servers(&self) -> String {
        self.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// What was counted since this was asked last.
    pub fn take(&self) -> BTreeMap<i32, u64> {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, counts: Counts) {
    while let Ok((client, _)) = listener.accept().await {
        let counts = Arc::clone(&counts);
        // A connection that fails fails at both ends, and is seen by who uses it.
        tokio::spawn(async move {
            let server = TcpStream::connect(server).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let (asking, mut told) = client.into_split();
            let (mut telling, asked) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut telling, &mut told).await });
            pass_requests(asking, asked, &counts).await
        });
    }
}

/// Passes on one request after the other: its length, its number, its kind, the rest.
async fn pass_requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    counts: &Counts,
) -> io::Result<()> {
    let (mut first, mut buffer) = (true, Vec::new());
    loop {
        let length = from.read_u32().await?;
        buffer.clear();
        buffer.extend(length.to_be_bytes());
        buffer.resize(4 + length as usize, 0);
        from.read_exact(&mut buffer[4..]).await?;
        let kind = match buffer.get(8..12) {
            Some(kind) if !first => i32::from_be_bytes([kind[0], kind[1], kind[2], kind[3]]),
            _ => CONNECT,
        };
        first = false;
        *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
        to.write_all(&buffer).await?;
    }
}
