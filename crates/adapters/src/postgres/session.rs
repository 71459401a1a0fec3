//! Sessions of our own: over the Unix socket, as the superuser, bounded in time.

use super::{Inner, PgCause};
use cluster::Millis;
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A row of texts, as the simple protocol gives them.
pub(super) type Row = Vec<Option<String>>;

/// Asks for the `synchronous_commit` that sessions start with, server-wide. A plain session has it,
/// unless its role or database has one of its own; what the files say must do then.
pub(super) const COMMIT: &str = "select coalesce( \
    (select setting from pg_settings where name = 'synchronous_commit' and source in \
      ('default', 'environment variable', 'configuration file', 'command line')), \
    (select setting from pg_file_settings where lower(name) = 'synchronous_commit' \
      order by seqno desc limit 1), 'on')";

/// A session. Ends when it is dropped.
pub(super) struct Session {
    client: Client,
    limit: Millis,
}

impl Inner {
    /// A fresh session. It writes, whatever the gate, and never waits for a standby: what we write
    /// ourselves is acknowledged to nobody.
    pub async fn session(&self) -> Result<Session, PgCause> {
        self.session_with(Some("local"), self.settings.query_timeout).await
    }

    /// A fresh session that only looks: its `synchronous_commit` is what other sessions have.
    pub async fn plain_session(&self) -> Result<Session, PgCause> {
        self.session_with(None, self.settings.query_timeout).await
    }

    /// A fresh session with this `synchronous_commit`; queries are given up after `limit`.
    pub async fn session_with(
        &self,
        commit: Option<&str>,
        limit: Millis,
    ) -> Result<Session, PgCause> {
        // A server that we adopted may still have another address than the one configured.
        let lock = self.lock_file()?.ok_or(PgCause::NotRunning)?;
        let commit =
            commit.map(|commit| format!(" -c synchronous_commit={commit}")).unwrap_or_default();
        let mut config = Config::new();
        config
            .host_path(&lock.socket_dir)
            .port(lock.port)
            .user(&self.settings.superuser)
            .dbname("postgres")
            .application_name("manatee")
            .options(format!(
                "-c default_transaction_read_only=off -c standard_conforming_strings=on \
                 -c client_min_messages=error -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
                 -c statement_timeout={}{commit}",
                limit.0
            ));
        let opening = Box::pin(config.connect(NoTls));
        let (client, connection) =
            within(self.settings.query_timeout, "a connection", opening).await??;
        tokio::spawn(async move {
            // How it ended is told to whoever asks something of the client.
            connection.await.ok();
        });
        Ok(Session { client, limit })
    }

    /// A fresh session, tried again while the server says that it is not ready for one.
    pub async fn first_session(&self) -> Result<Session, PgCause> {
        let limit = self.settings.start_timeout;
        let mut last = None;
        let attempts = async {
            loop {
                match self.session().await {
                    Err(PgCause::Query(error)) if not_yet(&error) => {
                        if self.find()?.is_none() {
                            return Err(PgCause::NotRunning);
                        }
                        last = Some(PgCause::Query(error));
                        tokio::time::sleep(super::POLL).await;
                    }
                    other => return other,
                }
            }
        };
        match within(limit, "a first connection", attempts).await {
            Ok(session) => session,
            Err(timeout) => Err(last.unwrap_or(timeout)),
        }
    }
}

fn not_yet(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;
    let state = error.code();
    state == Some(&SqlState::CANNOT_CONNECT_NOW) || state.is_none()
}

/// Gives `work` this long.
pub(super) async fn within<F: Future>(
    limit: Millis,
    what: &str,
    work: F,
) -> Result<F::Output, PgCause> {
    tokio::time::timeout(Duration::from_millis(limit.0), work)
        .await
        .map_err(|_| PgCause::Timeout { what: what.to_owned(), limit })
}

impl Session {
    /// Gives each query this long from now on.
    pub fn set_limit(&mut self, limit: Millis) {
        self.limit = limit;
    }

    /// The rows of each statement of this text.
    pub async fn sets(&self, sql: &str) -> Result<Vec<Vec<Row>>, PgCause> {
        let query = self.client.simple_query(sql);
        let messages = within(self.limit, "an answer of the server", query).await??;
        let mut sets = vec![Vec::new()];
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => {
                    let fields = (0..row.len()).map(|i| row.get(i).map(str::to_owned));
                    if let Some(set) = sets.last_mut() {
                        set.push(fields.collect());
                    }
                }
                SimpleQueryMessage::CommandComplete(_) => sets.push(Vec::new()),
                _ => {}
            }
        }
        Ok(sets)
    }

    /// The rows of one statement.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>, PgCause> {
        Ok(self.sets(sql).await?.swap_remove(0))
    }

    /// The one row of one statement.
    pub async fn row(&self, sql: &str) -> Result<Row, PgCause> {
        let mut rows = self.rows(sql).await?;
        match rows.len() {
            1 => Ok(rows.swap_remove(0)),
            count => Err(PgCause::Answer(format!("{count} rows to: {sql}"))),
        }
    }

    /// The one value of one statement; empty for null.
    pub async fn value(&self, sql: &str) -> Result<String, PgCause> {
        Ok(self.row(sql).await?.into_iter().next().flatten().unwrap_or_default())
    }

    /// Whether this is true.
    pub async fn is(&self, expression: &str) -> Result<bool, PgCause> {
        Ok(self.value(&format!("select {expression}")).await? == "t")
    }
}

/// A text as a literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as an identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Reads a field of a row.
pub(super) fn parse<T: std::str::FromStr>(field: Option<&str>) -> Result<Option<T>, PgCause> {
    field.map(|text| text.parse().map_err(|_| PgCause::Answer(text.to_owned()))).transpose()
}
