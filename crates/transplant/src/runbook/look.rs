//! What is looked at, of the copy, a backup and the clients.

use super::{Book, ask, fed, head::psql, on, plain};
use crate::steps::{ALONE, DATABASES, NAMES, PORT_BESIDE, all_counts};
use adapters::service::quote;

/// How a database is named to psql, one a line.
const CONNECTIONS: &str = r"select 'dbname=''' || replace(replace(datname, '\', '\\'), '''', '\''') || '''' from pg_database where datallowconn and datconnlimit <> -2 order by datname";

impl Book<'_> {
    pub(super) fn amcheck(&mut self) {
        let (first, facts) = self.first();
        let (whom, port) = if self.by_snapshots() {
            self.note("A server is started on a clone of what has come, and asked.");
            self.note("Of an earlier try: what it is a clone of may have to go.");
            self.line(&self.clone_verb("shut"));
            self.line("send");
            self.line(&self.clone_verb("open"));
            let psql = psql(&facts.bin_dir, &facts.socket_dir, PORT_BESIDE, &facts.superuser);
            let psql = fed(&first.host, facts.os_user.as_deref(), &psql);
            self.line(&format!("clone() {{ printf '%s\\n' postgres \"$1\" | {psql}; }}"));
            ("clone", PORT_BESIDE)
        } else {
            self.note("The copy stands still meanwhile, and goes on receiving.");
            self.line(&ask("peer1", "select pg_wal_replay_pause()"));
            self.soon(
                "the copy stands still",
                "paused",
                &ask("peer1", "select pg_get_wal_replay_pause_state()"),
            );
            ("peer1", facts.port)
        };
        let look = format!(
            "IFS= read -r db; exec {} --heapallindexed -h {} -p {} -U {} --maintenance-db=postgres -d \"$db\"",
            quote(&format!("{}/pg_amcheck", facts.bin_dir)),
            quote(&facts.socket_dir),
            port,
            quote(&facts.superuser)
        );
        let look = fed(&first.host, facts.os_user.as_deref(), &look);
        self.line(&format!("look() {{ printf '%s\\n' \"$1\" | {look} 2>&1; }}"));
        // A name as a pattern, which means it alone.
        let names = format!("select '\"' || replace(datname, '\"', '\"\"') || '\"' {NAMES}");
        self.line(&format!("names=$({}) damage=", ask(whom, &names)));
        self.line("while IFS= read -r name; do");
        self.line("    echo \"looking at $name\"");
        self.line("    said=$(look \"$name\") || damage=\"$damage $name: $said\"");
        self.line("    case $said in *'skipping database'*) damage=\"$damage $said\" ;; esac");
        self.line("done <<END\n$names\nEND");
        self.note("Whatever was found.");
        if self.by_snapshots() {
            self.line(&self.clone_verb("shut"));
        } else {
            self.line(&ask("peer1", "select pg_wal_replay_resume()"));
        }
        self.check(
            "pg_amcheck has looked at all, and finds no damage",
            "",
            "printf %s \"$damage\"",
        );
        if !self.by_snapshots() {
            self.catch_up();
        }
    }

    /// Opens or shuts the clone that is looked at.
    pub(super) fn clone_verb(&self, verb: &str) -> String {
        let inside = self.facts.donor.dataset.as_ref().map_or(".", |dataset| &dataset.inside);
        let inside = format!(" --inside {}", quote(inside));
        Book::verb(self.first().0, &format!("incoming {verb}"), &inside)
    }

    pub(super) fn backup(&mut self) {
        let Some(backup) = &self.facts.inventory.backup else { return };
        let (first, _) = self.first();
        self.note("What the donor has now, and the copy, too; what is restored has to have it.");
        let mut answers = String::new();
        for (n, statement) in backup.verify_sql.iter().enumerate() {
            self.line(&format!("answer{n}=$({})", ask("donor", statement)));
            let comma = if n == 0 { "" } else { "," };
            answers += &format!("{comma}'\"'\"$(json \"$answer{n}\")\"'\"'");
        }
        self.line(&format!(
            "databases=$({})",
            ask("donor", &format!("select to_json(datname::text) {DATABASES}"))
        ));
        self.line(&format!("at=$({})", ask("donor", "select pg_current_wal_lsn()")));
        if self.by_snapshots() {
            self.line("send");
        } else {
            self.line(&format!(
                "after=$({})",
                ask("donor", "checkpoint; select pg_current_wal_lsn()")
            ));
            self.wait_for(
                "the copy has it, too",
                "t",
                "peer1 \"select pg_last_wal_replay_lsn() >= '$after'\"",
            );
        }
        let place = self.place_of_backup();
        let mut make = format!("{place} --bytes {}", self.facts.donor.bytes);
        if let Some(dataset) = &self.facts.donor.dataset {
            make += &format!(" --incoming {}", quote(&dataset.inside));
        }
        for statement in &backup.verify_sql {
            make += &format!(" --sql {}", quote(statement));
        }
        self.note(
            "Made, restored beside, started and asked; it says nothing where that was done before.",
        );
        self.line(&format!("proof=$({})", Book::verb(first, "backup make", &make)));
        self.line("has() { case $proof in *\"$1\"*) echo yes ;; *) echo \"no: $proof\" ;; esac; }");
        self.line("json() { printf '%s\\n' \"$1\" | sed 's/[\\\\\"]/\\\\&/g' | awk '{ gsub(/\\t/, \"\\\\t\"); printf \"%s%s\", (NR > 1 ? \"\\\\n\" : \"\"), $0 }'; }");
        self.line("if [ \"$proof\" != null ]; then");
        let donor = &self.facts.donor;
        let (id, timeline) = (&donor.system_identifier, donor.timeline);
        self.check(
            "it is the donor's",
            "yes",
            &format!("has {}", quote(&format!("\"systemIdentifier\":\"{id}\","))),
        );
        // One of a snapshot is recovered to the end of its WAL, and goes on on a timeline of its own.
        let timeline = match self.by_snapshots() {
            true => format!("\"branchedFrom\":{timeline},\"databases\":"),
            false => format!("\"systemIdentifier\":\"{id}\",\"timeline\":{timeline}}}"),
        };
        self.check("it is of the donor's timeline", "yes", &format!("has {}", quote(&timeline)));
        self.check(
            "it gives what the donor gave",
            "yes",
            &format!("has '\"answers\":['{answers}']'"),
        );
        self.line(
            "restored=,$(printf '%s\\n' \"$proof\" | sed 's/.*\"databases\":{\\([^}]*\\)}.*/\\1/')",
        );
        self.line("while IFS= read -r name; do");
        self.line("    case $restored in *\",$name:\"*) ;; *) stop \"it lacks the database $name\" ;; esac");
        self.line("done <<END\n$databases\nEND");
        self.line(
            "ends=$(printf '%s\\n' \"$proof\" | sed 's/.*\"position\":\"\\([^\"]*\\)\".*/\\1/')",
        );
        self.check(
            "it goes as far as the donor was",
            "t",
            "donor \"select '$ends'::pg_lsn >= '$at'::pg_lsn\"",
        );
        self.line("fi");
        self.note("It is proven, and has its name from here on. No way back removes it.");
        self.line(&Book::verb(first, "backup keep", &place));
    }

    fn place_of_backup(&self) -> String {
        let dir = self.facts.inventory.backup.as_ref().map_or("", |backup| backup.dir.as_str());
        format!(" --dir {} --id {}", quote(dir), self.facts.id)
    }

    pub(super) fn settle_backup(&mut self) {
        self.line(&Book::verb(self.first().0, "backup settle", &self.place_of_backup()));
    }

    pub(super) fn compare_answers(&mut self) {
        let verify = &self.facts.inventory.verify;
        let donor = self.donor();
        self.note("The donor is started closed, to be asked, and looks for no more than it has.");
        self.line("if ! donor_runs; then");
        self.close(donor, &plain(ALONE));
        self.start_closed();
        self.line("fi");
        if self.by_snapshots() {
            self.note("The copy, too, as a standby of nobody.");
            self.line(&Book::verb(self.first().0, "stand", ""));
        }
        self.line("both() { # DATABASE STATEMENTS");
        self.line("    donors=$(donor_in \"$1\" \"set statement_timeout = 0; $2\")");
        self.line("    copys=$(peer1_in \"$1\" \"set statement_timeout = 0; $2\")");
        self.line("    if [ \"$donors\" != \"$copys\" ]; then differ=\"$differ $1: $2: $donors, the copy: $copys\"; fi");
        self.line("}");
        self.line("differ=");
        self.line(&format!("names=$({})", ask("donor", CONNECTIONS)));
        self.line(&ask("both postgres", CONNECTIONS));
        if verify.row_counts {
            self.note("How many rows each table of each database has.");
            self.line(&format!("counts={}", quote(&all_counts())));
            self.line(
                "while IFS= read -r name; do both \"$name\" \"$counts\"; done <<END\n$names\nEND",
            );
        }
        for statement in &verify.sql {
            self.line(&ask("both postgres", statement));
        }
        self.note("Whatever they said.");
        if self.by_snapshots() {
            self.line(&Book::verb(self.first().0, "rest", ""));
        }
        self.halt(donor);
        self.close(donor, "");
        self.check("both say the same", "", "printf %s \"$differ\"");
        self.check("the donor is stopped and closed", "yes", "shut");
    }

    pub(super) fn check_clients(&mut self) {
        let seconds = self.facts.inventory.limits.client_seconds;
        for client in &self.facts.inventory.clients {
            let command = format!("sh -c {} >/dev/null </dev/null", quote(&client.command));
            let command = on(&client.host, None, &command);
            self.line(&format!("well() {{ {command} && echo yes; }}"));
            let what = quote(&format!("client {}", client.name));
            self.line(&format!("await {seconds} {what} yes well"));
        }
    }
}
