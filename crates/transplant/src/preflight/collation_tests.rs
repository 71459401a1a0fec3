//! Which changes of a library matter.

use super::*;

fn order(name: &str, provider: &str, locale: &str, indexes: u64) -> Collation {
    Collation {
        name: name.to_owned(),
        provider: provider.to_owned(),
        locale: locale.to_owned(),
        ctype: Some(locale.to_owned()),
        version: None,
        indexes,
        example: (indexes > 0).then(|| format!("{name}_index")),
    }
}

/// One database, with this order of its own, in which indexes are, and with these beside it.
fn needs(own: Collation, others: &[Collation]) -> Needs {
    let default = order("\"default\"", "d", "", own.indexes);
    let own = Collation { indexes: 0, example: None, ..own };
    let database = Database {
        name: "shop's".to_owned(),
        template: false,
        collation: own,
        extensions: Default::default(),
        libraries: Default::default(),
        unlogged: Vec::new(),
        collations: std::iter::once(default).chain(others.iter().cloned()).collect(),
    };
    Needs { databases: vec![database], ..Needs::default() }
}

fn host(libc: &str, icu: &str) -> HostFacts {
    HostFacts { libc: libc.to_owned(), icu: icu.to_owned(), ..HostFacts::default() }
}

fn wrong(doubts: Vec<Doubt>) -> Vec<String> {
    doubts.into_iter().filter(|(wrong, ..)| *wrong).map(|(_, problem, _)| problem).collect()
}

#[test]
fn another_version_matters_where_something_is_in_its_order() {
    let (donor, same) = (host("glibc 2.36", "72"), host("glibc 2.36", "72"));
    let (libc, icu) = (host("glibc 2.31", "72"), host("glibc 2.36", "67"));
    let check = |needs: &Needs, peer: &HostFacts, expected: &[&str]| {
        let found = wrong(doubts(needs, &donor, peer, false));
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{expected:?} is not in {found:?}");
        }
    };
    let english = needs(order("default", "c", "en_US.UTF-8", 3), &[]);
    check(&english, &same, &[]);
    check(&english, &icu, &[]);
    check(
        &english,
        &libc,
        &[
            "glibc 2.31 sorts there, glibc 2.36 does on the donor's host: indexes of database shop's in the order \
           of \"en_US.UTF-8\" (3, such as \"default\"_index) may be wrong there",
        ],
    );
    assert_eq!(wrong(doubts(&english, &donor, &libc, true)), [""; 0], "it is accepted");
    // Nothing is in that order.
    check(&needs(order("default", "c", "en_US.UTF-8", 0), &[]), &libc, &[]);
    for fixed in ["C", "POSIX", "C.UTF-8", "c.utf8"] {
        check(&needs(order("default", "c", fixed, 3), &[]), &libc, &[]);
    }
    check(&needs(order("default", "b", "C.UTF-8", 3), &[]), &libc, &[]);
    // A column has another one than the database.
    let mixed = needs(
        order("default", "c", "C", 3),
        &[order("\"de-x-icu\"", "i", "de", 2), order("\"sv_SE\"", "c", "sv_SE.utf8", 1)],
    );
    check(&mixed, &libc, &["indexes of database shop's in the order of \"sv_SE.utf8\" (1,"]);
    check(&mixed, &icu, &["ICU 67 sorts there, ICU 72 does"]);
    check(&mixed, &host("glibc 2.36", "unknown"), &["ICU unknown sorts there, ICU 72 does"]);
    check(&mixed, &host("glibc 2.36", ""), &["has no ICU, by which database shop's sorts"]);
    let without = wrong(doubts(&mixed, &donor, &host("glibc 2.36", ""), true));
    assert_eq!(without.len(), 1, "no ICU at all cannot be accepted: {without:?}");
    assert!(!mixed.databases[0].orders().iter().any(|order| order.provider == "d"));
}

#[test]
fn the_peers_sort_alike() {
    let needs = needs(order("default", "c", "en_US.UTF-8", 0), &[]);
    let (old, new) = (host("glibc 2.31", "72"), host("glibc 2.36", "72"));
    assert_eq!(wrong(doubts_among(&needs, &old, &old)), [""; 0]);
    let found = wrong(doubts_among(&needs, &old, &new));
    assert!(found[0].contains("glibc 2.36 sorts there, glibc 2.31 does on the first peer's host"));
}

#[test]
fn what_makes_it_right_again_is_told() {
    let at = r"-h /s -p 5432 -U postgres -d 'dbname='\''shop\'\''s'\'''";
    let (donor, peer) = (host("glibc 2.36", "72"), host("glibc 2.31", "67"));
    let found =
        needs(order("default", "c", "en_US.UTF-8", 1), &[order("public.\"German\"", "i", "de", 0)]);
    assert_eq!(
        commands(&found, &donor, &peer, &PeerFacts::example(15)),
        [
            format!("/b/reindexdb {at} --concurrently"),
            format!(r#"/b/psql {at} -c 'alter database "shop'\''s" refresh collation version'"#),
            format!(r#"/b/psql {at} -c 'alter collation public."German" refresh version'"#),
        ]
    );
    assert_eq!(
        commands(&found, &donor, &peer, &PeerFacts::example(14)).len(),
        2,
        "what 14 does not know"
    );
    assert_eq!(commands(&found, &donor, &donor, &PeerFacts::example(15)), [""; 0]);
    let told = notes(&found, &donor, &peer, true);
    assert!(told[0].contains("(1, such as") && told[0].contains("reindex as soon as"), "{told:?}");
    assert!(told[1].contains("nothing is in that order yet"), "{told:?}");
    assert_eq!(notes(&found, &donor, &peer, false).len(), 1, "the other one is a problem");
    assert_eq!(notes(&found, &donor, &donor, true), [""; 0]);
}

#[test]
fn an_order_that_the_donor_itself_has_lost_is_told() {
    let made =
        Collation { version: Some("2.31".to_owned()), ..order("default", "c", "en_US.UTF-8", 1) };
    let donor = host("glibc 2.36", "72");
    let told = notes(&needs(made.clone(), &[]), &donor, &donor, false);
    assert!(told[0].contains("was made with glibc 2.31, and glibc 2.36 sorts"), "{told:?}");
    let made = Collation { version: Some("2.36".to_owned()), ..made };
    assert_eq!(notes(&needs(made, &[]), &donor, &donor, false), [""; 0]);
}

#[test]
fn locales_of_the_c_library_are_looked_for() {
    let found = needs(
        order("default", "c", "C", 0),
        &[order("\"de-x-icu\"", "i", "de", 2), order("sv", "c", "sv_SE.utf8", 0)],
    );
    let mut found = found;
    // ICU has no part in what letters are where the C library has.
    found.databases[0].collations[1].ctype = None;
    let names: Vec<String> = locales(&found).into_iter().map(|(locale, _)| locale).collect();
    assert_eq!(names, ["C", "sv_SE.utf8"]);
}
