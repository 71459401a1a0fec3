//! What every runbook begins with: what is checked, and how everybody is asked.

use super::{Book, ask, fed, on};
use crate::{
    DonorConfig, DonorKind, PeerFacts,
    donor::{STANDBY_SIGNAL, literal, value},
    steps::{HBA, SLOT},
};
use adapters::service::quote;
use saga::Plan;

/// What is the same in all of them.
const HEAD: &str = r#"set -eu
discard_writes_of_shard=${discard_writes_of_shard-}

# Ends it all.
stop() { echo "STOP: $1" >&2; exit 1; }
# Ends it all when something is not as it has to be.
check() { # WHAT EXPECTED FOUND
    if [ "$2" = "$3" ]; then echo "ok: $1"; else stop "$1: \"$3\", not \"$2\""; fi
}
# Waits until a command says what it has to say.
await() { # SECONDS WHAT EXPECTED COMMAND [ARGUMENT ...]
    limit=$1 what=$2 expected=$3 seconds=0
    shift 3
    while found=$("$@" 2>/dev/null) || true; [ "$found" != "$expected" ]; do
        seconds=$((seconds + 1))
        [ "$seconds" -le "$limit" ] || stop "$what: not within $limit s: $("$@" 2>&1)"
        sleep 1
    done
    echo "ok: $what"
}
# What a control file says, without the state that it was left in; whether that is an orderly one; up to
# where it goes.
same() { echo "$1" | sed 's/in archive recovery\|shut down in recovery\|shut down//'; }
orderly() { case $1 in *'shut down ') echo yes ;; *) echo "no: $1" ;; esac; }
# Whether a database is none that has served: it is on the donor's timeline, and a standby or stopped.
unserved() { # WHAT IT WAS LEFT AS
    case $1 in
    'none ' | "standby "*" $timeline ") ;;
    "in archive recovery $timeline " | "shut down in recovery $timeline " | "shut down $timeline ") ;;
    *) return 1 ;;
    esac
}
position() { echo "$1" | grep -o '[0-9A-F]*/[0-9A-F]*'; }
"#;

/// What `pg_controldata` says, as one line: which database, its timeline, its last checkpoint, its state.
const CONTROL: &str = "sed -n -e 's/^Database system identifier: *//p' -e \"s/^Latest checkpoint's TimeLineID: *//p\" \
     -e 's/^Latest checkpoint location: *//p' -e 's/^Database cluster state: *//p' | sort | tr '\\n' ' '";

/// What a database was left as, as one line: that there is none; that it is a standby, its state, its timeline.
const LEFT: &str = "sed -n -e '/^none$/p' -e '/^standby$/p' -e \"s/^Latest checkpoint's TimeLineID: *//p\" \
     -e 's/^Database cluster state: *//p' | tr '\\n' ' '";

/// How psql asks the database that the first line names what the others say.
pub(super) fn psql(bin: &str, socket: &str, port: u16, superuser: &str) -> String {
    format!(
        "IFS= read -r db; exec {} -XAtq -v ON_ERROR_STOP=1 -h {} -p {port} -U {} -d \"$db\" -f -",
        quote(&format!("{bin}/psql")),
        quote(socket),
        quote(superuser)
    )
}

fn control(bin: &str, data: &str) -> String {
    format!("LC_ALL=C {} -D {}", quote(&format!("{bin}/pg_controldata")), quote(data))
}

impl Book<'_> {
    pub(super) fn head(&mut self, plan: &Plan) {
        self.line("#!/bin/sh");
        self.note(&format!("{}: part one; and back: part two.", plan.title));
        self.note("Keep it until the donor is removed. It is to be typed by root on the host that the inventory was");
        self.note("written for, this head and then one section after the other, in a shell that was started for it");
        self.note("with `sh`. What is checked has to say \"ok\"; where it says STOP, or a command fails, it ends that shell.");
        self.note("Then mend what it was, start another shell, type this head again, and go on with the section that ended:");
        self.note("what was typed of it may be typed again. As a whole, part one is run by `sh FILE`, part two by `sh FILE back`.");
        self.line(HEAD);
        let limits = &self.facts.inventory.limits;
        self.line(&format!("short={} long={}", limits.service_seconds, limits.catch_up_seconds));
        self.ask_donor();
        self.ask_peers();
        self.ask_shard();
        match self.kind() {
            DonorKind::Postgres => {}
            DonorKind::Patroni => self.patroni_head(),
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => self.shard_head(),
        }
        if self.by_snapshots() {
            self.snapshots_head();
        }
    }

    fn ask_donor(&mut self) {
        let donor = self.donor();
        let (host, user) = (&donor.host, Some(donor.os_user.as_str()));
        self.note("Statements for the donor, in a database or in `postgres`; its control file; whether it runs, and whether");
        self.note("it is closed.");
        let psql = psql(&donor.bin_dir, &donor.socket_dir, donor.port, &donor.superuser);
        // What is done here must not wait for a standby that comes later.
        self.line(&format!(
            "donor_in() {{ printf '%s\\n' \"$1\" 'set synchronous_commit = local;' \"$2\" | {}; }}",
            fed(host, user, &psql)
        ));
        self.line("donor() { donor_in postgres \"$1\"; }");
        let look = on(host, user, &control(&donor.bin_dir, &donor.data_dir));
        self.line(&format!("donor_control() {{ {look} | {CONTROL}; }}"));
        self.line(&format!("donor_runs() {{ {}; }}", Book::runs(donor)));
        let closed = Book::is_closed(donor);
        self.line(&format!("donor_is_closed() {{ {closed}; }}"));
        self.line(
            "shut() { if donor_runs; then echo 'it runs'; elif donor_is_closed; then echo yes; else echo 'it is open'; fi; }",
        );
    }

    /// Whether something of what keeps the donor closed is there, as a command.
    fn is_closed(donor: &DonorConfig) -> String {
        let path = |name: &str| quote(&format!("{}/{name}", donor.data_dir));
        Book::at(donor, &format!("[ -e {} ] || [ -e {} ]", path(STANDBY_SIGNAL), path(HBA)))
    }

    /// The same of a standby, which is one anyhow.
    pub(super) fn is_shut(standby: &DonorConfig) -> String {
        let path = quote(&format!("{}/{HBA}", standby.data_dir));
        Book::at(standby, &format!("[ -e {path} ]"))
    }

    fn ask_peers(&mut self) {
        self.note("The same for each peer.");
        for (n, peer, facts) in self.peers() {
            let user = facts.os_user.as_deref();
            let psql = psql(&facts.bin_dir, &facts.socket_dir, facts.port, &facts.superuser);
            let look = on(&peer.host, user, &control(&facts.bin_dir, &facts.data_dir));
            self.note(&format!("peer{n} is {}.", facts.peer.zone_id));
            self.line(&format!(
                "peer{n}_in() {{ printf '%s\\n' \"$1\" \"$2\" | {}; }}",
                fed(&peer.host, user, &psql)
            ));
            self.line(&format!("peer{n}() {{ peer{n}_in postgres \"$1\"; }}"));
            self.line(&format!("peer{n}_control() {{ {look} | {CONTROL}; }}"));
            let path = |name: &str| quote(&format!("{}/{name}", facts.data_dir));
            let left = format!(
                "if [ ! -e {} ]; then echo none; else if [ -e {} ]; then echo standby; fi; {}; fi",
                path("PG_VERSION"),
                path(STANDBY_SIGNAL),
                control(&facts.bin_dir, &facts.data_dir)
            );
            let left = on(&peer.host, user, &left);
            // What is not mounted looks like a database that is not there: this mounts it, where no sitter does.
            let mount = Book::verb(peer, "rest", "");
            self.line(&format!(
                "peer{n}_left() {{\n    left=$({left} | {LEFT})\n    case $left in 'none '*)\n        \
                 {mount} >/dev/null || return 1\n        left=$({left} | {LEFT})\n    esac\n    echo \"$left\"\n}}"
            ));
        }
        if !self.by_snapshots() {
            self.line("# Whether the first peer is nearly level with the donor.");
            let limit = self.facts.inventory.limits.lag_bytes;
            self.line(&format!(
                "near() {{ peer1 \"select pg_wal_lsn_diff('$({})', pg_last_wal_replay_lsn()) <= {limit}\"; }}",
                ask("donor", "select pg_current_wal_lsn()")
            ));
        }
    }

    /// What the shard is, and who of it serves.
    fn ask_shard(&mut self) {
        let (first, _) = self.first();
        let id = &self.facts.id;
        self.note("What the shard is: closed, it never took a write; open; back, what it took went to the donor; lost, it");
        self.note(
            "has no cluster state of this move, and may have opened: nobody needs one to serve on.",
        );
        let numbers: Vec<String> = self.peers().map(|(n, ..)| n.to_string()).collect();
        let numbers = numbers.join(" ");
        self.line(&format!("timeline={}", self.facts.donor.timeline));
        self.line(&format!(
            "has_served() {{\n    for n in {numbers}; do\n        left=$(\"peer${{n}}_left\") || left=\n        \
             if [ -z \"$left\" ]; then echo unknown; return; fi\n        \
             if ! unserved \"$left\"; then echo lost; return; fi\n    done\n    echo closed\n}}"
        ));
        self.line(&format!(
            "shard() {{\n    facts=$({}) || {{ echo unknown; return; }}",
            Book::verb(first, "facts", "")
        ));
        self.line(&format!(
            "    case $facts in\n    *'\"transplant\":\"{id}\",\"transplantRolledBack\"'*) echo back ;;\n    \
             *'\"transplant\":\"{id}\"'*) echo open ;;\n    *) has_served ;;\n    esac\n}}"
        ));
        self.line(&format!(
            "frozen() {{ case $({} | tr -d ' \\n') in *'\"freeze\":{{'* | *'\"freeze\":true'*) echo yes ;; *) echo no ;; esac; }}",
            Book::adm(first, "zk-state")
        ));
        self.note(
            "Who of the shard serves, by number; that one is asked, and how the donor reaches it.",
        );
        self.line(&format!(
            "serving() {{ for n in {}; do if [ \"$(\"peer$n\" \"{}\" 2>/dev/null)\" = t ]; then echo \"$n\"; fi; done; }}",
            numbers,
            super::forward::SERVES
        ));
        self.line("one_serves() { case $(serving) in [0-9]) echo yes ;; *) echo no ;; esac; }");
        self.line("primary() { \"peer$from\" \"$1\"; }");
        self.line("primary_control() { \"peer${from}_control\"; }");
        let address = |facts: &PeerFacts| {
            let user = facts.replication_user.replace('\\', "\\\\").replace('\'', "\\'");
            format!("host={} port={} user='{user}'", facts.peer.ip, facts.port)
        };
        self.by_peer("address", &address);
        self.note("The same as it stands in a value of a file of settings.");
        self.by_peer("address_set", &|facts| {
            let address = value(&address(facts));
            address[1..address.len() - 1].to_owned()
        });
        self.line(&format!(
            "keep() {{ {}; }} # PEER: makes it keep what the donor would need",
            ask("\"$1\"", &crate::steps::make_slot_sql(&literal(SLOT)))
        ));
    }

    /// A function that says this of the peer whose number is in `from`.
    fn by_peer(&mut self, name: &str, says: &dyn Fn(&PeerFacts) -> String) {
        self.line(&format!("{name}() {{\n    case $from in"));
        for (n, _, facts) in self.peers() {
            self.line(&format!("    {n}) printf '%s\\n' {} ;;", quote(&says(facts))));
        }
        self.line("    esac\n}");
    }
}
