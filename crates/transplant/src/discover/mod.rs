//! A draft of an inventory, from what a server says of itself, a shard of Manatee or a Patroni cluster of
//! its members, and from what runs on a host. A person reads it before it is used: what could not be found
//! out is marked, with a guess in its place, so that it can be loaded as it is.
//!
//! Contract: nothing is changed anywhere, and no host is asked but this one and the one that was named.

mod patroni;
mod server;
mod shard;

use crate::PatroniConfig;
use adapters::service::{Host, Service};
use anyhow::{Context, Result};
use server::{Answers, SOCKET_DIR, Server};
use std::{
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
};

/// Where programs are on Debian.
const BIN_DIR: &str = "/usr/lib/postgresql/15/bin";
/// Where a sitter's file usually is.
const SITTER_FILE: &str = "/etc/manatee/sitter.toml";

/// Whose inventory is drafted.
#[derive(Debug, Clone)]
pub enum Source {
    /// A server, by itself or a primary.
    Server {
        /// Its port.
        port: u16,
        /// An address by which clients reach it, where one is known.
        address: Option<String>,
    },
    /// A shard of Manatee.
    Shard {
        /// Where its peers meet.
        coordination: String,
        /// Its name.
        shard: String,
        /// The file that says who we are to its coordination.
        access: Option<String>,
    },
    /// A Patroni cluster.
    Patroni(PatroniConfig),
}

/// What is known of the donor's server before it is asked.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Its host; found out where it is not given.
    pub host: Option<Host>,
    /// Where its Unix socket is; found out where it is not given.
    pub socket_dir: Option<String>,
    /// The user that it runs as.
    pub os_user: String,
    /// The database superuser.
    pub superuser: String,
}

/// Drafts the inventory of a donor.
///
/// # Errors
/// When what is to be moved does not answer. Of a shard and of a Patroni cluster the server itself may be
/// out of reach: that is marked.
pub async fn discover(source: &Source, asking: &Asking) -> Result<Draft> {
    match source {
        Source::Server { port, address } => server::draft(asking, *port, address.as_deref()).await,
        Source::Shard { coordination, shard, access } => {
            shard::draft(asking, coordination, shard, access.as_deref()).await
        }
        Source::Patroni(config) => patroni::draft(asking, config).await,
    }
}

/// Whether this address, or name, is one of this machine.
pub fn is_here(address: &str) -> bool {
    // To oneself one speaks from the address that one speaks to; nothing is sent for that.
    let own = |to: SocketAddr| -> std::io::Result<bool> {
        let from =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip() == to.ip())
    };
    let all = (address, 5432).to_socket_addrs();
    all.is_ok_and(|mut all| all.any(|to| to.ip().is_loopback() || own(to).unwrap_or(false)))
}

/// Where the primary of a shard or the leader of a cluster is, and what its server answered.
struct Lead {
    /// Its host, where that is known.
    host: Option<Host>,
    address: String,
    port: u16,
    /// Or why it was not asked.
    asked: Result<(Server, Answers), String>,
}

impl Lead {
    /// Asks the server that others say is at this address.
    async fn ask(asking: &Asking, address: &str, port: u16) -> Lead {
        let here = || is_here(address).then_some(Host::Local);
        let host = asking.host.clone().or_else(here);
        let unasked = || {
            format!(
                "{address} is another host; with --host {}, or however it is reached, it is asked there",
                guess(address)
            )
        };
        let asked = match &host {
            None => Err(unasked()),
            Some(host) => {
                Lead::ask_at(asking, host, port).await.map_err(|error| format!("{error:#}"))
            }
        };
        let mut lead = Lead { host, address: address.to_owned(), port, asked };
        if let Ok((server, answers)) = &lead.asked
            && answers.in_recovery
        {
            let problem = format!(
                "the server on {} at port {port} is a standby; --host is to name the host of {address}",
                server.host
            );
            lead.is_another(problem);
        }
        lead
    }

    async fn ask_at(asking: &Asking, host: &Host, port: u16) -> Result<(Server, Answers)> {
        let server = Server::find(asking, host, port).await?;
        let answers = server.ask().await?;
        Ok((server, answers))
    }

    /// Another server was asked, on another host or of other instances.
    fn is_another(&mut self, problem: String) {
        (self.host, self.asked) = (None, Err(problem));
    }

    /// On which host others of its kind are, where that is known: beside it, or here.
    fn place(&self, address: &str) -> Option<Host> {
        let loopback = address.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if self.host.is_some() && (loopback || address == self.address) {
            return self.host.clone();
        }
        is_here(address).then_some(Host::Local)
    }

    /// What was asked, for a heading.
    fn told(&self) -> String {
        match &self.asked {
            Ok((server, answers)) => {
                format!(" and PostgreSQL {} on {}", answers.version, server.host)
            }
            Err(_) => String::new(),
        }
    }

    fn unit(&self) -> Option<&str> {
        self.asked.as_ref().ok().and_then(|(_, answers)| answers.unit.as_deref())
    }
}

/// How a host is reached that has this address, as far as one can guess.
fn guess(address: &str) -> Host {
    Host::Ssh(format!("root@{address}"))
}

/// A draft of an inventory.
#[derive(Debug, Default)]
pub struct Draft {
    text: String,
}

impl Draft {
    /// One of what these said.
    fn of(whom: &str) -> Draft {
        let mut draft = Draft::default();
        draft.note(&format!(
            "A draft, from what {whom} said. Read it before it is used; all fields are explained"
        ));
        draft.note("in etc/transplant.toml. Then: manatee transplant preflight FILE");
        draft
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A comment. What others say may be of more lines than one.
    fn note(&mut self, text: &str) {
        let lines: Vec<&str> =
            text.split(char::is_control).filter(|line| !line.is_empty()).collect();
        self.line(&format!("# {}", lines.join(" ")));
    }

    fn set(&mut self, field: &str, value: &str) {
        let _ = writeln!(self.text, "{field} = {}", toml::Value::from(value));
    }

    fn service(&mut self, service: &Service) -> Result<()> {
        let value = toml::Value::try_from(service).context("a service is TOML")?;
        let _ = writeln!(self.text, "service = {value}");
        Ok(())
    }

    /// A service that is this unit of systemd; or, where none was found, perhaps another one.
    fn unit(&mut self, unit: Option<&str>, otherwise: &str, what: &str) -> Result<()> {
        if unit.is_none() {
            self.unknown(&format!("how {what} is started and stopped"));
        }
        self.service(&Service::Systemd { unit: unit.unwrap_or(otherwise).to_owned() })
    }

    /// A host, or a guess at the one that has this address.
    fn host(&mut self, known: Option<&Host>, address: &str) {
        match known {
            Some(host) => self.set("host", &host.to_string()),
            None => {
                self.unknown("how its host is reached");
                self.set("host", &guess(address).to_string());
            }
        }
    }

    /// Whatever could not be found out, for a person to see.
    fn unknown(&mut self, what: &str) {
        self.note(&format!("LOOK HERE: {what}"));
    }

    /// The server that leads: `data_dir` is where it usually is.
    fn lead(&mut self, kind: &str, lead: &Lead, asking: &Asking, data_dir: &str) {
        self.line("\n[donor]");
        self.set("kind", kind);
        self.host(lead.host.as_ref(), &lead.address);
        self.set("address", &lead.address);
        match &lead.asked {
            Ok((server, answers)) => {
                if !answers.has(&lead.address) {
                    self.unknown(&format!(
                        "whether this is the right server: its host has the addresses {}, and not this \
                         one",
                        answers.addresses
                    ));
                }
                self.server(server, answers);
            }
            Err(problem) => {
                self.unknown(&format!("its server was not asked ({problem})"));
                self.line(&format!("port = {}", lead.port));
                self.set("data_dir", data_dir);
                self.set("bin_dir", BIN_DIR);
                self.set("socket_dir", asking.socket_dir.as_deref().unwrap_or(SOCKET_DIR));
                self.set("os_user", &asking.os_user);
                self.set("superuser", &asking.superuser);
            }
        }
    }

    fn server(&mut self, server: &Server, answers: &Answers) {
        self.line(&format!("port = {}", server.port));
        self.set("data_dir", &answers.data_dir);
        self.set("bin_dir", &answers.bin_dir);
        self.set("socket_dir", &server.socket_dir);
        self.set("os_user", &server.os_user);
        self.set("superuser", &server.superuser);
    }

    /// Adds the peers of the shard that it is moved into: on which host each is, and its sitter's file.
    ///
    /// # Errors
    /// Never, for services as they are.
    pub fn recipients(&mut self, peers: &[(Host, String)], program: &str) -> Result<()> {
        let one = [(Host::Local, SITTER_FILE.to_owned())];
        if peers.is_empty() {
            self.line("");
            self.unknown("the peers of the shard, one table [[recipient]] each");
        }
        for (host, file) in if peers.is_empty() { &one } else { peers } {
            self.line("\n[[recipient]]");
            self.set("host", &host.to_string());
            self.set("config", file);
            self.set("manatee", program);
            self.unit(None, "manatee-sitter", "its sitter")?;
        }
        Ok(())
    }

    /// The text of the file.
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_in_more_lines_is_one_comment() {
        let mut draft = Draft::of("somebody\nhost = \"x\"\r\n");
        draft.unknown("a\n\n[donor]\u{7}");
        let text = draft.into_text();
        assert!(text.lines().all(|line| line.starts_with("# ")), "{text}");
        assert!(text.contains("LOOK HERE: a [donor]\n"), "{text}");
    }

    #[test]
    fn this_machine_is_known() {
        for (address, here) in
            [("127.0.0.1", true), ("::1", true), ("localhost", true), ("192.0.2.1", false)]
        {
            assert_eq!(is_here(address), here, "{address}");
        }
    }
}
