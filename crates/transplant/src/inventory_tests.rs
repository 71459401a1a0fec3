//! What an inventory is refused for, and what the example shows.

use super::*;
use std::io::Write;

const EXAMPLE: &str = include_str!("../../../etc/transplant.toml");
const LEAST: &str = r#"[donor]
kind = "postgres"
address = "10.0.0.9"
data_dir = "/data"
bin_dir = "/bin"
service = { kind = "systemd", unit = "postgresql" }
[[recipient]]
config = "/etc/manatee/sitter.toml"
service = { kind = "smf", fmri = "manatee/sitter" }
"#;

fn load(text: &str) -> Result<Inventory> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let loaded = Inventory::load(file.path());
    loaded.map_err(|error| {
        let told = format!("{error:#}");
        assert!(told.starts_with(&file.path().display().to_string()), "no file: {told}");
        error
    })
}

fn check_refused(text: &str, expected: &[&str]) {
    let error = format!("{:#}", load(text).expect_err("a refused file"));
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// The example with every field that is commented out set to what is written there.
fn everything_set() -> String {
    let set = |line: &str| match line.strip_prefix("# ") {
        Some(table) if table.starts_with('[') => table.to_owned(),
        Some(field) if field.split_once(" = ").is_some_and(|(name, _)| is_name(name)) => {
            field.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(set).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_shows_every_field_with_its_default() {
    let plain = load(EXAMPLE).expect("the example");
    // As no donor can have it: what belongs to other kinds is in it, too.
    let mut shown: Inventory =
        toml::from_str(&everything_set()).expect("the example with everything set");
    // Lists are empty by default, and shown with one in them.
    assert_eq!((shown.donor.standbys.len(), shown.clients.len()), (1, 1));
    let standbys = std::mem::take(&mut shown.donor.standbys);
    let manatee = shown.donor.manatee.take();
    assert!(manatee.is_some() && standbys[0].sitter.is_some());
    let clients = std::mem::take(&mut shown.clients);
    let patroni = shown.donor.patroni.take();
    let backup = shown.backup.take();
    let (dataset, rate) = (shown.donor.dataset.take(), shown.limits.rate_mib.take());
    assert!(backup.is_some() && dataset.is_some() && rate.is_some(), "they are shown");
    assert_eq!(shown, plain);
    assert_eq!(plain.limits, Limits::default());

    // Whatever there is, the example names.
    shown.donor.standbys = standbys;
    shown.donor.manatee = manatee;
    shown.clients = clients;
    shown.donor.patroni = patroni;
    shown.backup = backup;
    (shown.donor.dataset, shown.limits.rate_mib) = (dataset, rate);
    let mut names = fields();
    assert!(names.len() > 40, "{names:?}");
    field_names(&toml::Table::try_from(&shown).expect("TOML").into(), &mut names);
    for name in names {
        assert!(
            EXAMPLE.contains(&format!("{name} = ")) || EXAMPLE.contains(&format!("{name}]")),
            "the example does not name {name}"
        );
    }
}

/// The fields of all tables as they are declared: one that is not given is not written either.
fn fields() -> Vec<String> {
    let declared = include_str!("inventory.rs").lines();
    let names = declared.filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "));
    names.filter(|(name, _)| is_name(name)).map(|(name, _)| name.to_owned()).collect()
}

fn field_names(value: &toml::Value, names: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                names.push(name.clone());
                field_names(value, names);
            }
        }
        toml::Value::Array(values) => values.iter().for_each(|value| field_names(value, names)),
        _ => {}
    }
}

#[test]
fn what_will_not_do_is_refused() {
    load(LEAST).expect("the least");
    let with = |from: &str, to: &str| LEAST.replace(from, to);
    check_refused(&with("bin_dir", "bindir"), &["line 5", "bindir", "bin_dir"]);
    check_refused(&format!("{LEAST}[limits]\nlag = 1\n"), &["line 11", "lag_bytes"]);
    check_refused(
        &with("\"/data\"", "\"data\""),
        &["donor.data_dir", "\"data\" is no absolute path"],
    );
    check_refused(&with("\"/bin\"", "\"bin\""), &["donor.bin_dir", "no absolute path"]);
    check_refused(
        &with("\"/etc/manatee/sitter.toml\"", "\"sitter.toml\""),
        &["recipient[0].config", "\"sitter.toml\" is no absolute path"],
    );
    check_refused(
        &with("[[recipient]]", "[[recipient]]\nhost = \"db1\""),
        &["line 8", "\"db1\" is no host", "ssh:user@host"],
    );
    check_refused(&with("\"smf\"", "\"upstart\""), &["line 9", "upstart", "systemd"]);
    check_refused(&with("\"postgres\"\n", "\"mysql\"\n"), &["line 2", "mysql", "postgres"]);
    let patroni = "donor.patroni: give it where donor.kind is \"patroni\", and only there";
    check_refused(&with("\"postgres\"", "\"patroni\""), &[patroni]);
    let reached = "[donor.patroni]\nurl = \"http://h:8008\"\n";
    check_refused(&format!("{LEAST}{reached}"), &[patroni]);
    let half = format!("{}{reached}user = \"u\"\n", with("\"postgres\"", "\"patroni\""));
    check_refused(&half, &["give both user and password_file"]);
    check_refused(
        &with("address", "method = \"snapshots\"\naddress"),
        &["give the dataset that they are of, [donor.dataset]"],
    );
    check_refused(&format!("{LEAST}[verify]\nsum = true\n"), &["line 11", "row_counts"]);
    check_refused(&format!("{LEAST}[limits]\nrate_mib = 0\n"), &["rate_mib", "at least 1"]);
    let backup = format!("{LEAST}[backup]\ndir = \"backups\"\n");
    check_refused(&backup, &["backup.dir", "\"backups\" is no absolute path"]);
    let (donor, _) = LEAST.split_once("[[recipient]]").expect("a recipient");
    check_refused(donor, &["missing field `recipient`"]);
    let none = format!("recipient = []\n{donor}");
    check_refused(&none, &["recipient: give the peers of the shard"]);
}

#[test]
fn a_shard_has_sitters_and_others_have_none() {
    let table =
        "[donor.manatee]\ncoordination = \"sqlite:/x\"\nshard = \"x\"\nsitter = \"/x.toml\"\n";
    let standby = "[[donor.standbys]]\nname = \"db2\"\n\
                   service = { kind = \"smf\", fmri = \"x\" }\n";
    let shard = LEAST.replace("\"postgres\"\n", "\"manatee-v2\"\n");
    load(&format!("{shard}{table}")).expect("a shard of one");
    check_refused(&shard, &["donor.manatee: give it for a donor of kind manatee-v1"]);
    check_refused(&format!("{LEAST}{table}"), &["donor.manatee", "only then"]);
    let two = format!("{shard}{table}{standby}");
    check_refused(&two, &["donor.standbys[0].sitter: name the file of its sitter"]);
    let relative = format!("{two}sitter = \"x.toml\"\n");
    check_refused(&relative, &["donor.standbys[0].sitter", "\"x.toml\" is no absolute path"]);
    load(&format!("{two}sitter = \"/x.toml\"\n")).expect("a shard of two");
    let access = format!("{shard}{table}access = \"a.toml\"\n");
    check_refused(&access, &["donor.manatee.access", "\"a.toml\" is no absolute path"]);
    let moved = format!("{shard}{table}access = \"/x.toml\"\n");
    check_refused(&moved, &["\"/x.toml\" is donor.manatee.sitter", "the path of a copy"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Inventory::load(Path::new("/nowhere/move.toml")).expect_err("no file");
    assert!(format!("{error:#}").contains("cannot read /nowhere/move.toml"), "{error:#}");
}
