//! What is typed for each step.

use super::{Book, ask, on, on_with, plain};
use crate::{
    DonorConfig, DonorKind, RecipientPeer,
    donor::{AUTO_CONF, BEGIN, END, LOG, STANDBY_SIGNAL, literal, value},
    manatee,
    steps::{self, HBA, IDENT, SLOT, drop_sql, hba_lines, least_sql, make_role_sql, make_slot_sql},
};
use adapters::service::{Order, quote};

/// What a server says that streams from another.
pub(super) const STREAMS: &str =
    "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
/// What a server says that takes writes.
pub(super) const SERVES: &str =
    "select not pg_is_in_recovery() and current_setting('default_transaction_read_only') = 'off'";
/// Of what is typed again from the beginning, after the cut-over, this is where it ends.
const NOT_CLOSED: &str = "! donor_is_closed || stop 'the donor is closed: it was stopped before'";
/// The password as it stands in a connection string that stands in a file of settings.
const ESCAPED: &str = r#"password=$(printf '%s\n' "$password" | sed -e 's/[\'\'']/\\&/g' | sed -e 's/\\/\\\\/g' -e "s/'/''/g")"#;
/// Stands for the password in a statement.
const PASSWORD: &str = "\u{0}";

/// A script that takes our block out of a file, which keeps its owner.
pub(super) fn without_block(path: &str) -> String {
    let (path, new) = (quote(path), quote(&format!("{path}.new")));
    format!("sed '/^{BEGIN}/,/^{END}/d' {path} >{new} && cat {new} >{path} && rm -f {new}")
}

impl Book<'_> {
    /// Writes down a step; whether it is known here.
    pub(super) fn step(&mut self, id: &str) -> bool {
        match id {
            steps::HOLD_DONOR if self.kind() == DonorKind::Patroni => self.pause_patroni(),
            steps::HOLD_DONOR => self.freeze_donor(),
            steps::OPEN_REPLICATION => self.open_replication(),
            steps::RECEIVE if self.by_snapshots() => self.send_first(),
            steps::RECEIVE => self.receive(),
            steps::CATCH_UP if self.by_snapshots() => self.send_until_level(),
            steps::CATCH_UP => self.catch_up(),
            steps::AMCHECK => self.amcheck(),
            steps::BACKUP => self.backup(),
            steps::STOP_STANDBYS if self.kind().has_sitter() => self.stop_other_peers(),
            steps::STOP_STANDBYS => self.stop_standbys(),
            steps::STOP_DONOR => self.stop_donor(),
            steps::FENCE_DONOR => self.fence_donor(),
            steps::RECEIVE_LAST => self.send_last(),
            steps::COMPARE => self.compare(),
            steps::COMPARE_ANSWERS => self.compare_answers(),
            steps::OPEN_RECIPIENT => self.open_recipient(),
            steps::KEEP_WAY_BACK => {
                self.line("keep peer1");
                self.sort_anew();
            }
            steps::CHECK_CLIENTS => self.check_clients(),
            steps::GROW => self.grow(),
            steps::LEVEL_DONOR => self.level_donor(),
            _ => return false,
        }
        true
    }

    fn open_replication(&mut self) {
        let (first, facts) = self.first();
        self.line(NOT_CLOSED);
        self.note("The password of the shard's replication role, as its sitter's file has it.");
        self.line(&format!("password=$({})", Book::verb(first, "secret", " --raw")));
        self.line("password=$(printf '%s\\n' \"$password\" | sed \"s/'/''/g\")");
        let made = make_role_sql(&facts.replication_user, PASSWORD, &self.facts.id);
        let (before, after) = made.split_once(PASSWORD).unwrap_or((&made, ""));
        self.line(&format!("donor {}\"'$password'\"{}", quote(before), quote(after)));
        if self.by_snapshots() {
            return;
        }
        self.line(&ask("donor", &make_slot_sql(&literal(self.facts.slot()))));
        let path = &self.facts.donor.hba_file;
        if manatee::is_rendered(path) {
            self.note("Its pg_hba.conf lets in whoever has the role: its sitter writes it.");
            return;
        }
        let hba = quote(path);
        let before = quote(&format!("{path}.before"));
        self.note("The first lines of pg_hba.conf: the first that fits is the one that counts.");
        self.give(
            self.donor(),
            &format!("{} && cp -p {hba} {before} && cat - {before} >{hba}", without_block(path)),
            &plain(&format!("{BEGIN}\n{}{END}", hba_lines(self.facts))),
        );
        self.line(&ask("donor", "select pg_reload_conf()"));
        let wrong = ask("donor", "select count(*) from pg_hba_file_rules where error is not null");
        self.check("pg_hba.conf is one that the server takes", "0", &wrong);
    }

    /// Takes away what lets the first peer stream.
    pub(super) fn close_replication(&mut self) {
        let (_, facts) = self.first();
        let slot = literal(self.facts.slot());
        self.line(&ask("donor", &drop_sql(&facts.replication_user, &slot, &self.facts.id)));
        let path = &self.facts.donor.hba_file;
        if self.by_snapshots() || manatee::is_rendered(path) {
            return;
        }
        let script =
            format!("{} && rm -f {}", without_block(path), quote(&format!("{path}.before")));
        self.line(&Book::at(self.donor(), &script));
        self.line(&ask("donor", "select pg_reload_conf()"));
    }

    fn receive(&mut self) {
        let donor = self.donor();
        let (first, _) = self.first();
        let limits = &self.facts.inventory.limits;
        let rate = limits.rate_mib.map(|rate| format!(" --rate-mib {rate}")).unwrap_or_default();
        let more = format!(" --slot {}{rate}", quote(self.facts.slot()));
        self.copy(first, &donor.address, donor.port, &more);
        self.soon("the first peer streams", "1", &ask("peer1", STREAMS));
    }

    fn copy(&mut self, peer: &RecipientPeer, host: &str, port: u16, more: &str) {
        let id = &self.facts.donor.system_identifier;
        let more = format!(" --host {} --port {port} --system-identifier {id}{more}", quote(host));
        self.line(&Book::verb(peer, "receive", &more));
    }

    pub(super) fn catch_up(&mut self) {
        self.wait_for("the first peer is nearly level", "t", "near");
    }

    fn stop_donor(&mut self) {
        self.line(NOT_CLOSED);
        if !self.by_snapshots() {
            self.line("if donor_runs; then");
            self.soon("the first peer streams", "1", &ask("peer1", STREAMS));
            self.line("    donor checkpoint");
            self.catch_up();
            self.line("fi");
        } else {
            self.line("if donor_runs; then donor checkpoint; level; fi");
        }
        match self.kind() {
            DonorKind::Patroni => self.check_held(),
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => self.check_no_failover(),
            DonorKind::Postgres => {}
        }
        self.note("From here on clients have no database until the shard is open.");
        let donor = self.donor();
        self.tell_donor(&[Order::Disable]);
        if self.kind() == DonorKind::Patroni {
            self.note("In a pause it leaves the server running.");
            self.tell_donor(&[Order::Stop]);
        }
        self.halt(donor);
        match self.kind() {
            DonorKind::Patroni => self.check_patroni_gone(),
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => self.wait_unregistered(),
            DonorKind::Postgres => {}
        }
        self.line("stopped=$(donor_control)");
        self.check(
            "the donor was shut down in an orderly way",
            "yes",
            "if donor_runs; then echo 'it runs'; else orderly \"$stopped\"; fi",
        );
    }

    fn fence_donor(&mut self) {
        let donor = self.donor();
        self.line("! donor_runs || stop 'the donor runs: it is to be stopped first'");
        if let Some(shard) = &donor.manatee {
            self.fence_sitter(&donor.host, &shard.sitter);
        }
        self.close(donor, "");
        self.check("the donor is stopped and closed", "yes", "shut");
    }

    /// Closes a server that does not run, or is closed, with these settings beside it.
    pub(super) fn close(&mut self, server: &DonorConfig, more: &str) {
        let path = |name: &str| format!("{}/{name}", server.data_dir);
        let superuser = format!("\"{}\"", server.superuser.replace('"', "\"\""));
        self.note("Whoever starts it by mistake starts a standby that lets nobody in.");
        self.line(&Book::at(server, &format!(": >{}", quote(&path(STANDBY_SIGNAL)))));
        self.give(
            server,
            &format!("cat >{}", quote(&path(HBA))),
            &plain(&format!("local all {superuser} peer map=manatee")),
        );
        self.give(
            server,
            &format!("cat >{}", quote(&path(IDENT))),
            &plain(&format!("manatee {} {superuser}", server.os_user)),
        );
        let (hba, ident) = (value(&path(HBA)), value(&path(IDENT)));
        let files = plain(&format!("{BEGIN}\nhba_file = {hba}\nident_file = {ident}\n"));
        self.set(server, &format!("{files}{more}{END}"));
    }

    /// Puts this block at the end of its settings: of those that are given twice the last one counts.
    pub(super) fn set(&mut self, server: &DonorConfig, block: &str) {
        let auto = format!("{}/{AUTO_CONF}", server.data_dir);
        let script = format!("{} && cat >>{}", without_block(&auto), quote(&auto));
        self.give(server, &script, block);
    }

    /// A script that lets all others in again.
    pub(super) fn let_in(server: &DonorConfig, more: &[&str]) -> String {
        let auto = format!("{}/{AUTO_CONF}", server.data_dir);
        format!("{} && {}", without_block(&auto), Book::without_files(server, more))
    }

    /// A script that removes the files that keep them out; the one that says that they do is the last.
    pub(super) fn without_files(server: &DonorConfig, more: &[&str]) -> String {
        let files = [more, &[IDENT, LOG]].concat();
        let path = |name: &&str| format!(" {}", quote(&format!("{}/{name}", server.data_dir)));
        let files: String = files.iter().map(path).collect();
        format!("rm -f{files} && rm -f{}", path(&HBA))
    }

    fn compare(&mut self) {
        self.note("Which database, its timeline, its last checkpoint, its state.");
        self.line("stopped=${stopped-$(donor_control)}");
        self.line("checkpoint=$(position \"$stopped\")");
        if self.by_snapshots() {
            self.note("Nothing has run on the copy: it is what the donor is, or it is none of it.");
            self.line("check 'the donor is as it was stopped' \"$stopped\" \"$(donor_control)\"");
            self.line("check 'the copy is what the donor is' \"$stopped\" \"$(peer1_control)\"");
            return;
        }
        self.soon(
            "the first peer has all that the donor wrote",
            "t",
            "peer1 \"select pg_last_wal_replay_lsn() > '$checkpoint'\"",
        );
        self.line(&ask("peer1", "checkpoint"));
        self.note("Their states differ.");
        self.line("check 'the donor is as it was stopped' \"$(same \"$stopped\")\" \"$(same \"$(donor_control)\")\"");
        self.line("check 'the copy is what the donor is' \"$(same \"$stopped\")\" \"$(same \"$(peer1_control)\")\"");
    }

    fn open_recipient(&mut self) {
        let (first, facts) = self.first();
        self.note("The last look before somebody else takes writes.");
        self.check("the donor is stopped and closed", "yes", "shut");
        match self.kind() {
            DonorKind::Patroni => self.check_held(),
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => self.check_shut_shard(),
            DonorKind::Postgres => {}
        }
        self.line("checkpoint=${checkpoint-$(position \"$(donor_control)\")}");
        let (id, timeline) = (&self.facts.id, self.facts.donor.timeline);
        let (program, config) = (quote(&first.manatee), quote(&first.config));
        let declare = format!(
            "{program} transplant peer declare --config {config} --id {id} --timeline {timeline} --wal"
        );
        self.line(&on_with(&first.host, &declare, "$checkpoint"));
        self.tell_peer(first, &[Order::Enable, Order::Start]);
        self.soon(&format!("{} takes writes", facts.peer.zone_id), "t", &ask("peer1", SERVES));
    }

    /// What is sorted in another way now is made anew, when the donor would get the WAL of that.
    fn sort_anew(&mut self) {
        let (first, _) = self.first();
        for command in &self.facts.after_opening {
            self.line(&on(&first.host, None, command));
        }
    }

    fn grow(&mut self) {
        let (first, from) = self.first();
        self.line(&format!(
            "chain() {{ case $({}) in *\"\\\"$1\\\"\"*) echo yes ;; *) echo no ;; esac; }}",
            Book::adm(first, "zk-state")
        ));
        for (n, peer, facts) in self.peers().skip(1) {
            let name = &facts.peer.zone_id;
            if n == 2 {
                self.note("It becomes the sync, and nothing is acknowledged until it streams: so it is copied first.");
                let runs = Book::verb(peer, "facts", "");
                self.line(&format!("facts=$({runs})"));
                self.line("case $(frozen)$facts in yes*'\"sitterRuns\":false'*)");
                self.copy(peer, &from.peer.ip, from.port, "");
                self.line("    ;;\nesac");
            }
            self.tell_peer(peer, &[Order::Enable, Order::Start]);
            if n == 2 {
                let unfreeze = Book::adm(first, "unfreeze");
                self.line(&format!("if [ \"$(frozen)\" = yes ]; then {unfreeze}; fi"));
            }
            let id = quote(&facts.peer.id.to_string());
            self.wait_for(&format!("{name} is in the chain"), "yes", &format!("chain {id}"));
            self.wait_for(&format!("{name} streams"), "1", &ask(&format!("peer{n}"), STREAMS));
        }
        self.soon("the shard takes writes", "t", &ask("peer1", SERVES));
    }

    /// Starts the donor as a standby of the peer `from`, closed as it is, and waits until it streams.
    pub(super) fn follow_back(&mut self) {
        let (first, _) = self.first();
        self.line("keep \"peer$from\"");
        self.note(
            "Settings of which the donor needs at least as much as the primary to follow it.",
        );
        self.line(&format!("least=$({})", ask("primary", &least_sql())));
        self.note(
            "The password as it stands in primary_conninfo, which stands in a file of settings.",
        );
        self.line(&format!("password=$({})", Book::verb(first, "secret", " --raw")));
        self.line(ESCAPED);
        self.line("address=$(address_set)");
        let conninfo = format!(
            "primary_conninfo = '$address password=''$password'' application_name={SLOT}'\n\
             primary_slot_name = {}\nrecovery_target_timeline = 'latest'\nhot_standby = on\n$least\n",
            value(SLOT)
        );
        self.close(self.donor(), &conninfo);
        self.line(&format!("if donor_runs; then {}; fi", ask("donor", "select pg_reload_conf()")));
        self.start_closed();
        self.soon("the donor follows the shard", "1", &ask("donor", STREAMS));
    }

    fn level_donor(&mut self) {
        let names: Vec<String> = self.peers().map(|(n, ..)| format!("peer{n}")).collect();
        let names = names.join(" ");
        self.line(&format!("for peer in {names}; do keep \"$peer\"; done"));
        self.check("one of the shard serves", "yes", "one_serves");
        self.line("from=$(serving)");
        self.line(&format!("kept=$({})", ask("primary", "select pg_current_wal_lsn()")));
        self.follow_back();
        self.wait_for(
            "the donor has what the peers do not keep for it",
            "t",
            "donor \"select pg_last_wal_replay_lsn() >= '$kept'\"",
        );
        self.line(&ask("donor", "checkpoint"));
        let donor = self.donor();
        self.halt(donor);
        self.close(donor, "$least\n");
        self.check("the donor is stopped and closed", "yes", "shut");
        self.note("What the donor has and no other peer would be a branch of its own if the primary were lost.");
        self.line(&format!("written=$({})", ask("primary", "select pg_current_wal_lsn()")));
        self.line("level_with() { \"$1\" \"select coalesce(pg_last_wal_replay_lsn() >= '$written', true)\"; }");
        self.line(&format!("for peer in {names}; do"));
        self.line("    [ \"$peer\" = \"peer$from\" ] || await \"$long\" \"$peer has all that the donor has\" t level_with \"$peer\"");
        self.line("done");
    }

    /// What is typed when nobody wants to go back any more.
    pub(super) fn end(&mut self) {
        self.note(
            "When you are sure, give up the way back: remove the donor, and say on each peer",
        );
        self.note(&format!("select pg_drop_replication_slot('{SLOT}')"));
        if self.by_snapshots() {
            self.forget_snapshots();
        }
    }
}
