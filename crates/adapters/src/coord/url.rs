//! From the address in a configuration to a backend.

use super::etcd::{EtcdCoord, address as etcd};
use super::{CoordError, Coordination, sqlite::SqliteCoord};
use cluster::Millis;
use std::path::Path;
use std::sync::Arc;

/// An address that names no coordination service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum AddressError {
    #[error("it names no shard: give the shard a name")]
    NoShard,
    #[error("{0:?} is not an absolute path: write sqlite:/path/of/the/file")]
    NotAbsolute(String),
    #[error(transparent)]
    Etcd(#[from] etcd::AddressError),
    #[error(
        "this version has no {0} backend yet: it supports sqlite:/path/of/the/file and \
         etcd://host:port"
    )]
    NotYet(&'static str),
    #[error(
        "it is no address of a coordination service: write sqlite:/path/of/the/file or \
         etcd://host:port,host:port,…"
    )]
    Unknown,
}

/// A service that is named well.
#[derive(Debug, PartialEq, Eq)]
enum Address<'a> {
    Sqlite(&'a Path),
    Etcd(etcd::Address),
}

/// The coordination of `shard` at the service that `url` names: `sqlite:/path`, for sitters of one
/// machine, or `etcd://host:port[,host:port…][/root]`. Every call of it ends within `call_timeout`; so
/// does this one, which may block as long.
///
/// # Errors
/// When the address is none that this version supports, or the service cannot be used.
pub fn open(
    url: &str,
    shard: &str,
    call_timeout: Millis,
) -> Result<Arc<dyn Coordination>, CoordError> {
    let address = address(url, shard).map_err(|cause| CoordError {
        target: url.to_owned(),
        operation: "open",
        cause: cause.into(),
    })?;
    Ok(match address {
        Address::Sqlite(path) => Arc::new(SqliteCoord::open(path, shard, call_timeout)?),
        Address::Etcd(etcd::Address { servers, root }) => {
            Arc::new(EtcdCoord::new(&servers, &root, shard, call_timeout))
        }
    })
}

fn address<'a>(url: &'a str, shard: &str) -> Result<Address<'a>, AddressError> {
    let address = match url.split_once(':') {
        Some(("sqlite", path)) => Address::Sqlite(absolute(path)?),
        Some(("etcd", rest)) => Address::Etcd(etcd::parse(rest)?),
        Some(("zk", _)) => return Err(AddressError::NotYet("ZooKeeper")),
        _ => return Err(AddressError::Unknown),
    };
    if shard.is_empty() { Err(AddressError::NoShard) } else { Ok(address) }
}

fn absolute(path: &str) -> Result<&Path, AddressError> {
    // An empty host, as in `sqlite:///dir/file`, is harmless; `sqlite://dir/file` names one.
    let plain = path.strip_prefix("//").unwrap_or(path);
    if !plain.starts_with('/') || plain.starts_with("//") || plain.ends_with('/') {
        Err(AddressError::NotAbsolute(path.to_owned()))
    } else {
        Ok(Path::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Result<&str, &str>) {
        let got = address(url, "1.example").map(|address| match address {
            Address::Sqlite(path) => path.to_string_lossy().into_owned(),
            Address::Etcd(etcd) => format!("etcd {} {}", etcd.servers.join(" "), etcd.root),
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
        check("zk://10.0.0.1:2181/manatee", Err("no ZooKeeper backend yet"));
        check("etcd://10.0.0.1,b:1/db", Ok("etcd 10.0.0.1:2379 b:1 /db"));
        check("etcd:10.0.0.1:2379", Err("write etcd://host"));
        check("consul://10.0.0.1", Err("sqlite:/path/of/the/file"));
        check("/run/shard.db", Err("sqlite:/path/of/the/file"));
        check("", Err("sqlite:/path/of/the/file"));
        assert_eq!(address("sqlite:/run/shard.db", ""), Err(AddressError::NoShard));
    }
}
