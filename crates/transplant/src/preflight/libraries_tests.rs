//! What a host may lack.

use super::*;
use crate::preflight::needs::{Collation, Database, Setting};
use adapters::service::Host;
use std::{fs, os::unix::fs::PermissionsExt};

fn database(extensions: &[(&str, &str)], libraries: &[(&str, &str)], locale: &str) -> Database {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    Database {
        name: "shop".to_owned(),
        template: false,
        collation: Collation {
            name: "default".to_owned(),
            provider: "c".to_owned(),
            locale: locale.to_owned(),
            ctype: None,
            version: None,
            indexes: 0,
            example: None,
        },
        extensions: map(extensions),
        libraries: map(libraries),
        unlogged: Vec::new(),
        collations: Vec::new(),
    }
}

fn needs(database: Database, shared: &str, file: &str) -> Needs {
    let setting = Setting { value: shared.to_owned(), file: Some(file.to_owned()) };
    Needs {
        databases: vec![database],
        settings: BTreeMap::from([("shared_preload_libraries".to_owned(), setting)]),
        ..Needs::default()
    }
}

fn peer(shared: &str) -> PeerFacts {
    let settings = [("shared_preload_libraries".to_owned(), shared.to_owned())];
    PeerFacts { library_settings: BTreeMap::from(settings), ..PeerFacts::example(15) }
}

fn problems(needs: &Needs, peer: &PeerFacts, lacks: &[&str]) -> Vec<String> {
    let lacks: Vec<Lack> = lacks.iter().map(|line| parse(line)).collect();
    let wrong = doubts(needs, peer, &lacks).into_iter().filter(|(wrong, ..)| *wrong);
    wrong.map(|(_, problem, _)| problem).collect()
}

#[test]
fn each_thing_that_is_lacking_is_named_with_what_needs_it() {
    let needs = needs(
        database(&[("postgis", "3.4.0")], &[("$libdir/postgis-3", "st_x(geometry)")], "sv_SE"),
        "",
        "",
    );
    let check = |line: &str, expected: &str| {
        let found = problems(&needs, &peer(""), &[line]);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected:?}: {found:?}");
    };
    assert_eq!(problems(&needs, &peer(""), &[]), [""; 0]);
    check(
        "lib $libdir/postgis-3",
        "the library $libdir/postgis-3, which is loaded for function st_x(geometry) of database shop",
    );
    check("linked $libdir/postgis-3 libproj.so.25", "database shop, lacks libproj.so.25");
    check("ext postgis", "lacks the extension postgis, which database shop has");
    check("version postgis 3.4.0", "extension postgis has no version 3.4.0");
    check("locale sv_SE", "cannot use the locale \"sv_SE\" of database shop");
    check("program pg_amcheck", "it has no pg_amcheck, which verify.amcheck needs");
    check("place its libraries", "it cannot be seen where its libraries are");
}

#[test]
fn what_is_loaded_at_the_start_is_loaded_there_where_something_needs_it() {
    let extension = database(&[("pg_stat_statements", "1.10")], &[], "C");
    let loader = database(&[], &[("$libdir/timescaledb-2.11.0", "f()")], "C");
    let check = |database: &Database, shared: &str, file: &str, own: &str, expected: [usize; 2]| {
        let (needs, peer) = (needs(database.clone(), shared, file), peer(own));
        let found = (problems(&needs, &peer, &[]), notes(&needs, &peer));
        assert_eq!([found.0.len(), found.1.len()], expected, "{found:?}");
    };
    let (conf, auto) = ("/d/postgresql.conf", "/d/postgresql.auto.conf");
    check(&extension, "pg_stat_statements", conf, "", [1, 0]);
    check(&extension, "pg_stat_statements, auto_explain", conf, "pg_stat_statements", [0, 1]);
    check(&extension, "auto_explain", conf, "", [0, 1]);
    check(&loader, "timescaledb", conf, "", [1, 0]);
    check(&loader, "time", conf, "", [0, 1]);
    // What comes with the database is loaded, whatever the sitter's file says.
    check(&extension, "pg_stat_statements", auto, "", [0, 0]);
    let mut managed = needs(database(&[], &[], "C"), "a_manager", conf);
    assert_eq!(problems(&managed, &peer(""), &[]).len(), 0);
    managed.managers = true;
    assert_eq!(problems(&managed, &peer(""), &[]).len(), 1, "some WAL needs it, maybe");
}

#[test]
fn what_is_looked_for_is_what_will_be_loaded() {
    let mut needs = needs(database(&[], &[("$libdir/a", "f()")], "C"), "b", "/d/postgresql.conf");
    needs.of_roles = vec!["c, \"d\"".to_owned()];
    let names: Vec<String> = libraries(&needs, &peer("e")).into_keys().collect();
    assert_eq!(names, ["$libdir/a", "c", "d", "e"]);
}

/// The script itself, with programs and files that are made for it.
#[tokio::test]
async fn the_host_says_what_it_lacks() {
    let place = tempfile::tempdir().expect("a directory");
    let (bin, lib) = (place.path().join("bin"), place.path().join("lib"));
    let extension = place.path().join("share/extension");
    for directory in
        [&bin, &lib, &extension, &place.path().join("more"), &place.path().join("share/elsewhere")]
    {
        fs::create_dir_all(directory).expect("made");
    }
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    };
    write("bin/pg_config", &format!("#!/bin/sh\necho {}\n", lib.display()));
    let share = place.path().join("share").display().to_string();
    let initdb = format!(
        "#!/bin/sh\ncase \"$*\" in\n--show*) echo share_path={share} >&2 ;;\n\
         *=good*) echo 'exists but is not empty' >&2; exit 1 ;;\n\
         *) echo 'invalid locale name' >&2; exit 1 ;;\nesac\n"
    );
    write("bin/initdb", &initdb);
    for name in ["lib/there.so", "more/a file.so"] {
        write(name, "");
    }
    write("share/extension/moved.control", "comment = 'x'\ndirectory = 'elsewhere'\n");
    write("share/elsewhere/moved--1.0.sql", "");
    for name in ["old.control", "old--1.0.sql", "new.control", "new--1.0.sql", "new--1.0--1.1.sql"]
    {
        write(&format!("share/extension/{name}"), "");
    }
    let asked = format!(
        "lib $libdir/there\nlib $libdir/there.so\nlib there\nlib a file\nlib {0}/there.so\nlib $libdir/not\n\
         lib not there\nlib {0}/not\next new 1.1\next old 1.0\next old 1.1\next old \next none 1.0\n\
         ext moved 1.0\next moved 1.1\n\
         locale good.UTF-8\nlocale bad.UTF-8\nprogram initdb\nprogram pg_amcheck\n",
        lib.display()
    );
    let path = format!("{}:$libdir", place.path().join("more").display());
    let bin = bin.display().to_string();
    let exec = Host::Local.shell(None, LACKS, &[&bin, &path]).expect("a command");
    let output = exec.stdin(asked).limit(LIMIT).run().await.expect("it ends well");
    let expected = format!(
        "lib $libdir/not\nlib not there\nlib {}/not\nversion old 1.1\next none\nversion moved 1.1\nlocale bad.UTF-8\n\
         program pg_amcheck\n",
        lib.display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
