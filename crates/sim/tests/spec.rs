//! Rules are traceable, both ways: what a reason or a test names, SPEC.md states; what SPEC.md states, a
//! reason names where a decision can, and a test says that it tests it (`rule D2`, `rules D1 to D4`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// How SPEC.md marks a rule that is no decision's reason.
const MARKS: [&str; 4] = ["(law)", "(machine)", "(adapter)", "(transplant)"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Each rule of SPEC.md, and whether it is marked.
fn stated() -> BTreeMap<String, bool> {
    let spec = fs::read_to_string(root().join("SPEC.md")).expect("SPEC.md");
    let rules: BTreeMap<_, _> = spec
        .lines()
        .filter_map(|line| line.strip_prefix("- **")?.split_once("** "))
        .map(|(id, text)| (id.to_owned(), MARKS.iter().any(|mark| text.starts_with(mark))))
        .collect();
    assert!(rules.len() > 20, "SPEC.md no longer lists rules as `- **A1** …`: {rules:?}");
    assert!(rules.keys().all(|id| is_id(id)), "{rules:?}");
    rules
}

fn is_id(word: &str) -> bool {
    matches!(word.as_bytes(), [b'A'..=b'Z', b'1'..=b'9'])
}

/// The ids after each `rule` or `rules`: `rule D2`, `rules A1 and A2`, `rules D1 to D4, P1`.
fn mentioned(text: &str) -> BTreeSet<String> {
    // A sentence may go on in the next line of a comment.
    let words: Vec<_> =
        text.split_whitespace().filter(|word| !["///", "//!", "//", "#"].contains(word)).collect();
    let mut ids = BTreeSet::new();
    for (place, word) in words.iter().enumerate() {
        if !matches!(
            word.trim_start_matches(['(', '`', '"']).to_lowercase().as_str(),
            "rule" | "rules"
        ) {
            continue;
        }
        let (mut last, mut range) = (None, false);
        for word in &words[place + 1..] {
            match (word.trim_end_matches([',', ')', '.', ':', ';']), last) {
                ("to", Some(_)) => range = true,
                ("and" | "or", Some(_)) => {}
                (id, _) if is_id(id) => {
                    let (letter, number) = (&id[..1], id.as_bytes()[1]);
                    let first = last.filter(|_| std::mem::take(&mut range)).unwrap_or(number);
                    ids.extend((first..=number).map(|one| format!("{letter}{}", char::from(one))));
                    last = Some(number);
                    if word.ends_with([')', '.', ':', ';']) {
                        break;
                    }
                }
                _ => break,
            }
        }
    }
    ids
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "txt")
        {
            found.push(path);
        }
    }
}

/// What the tests say that they test, with where they say it first.
fn tested() -> BTreeMap<String, PathBuf> {
    let mut tested = BTreeMap::new();
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("the crates") {
        files(&entry.expect("an entry").path(), &mut all);
    }
    all.sort();
    for path in all {
        let text = fs::read_to_string(&path).expect("a source");
        let name = path.strip_prefix(root()).expect("in the root").to_owned();
        let whole = name.components().any(|part| part.as_os_str() == "tests")
            || name.to_string_lossy().ends_with("tests.rs");
        let test = if whole {
            Some(text.as_str())
        } else {
            text.split_once("#[cfg(test)]").map(|(_, test)| test)
        };
        // This file talks of how rules are mentioned, and tests none.
        if name.ends_with("sim/tests/spec.rs") {
            continue;
        }
        for id in test.map(mentioned).unwrap_or_default() {
            tested.entry(id).or_insert_with(|| name.clone());
        }
    }
    tested
}

#[test]
fn mentions_are_understood() {
    let check = |text: &str, ids: &[&str]| {
        assert_eq!(mentioned(text), ids.iter().map(|id| (*id).to_owned()).collect(), "{text}");
    };
    check("it waits (rule D2), and then D3", &["D2"]);
    check("/// (rules A1 and\n/// A2).", &["A1", "A2"]);
    check("rules D1 to D4, P1: all", &["D1", "D2", "D3", "D4", "P1"]);
    check("as a rule X is", &[]);
}

#[test]
fn every_rule_is_a_reason_or_says_why_not() {
    let named: BTreeSet<&str> = cluster::Reason::RULES.iter().copied().collect();
    let stated = stated();
    let unknown: Vec<_> = named.iter().filter(|id| !stated.contains_key(**id)).collect();
    assert!(unknown.is_empty(), "reasons name rules that SPEC.md does not state: {unknown:?}");
    for (id, marked) in &stated {
        let is_reason = named.contains(id.as_str());
        assert!(
            is_reason || *marked,
            "no reason names {id}: mark it in SPEC.md ({MARKS:?}), or give it one"
        );
        assert!(!is_reason || !*marked, "a reason names {id}, which SPEC.md marks as none");
    }
}

#[test]
fn every_rule_is_named_by_a_test_and_every_test_names_a_rule_that_is_stated() {
    let (stated, tested) = (stated(), tested());
    let untested: Vec<_> = stated.keys().filter(|id| !tested.contains_key(*id)).collect();
    assert!(untested.is_empty(), "no test says that it tests {untested:?}");
    let unknown: Vec<_> = tested.iter().filter(|(id, _)| !stated.contains_key(*id)).collect();
    assert!(unknown.is_empty(), "tests name rules that SPEC.md does not state: {unknown:?}");
    for mutation in sim::Mutation::ALL {
        assert!(
            stated.contains_key(mutation.rule()),
            "{mutation} breaks a rule that SPEC.md does not state"
        );
    }
}
