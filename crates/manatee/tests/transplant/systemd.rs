//! Donor and peers as units of a real systemd, which is started for the test alone: the first process of a
//! namespace of processes, with units, control groups and a name of its own.

use super::harness::Move;
use anyhow::{Context, Result, ensure};
use manatee::shard::{DONOR, Standalone, sh};
use saga::Mode;
use std::{fs, path::Path, process::Command};

/// Says to a test that a systemd runs it.
const UNDER: &str = "MANATEE_TEST_SYSTEMD";
/// Units that are made here, in a file system that is seen by the test alone.
const UNITS: &str = "/etc/systemd/system";

/// The first process of the test's namespaces: what is mounted here, nobody else sees.
const FIRST: &str = "mount -t tmpfs none /run && mount -t tmpfs none /etc/systemd/system && \
    cp \"$1\" /etc/systemd/system/test.service && export container=manatee && \
    exec /lib/systemd/systemd --system --unit=test.service --log-target=null --show-status=0";

/// Runs `body` as a service. `test` is the name of the calling test.
fn under_systemd(test: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(UNDER).is_some() {
        return body();
    }
    ensure!(rustix::process::geteuid().is_root(), "{test} needs root: run the tests as root");
    let place = tempfile::Builder::new().prefix("manatee-systemd-").tempdir()?;
    let (unit, told) = (place.path().join("unit"), place.path().join("told"));
    let keep =
        |name: &str| std::env::var(name).map(|value| format!("Environment='{name}={value}'\n"));
    let environment: String =
        ["PATH", "HOME", "TMPDIR"].iter().flat_map(|name| keep(name)).collect();
    let text = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n{environment}Environment={UNDER}=1\n\
         ExecStart={} --exact {test} --include-ignored --nocapture --test-threads 1\n\
         StandardOutput=file:{told}\nStandardError=append:{told}\nExecStopPost=systemctl exit 0\n",
        std::env::current_exe()?.display(),
        told = told.display()
    );
    fs::write(&unit, text)?;
    // Whoever is killed in this line, the ones after it end with it.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup", "--uts"])
        .args(["sh", "-c", FIRST, "first"])
        .arg(&unit)
        .status()?;
    let told = fs::read_to_string(&told).unwrap_or_default();
    println!("{told}");
    // Under another name nothing would have run, with success.
    ensure!(told.contains("test result: ok. 1 passed"), "{test}, under a systemd: {status}");
    Ok(())
}

/// Makes a unit that is started at boot, and can be started.
fn install(name: &str, service: &str) -> Result<toml::Value> {
    let text = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\n{service}\n[Install]\nWantedBy=multi-user.target\n"
    );
    fs::write(Path::new(UNITS).join(format!("{name}.service")), text)?;
    sh(&format!("systemctl daemon-reload && systemctl enable --quiet {name}"))?;
    let fields = [("kind", "systemd"), ("unit", name)];
    let fields = fields.map(|(field, value)| (field.to_owned(), value.into()));
    Ok(toml::Table::from_iter(fields).into())
}

/// What systemd says of a unit.
fn state(asked: &str, unit: &str) -> Result<String> {
    Ok(sh(&format!("systemctl {asked} {unit} || true"))?.trim().to_owned())
}

/// Makes units of the donor's server, which runs by one from now on, and of the peers' sitters, as the README has
/// it.
fn make_units(moved: &Move<Standalone>) -> Result<()> {
    let inventory = moved.stage.inventory();
    let mut table: toml::Table = toml::from_str(&fs::read_to_string(&inventory)?)?;
    let donor = table["donor"].as_table_mut().context("a donor")?;
    let word = |name: &str| donor[name].as_str().unwrap_or_default().to_owned();
    let server = format!(
        "Type=notify\nUser={}\nExecStart={}/postgres -D {}\nKillMode=mixed\nKillSignal=SIGINT",
        word("os_user"),
        word("bin_dir"),
        word("data_dir")
    );
    moved.stage.donor_service("stop")?;
    donor.insert("service".to_owned(), install("donors-server", &server)?);
    sh("systemctl start donors-server")?;
    let peers = table["recipient"].as_array_mut().context("peers")?;
    for (peer, entry) in moved.stage.peers().iter().zip(peers) {
        let sitter = format!(
            "ExecStart={} sitter --config {}\nStandardError=append:{}\nRestart=always\nRestartSec=1\n\
             KillMode=process\nTimeoutStopSec=120",
            env!("CARGO_BIN_EXE_manatee"),
            peer.config_file().display(),
            peer.log_file().display()
        );
        let entry = entry.as_table_mut().context("a peer")?;
        entry.insert("service".to_owned(), install(&format!("sitter-{}", peer.zone()), &sitter)?);
    }
    fs::write(&inventory, toml::to_string(&table)?)?;
    moved.wait_for_writes_to(DONOR)
}

/// There and back by the program, and by what a person types; a donor that was moved is not started at boot, one
/// that came back is.
#[test]
#[ignore = "starts a systemd: make test-transplant"]
fn servers_and_sitters_that_are_units() -> Result<()> {
    under_systemd("systemd::servers_and_sitters_that_are_units", || {
        let moved = Move::prepare()?;
        make_units(&moved)?;
        moved.stage.transplant(&["run", "--yes"])?;
        moved.wait_for_writes_to("amber")?;
        for peer in moved.stage.peers() {
            moved.check_peer(peer)?;
            let unit = format!("sitter-{}", peer.zone());
            ensure!(state("is-active", &unit)? == "active", "{unit} runs");
        }
        let is = |active: &str, enabled: &str| -> Result<()> {
            let found =
                [state("is-active", "donors-server")?, state("is-enabled", "donors-server")?];
            ensure!(found == [active, enabled], "{found:?}");
            Ok(())
        };
        is("inactive", "disabled")?;
        moved.stage.transplant(&["verify"])?;
        moved.stage.transplant(&["rollback"])?;
        ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "it was undone");
        moved.wait_for_writes_to(DONOR)?;
        is("active", "enabled")?;
        moved.check_donor()?;

        moved.type_there_and_back("end")?;
        is("active", "enabled")?;
        moved.check_donor()
    })
}
