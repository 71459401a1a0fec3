//! What a host of the recipient lacks is said before anything is begun.

use super::harness::Move;
use adapters::exec::Exec;
use anyhow::{Result, ensure};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// Programs of a PostgreSQL that is elsewhere than the donor's: the same, but for what of it is changed. A
/// server that is started from there finds all that it needs there.
fn another_postgres(at: &Path) -> Result<PathBuf> {
    let bin_dir = adapters::postgres::programs(None)?.0;
    let said = |option: &str| -> Result<PathBuf> {
        let said = Exec::new(bin_dir.join("pg_config")).arg(option).run_briefly()?;
        Ok(PathBuf::from(String::from_utf8(said)?.trim()))
    };
    let (bin, lib, share) = (at.join("bin"), at.join("lib"), at.join("share"));
    for (from, to) in
        [(&bin_dir, &bin), (&said("--pkglibdir")?, &lib), (&said("--sharedir")?, &share)]
    {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            symlink(entry.path(), to.join(entry.file_name()))?;
        }
    }
    let extension = share.join("extension");
    fs::remove_file(&extension)?;
    fs::create_dir(&extension)?;
    for entry in fs::read_dir(said("--sharedir")?.join("extension"))? {
        let entry = entry?;
        symlink(entry.path(), extension.join(entry.file_name()))?;
    }
    script(&bin.join("pg_config"), &format!("echo {}", lib.display()))?;
    let initdb = bin_dir.join("initdb");
    let initdb = format!(
        "case $1 in --show) echo share_path={} ;; *) exec {} \"$@\" ;; esac",
        share.display(),
        initdb.display()
    );
    script(&bin.join("initdb"), &initdb)?;
    Ok(at.to_owned())
}

/// Puts a script in the place of a program.
fn script(path: &Path, text: &str) -> Result<()> {
    fs::remove_file(path)?;
    fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[test]
fn what_a_host_lacks_is_said_at_once() -> Result<()> {
    let place = tempfile::Builder::new().prefix("manatee-test-").tempdir()?;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755))?;
    let other = another_postgres(&place.path().join("other"))?;
    let settings = toml::toml! { bin_dir = "" };
    let moved = Move::with(
        |options| {
            let mut settings = settings;
            settings["bin_dir"] = other.join("bin").display().to_string().into();
            options.overrides.insert("postgres".to_owned(), settings.into());
        },
        manatee::shard::Standalone::make,
    )?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("nothing stands in the way"), "{told}");

    // A library and two extensions that the donor alone has.
    let own = place.path().join("of_the_donor.so");
    fs::copy(fs::canonicalize(other.join("lib/citext.so"))?, &own)?;
    moved.stage.donor_sql("create extension citext")?;
    moved.stage.donor_sql("create extension hstore")?;
    moved.stage.donor_sql("create extension pg_stat_statements")?;
    moved.stage.donor_sql(&format!(
        "create function of_the_donor(citext, citext) returns citext language c as '{}', 'citext_smaller'",
        own.display()
    ))?;
    moved.stage.donor_service("stop")?;
    let conf = moved.stage.data().join("postgresql.conf");
    let text = fs::read_to_string(&conf)?;
    let loads = "shared_preload_libraries = 'pg_stat_statements, auto_explain'\n";
    fs::write(&conf, text + loads)?;
    moved.stage.donor_service("start")?;
    // Now it is gone, as it is where only the donor's host has it.
    fs::remove_file(&own)?;
    fs::remove_file(other.join("lib/citext.so"))?;
    fs::remove_file(other.join("share/extension/citext.control"))?;
    fs::remove_file(other.join("share/extension/hstore--1.7--1.8.sql"))?;
    let (address, port) = moved.primary().host();
    let _taken = TcpListener::bind((address, port))?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    let of_donor = format!(
        "recipient amber: it lacks the library {}, which is loaded for function of_the_donor(citext,citext) of \
         database postgres",
        own.display()
    );
    for problem in [
        of_donor.as_str(),
        "recipient amber: it lacks the library $libdir/citext",
        "recipient birch: it lacks the library $libdir/citext",
        "recipient amber: it lacks the extension citext, which database postgres has",
        "recipient amber: its extension hstore has no version 1.8",
        "recipient amber: it does not load pg_stat_statements at its start",
        &format!(
            "recipient amber: its server cannot listen on {address}:{port}: Address already in use"
        ),
    ] {
        ensure!(told.contains(problem), "{problem}: {told}");
    }
    ensure!(!told.contains("birch: its server cannot listen"), "{told}");
    ensure!(!moved.journal().exists(), "nothing was begun");
    let told = moved.stage.transplant(&["preflight"]).unwrap_err().to_string();
    ensure!(told.contains("note: amber does not load auto_explain"), "{told}");
    Ok(())
}

#[test]
fn a_locale_that_a_host_lacks_is_named() -> Result<()> {
    let moved = Move::prepare()?;
    moved.stage.donor_sql("create collation gone (provider = libc, locale = 'C.UTF-8')")?;
    moved.stage.donor_sql("create table words (word text collate gone)")?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("nothing stands in the way"), "{told}");
    // As where only the donor's host has it.
    moved
        .stage
        .donor_sql("update pg_collation set collcollate = 'sv_SE' where collname = 'gone'")?;
    let told = moved.stage.transplant(&["preflight"]).unwrap_err().to_string();
    ensure!(told.contains("cannot use the locale \"sv_SE\" of database postgres"), "{told}");
    ensure!(told.matches("cannot use the locale").count() == moved.stage.peers().len(), "{told}");
    Ok(())
}

/// The donor sorts by what the peers do not have, as far as its programs can be asked.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn another_order_is_refused_until_it_is_accepted() -> Result<()> {
    let moved = Move::prepare()?;
    let words = "create database words template template0 encoding 'UTF8'";
    moved.stage.donor_sql(words)?;
    let german = "create collation german (provider = icu, locale = 'de')";
    moved.donor_sql_in("words", german)?;
    moved.donor_sql_in("words", "create table words (word text collate german)")?;
    let place = tempfile::Builder::new().prefix("manatee-test-").tempdir()?;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755))?;
    let bin = another_postgres(&place.path().join("other"))?.join("bin");
    let postgres = fs::canonicalize(bin.join("postgres"))?;
    // What it is linked with cannot be seen.
    script(&bin.join("postgres"), &format!("exec {} \"$@\"", postgres.display()))?;
    let inventory = moved.stage.inventory();
    let mut table: toml::Table = toml::from_str(&fs::read_to_string(&inventory)?)?;
    table["donor"]["bin_dir"] = bin.display().to_string().into();
    fs::write(&inventory, toml::to_string(&table)?)?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("nothing stands in the way"), "{told}");
    ensure!(told.contains("nothing is in that order yet"), "{told}");

    moved.donor_sql_in("words", "create index on words (word)")?;
    let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
    ensure!(told.contains("indexes of database words in the order of \"de\""), "{told}");
    ensure!(told.contains("such as words_word_idx") && !moved.journal().exists(), "{told}");
    moved.add("[limits]\naccept_collation_change = true")?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("nothing stands in the way") && told.contains("note: ICU"), "{told}");
    let reindex = "/reindexdb -h ";
    for verb in ["plan", "runbook"] {
        let told = moved.stage.transplant(&[verb])?;
        ensure!(told.contains(reindex), "{told}");
    }
    let told = moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
    ensure!(
        told.contains("now, for another collation, on amber's host: /") && told.contains(reindex),
        "{told}"
    );
    moved.wait_for_writes_to("amber")?;
    moved.check_peer(moved.primary())?;
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}
