//! A plan as a runbook: what a person types who may not let a tool do it. Every command is there as it is
//! typed, with what has to be seen before the next one; as a whole it is a script of the POSIX shell.
//!
//! Contract: nothing is looked at here. Whatever comes from the inventory or from a host is quoted, each
//! section can be typed twice, and the first thing that is not as it has to be ends it.

mod back;
mod forward;
mod head;
mod look;
mod patroni;
mod shard;
mod snapshots;
mod standbys;

use crate::{DonorConfig, DonorKind, DonorStandby, Facts, Method, PeerFacts, RecipientPeer};
use adapters::service::{Host, Order, Service, quote};
use anyhow::{Result, bail};
use saga::Plan;
use std::fmt::Write;

/// A runbook while it is written.
struct Book<'a> {
    facts: &'a Facts,
    /// The program, on the host that this is typed on.
    program: &'a str,
    text: String,
}

/// A script on a host, for a command that is given nothing to read, or that reads.
fn typed(host: &Host, user: Option<&str>, script: &str, reads: bool) -> String {
    let is_already =
        |target: &str, user: &str| target.split_once('@').is_some_and(|(login, _)| login == user);
    let user = user.filter(|user| !matches!(host, Host::Ssh(target) if is_already(target, user)));
    let script = match user {
        Some(user) => format!("su -s /bin/sh {} -c {}", quote(user), quote(script)),
        None => script.to_owned(),
    };
    match host {
        Host::Local => script,
        // It would read what is typed next.
        Host::Ssh(target) => {
            let alone = if reads { "" } else { "-n " };
            format!("ssh {alone}-o ConnectTimeout=10 {} {}", quote(target), quote(&script))
        }
    }
}

/// A script on a host, as it is typed here.
fn on(host: &Host, user: Option<&str>, script: &str) -> String {
    typed(host, user, script, false)
}

/// The same for one that reads.
fn fed(host: &Host, user: Option<&str>, script: &str) -> String {
    typed(host, user, script, true)
}

/// A command on a host with words behind it that only this shell knows; nothing in them is for a shell.
fn on_with(host: &Host, script: &str, more: &str) -> String {
    match host {
        Host::Local => format!("{script} {more}"),
        Host::Ssh(_) => format!("{}\"{more}\"", on(host, None, &format!("{script} "))),
    }
}

/// A text as it stands between `<<END` and `END`.
fn plain(text: &str) -> String {
    text.replace('\\', "\\\\").replace('$', "\\$").replace('`', "\\`")
}

/// A statement for a function of the runbook, as well to be read as its quotes allow.
fn ask(who: &str, sql: &str) -> String {
    let plain = sql.contains('\'') && !sql.contains(['"', '$', '`', '\\']);
    if plain { format!("{who} \"{sql}\"") } else { format!("{who} {}", quote(sql)) }
}

/// The runbook of a plan, and of its way back. `program` is this one, where the runbook is typed.
///
/// # Errors
/// When a step of the plan has nothing that a person could type.
pub fn runbook(plan: &Plan, program: &str) -> Result<String> {
    let facts: Facts = serde_json::from_value(plan.facts.clone())?;
    let mut book = Book { facts: &facts, program, text: String::new() };
    book.head(plan);
    book.line("\nif [ \"${1-}\" != back ]; then # PART ONE, the move");
    for step in &plan.steps {
        book.section(&step.id.0, &step.title);
        book.note(&format!("clients notice: {}; to undo it: {}", step.clients, step.undo));
        if let Some(pause) = &step.pause {
            book.note(&format!("Look before you go on: {pause}."));
        }
        if !book.step(&step.id.0) {
            bail!(
                "there is no runbook for step {}: another version of the program made the plan; make it again",
                step.id
            );
        }
    }
    book.section("end", "the shard serves; nothing of the donor was removed");
    book.end();
    book.line("\nelse # PART TWO, the way back");
    book.way_back();
    book.line("\nfi");
    Ok(book.text)
}

impl<'a> Book<'a> {
    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn note(&mut self, text: &str) {
        // One that has lines of its own must not become a command.
        self.line(&format!("# {}", text.replace('\n', " ")));
    }

    fn section(&mut self, id: &str, title: &str) {
        let _ = write!(self.text, "\n### {id}: {}\n", title.replace('\n', " "));
    }

    fn check(&mut self, what: &str, expected: &str, command: &str) {
        self.line(&format!("check {} {} \"$({command})\"", quote(what), quote(expected)));
    }

    /// Waits for as long as a service may take.
    fn soon(&mut self, what: &str, expected: &str, command: &str) {
        self.line(&format!("await \"$short\" {} {} {command}", quote(what), quote(expected)));
    }

    /// Waits for as long as a copy may take to come level.
    fn wait_for(&mut self, what: &str, expected: &str, command: &str) {
        self.line(&format!("await \"$long\" {} {} {command}", quote(what), quote(expected)));
    }

    fn donor(&self) -> &'a DonorConfig {
        &self.facts.inventory.donor
    }

    fn kind(&self) -> DonorKind {
        self.donor().kind
    }

    fn by_snapshots(&self) -> bool {
        self.donor().method == Method::Snapshots
    }

    fn peers(&self) -> impl Iterator<Item = (usize, &'a RecipientPeer, &'a PeerFacts)> + use<'a> {
        let both = self.facts.inventory.recipient.iter().zip(&self.facts.peers);
        both.enumerate().map(|(n, (config, facts))| (n + 1, config, facts))
    }

    fn first(&self) -> (&'a RecipientPeer, &'a PeerFacts) {
        (&self.facts.inventory.recipient[0], &self.facts.peers[0])
    }

    /// A standby of the donor, as a server like it.
    fn standbys(&self) -> impl Iterator<Item = (&'a DonorStandby, DonorConfig)> + use<'a> {
        let donor = self.donor();
        donor.standbys.iter().map(|standby| (standby, donor.of_standby(standby)))
    }

    /// A script on the host of the donor, or of a standby of it, by the user of its server.
    fn at(server: &DonorConfig, script: &str) -> String {
        on(&server.host, Some(&server.os_user), script)
    }

    /// A script there that is given these lines, in which this shell puts in what it knows.
    fn give(&mut self, server: &DonorConfig, script: &str, lines: &str) {
        let command = fed(&server.host, Some(&server.os_user), script);
        self.line(&format!("{command} <<END\n{}\nEND", lines.trim_end()));
    }

    fn tell(&mut self, host: &Host, service: &Service, orders: &[Order]) {
        for command in orders.iter().filter_map(|order| service.command(*order)) {
            // As somebody has written it, it may end the shell that it is typed in.
            let own = matches!(service, Service::Commands { .. });
            let command = if own { format!("sh -c {}", quote(&command)) } else { command };
            self.line(&on(host, None, &command));
        }
    }

    fn tell_server(&mut self, server: &DonorConfig, orders: &[Order]) {
        self.tell(&server.host, &server.service, orders);
    }

    fn tell_donor(&mut self, orders: &[Order]) {
        self.tell_server(self.donor(), orders);
    }

    fn tell_peer(&mut self, peer: &RecipientPeer, orders: &[Order]) {
        self.tell(&peer.host, &peer.service, orders);
    }

    /// Starts or stops a server by its own program, or lets it be.
    fn by_hand(&mut self, server: &DonorConfig, order: Order) {
        let seconds = self.facts.inventory.limits.service_seconds;
        let pg_ctl = quote(&format!("{}/pg_ctl", server.bin_dir));
        let data = quote(&server.data_dir);
        let status = format!("{pg_ctl} status -D {data} >/dev/null");
        let options = self.facts.patroni.as_ref().map(|patroni| {
            let option = format!("-c config_file={}", quote(&patroni.config_file));
            format!(" -o {}", quote(&option))
        });
        let script = match order {
            Order::Start => format!(
                "{status} || {pg_ctl} -w -t {seconds} -D {data} -l {}{} start",
                quote(&format!("{}/{}", server.data_dir, crate::donor::LOG)),
                options.unwrap_or_default()
            ),
            _ => format!("! {status} || {pg_ctl} -w -t {seconds} -D {data} -m fast stop"),
        };
        self.line(&Book::at(server, &script));
    }

    /// Whether a server runs, as a command.
    fn runs(server: &DonorConfig) -> String {
        let pg_ctl = quote(&format!("{}/pg_ctl", server.bin_dir));
        Book::at(server, &format!("{pg_ctl} status -D {} >/dev/null", quote(&server.data_dir)))
    }

    /// Starts a server by its service, or lets it be.
    fn start_by_service(&mut self, server: &DonorConfig) {
        if self.kind() == DonorKind::Postgres {
            self.line(&format!("if ! {}; then", Book::runs(server)));
            self.tell_server(server, &[Order::Start]);
            self.line("fi");
        } else {
            // A Patroni, or a sitter: that one may not run where its server does.
            self.tell_server(server, &[Order::Start]);
        }
    }

    /// Starts the donor, which is closed: without a sitter, which would open it.
    fn start_closed(&mut self) {
        match self.kind() {
            DonorKind::Postgres => self.start_by_service(self.donor()),
            _ => self.by_hand(self.donor(), Order::Start),
        }
    }

    /// Stops the donor, whoever has started it, or lets it be.
    fn halt(&mut self, server: &DonorConfig) {
        match self.kind() {
            DonorKind::Postgres => {
                self.line(&format!("if {}; then", Book::runs(server)));
                self.tell_server(server, &[Order::Stop]);
                self.line("fi");
            }
            DonorKind::Patroni => self.by_hand(server, Order::Stop),
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => {
                self.tell_server(server, &[Order::Stop]);
                self.by_hand(server, Order::Stop);
            }
        }
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
}

#[cfg(test)]
#[path = "runbook_tests.rs"]
mod tests;
