//! Hosts that are reached by ssh: a real server of it, on loopback, with keys of the test's own.

use super::{
    filesystems::isolated,
    harness::{Move, wait},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Where the keys of whoever runs this are looked for: its own in the namespace of the test.
const HOME: &str = "/root/.ssh";

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().context(program.to_owned())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {}: {errors}", output.status);
    Ok(())
}

/// A server of ssh.
pub struct Sshd {
    config: PathBuf,
    port: u16,
    process: Child,
}

impl Sshd {
    /// Lets in, as root, whoever runs this, under any name of a host that begins with `host-`.
    pub fn start(place: &Path) -> Result<Sshd> {
        fs::create_dir_all(HOME)?;
        run("mount", &["-t", "tmpfs", "-o", "mode=700", "none", HOME])?;
        // It wants a directory for whoever is not let in yet.
        fs::create_dir_all("/run/sshd")?;
        fs::set_permissions("/run/sshd", fs::Permissions::from_mode(0o755))?;
        let (key, server) = (format!("{HOME}/id_ed25519"), format!("{HOME}/server"));
        for key in [&key, &server] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key])?;
        }
        fs::copy(format!("{key}.pub"), format!("{HOME}/authorized_keys"))?;
        let port = adapters::testing::free_ports(1)?[0];
        let config = place.join("sshd_config");
        fs::write(
            &config,
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {server}\nPidFile none\nUsePAM no\n\
                 AuthorizedKeysFile {HOME}/authorized_keys\nPermitRootLogin prohibit-password\n\
                 MaxStartups 100\n"
            ),
        )?;
        let known = fs::read_to_string(format!("{server}.pub"))?;
        fs::write(format!("{HOME}/known_hosts"), format!("[127.0.0.1]:{port} {known}"))?;
        fs::write(
            format!("{HOME}/config"),
            format!(
                "Host host-*\n HostName 127.0.0.1\n Port {port}\n StrictHostKeyChecking yes\n \
                 ControlMaster auto\n ControlPath {HOME}/kept-%C\n ControlPersist 60\n"
            ),
        )?;
        let process = Sshd::spawn(&config)?;
        let server = Sshd { config, port, process };
        server.wait()?;
        Ok(server)
    }

    fn spawn(config: &Path) -> Result<Child> {
        let mut program = Command::new("/usr/sbin/sshd");
        program.args(["-D", "-e", "-f"]).arg(config);
        let silent = program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        silent.spawn().context("sshd: install it (tools/need.sh ssh)")
    }

    fn wait(&self) -> Result<()> {
        wait("sshd to answer", || {
            TcpStream::connect(("127.0.0.1", self.port))
                .map(drop)
                .map_err(|error| error.to_string())
        })
    }

    /// Nobody is let in any more, and who was is thrown out. Nobody else's is in this namespace.
    fn stop(&mut self) -> Result<()> {
        run("pkill", &["--signal", "KILL", "--exact", "sshd"])?;
        self.process.wait()?;
        Ok(())
    }

    fn start_again(&mut self) -> Result<()> {
        self.process = Sshd::spawn(&self.config)?;
        self.wait()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It has ended, or the namespace ends it.
        let _ = (self.process.kill(), self.process.wait());
    }
}

/// Every host is reached by ssh. A connection that is lost stops the run, which says so, and goes on later.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn hosts_are_reached_by_ssh() {
    isolated("ssh::hosts_are_reached_by_ssh", |place| move_over_ssh(place).expect("a move"));
}

/// A person types what the runbook says, and ssh is told to keep its connections.
#[test]
#[ignore = "takes minutes, and an sshd: make test-transplant"]
fn a_runbook_is_typed_over_ssh() {
    isolated("ssh::a_runbook_is_typed_over_ssh", |place| type_over_ssh(place).expect("a move"));
}

fn type_over_ssh(place: &Path) -> Result<()> {
    let _sshd = Sshd::start(place)?;
    let moved = Move::prepare()?;
    reach_all(&moved)?;
    moved.ask_for_backup(&["select 'it''s', 7"])?;
    moved.ask_to_verify()?;
    let book = moved.runbook()?;
    book.type_until("end")?;
    moved.wait_for_writes_to("amber")?;
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    book.go_back()?;
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}

/// Asks for every host to be reached by ssh.
fn reach_all(moved: &Move) -> Result<()> {
    let mut inventory: toml::Table = fs::read_to_string(moved.stage.inventory())?.parse()?;
    let donor = inventory["donor"].as_table_mut().context("a donor")?;
    donor.insert("host".to_owned(), "ssh:root@host-donor".into());
    let peers = inventory["recipient"].as_array_mut().context("peers")?;
    for (number, peer) in peers.iter_mut().enumerate() {
        let peer = peer.as_table_mut().context("a peer")?;
        peer.insert("host".to_owned(), format!("ssh:root@host-{number}").into());
    }
    let client = [("name", "it's a client"), ("host", "ssh:root@host-client"), ("command", "true")];
    let client: toml::Table =
        client.map(|(field, text)| (field.to_owned(), text.into())).into_iter().collect();
    inventory.insert("clients".to_owned(), vec![client].into());
    Ok(fs::write(moved.stage.inventory(), toml::to_string(&inventory)?)?)
}

fn move_over_ssh(place: &Path) -> Result<()> {
    let mut sshd = Sshd::start(place)?;
    let moved = Move::prepare()?;
    reach_all(&moved)?;

    moved.stage.transplant(&["run", "--yes", "--until", "receive"])?;
    sshd.stop()?;
    let told = moved.stage.transplant(&["run", "--yes"]).unwrap_err().to_string();
    ensure!(told.contains("host-donor") && told.contains("Connection refused"), "{told}");
    sshd.start_again()?;
    let begun = adapters::clock::now();
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    println!("cut-over over ssh: {} ms", moved.writer.longest_gap_since(begun).length().0);
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    moved.wait_for_writes_to("donor")?;
    moved.check_donor()
}
