//! What a server says of itself, and its host of it.

use super::{Asking, Draft, guess};
use crate::{donor::literal, manatee::is_rendered};
use adapters::{
    exec::Exec,
    service::{Host, Service, quote},
};
use anyhow::{Context, Result, bail};
use cluster::Millis;
use std::net::IpAddr;

/// How long a question may take.
const LIMIT: Millis = Millis(30_000);
/// Where the socket is where nothing else is known.
pub(super) const SOCKET_DIR: &str = "/var/run/postgresql";
/// Prints the directories of all sockets of a port (`$1`) on the host that it is run on.
const SOCKETS: &str =
    "sed -n \"s#.* \\(/.*\\)/\\.s\\.PGSQL\\.$1\\$#\\1#p\" /proc/net/unix 2>/dev/null | sort -u";

/// Gives who streams, and from where.
const STANDBYS: &str = "select distinct application_name, host(client_addr) from pg_stat_replication \
    where state = 'streaming' order by 1";

/// Where a server is asked.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub host: Host,
    pub socket_dir: String,
    pub port: u16,
    pub os_user: String,
    pub superuser: String,
}

/// What it answered.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    pub version: String,
    pub data_dir: String,
    pub bin_dir: String,
    pub in_recovery: bool,
    listens: String,
    /// Those of its host.
    pub addresses: String,
    /// The unit of systemd that its first process belongs to, if it is one's.
    pub unit: Option<String>,
}

/// The draft of an inventory whose donor is a server.
pub(super) async fn draft(asking: &Asking, port: u16, address: Option<&str>) -> Result<Draft> {
    let host = asking.host.clone().unwrap_or_default();
    let server = Server::find(asking, &host, port).await?;
    let answers = server.ask().await?;
    let mut draft = Draft::of(&format!("PostgreSQL {} on {host}", answers.version));
    if answers.in_recovery {
        draft.unknown("it is a standby: draft from its primary");
    }
    if is_rendered(&server.setting("hba_file").await?) {
        draft.unknown(
            "a sitter of Manatee has it: draft from its shard, by --shard and --coordination",
        );
    }
    let left = quote(&format!("{}/patroni.dynamic.json", answers.data_dir));
    if server.shell(&format!("[ ! -e {left} ] || echo there")).await? == "there" {
        draft.unknown(
            "Patroni has it, or had: where it still has, draft from its cluster, by --patroni",
        );
    }
    draft.line("\n[donor]");
    draft.set("kind", "postgres");
    draft.set("host", &host.to_string());
    match address {
        Some(address) => draft.set("address", address),
        None => answers.address(&mut draft),
    }
    draft.server(&server, &answers);
    match answers.unit.clone() {
        Some(unit) => draft.service(&Service::Systemd { unit })?,
        None => {
            draft.unknown(
                "no unit of systemd has it: see that nothing else starts it, such as a watchdog",
            );
            draft.service(&server.by_hand(&answers.bin_dir, &answers.data_dir))?;
        }
    }
    for row in server.sql(STANDBYS).await?.lines() {
        let (name, address) = row.split_once('|').unwrap_or((row, ""));
        draft.line("\n[[donor.standbys]]");
        draft.set("name", name);
        draft.unknown("whether this streams as a standby, where it runs, and how it is stopped");
        let beside = address.is_empty() || answers.has(address);
        let place = if beside { host.clone() } else { guess(address) };
        draft.set("host", &place.to_string());
        draft.service(&Service::Systemd { unit: "postgresql".to_owned() })?;
    }
    Ok(draft)
}

impl Answers {
    /// Whether its host has this address; of a name, that is not known here, and it is taken for one.
    pub fn has(&self, address: &str) -> bool {
        let Ok(ip) = address.parse::<IpAddr>() else { return true };
        let listed =
            self.listens.split(',').map(str::trim).chain(self.addresses.split_whitespace());
        ip.is_loopback() || listed.filter_map(|one| one.parse().ok()).any(|one: IpAddr| one == ip)
    }

    /// The address at which others reach it.
    fn address(&self, draft: &mut Draft) {
        let Answers { listens, addresses, .. } = self;
        let named = listens.split(',').map(str::trim).find(|one| one.parse::<IpAddr>().is_ok());
        match named.filter(|one| !matches!(*one, "0.0.0.0" | "::")) {
            Some(address) => draft.set("address", address),
            None => {
                draft.unknown(&format!(
                    "it listens on \"{listens}\", its host has the addresses: {addresses}"
                ));
                draft.set("address", addresses.split_whitespace().next().unwrap_or("127.0.0.1"));
            }
        }
    }
}

impl Server {
    /// The server of this port on a host.
    pub async fn find(asking: &Asking, host: &Host, port: u16) -> Result<Server> {
        let socket_dir = match &asking.socket_dir {
            Some(directory) => directory.clone(),
            None => socket_dir(host, port).await?,
        };
        let Asking { os_user, superuser, .. } = asking.clone();
        Ok(Server { host: host.clone(), socket_dir, port, os_user, superuser })
    }

    pub async fn ask(&self) -> Result<Answers> {
        let data_dir = self.setting("data_directory").await?;
        Ok(Answers {
            version: self.setting("server_version").await?,
            bin_dir: self.sql("select setting from pg_config where name = 'BINDIR'").await?,
            in_recovery: self.sql("select pg_is_in_recovery()").await? == "t",
            listens: self.setting("listen_addresses").await?,
            addresses: self.shell("hostname -I 2>/dev/null || true").await?,
            unit: self.unit(&data_dir).await?,
            data_dir,
        })
    }

    fn exec(&self, script: &str) -> Result<Exec> {
        Ok(self.host.shell(Some(&self.os_user), script, &[])?.limit(LIMIT))
    }

    async fn shell(&self, script: &str) -> Result<String> {
        let output = self.exec(script)?.run().await?.stdout;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// What a statement gives.
    pub async fn sql(&self, sql: &str) -> Result<String> {
        let psql = format!(
            "PATH=$PATH:/usr/bin:/usr/local/bin psql -XAtq -v ON_ERROR_STOP=1 -h {} -p {} -U {} -d postgres -f -",
            quote(&self.socket_dir),
            self.port,
            quote(&self.superuser)
        );
        let output = self.exec(&psql)?.stdin(sql).run().await.with_context(|| {
            format!(
                "no server answers on {} at {}, port {}, to the superuser {}, asked by {}",
                self.host, self.socket_dir, self.port, self.superuser, self.os_user
            )
        })?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    async fn setting(&self, name: &str) -> Result<String> {
        self.sql(&format!("select current_setting({})", literal(name))).await
    }

    async fn unit(&self, data_dir: &str) -> Result<Option<String>> {
        let script = format!(
            "ps -o unit= -p \"$(head -n 1 {})\" 2>/dev/null || true",
            quote(&format!("{data_dir}/postmaster.pid"))
        );
        Ok(service_unit(&self.shell(&script).await?))
    }

    /// How it is started and stopped where no service does it.
    fn by_hand(&self, bin_dir: &str, data_dir: &str) -> Service {
        let command = |verb: &str| {
            let program = quote(&format!("{bin_dir}/pg_ctl"));
            let (data, log) = (quote(data_dir), quote(&format!("{data_dir}/pg_ctl.log")));
            let command = format!("{program} {verb} -w -m fast -D {data} -l {log}");
            let guard = if verb == "start" { "||" } else { "|| exit 0; " };
            let status = format!("{program} status -D {data} >/dev/null");
            let script = format!("{status} {guard} {command}");
            format!("su -s /bin/sh {} -c {}", quote(&self.os_user), quote(&script))
        };
        Service::Commands {
            start: command("start"),
            stop: command("stop"),
            disable: None,
            enable: None,
        }
    }
}

/// The unit that `ps -o unit=` tells, where it is a service.
pub(super) fn service_unit(told: &str) -> Option<String> {
    told.trim().strip_suffix(".service").map(str::to_owned)
}

/// Where the socket of the server of this port is.
async fn socket_dir(host: &Host, port: u16) -> Result<String> {
    let output = host.shell(None, SOCKETS, &[&port.to_string()])?.limit(LIMIT).run().await?.stdout;
    let told = String::from_utf8_lossy(&output).into_owned();
    let all: Vec<&str> = told.lines().collect();
    match all[..] {
        [] => Ok(SOCKET_DIR.to_owned()),
        [one] => Ok(one.to_owned()),
        _ if all.contains(&SOCKET_DIR) => Ok(SOCKET_DIR.to_owned()),
        _ => bail!(
            "{host} has sockets of port {port} in several directories: give one of them as \
             --socket-dir: {}",
            all.join(", ")
        ),
    }
}
