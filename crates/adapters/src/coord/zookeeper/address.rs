//! `zk://host:port,host:port/root`: which servers, and below which node the shards are.

/// Where shards are unless the address says otherwise; where the original had them.
const ROOT: &str = "/manatee";
/// The port of a server that is given without one.
const PORT: u16 = 2181;

/// An address that names no ensemble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing before the root.
    #[error("it names no server: write zk://host:port,host:port")]
    NoServer,
    /// What stands between two commas.
    #[error("{0:?} is no server: write host:port, or [address]:port for IPv6")]
    Server(String),
    /// What stands after the servers.
    #[error("{0:?} is no path of a node: write zk://host:port/path, without a slash at its end")]
    Root(String),
    /// The name of the shard cannot be that of a node.
    #[error(
        "{0:?} is no name of a shard: it becomes a node's, so not empty, not . or .., without a slash"
    )]
    Shard(String),
    /// Somebody wrote a user before the servers.
    #[error(
        "credentials do not belong into the address: give them in the table [zookeeper] of the sitter's file"
    )]
    Credentials,
}

/// One shard in one ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Each as `host:port`.
    pub servers: Vec<String>,
    /// The node of the shard.
    pub shard_path: String,
}

impl Address {
    /// From what stands after `zk:` in an address.
    ///
    /// # Errors
    /// When it is none, or `shard` is no name for a node.
    pub fn parse(rest: &str, shard: &str) -> Result<Address, AddressError> {
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        if rest.contains('@') {
            return Err(AddressError::Credentials);
        }
        let (servers, root) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ROOT),
        };
        if servers.is_empty() {
            return Err(AddressError::NoServer);
        }
        let servers = servers.split(',').map(server).collect::<Result<_, _>>()?;
        let is_node = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
        if !root[1..].split('/').all(is_node) {
            return Err(AddressError::Root(root.to_owned()));
        }
        if !is_node(shard) || shard.contains('/') {
            return Err(AddressError::Shard(shard.to_owned()));
        }
        Ok(Address { servers, shard_path: format!("{root}/{shard}") })
    }
}

fn server(text: &str) -> Result<String, AddressError> {
    let wrong = || AddressError::Server(text.to_owned());
    let (host, port) = match text.strip_prefix('[').map(|inner| inner.split_once(']')) {
        Some(Some((host, after))) if host.contains(':') => (
            format!("[{host}]"),
            if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(wrong)?) },
        ),
        Some(_) => return Err(wrong()),
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        },
    };
    let port: u16 = port.map_or(Ok(PORT), str::parse).map_err(|_| wrong())?;
    if host.is_empty() || port == 0 || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rest: &str, expected: Result<(&str, &str), &str>) {
        match (Address::parse(rest, "1.moray.example"), expected) {
            (Ok(address), Ok((servers, path))) => {
                assert_eq!(
                    (address.servers.join(",").as_str(), address.shard_path.as_str()),
                    (servers, path)
                );
            }
            (Err(error), Err(part)) => {
                let text = error.to_string();
                assert!(text.contains(part), "{rest}: {text:?} without {part:?}");
            }
            (got, expected) => panic!("{rest}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn addresses() {
        check("//10.0.0.1:2181", Ok(("10.0.0.1:2181", "/manatee/1.moray.example")));
        check("10.0.0.1", Ok(("10.0.0.1:2181", "/manatee/1.moray.example")));
        check("//a:1,b:2,c/x/y", Ok(("a:1,b:2,c:2181", "/x/y/1.moray.example")));
        check(
            "//[fd00::1]:2182,[fd00::2]/x",
            Ok(("[fd00::1]:2182,[fd00::2]:2181", "/x/1.moray.example")),
        );
        check("//", Err("names no server"));
        check("///manatee", Err("names no server"));
        check("//a:1,,b:1", Err("\"\" is no server"));
        check("//a:b", Err("\"a:b\" is no server"));
        check("//fd00::1", Err("is no server"));
        check("//a:0", Err("is no server"));
        check("//a/", Err("is no path of a node"));
        check("//a/b//c", Err("is no path of a node"));
        check("//a/../b", Err("is no path of a node"));
        check("//user:secret@a:1", Err("[zookeeper]"));
        for shard in ["", ".", "..", "a/b"] {
            assert_eq!(Address::parse("//a", shard), Err(AddressError::Shard(shard.to_owned())));
        }
    }
}
