//! Private services on loopback, and a hand that breaks the way to them: for tests and
//! demonstrations.
//!
//! Contract: what is started here ends when it is dropped, a panic included. All of it blocks for as
//! long as a service takes to start, with a limit, and may be used with or without a runtime.

mod etcd;
mod proxy;
mod servers;
mod zookeeper;

pub use etcd::{Etcd, EtcdOptions};
pub use proxy::{Proxy, Way};
pub use servers::StartError;
pub use zookeeper::{Ensemble, EnsembleOptions, Mode};

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

/// Where a peer or a server lives, and how a program is started there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its address: one that nobody else has, but on loopback.
    pub ip: IpAddr,
    /// The command that the program and its arguments are appended to. It becomes the program.
    pub enter: Vec<OsString>,
}

impl Host {
    /// This machine, by its loopback address.
    pub fn local() -> Host {
        Host { ip: Ipv4Addr::LOCALHOST.into(), enter: Vec::new() }
    }
}

/// Where ports are looked for: above what services use, below what the kernel gives to outgoing
/// connections, which could take the port of a server while it is down.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Ports of loopback that nobody listens on now. All are held until the last is found, so that none
/// comes twice; the search begins anywhere, so that two tests that start together hardly meet.
///
/// # Errors
/// When there are too few.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let span = u128::from(PORTS.end - PORTS.start);
    let start = u16::try_from(uuid::Uuid::new_v4().as_u128() % span).unwrap_or_default();
    let mut held = Vec::new();
    for offset in 0..PORTS.end - PORTS.start {
        if held.len() == count {
            break;
        }
        let port = PORTS.start + (start + offset) % (PORTS.end - PORTS.start);
        // One that cannot be had is somebody else's.
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(io::Error::other(format!("no {count} free ports on loopback")));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_distinct() {
        let mut ports = free_ports(12).expect("ports");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }
}
