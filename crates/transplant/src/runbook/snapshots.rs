//! A donor's dataset that is sent by snapshots, by the program's own commands on both hosts.

use super::{Book, fed, on, on_with};
use adapters::service::quote;

/// Without the commands of both hosts. Names and tokens have nothing in them that is for a shell.
const FUNCTIONS: &str = r#"names() { tr '{' '\n' | sed -n 's/.*"name":"\([^"]*\)".*/\1/p'; }
guids() { tr '{' '\n' | sed -n 's/.*"guid":"\([^"]*\)".*/\1/p'; }
# Makes a snapshot of the donor's dataset and sends what the first peer lacks of it.
send() {
    came=$(incoming_look)
    accept=
    for feature in $(printf '%s\n' "$came" | sed 's/.*"features":\[\([^]]*\)\].*/\1/' | tr -d '"' | tr ',' ' '); do
        accept="$accept --accept $feature"
    done
    rest=$(printf '%s\n' "$came" | sed -n 's/.*"token":"\([^"]*\)".*/\1/p')
    if [ -n "$rest" ]; then
        # Where the last one broke off. If that cannot be, all of it goes again.
        to=$(snapshot_list | names | tail -n 1)
        snapshot_send "--to ${to:?} --token $rest$accept" | incoming_take || true
        incoming_abandon
        came=$(incoming_look)
    fi
    base=
    made=$(snapshot_list)
    for guid in $(printf '%s\n' "$made" | guids); do
        if printf '%s\n' "$came" | guids | grep -qxF -e "$guid"; then
            base=$(printf '%s\n' "$made" | tr '{' '\n' | grep -F "\"$guid\"" | names)
        fi
    done
    # What is there under this name else is of no use.
    if [ -z "$base" ]; then incoming_clear; fi
    if donor_runs; then donor checkpoint; fi
    new=$(snapshot_make)
    to=$(printf '%s\n' "$new" | names) guid=$(printf '%s\n' "$new" | guids)
    snapshot_send "--to ${to:?}${base:+ --from $base}$accept" | incoming_take
    check "snapshot $to has come" "${guid:?}" "$(incoming_look | guids | tail -n 1)"
}
# Again and again, until that takes no more than some seconds.
level() {
    begun=$(date +%s)
    last=$begun
    send
    while now=$(date +%s); [ "$((now - last))" -gt 10 ]; do
        [ "$((now - begun))" -le "$long" ] || stop "what changes meanwhile takes too long: wait for a time with less to do"
        last=$now
        send
    done
}
"#;

impl Book<'_> {
    fn snapshot(&self, verb: &str, more: &str) -> String {
        let donor = self.donor();
        let dataset = donor.dataset.as_ref();
        let (kind, name) =
            dataset.map_or(("", ""), |dataset| (dataset.kind.name(), dataset.name.as_str()));
        let command = format!(
            "{} transplant donor {verb} --kind {kind} --name {} --id {}",
            quote(&donor.program),
            quote(name),
            self.facts.id
        );
        match more {
            "" => on(&donor.host, None, &command),
            more => on_with(&donor.host, &command, more),
        }
    }

    pub(super) fn snapshots_head(&mut self) {
        self.note("Snapshots of the donor's dataset, and what comes of them to the first peer.");
        let (first, _) = self.first();
        let rate = self.facts.inventory.limits.rate_mib.map(|rate| rate << 20);
        let (rate, words) = match rate {
            // Of a donor that is stopped nobody is served worse by it.
            Some(rate) => {
                (format!("rate=; if donor_runs; then rate=' --rate {rate}'; fi; "), "$1$rate")
            }
            None => (String::new(), "$1"),
        };
        let take = format!(
            "{} transplant peer incoming take --config {}",
            quote(&first.manatee),
            quote(&first.config)
        );
        for (name, command) in [
            ("snapshot_make", self.snapshot("snapshot", "")),
            ("snapshot_list", self.snapshot("list", "")),
            ("snapshot_send", rate + &self.snapshot("send", words)),
            ("incoming_take", fed(&first.host, None, &take)),
            ("incoming_look", Book::verb(first, "incoming look", "")),
            ("incoming_abandon", Book::verb(first, "incoming abandon", "")),
            ("incoming_clear", Book::verb(first, "incoming clear", "")),
        ] {
            self.line(&format!("{name}() {{ {command}; }}"));
        }
        self.line(FUNCTIONS.trim_end());
    }

    pub(super) fn send_first(&mut self) {
        self.line("send");
    }

    pub(super) fn send_until_level(&mut self) {
        self.line("level");
    }

    /// Of the donor as it ended; nothing runs on the copy before all of it is in place.
    pub(super) fn send_last(&mut self) {
        let (first, donor) = (self.first().0, &self.facts.donor);
        self.check("the donor is stopped and closed", "yes", "shut");
        self.note("When it is in place, all of it has come.");
        self.line("if [ -n \"$(incoming_look | names)\" ] || [ -z \"$(peer1_control 2>/dev/null)\" ]; then send; fi");
        self.line("stopped=${stopped-$(donor_control)}");
        self.line("checkpoint=$(position \"$stopped\")");
        let inside = donor.dataset.as_ref().map_or(".", |dataset| dataset.inside.as_str());
        let place = format!(
            "{} transplant peer incoming place --config {} --inside {} --system-identifier {} --timeline {} --checkpoint",
            quote(&first.manatee),
            quote(&first.config),
            quote(inside),
            donor.system_identifier,
            donor.timeline
        );
        self.line(&on_with(&first.host, &place, "$checkpoint"));
    }

    pub(super) fn clear_snapshots(&mut self) {
        if self.facts.inventory.verify.amcheck {
            self.line(&self.clone_verb("shut"));
        }
        self.line("incoming_clear");
        let drop = self.snapshot("drop", "");
        self.line(&drop);
    }

    /// What is typed when nobody wants to go back any more.
    pub(super) fn forget_snapshots(&mut self) {
        let id = format!(" --id {}", self.facts.id);
        self.note("and here, for the snapshots:");
        self.note(&Book::verb(self.first().0, "incoming forget", &id));
        self.note(&self.snapshot("drop", ""));
    }
}
