//! From the address in a configuration to a backend.

use super::etcd::{EtcdCoord, address as etcd};
use super::zookeeper::{Address, AddressError as ZkAddressError, ZkCoord};
use super::{Access, CoordError, Coordination, sqlite::SqliteCoord};
use cluster::Millis;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What there is to say beyond an address.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bounds every call.
    pub call_timeout: Millis,
    /// For `zk:` and `etcd:` addresses.
    pub access: Access,
    /// Where a member writes down which session it registered with, so that the next one takes its
    /// registration over. Only for whoever holds a lock that lets no two run.
    pub session_file: Option<PathBuf>,
}

impl Options {
    /// No credentials, and nothing written down.
    pub fn new(call_timeout: Millis) -> Self {
        Options { call_timeout, access: Access::default(), session_file: None }
    }
}

/// An address that names no coordination service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum AddressError {
    #[error("it names no shard: give the shard a name")]
    NoShard,
    #[error("{0:?} is not an absolute path: write sqlite:/path/of/the/file")]
    NotAbsolute(String),
    #[error(transparent)]
    ZooKeeper(#[from] ZkAddressError),
    #[error(transparent)]
    Etcd(#[from] etcd::AddressError),
    #[error(
        "it is no address of a coordination service: write zk://host:port,host:port or \
         etcd://host:port,host:port or sqlite:/path/of/the/file"
    )]
    Unknown,
}

/// What an address names.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Ensemble(Address),
    Etcd(etcd::Address),
}

/// The coordination of `shard` at the service that `url` names: `sqlite:/path`, for sitters of one
/// machine, `zk://host:port,host:port/root` or `etcd://host:port,host:port/root`. Every call of it ends
/// within the limit; so does this one, which may block as long.
///
/// # Errors
/// When the address is none that this version supports, or the service cannot be used.
pub fn open(
    url: &str,
    shard: &str,
    options: &Options,
) -> Result<Arc<dyn Coordination>, CoordError> {
    let place = address(url, shard).map_err(|cause| CoordError {
        target: url.to_owned(),
        operation: "open",
        cause: cause.into(),
    })?;
    let Options { call_timeout, access, session_file } = options;
    Ok(match place {
        Place::File(path) => Arc::new(SqliteCoord::open(&path, shard, *call_timeout)?),
        Place::Ensemble(address) => {
            Arc::new(ZkCoord::open(address, access, *call_timeout, session_file.clone())?)
        }
        Place::Etcd(etcd::Address { servers, root }) => {
            Arc::new(EtcdCoord::open(&servers, &root, shard, access, *call_timeout)?)
        }
    })
}

/// Whether [`open`] can do anything with this address. Nobody is asked.
///
/// # Errors
/// Says what is wrong with it, and what to write.
pub fn check_address(url: &str, shard: &str) -> Result<(), String> {
    address(url, shard).map(drop).map_err(|error| error.to_string())
}

fn address(url: &str, shard: &str) -> Result<Place, AddressError> {
    match url.split_once(':') {
        Some(("sqlite", path)) => file(path, shard),
        Some(("zk", rest)) => Ok(Place::Ensemble(Address::parse(rest, shard)?)),
        Some(("etcd", rest)) if !shard.is_empty() => Ok(Place::Etcd(etcd::parse(rest)?)),
        Some(("etcd", _)) => Err(AddressError::NoShard),
        _ => Err(AddressError::Unknown),
    }
}

fn file(path: &str, shard: &str) -> Result<Place, AddressError> {
    // An empty host, as in `sqlite:///dir/file`, is harmless; `sqlite://dir/file` names one.
    let plain = path.strip_prefix("//").unwrap_or(path);
    if !plain.starts_with('/') || plain.starts_with("//") || plain.ends_with('/') {
        Err(AddressError::NotAbsolute(path.to_owned()))
    } else if shard.is_empty() {
        Err(AddressError::NoShard)
    } else {
        Ok(Place::File(Path::new(plain).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Result<&str, &str>) {
        let got = address(url, "1.example").map(|place| match place {
            Place::File(path) => path.to_string_lossy().into_owned(),
            Place::Ensemble(address) => {
                format!("{} {}", address.servers.join(" "), address.shard_path)
            }
            Place::Etcd(etcd) => format!("etcd {} {}", etcd.servers.join(" "), etcd.root),
        });
        match (&got, expected) {
            (Ok(path), Ok(expected)) => assert_eq!(path, expected, "{url}"),
            (Err(error), Err(part)) => {
                let message = error.to_string();
                assert!(message.contains(part), "{url}: {message:?} without {part:?}");
            }
            _ => panic!("{url}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn addresses() {
        check("sqlite:/run/shard.db", Ok("/run/shard.db"));
        check("sqlite:///run/shard.db", Ok("/run/shard.db"));
        check("sqlite:/run/with?odd:name", Ok("/run/with?odd:name"));
        check("sqlite:shard.db", Err("not an absolute path"));
        check("sqlite://run/shard.db", Err("not an absolute path"));
        check("sqlite:/", Err("not an absolute path"));
        check("sqlite:", Err("not an absolute path"));
        check("zk://10.0.0.1:2181", Ok("10.0.0.1:2181 /manatee/1.example"));
        check("zk://a:1,b:2/x", Ok("a:1 b:2 /x/1.example"));
        check("zk://", Err("names no server"));
        check("etcd://10.0.0.1,b:1/db", Ok("etcd 10.0.0.1:2379 b:1 /db"));
        check("etcd:10.0.0.1:2379", Err("write etcd://host"));
        check("consul://10.0.0.1", Err("sqlite:/path/of/the/file"));
        check("/run/shard.db", Err("sqlite:/path/of/the/file"));
        check("", Err("sqlite:/path/of/the/file"));
        assert_eq!(address("sqlite:/run/shard.db", ""), Err(AddressError::NoShard));
    }
}
