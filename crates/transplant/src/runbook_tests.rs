use super::*;
use crate::{DatasetFacts, Inventory, PatroniFacts, ShardFacts, plan, plan::DonorFacts};
use cluster::{Generation, PeerIdent};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

/// A word that every shell which reads it would do something by.
const WORD: &str = r#"it's "$(touch "$HIT")" `touch "$HIT"` \\ ; $x"#;

/// Every command that is somebody else's: what it is given for a shell is given to one, as there.
const STUB: &str = "#!/bin/sh\nfor last; do :; done\ncase ${0##*/} in su | ssh) exec sh -c \"$last\" ;; esac\n\
     echo '[{\"name\":\"a\",\"guid\":\"b\"}]'\n";

/// The facts of a donor of this kind, below this directory, whose paths and names have that word in them.
fn facts(kind: &str, snapshots: bool, host: &str, place: &Path) -> Facts {
    let data = place.join(WORD);
    let bin = place.join("bin");
    let commands =
        "{ kind = \"commands\", start = \"true\", stop = \"exit 0\", disable = \"exit 0\" }";
    let (data_text, bin_text) = (format!("{:?}", data.display().to_string()), bin.display());
    let quoted = format!("{WORD:?}");
    let more = match kind {
        "patroni" => format!(
            "[donor.patroni]\nurl = \"http://a:1/\"\nuser = {quoted}\npassword_file = {data_text}\n"
        ),
        "manatee-v1" | "manatee-v2" => {
            format!(
                "[donor.manatee]\ncoordination = {quoted}\nshard = {quoted}\nsitter = {data_text}\n"
            )
        }
        _ => String::new(),
    };
    let (method, dataset) = match snapshots {
        true => ("snapshots", format!("[donor.dataset]\nkind = \"zfs\"\nname = {quoted}\n")),
        false => ("streaming", String::new()),
    };
    let verify = format!("[verify]\namcheck = true\nrow_counts = true\nsql = [{quoted}]\n");
    let peer = |n: u8| {
        format!(
            "[[recipient]]\nhost = {host:?}\nconfig = \"{data}/{n}\"\nmanatee = {quoted}\nservice = {{ kind = \"systemd\", unit = {quoted} }}\n",
            data = data_text.trim_matches('"')
        )
    };
    let inventory = format!(
        "[donor]\nkind = {kind:?}\nhost = {host:?}\naddress = {quoted}\ndata_dir = {data_text}\nbin_dir = \"{bin_text}\"\n\
         socket_dir = {data_text}\nos_user = \"nobody\"\nsuperuser = {quoted}\nservice = {commands}\n\
         method = {method:?}\nprogram = {quoted}\n{more}{dataset}\
         [[donor.standbys]]\nname = \"two\"\nhost = {host:?}\nsitter = {data_text}\nservice = {commands}\n\
         {}{}{}[[clients]]\nname = {quoted}\ncommand = \"exit 0\"\n\
         [backup]\ndir = {data_text}\nverify_sql = [{quoted}]\n{verify}[limits]\nrate_mib = 5\n",
        peer(1),
        peer(2),
        peer(3)
    );
    let inventory: Inventory = toml::from_str(&inventory).expect(&inventory);
    let mut example = crate::PeerFacts::example(15);
    let text = || data.display().to_string();
    (example.data_dir, example.socket_dir, example.shard) = (text(), text(), WORD.to_owned());
    (example.bin_dir, example.os_user) = (bin.display().to_string(), Some("nobody".to_owned()));
    (example.superuser, example.replication_user) = (WORD.to_owned(), WORD.to_owned());
    (example.peer.zone_id, example.slot) = (WORD.to_owned(), WORD.to_owned());
    example.replicated = BTreeMap::from([("max_wal_senders".to_owned(), 32)]);
    let peer = |n: u8| PeerIdent::new(&format!("10.0.1.{n}"), 5432, 1, "two");
    let first_version = kind == "manatee-v1";
    Facts {
        id: "b66aedc2-509f-4413-ab0e-d356246449bf".to_owned(),
        donor: DonorFacts {
            version: 150_000,
            system_identifier: "7".to_owned(),
            timeline: 1,
            in_recovery: false,
            wal_level: "replica".to_owned(),
            free_wal_senders: 1,
            free_slots: 1,
            tablespaces: 0,
            bytes: 1,
            data_dir: text(),
            hba_file: format!("{}/pg_hba.conf", text()),
            checksums: true,
            prepared_transactions: 0,
            dataset: snapshots.then(|| DatasetFacts { inside: WORD.to_owned() }),
            replicated: BTreeMap::from([("max_wal_senders".to_owned(), 10)]),
        },
        shard: kind.starts_with("manatee").then(|| ShardFacts {
            generation: (!first_version).then_some(Generation(3)),
            primary: Some(peer(1)),
            registration: Some(4),
            others: vec![peer(2)],
            deposed: Vec::new(),
            registered: vec![peer(1), peer(2)],
            frozen: false,
            promote: false,
            one_node_write_mode: false,
        }),
        peers: vec![example.clone(), example.clone(), example],
        patroni: (kind == "patroni").then(|| PatroniFacts {
            leader: "one".to_owned(),
            is_donor: true,
            members: BTreeMap::from([
                ("one".to_owned(), "http://a:1".to_owned()),
                ("two".to_owned(), "http://b:1".to_owned()),
            ]),
            silent: BTreeMap::new(),
            paused: false,
            switchover: false,
            config_file: text(),
        }),
        after_opening: Vec::new(),
        inventory,
    }
}

fn sh(args: &[&str], place: &Path, path: &str) -> Output {
    let hit = place.join("hit");
    let mut command = Command::new("sh");
    command.args(args).env("HIT", hit).env("PATH", path).current_dir(place);
    command.stdin(std::process::Stdio::null()).output().expect("a shell")
}

/// Each kind, by each method, on this host and on others: a script that the POSIX shell takes, all of which
/// is run here, without checks and with commands that do nothing, and in which nothing is taken for what it
/// is not.
#[test]
fn whatever_is_in_an_inventory_is_quoted() {
    for kind in ["postgres", "patroni", "manatee-v1", "manatee-v2"] {
        // The other combinations are made of the same parts.
        let by = match kind {
            "postgres" => &[(false, "local"), (true, "local")],
            _ => &[(false, "ssh:root@b"), (true, "ssh:root@b")],
        };
        for &(snapshots, host) in by {
            let place = tempfile::tempdir().expect("a directory");
            let place = place.path();
            let (data, bin) = (place.join(WORD), place.join("bin"));
            fs::create_dir(&bin).expect("a directory");
            fs::create_dir(&data).expect("a directory");
            let programs = [
                "psql",
                "pg_ctl",
                "pg_controldata",
                "pg_amcheck",
                "su",
                "ssh",
                "curl",
                "systemctl",
                "sleep",
            ];
            for name in programs.into_iter().chain([WORD]) {
                fs::write(bin.join(name), STUB).expect("a program");
                fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))
                    .expect("it runs");
            }
            let facts = facts(kind, snapshots, host, place);
            let text = runbook(&plan(&facts), WORD).expect("a runbook");
            let what = format!("{kind}, snapshots: {snapshots}, {host}");
            fs::write(place.join("whole"), &text).expect("a script");
            let read = sh(&["-n", "whole"], place, "/usr/bin:/bin");
            assert!(
                read.status.success(),
                "{what}: {}\n{text}",
                String::from_utf8_lossy(&read.stderr)
            );
            // All of it, whatever is said.
            let lax = "from=1 copy=yes\nstop() { :; }\ncheck() { :; }\nawait() { shift 3; \"$@\"; }\nshort=";
            let unchecked = text.replace("set -eu\n", "").replace("\nshort=", &format!("\n{lax}"));
            assert_ne!(unchecked, text);
            fs::write(place.join("unchecked"), &unchecked).expect("a script");
            for part in ["", "back"] {
                let path = format!("{}:/usr/bin:/bin", bin.display());
                let ran = sh(&["unchecked", part], place, &path);
                let said = [ran.stdout, ran.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                assert!(!place.join("hit").exists(), "{what}, {part}: {said}\n{text}");
                assert!(!said.contains("yntax error"), "{what}, {part}: {said}\n{text}");
                assert!(ran.status.success(), "{what}, {part}: {said}\n{text}");
            }
        }
    }
}
