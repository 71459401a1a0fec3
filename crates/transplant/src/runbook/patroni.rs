//! What is asked of Patroni, and told, over its REST API.

use super::{Book, ask};
use crate::{PatroniFacts, donor::literal, patroni::base};
use adapters::service::quote;
use std::collections::BTreeMap;

/// Without the words that say how the API is reached. All answers are read without their blanks.
const FUNCTIONS: &str = r#"# What any member says of the cluster; to tell one to change its configuration.
patroni_cluster() {
    for url in $members; do patroni "$url/cluster" 2>/dev/null | tr -d ' \n' | grep . && return; done
    return 1
}
patroni_tell() { # JSON
    for url in $members; do patroni -f -o /dev/null -X PATCH -d "$1" "$url/config" && return; done
    stop "no member of Patroni can be told $1"
}
# Whether the cluster is paused, and nobody but the donor leads.
held() {
    cluster=$(patroni_cluster) || { echo "$silence"; return; }
    leads=$(echo "$cluster" | tr '{' '\n' | sed -n '/"role":"\(standby_\)*leader"/s/.*"name":"\([^"]*\)".*/\1/p')
    case $leads in "$leader" | '') ;; *) echo "$leads leads"; return ;; esac
    case $cluster in *'"pause":true'*) echo yes ;; *) echo 'it was resumed' ;; esac
}
patroni_leader() {
    patroni_cluster | tr '{' '\n' | sed -n '/"role":"\(standby_\)*leader"/s/.*"name":"\([^"]*\)".*/\1/p'
}
# Whether a member has heard that it is paused.
paused() { # URL
    said=$(patroni "$1/patroni" | tr -d ' \n')
    case $said in *'"pause":true'*) echo yes ;; *'"state"'*) echo no ;; *) echo 'no answer' ;; esac
}
# Whether its server runs; in a pause it does not start that by itself.
wake() { # URL
    said=$(patroni "$1/patroni" | tr -d ' \n' | tr '{,' '\n\n' | sed -n 's/^"state":"\(.*\)"/\1/p' | head -n 1)
    case $said in
    running | streaming | inarchiverecovery) echo yes ;;
    stopped | crashed | startfailed | stopfailed) patroni -m "$short" -X POST -d '{}' "$1/restart" ;;
    *) echo "it is $said" ;;
    esac
}
# Holds a cluster again that somebody has resumed.
hold_again() { # URL
    if [ "$(held)" = 'it was resumed' ]; then patroni_tell '{"pause": true}'; fi
    paused "$1"
}
"#;

/// A text in a file of curl's.
fn curls(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

impl Book<'_> {
    fn members(&self) -> BTreeMap<String, String> {
        self.patroni().map_or_else(BTreeMap::new, |patroni| patroni.members.clone())
    }

    pub(super) fn patroni(&self) -> Option<&PatroniFacts> {
        self.facts.patroni.as_ref()
    }

    fn leader(&self) -> String {
        self.patroni().map_or_else(String::new, |patroni| patroni.leader.clone())
    }

    pub(super) fn patroni_head(&mut self) {
        let Some(config) = &self.donor().patroni else { return };
        self.note("Patroni's REST API, told as curl is.");
        let mut curl =
            "curl -sS --noproxy '*' -m 10 -H 'Content-Type: application/json'".to_owned();
        if let Some(ca) = &config.ca {
            curl += &format!(" --cacert {}", quote(ca));
        }
        // By its standard input: arguments can be read by everybody on the host.
        let curl = match (&config.user, &config.password_file) {
            (Some(user), Some(file)) => {
                let user = quote(&curls(user));
                let password = format!("$(sed 's/[\\\\\"]/\\\\&/g' {})", quote(file));
                format!("printf 'user = \"%s:%s\"\\n' {user} \"{password}\" | {curl} -K -")
            }
            _ => curl,
        };
        self.line(&format!("patroni() {{ {curl} \"$@\"; }}"));
        let asked = base(&config.url);
        let others = self.members().into_values().filter(|url| *url != asked);
        let bases: Vec<String> = std::iter::once(asked.clone()).chain(others).collect();
        self.line(&format!("members={}", quote(&bases.join(" "))));
        self.line(&format!("leader={}", quote(&self.leader().replace(' ', ""))));
        self.note("Where nobody of Patroni answers, nobody leads; but a standby's may run, until part one has stopped it.");
        let alone = self.members().len() < 2;
        self.line(if alone { "silence=yes" } else { "silence='nobody answers'" });
        self.line(FUNCTIONS.trim_end());
    }

    /// Where the API of a member is.
    fn url(&self, name: &str) -> String {
        quote(self.members().get(name).map_or("", String::as_str))
    }

    pub(super) fn pause_patroni(&mut self) {
        self.line("patroni_tell '{\"pause\": true}'");
        for name in self.members().into_keys() {
            self.soon(&format!("{name} is paused"), "yes", &format!("paused {}", self.url(&name)));
        }
        self.check_held();
    }

    pub(super) fn check_held(&mut self) {
        self.check("Patroni is paused, and nobody else leads", "yes", "held");
    }

    pub(super) fn check_patroni_gone(&mut self) {
        let url = self.url(&self.leader());
        self.check(
            "the donor's Patroni has ended",
            "no answer",
            &format!("paused {url} 2>/dev/null"),
        );
    }

    /// Holds it again, for the way back.
    pub(super) fn hold_patroni(&mut self) {
        self.note("Whoever has resumed it since: while it is paused it promotes nothing. Part one may have stopped them all.");
        self.line("silence=yes");
        self.line(
            "if [ \"$(held)\" = 'it was resumed' ]; then patroni_tell '{\"pause\": true}'; fi",
        );
        self.check_held();
    }

    /// Waits until a member whose Patroni was just started is paused.
    pub(super) fn hold_member(&mut self, name: &str) {
        let url = self.url(name);
        self.soon(&format!("{name} is paused"), "yes", &format!("hold_again {url}"));
    }

    /// Lets a member run its server.
    pub(super) fn wake_member(&mut self, name: &str) {
        let url = self.url(name);
        self.soon(&format!("the server of {name} runs"), "yes", &format!("wake {url}"));
    }

    /// The same for the donor, which leads.
    pub(super) fn wake_donor(&mut self) {
        let leader = self.leader();
        self.wake_member(&leader);
        self.soon("the donor leads", &leader.replace(' ', ""), "patroni_leader");
    }

    /// Lets Patroni go on, if it did before.
    pub(super) fn resume_patroni(&mut self) {
        let Some(patroni) = self.facts.patroni.as_ref() else { return };
        self.section("6", "Patroni goes on; its standbys follow");
        if patroni.paused {
            self.note("It was paused before.");
        } else {
            self.line("patroni_tell '{\"pause\": null}'");
            for name in patroni.members.keys() {
                self.soon(&format!("{name} goes on"), "no", &format!("paused {}", self.url(name)));
            }
        }
        self.note("The donor serves: of one that does not follow, look at `patronictl list`, and copy it anew with");
        self.note("`patronictl reinit`.");
        for name in patroni.members.keys().filter(|name| **name != patroni.leader) {
            let streams = format!(
                "select count(*) > 0 from pg_stat_replication where state = 'streaming' and application_name = {}",
                literal(name)
            );
            self.soon(&format!("{name} streams"), "t", &ask("donor", &streams));
        }
    }
}
