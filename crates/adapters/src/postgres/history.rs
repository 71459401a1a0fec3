//! Whether a standby can ever stream from its upstream.
//!
//! What follows from a no replaces a database, so it takes more than silence: PostgreSQL itself must
//! have written into the standby's log that it cannot go on from there, and the upstream must say so, too:
//! by its own timeline history, held against our position, or by not having the WAL that was asked for.

use super::{Inner, PgCause, Probe, files, session::within};
use crate::{exec::Exec, storage::DatabaseFacts};
use cluster::Lsn;
use std::{fmt, path::Path};

/// What PostgreSQL (of `lc_messages` C, which we set) writes when it can follow no further.
const REFUSALS: [&str; 2] =
    ["is not in this server's history", "forked off current database system timeline"];

/// What it writes when it cannot start: a timeline that it has come to know of left its own before the
/// position that it must come to.
const NOT_OURS: [&str; 3] = [
    "is not a child of this server's history",
    "does not contain minimum recovery point",
    "before reaching minimum recovery point",
];

/// What it writes when the upstream has recycled the WAL that comes next here, before and after the name of
/// the file. Of those who follow from here it does not write the beginning.
const REMOVED: (&str, &str) = (
    "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment ",
    " has already been removed",
);

/// What begins a message, after the prefix of a line. What a client has PostgreSQL write comes after one of
/// these, and begins with a tab where it is of several lines.
const MESSAGES: [&str; 14] = [
    "LOG:  ",
    "INFO:  ",
    "NOTICE:  ",
    "WARNING:  ",
    "ERROR:  ",
    "FATAL:  ",
    "PANIC:  ",
    "DETAIL:  ",
    "HINT:  ",
    "QUERY:  ",
    "CONTEXT:  ",
    "LOCATION:  ",
    "BACKTRACE:  ",
    "STATEMENT:  ",
];

/// The name of a file of WAL, 24 hexadecimal digits: its timeline, and its number in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFile(u32, u64);

impl WalFile {
    fn parse(name: &str) -> Option<WalFile> {
        let is_one = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (timeline, number) = is_one.then(|| name.split_at(8))?;
        let timeline = u32::from_str_radix(timeline, 16).ok()?;
        Some(WalFile(timeline, u64::from_str_radix(number, 16).ok()?))
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:016X}", self.0, self.1)
    }
}

/// Why a standby goes no further, by its own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its position is not in the history of another server, or of a timeline that it has come to know of.
    History,
    /// The upstream has recycled this file, which comes next here.
    Removed(WalFile),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::History => f.write_str(
                "a later timeline left its own before the position that it must come to",
            ),
            Refusal::Removed(file) => {
                write!(f, "the WAL that is needed next is no longer kept by its upstream ({file})")
            }
        }
    }
}

impl Refusal {
    /// What the log of a standby that runs tells.
    fn of_running(lines: &[String]) -> Option<Refusal> {
        let refusals: Vec<_> = lines.iter().filter_map(|line| Refusal::of_line(line)).collect();
        let history = refusals.contains(&Refusal::History).then_some(Refusal::History);
        history.or(refusals.last().copied())
    }

    /// What one line of it tells.
    pub(super) fn of_line(line: &str) -> Option<Refusal> {
        if REFUSALS.iter().any(|refusal| line.contains(refusal)) {
            Some(Refusal::History)
        } else {
            Refusal::removed(line)
        }
    }

    /// What this line of a log tells of WAL that the upstream has recycled. It must be the whole message of the
    /// line: neither part of one that a client brought about, nor of a name in the prefix of one.
    fn removed(line: &str) -> Option<Refusal> {
        let (prefix, rest) = line.split_once(REMOVED.0)?;
        if prefix.starts_with('\t') || MESSAGES.iter().any(|message| prefix.contains(message)) {
            return None;
        }
        WalFile::parse(rest.trim_end().strip_suffix(REMOVED.1)?).map(Refusal::Removed)
    }

    /// What the log of one that ended while it was starting tells.
    pub(super) fn of_start(log: &str) -> Option<Refusal> {
        NOT_OURS.iter().any(|refusal| log.contains(refusal)).then_some(Refusal::History)
    }
}

/// A position in the history of a database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    system_identifier: u64,
    timeline: u32,
    wal: Lsn,
}

/// Whether a standby can go on from what its upstream has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Divergence {
    /// As far as is certain, it can.
    None,
    /// It never can; why.
    CannotFollow(String),
    /// There is another database, not another history of this one; how that shows. It says nothing
    /// of the data here: a mistake in an address, or an empty database where ours was lost, must
    /// not replace it.
    Foreign(String),
}

/// Who a server says that it is: `IDENTIFY_SYSTEM` of the replication protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    system_identifier: u64,
    timeline: u32,
}

impl Inner {
    /// Why this standby can never stream from the server at this address; nothing as long as that is
    /// not certain.
    pub async fn divergence(
        &self,
        ours: &Probe,
        host: &str,
        port: u16,
        log_from: u64,
    ) -> Result<Divergence, PgCause> {
        let log = files::last_lines(&self.log_path(), log_from);
        let Probe { system_identifier, timeline, wal, .. } = *ours;
        let ours = Position { system_identifier, timeline, wal };
        match Refusal::of_running(&log) {
            Some(refusal) => self.diverged(&ours, refusal, host, port).await,
            None => {
                let theirs = self.identity_of(host, port).await?;
                Ok(foreign(&ours, &theirs).unwrap_or(Divergence::None))
            }
        }
    }

    /// Whether this refusal holds for ever.
    pub async fn diverged(
        &self,
        ours: &Position,
        refusal: Refusal,
        host: &str,
        port: u16,
    ) -> Result<Divergence, PgCause> {
        let theirs = self.identity_of(host, port).await?;
        if let Some(foreign) = foreign(ours, &theirs) {
            return Ok(foreign);
        }
        if let Refusal::Removed(file) = refusal {
            // It may have been another one, or another time, that had it no more.
            return Ok(match self.lacks(host, port, file).await? {
                true => Divergence::CannotFollow(refusal.to_string()),
                false => Divergence::None,
            });
        }
        let history = if theirs.timeline > ours.timeline {
            self.history_of(theirs.timeline, host, port).await?
        } else {
            Vec::new()
        };
        let left = compare(ours.timeline, ours.wal, theirs.timeline, &history);
        Ok(left.map_or(Divergence::None, Divergence::CannotFollow))
    }

    /// Up to where recovery must come at least, by the control file.
    pub async fn position(&self) -> Result<Position, PgCause> {
        let facts = self.facts(&self.data).await?;
        let (timeline, wal) = facts.recovered_at_least;
        Ok(Position { system_identifier: facts.system_identifier, timeline, wal })
    }

    /// What the control file of this data directory says.
    pub async fn facts(&self, data: &Path) -> Result<DatabaseFacts, PgCause> {
        let command = self.bin.exec("pg_controldata", self.user.as_ref()).arg("--pgdata").arg(data);
        let output = command.limit(self.settings.query_timeout).run().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        DatabaseFacts::parse(&text, &self.bin.major.to_string()).ok_or(PgCause::Answer(text))
    }

    /// The timelines that the server at this address has left, each with the position at which it did.
    pub async fn timelines_left(&self, host: &str, port: u16) -> Result<Vec<(u32, Lsn)>, PgCause> {
        match self.identity_of(host, port).await?.timeline {
            // The first one has no history.
            ..=1 => Ok(Vec::new()),
            timeline => self.history_of(timeline, host, port).await,
        }
    }

    /// Whether the server at this address does not have this file of WAL.
    async fn lacks(&self, host: &str, port: u16, file: WalFile) -> Result<bool, PgCause> {
        let client = self.client_at(host, port).await?;
        let sql = format!("select (pg_stat_file('pg_wal/{file}', true)).size is null");
        let asked = client.query_one(&sql, &[]);
        let row = within(self.settings.query_timeout, "an answer of the upstream", asked).await??;
        Ok(row.get(0))
    }

    async fn history_of(
        &self,
        timeline: u32,
        host: &str,
        port: u16,
    ) -> Result<Vec<(u32, Lsn)>, PgCause> {
        let command = format!("TIMELINE_HISTORY {timeline}");
        parse_history(&self.replication(host, port, &command).await?)
    }

    async fn identity_of(&self, host: &str, port: u16) -> Result<Identity, PgCause> {
        parse_identity(&self.replication(host, port, "IDENTIFY_SYSTEM").await?)
    }

    /// One command of the replication protocol, which `psql` speaks and our client does not.
    async fn replication(&self, host: &str, port: u16, command: &str) -> Result<String, PgCause> {
        let settings = &self.settings;
        let output = Exec::new(self.bin.path("psql"))
            .as_user(self.user.as_ref())
            .args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--quiet"])
            .args(["--host", host, "--port", &port.to_string()])
            .args(["--username", &settings.replication_user])
            .args(["--dbname", "replication=true connect_timeout=5", "--command", command])
            .env("PGPASSWORD", &settings.replication_password)
            .redact(settings.replication_password.clone())
            .limit(settings.query_timeout)
            .run()
            .await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn foreign(ours: &Position, theirs: &Identity) -> Option<Divergence> {
    (theirs.system_identifier != ours.system_identifier).then(|| {
        Divergence::Foreign(format!(
            "it is another database: system identifier {} there, {} here",
            theirs.system_identifier, ours.system_identifier
        ))
    })
}

fn parse_identity(answer: &str) -> Result<Identity, PgCause> {
    let mut fields = answer.trim().split('|');
    let parse = |field: Option<&str>| field.and_then(|text| text.parse().ok());
    let (system, timeline) = (parse(fields.next()), fields.next().and_then(|t| t.parse().ok()));
    match (system, timeline) {
        (Some(system_identifier), Some(timeline)) => Ok(Identity { system_identifier, timeline }),
        _ => Err(PgCause::Answer(answer.to_owned())),
    }
}

/// The timelines before the server's own, each with the position at which it was left.
fn parse_history(answer: &str) -> Result<Vec<(u32, Lsn)>, PgCause> {
    // The name of the file comes first; its lines are `timeline <tab> position <tab> reason`.
    let content = answer.split_once('|').map_or("", |(_, content)| content);
    let unreadable = || PgCause::Answer(answer.to_owned());
    content
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split_whitespace();
            let timeline = fields.next().and_then(|text| text.parse().ok());
            let position = fields.next().and_then(|text| text.parse().ok());
            timeline.zip(position).ok_or_else(unreadable)
        })
        .collect()
}

/// Why we, at this position of this timeline of the same database, are not a part of their history,
/// if that is certain.
fn compare(ours: u32, wal: Lsn, theirs: u32, history: &[(u32, Lsn)]) -> Option<String> {
    if theirs <= ours {
        return None;
    }
    match history.iter().find(|(timeline, _)| *timeline == ours) {
        None => Some(format!("its timeline {theirs} never was on {ours}")),
        Some((timeline, position)) if wal > *position => {
            Some(format!("it left timeline {timeline} at {position}, and we are at {wal}"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "00000003.history|1\t0/3000060\tno recovery target specified\n\n\
        2\t0/5000148\tno recovery target specified\n";

    fn check(timeline: u32, wal: u64, expected: Option<&str>) {
        let them = parse_identity("7|3|0/6000000|\n").expect("an identity");
        let history = parse_history(HISTORY).expect("a history");
        let got = compare(timeline, Lsn::new(wal), them.timeline, &history);
        match (&got, expected) {
            (None, None) => {}
            (Some(got), Some(expected)) if got.contains(expected) => {}
            _ => panic!("timeline {timeline} at {wal:x}: expected {expected:?}, got {got:?}"),
        }
    }

    #[test]
    fn only_what_is_certain_has_diverged() {
        check(1, 0x300_0060, None);
        check(1, 0x300_0061, Some("left timeline 1 at 0/3000060"));
        check(2, 0x500_0148, None);
        check(2, 0x600_0000, Some("left timeline 2"));
        check(3, 0x700_0000, None);
        check(4, 0x100_0000, None);
        assert!(compare(9, Lsn::ZERO, 10, &[(8, Lsn::ZERO)]).is_some());
    }

    #[test]
    fn only_what_postgresql_says_of_its_upstream_is_a_refusal() {
        let name = "00000002000000000000002A";
        let check = |log: &str, expected: Option<&str>| {
            let lines: Vec<String> = log.lines().map(str::to_owned).collect();
            let told = Refusal::of_running(&lines).map(|refusal| refusal.to_string());
            match (&told, expected) {
                (Some(told), Some(expected)) if told.contains(expected) => {}
                (None, None) => {}
                _ => panic!("{log}: {told:?}"),
            }
        };
        let prefix = "2026-01-02 03:04:05.678 UTC [77] ";
        let line = |name: &str| {
            format!(
                "{prefix}FATAL:  could not receive data from WAL stream: \
                 ERROR:  requested WAL segment {name} has already been removed"
            )
        };
        check(&line(name), Some(name));
        let older = line("000000020000000000000029");
        check(&format!("{older}\n{prefix}LOG:  waiting\n{}\n", line(name)), Some(name));
        for no_name in ["", "2A", "00000002000000000000002G", "+0000002000000000000002A"] {
            check(&line(no_name), None);
        }
        // Of who follows from here.
        let theirs = "b [local] ERROR:  requested WAL segment";
        check(&format!("{prefix}{theirs} {name}{}", REMOVED.1), None);
        // Of who has it said: in a query, in what a query makes PostgreSQL say, on several lines, or by a name.
        let said = format!("{}{name}{}", REMOVED.0, REMOVED.1);
        let without = said.trim_start_matches("FATAL:  ");
        for client in [
            format!("{prefix}u@d psql STATEMENT:  select '{said}"),
            format!("{prefix}u@d psql ERROR:  {said}"),
            format!("{prefix}u@d psql LOG:  {without}"),
            format!("{prefix}u@d psql LOG:  statement: select ' | {said}"),
            format!("{prefix}u@d psql STATEMENT:  select '\n\t{said}\n\t'"),
            format!("{prefix}{said}@d [unknown] FATAL:  the database system is starting up"),
        ] {
            check(&client, None);
        }
        check("FATAL:  requested starting point is not in this server's history", Some("timeline"));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(parse_identity("").is_err());
        assert!(parse_identity("x|1|0/0|").is_err());
        assert!(parse_history("f|1\tnowhere\t\n").is_err());
    }
}
