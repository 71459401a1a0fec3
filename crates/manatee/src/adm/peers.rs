//! The tables of peers: `adm peers` and `adm pg-status`.

use super::problems::Problem;
use super::table::{self, Column};
use super::view::{PeerView, ShardView};
use clap::ValueEnum;
use cluster::{Lsn, PeerId, Role};
use serde::Serialize;

/// A column that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PeerColumn {
    /// primary, sync, async or deposed
    Role,
    /// The zone or host that the peer runs in
    Peername,
    /// Its first eight characters
    Peerabbr,
    /// Its address
    Ip,
    /// Whether its PostgreSQL answers: ok or fail
    PgOnline,
    /// sync_state of its downstream
    PgRepl,
    /// WAL sent to its downstream
    PgSent,
    /// WAL that its downstream wrote
    PgWrite,
    /// WAL that its downstream flushed
    PgFlush,
    /// WAL that its downstream replayed
    PgReplay,
    /// How long ago what a standby replayed last was committed
    PgLag,
}

/// What `adm peers` shows unless told otherwise.
pub const PEERS: &[PeerColumn] = &[PeerColumn::Role, PeerColumn::Peername, PeerColumn::Ip];

/// What `adm pg-status` shows unless told otherwise.
pub const PG_STATUS: &[PeerColumn] = &[
    PeerColumn::Role,
    PeerColumn::Peerabbr,
    PeerColumn::PgOnline,
    PeerColumn::PgRepl,
    PeerColumn::PgSent,
    PeerColumn::PgWrite,
    PeerColumn::PgFlush,
    PeerColumn::PgReplay,
    PeerColumn::PgLag,
];

impl PeerColumn {
    /// Whether the sitters have to be asked for it.
    pub fn needs_status(self) -> bool {
        use PeerColumn::{Ip, Peerabbr, Peername, Role};
        !matches!(self, Role | Peername | Peerabbr | Ip)
    }

    /// This column, or the one with the whole name in place of the abbreviation.
    pub fn wide(self) -> Self {
        if self == PeerColumn::Peerabbr { PeerColumn::Peername } else { self }
    }

    fn column(self) -> Column {
        // Widths of the original, so that scripts that cut by position go on working.
        let (header, width) = match self {
            PeerColumn::Role => ("ROLE", 8),
            PeerColumn::Peername => ("PEERNAME", 36),
            PeerColumn::Peerabbr => ("PEER", 8),
            PeerColumn::Ip => ("IP", 15),
            PeerColumn::PgOnline => ("PG", 4),
            PeerColumn::PgRepl => ("REPL", 5),
            PeerColumn::PgSent => ("SENT", 10),
            PeerColumn::PgWrite => ("WRITE", 10),
            PeerColumn::PgFlush => ("FLUSH", 10),
            PeerColumn::PgReplay => ("REPLAY", 10),
            PeerColumn::PgLag => ("LAG", 5),
        };
        Column::left(header, width)
    }

    fn cell(self, row: &PeerRow) -> String {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let lsn = |lsn: Option<Lsn>| or_dash(lsn.map(|lsn| lsn.to_string()));
        match self {
            PeerColumn::Role => row.role.to_string(),
            PeerColumn::Peername => row.peername.clone(),
            PeerColumn::Peerabbr => row.peerabbr.clone(),
            PeerColumn::Ip => row.ip.clone(),
            PeerColumn::PgOnline => if row.pg_online { "ok" } else { "fail" }.to_owned(),
            PeerColumn::PgRepl => or_dash(row.pg_repl.clone()),
            PeerColumn::PgSent => lsn(row.pg_sent),
            PeerColumn::PgWrite => lsn(row.pg_write),
            PeerColumn::PgFlush => lsn(row.pg_flush),
            PeerColumn::PgReplay => lsn(row.pg_replay),
            PeerColumn::PgLag => or_dash(row.pg_lag_ms.map(duration)),
        }
    }
}

/// `0m07s`; whole seconds, as nobody reads more from a table.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    format!("{}m{:02}s", seconds / 60, seconds % 60)
}

/// A peer as a row of the tables, and for programs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRow {
    /// Its place.
    pub role: Role,
    /// Its name in the cluster state.
    pub id: PeerId,
    /// Its zone.
    pub peername: String,
    /// The first characters of it.
    pub peerabbr: String,
    /// Its address.
    pub ip: String,
    /// Whether it holds a live registration.
    pub active: bool,
    /// Whether its PostgreSQL answers.
    pub pg_online: bool,
    /// Why it does not.
    pub pg_error: Option<String>,
    /// The `sync_state` of its downstream.
    pub pg_repl: Option<String>,
    /// Sent to its downstream.
    pub pg_sent: Option<Lsn>,
    /// Written there.
    pub pg_write: Option<Lsn>,
    /// Flushed there.
    pub pg_flush: Option<Lsn>,
    /// Replayed there.
    pub pg_replay: Option<Lsn>,
    /// How far its own replay is behind.
    pub pg_lag_ms: Option<u64>,
    /// Why its sitter does what it does.
    pub reason: Option<String>,
}

impl PeerRow {
    fn new(view: &ShardView, peer: &PeerView) -> Self {
        let downstream = view.downstream_of(&peer.ident.id);
        let sender = downstream.and_then(|downstream| peer.sender_to(&downstream.ident.id));
        PeerRow {
            role: peer.role,
            id: peer.ident.id.clone(),
            peername: peer.ident.zone_id.clone(),
            peerabbr: peer.abbreviation().to_owned(),
            ip: peer.ident.ip.clone(),
            active: view.registrations(&peer.ident.id) > 0,
            pg_online: peer.postgres().is_ok(),
            pg_error: peer.postgres().err(),
            pg_repl: sender.map(|sender| sender.sync_state.clone()),
            pg_sent: sender.and_then(|sender| sender.sent),
            pg_write: sender.and_then(|sender| sender.write),
            pg_flush: sender.and_then(|sender| sender.flush),
            pg_replay: sender.and_then(|sender| sender.replay),
            pg_lag_ms: peer.lag_ms(),
            reason: peer.status.as_ref().ok().map(|status| status.reason.text.clone()),
        }
    }
}

/// A peer as far as the coordination alone tells.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlainPeer<'a> {
    role: Role,
    id: &'a PeerId,
    peername: &'a str,
    peerabbr: &'a str,
    ip: &'a str,
    active: bool,
}

/// The rows of one role, or all.
pub fn rows(view: &ShardView, role: Option<Role>) -> Vec<PeerRow> {
    let wanted = view.peers.iter().filter(|peer| role.is_none_or(|role| peer.role == role));
    wanted.map(|peer| PeerRow::new(view, peer)).collect()
}

/// These rows without what only the sitters know.
pub fn plain(rows: &[PeerRow]) -> Vec<PlainPeer<'_>> {
    let plain = rows.iter().map(|row| PlainPeer {
        role: row.role,
        id: &row.id,
        peername: &row.peername,
        peerabbr: &row.peerabbr,
        ip: &row.ip,
        active: row.active,
    });
    plain.collect()
}

/// The table of these rows.
pub fn render(rows: &[PeerRow], columns: &[PeerColumn], header: bool) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| column.cell(row)).collect()).collect();
    let columns: Vec<Column> = columns.iter().map(|column| column.column()).collect();
    table::render(&columns, &cells, header)
}

/// The problems after an empty line; nothing when there are none.
pub fn render_problems(problems: &[Problem]) -> String {
    let lines: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::{healthy, peer, state};

    fn check(view: &ShardView, columns: &[PeerColumn], expected: &str) {
        let table = render(&rows(view, None), columns, true);
        assert_eq!(format!("\n{table}"), expected);
    }

    #[test]
    fn a_healthy_chain_with_a_deposed_peer() {
        let mut state = state();
        state.deposed.push(peer(5));
        let view = healthy(&state);
        check(
            &view,
            PG_STATUS,
            "
ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  11111111 ok   sync  1/200000A0 1/20000090 1/20000080 1/20000070 -
sync     22222222 ok   async 1/200000A0 1/20000090 1/20000080 1/20000070 0m00s
async    33333333 ok   async 1/200000A0 1/20000090 1/20000080 1/20000070 0m00s
async    44444444 ok   -     -          -          -          -          0m00s
deposed  55555555 fail -     -          -          -          -          -
",
        );
        check(
            &view,
            PEERS,
            "
ROLE     PEERNAME                             IP
primary  11111111-zone                        10.0.0.1
sync     22222222-zone                        10.0.0.2
async    33333333-zone                        10.0.0.3
async    44444444-zone                        10.0.0.4
deposed  55555555-zone                        10.0.0.5
",
        );
    }

    #[test]
    fn what_a_peer_that_does_not_answer_leaves_unknown() {
        let mut view = healthy(&state());
        view.peers[0].status = Err("connection refused".to_owned());
        let lagging = view.peers[1].status.as_mut().expect("healthy");
        lagging.postgres.lag_ms = Some(93_999);
        // It lags and has lost its upstream: how far it is behind is known all the same.
        lagging.postgres.streaming = Some(false);
        // It has replayed all that it has, but nobody knows how much more there is.
        view.peers[2].status.as_mut().expect("healthy").postgres.streaming = Some(false);
        check(
            &view,
            &[PeerColumn::Peerabbr, PeerColumn::PgOnline, PeerColumn::PgRepl, PeerColumn::PgLag],
            "
PEER     PG   REPL  LAG
11111111 fail -     -
22222222 ok   async 1m33s
33333333 ok   async -
44444444 ok   -     0m00s
",
        );
    }

    #[test]
    fn one_role_and_the_whole_name() {
        let view = healthy(&state());
        let asyncs = rows(&view, Some(Role::Async));
        let columns = [PeerColumn::Peerabbr, PeerColumn::Ip].map(PeerColumn::wide);
        let table = render(&asyncs, &columns, false);
        let line = |name, ip| format!("{name:<36} {ip}\n");
        let expected = line("33333333-zone", "10.0.0.3") + &line("44444444-zone", "10.0.0.4");
        assert_eq!(table, expected);
    }
}
