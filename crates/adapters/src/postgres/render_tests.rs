//! Tests of the configuration text.

use super::{Settings, guard::*, render::*};
use cluster::{Counts, Millis, PeerId};
use std::collections::BTreeMap;

fn settings() -> Settings {
    Settings {
        bin_dir: None,
        dataset: "/set".into(),
        home: "/set".into(),
        socket_dir: "/run/m".into(),
        me: PeerId::new("10.0.0.1:5432:12345"),
        listen: "10.0.0.1".into(),
        port: 5432,
        os_user: None,
        superuser: "postgres".into(),
        superuser_password: None,
        replication_user: "replication".into(),
        replication_password: "it's \\ secret".into(),
        upstream_slot: None,
        client_hba: Vec::new(),
        user_settings: BTreeMap::new(),
        slot_keep_size: 1024,
        wal_keep_size: 512,
        status_interval: Millis(1500),
        start_timeout: Millis(1),
        stop_timeout: Millis(1),
        query_timeout: Millis(1),
    }
}

#[test]
fn names_are_empty_only_alone() {
    let sync = names(&Counts::Sync(PeerId::new("a\"b")));
    assert_eq!(sync, "FIRST 1 (\"a\"\"b\")");
    assert!(NOBODY.len() > 63, "no application_name can be as long");
    assert_eq!(names(&Counts::Nobody), format!("FIRST 1 (\"{NOBODY}\")"));
    assert_eq!(names(&Counts::Alone), "");
    let standby = Shape::Standby { upstream: None };
    assert_eq!(standby.names(), names(&Counts::Nobody));
}

#[test]
fn ours_come_after_the_operators() {
    let mut settings = settings();
    settings.user_settings.insert("work_mem".into(), "8MB".into());
    settings.user_settings.insert("wal_level".into(), "logical".into());
    let shape = Shape::Standby { upstream: Some(("h'ost".into(), 1)) };
    let files = files(&settings, "/set/data", 15, &shape, true);
    let place =
        |text: &str| files.conf.rfind(text).unwrap_or_else(|| panic!("{text} in {}", files.conf));
    assert!(place("wal_level = 'logical'") > place("wal_level = 'replica'"));
    assert!(place("work_mem = '8MB'") < place("fsync = 'on'"));
    assert!(place("wal_receiver_status_interval = '2s'") > 0);
    // Quoted once for the connection string and once for the file.
    assert!(place("password=''it\\\\''s \\\\\\\\ secret''") > 0);
    assert!(!files.conf.contains("allow_alter_system"));
}

/// Whom the operator's lines do not let in, nobody does; what is ours does not rest on them.
#[test]
fn clients_come_in_by_the_operators_lines_alone() {
    let check = |lines: &[&str], superuser: Option<&str>, clients: bool, expected: &str| {
        let mut settings = settings();
        settings.client_hba = lines.iter().map(|line| (*line).to_owned()).collect();
        settings.superuser_password = superuser.map(str::to_owned);
        let shape = Shape::Standby { upstream: None };
        let hba = files(&settings, "/set/data", 15, &shape, clients).hba;
        let ours = "local all \"postgres\" peer map=manatee\n\
            host replication \"replication\" all scram-sha-256\n\
            host postgres \"replication\" all scram-sha-256\n\
            local all \"replication\" reject\nhost all \"replication\" all reject\n";
        let rules = hba.lines().filter(|line| !line.starts_with('#'));
        let rules: String = rules.map(|line| format!("{line}\n")).collect();
        assert_eq!(rules, format!("{ours}{expected}"));
    };
    let closed = "host all \"postgres\" all reject\n";
    let app = "hostssl app app 10.0.0.0/8 scram-sha-256";
    check(&[], None, true, &format!("{closed}local all all peer\n"));
    check(&[app], None, true, &format!("{closed}{app}\nlocal all all peer\n"));
    let open = "host all \"postgres\" all scram-sha-256\n";
    check(&[app], Some("x"), true, &format!("{open}{app}\nlocal all all peer\n"));
    check(&[app], None, false, "");
}

#[test]
fn the_nonce_tells_every_difference() {
    let settings = settings();
    let shape = Shape::Standby { upstream: None };
    let nonce = |clients, port| {
        let mut settings = settings.clone();
        settings.port = port;
        files(&settings, "/set/data", 17, &shape, clients).nonce
    };
    assert_eq!(nonce(true, 1), nonce(true, 1));
    assert_ne!(nonce(true, 1), nonce(false, 1));
    assert_ne!(nonce(true, 1), nonce(true, 2));
}

#[test]
fn settings_that_break_a_rule_are_refused() {
    for (name, value) in [
        ("synchronous_standby_names", "*"),
        ("Synchronous_Commit", "OFF"),
        ("synchronous_commit", "local"),
        ("synchronous_commit", "remote_write"),
        ("fsync", "off"),
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("Max_Replication_Slots", " 2"),
        ("include_if_exists", "x"),
        ("work_mem", "1\nfsync = off"),
        ("work mem", "1"),
        ("", "1"),
        ("manatee.rendered", "x"),
    ] {
        let mut settings = settings();
        settings.user_settings.insert(name.into(), value.into());
        assert!(check(&settings).is_err(), "{name} = {value}");
    }
    for (name, value) in [
        ("synchronous_commit", "remote_apply"),
        ("wal_level", "logical"),
        ("max_wal_senders", "3"),
        ("a.b", "c"),
    ] {
        let mut settings = settings();
        settings.user_settings.insert(name.into(), value.into());
        check(&settings).unwrap_or_else(|error| panic!("{name} = {value}: {error}"));
    }
}

#[test]
fn all_that_we_set_is_refused_from_others() {
    for major in [13, 17] {
        let shape = Shape::Standby { upstream: None };
        for name in ours(&settings(), "/d", major, &shape).keys() {
            let readers = name.starts_with("max_standby_");
            assert!(is_guarded(name) || readers, "{name}");
        }
    }
}

#[test]
fn slots_are_valid_and_distinct() {
    let slots = ["10.0.0.1:5432:1", "10_0_0_1:5432:1", "A", "a", &"x".repeat(200)]
        .map(|id| slot_name(&PeerId::new(id)));
    let distinct: std::collections::BTreeSet<_> = slots.iter().collect();
    assert_eq!(distinct.len(), slots.len(), "{slots:?}");
    for slot in &slots {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(slot.len() <= 63 && slot.chars().all(valid), "{slot}");
    }
}

#[test]
fn the_include_is_last_and_stays_so() {
    let once = included("port = 1\n").expect("a change");
    assert_eq!(once, "port = 1\ninclude 'manatee.conf'\n");
    assert_eq!(included(&once), None);
    assert_eq!(included(&format!("{once}# end\n\n")), None);
    let moved = included(&format!("{once}port = 2")).expect("a change");
    assert_eq!(moved, "port = 1\nport = 2\ninclude 'manatee.conf'\n");
}

#[test]
fn only_our_settings_are_stripped() {
    let text = "# auto\nwork_mem = '1MB'\nfsync = 'off'\nsynchronous_standby_names=''\n";
    let (kept, names) = stripped(text).expect("a change");
    assert_eq!(kept, "# auto\nwork_mem = '1MB'\n");
    assert_eq!(names, ["fsync", "synchronous_standby_names"]);
    assert_eq!(stripped(&kept), None);
}
