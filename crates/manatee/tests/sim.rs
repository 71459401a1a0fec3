//! `manatee sim check` as a program reads it.

use std::{fs, path::Path, process::Command};

/// What it prints, and its exit status.
fn check(files: &[&Path]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manatee"));
    let output = command.args(["sim", "check"]).args(files).output().expect("it runs");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

#[test]
fn each_vector_that_fails_is_named_with_its_step_and_its_difference() {
    let recorded =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sim/tests/vectors/original.jsonl");
    let text = fs::read_to_string(&recorded).expect("recorded behaviour");
    let count = text.lines().count();
    let directory = tempfile::tempdir().expect("a directory");
    let wrong = directory.path().join("wrong.jsonl");
    let first = text.lines().next().expect("a vector");
    let mut vector: serde_json::Value = serde_json::from_str(first).expect("JSON");
    vector["name"] = "turned".into();
    let step = vector["steps"].as_array().expect("steps").len() - 1;
    let role = &mut vector["steps"][step]["expect"]["role"];
    *role = if *role == "sync" { "primary" } else { "sync" }.into();
    fs::write(&wrong, format!("{vector}\n")).expect("a file");

    assert_eq!(check(&[&recorded]), (format!("{count} passed, 0 failed\n"), Some(0)));
    let (told, code) = check(&[&recorded, &wrong]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.ends_with(&format!("{count} passed, 1 failed\n")), "{told}");
    assert!(told.contains(&format!("turned: step {}:\n    ", step + 1)), "{told}");
    // Nothing is not everything.
    let empty = directory.path().join("empty.jsonl");
    fs::write(&empty, "").expect("a file");
    assert_ne!(check(&[&empty]).1, Some(0));
}
