use super::*;
use proptest::prelude::*;

fn check_name(name: &str, expected: Option<(&str, u16, u16, u64)>) {
    let got = RegistrationName::parse(name).ok();
    let expected = expected.map(|(ip, pg_port, backup_port, sequence)| RegistrationName {
        ip: ip.to_owned(),
        pg_port,
        backup_port,
        sequence,
    });
    assert_eq!(got, expected, "{name}");
}

#[test]
fn names_of_every_age() {
    check_name("10.0.0.1-0000000007", Some(("10.0.0.1", 5432, 12345, 7)));
    check_name("10.0.0.1:5433:12346-0000000007", Some(("10.0.0.1", 5433, 12346, 7)));
    check_name("10.0.0.1:5433:12346:12347-0000000007", Some(("10.0.0.1", 5433, 12346, 7)));
    check_name("db-1.example:5433:12346-0000000007", Some(("db-1.example", 5433, 12346, 7)));
    // Only the second version has these.
    check_name("fd00::1:5433:12346-0000000007", Some(("fd00::1", 5433, 12346, 7)));
    check_name("1:2:3:4:5:6:7:8:5433:12346-0000000007", Some(("1:2:3:4:5:6:7:8", 5433, 12346, 7)));
    // ZooKeeper's counter grows beyond ten digits only where it is not of 32 bits any more.
    check_name("10.0.0.1-10000000000", Some(("10.0.0.1", 5432, 12345, 10_000_000_000)));
    for name in [
        "",
        "10.0.0.1",
        "10.0.0.1-7",
        "-0000000007",
        "10.0.0.1-000000000x",
        "10.0.0.1:5433-0000000007",
        "10.0.0.1:5433:-0000000007",
        "10.0.0.1:5433:x-0000000007",
        "10.0.0.1:5433:99999-0000000007",
        ":5433:12346-0000000007",
        "10.0.0.1:1:2:3:4-0000000007",
    ] {
        check_name(name, None);
    }
}

fn check_peer(name: &str, data: &str, expected: &str) {
    let name = RegistrationName::parse(name).expect("a name");
    let peer = name.peer(data.as_bytes()).expect("a peer");
    let got = serde_json::to_value(peer).expect("JSON");
    let expected: Value = serde_json::from_str(expected).expect("JSON");
    assert_eq!(got, expected, "{name:?} with {data}");
}

#[test]
fn what_the_data_lacks_comes_from_the_name() {
    check_peer(
        "10.0.0.1-0000000007",
        "",
        r#"{"id":"10.0.0.1:5432:12345","zoneId":"10.0.0.1","ip":"10.0.0.1",
            "pgUrl":"tcp://postgres@10.0.0.1:5432/postgres","backupUrl":"http://10.0.0.1:12345"}"#,
    );
    check_peer(
        "10.0.0.1:5433:12346:12347-0000000007",
        r#"{"zoneId":"z","backupUrl":null,"hb":1}"#,
        r#"{"id":"10.0.0.1:5433:12346","zoneId":"z","ip":"10.0.0.1","hb":1,
            "pgUrl":"tcp://postgres@10.0.0.1:5433/postgres","backupUrl":"http://10.0.0.1:12346"}"#,
    );
    check_peer(
        "fd00::1:5433:12346-0000000007",
        r#"{"zoneId":"z","pgUrl":"tcp://me@h:1/db","backupUrl":"http://h:2","ip":"h"}"#,
        r#"{"id":"fd00::1:5433:12346","zoneId":"z","ip":"h",
            "pgUrl":"tcp://me@h:1/db","backupUrl":"http://h:2"}"#,
    );
}

#[test]
fn data_that_is_no_peer() {
    let name = RegistrationName::parse("10.0.0.1-0000000007").expect("a name");
    for data in ["{", "[]", "7", r#"{"zoneId":7}"#] {
        let error = name.peer(data.as_bytes()).expect_err(data).to_string();
        assert!(error.contains("10.0.0.1:5432:12345"), "{error}");
    }
}

fn check_event(name: &str, expected: Option<[&str; 6]>) {
    let got = V1Event::parse(name).ok().map(|event| {
        let time = event.time.to_string();
        [time, event.ip, event.action, event.role, event.master, event.slave]
    });
    assert_eq!(got, expected.map(|parts| parts.map(str::to_owned)), "{name}");
}

#[test]
fn events() {
    check_event(
        "1417543665280-10.77.77.47:5432-AssumeLeader-Leader---0000000000",
        Some(["2014-12-02T18:07:45.28Z", "10.77.77.47:5432", "AssumeLeader", "Leader", "", ""]),
    );
    check_event(
        "1417543693514-10.77.77.47-NewStandby-leader-undefined-10.77.77.48-0000000001",
        Some([
            "2014-12-02T18:08:13.514Z",
            "10.77.77.47",
            "NewStandby",
            "leader",
            "",
            "10.77.77.48",
        ]),
    );
    check_event(
        "1417543693593-db-1.example-NewLeader-Standby-10.77.77.47--0000000002",
        Some([
            "2014-12-02T18:08:13.593Z",
            "db-1.example",
            "NewLeader",
            "Standby",
            "10.77.77.47",
            "",
        ]),
    );
    for name in [
        "",
        "3-0000000001",
        "1417543665280-10.77.77.47-AssumeLeader-Leader--0000000000",
        "soon-10.77.77.47-AssumeLeader-Leader---0000000000",
        "1417543665280-10.77.77.47-AssumeLeader-Leader---7",
        "1417543665280--AssumeLeader-Leader---0000000000",
    ] {
        check_event(name, None);
    }
}

#[test]
fn events_in_words() {
    for (name, words) in [
        ("1-a-AssumeLeader-Leader---0000000000", "a became primary"),
        ("1-b-NewLeader-Standby-a--0000000000", "b (Standby) follows a"),
        ("1-a-NewStandby-Leader--b-0000000000", "a (Leader) is followed by b"),
        ("1-a-ExpiredStandby-Leader--b-0000000000", "a (Leader) lost its standby b"),
        ("1-a-Other-Leader-x--0000000000", "a (Leader): Other, after x, before nobody"),
    ] {
        assert_eq!(V1Event::parse(name).expect("an event").summary(), words);
    }
}

fn peers(count: u8) -> Vec<PeerIdent> {
    (1..=count).map(|n| PeerIdent::new(&format!("10.0.0.{n}"), 5432, 12345, "z")).collect()
}

/// The last bytes of the addresses, in the order of the chain.
fn chain(state: &ClusterState) -> Vec<String> {
    state.chain().map(|peer| peer.ip.rsplit('.').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_last_async_becomes_sync_and_the_sync_the_last_async() {
    let date: Timestamp = "2026-05-04T10:00:00Z".parse().expect("a time");
    for (count, expected) in
        [(2, vec!["1", "2"]), (3, vec!["1", "3", "2"]), (5, vec!["1", "5", "3", "4", "2"])]
    {
        let state = backfill(&peers(count), "moved", date).expect("a state");
        assert_eq!(chain(&state), expected);
        assert_eq!((state.generation, state.init_wal), (Generation(0), Lsn::ZERO));
        assert!(matches!(&state.freeze, Some(Freeze::Since(info)) if info.reason == "moved"));
        assert_eq!(ClusterState::parse(&state.to_json()), Ok(state));
    }
    let twice = [peers(2), peers(3)].concat();
    assert_eq!(chain(&backfill(&twice, "r", date).expect("a state")), ["1", "3", "2"]);
    let again = [peers(1), peers(1)].concat();
    assert_eq!(backfill(&again, "r", date), Err(BackfillError::TooFew(1)));
    assert_eq!(backfill(&[], "r", date), Err(BackfillError::TooFew(0)));
}

proptest! {
    /// Whatever a name may hold: no panic, and what is read is written back to the same name.
    #[test]
    fn any_name(name in "[0-9a-z.:-]{0,40}") {
        if let Ok(read) = RegistrationName::parse(&name) {
            let RegistrationName { ip, pg_port, backup_port, sequence } = &read;
            let again = format!("{ip}:{pg_port}:{backup_port}-{sequence:010}");
            prop_assert_eq!(RegistrationName::parse(&again), Ok(read));
        }
        // May be refused, must not panic.
        let _ = V1Event::parse(&name);
    }

    /// What a sitter of ours registers as is read as itself.
    #[test]
    fn our_own_names(octets in any::<[u8; 4]>(), pg in 1..u16::MAX, backup in 1..u16::MAX) {
        let ip = octets.map(|octet| octet.to_string()).join(".");
        let peer = PeerIdent::new(&ip, pg, backup, "zone");
        let name = RegistrationName::parse(&format!("{}-0000000042", peer.id)).expect("a name");
        prop_assert_eq!(name.sequence, 42);
        let data = serde_json::to_vec(&peer).expect("JSON");
        prop_assert_eq!(name.peer(&data), Ok(peer));
    }
}
