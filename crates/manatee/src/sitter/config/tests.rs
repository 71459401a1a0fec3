//! The sitter's file: its example, its refusals.

use super::*;
use std::io::Write;

const EXAMPLE: &str = include_str!("../../../../../etc/sitter.toml");
const LEAST: &str = "shard = \"1.example\"\ncoordination = \"sqlite:/x.db\"\n\
    dataset = \"/data\"\nip = \"127.0.0.1\"\n[replication]\npassword = \"secret\"\n";

fn load(text: &str) -> Result<Config> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    Config::load(file.path())
}

fn check_refused(text: &str, expected: &[&str]) {
    let error = format!("{:#}", load(text).expect_err("a refused file"));
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// The example with every field that is commented out set to what is written there.
fn everything_set() -> String {
    let set = |line: &str| match line.strip_prefix("# ") {
        // A table that is not there at all by default.
        Some(table) if table.starts_with('[') => table.to_owned(),
        Some(field)
            if field.split_once(" = ").is_some_and(|(name, _)| {
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            }) =>
        {
            field.to_owned()
        }
        _ => line.to_owned(),
    };
    // What goes with something else than what is the default.
    let without = ["password_file", "# password = ", "# name", "# mountpoint"];
    let lines = EXAMPLE.lines().filter(|line| !without.iter().any(|name| line.starts_with(name)));
    let text = lines.map(set).collect::<Vec<_>>().join("\n");
    text.replace("\n[replication]\n", "\n[replication]\npassword = \"secret\"\n")
}

#[test]
fn the_example_shows_every_field_with_its_default() {
    let shown = load(&everything_set()).expect("the example with everything set");
    let plain = load(LEAST).expect("the least");
    let numbers = |config: &Config| {
        format!(
            "{:?} {:?} {:?} {:?} {:?} {} {:?} {:?} {:?} {:?} {:?}",
            config.one_node_write_mode,
            config.deposed,
            config.session_timeout.get_ref(),
            config.lease(),
            config.coordination_timeout,
            config.keep_aside,
            (config.backup_address(), config.backup_limits(), config.backup.original_protocol),
            config.status_port(),
            config.health,
            config.log,
            config.storage,
        )
    };
    assert_eq!(numbers(&shown), numbers(&plain));
    let server = |config: &Config| {
        let mut postgres = config.postgres.clone();
        // Shown as examples: these have no default of their own.
        postgres.settings.clear();
        (postgres.bin_dir, postgres.socket_dir, postgres.listen) = (None, None, None);
        postgres.superuser_password = None;
        format!("{postgres:?} {}", config.replication.user)
    };
    assert_eq!(server(&shown), server(&plain));
    for field in ["zone", "lease", "listen", "bin_dir", "socket_dir", "superuser_password"] {
        assert!(EXAMPLE.contains(&format!("# {field} = ")), "{field} is not shown");
    }
}

/// WAL is not kept to be used again where that is of no use, unless an operator wants it.
#[test]
fn wal_suits_the_storage() {
    let check = |storage: &str, settings: &str, expected: &[(&str, &str)]| {
        let text = format!("{LEAST}[postgres.settings]\n{settings}\n[storage]\n{storage}\n");
        let found = load(&text).expect(&text).user_settings().expect("settings");
        let found: Vec<_> = found.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(found, expected, "{text}");
    };
    let zfs = "backend = \"zfs\"\nname = \"tank/a\"";
    check("", "", &[]);
    check(zfs, "", &[("wal_init_zero", "off"), ("wal_recycle", "off")]);
    check(zfs, "WAL_Recycle = true", &[("WAL_Recycle", "on"), ("wal_init_zero", "off")]);
}

#[test]
fn unknown_fields_and_bad_values_are_refused_with_their_line() {
    check_refused(&format!("sesion_timeout = 3\n{LEAST}"), &["line 1", "sesion_timeout"]);
    check_refused(&format!("session_timeout = -1\n{LEAST}"), &["line 1", "-1"]);
    check_refused(&format!("{LEAST}[postgres]\nport = 70000\n"), &["line 8", "70000"]);
    check_refused(&LEAST.replace("127.0.0.1", "localhost"), &["line 4", "ip"]);
    check_refused("shard = \"x\"\n", &["missing field"]);
}

#[test]
fn contradictions_are_refused_with_their_line() {
    check_refused(
        &format!("session_timeout = 3\nlease = 5\n{LEAST}"),
        &["line 2", "longer than session_timeout"],
    );
    check_refused(
        &format!("{LEAST}[postgres]\nport = 5000\n[status]\nport = 5000\n"),
        &["line 10", "must differ"],
    );
    check_refused(&LEAST.replace("/data", "data"), &["line 3", "absolute"]);
    check_refused(&LEAST.replace("127.0.0.1", "0.0.0.0"), &["line 4", "reach this one"]);
    check_refused(
        &format!("{LEAST}[postgres.settings]\nwork_mem = \"8MB\"\nfsync = false\n"),
        &["line 9", "fsync"],
    );
    check_refused(&format!("{LEAST}password_file = \"/x\"\n"), &["line 7", "both given"]);
    check_refused(&LEAST.replace("password = \"secret\"", ""), &["password or password_file"]);
    check_refused(
        &LEAST.replace("password = \"secret\"", "password_file = \"/not/here\""),
        &["cannot read /not/here"],
    );
    assert!(load(LEAST).is_ok());
}

/// What is accepted by itself and cannot work.
#[test]
fn values_that_cannot_work_are_refused_with_their_line() {
    let postgres = |line: &str| format!("{LEAST}[postgres]\n{line}\n");
    let health = |lines: &str| format!("{LEAST}[health]\n{lines}\n");
    for (text, expected) in [
        (postgres("port = 65535"), ["line 8", "give status.port"]),
        (postgres("port = 0"), ["line 8", "postgres.port: 0 is no port"]),
        (format!("{LEAST}[backup]\nport = 0"), ["line 8", "backup.port: 0 is no port"]),
        (format!("{LEAST}[status]\nport = 0"), ["line 8", "status.port: 0 is no port"]),
        (format!("backup.port = 0\n{LEAST}"), ["line 1", "backup.port: 0 is no port"]),
        (postgres("\nsocket_dir = \"run\""), ["line 9", "socket_dir run: give an absolute path"]),
        (postgres("bin_dir = \"bin\""), ["line 8", "bin_dir bin: give an absolute path"]),
        (postgres("settings.max_wal_senders = 0"), ["postgres.settings", "at least 3"]),
        (LEAST.replace("sqlite:", "consul:"), ["line 2", "no address of a coordination service"]),
        (LEAST.replace("sqlite:/x.db", "zk://a/"), ["line 2", "no path of a node"]),
        (format!("session_timeout = 0.9\n{LEAST}"), ["line 1", "give more than 2 s"]),
        (format!("lease = 2\n{LEAST}"), ["line 1", "lease (2 s) is too short"]),
        (health("interval = 5"), ["line 8", "less than 5 s"]),
        (health("interval = 3\ngive_up = 2"), ["line 9", "shorter than health.interval"]),
        (format!("lease = 6\n{}", health("interval = 4")), ["line 1", "give more than 6 s"]),
        (
            health("retry_max = 0.2"),
            ["line", "retry_min (0.5 s) is longer than health.retry_max (0.2 s)"],
        ),
        (health("retry_max = 2\nretry_min = 3"), ["line 9", "is longer than health.retry_max"]),
    ] {
        check_refused(&text, &expected);
    }
    for text in [
        format!("{}[status]\nport = 1\n", postgres("port = 65535")),
        format!("session_timeout = 3\n{LEAST}"),
        health("interval = 4.9"),
        format!("lease = 2\n{}", health("interval = 0.5")),
    ] {
        load(&text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
    }
}

/// What peers on other hosts could not reach is told, and taken.
#[test]
fn what_may_be_a_mistake_is_told() {
    let check = |text: &str, expected: &[&str]| {
        let doubts = load(text).expect(text).doubts();
        assert_eq!(doubts.len(), expected.len(), "{doubts:?}");
        for (doubt, part) in doubts.iter().zip(expected) {
            assert!(doubt.contains(part), "{part:?} is not in: {doubt}");
        }
    };
    check(LEAST, &[]);
    check(&LEAST.replace("sqlite:/x.db", "etcd://10.0.0.1"), &["ip 127.0.0.1 is of this host"]);
    let listens = "[postgres]\nlisten = \"127.0.0.1\"\n[backup]\nlisten = \"::1\"\n\
        [status]\nlisten = \"127.0.0.1\"\n";
    check(&format!("{LEAST}{listens}"), &[]);
    let remote = LEAST.replace("127.0.0.1", "10.0.0.1").replace("sqlite:/x.db", "zk://10.0.0.9");
    check(&remote, &[]);
    check(
        &format!("{remote}{listens}"),
        &["postgres.listen 127.0.0.1", "backup.listen ::1", "status.listen 127.0.0.1"],
    );
    check(
        &format!("{remote}postgres.listen = \"*\"\n").replace("[replication]\n", "replication."),
        &[],
    );
}

/// The database lies in the peer's directory, or is mounted beside what belongs to the host.
#[test]
fn storage_is_checked_with_the_file() {
    let with = |storage: &str| format!("{LEAST}[storage]\n{storage}\n");
    let mountpoint = |storage: &str| load(&with(storage)).expect(storage).mountpoint();
    assert_eq!(mountpoint(""), Path::new("/data"));
    assert_eq!(mountpoint("backend = \"zfs\"\nname = \"tank/a\""), Path::new("/data/store"));
    let btrfs = "backend = \"btrfs\"\nname = \"/pool/a\"\nmountpoint = \"/db\"";
    assert_eq!(mountpoint(btrfs), Path::new("/db"));
    for (storage, expected) in [
        ("backend = \"xfs\"", "xfs"),
        ("name = \"tank/a\"", "no name and no mountpoint"),
        ("backend = \"zfs\"", "storage.name is missing"),
        ("backend = \"zfs\"\nname = \"tank\"", "something above it"),
        ("backend = \"zfs\"\nname = \"tank/a b\"", "no name of a dataset"),
        ("backend = \"btrfs\"\nname = \"pool/a\"", "no absolute path"),
        (
            "backend = \"zfs\"\nname = \"tank/a\"\nmountpoint = \"/data\"",
            "not the dataset directory",
        ),
        ("backend = \"zfs\"\nname = \"tank/a\"\nmountpoint = \"data/x\"", "absolute path"),
        ("backend = \"zfs\"\nname = \"tank/a\"\nmountpoint = \"/\"", "does not hold it"),
    ] {
        check_refused(&with(storage), &["line 7", expected][usize::from(expected == "xfs")..]);
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/not/here.toml")).expect_err("no file");
    assert!(format!("{error:#}").contains("cannot read /not/here.toml"));
}
