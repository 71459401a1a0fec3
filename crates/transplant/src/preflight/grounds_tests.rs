//! What keeps pg_amcheck from looking, and what does not come along.

use super::*;

#[test]
fn amcheck_is_wanted_in_every_database_that_is_no_template() {
    let database = |name: &str, template: bool, extensions: &[&str]| {
        let extensions: serde_json::Map<String, serde_json::Value> =
            extensions.iter().map(|name| ((*name).to_owned(), "1.3".into())).collect();
        serde_json::from_value(serde_json::json!({
            "name": name, "template": template, "extensions": extensions, "libraries": {},
            "collation": {"name": "default", "provider": "c", "locale": "C", "indexes": 0},
            "collations": [],
        }))
        .expect("a database")
    };
    let databases = vec![
        database("template1", true, &[]),
        database("with", false, &["amcheck"]),
        database("without", false, &["plpgsql"]),
    ];
    let needs = Needs { databases, ..Needs::default() };
    let wrong = |version| -> Vec<String> {
        let doubts = amcheck_doubts(&needs, version).into_iter();
        doubts.filter(|(wrong, ..)| *wrong).map(|(_, problem, _)| problem).collect()
    };
    let found = wrong(150_000);
    assert!(found.len() == 1 && found[0].contains("database without lacks it"), "{found:?}");
    assert!(wrong(130_000)[0].contains("no pg_amcheck before version 14"));
}

#[test]
fn what_does_not_come_along_is_counted_and_named() {
    let database = |name: &str, unlogged: &[&str]| {
        serde_json::from_value(serde_json::json!({
            "name": name, "template": false, "extensions": {}, "libraries": {}, "unlogged": unlogged,
            "collation": {"name": "default", "provider": "c", "locale": "C", "indexes": 0},
            "collations": [],
        }))
        .expect("a database")
    };
    let databases =
        vec![database("none", &[]), database("some", &["a", "b", "c", "d", "e", "f", "g"])];
    let needs = Needs { databases, logical_slots: vec!["one".to_owned()], ..Needs::default() };
    let notes = left_behind(&needs);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("unlogged tables of database some: 7 (a, b, c, d, e, …): "));
    assert!(notes[1].starts_with("slots of logical replication: 1 (one): "), "{notes:?}");
    assert!(left_behind(&Needs::default()).is_empty());
}
