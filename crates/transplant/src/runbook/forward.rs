//! What is typed for each step.

use super::{Book, on};
use crate::{
    RecipientPeer,
    donor::{AUTO_CONF, BEGIN, END, STANDBY_SIGNAL, literal, value},
    recipient::REPLICATED,
    steps::{self, HBA, IDENT, SLOT},
};
use adapters::service::{Order, quote};

/// What a server says that streams from another.
pub(super) const STREAMS: &str =
    "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
/// What a server says that takes writes.
pub(super) const SERVES: &str =
    "select not pg_is_in_recovery() and current_setting('default_transaction_read_only') = 'off'";

/// A statement for a function of the runbook, as well to be read as its quotes allow.
pub(super) fn ask(who: &str, sql: &str) -> String {
    let plain = sql.contains('\'') && !sql.contains(['"', '$', '`', '\\']);
    if plain { format!("{who} \"{sql}\"") } else { format!("{who} {}", quote(sql)) }
}

/// A script that takes our block out of a file.
pub(super) fn without_block(path: &str) -> String {
    format!("sed -i '/^{BEGIN}/,/^{END}/d' {}", quote(path))
}

impl Book<'_> {
    /// Writes down a step; whether it is known here.
    pub(super) fn step(&mut self, id: &str) -> bool {
        match id {
            steps::OPEN_REPLICATION => self.open_replication(),
            steps::RECEIVE => self.receive(),
            steps::CATCH_UP => self.catch_up(),
            steps::STOP_DONOR => self.stop_donor(),
            steps::FENCE_DONOR => self.fence_donor(""),
            steps::COMPARE => self.compare(),
            steps::OPEN_RECIPIENT => self.open_recipient(),
            steps::KEEP_WAY_BACK => {
                self.make_slot(1);
                self.sort_anew();
            }
            steps::CHECK_CLIENTS => {
                for client in &self.facts.inventory.clients {
                    self.line(&on(&client.host, None, &client.command));
                    self.line(&format!("echo {}", quote(&format!("ok: client {}", client.name))));
                }
            }
            steps::GROW => self.grow(),
            steps::LEVEL_DONOR => self.level_donor(),
            _ => return false,
        }
        true
    }

    fn open_replication(&mut self) {
        let (first, facts) = self.peers().swap_remove(0);
        self.note("The password of the shard's replication role, as its sitter's file has it.");
        self.line(&format!(
            "password=$({} | sed \"s/'/''/g\")",
            Book::verb(&first, "secret", " --raw")
        ));
        let role = format!("\"{}\"", facts.replication_user.replace('"', "\"\""));
        let (name, slot) = (literal(&facts.replication_user), literal(&facts.slot));
        self.line(&format!(
            "[ -n \"$({})\" ] || donor {}\"'$password'\"",
            ask("donor", &format!("select 1 from pg_roles where rolname = {name}")),
            quote(&format!("create role {role} with login replication password "))
        ));
        let made = format!(
            "select pg_create_physical_replication_slot({slot}, true) where not exists \
             (select from pg_replication_slots where slot_name = {slot})"
        );
        self.line(&ask("donor", &made));
        let lines: String = self
            .peers()
            .iter()
            .map(|(_, facts)| {
                let ip = &facts.peer.ip;
                let bits = if ip.contains(':') { 128 } else { 32 };
                format!("host replication {role} {ip}/{bits} scram-sha-256\n")
            })
            .collect();
        let hba = quote(&self.facts.donor.hba_file);
        self.note("The first lines of pg_hba.conf: the first that fits is the one that counts.");
        self.give_donor(
            &format!(
                "{} && cp -p {hba} {hba}.before && cat - {hba}.before >{hba}",
                without_block(&self.facts.donor.hba_file)
            ),
            &format!("{BEGIN}\n{lines}{END}"),
        );
        self.line(&ask("donor", "select pg_reload_conf()"));
        let wrong = ask("donor", "select count(*) from pg_hba_file_rules where error is not null");
        self.check("pg_hba.conf is one that the server takes", "0", &wrong);
    }

    fn receive(&mut self) {
        let donor = self.donor();
        let (host, port) = (donor.address.clone(), donor.port);
        let (first, _) = self.peers().swap_remove(0);
        self.copy(&first, &host, port);
        self.wait_for("the first peer streams", "1", &ask("peer1", STREAMS));
    }

    fn copy(&mut self, peer: &RecipientPeer, host: &str, port: u16) {
        let id = &self.facts.donor.system_identifier;
        let more = format!(" --host {} --port {port} --system-identifier {id}", quote(host));
        self.line(&Book::verb(peer, "receive", &more));
    }

    fn catch_up(&mut self) {
        let limit = self.facts.inventory.limits.lag_bytes;
        self.line(&format!(
            "near() {{ peer1 \"select pg_last_wal_replay_lsn() + {limit} >= '$({})'\"; }}",
            ask("donor", "select pg_current_wal_lsn()")
        ));
        self.wait_for("the first peer is nearly level", "t", "near");
    }

    fn stop_donor(&mut self) {
        self.line(&ask("donor", "checkpoint"));
        self.note("From here on clients have no database until the shard is open.");
        self.tell_donor(&[Order::Disable, Order::Stop]);
        self.line("stopped=$(donor_control)");
        let state = "case $stopped in *'shut down ') echo yes ;; *) echo \"no: $stopped\" ;; esac";
        self.check("the donor was shut down in an orderly way", "yes", state);
    }

    /// Closes the donor, with these settings beside it.
    pub(super) fn fence_donor(&mut self, more: &str) {
        let donor = self.donor().clone();
        let path = |name: &str| format!("{}/{name}", donor.data_dir);
        let superuser = format!("\"{}\"", donor.superuser.replace('"', "\"\""));
        self.note("Whoever starts it by mistake starts a standby that lets nobody in.");
        let signal = self.at_donor(&format!(": >{}", quote(&path(STANDBY_SIGNAL))));
        self.line(&signal);
        self.give_donor(
            &format!("cat >{}", quote(&path(HBA))),
            &format!("local all {superuser} peer map=manatee"),
        );
        self.give_donor(
            &format!("cat >{}", quote(&path(IDENT))),
            &format!("manatee {} {superuser}", donor.os_user),
        );
        let auto = path(AUTO_CONF);
        self.give_donor(
            &format!("{} && cat >>{}", without_block(&auto), quote(&auto)),
            &format!(
                "{BEGIN}\nhba_file = {}\nident_file = {}\n{more}{END}",
                value(&path(HBA)),
                value(&path(IDENT))
            ),
        );
    }

    fn compare(&mut self) {
        self.line("checkpoint=$(echo \"$stopped\" | grep -o '[0-9A-F]*/[0-9A-F]*')");
        self.wait_for(
            "the first peer has all that the donor wrote",
            "t",
            "peer1 \"select pg_last_wal_replay_lsn() > '$checkpoint'\"",
        );
        self.line(&ask("peer1", "checkpoint"));
        self.note("Which database, its timeline, its last checkpoint; their states differ.");
        let same =
            "echo \"$1\" | sed 's/in archive recovery\\|shut down in recovery\\|shut down//'";
        self.line(&format!("same() {{ {same}; }}"));
        self.line("check 'the donor is as it was stopped' \"$stopped\" \"$(donor_control)\"");
        self.line("check 'the copy is what the donor is' \"$(same \"$stopped\")\" \"$(same \"$(peer1_control)\")\"");
    }

    fn open_recipient(&mut self) {
        let (first, _) = self.peers().swap_remove(0);
        let (id, timeline) = (&self.facts.id, self.facts.donor.timeline);
        let declared =
            Book::verb(&first, "declare", &format!(" --id {id} --timeline {timeline} --wal "));
        // The position is known to this shell, and has no character that another one could take for its own.
        let declared = match declared.strip_suffix('\'') {
            Some(open) => format!("{open}'\"$checkpoint\""),
            None => format!("{declared}\"$checkpoint\""),
        };
        self.line(&declared);
        self.tell_peer(&first, &[Order::Enable, Order::Start]);
        self.wait_for("the shard takes writes", "t", &ask("peer1", SERVES));
    }

    /// What is sorted in another way now is made anew, when the donor would get the WAL of that.
    fn sort_anew(&mut self) {
        let (first, _) = self.peers().swap_remove(0);
        for command in &self.facts.after_opening {
            self.line(&on(&first.host, None, command));
        }
    }

    /// Makes this peer keep what the donor would need.
    fn make_slot(&mut self, number: usize) {
        let slot = literal(SLOT);
        let made = format!(
            "select pg_create_physical_replication_slot({slot}, true) where not exists \
             (select from pg_replication_slots where slot_name = {slot})"
        );
        self.line(&ask(&format!("peer{number}"), &made));
    }

    fn grow(&mut self) {
        let peers = self.peers();
        let (first, from) = &peers[0];
        let state = Book::adm(first, "zk-state");
        self.line(&format!(
            "chain() {{ if {state} | grep -q \"\\\"$1\\\"\"; then echo yes; fi; }}"
        ));
        for (n, (peer, facts)) in peers.iter().enumerate().skip(1) {
            let name = &facts.peer.zone_id;
            if n == 1 {
                self.note("It becomes the sync, and nothing is acknowledged until it streams: so it is copied first.");
                self.copy(peer, &from.peer.ip, from.port);
            }
            self.tell_peer(peer, &[Order::Enable, Order::Start]);
            if n == 1 {
                self.line(&Book::adm(first, "unfreeze"));
            }
            let id = quote(&facts.peer.id.to_string());
            self.wait_for(&format!("{name} is in the chain"), "yes", &format!("chain {id}"));
            self.wait_for(
                &format!("{name} streams"),
                "1",
                &ask(&format!("peer{}", n + 1), STREAMS),
            );
        }
        self.wait_for("the shard takes writes", "t", &ask("peer1", SERVES));
    }

    /// Settings of which the donor needs at least as much as the primary to follow it, into a variable.
    pub(super) fn least(&mut self) {
        let names: Vec<String> = REPLICATED.iter().map(|(name, _)| literal(name)).collect();
        let least = format!(
            "select name || ' = ' || setting from pg_settings where name in ({})",
            names.join(", ")
        );
        self.line(&format!("least=$({})", ask("peer1", &least)));
    }

    /// Starts the donor as a standby of the first peer, closed as it is, and waits until it streams.
    pub(super) fn follow_back(&mut self) {
        let (first, facts) = self.peers().swap_remove(0);
        self.least();
        self.note(
            "The password as it stands in primary_conninfo, which stands in a file of settings.",
        );
        self.line(&format!(
            "password=$({} | sed -e 's/[\\\\'\\'']/\\\\&/g' | sed -e 's/\\\\/\\\\\\\\/g' -e \"s/'/''/g\")",
            Book::verb(&first, "secret", " --raw")
        ));
        let conninfo = format!(
            "primary_conninfo = 'host={} port={} user={} password=''$password'' application_name={SLOT}'\n\
             primary_slot_name = {}\nrecovery_target_timeline = 'latest'\n$least\n",
            facts.peer.ip,
            facts.port,
            facts.replication_user,
            value(SLOT)
        );
        self.fence_donor(&conninfo);
        self.tell_donor(&[Order::Start]);
        self.wait_for("the donor follows the shard", "1", &ask("donor", STREAMS));
    }

    fn level_donor(&mut self) {
        for n in 1..=self.peers().len() {
            self.make_slot(n);
        }
        self.line(&format!("kept=$({})", ask("peer1", "select pg_current_wal_lsn()")));
        self.follow_back();
        self.wait_for(
            "the donor has what the peers do not keep for it",
            "t",
            "donor \"select pg_last_wal_replay_lsn() >= '$kept'\"",
        );
        self.line(&ask("donor", "checkpoint"));
        self.tell_donor(&[Order::Stop]);
        self.fence_donor("$least\n");
    }
}
