//! Private services on loopback, and a hand that breaks the way to them: for tests and
//! demonstrations.
//!
//! Contract: what is started here ends when it is dropped, a panic included. All of it blocks for as
//! long as a service takes to start, with a limit, and may be used with or without a runtime.

mod etcd;
mod postmasters;
mod proxy;
mod servers;
mod zookeeper;

pub use etcd::{Etcd, EtcdOptions};
pub use postmasters::quit_servers;
pub use proxy::{Proxy, Way};
pub use servers::StartError;
pub use zookeeper::{Ensemble, EnsembleOptions, Mode};

use std::collections::{BTreeMap, btree_map::Entry};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

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

/// How many of them a process takes at a time. It listens on the first of them for as long as it lives,
/// which tells others that all of them are taken, whether or not a server listens there now.
const BLOCK: u16 = 20;

/// Ports of loopback that nobody listens on now, and that no other process is given while this one lives.
/// The search goes on where the last one ended, because the servers of another test may be down only for
/// now; the first begins anywhere, so that two processes hardly meet.
///
/// # Errors
/// When there are too few.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    static NEXT: LazyLock<AtomicUsize> = LazyLock::new(|| {
        let random = uuid::Uuid::new_v4().as_u128() % PORTS.len() as u128;
        AtomicUsize::new(usize::try_from(random).unwrap_or_default())
    });
    let mut ports = Vec::new();
    for _ in PORTS {
        if ports.len() == count {
            return Ok(ports);
        }
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len();
        let offset = u16::try_from(offset).expect("less than there are ports");
        let port = PORTS.start + offset;
        // One that cannot be had is somebody else's.
        if !offset.is_multiple_of(BLOCK)
            && is_ours(port - offset % BLOCK)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            ports.push(port);
        }
    }
    Err(io::Error::other(format!("no {count} free ports on loopback")))
}

/// Whether this process has the ports that begin with this one, taking them if nobody does.
fn is_ours(first: u16) -> bool {
    static OURS: Mutex<BTreeMap<u16, TcpListener>> = Mutex::new(BTreeMap::new());
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Entry::Vacant(others) = ours.entry(first) {
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, first)) else { return false };
        others.insert(listener);
    }
    true
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

    #[test]
    fn others_are_told_what_ports_are_taken() {
        for port in free_ports(50).expect("ports") {
            let first = port - (port - PORTS.start) % BLOCK;
            assert_ne!(port, first);
            TcpListener::bind((Ipv4Addr::LOCALHOST, first)).expect_err("somebody listens there");
        }
    }
}
