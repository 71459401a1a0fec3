//! A draft is an inventory that works, as far as what was asked can tell.

use super::{cluster::Cluster, filesystems::isolated, harness::Move, ours::os_user, ssh::Sshd};
use adapters::testing::Ensemble;
use anyhow::{Context, Result, ensure};
use manatee::shard::{DONOR, Donor, Standalone};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};
use tempfile::TempDir;
use toml::{Table, Value};

/// What a draft says of a donor besides how it is started and stopped.
const SERVER: [&str; 9] = [
    "kind",
    "host",
    "address",
    "port",
    "data_dir",
    "bin_dir",
    "socket_dir",
    "os_user",
    "superuser",
];

/// The draft for a move, or what was said instead.
fn draft<D: Donor>(moved: &Move<D>, args: &[&str]) -> Result<String> {
    let mut discover = Command::new(env!("CARGO_BIN_EXE_manatee"));
    discover.args(["transplant", "discover"]).args(args);
    for peer in moved.stage.peers() {
        discover.arg("--recipient").arg(peer.config_file());
    }
    let output = discover.output()?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {problem}");
    Ok(String::from_utf8(output.stdout)?)
}

/// These with whom to ask by, as the tests' servers have them.
fn by<'a>(told: &'a Table, args: &[&'a str]) -> Result<Vec<&'a str>> {
    let superuser = told["superuser"].as_str().context("a superuser")?;
    let os_user = told["os_user"].as_str().context("a user")?;
    Ok([args, &["--superuser", superuser, "--os-user", os_user]].concat())
}

fn refused<D: Donor>(moved: &Move<D>, args: &[&str], why: &[&str]) -> Result<()> {
    let told = draft(moved, args).err().context("a refusal")?.to_string();
    for why in why {
        ensure!(told.contains(why), "{why}: {told}");
    }
    Ok(())
}

/// The draft says of the donor what is so.
fn check(draft: &str, mut told: Table, fields: &[&str]) -> Result<()> {
    let read: Table = draft.parse()?;
    let host = told.entry("host").or_insert("local".into()).to_string();
    for field in SERVER.iter().chain(fields) {
        ensure!(read["donor"].get(field) == told.get(*field), "{field}: {draft}");
    }
    // In whatever order.
    let standbys = |donor: &Value, field: &str| -> BTreeMap<String, String> {
        let all = donor.get("standbys").and_then(Value::as_array).into_iter().flatten();
        let text = |one: &Value, field: &str| one.get(field).map(Value::to_string);
        all.filter_map(|one| Some((text(one, "name")?, text(one, field).unwrap_or_default())))
            .collect()
    };
    let told = Value::from(told);
    for field in ["sitter", "data_dir"] {
        let (found, expected) = (standbys(&read["donor"], field), standbys(&told, field));
        ensure!(found == expected, "{field}: {found:?}, {expected:?}: {draft}");
    }
    let hosts = standbys(&read["donor"], "host");
    ensure!(hosts.values().all(|one| *one == host), "{hosts:?}: {draft}");
    Ok(())
}

/// Nothing stands in the way of a move by this inventory.
fn works<D: Donor>(moved: &Move<D>, inventory: &str) -> Result<()> {
    fs::write(moved.stage.inventory(), inventory)?;
    let told = moved.stage.transplant(&["preflight"])?;
    ensure!(told.contains("nothing stands in the way"), "{told}: {inventory}");
    Ok(())
}

/// A directory in which a server is reached as if it were of another port.
fn disguise(sockets: &Path, (port, other): (u16, u16)) -> Result<(TempDir, String)> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let socket = |port: u16| format!(".s.PGSQL.{port}");
    symlink(sockets.join(socket(port)), directory.path().join(socket(other)))?;
    let name = directory.path().display().to_string();
    Ok((directory, name))
}

#[test]
fn an_inventory_is_drafted_from_a_server() -> Result<()> {
    let moved = Move::prepare()?;
    let told = moved.stage.donor().inventory()?;
    let [port, socket_dir, superuser] =
        ["port", "socket_dir", "superuser"].map(|name| told[name].to_string().replace('"', ""));
    let os_user = os_user()?;
    let drafted = draft(&moved, &by(&told, &["--socket-dir", &socket_dir, "--port", &port])?)?;
    check(&drafted, told.clone(), &[])?;
    works(&moved, &drafted)?;
    // Its socket is found, and a connection string says the same.
    let found = draft(&moved, &by(&told, &["--port", &port])?)?;
    ensure!(found == drafted, "{found}");
    for dsn in [
        format!("host={socket_dir} port={port} user={superuser}"),
        format!("postgresql://{superuser}@127.0.0.1:{port}/postgres"),
    ] {
        let found = draft(&moved, &["--os-user", &os_user, "--dsn", &dsn])?;
        ensure!(found == drafted, "{dsn}: {found}");
    }
    refused(&moved, &["--dsn", "host=192.0.2.1"], &["--host ssh:root@192.0.2.1"])?;
    refused(&moved, &["--dsn", "host=/run", "--port", "1"], &["--dsn", "cannot be used with"])?;
    refused(&moved, &by(&told, &["--port", "1"])?, &["no server answers on local"])?;

    let read: Table = drafted.parse()?;
    for verb in ["stop", "stop", "start", "start"] {
        let command = read["donor"]["service"][verb].as_str().context("a command")?;
        let ended = Command::new("sh").args(["-c", command]).status()?;
        ensure!(ended.success(), "{verb}: {command}");
    }
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn an_inventory_is_drafted_from_a_shard() -> Result<()> {
    let moved = Move::of_ours(None)?;
    let donor = moved.stage.donor();
    let told = donor.inventory()?;
    let (coordination, name) = (donor.shard().coordination(), donor.shard().name());
    let shard = by(&told, &["--shard", name, "--coordination", coordination])?;
    let drafted = draft(&moved, &shard)?;
    check(&drafted, told.clone(), &["manatee"])?;
    works(&moved, &drafted)?;

    donor.adm(&["freeze", "--reason", "a person's"])?;
    let drafted = draft(&moved, &shard)?;
    ensure!(drafted.contains("\n# It is frozen"), "{drafted}");
    works(&moved, &drafted)?;

    // Asked by itself, its primary says whose it is.
    let port = told["port"].to_string();
    let alone = draft(&moved, &by(&told, &["--port", &port])?)?;
    ensure!(alone.contains("LOOK HERE: a sitter of Manatee has it"), "{alone}");

    // Another server is not taken for the primary's.
    let other = donor.others().next().context("another peer")?;
    let ports = (other.host().1, donor.primary().host().1);
    let (_sockets, directory) = disguise(&other.dataset().join("run"), ports)?;
    let drafted = draft(&moved, &[&shard[..], &["--socket-dir", &directory]].concat())?;
    ensure!(drafted.contains("is a standby; --host is to name the host of"), "{drafted}");
    fs::write(moved.stage.inventory(), &drafted)?;
    // What is marked is wrong, and the draft can be loaded.
    let problems = moved.stage.transplant(&["preflight"]).err().context("problems")?.to_string();
    ensure!(problems.contains("donor: "), "{problems}");

    let nobody = ["--shard", "nobody", "--coordination", coordination];
    refused(&moved, &nobody, &["nobody is registered", "--shard"])?;
    let nowhere = ["--shard", name, "--coordination", "sqlite:/nowhere"];
    refused(&moved, &nowhere, &["sqlite:/nowhere: there is no such file"])?;
    refused(&moved, &["--shard", name], &["--coordination <URL>"])?;
    let both = [&shard[..], &["--patroni", "http://127.0.0.1:1"]].concat();
    refused(&moved, &both, &["--shard <NAME>", "--patroni <URL>", "cannot be used with"])
}

/// It meets where the original's shards do.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn an_inventory_is_drafted_from_a_shard_in_zookeeper() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ensemble = Ensemble::start(directory.path(), 1)?;
    let moved = Move::of_ours(Some(ensemble.url()))?;
    let donor = moved.stage.donor();
    let told = donor.inventory()?;
    let (name, url) = (donor.shard().name(), ensemble.url());
    let drafted = draft(&moved, &by(&told, &["--shard", name, "--coordination", &url])?)?;
    check(&drafted, told, &["manatee"])?;
    works(&moved, &drafted)
}

/// Its sitters are seen on the host that is named.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn an_inventory_is_drafted_from_a_shard_elsewhere() {
    isolated("discover::an_inventory_is_drafted_from_a_shard_elsewhere", |place| {
        draft_over_ssh(place).expect("a draft");
    });
}

fn draft_over_ssh(place: &Path) -> Result<()> {
    let _sshd = Sshd::start(place)?;
    let moved = Move::of_ours(None)?;
    let donor = moved.stage.donor();
    let mut told = donor.inventory()?;
    let (coordination, name) = (donor.shard().coordination(), donor.shard().name());
    let host = "ssh:root@host-donor";
    let shard = ["--host", host, "--shard", name, "--coordination", coordination];
    let drafted = draft(&moved, &by(&told, &shard)?)?;
    told.insert("host".to_owned(), host.into());
    check(&drafted, told, &["manatee"])?;
    works(&moved, &drafted)
}

/// Its peers are none of our sitters: a person says which files they have.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn an_inventory_is_drafted_from_a_shard_of_the_first_version() -> Result<()> {
    let moved = Move::of_first_version()?;
    let told = moved.stage.donor().inventory()?;
    let [name, coordination] =
        ["shard", "coordination"].map(|field| told["manatee"][field].as_str().unwrap_or_default());
    let drafted = draft(&moved, &by(&told, &["--shard", name, "--coordination", coordination])?)?;
    let mut read: Table = drafted.parse()?;
    let marks = drafted.matches("LOOK HERE: which file its sitter has").count();
    ensure!(marks == 3, "{drafted}");
    let donor = read["donor"].as_table_mut().context("a donor")?;
    donor["manatee"]["sitter"] = told["manatee"]["sitter"].clone();
    let standbys = donor["standbys"].as_array_mut().context("standbys")?;
    let known = told["standbys"].as_array().context("standbys")?;
    for standby in standbys {
        let same = known.iter().find(|one| one["name"] == standby["name"]);
        standby["sitter"] = same.context("a standby of this name")?["sitter"].clone();
    }
    let edited = toml::to_string(&read)?;
    check(&edited, told.clone(), &["manatee"])?;
    works(&moved, &edited)
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn an_inventory_is_drafted_from_a_patroni_cluster() -> Result<()> {
    let make = |directory: &_, setup: &_| Cluster::make(directory, setup, 2, json!({}), None);
    let moved = Move::with(|_| {}, make)?;
    let told = moved.stage.donor().inventory()?;
    let [url, user, password] = ["url", "user", "password_file"]
        .map(|field| told["patroni"][field].as_str().unwrap_or_default());
    let patroni = by(
        &told,
        &["--patroni", url, "--patroni-user", user, "--patroni-password-file", password],
    )?;
    let drafted = draft(&moved, &patroni)?;
    check(&drafted, told.clone(), &["patroni"])?;
    works(&moved, &drafted)?;
    let port = told["port"].to_string();
    let by_itself = draft(&moved, &by(&told, &["--port", &port])?)?;
    ensure!(by_itself.contains("LOOK HERE: Patroni has it"), "{by_itself}");

    // Another server is not taken for the leader's.
    let directory = moved.stage.inventory().with_file_name("other");
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    let other = Standalone::make(&directory, "select 1")?;
    let ports = (other.servers()[0].1.1, moved.stage.donor().servers()[0].1.1);
    let (_sockets, directory) = disguise(&directory.join(DONOR), ports)?;
    let drafted = draft(&moved, &[&patroni[..], &["--socket-dir", &directory]].concat())?;
    ensure!(drafted.contains("was started at another time than the one of one"), "{drafted}");
    fs::write(moved.stage.inventory(), &drafted)?;
    let problems = moved.stage.transplant(&["preflight"]).err().context("problems")?.to_string();
    ensure!(problems.contains("donor: "), "{problems}");

    let alone = ["--patroni", url, "--patroni-user", user];
    refused(&moved, &alone, &["--patroni-password-file <FILE>"])?;
    let nowhere = ["--patroni", "http://127.0.0.1:1"];
    refused(&moved, &nowhere, &["Patroni at http://127.0.0.1:1/cluster does not answer"])
}
