//! A plan as a runbook: what a person types who may not let a tool do it. Every command is there as it is
//! typed, with what has to be seen before the next one; as a whole it is a script of the POSIX shell.

mod back;
mod forward;

use crate::{DonorConfig, DonorKind, Facts, Method, PeerFacts, RecipientPeer};
use adapters::service::{Host, Order, Service, quote};
use anyhow::{Result, bail};
use saga::Plan;
use std::fmt::Write;

/// What every runbook begins with.
const HEAD: &str = r#"set -eu

# Ends it all when something is not as it has to be.
check() { # WHAT EXPECTED FOUND
    if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "STOP: $1: \"$3\", not \"$2\"" >&2; exit 1; fi
}
# Waits until a command says what it has to say.
await() { # WHAT EXPECTED COMMAND [ARGUMENT ...]
    what=$1 expected=$2 seconds=0
    shift 2
    while found=$("$@" 2>&1) || true; [ "$found" != "$expected" ]; do
        seconds=$((seconds + 1))
        [ "$seconds" -le "$patience" ] || { echo "STOP: $what: not within $patience s: $found" >&2; exit 1; }
        sleep 1
    done
    echo "ok: $what"
}
"#;

/// What `pg_controldata` says, as one line: which database, its timeline, its last checkpoint, its state.
const CONTROL: &str = "sed -n -e 's/^Database system identifier: *//p' -e \"s/^Latest checkpoint's TimeLineID: *//p\" \
     -e 's/^Latest checkpoint location: *//p' -e 's/^Database cluster state: *//p' | sort | tr '\\n' ' '";

/// A runbook while it is written.
struct Book<'a> {
    facts: &'a Facts,
    text: String,
}

/// A script on a host, as it is typed here.
fn on(host: &Host, user: Option<&str>, script: &str) -> String {
    let script = match user {
        Some(user) => format!("su -s /bin/sh {} -c {}", quote(user), quote(script)),
        None => script.to_owned(),
    };
    match host {
        Host::Local => script,
        Host::Ssh(target) => format!("ssh {} {}", quote(target), quote(&script)),
    }
}

/// The runbook of a plan, and of its way back.
///
/// # Errors
/// When a step of the plan has nothing that a person could type.
pub fn runbook(plan: &Plan) -> Result<String> {
    let facts: Facts = serde_json::from_value(plan.facts.clone())?;
    let donor = &facts.inventory.donor;
    let by_itself = donor.kind == DonorKind::Postgres && donor.standbys.is_empty();
    if !by_itself || donor.method != Method::Streaming {
        bail!(
            "there is a runbook only for a PostgreSQL by itself that is moved by streaming: others are moved \
             by `manatee transplant run`, which stops where a person should look"
        );
    }
    let paths = [&facts.inventory.donor.data_dir, &facts.donor.hba_file];
    if let Some(path) = paths.into_iter().find(|path| path.contains(['$', '`', '\\', '\''])) {
        bail!(
            "there is no runbook for a donor with the path {path:?}: a shell would read it differently"
        );
    }
    let mut book = Book { facts: &facts, text: String::new() };
    book.head(plan);
    book.line("\nif [ \"${1-}\" != back ]; then # PART ONE, the move");
    for step in &plan.steps {
        book.section(&step.id.0, &step.title);
        book.note(&format!("clients notice: {}; to undo it: {}", step.clients, step.undo));
        if !book.step(&step.id.0) {
            bail!(
                "there is no runbook for step {0}: leave {0} out of the inventory and do it by yourself, or use \
                 `manatee transplant run`",
                step.id
            );
        }
    }
    book.section("end", "the shard serves; nothing of the donor was removed");
    let drop = format!("select pg_drop_replication_slot('{}')", crate::steps::SLOT);
    book.note("When you are sure, give up the way back: remove the donor, and say on each peer");
    book.note(&drop);
    book.line("\nelse # PART TWO, the way back");
    book.way_back();
    book.line("\nfi");
    Ok(book.text)
}

impl Book<'_> {
    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn note(&mut self, text: &str) {
        self.line(&format!("# {text}"));
    }

    fn section(&mut self, id: &str, title: &str) {
        let _ = write!(self.text, "\n### {id}: {title}\n");
    }

    fn check(&mut self, what: &str, expected: &str, command: &str) {
        self.line(&format!("check {} {} \"$({command})\"", quote(what), quote(expected)));
    }

    fn wait_for(&mut self, what: &str, expected: &str, command: &str) {
        self.line(&format!("await {} {} {command}", quote(what), quote(expected)));
    }

    fn donor(&self) -> &DonorConfig {
        &self.facts.inventory.donor
    }

    fn peers(&self) -> Vec<(RecipientPeer, PeerFacts)> {
        let configs = self.facts.inventory.recipient.iter().cloned();
        configs.zip(self.facts.peers.iter().cloned()).collect()
    }

    /// A script on the donor's host, by the user of its server.
    fn at_donor(&self, script: &str) -> String {
        on(&self.donor().host, Some(&self.donor().os_user), script)
    }

    /// A script there that is given these lines.
    fn give_donor(&mut self, script: &str, lines: &str) {
        let command = self.at_donor(script);
        self.line(&format!("{command} <<END\n{}\nEND", lines.trim_end()));
    }

    fn tell(&mut self, host: &Host, service: &Service, orders: &[Order]) {
        for command in orders.iter().filter_map(|order| service.command(*order)) {
            self.line(&on(host, None, &command));
        }
    }

    fn tell_donor(&mut self, orders: &[Order]) {
        let DonorConfig { host, service, .. } = self.donor().clone();
        self.tell(&host, &service, orders);
    }

    fn tell_peer(&mut self, peer: &RecipientPeer, orders: &[Order]) {
        self.tell(&peer.host, &peer.service, orders);
    }

    /// A verb of the program on a peer's host.
    fn verb(peer: &RecipientPeer, verb: &str, more: &str) -> String {
        let (program, config) = (quote(&peer.manatee), quote(&peer.config));
        on(&peer.host, None, &format!("{program} transplant peer {verb} --config {config}{more}"))
    }

    fn adm(peer: &RecipientPeer, command: &str) -> String {
        let (program, config) = (quote(&peer.manatee), quote(&peer.config));
        on(&peer.host, None, &format!("{program} adm --config {config} {command}"))
    }

    fn head(&mut self, plan: &Plan) {
        self.line("#!/bin/sh");
        self.note(&format!("{}: part one; and back: part two.", plan.title));
        self.note("Keep it until the donor is removed. It is to be typed by root on the host that the inventory was");
        self.note("written for, this head and then one section after the other, in a shell that was started for it");
        self.note("with `sh`. What is checked has to say \"ok\"; where it says STOP, it ends that shell. As a whole, part");
        self.note("one is run by `sh FILE`, part two by `sh FILE back`.");
        self.line(HEAD);
        self.line(&format!("patience={}", self.facts.inventory.limits.catch_up_seconds));
        let donor = self.donor();
        let psql = |bin: &str, socket: &str, port: u16, superuser: &str| {
            format!(
                "{} -XAtq -v ON_ERROR_STOP=1 -h {} -p {port} -U {} -d postgres -f -",
                quote(&format!("{bin}/psql")),
                quote(socket),
                quote(superuser)
            )
        };
        let ask = psql(&donor.bin_dir, &donor.socket_dir, donor.port, &donor.superuser);
        let ask = self.at_donor(&ask);
        let control = |bin: &str, data: &str| {
            let program = quote(&format!("{bin}/pg_controldata"));
            format!("LC_ALL=C {program} -D {}", quote(data))
        };
        let look = self.at_donor(&control(&donor.bin_dir, &donor.data_dir));
        self.note("Statements for the donor, and for each peer.");
        self.line(&format!("donor() {{ printf '%s\\n' \"$1\" | {ask}; }}"));
        self.line(&format!("donor_control() {{ {look} | {CONTROL}; }}"));
        for (n, (peer, facts)) in self.peers().iter().enumerate() {
            let user = facts.os_user.as_deref();
            let ask = psql(&facts.bin_dir, &facts.socket_dir, facts.port, &facts.superuser);
            let look = on(&peer.host, user, &control(&facts.bin_dir, &facts.data_dir));
            let ask = on(&peer.host, user, &ask);
            let n = n + 1;
            self.note(&format!("peer{n} is {}.", facts.peer.zone_id));
            self.line(&format!("peer{n}() {{ printf '%s\\n' \"$1\" | {ask}; }}"));
            self.line(&format!("peer{n}_control() {{ {look} | {CONTROL}; }}"));
        }
    }
}
