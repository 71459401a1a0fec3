//! Commands that an operator runs on a peer itself, where they refuse.

use crate::shard::{SHARD, program, run};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

/// A sitter's file whose sitter does not run.
fn sitter_file() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().display();
    let text = format!(
        "shard = \"{SHARD}\"\ncoordination = \"sqlite:{at}/shard.db\"\ndataset = \"{at}/peer\"\n\
         ip = \"127.0.0.1\"\n[postgres]\nport = 1\n[replication]\npassword = \"secret\"\n"
    );
    let file = directory.path().join("sitter.toml");
    fs::write(&file, text).expect("written");
    (directory, file)
}

#[test]
fn the_sitters_file_must_be_given() {
    for command in [&["rebuild", "-y"][..], &["snapshot", "list"]] {
        run(program().arg("adm").args(command)).fails_with(&["--config", "MANATEE_SITTER_CONFIG"]);
    }
}

#[test]
fn a_plain_directory_has_no_snapshots() {
    let (_directory, file) = sitter_file();
    for command in [&["list"][..], &["create"], &["destroy", "1"], &["hold", "1"]] {
        let mut program = program();
        let ran = run(program.args(["adm", "snapshot"]).args(command).arg("-c").arg(&file));
        ran.fails_with(&["a plain directory", "has no snapshots", "[storage]"]);
    }
}

#[test]
fn without_its_sitter_nothing_is_rebuilt() {
    let (_directory, file) = sitter_file();
    let ran = run(program().env("MANATEE_SITTER_CONFIG", &file).args(["adm", "rebuild", "-y"]));
    ran.fails_with(&["the sitter of this peer does not answer", "127.0.0.1:2"]);
}
