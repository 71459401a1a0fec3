//! What is typed to undo it all.

use super::{
    Book,
    forward::{ask, without_block},
};
use crate::{
    donor::{AUTO_CONF, STANDBY_SIGNAL, literal},
    steps::{HBA, IDENT},
};
use adapters::service::{Order, quote};

impl Book<'_> {
    /// From a shard that serves, whole or alone, to the donor that serves.
    pub(super) fn way_back(&mut self) {
        self.note("");
        self.note("For a shard whose primary is still its first peer. Where another is, or a host is gone, use");
        self.note("`manatee transplant rollback`.");
        let peers = self.peers();
        let (first, _) = &peers[0];
        self.section("1", "the donor takes what the shard wrote, while that goes on");
        self.note("If the shard was never opened, begin with section 3.");
        let id = &self.facts.id;
        let state = format!(
            "{} | grep -q {} && echo yes || echo no",
            Book::adm(first, "zk-state"),
            quote(id)
        );
        self.check("the shard is the one of this runbook", "yes", &state);
        self.line(&format!(
            "{} | grep -q '\"freeze\"' || {}",
            Book::adm(first, "zk-state"),
            Book::adm(first, "freeze --reason 'rolled back by hand'")
        ));
        self.follow_back();
        let limit = self.facts.inventory.limits.lag_bytes;
        self.line(&format!(
            "near() {{ donor \"select pg_last_wal_replay_lsn() + {limit} >= '$({})'\"; }}",
            ask("peer1", "select pg_current_wal_lsn()")
        ));
        self.wait_for("the donor is nearly level", "t", "near");
        self.section(
            "2",
            "the shard is stopped, its primary last; the donor has all of it, and is promoted",
        );
        self.note("From here on clients have no database until the donor is open.");
        for (peer, _) in peers.iter().skip(1).chain(peers.first()) {
            self.tell_peer(peer, &[Order::Disable, Order::Stop]);
        }
        self.line("stopped=$(peer1_control)");
        let orderly =
            "case $stopped in *'shut down ') echo yes ;; *) echo \"no: $stopped\" ;; esac";
        self.check("the primary was shut down in an orderly way", "yes", orderly);
        self.line("checkpoint=$(echo \"$stopped\" | grep -o '[0-9A-F]*/[0-9A-F]*')");
        self.wait_for(
            "the donor has all that the shard wrote",
            "t",
            "donor \"select pg_last_wal_replay_lsn() > '$checkpoint'\"",
        );
        self.line(&ask("donor", "checkpoint"));
        let same =
            "echo \"$1\" | sed 's/in archive recovery\\|shut down in recovery\\|shut down//'";
        self.line(&format!("same() {{ {same}; }}"));
        self.line("check 'the donor is what the shard was' \"$(same \"$stopped\")\" \"$(same \"$(donor_control)\")\"");
        self.line(&Book::verb(first, "retract", &format!(" --id {id}")));
        self.check("the donor is promoted", "t", &ask("donor", "select pg_promote(true, 60)"));

        self.section("3", "the donor is opened");
        self.tell_donor(&[Order::Stop]);
        let data = self.donor().data_dir.clone();
        let path = |name: &str| quote(&format!("{data}/{name}"));
        let open = format!(
            "{} && rm -f {} {} {}",
            without_block(&format!("{data}/{AUTO_CONF}")),
            path(STANDBY_SIGNAL),
            path(HBA),
            path(IDENT)
        );
        let open = self.at_donor(&open);
        self.line(&open);
        self.tell_donor(&[Order::Enable, Order::Start]);
        self.check("the donor takes writes", "f", &ask("donor", "select pg_is_in_recovery()"));

        self.section(
            "4",
            "what let the first peer stream from the donor is removed; its copy is kept aside",
        );
        for (peer, _) in &peers {
            self.line(&Book::verb(peer, "discard", ""));
        }
        let (_, facts) = &peers[0];
        let (slot, name) = (literal(&facts.slot), literal(&facts.replication_user));
        self.wait_for(
            "nobody streams from the donor by that slot",
            "0",
            &ask(
                "donor",
                &format!(
                    "select count(*) from pg_replication_slots where slot_name = {slot} and active"
                ),
            ),
        );
        let drop = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = {slot}"
        );
        self.line(&ask("donor", &drop));
        self.note(&format!("The role {name} is left: drop it if it was made for this."));
        let script = without_block(&self.facts.donor.hba_file);
        let hba = self.at_donor(&script);
        self.line(&hba);
        self.line(&ask("donor", "select pg_reload_conf()"));
    }
}
