//! `manatee transplant discover`: what is asked for a draft of an inventory.

use adapters::service::Host;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use tokio_postgres::config::Host as Named;
use transplant::{Asking, PatroniConfig, Source, is_here};

/// Which donor, and the shard's peers.
#[derive(Debug, Args)]
pub struct Discover {
    /// Where the donor's server runs (of a shard its primary's, of a Patroni cluster its leader's): "local",
    /// or "ssh:user@host". Default: local; of a shard or a cluster only where that one's address is local.
    #[arg(long, value_parser = |text: &str| Host::try_from(text.to_owned()))]
    host: Option<Host>,
    /// Where its Unix socket is. Default: where a socket of its port is on that host.
    #[arg(long, value_name = "DIR", value_parser = there)]
    socket_dir: Option<String>,
    /// Its port. Default: 5432.
    #[arg(long)]
    port: Option<u16>,
    /// The user that it runs as.
    #[arg(long, default_value = "postgres", value_name = "USER")]
    os_user: String,
    /// The database superuser, who is let in over the socket without a password.
    #[arg(long, default_value = "postgres", value_name = "ROLE")]
    superuser: String,
    /// A connection string of the server: "host=… port=… user=…", or postgresql://…. Its host, port and user
    /// are used; a host of another machine needs --host, too.
    #[arg(long, conflicts_with_all = ["port", "socket_dir", "superuser"])]
    dsn: Option<String>,
    /// The donor is this shard of Manatee.
    #[arg(
        long,
        value_name = "NAME",
        requires = "coordination",
        conflicts_with_all = ["patroni", "dsn", "port"]
    )]
    shard: Option<String>,
    /// Where the peers of that shard meet, as in a sitter's file: zk://…, etcd://… or sqlite:….
    #[arg(long, value_name = "URL", requires = "shard")]
    coordination: Option<String>,
    /// The file with the table [zookeeper] or [etcd] of a sitter's file, where it asks who we are; a sitter's file
    /// will do.
    #[arg(long, value_name = "FILE", requires = "shard")]
    access: Option<PathBuf>,
    /// The donor is the leader of the Patroni cluster that has this member: the URL of its REST API.
    #[arg(long, value_name = "URL", conflicts_with_all = ["dsn", "port"])]
    patroni: Option<String>,
    /// The user that may change things there, where it asks for one.
    #[arg(long, value_name = "USER", requires_all = ["patroni", "patroni_password_file"])]
    patroni_user: Option<String>,
    /// The file with that user's password.
    #[arg(long, value_name = "FILE", requires = "patroni_user")]
    patroni_password_file: Option<PathBuf>,
    /// The file with the certificate of the authority that its certificates are from, for https.
    #[arg(long, value_name = "FILE", requires = "patroni")]
    patroni_ca: Option<PathBuf>,
    /// The sitter's file of a peer of the shard that it is to be moved into: FILE, or HOST=FILE. Once for
    /// each, in the order of the chain.
    #[arg(long, value_name = "[HOST=]FILE", value_parser = recipient)]
    recipient: Vec<(Host, String)>,
}

fn recipient(text: &str) -> std::result::Result<(Host, String), String> {
    let (host, file) = match text.split_once('=') {
        Some((host, file)) => (Host::try_from(host.to_owned())?, file),
        None => (Host::Local, text),
    };
    match host {
        Host::Local => Ok((host, absolute(Path::new(file)).map_err(|error| error.to_string())?)),
        Host::Ssh(_) => Ok((host, there(file)?)),
    }
}

/// A path on the host that it is of.
fn there(path: &str) -> std::result::Result<String, String> {
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err("give an absolute path".to_owned())
    }
}

/// The text of a draft.
pub(super) async fn run(asked: Discover) -> Result<String> {
    let (recipient, (source, asking)) = (asked.recipient.clone(), asked.sort()?);
    let mut draft = transplant::discover(&source, &asking).await?;
    let program = std::env::current_exe().context("this program's path")?;
    draft.recipients(&recipient, &program.display().to_string())?;
    Ok(draft.into_text())
}

impl Discover {
    /// Whom to ask what.
    fn sort(self) -> Result<(Source, Asking)> {
        let Discover { host, socket_dir, os_user, superuser, .. } = self;
        let asking = Asking { host, socket_dir, os_user, superuser };
        let access = self.access.as_deref().map(absolute).transpose()?;
        let source = match (self.shard, self.coordination, self.patroni) {
            (Some(shard), Some(coordination), _) => Source::Shard { coordination, shard, access },
            (_, _, Some(url)) => Source::Patroni(PatroniConfig {
                url,
                user: self.patroni_user,
                password_file: self.patroni_password_file.as_deref().map(absolute).transpose()?,
                ca: self.patroni_ca.as_deref().map(absolute).transpose()?,
            }),
            _ => match self.dsn {
                Some(dsn) => return connection(&dsn, asking),
                None => Source::Server { port: self.port.unwrap_or(5432), address: None },
            },
        };
        Ok((source, asking))
    }
}

/// As the inventory names it, which may be read from elsewhere.
fn absolute(path: &Path) -> Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}

/// Whom to ask that a connection string names.
fn connection(dsn: &str, asking: Asking) -> Result<(Source, Asking)> {
    let config: tokio_postgres::Config = dsn.parse().context("--dsn")?;
    let port = match config.get_ports() {
        [] => 5432,
        [port] => *port,
        _ => bail!("--dsn names several ports: give the primary's alone"),
    };
    let superuser = config.get_user().map_or(asking.superuser, str::to_owned);
    let mut asking = Asking { superuser, ..asking };
    let address = match (config.get_hostaddrs(), config.get_hosts()) {
        ([], []) => None,
        ([], [Named::Unix(directory)]) => {
            asking.socket_dir = Some(directory.display().to_string());
            None
        }
        ([], [Named::Tcp(name)]) => Some(name.clone()),
        ([address], [] | [Named::Tcp(_)]) => Some(address.to_string()),
        _ => bail!("--dsn names several hosts: give the primary's alone"),
    };
    let address = address.map(|address| (is_here(&address), address));
    if let (Some((false, other)), None) = (&address, &asking.host) {
        bail!(
            "--dsn: {other} is another host, or none that is known here: say how it is reached, as in \
             --host ssh:root@{other}"
        );
    }
    // What is of this machine only is no address for others.
    let loops = |address: &str| {
        let ip = address.parse::<std::net::IpAddr>();
        address == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    };
    let address = address.map(|(_, address)| address).filter(|address| !loops(address));
    Ok((Source::Server { port, address }, asking))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Port, address, socket and superuser; or the problem.
    fn check(
        dsn: &str,
        host: Option<&str>,
        expected: Result<(u16, Option<&str>, &str, &str), &str>,
    ) {
        let host = host.map(|host| Host::try_from(host.to_owned()).unwrap());
        let asking = Asking {
            host,
            socket_dir: None,
            os_user: "postgres".to_owned(),
            superuser: "postgres".to_owned(),
        };
        match (connection(dsn, asking), expected) {
            (Ok((Source::Server { port, address }, asking)), Ok(expected)) => {
                let socket = asking.socket_dir.unwrap_or_default();
                let found = (port, address.as_deref(), socket.as_str(), asking.superuser.as_str());
                assert_eq!(found, expected, "{dsn}");
            }
            (Err(error), Err(expected)) => {
                let told = format!("{error:#}");
                assert!(told.contains(expected), "{dsn}: {told}");
            }
            (found, expected) => panic!("{dsn}: {found:?}, {expected:?}"),
        }
    }

    #[test]
    fn connection_strings_name_a_server() {
        check("", None, Ok((5432, None, "", "postgres")));
        check("host=/run/pg port=5433 user=admin", None, Ok((5433, None, "/run/pg", "admin")));
        check("postgresql://admin:secret@127.0.0.1:5433/app", None, Ok((5433, None, "", "admin")));
        check("postgresql:///app?host=/run/pg", None, Ok((5432, None, "/run/pg", "postgres")));
        let there = Some("ssh:root@db1");
        check("host=192.0.2.1", there, Ok((5432, Some("192.0.2.1"), "", "postgres")));
        check("host=db hostaddr=192.0.2.1", there, Ok((5432, Some("192.0.2.1"), "", "postgres")));
        check("host=192.0.2.1", None, Err("--host ssh:root@192.0.2.1"));
        check("host=a,b", there, Err("several hosts"));
        check("host=a port=1,2", there, Err("several ports"));
        check("host=a nonsense=1", there, Err("--dsn"));
    }

    #[test]
    fn files_of_sitters_are_absolute() {
        for (text, expected) in [
            ("/etc/sitter.toml", Ok((Host::Local, "/etc/sitter.toml"))),
            ("local=/etc/sitter.toml", Ok((Host::Local, "/etc/sitter.toml"))),
            ("ssh:root@b=/s.toml", Ok((Host::Ssh("root@b".to_owned()), "/s.toml"))),
            ("ssh:root@b=s.toml", Err("give an absolute path")),
            ("b=/s.toml", Err("\"b\" is no host")),
        ] {
            match (recipient(text), expected) {
                (Ok((host, file)), Ok(expected)) => assert_eq!((host, file.as_str()), expected),
                (Err(told), Err(expected)) => assert!(told.contains(expected), "{told}"),
                (found, expected) => panic!("{text}: {found:?}, {expected:?}"),
            }
        }
        let (_, here) = recipient("s.toml").unwrap();
        assert!(here.starts_with('/') && here.ends_with("/s.toml"), "{here}");
    }
}
