//! A donor that is a shard of Manatee: who of it is there, and its sitters' files.

use super::{Book, ask, fed, on, plain};
use crate::{
    DonorKind, DonorStandby,
    manatee::{ASIDE, NOTICE, entry},
    steps::DONORS_SLOT,
};
use adapters::service::{Host, Order, quote};
use cluster::PeerIdent;

/// Who is registered, in order, and what of the cluster state tells a takeover.
const FUNCTIONS: &str = r#"registered() {
    active=$(donor_adm zk-active) || { echo 'no answer'; return; }
    printf '%s\n' "$active" | sed -n 's/^ *"id": "\(.*\)",*$/\1/p'
}
first_registration() { donor_adm zk-active | sed -n 's/^ *"sequence": \([0-9]*\),*$/\1/p' | head -n 1; }
is_registered() { if registered | grep -qxF -e "$1" -e 'no answer'; then echo yes; else echo no; fi; }
donor_state() { donor_adm zk-state | tr -d ' \n'; }
generation() { donor_state | sed 's/.*"generation":\([0-9]*\).*/\1/'; }
donor_frozen() {
    state=$(donor_state)
    case $state in *'"freeze":{'* | *'"freeze":true'*) echo yes ;; *'"generation"'*) echo no ;; *) echo 'no answer' ;; esac
}
"#;

impl Book<'_> {
    fn is_first_version(&self) -> bool {
        self.kind() == DonorKind::ManateeV1
    }

    /// The id of the donor's primary.
    fn donors_id(&self) -> String {
        let shard = self.facts.shard.as_ref();
        let primary = shard.and_then(|shard| shard.primary.as_ref());
        primary.map_or_else(String::new, |peer| peer.id.to_string())
    }

    /// The donor's other peers in the order of its chain.
    fn other_peers(&self) -> Vec<(PeerIdent, DonorStandby)> {
        let donor = self.donor();
        let others = self.facts.shard.iter().flat_map(|shard| &shard.others);
        others.filter_map(|peer| Some((peer.clone(), entry(donor, peer)?.clone()))).collect()
    }

    pub(super) fn shard_head(&mut self) {
        let Some(shard) = &self.donor().manatee else { return };
        self.note("What the donor's peers have said of themselves where they meet.");
        let access = shard.access.as_ref();
        let access = access.map(|file| format!(" --config {}", quote(file))).unwrap_or_default();
        self.line(&format!(
            "donor_adm() {{ {} adm{access} --coordination {} --shard {} \"$@\"; }}",
            quote(self.program),
            quote(&shard.coordination),
            quote(&shard.shard)
        ));
        self.line(FUNCTIONS.trim_end());
    }

    /// Why the donor is frozen, without blanks as it is looked for.
    fn reason(&self) -> String {
        format!("transplant {}: its database is moved to another shard", self.facts.id)
    }

    pub(super) fn freeze_donor(&mut self) {
        let freeze = format!("donor_adm freeze --reason {}", quote(&self.reason()));
        self.line(&format!("if [ \"$(donor_frozen)\" = no ]; then {freeze}; fi"));
        self.check_no_failover();
    }

    /// That nobody has taken over since the plan was made, nor can.
    pub(super) fn check_no_failover(&mut self) {
        let Some(shard) = &self.facts.shard else { return };
        if let Some(generation) = shard.generation {
            self.check("the donor is frozen", "yes", "donor_frozen");
            self.check("the donor has not failed over", &generation.to_string(), "generation");
            return;
        }
        self.note("Of the first version: the first of the order serves; one that has registered anew was not always it.");
        self.line("if donor_runs; then");
        let registration = shard.registration.map_or_else(String::new, |number| number.to_string());
        self.check("the donor has not failed over", &self.donors_id(), "registered | head -n 1");
        self.check("the donor was the first all the time", &registration, "first_registration");
        self.line("fi");
    }

    pub(super) fn wait_unregistered(&mut self) {
        let id = quote(&self.donors_id());
        self.soon("the donor's sitter has gone", "no", &format!("is_registered {id}"));
    }

    /// Keeps a sitter's file aside, and says so in its place.
    pub(super) fn fence_sitter(&mut self, host: &Host, file: &str) {
        let aside = format!("{file}{ASIDE}");
        let (path, kept, new) = (quote(file), quote(&aside), quote(&format!("{file}.new")));
        let notice = quote(&format!("^{NOTICE}"));
        let put_back = quote(&format!("STOP: somebody put back {file}"));
        let script = format!(
            "if [ -e {kept} ]; then [ ! -e {path} ] || grep -q {notice} {path} || {{ echo {put_back} >&2; exit 1; }}; \
             else mv {path} {kept}; fi && cp -p {kept} {new} && cat >{new} && mv {new} {path}"
        );
        self.note("Its sitter would open it; without its file it does not run.");
        let command = fed(host, None, &format!("sh -c {}", quote(&script)));
        let text = format!(
            "{NOTICE} its database is in shard {:?} now. Its file is kept as {aside}; part two of the runbook puts \
             it back.",
            self.first().1.shard
        );
        self.line(&format!("{command} <<END\n{}\nEND", plain(&text)));
    }

    fn unfence_sitter(&mut self, host: &Host, file: &str) {
        let kept = quote(&format!("{file}{ASIDE}"));
        let script = format!("if [ -e {kept} ]; then mv -f {kept} {}; fi", quote(file));
        self.line(&on(host, None, &script));
    }

    pub(super) fn stop_other_peers(&mut self) {
        self.note("The tail of the chain first: whoever is before it notices nothing.");
        for (peer, standby) in self.other_peers().into_iter().rev() {
            self.note(&format!("{} ({}).", peer.zone_id, peer.id));
            self.check_no_failover();
            self.tell(&standby.host, &standby.service, &[Order::Disable, Order::Stop]);
            if let Some(file) = &standby.sitter {
                self.fence_sitter(&standby.host, file);
            }
        }
        for (peer, _) in self.other_peers() {
            self.soon(
                &format!("{} has gone", peer.zone_id),
                "no",
                &format!("is_registered {}", quote(peer.id.as_str())),
            );
        }
        if self.is_first_version() {
            self.soon("nobody else is there", &self.donors_id(), "registered");
            self.check_no_failover();
            self.note("Without a sync its primary closes, for which its server is started anew.");
            self.soon(
                "the donor takes no writes",
                "on",
                &ask("donor", "show default_transaction_read_only"),
            );
            if !self.by_snapshots() {
                self.soon("the first peer streams", "1", &ask("peer1", super::forward::STREAMS));
            }
        } else {
            self.soon("nobody is there", "", "registered");
            self.check_no_failover();
        }
    }

    /// That no peer of the donor can open it.
    pub(super) fn check_shut_shard(&mut self) {
        let donor = self.donor();
        let primary = donor.manatee.iter().map(|shard| (&donor.host, shard.sitter.clone()));
        let others = donor.standbys.iter();
        let others = others.filter_map(|one| Some((&one.host, one.sitter.clone()?)));
        for (host, file) in primary.chain(others) {
            let script = format!(
                "if grep -q {} {}; then echo yes; else echo no; fi",
                quote(&format!("^{NOTICE}")),
                quote(&file)
            );
            self.check(&format!("{file} on {host} is kept aside"), "yes", &on(host, None, &script));
        }
        self.check("nobody of the donor is there", "", "registered");
        if !self.is_first_version() {
            self.check_no_failover();
        }
    }

    /// That what is undone is still the donor.
    pub(super) fn check_donors_place(&mut self) {
        let Some(shard) = &self.facts.shard else { return };
        self.note("If it has failed over, its own peers serve on without it: then nothing comes back, and only section 5 is");
        self.note(&format!(
            "left, without what it says to the donor; its slot is called {DONORS_SLOT}."
        ));
        match shard.generation {
            Some(generation) => {
                self.check("the donor has not failed over", &generation.to_string(), "generation");
            }
            None => {
                let id = quote(&self.donors_id());
                self.line(&format!("leads=$(registered | head -n 1)\ncase $leads in '' | {id}) ;; *) stop \"the donor has failed over: $leads\" ;; esac"));
            }
        }
    }

    fn start_other_peers(&mut self) {
        for (peer, standby) in self.other_peers() {
            self.note(&format!("{} ({}).", peer.zone_id, peer.id));
            if let Some(file) = &standby.sitter {
                self.unfence_sitter(&standby.host, file);
            }
            self.tell(&standby.host, &standby.service, &[Order::Enable, Order::Start]);
            // In the first version they stand in the order in which they come.
            self.soon(
                &format!("{} is there", peer.zone_id),
                "yes",
                &format!("is_registered {}", quote(peer.id.as_str())),
            );
        }
    }

    /// Gives the donor, which is open, to its sitter again, and its peers to theirs.
    pub(super) fn start_shard(&mut self) {
        let donor = self.donor();
        if let Some(shard) = &donor.manatee {
            self.unfence_sitter(&donor.host, &shard.sitter);
        }
        if self.is_first_version() {
            self.tell_donor(&[Order::Enable, Order::Start]);
            self.soon("the donor is the first again", &self.donors_id(), "registered | head -n 1");
            self.start_other_peers();
        } else {
            self.start_other_peers();
            self.tell_donor(&[Order::Enable, Order::Start]);
        }
        self.note("Its sync may have to be copied first.");
        self.wait_for("the donor takes writes", "t", &ask("donor", super::forward::SERVES));
    }

    pub(super) fn unfreeze_donor(&mut self) {
        self.section("6", "the donor is unfrozen, if it was not frozen before");
        let ours = self.reason().replace(' ', "");
        self.line(&format!(
            "case $(donor_state) in *{}*) donor_adm unfreeze ;; esac",
            quote(&ours)
        ));
    }
}
