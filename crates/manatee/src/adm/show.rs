//! `adm show`: the shard on one page.

use super::history::instant;
use super::peers::{self, PEERS, PG_STATUS};
use super::problems::{Problem, progress, sending};
use super::view::ShardView;
use cluster::{ClusterState, Freeze};
use serde_json::{Value, json};
use std::fmt::Write;

/// The page.
pub fn render(view: &ShardView, problems: &[Problem], verbose: bool) -> String {
    let mut page = Page(String::new());
    let zk = view.coordination.strip_prefix("zk://");
    match zk {
        Some(servers) => page.field("zookeeper", servers),
        None => page.field("coordination", &view.coordination),
    }
    page.field("cluster", &view.shard);
    if let Some(state) = view.state() {
        page.state(state);
        let rows = peers::rows(view, None);
        if verbose {
            page.paragraph(&peers::render(&rows, PEERS, true));
        }
        page.paragraph(&peers::render(&rows, PG_STATUS, true));
        page.paragraph(&copies(view));
    }
    if let Some(stored) = &view.stored
        && (stored.state.is_none() || stored.error.is_some())
    {
        page.field("as stored", stored.raw.json.trim_end());
    }
    if verbose {
        page.paragraph(&sitters(view));
    }
    page.0 + &peers::render_problems(problems)
}

struct Page(String);

impl Page {
    fn field(&mut self, name: &str, value: &str) {
        let name = format!("{name}:");
        self.0 += &format!("{name:<13} {value}\n");
    }

    fn paragraph(&mut self, text: &str) {
        if !text.is_empty() {
            self.0 += "\n";
            self.0 += text;
        }
    }

    fn state(&mut self, state: &ClusterState) {
        self.field("generation", &format!("{} ({})", state.generation, state.init_wal));
        self.field("mode", mode(state));
        match &state.freeze {
            Some(Freeze::Since(info)) => {
                self.field("freeze", &format!("frozen since {}", instant(info.date)));
                self.field("freeze info", &info.reason);
            }
            Some(Freeze::Bare(true)) => {
                self.field("freeze", "frozen");
                self.field("freeze info", "(neither date nor reason is known)");
            }
            Some(Freeze::Bare(false)) | None => self.field("freeze", "not frozen"),
        }
        if let Some(promote) = &state.promote {
            let until = instant(promote.expire_time);
            self.field("promote", &format!("{} asked for, until {until}", promote.id));
        }
    }
}

fn mode(state: &ClusterState) -> &'static str {
    if state.is_one_node_write_mode() { "singleton (one-node-write)" } else { "normal" }
}

/// Copies and streams that are under way, a line each.
pub fn copies(view: &ShardView) -> String {
    let mut text = String::new();
    for peer in &view.peers {
        let Ok(status) = &peer.status else { continue };
        let copying = status.copying.as_ref().map(progress);
        for says in copying.into_iter().chain(status.sending.iter().filter_map(sending)) {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{:<8} {}: {says}", peer.role.label(), peer.abbreviation());
        }
    }
    text
}

/// Why each sitter does what it does, in its own words.
fn sitters(view: &ShardView) -> String {
    let mut text = String::new();
    for peer in &view.peers {
        let says = match &peer.status {
            Ok(status) => {
                let copying = status.copying.as_ref().map(progress);
                let more = copying.map(|copying| format!("; {copying}")).unwrap_or_default();
                format!("{} (rule {}){more}", status.reason.text, status.reason.rule)
            }
            Err(error) => format!("no answer: {error}"),
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{:<8} {}: {says}", peer.role.label(), peer.abbreviation());
    }
    text
}

/// The page for programs.
pub fn json(view: &ShardView, problems: &[Problem]) -> Value {
    let state = view.state();
    json!({
        "coordination": view.coordination,
        "shard": view.shard,
        "generation": state.map(|state| state.generation),
        "initWal": state.map(|state| state.init_wal),
        "oneNodeWriteMode": state.map(ClusterState::is_one_node_write_mode),
        "frozen": state.map(ClusterState::is_frozen),
        "freeze": state.and_then(|state| state.freeze.as_ref()),
        "promote": state.and_then(|state| state.promote.as_ref()),
        "stored": view.stored.as_ref().map(|stored| &stored.raw.json),
        "active": view.active,
        "peers": peers::rows(view, None),
        "problems": problems,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::{healthy, peer, state};
    use crate::adm::problems::find;
    use crate::adm::view::Stored;
    use adapters::coord::{StoredState, Version};
    use cluster::FreezeInfo;
    use jiff::Timestamp;

    fn check(view: &ShardView, verbose: bool, expected: &str) {
        let problems = find(view, Timestamp::UNIX_EPOCH);
        assert_eq!(format!("\n{}", render(view, &problems, verbose)), expected);
    }

    #[test]
    fn a_frozen_shard_with_everything() {
        let mut state = state();
        state.asyncs.clear();
        state.deposed.push(peer(5));
        let date = "2026-05-04T10:00:00.25Z".parse().expect("a time");
        let extra = serde_json::Map::new();
        state.freeze =
            Some(Freeze::Since(FreezeInfo { date, reason: "new switch".to_owned(), extra }));
        check(
            &healthy(&state),
            true,
            r#"
coordination: sqlite:/run/shard.db
cluster:      1.example
generation:   3 (0/17B7188)
mode:         normal
freeze:       frozen since 2026-05-04T10:00:00.250Z
freeze info:  new switch

ROLE     PEERNAME                             IP
primary  11111111-zone                        10.0.0.1
sync     22222222-zone                        10.0.0.2
deposed  55555555-zone                        10.0.0.5

ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  11111111 ok   sync  1/200000A0 1/20000090 1/20000080 1/20000070 -
sync     22222222 ok   -     -          -          -          -          0m00s
deposed  55555555 fail -     -          -          -          -          -

primary  11111111: being primary (rule C1)
sync     22222222: being sync (rule C1)
deposed  55555555: being deposed (rule C1)

warning: cluster has no async peers: nobody can replace the sync
warning: cluster has a deposed peer: "55555555": its sitter says: being deposed
"#,
        );
    }

    #[test]
    fn copies_and_streams_are_told() {
        let mut view = healthy(&state());
        let status =
            |view: &mut ShardView, n: usize, change: fn(&mut crate::status::PeerStatus)| {
                change(view.peers[n].status.as_mut().expect("healthy"));
            };
        assert_eq!(copies(&view), "");
        status(&mut view, 2, |status| {
            status.copying = Some(crate::status::Copying {
                source: Some("10.0.0.2:5432:12345".to_owned()),
                phase: "receiving".to_owned(),
                bytes_done: 3 << 20,
                bytes_total: None,
                rate: Some(1 << 20),
                remaining: None,
            });
        });
        status(&mut view, 1, |status| {
            let job = serde_json::json!({
                "id": "00000000-0000-0000-0000-000000000000", "receiver": "10.0.0.3:5432:12345",
                "snapshot": "1777888800000-seed", "part": {"kind": "full", "to": "7"},
                "state": "sending", "bytesDone": 3 << 20, "bytesEstimate": 600 << 20,
                "rate": 5 << 20, "remaining": 119,
            });
            status.sending = vec![serde_json::from_value(job).expect("a stream")];
        });
        let expected = "\
sync     22222222: sending 1777888800000-seed to 10.0.0.3:5432:12345, 3 of 600 MiB, 5 MiB/s, 1m59s left
async    33333333: receiving from 10.0.0.2:5432:12345, 3 MiB, 1 MiB/s
";
        assert_eq!(copies(&view), expected);
        assert!(render(&view, &[], false).contains(expected));
    }

    #[test]
    fn a_shard_that_serves_alone() {
        let mut alone = state();
        alone.one_node_write_mode = Some(true);
        alone.sync = None;
        alone.asyncs.clear();
        let mut view = healthy(&alone);
        view.coordination = "zk://10.0.0.9:2181".to_owned();
        check(
            &view,
            false,
            "
zookeeper:    10.0.0.9:2181
cluster:      1.example
generation:   3 (0/17B7188)
mode:         singleton (one-node-write)
freeze:       not frozen

ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  11111111 ok   -     -          -          -          -          -
",
        );
    }

    #[test]
    fn a_malformed_state_is_shown_as_it_is() {
        let mut view = healthy(&state());
        view.peers.clear();
        let raw = StoredState { version: Version(7), json: "{\"generation\":1}\n".to_owned() };
        view.stored = Some(Stored::new(raw));
        check(
            &view,
            false,
            r#"
coordination: sqlite:/run/shard.db
cluster:      1.example
as stored:    {"generation":1}

error: no peer can act on what is stored: cluster state: primary: is missing
"#,
        );
    }
}
