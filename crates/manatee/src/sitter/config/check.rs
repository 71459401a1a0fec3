//! What no single field can be wrong about, and values that cannot work: each with its line, and what to do.

use super::Config;
use crate::sitter::probe::LONGEST_GAP;
use std::net::IpAddr;

/// The text of a file, to find in it where something is written.
struct Text<'a>(&'a str);

impl Text<'_> {
    /// A refusal, with the line of this field, `table.field` or `field`, or of its table.
    fn at(&self, field: &str, problem: impl AsRef<str>) -> Result<(), String> {
        let (table, name) = field.split_once('.').unwrap_or(("", field));
        let line = self.line(table, name).map(|index| format!("line {}: ", index + 1));
        Err(line.unwrap_or_default() + problem.as_ref())
    }

    fn line(&self, table: &str, name: &str) -> Option<usize> {
        let (mut current, mut of_table) = (String::new(), None);
        for (index, line) in self.0.lines().enumerate() {
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[') {
                current = header.split(']').next().unwrap_or_default().trim().to_owned();
                if current == table {
                    of_table = Some(index);
                }
                continue;
            }
            let key = line.split('=').next().unwrap_or_default().trim().trim_matches('"');
            let is_inner = current == table && key == name && !name.is_empty();
            let is_dotted = current.is_empty() && key == format!("{table}.{name}");
            if is_inner || is_dotted {
                return Some(index);
            }
        }
        of_table
    }
}

impl Config {
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let text = Text(text);
        self.check_names(&text)?;
        self.check_times(&text)?;
        self.check_ports(&text)?;
        self.check_paths(&text)?;
        if self.replication.password.is_some() && self.replication.password_file.is_some() {
            let problem = "password_file and password are both given: give one";
            return text.at("replication.password_file", problem);
        }
        let settings = self.user_settings().map_err(|error| error.to_string())?;
        if let Err(refused) = adapters::postgres::check_names(&settings) {
            let field = format!("postgres.settings.{}", refused.name);
            let (table, name) = field.rsplit_once('.').unwrap_or_default();
            let line = text.line(table, name).map(|index| format!("line {}: ", index + 1));
            return Err(format!("{}postgres.settings: {refused}", line.unwrap_or_default()));
        }
        if let Err(problem) = self.check_backup() {
            let table = problem.split([':', '.']).next().unwrap_or_default();
            return text.at(&format!("{table}."), &problem);
        }
        self.check_storage().or_else(|problem| text.at("storage.", problem))
    }

    fn check_names(&self, text: &Text) -> Result<(), String> {
        if self.shard.is_empty() || self.shard.contains('/') {
            let problem = format!("shard {:?}: not empty, without a slash", self.shard);
            return text.at("shard", problem);
        }
        if let Err(problem) = adapters::coord::check_address(&self.coordination, &self.shard) {
            return text
                .at("coordination", format!("coordination {:?}: {problem}", self.coordination));
        }
        if self.ip.is_unspecified() {
            let problem =
                format!("ip {}: give the address that other peers reach this one at", self.ip);
            return text.at("ip", problem);
        }
        Ok(())
    }

    fn check_times(&self, text: &Text) -> Result<(), String> {
        let session = self.session_timeout.get_ref().0;
        let (lease, named) = match &self.lease {
            Some(lease) => (lease.get_ref().0, "lease"),
            None => (session, "session_timeout"),
        };
        if lease > session {
            let problem = format!(
                "lease ({lease} s) is longer than session_timeout ({session} s): a primary that was left \
                 behind would serve stale reads beside its successor"
            );
            return text.at("lease", problem);
        }
        let (interval, give_up) = (self.health.interval.0, self.health.give_up.0);
        if self.health.interval.millis() >= LONGEST_GAP {
            let longest = LONGEST_GAP.0 / 1000;
            let problem = format!(
                "health.interval ({interval} s): give less than {longest} s: what is seen less often \
                 does not prove that the sync answers, and a primary would stop when it loses the coordination"
            );
            return text.at("health.interval", problem);
        }
        if give_up < interval {
            let problem = format!(
                "health.give_up ({give_up} s) is shorter than health.interval ({interval} s): one look that \
                 fails would end the session; give more"
            );
            return text.at("health.give_up", problem);
        }
        let (retry_min, retry_max) = (self.health.retry_min.0, self.health.retry_max.0);
        if retry_min > retry_max {
            let problem = format!(
                "health.retry_min ({retry_min} s) is longer than health.retry_max ({retry_max} s): the first delay \
                 is the shortest one"
            );
            return text.at("health.retry_min", problem);
        }
        // What a standby is told to, in whole seconds: `wal_receiver_status_interval`.
        let report = (lease / 3.0).ceil();
        if interval + report >= lease {
            let problem = format!(
                "{named} ({lease} s) is too short: the sync answers every {report} s, and is asked every {interval} s \
                 (health.interval), so its answers would be too old to prove anything; give more than {} s",
                interval + report
            );
            return text.at(named, problem);
        }
        Ok(())
    }

    fn check_ports(&self, text: &Text) -> Result<(), String> {
        let ports = [
            ("postgres.port", self.postgres.port),
            ("backup.port", self.backup.port),
            ("status.port", self.status_port()),
        ];
        if self.status.port.is_none() && self.postgres.port == u16::MAX {
            let problem =
                "postgres.port (65535): there is no port after it for the status; give status.port";
            return text.at("postgres.port", problem);
        }
        if let Some((field, _)) = ports.iter().find(|(_, port)| *port == 0) {
            let problem =
                format!("{field}: 0 is no port that others could reach; give one from 1 to 65535");
            return text.at(field, problem);
        }
        let [postgres, backup, status] = ports.map(|(_, port)| port);
        if postgres == backup || postgres == status || backup == status {
            let problem = format!(
                "postgres.port ({postgres}), backup.port ({backup}) and status.port ({status}) must differ"
            );
            return text.at("status.port", problem);
        }
        Ok(())
    }

    fn check_paths(&self, text: &Text) -> Result<(), String> {
        let paths = [
            ("dataset", Some(&self.dataset)),
            ("postgres.bin_dir", self.postgres.bin_dir.as_ref()),
            ("postgres.socket_dir", self.postgres.socket_dir.as_ref()),
        ];
        for (field, path) in paths {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                let shown = path.display();
                return text.at(field, format!("{field} {shown}: give an absolute path"));
            }
        }
        Ok(())
    }

    /// What may be meant so, and is more likely a mistake.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let is_local = self.coordination.starts_with("sqlite:");
        if self.ip.is_loopback() && !is_local {
            doubts.push(format!(
                "ip {} is of this host alone, and the coordination ({}) is for several: no peer on \
                 another host can reach this one",
                self.ip, self.coordination
            ));
        }
        let parse = |listen: &str| listen.parse::<IpAddr>().ok();
        let listens = [
            ("postgres.listen", self.postgres.listen.as_deref().and_then(parse)),
            ("backup.listen", self.backup.listen),
            ("status.listen", self.status.listen),
        ];
        for (field, listen) in listens {
            if let Some(listen) =
                listen.filter(|listen| listen.is_loopback() && !self.ip.is_loopback())
            {
                doubts.push(format!(
                    "{field} {listen} is of this host alone: the other peers, which know this one as {}, \
                     cannot reach it",
                    self.ip
                ));
            }
        }
        doubts
    }
}
