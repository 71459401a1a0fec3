//! The address of an etcd: `etcd://host:port[,host:port…][/root]`.

/// The port of a server where none is given.
const PORT: u16 = 2379;

/// What shards stand below where no root is given.
const ROOT: &str = "/manatee";

/// Servers (`host:port`, at least one) and root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::coord) struct Address {
    pub(in crate::coord) servers: Vec<String>,
    pub(in crate::coord) root: String,
}

/// What is wrong with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::coord) enum AddressError {
    #[error("write etcd://host:port,host:port,…/root")]
    NoServers,
    #[error("{0:?} is no host and port: write etcd://host:port,host:port,…/root")]
    Server(String),
    #[error("{0:?} is no root of keys: write a slash and a name, as in etcd://host:port/manatee")]
    Root(String),
}

/// Reads what follows `etcd:`.
pub(in crate::coord) fn parse(text: &str) -> Result<Address, AddressError> {
    let rest = text.strip_prefix("//").ok_or(AddressError::NoServers)?;
    let (servers, root) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ROOT),
    };
    let name = root.trim_end_matches('/');
    if name.split('/').skip(1).any(str::is_empty) {
        return Err(AddressError::Root(root.to_owned()));
    }
    if servers.is_empty() {
        return Err(AddressError::NoServers);
    }
    let servers = servers.split(',').map(server).collect::<Result<_, _>>()?;
    Ok(Address { servers, root: name.to_owned() })
}

fn server(text: &str) -> Result<String, AddressError> {
    let error = || AddressError::Server(text.to_owned());
    // An IPv6 address stands in brackets.
    let (host, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| error())?,
        None if port.is_empty() => PORT,
        None => return Err(error()),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let sound = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(plain),
    };
    if sound { Ok(format!("{host}:{port}")) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&[&str], &str), &str>) {
        match (parse(text), expected) {
            (Ok(got), Ok((servers, root))) => {
                assert_eq!((got.servers, got.root.as_str()), (to_strings(servers), root), "{text}");
            }
            (Err(error), Err(part)) => {
                let message = error.to_string();
                assert!(message.contains(part), "{text}: {message:?} without {part:?}");
            }
            (got, expected) => panic!("{text}: {got:?} instead of {expected:?}"),
        }
    }

    fn to_strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn addresses() {
        check("//10.0.0.1:2379", Ok((&["10.0.0.1:2379"], "/manatee")));
        check("//10.0.0.1", Ok((&["10.0.0.1:2379"], "/manatee")));
        check(
            "//a:1,b-c.d:2,[::1]:3,[fd00::1]",
            Ok((&["a:1", "b-c.d:2", "[::1]:3", "[fd00::1]:2379"], "/manatee")),
        );
        check("//a:1/db/shards", Ok((&["a:1"], "/db/shards")));
        check("//a:1/db/", Ok((&["a:1"], "/db")));
        check("//a:1/", Ok((&["a:1"], "")));
        check("//a:1/db//x", Err("\"/db//x\" is no root"));
        check("//", Err("write etcd://host"));
        check("a:1", Err("write etcd://host"));
        check("//a:1,", Err("\"\" is no host"));
        check("//a:x", Err("\"a:x\" is no host"));
        check("//::1:5", Err("\"::1:5\" is no host"));
        check("//[::1:5", Err("is no host"));
        check("//[::g]:5", Err("is no host"));
        check("//user@a:1", Err("\"user@a:1\" is no host"));
    }
}
