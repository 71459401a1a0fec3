//! The donor's server: asked over its own socket, on its own host, by the user that runs it.

use crate::{DonorConfig, DonorKind, DonorStandby};
use adapters::{
    clock,
    exec::{Exec, ExecCause, ExecError},
    service::{Order, quote},
    storage::DatabaseFacts,
};
use anyhow::{Context, Result, bail};
use cluster::{Lsn, Millis};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a question may take.
const QUERY_LIMIT: Millis = Millis(60_000);

/// Between two looks at what has no event.
const POLL: Duration = Duration::from_millis(200);
/// The beginning of every block of ours in somebody else's file.
pub(crate) const BEGIN: &str = "# begin: manatee transplant";
/// Its end.
pub(crate) const END: &str = "# end: manatee transplant";
/// Where a server tells what it does that its own program was made to start.
pub(crate) const LOG: &str = "manatee-transplant.log";
/// Makes a server start in recovery.
pub(crate) const STANDBY_SIGNAL: &str = "standby.signal";
/// What the server itself writes settings to; it goes before every other file.
pub(crate) const AUTO_CONF: &str = "postgresql.auto.conf";

/// The timeline that a server writes, in SQL; of a standby, that of its last checkpoint. The control file of one that
/// was promoted says the one before until its next checkpoint has ended, which may take minutes.
pub(crate) const TIMELINE: &str = "case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint()) \
    else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end";

/// What the control file of a database says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// Which database it is; as text, because not every program keeps such numbers.
    pub system_identifier: String,
    /// The timeline of its last checkpoint.
    pub timeline: u32,
    /// Where recovery would begin: of a server that was shut down, the end of all it wrote.
    pub checkpoint: Lsn,
    /// In which state it was left, in PostgreSQL's words.
    pub state: String,
}

impl From<DatabaseFacts> for Control {
    fn from(facts: DatabaseFacts) -> Self {
        Control {
            system_identifier: facts.system_identifier.to_string(),
            timeline: facts.timeline,
            checkpoint: facts.checkpoint,
            state: facts.state,
        }
    }
}

/// A text without our block.
pub fn without_block(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        inside |= line.starts_with(BEGIN);
        if !inside {
            kept.push_str(line);
        }
        inside &= !line.starts_with(END);
    }
    kept
}

/// A text with our block, of these lines, before all else.
pub(crate) fn with_block(text: &str, lines: &str) -> String {
    format!("{BEGIN}\n{}\n{END}\n{}", lines.trim_end(), without_block(text))
}

/// A text as a value in `postgresql.conf`, where a backslash escapes what follows.
pub(crate) fn value(text: &str) -> String {
    literal(&text.replace('\\', r"\\"))
}

/// A text as a literal of SQL.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The arguments by which psql asks a database over a socket what it reads, and prints only that.
pub(crate) fn psql_args(
    socket_dir: &str,
    port: &str,
    superuser: &str,
    database: &str,
) -> Vec<String> {
    // A name that looks like a connection string would be taken for one.
    let name = database.replace('\\', r"\\").replace('\'', r"\'");
    let database = format!("dbname='{name}'");
    let args = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", socket_dir, "-p", port, "-U", superuser];
    let args = args.into_iter().chain(["-d", &database, "-f", "-"]);
    args.map(str::to_owned).collect()
}

impl DonorConfig {
    /// What a standby is, which is like its primary but for where it is.
    pub(crate) fn of_standby(&self, standby: &DonorStandby) -> DonorConfig {
        DonorConfig {
            host: standby.host.clone(),
            service: standby.service.clone(),
            data_dir: standby.data_dir.clone().unwrap_or(self.data_dir.clone()),
            ..self.clone()
        }
    }
}

/// The server of a donor.
#[derive(Debug, Clone)]
pub struct Donor {
    /// How it is reached.
    pub config: DonorConfig,
    /// How long it may take to start and to stop.
    pub limit: Millis,
    /// Its `postgresql.conf`, where it is not its service that starts it.
    pub config_file: Option<String>,
}

impl Donor {
    /// A standby of it, which is like it but for where it is.
    pub(crate) fn standby(&self, standby: &DonorStandby) -> Donor {
        Donor { config: self.config.of_standby(standby), ..self.clone() }
    }

    fn user(&self) -> Option<&str> {
        Some(&self.config.os_user)
    }

    fn exec(&self, program: &str, args: &[&str]) -> Result<Exec, ExecError> {
        let program = format!("{}/{program}", self.config.bin_dir);
        let exec = self.config.host.exec(self.user(), &[&[program.as_str()], args].concat())?;
        Ok(exec.limit(QUERY_LIMIT))
    }

    /// Where a file of the data directory is.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.config.data_dir)
    }

    /// What the last of these statements gives, a row a line, its columns separated by `|`.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("postgres", sql, None).await
    }

    /// The same in another database, and within another time.
    pub(crate) async fn sql_in(
        &self,
        database: &str,
        sql: &str,
        limit: Option<Millis>,
    ) -> Result<String> {
        let port = self.config.port.to_string();
        let (socket_dir, superuser) = (&self.config.socket_dir, &self.config.superuser);
        let args = psql_args(socket_dir, &port, superuser, database);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // By its standard input: arguments can be read by everybody on the host.
        let exec = self
            .exec("psql", &args)?
            // What is done here must not wait for a standby that comes later, or is gone.
            .stdin(format!("set synchronous_commit = local;\n{sql}"))
            .limit(limit.unwrap_or(QUERY_LIMIT));
        let output = exec.run().await.with_context(|| self.told("does not answer as asked"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    fn told(&self, what: &str) -> String {
        format!(
            "donor {}:{} on {}: {what}",
            self.config.address, self.config.port, self.config.host
        )
    }

    /// Whether its server runs.
    ///
    /// # Errors
    /// When its host does not answer, or the data directory is none.
    pub async fn is_running(&self) -> Result<bool> {
        let result = self.exec("pg_ctl", &["status", "-D", &self.config.data_dir])?.run().await;
        match result {
            Ok(_) => Ok(true),
            Err(ExecError { cause: ExecCause::Failed { status, .. }, .. })
                if status.code() == Some(3) =>
            {
                Ok(false)
            }
            Err(error) => {
                Err(anyhow::Error::from(error)).with_context(|| self.told("cannot be looked at"))
            }
        }
    }

    /// Its control file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn control(&self) -> Result<Control> {
        let output =
            self.exec("pg_controldata", &["-D", &self.config.data_dir])?.run().await?.stdout;
        let text = String::from_utf8_lossy(&output);
        let facts = DatabaseFacts::parse(&text, "").with_context(|| {
            self.told(&format!("pg_controldata says something unexpected: {text}"))
        })?;
        Ok(facts.into())
    }

    /// The timeline that it writes; that of its last checkpoint where it is a standby or does not run, or answer.
    pub(crate) async fn timeline(&self, control: &Control) -> u32 {
        let told = self.sql(&format!("select {TIMELINE}")).await;
        told.ok().and_then(|told| told.parse().ok()).unwrap_or(control.timeline)
    }

    /// Starts it, or lets it be. One that is closed is started without its sitter, which would open it.
    ///
    /// # Errors
    /// When it does not run afterwards.
    pub async fn start(&self) -> Result<()> {
        if !self.is_running().await? {
            self.turn(Order::Start).await?;
            if !self.is_running().await? {
                bail!(self.told("it was started, and does not run"));
            }
        }
        Ok(())
    }

    /// Stops it, or lets it be.
    ///
    /// # Errors
    /// When it still runs afterwards.
    pub(crate) async fn halt(&self) -> Result<()> {
        if self.is_running().await? {
            self.turn(Order::Stop).await?;
            if self.is_running().await? {
                bail!(self.told("it was stopped, and it runs"));
            }
        }
        Ok(())
    }

    /// Whether it would start in recovery.
    pub(crate) async fn is_closed(&self) -> Result<bool> {
        Ok(self.read(&self.path(STANDBY_SIGNAL)).await?.is_some())
    }

    /// Stops it in an orderly way.
    ///
    /// # Errors
    /// When it still runs afterwards, or was not shut down as it should be.
    pub async fn stop(&self) -> Result<Control> {
        self.halt().await?;
        let control = self.control().await?;
        if !control.state.starts_with("shut down") {
            bail!(self.told(&format!(
                "it was not shut down in an orderly way (\"{}\"): what it wrote last is not known \
                 to be anywhere else; start it, look at its log, and try again",
                control.state
            )));
        }
        Ok(control)
    }

    /// Starts or stops its server: by its service; where that is Patroni, which does neither in a pause, by
    /// its own program; where it is a sitter, by that one, which takes its server with it, unless it would
    /// open what is closed.
    async fn turn(&self, order: Order) -> Result<()> {
        match (self.config.kind, order) {
            (DonorKind::Postgres, _) => self.tell(order).await,
            (DonorKind::Patroni, _) => self.by_hand(order).await,
            (DonorKind::ManateeV1 | DonorKind::ManateeV2, Order::Start) => {
                if self.is_closed().await? {
                    return self.by_hand(order).await;
                }
                self.tell(order).await?;
                let begun = clock::now();
                // It looks around first.
                while !self.is_running().await? && clock::now() - begun <= self.limit {
                    tokio::time::sleep(POLL).await;
                }
                Ok(())
            }
            (DonorKind::ManateeV1 | DonorKind::ManateeV2, _) => {
                self.tell(order).await?;
                // It was started without its sitter, or that has left it behind.
                if self.is_running().await? { self.by_hand(order).await } else { Ok(()) }
            }
        }
    }

    /// Starts or stops its server by its own program.
    async fn by_hand(&self, order: Order) -> Result<()> {
        let (seconds, log) = ((self.limit.0 / 1000).to_string(), self.path(LOG));
        let mut args = vec!["-w", "-t", &seconds, "-D", &self.config.data_dir];
        let options = self.config_file.iter().map(|file| format!("-c config_file={}", quote(file)));
        let options = options.collect::<String>();
        match order {
            Order::Start => args.extend(["-l", &log, "-o", &options, "start"]),
            _ => args.extend(["-m", "fast", "stop"]),
        }
        let told = || self.told(&format!("pg_ctl fails; its log is {log}"));
        let exec = self.exec("pg_ctl", &args)?.limit(Millis(self.limit.0 + QUERY_LIMIT.0));
        exec.run().await.map(drop).with_context(told)
    }

    /// Tells its service.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn tell(&self, order: Order) -> Result<()> {
        let told = self.config.service.tell(&self.config.host, order, self.limit).await;
        told.with_context(|| self.told(&format!("its service cannot be told to {order:?}")))
    }

    /// The text of a file of the server's user.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, path: &str) -> Result<Option<String>> {
        Ok(self.config.host.read(self.user(), path).await?)
    }

    /// Replaces a file of the server's user.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write(&self, path: &str, text: &str) -> Result<()> {
        self.config.host.write(self.user(), path, text).await?;
        Ok(())
    }

    /// Removes a file of the server's user, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, path: &str) -> Result<()> {
        self.config.host.remove(self.user(), path).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted() {
        assert_eq!(literal(r"it's a \"), r"'it''s a \'");
        assert_eq!(value(r"password='it\'s'"), r"'password=''it\\''s'''");
    }

    #[test]
    fn our_block_comes_and_goes() {
        let text = "local all all peer\nhost all all all scram-sha-256\n";
        let changed = with_block(text, "host replication r all scram-sha-256\n");
        assert!(changed.starts_with(BEGIN) && changed.ends_with(text), "{changed}");
        assert_eq!(with_block(&changed, "other"), with_block(text, "other"), "there is one");
        assert_eq!(without_block(&changed), text);
        assert_eq!(without_block(text), text);
        assert_eq!(without_block(""), "");
    }
}
