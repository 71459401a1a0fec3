//! Whether a standby can ever stream from its upstream.
//!
//! What follows from a no replaces a database, so it takes more than silence: PostgreSQL itself must
//! have written into the standby's log that it cannot go on from there, and that another history is
//! the reason counts only if the upstream's own timeline history, held against our position, says so.

use super::{Inner, PgCause, Probe, files};
use crate::exec::Exec;
use cluster::Lsn;

/// What PostgreSQL (of `lc_messages` C, which we set) writes when it can follow no further.
const REFUSALS: [&str; 2] =
    ["is not in this server's history", "forked off current database system timeline"];

/// What it writes when the upstream has recycled the WAL that comes next here.
const REMOVED: &str = "has already been removed";

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
        let log = files::log_tail(&self.log_path(), log_from);
        let theirs = parse_identity(&self.replication(host, port, "IDENTIFY_SYSTEM").await?)?;
        if theirs.system_identifier != ours.system_identifier {
            return Ok(Divergence::Foreign(format!(
                "it is another database: system identifier {} there, {} here",
                theirs.system_identifier, ours.system_identifier
            )));
        }
        if !REFUSALS.iter().any(|refusal| log.contains(refusal)) {
            return Ok(if log.contains(REMOVED) {
                let why = "the WAL that is needed next is no longer kept there";
                Divergence::CannotFollow(why.to_owned())
            } else {
                Divergence::None
            });
        }
        let history = if theirs.timeline > ours.timeline {
            let command = format!("TIMELINE_HISTORY {}", theirs.timeline);
            parse_history(&self.replication(host, port, &command).await?)?
        } else {
            Vec::new()
        };
        let left = compare(ours.timeline, ours.wal, theirs.timeline, &history);
        Ok(left.map_or(Divergence::None, Divergence::CannotFollow))
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
    fn what_is_no_answer_is_an_error() {
        assert!(parse_identity("").is_err());
        assert!(parse_identity("x|1|0/0|").is_err());
        assert!(parse_history("f|1\tnowhere\t\n").is_err());
    }
}
