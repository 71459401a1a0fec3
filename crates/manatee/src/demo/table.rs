//! The chain as lines of text: pure, so that a test can look at it.

use crate::shard::{Gap, PeerView, Progress, ShardView, SitterState};
use cluster::{Millis, Role};

/// The widest that a line becomes.
pub(super) const WIDTH: usize = 80;

/// How something is to be shown where there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Title,
    Good,
    Busy,
    Bad,
    Dim,
}

/// A line of one tone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub tone: Tone,
    pub text: String,
}

impl Line {
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Line { tone, text: text.into() }
    }
}

/// What the writer does, for its line.
#[derive(Debug, Clone)]
pub(super) struct WriterLine {
    pub progress: Progress,
    /// Rows a second, of late.
    pub rate: f64,
    /// The longest outage so far.
    pub longest: Gap,
}

/// The whole panel.
pub(super) fn panel(view: &ShardView, writer: Option<&WriterLine>, directory: &str) -> Vec<Line> {
    let generation = view.generation().map_or("-".to_owned(), |g| g.to_string());
    let mut lines = vec![
        Line::new(Tone::Plain, ""),
        Line::new(Tone::Title, format!("manatee demo: generation {generation}, {directory}")),
        Line::new(Tone::Dim, row(["PEER", "ROLE", "POSTGRES", "WAL", "LAG", "WHY"])),
    ];
    let mut peers: Vec<&PeerView> = view.peers.iter().collect();
    // The chain from its head; sorting is stable, so that equals do not jump about.
    peers.sort_by_key(|peer| place(peer));
    lines.extend(peers.into_iter().map(|peer| peer_line(peer, view)));
    lines.push(match writer {
        None => Line::new(Tone::Dim, "writer   not started"),
        Some(writer) => writer_line(writer),
    });
    lines
}

fn place(peer: &PeerView) -> u8 {
    match peer.role() {
        Some(Role::Primary) => 0,
        Some(Role::Sync) => 1,
        Some(Role::Async) => 2,
        Some(Role::Unassigned | Role::Unknown) => 3,
        Some(Role::Deposed) => 4,
        None => 5,
    }
}

fn row([peer, role, postgres, wal, lag, why]: [&str; 6]) -> String {
    format!("{peer:<8} {role:<10} {postgres:<13} {wal:<11} {lag:>6}  {why}").trim_end().to_owned()
}

fn peer_line(peer: &PeerView, view: &ShardView) -> Line {
    let zone = peer.zone.as_str();
    // Whoever answers is there, even when it was not us who started it.
    let status = match (&peer.status, &peer.sitter) {
        (Ok(status), _) => status,
        (Err(_), SitterState::Stopped) => {
            return Line::new(Tone::Bad, row([zone, "-", "-", "-", "-", "killed"]));
        }
        (Err(_), SitterState::Ended(how)) => {
            let why = format!("its sitter ended: {how}");
            return Line::new(Tone::Bad, row([zone, "-", "-", "-", "-", &why]));
        }
        (Err(_), SitterState::Running) => {
            return Line::new(Tone::Dim, row([zone, "-", "-", "-", "-", "no answer"]));
        }
    };
    let postgres = peer.postgres();
    let wal = status.postgres.wal.filter(|_| status.postgres.online);
    let wal = wal.map_or("-".to_owned(), |lsn| lsn.to_string());
    let standby = status.postgres.online && status.postgres.in_recovery == Some(true);
    let lag =
        if standby { length(Millis(status.postgres.lag_ms.unwrap_or(0))) } else { "-".into() };
    let why = match (&status.copying, postgres) {
        (Some(copying), "copying") => copied(copying.bytes_done, copying.bytes_total),
        _ => view.by_zone(&status.reason.text),
    };
    let tone = match postgres {
        "open" | "streaming" => Tone::Good,
        _ => Tone::Busy,
    };
    Line::new(tone, row([zone, status.role.label(), postgres, &wal, &lag, &why]))
}

fn copied(done: u64, total: Option<u64>) -> String {
    let done = done / 1_000_000;
    match total {
        Some(total) => format!("{done} of {} MB", total / 1_000_000),
        None => format!("{done} MB"),
    }
}

fn writer_line(writer: &WriterLine) -> Line {
    let progress = &writer.progress;
    let target = match &progress.connected_to {
        Some(zone) => format!("to {zone}"),
        None => "nobody takes writes".to_owned(),
    };
    let text = format!(
        "writer   {target}, {:.0} rows/s, {} acknowledged, {} not; longest outage {}",
        writer.rate,
        progress.acknowledged,
        progress.unacknowledged,
        length(writer.longest.length())
    );
    Line::new(if progress.connected_to.is_some() { Tone::Good } else { Tone::Bad }, text)
}

/// A length of time for people.
pub(super) fn length(length: Millis) -> String {
    match length.0 {
        ms @ 0..1000 => format!("{ms} ms"),
        #[expect(clippy::cast_precision_loss)] // far below 2^52
        ms => format!("{:.1} s", ms as f64 / 1000.0),
    }
}

/// No more than `width` characters, so that a line of the panel is one line of the terminal.
pub(super) fn clip(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Whether a line is to be copied as it stands (a command, a log): such are indented.
pub(super) fn is_verbatim(line: &str) -> bool {
    line.starts_with("  ")
}

/// The words of a line on lines of at most `width` characters.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    if is_verbatim(text) || text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// The changes of peers that are worth a line, in words. One that has only just started is not.
pub(super) fn changes(before: &[PeerView], now: &ShardView) -> Vec<String> {
    let shown = |peer: &PeerView| {
        let role = peer.role().filter(|role| *role != Role::Unknown)?;
        Some((role, peer.postgres()))
    };
    let mut changes = Vec::new();
    for peer in &now.peers {
        let old = before.iter().find(|old| old.zone == peer.zone).and_then(shown);
        if let (Some((role, postgres)), Ok(status)) = (shown(peer), &peer.status)
            && old != Some((role, postgres))
        {
            let reason = now.by_zone(&status.reason.text);
            let zone = &peer.zone;
            changes.push(format!("{zone}: {}, PostgreSQL {postgres}: {reason}", role.label()));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::PeerId;
    use serde_json::json;

    fn peer(zone: &str, role: &str, writable: bool, streaming: Option<bool>) -> PeerView {
        let status = json!({
            "version": "3", "shard": "demo",
            "peer": cluster::PeerIdent::new("127.0.0.1", 1, 2, zone),
            "role": role,
            "reason": {"kind": "k", "rule": "X1", "text": "a reason of many words, so many that no \
                       line of a terminal could hold them all"},
            "generation": 4, "inSession": true, "database": "established", "pending": [],
            "fenced": false, "mayServeMs": null, "failure": null, "copying": null,
            "postgres": {"online": true, "error": null, "ageMs": 5, "configuredAs": role,
                "upstream": null, "writable": writable, "inRecovery": streaming.is_some(),
                "timeline": 2, "wal": "0/3019F20", "replay": null, "lagMs": null,
                "streaming": streaming, "senders": []},
        });
        PeerView {
            zone: zone.to_owned(),
            id: PeerId::new("127.0.0.1:1:2"),
            sitter: SitterState::Running,
            asked: None,
            status: Ok(serde_json::from_value(status).expect("a status")),
        }
    }

    fn shown(view: &ShardView) -> Vec<String> {
        let lines = panel(view, None, "/tmp/x");
        lines.iter().map(|line| clip(&line.text, WIDTH)).collect()
    }

    #[test]
    fn the_chain_from_its_head_on_lines_that_fit() {
        let mut gone = peer("amber", "primary", true, None);
        gone.sitter = SitterState::Stopped;
        gone.status = Err("refused".to_owned());
        let chain = ShardView {
            peers: vec![
                gone,
                peer("birch", "sync", false, Some(true)),
                peer("cedar", "primary", true, None),
            ],
        };
        assert_eq!(
            shown(&chain),
            [
                "",
                "manatee demo: generation 4, /tmp/x",
                "PEER     ROLE       POSTGRES      WAL            LAG  WHY",
                "cedar    primary    open          0/3019F20        -  a reason of many words, s…",
                "birch    sync       streaming     0/3019F20     0 ms  a reason of many words, s…",
                "amber    -          -             -                -  killed",
                "writer   not started",
            ]
        );
    }

    #[test]
    fn a_change_is_told_once() {
        let view = |role, open| ShardView { peers: vec![peer("birch", role, open, Some(true))] };
        let (sync, primary) = (view("sync", false), view("primary", true));
        let told = changes(&[], &sync);
        assert!(told[0].starts_with("birch: sync, PostgreSQL streaming: a reason"), "{told:?}");
        assert_eq!(changes(&sync.peers, &sync), [""; 0]);
        assert_eq!(changes(&sync.peers, &primary).len(), 1);
        assert_eq!(changes(&sync.peers, &view("unknown", false)), [""; 0]);
    }

    #[test]
    fn peers_are_named_by_their_zone() {
        let view = ShardView { peers: vec![peer("birch", "sync", false, Some(true))] };
        assert_eq!(view.by_zone("following 127.0.0.1:1:2"), "following birch");
    }

    #[test]
    fn words_stay_whole_and_commands_alone() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("overlong word", 4), ["overlong", "word"]);
        assert_eq!(wrap("  psql 'a long url'", 5), ["  psql 'a long url'"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn lengths_and_clips() {
        assert_eq!(length(Millis(999)), "999 ms");
        assert_eq!(length(Millis(3449)), "3.4 s");
        assert_eq!(clip("äöü", 3), "äöü");
        assert_eq!(clip("äöüß", 3), "äö…");
    }
}
