//! A draft of an inventory, from what a server says of itself and what runs on its host. A person reads
//! it before it is used: what could not be found out is marked.

use crate::donor::literal;
use adapters::{
    exec::Exec,
    service::{Host, Service, quote},
};
use anyhow::{Context, Result};
use cluster::Millis;
use std::fmt::Write;

/// How long a question may take.
const LIMIT: Millis = Millis(30_000);

/// Where a server is asked.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its host.
    pub host: Host,
    /// Where its Unix socket is.
    pub socket_dir: String,
    /// Its port.
    pub port: u16,
    /// The user that it runs as.
    pub os_user: String,
    /// The database superuser.
    pub superuser: String,
}

/// A draft of an inventory.
#[derive(Debug, Default)]
pub struct Draft {
    text: String,
}

impl Draft {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn set(&mut self, field: &str, value: &str) {
        let _ = writeln!(self.text, "{field} = {}", toml::Value::from(value));
    }

    fn service(&mut self, service: &Service) -> Result<()> {
        let value = toml::Value::try_from(service).context("a service is TOML")?;
        let _ = writeln!(self.text, "service = {value}");
        Ok(())
    }

    /// Whatever could not be found out, for a person to see.
    fn unknown(&mut self, what: &str) {
        self.line(&format!("# LOOK HERE: {what}"));
    }

    /// Adds the peers of the shard: on which host each is, and its sitter's file.
    ///
    /// # Errors
    /// Never, for services as they are.
    pub fn recipients(&mut self, peers: &[(Host, String)], program: &str) -> Result<()> {
        if peers.is_empty() {
            self.line("");
            self.unknown("the peers of the shard, one table [[recipient]] each");
        }
        for (host, file) in peers {
            self.line("\n[[recipient]]");
            self.set("host", &host.to_string());
            self.set("config", file);
            self.set("manatee", program);
            self.unknown("how its sitter is started and stopped");
            self.service(&Service::Systemd { unit: "manatee-sitter".to_owned() })?;
        }
        Ok(())
    }

    /// The text of the file.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Server {
    fn shell(&self, script: &str) -> Result<Exec> {
        Ok(self.host.shell(Some(&self.os_user), script, &[])?.limit(LIMIT))
    }

    /// What a statement gives.
    async fn sql(&self, sql: &str) -> Result<String> {
        let psql = format!(
            "PATH=$PATH:/usr/bin:/usr/local/bin psql -XAtq -v ON_ERROR_STOP=1 -h {} -p {} -U {} -d postgres -f -",
            quote(&self.socket_dir),
            self.port,
            quote(&self.superuser)
        );
        let output = self.shell(&psql)?.stdin(sql).run().await.with_context(|| {
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

    /// The unit of systemd that its first process belongs to, if it is one's.
    async fn unit(&self, data_dir: &str) -> Result<Option<String>> {
        let script = format!(
            "ps -o unit= -p \"$(head -n 1 {})\" 2>/dev/null || true",
            quote(&format!("{data_dir}/postmaster.pid"))
        );
        let output = self.shell(&script)?.run().await?.stdout;
        let unit = String::from_utf8_lossy(&output).trim().to_owned();
        Ok(unit.strip_suffix(".service").map(str::to_owned))
    }

    /// The draft of an inventory whose donor this server is.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn discover(&self) -> Result<Draft> {
        let data_dir = self.setting("data_directory").await?;
        let bin_dir = self.sql("select setting from pg_config where name = 'BINDIR'").await?;
        let version = self.setting("server_version").await?;
        let mut draft = Draft::default();
        draft.line(&format!(
            "# A draft, from what PostgreSQL {version} on {} said. Read it before it is used; all fields are \
             explained\n# in etc/transplant.toml. Then: manatee transplant preflight FILE\n\n[donor]",
            self.host
        ));
        draft.set("kind", "postgres");
        draft.set("host", &self.host.to_string());
        self.address(&mut draft).await?;
        draft.line(&format!("port = {}", self.port));
        draft.set("data_dir", &data_dir);
        draft.set("bin_dir", &bin_dir);
        draft.set("socket_dir", &self.socket_dir);
        draft.set("os_user", &self.os_user);
        draft.set("superuser", &self.superuser);
        if let Some(unit) = self.unit(&data_dir).await? {
            draft.service(&Service::Systemd { unit })?;
        } else {
            draft.unknown(
                "no unit of systemd has it: see that nothing else starts it, such as a watchdog",
            );
            draft.service(&self.by_hand(&bin_dir, &data_dir))?;
        }
        self.standbys(&mut draft).await?;
        Ok(draft)
    }

    /// The address at which others reach it.
    async fn address(&self, draft: &mut Draft) -> Result<()> {
        let listens = self.setting("listen_addresses").await?;
        let named =
            listens.split(',').map(str::trim).find(|one| one.parse::<std::net::IpAddr>().is_ok());
        match named.filter(|one| !matches!(*one, "0.0.0.0" | "::")) {
            Some(address) => draft.set("address", address),
            None => {
                let output = self.shell("hostname -I 2>/dev/null || true")?.run().await?.stdout;
                let all = String::from_utf8_lossy(&output).into_owned();
                draft.unknown(&format!(
                    "it listens on \"{listens}\", its host has the addresses: {}",
                    all.trim()
                ));
                draft.set("address", all.split_whitespace().next().unwrap_or("127.0.0.1"));
            }
        }
        Ok(())
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

    async fn standbys(&self, draft: &mut Draft) -> Result<()> {
        let rows = self
            .sql(
                "select distinct application_name, host(client_addr) from pg_stat_replication \
                 where state = 'streaming' order by 1",
            )
            .await?;
        for row in rows.lines() {
            let (name, address) = row.split_once('|').unwrap_or((row, ""));
            draft.line("\n[[donor.standbys]]");
            draft.set("name", name);
            draft
                .unknown("whether this streams as a standby, where it runs, and how it is stopped");
            draft.set("host", &format!("ssh:root@{address}"));
            draft.service(&Service::Systemd { unit: "postgresql".to_owned() })?;
        }
        Ok(())
    }
}
