//! What is typed to undo it all, from wherever part one has ended.

use super::{Book, ask, fed};
use crate::{
    DonorKind,
    donor::STANDBY_SIGNAL,
    steps::{
        copy_back::{COPY, LOOK, PLACE, SETTLE},
        drop_slot_sql,
    },
};
use adapters::service::{Order, quote};

impl Book<'_> {
    /// To the donor that serves.
    pub(super) fn way_back(&mut self) {
        self.note("");
        self.note("From wherever part one has ended: each section does what there is to do, and nothing else. Where a host");
        self.note("is gone it stops; what cannot be done there can be left out only when its disks will not come back.");
        self.look_around();
        self.bring_level();
        self.drain();
        self.open_donor();
        self.clean();
        match self.kind() {
            DonorKind::Postgres | DonorKind::ManateeV1 => {}
            DonorKind::Patroni => self.resume_patroni(),
            DonorKind::ManateeV2 => self.unfreeze_donor(),
        }
        self.section("end", "everything is undone: the donor serves, as before");
        self.note("To move it again print a new runbook: this one knows the donor as it was.");
    }

    fn look_around(&mut self) {
        self.section("1", "what has become of it; the donor's standbys are started again");
        self.line("echo \"the shard is $(shard)\"");
        self.line("case $(shard)$discard_writes_of_shard in lost) stop \"the shard has no cluster state of this move, and may have opened: restore that, or put back what was changed in the sitters' files; or give up what it wrote (discard_writes_of_shard=yes)\" ;; esac");
        match self.kind() {
            DonorKind::Patroni => self.hold_patroni(),
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => self.check_donors_place(),
            DonorKind::Postgres => {}
        }
        if !self.kind().has_sitter() {
            self.start_standbys();
        }
    }

    /// The donor follows the shard, which goes on.
    fn bring_level(&mut self) {
        self.section("2", "the donor takes what the shard wrote, while that goes on");
        let (first, _) = self.first();
        self.note("Where what the shard wrote and the donor lacks is to be given up: say");
        self.note("discard_writes_of_shard=yes (or `discard_writes_of_shard=yes sh FILE back`).");
        self.line("shard=$(shard)");
        self.line("if [ \"$shard$discard_writes_of_shard\" = openyes ] || [ \"$shard$discard_writes_of_shard\" = lostyes ]; then");
        let freeze = Book::adm(first, "freeze --reason 'rolled back by hand'");
        self.line(&format!(
            "if [ \"$shard\" = open ] && [ \"$(frozen)\" = no ]; then {freeze}; fi"
        ));
        self.line("from=$(serving) since=$(position \"$(donor_control)\") lost='all that'");
        self.line("case $from in '' | [0-9]) ;; *) stop \"more than one serves: $from\" ;; esac");
        self.line("if [ -n \"$from\" ]; then lost=$(primary \"select pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), '$since')) || ' of WAL that'\"); fi");
        self.line("echo \"given up: $lost the shard wrote\"");
        self.line("from=${from:-none}");
        self.line("elif [ \"$shard\" = open ]; then");
        self.note(
            "So that its primary stays the primary; and whoever of it was stopped is started.",
        );
        let freeze = Book::adm(first, "freeze --reason 'rolled back by hand'");
        self.line(&format!("if [ \"$(frozen)\" = no ]; then {freeze}; fi"));
        self.line(&format!("state=$({})", Book::adm(first, "zk-state")));
        for (_, peer, facts) in self.peers() {
            let id = quote(&format!("\"{}\"", facts.peer.id));
            self.line(&format!("case $state in *{id}*)"));
            self.tell_peer(peer, &[Order::Start]);
            self.line("    ;;\nesac");
        }
        self.note("If nobody serves, because the primary is gone: unfreeze the shard, wait until another one is the primary, and");
        self.note("type this again.");
        self.soon("one of the shard serves", "yes", "one_serves");
        self.line("from=$(serving)");
        self.note("Where it does not come to follow, the shard may not have the WAL any more that the donor needs: the log of");
        self.note("the donor says so. Then say copy=yes (or `copy=yes sh FILE back`) and type this again: it is copied anew.");
        self.line("if [ \"${copy-}\" = yes ]; then");
        self.copy_back();
        self.line("fi");
        self.follow_back();
        let limit = self.facts.inventory.limits.lag_bytes;
        self.line(&format!(
            "behind() {{ donor \"select pg_wal_lsn_diff('$({})', pg_last_wal_replay_lsn()) <= {limit}\"; }}",
            ask("primary", "select pg_current_wal_lsn()")
        ));
        self.wait_for("the donor is nearly level", "t", "behind");
        self.line("fi");
    }

    /// Gives the donor a copy of what the shard has; the data directory that it had is kept aside.
    fn copy_back(&mut self) {
        let donor = self.donor();
        let data = quote(donor.data_dir.trim_end_matches('/'));
        let shell = |script: &str, args: &str| format!("sh -c {} sh {data}{args}", quote(script));
        let needed =
            "select (sum(pg_database_size(oid)) * 1.1)::bigint + 268435456 from pg_database";
        self.line(&format!("needed=$({})", ask("primary", needed)));
        let look = format!("IFS= read -r needed; {}", shell(LOOK, " \"$needed\""));
        let look = fed(&donor.host, Some(&donor.os_user), &look);
        self.check(
            "there is room for a second copy",
            "",
            &format!("printf '%s\\n' \"$needed\" | {look}"),
        );
        self.halt(donor);
        self.line(&ask("primary", &drop_slot_sql()));
        self.line("keep \"peer$from\"");
        let rate = self.facts.inventory.limits.rate_mib;
        let rate = rate.map_or_else(String::new, |rate| format!(" -r {rate}M"));
        let id = &self.facts.id;
        let args = format!(" {id} {} \"$from\"{rate}", quote(&donor.bin_dir));
        let copy = format!("IFS= read -r from; {}", shell(COPY, &args));
        let secret = Book::verb(self.first().0, "secret", " --raw");
        let copy = fed(&donor.host, Some(&donor.os_user), &copy);
        self.line(&format!("{{ address; {secret}; }} | {copy}"));
        self.note("Where the one that it had is kept:");
        self.line(&Book::at(donor, &shell(PLACE, &format!(" {id}"))));
        self.line("copy=");
    }

    /// The shard ends, with all that it wrote in the donor.
    fn drain(&mut self) {
        self.section("3", "the shard is stopped, its primary last; the donor has all of it");
        self.line("shard=$(shard)");
        self.line(
            "if [ \"$shard\" = open ] || [ \"$shard$discard_writes_of_shard\" = lostyes ]; then",
        );
        self.note("In a new shell begin with section 2: who serves is known from there.");
        self.line(": \"${from:?type section 2 first}\"");
        self.note("From here on clients have no database until the donor is open.");
        for (test, order) in [("!=", "the others"), ("=", "the primary")] {
            self.note(&format!("{order}:"));
            for (n, peer, _) in self.peers() {
                self.line(&format!("if [ \"$from\" {test} {n} ]; then"));
                self.tell_peer(peer, &[Order::Disable, Order::Stop]);
                self.note("Also where it was killed, and has left its server running.");
                self.line(&Book::verb(peer, "rest", ""));
                self.line("fi");
            }
        }
        self.line("if [ \"$discard_writes_of_shard\" != yes ]; then");
        self.line("ended=$(primary_control)");
        self.check("the primary was shut down in an orderly way", "yes", "orderly \"$ended\"");
        self.line("checkpoint=$(position \"$ended\")");
        self.soon(
            "the donor has all that the shard wrote",
            "t",
            "donor \"select pg_last_wal_replay_lsn() > '$checkpoint'\"",
        );
        self.line(&ask("donor", "checkpoint"));
        self.line("check 'the donor is what the shard was' \"$(same \"$ended\")\" \"$(same \"$(donor_control)\")\"");
        self.line("fi");
        self.note("From here on no sitter opens it any more.");
        let id = format!(" --id {}", self.facts.id);
        self.line(&Book::verb(self.first().0, "retract", &id));
        self.line("fi");
    }

    fn open_donor(&mut self) {
        self.section("4", "the donor is opened");
        self.line("case $(shard)$discard_writes_of_shard in\nclosed* | back*) ;;");
        self.line("lostyes) check 'nobody of the shard serves' '' \"$(serving)\" ;;");
        self.line("*) stop 'the shard is open, or does not answer: type the sections before this' ;;\nesac");
        let donor = self.donor();
        self.note("A copy of the shard that was not put in the donor's place is kept aside:");
        let data = quote(donor.data_dir.trim_end_matches('/'));
        let settle = format!("sh -c {} sh {data} {}", quote(SETTLE), self.facts.id);
        self.line(&Book::at(donor, &settle));
        self.line("if donor_is_closed; then");
        self.note("One that was started closed goes on on a timeline of its own.");
        self.line("if [ \"$(orderly \"$(donor_control)\")\" != yes ]; then");
        self.start_closed();
        self.line(&format!(
            "if [ \"$({})\" = t ]; then",
            ask("donor", "select pg_is_in_recovery()")
        ));
        self.check("the donor is promoted", "t", &ask("donor", "select pg_promote(true, 60)"));
        self.line("fi\nfi");
        self.halt(donor);
        self.check(
            "the donor was shut down in an orderly way",
            "yes",
            "if donor_runs; then echo 'it runs'; else orderly \"$(donor_control)\"; fi",
        );
        self.line(&Book::at(donor, &Book::let_in(donor, &[STANDBY_SIGNAL])));
        self.line("fi");
        match self.kind() {
            DonorKind::Postgres => {
                self.tell_donor(&[Order::Enable]);
                self.start_by_service(donor);
            }
            DonorKind::Patroni => {
                self.tell_donor(&[Order::Enable, Order::Start]);
                self.wake_donor();
            }
            DonorKind::ManateeV1 | DonorKind::ManateeV2 => self.start_shard(),
        }
        self.soon("the donor takes writes", "f", &ask("donor", "select pg_is_in_recovery()"));
    }

    fn clean(&mut self) {
        self.section("5", "what let the first peer have it is removed; a copy of it is kept aside");
        for (_, peer, _) in self.peers() {
            self.line(&Book::verb(peer, "discard", ""));
        }
        if self.by_snapshots() {
            self.clear_snapshots();
        }
        self.close_replication();
        if self.facts.inventory.backup.is_some() {
            self.note("The backup is kept; of one that was not proven this removes what is there.");
            self.settle_backup();
        }
        for command in &self.facts.after_opening {
            self.note(&format!("What is sorted in another way was made anew: for the donor, if the shard was open, too: {command}"));
        }
    }
}
