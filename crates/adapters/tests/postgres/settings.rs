//! What operators may set, and what keeps a server from starting.

use super::support::{self, Peer, commit, free_port, primary, standby, wait_waiting};
use adapters::postgres::{PgCause, Settings, StopMode};
use cluster::Counts;
use std::fs;

/// What was said by ALTER SYSTEM, or since PostgreSQL 17, where that is refused, written into its file.
async fn alter_system(peer: &Peer, session: &tokio_postgres::Client, name: &str, value: &str) {
    let sql = format!("alter system set {name} = '{value}'");
    if adapters::postgres::programs(None).expect("programs").1 < 17 {
        return session.batch_execute(&sql).await.expect(&sql);
    }
    let refused = session.batch_execute(&sql).await.expect_err("forbidden");
    assert!(support::chain(&refused).contains("ALTER SYSTEM is not allowed"), "{refused:?}");
    let path = peer.postgres.data().join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).expect("a file");
    fs::write(&path, format!("{text}{name} = '{value}'\n")).expect("a file");
}

/// ALTER SYSTEM cannot undo what safety rests on: not by the next apply, not by the next start.
#[tokio::test]
async fn alter_system_is_undone() {
    let nobody = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Sync(nobody.id()), &[]).await;
    let session = a.session().await;
    let config = primary(Counts::Sync(nobody.id()), &[]);
    let wanted = format!("FIRST 1 (\"{}\")", nobody.id());
    alter_system(&a, &session, "synchronous_standby_names", "").await;
    alter_system(&a, &session, "work_mem", "5MB").await;
    session.batch_execute("select pg_reload_conf()").await.expect("a reload");
    a.wait("current_setting('synchronous_standby_names') = ''").await;
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(false));
    a.apply(&config).await;
    assert_eq!(a.value("show synchronous_standby_names").await, wanted);
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));

    // The operator's to set, but not to a value that lets commits go without the standby.
    for weak in ["off", "local", "remote_write"] {
        alter_system(&a, &session, "synchronous_commit", weak).await;
        session.batch_execute("select pg_reload_conf()").await.expect("a reload");
        a.wait(&format!("current_setting('synchronous_commit') = '{weak}'")).await;
        assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(false));
        a.apply(&config).await;
        assert_eq!(a.value("show synchronous_commit").await, "on");
        assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));
    }
    let auto = a.postgres.data().join("postgresql.auto.conf");
    assert!(!fs::read_to_string(&auto).expect("a file").contains("synchronous_commit"));
    // One that is stronger stays; that of our own role does not speak for the server.
    alter_system(&a, &session, "synchronous_commit", "remote_apply").await;
    for sql in [
        "set synchronous_commit = local",
        "alter role postgres set synchronous_commit = 'off'",
        "select pg_reload_conf()",
    ] {
        session.batch_execute(sql).await.expect(sql);
    }
    a.apply(&config).await;
    let role = "alter role postgres reset synchronous_commit";
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));
    session.batch_execute(role).await.expect(role);
    assert_eq!(a.value("show synchronous_commit").await, "remote_apply");

    alter_system(&a, &session, "synchronous_commit", "off").await;
    alter_system(&a, &session, "fsync", "off").await;
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    a.apply(&config).await;
    assert_eq!(a.value("show fsync").await, "on");
    assert_eq!(a.value("show synchronous_commit").await, "on");
    assert_eq!(a.value("show work_mem").await, "5MB");
    let waiting = commit(&a, "create table t (i int)");
    wait_waiting(&a, 1).await;
    assert!(!waiting.is_finished());
}

/// A configuration of ours that is on its way is not taken for somebody else's.
#[tokio::test]
async fn a_change_is_no_override() {
    let (b, c) = (Peer::new("b"), Peer::new("c"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[]).await;
    let changes = async {
        for counts in [&c, &b].into_iter().cycle().take(40) {
            a.apply(&primary(Counts::Sync(counts.id()), &[])).await;
        }
    };
    let looks = async {
        loop {
            let probe = a.postgres.probe().await.expect("a probe");
            assert_ne!(probe.names_in_force, Some(false));
        }
    };
    tokio::select! {
        () = changes => {}
        () = looks => {}
    }
    assert_eq!(a.postgres.probe().await.expect("a probe").names_in_force, Some(true));
}

/// Settings that need a restart get one; those that the server refuses are an error that names
/// them.
#[tokio::test]
async fn the_operators_settings() {
    let mut a = Peer::new("a").primary(Counts::Alone, &[]).await;
    let config = primary(Counts::Alone, &[]);
    a.settings.user_settings.insert("max_connections".into(), "50".into());
    a.restart_sitter().await;
    let pid = a.pid();
    a.apply(&config).await;
    assert_ne!(a.pid(), pid);
    assert_eq!(a.value("show max_connections").await, "50");
    a.settings.user_settings.insert("work_mem".into(), "much".into());
    a.restart_sitter().await;
    let error = a.postgres.apply(&config).await.expect_err("no such amount");
    assert!(
        matches!(&error.cause, PgCause::Rejected(text) if text.contains("work_mem")),
        "{error:?}"
    );
    a.settings.user_settings.insert("fsync".into(), "off".into());
    let error = adapters::postgres::Postgres::open(a.settings.clone()).expect_err("forbidden");
    assert!(support::chain(&error).contains("fsync"), "{error}");
}

/// The passwords in the file become those of the primary's roles, and no word of them its log's; standbys that
/// stream go on, and connect anew with theirs.
#[tokio::test]
async fn passwords_are_what_the_file_says() {
    let logged = |settings: &mut Settings| {
        for (name, value) in [("log_statement", "all"), ("log_min_duration_statement", "0")] {
            settings.user_settings.insert(name.to_owned(), value.to_owned());
        }
    };
    let (mut b, mut a) = (Peer::new("b"), Peer::with("a", logged));
    a = a.primary(Counts::Sync(b.id()), &[&b]).await;
    b = b.standby_of(&a).await;
    a.wait_sync(&b).await;
    let config = primary(Counts::Sync(b.id()), &[&b]);
    let port = a.settings.port;
    let comes_in = async |user: &str, password: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user(user).dbname("postgres").password(password);
        config.connect(tokio_postgres::NoTls).await.is_ok()
    };
    let old = a.settings.replication_password.clone();
    // Unlike what it is prepared to.
    let (new, own) = ("zweites e\u{301} \u{a0}'x'", "the superuser's");
    assert!(comes_in("replication", &old).await && !comes_in("postgres", own).await);
    a.settings.replication_password = new.to_owned();
    a.settings.superuser_password = Some(own.to_owned());
    a.restart_sitter().await;
    a.apply(&config).await;
    assert!(!comes_in("replication", &old).await);
    assert!(comes_in("replication", new).await && comes_in("postgres", own).await);
    a.wait_sync(&b).await;

    b.settings.replication_password = new.to_owned();
    b.restart_sitter().await;
    b.apply(&standby(Some(&a), &[])).await;
    a.value("select count(pg_terminate_backend(pid))::text from pg_stat_replication").await;
    a.wait_sync(&b).await;

    // What PostgreSQL makes of the same password stays; what is none at all does not.
    let verifier = "select rolpassword from pg_authid where rolname = 'replication'";
    let session = a.session().await;
    let given = format!("alter role replication password '{}'", new.replace('\'', "''"));
    session.batch_execute("set log_statement = 'none'").await.expect("a setting");
    session.batch_execute("set log_min_duration_statement = -1").await.expect("a setting");
    for (statement, stays) in
        [(given.as_str(), true), ("alter role replication password null", false)]
    {
        session.batch_execute(statement).await.expect(statement);
        let before = a.value(verifier).await;
        a.apply(&config).await;
        assert_eq!(a.value(verifier).await == before, stays, "{statement}");
        assert!(comes_in("replication", new).await, "{statement}");
    }
    let log = fs::read_to_string(a.settings.home.join("log/postgresql.log")).expect("a log");
    assert!(log.contains("statement: select rolpassword"), "statements are logged");
    for word in ["zweites", own, "SCRAM-SHA-256"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(word)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
}

/// Settings are tried on the server program before anything runs with them; what it says of a wrong
/// one is told, and what is not the operator's to set is named.
#[tokio::test]
async fn settings_are_checked_before_they_are_used() {
    let a = Peer::new("a");
    let map = |settings: &[(&str, &str)]| {
        let own = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        own.collect::<std::collections::BTreeMap<_, _>>()
    };
    let check = async |settings: &[(&str, &str)]| a.postgres.check_settings(&map(settings)).await;
    let fine = [
        ("shared_buffers", "1GB"),
        ("pg_stat_statements.max", "100"),
        ("shared_preload_libraries", "pg_stat_statements"),
        ("log_line_prefix", "it's \\ %m "),
        ("synchronous_commit", "remote_apply"),
    ];
    check(&fine).await.expect("good settings");
    check(&[]).await.expect("none");
    for (name, value, said) in [
        ("shared_bufers", "1GB", "unrecognized configuration parameter \"shared_bufers\""),
        ("work_mem", "much", "invalid value for parameter \"work_mem\": \"much\""),
        ("max_connections", "0", "max_connections"),
        ("log_error_verbosity", "perhaps", "\"perhaps\"; Available values: "),
    ] {
        let error = check(&[("log_line_prefix", "! "), (name, value)]).await.expect_err(name);
        let PgCause::Rejected(text) = &error.cause else { panic!("{error:?}") };
        assert!(text.contains(said) && !text.contains("/tmp"), "{text}");
    }
    for (name, value) in [("FSYNC", "on"), ("synchronous_commit", "local"), ("a b", "1")] {
        let error = check(&[(name, value)]).await.expect_err(name);
        assert!(matches!(error.cause, PgCause::Settings { .. }), "{error:?}");
        let settings = map(&[("work_mem", "much"), (name, value)]);
        let refused = adapters::postgres::check_names(&settings).expect_err(name);
        assert_eq!(refused.name, name);
        assert!(refused.to_string().contains(value), "{refused}");
    }
}

/// What keeps a server from starting is told in words.
#[tokio::test]
async fn starts_that_fail() {
    let a = Peer::new("a");
    let config = primary(Counts::Alone, &[]);
    let error = a.postgres.apply(&config).await.expect_err("no database");
    assert!(matches!(error.cause, PgCause::NoDatabase), "{error:?}");
    a.postgres.create_database().await.expect("a database");

    let other = std::net::TcpListener::bind(("127.0.0.1", a.settings.port)).expect("the port");
    let error = a.postgres.apply(&config).await.expect_err("the port is taken");
    assert!(matches!(error.cause, PgCause::PortInUse { .. }), "{error:?}");
    assert!(a.postgres.exits().borrow().is_none(), "told once");
    drop(other);

    let version = a.postgres.data().join("PG_VERSION");
    let right = fs::read(&version).expect("a version");
    fs::write(&version, "12\n").expect("a version");
    let error = a.postgres.apply(&config).await.expect_err("another version");
    assert!(
        matches!(&error.cause, PgCause::ForeignVersion { found, .. } if found == "12"),
        "{error:?}"
    );
    fs::write(&version, right).expect("a version");

    let auto = a.postgres.data().join("postgresql.auto.conf");
    fs::write(&auto, "max_connections = -5\n").expect("nonsense");
    let error = a.postgres.apply(&config).await.expect_err("nonsense");
    assert!(
        matches!(&error.cause, PgCause::CannotStart { log, .. } if log.contains("max_connections")),
        "{error:?}"
    );
    fs::write(&auto, "").expect("no nonsense");
    a.apply(&config).await;

    let mut settings = a.settings.clone();
    settings.bin_dir = Some("/nowhere".into());
    let error = adapters::postgres::Postgres::open(settings.clone()).expect_err("no programs");
    assert!(matches!(error.cause, PgCause::MissingBinaries { .. }), "{error:?}");
    settings.bin_dir = None;
    settings.os_user = Some("root".into());
    adapters::postgres::Postgres::open(settings.clone()).expect_err("root");
    settings.os_user = Some("nobody-of-this-name".into());
    adapters::postgres::Postgres::open(settings.clone()).expect_err("no user");
    settings.os_user = None;
    settings.port = free_port();
    settings.socket_dir = format!("/tmp/{}", "x".repeat(120)).into();
    adapters::postgres::Postgres::open(settings).expect_err("a socket's name too long");
}
