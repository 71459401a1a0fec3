//! A PostgreSQL with physical standbys that nobody looks after.

use super::harness::{Move, wait};
use adapters::{
    exec::{Exec, OsUser},
    postgres,
    service::quote,
    testing::free_ports,
};
use anyhow::{Context, Result, ensure};
use manatee::shard::{Donor, commands};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// The primary and its standby, without whose answer the primary acknowledges nothing.
struct Pair {
    bin_dir: PathBuf,
    user: Option<OsUser>,
    servers: [Server; 2],
}

struct Server {
    name: &'static str,
    home: PathBuf,
    port: u16,
}

/// As the primary names its standby.
const STANDBY: &str = "standby";

impl Pair {
    fn make(directory: &Path, setup: &str) -> Result<Pair> {
        let root = rustix::process::geteuid().is_root();
        let ports = free_ports(2)?;
        let server =
            |name, port| Server { name, home: directory.join(format!("donor-{name}")), port };
        let pair = Pair {
            bin_dir: postgres::programs(None)?.0,
            user: root.then(|| OsUser::find("postgres")).transpose()?,
            servers: [server("primary", ports[0]), server(STANDBY, ports[1])],
        };
        let [primary, standby] = &pair.servers;
        for server in &pair.servers {
            fs::create_dir(&server.home)?;
            fs::set_permissions(&server.home, fs::Permissions::from_mode(0o755))?;
            if let Some(user) = &pair.user {
                chown(&server.home, Some(user.uid), Some(user.gid))?;
            }
        }
        pair.program("initdb")
            .args(["-k", "-U", &pair.superuser()?, "--auth-local=peer"])
            .args(["--auth-host=scram-sha-256", "-D"])
            .arg(primary.home.join("data"))
            .run_briefly()?;
        pair.configure(primary, "max_connections = 50\n")?;
        pair.tell(primary, "start")?;
        pair.sql(setup)?;
        pair.program("pg_basebackup")
            .args(["-R", "-C", "-S", STANDBY, "-c", "fast", "-U", &pair.superuser()?, "-h"])
            .arg(&primary.home)
            .args(["-p", &primary.port.to_string(), "-D"])
            .arg(standby.home.join("data"))
            .run_briefly()?;
        pair.configure(standby, &format!("cluster_name = '{STANDBY}'\n"))?;
        pair.tell(standby, "start")?;
        pair.sql(&format!("alter system set synchronous_standby_names = '{STANDBY}'"))?;
        pair.sql("select pg_reload_conf()")?;
        pair.wait_synchronous()?;
        Ok(pair)
    }

    fn program(&self, name: &str) -> Exec {
        Exec::new(self.bin_dir.join(name)).as_user(self.user.as_ref())
    }

    fn configure(&self, server: &Server, more: &str) -> Result<()> {
        let path = server.home.join("data/postgresql.conf");
        let text = fs::read_to_string(&path)?;
        let (port, home) = (server.port, server.home.display());
        let ours = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{home}'\n"
        );
        Ok(fs::write(&path, text + &ours + more)?)
    }

    fn superuser(&self) -> Result<String> {
        match &self.user {
            Some(user) => Ok(user.name.clone()),
            None => Ok(OsUser::own_name()?),
        }
    }

    fn command(&self, server: &Server, verb: &str) -> String {
        let word = |path: PathBuf| quote(&path.display().to_string());
        let (pg_ctl, log) = (word(self.bin_dir.join("pg_ctl")), word(server.home.join("log")));
        let data = word(server.home.join("data"));
        let status = format!("{pg_ctl} status -D {data} >/dev/null");
        let command = match verb {
            "start" => format!("{status} || {pg_ctl} start -w -D {data} -l {log}"),
            _ => format!("! {status} || {pg_ctl} stop -w -m fast -D {data}"),
        };
        match &self.user {
            Some(user) => format!("su -s /bin/sh {} -c {}", quote(&user.name), quote(&command)),
            None => command,
        }
    }

    fn tell(&self, server: &Server, verb: &str) -> Result<()> {
        Exec::new("sh").args(["-c", &self.command(server, verb)]).run_briefly()?;
        Ok(())
    }

    fn sql_at(&self, server: &Server, sql: &str) -> Result<String> {
        let output = self
            .program("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-p"])
            .arg(server.port.to_string())
            .arg("-h")
            .arg(&server.home)
            .args(["-U", &self.superuser()?, "-c", sql])
            .run_briefly()?;
        Ok(String::from_utf8_lossy(&output).trim_end().to_owned())
    }

    /// The standby streams, and commits wait for it.
    fn wait_synchronous(&self) -> Result<()> {
        wait("the standby", || {
            let states = "select application_name, sync_state from pg_stat_replication";
            let states = self.sql(states).map_err(|error| format!("{error:#}"))?;
            if states == format!("{STANDBY}|sync") { Ok(()) } else { Err(states) }
        })
    }
}

impl Donor for Pair {
    fn inventory(&self) -> Result<toml::Table> {
        let [primary, standby] = &self.servers;
        let service =
            |server| commands(self.command(server, "start"), self.command(server, "stop"));
        let mut second = toml::Table::new();
        second.insert("name".to_owned(), standby.name.into());
        let data = standby.home.join("data").display().to_string();
        second.insert("data_dir".to_owned(), data.into());
        second.insert("service".to_owned(), service(standby).into());
        let mut donor = toml::Table::new();
        let mut set = |name: &str, value: toml::Value| donor.insert(name.to_owned(), value);
        set("kind", "postgres".into());
        set("address", Ipv4Addr::LOCALHOST.to_string().into());
        set("port", i64::from(primary.port).into());
        set("data_dir", primary.home.join("data").display().to_string().into());
        set("bin_dir", self.bin_dir.display().to_string().into());
        set("socket_dir", primary.home.display().to_string().into());
        set("superuser", self.superuser()?.into());
        set("os_user", self.superuser()?.into());
        set("service", service(primary).into());
        set("standbys", vec![toml::Value::from(second)].into());
        Ok(donor)
    }

    fn servers(&self) -> Vec<(String, (IpAddr, u16))> {
        let server =
            |server: &Server| (server.name.to_owned(), (Ipv4Addr::LOCALHOST.into(), server.port));
        self.servers.iter().map(server).collect()
    }

    fn sql(&self, sql: &str) -> Result<String> {
        self.sql_at(&self.servers[0], sql)
    }
}

/// A standby that is lost for good does not block the way back (rule K8).
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_lost_standby_does_not_block_the_way_back() -> Result<()> {
    let moved = Move::with(|_| {}, Pair::make)?;
    let pair = moved.stage.donor();
    let [primary, standby] = &pair.servers;
    moved.wait_for_writes_to(primary.name)?;
    moved.stage.transplant(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    fs::rename(&standby.home, standby.home.with_extension("lost"))?;
    moved.stage.transplant(&["rollback"]).unwrap_err();
    let told = moved.stage.transplant(&["rollback", "--without", STANDBY, "--yes"])?;
    ensure!(told.contains("everything is undone"), "{told}");
    // Its commits wait for that standby, as its operator has asked for.
    pair.sql("alter system set synchronous_standby_names = ''")?;
    pair.sql("select pg_reload_conf()")?;
    moved.wait_for_writes_to(primary.name)?;
    moved.check_donor()
}

/// Rules T1 and T6, where a commit waits for a standby: forward with it, and back with it, before and after
/// the shard took writes.
#[test]
fn a_primary_with_a_synchronous_standby_moves_and_comes_back() -> Result<()> {
    let moved = Move::with(|_| {}, Pair::make)?;
    let pair = moved.stage.donor();
    let [primary, standby] = &pair.servers;
    moved.wait_for_writes_to(primary.name)?;
    moved.ask_to_verify()?;
    moved.stage.transplant(&["run", "--yes", "--until", "compare-answers"])?;
    // Commits wait for nobody else: the copy that follows is not their standby.
    ensure!(pair.sql_at(standby, "select pg_is_in_recovery()")? == "t", "the standby is one");
    moved.stage.transplant(&["rollback"])?;
    moved.wait_for_writes_to(primary.name)?;
    pair.wait_synchronous()?;

    let told = moved.stage.transplant(&["run", "--yes"])?;
    let stopped = told.find("do stop-standbys").context("standbys are stopped")?;
    ensure!(told.find("do open-recipient").is_some_and(|opened| opened < stopped), "{told}");
    moved.wait_for_writes_to("amber")?;
    for server in &pair.servers {
        let refused = pair.sql_at(server, "select 1").unwrap_err();
        ensure!(format!("{refused:#}").contains("No such file"), "{}: {refused:#}", server.name);
    }
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }

    let told = moved.stage.transplant(&["rollback"])?;
    ensure!(told.contains("standby standby needs max_wal_senders = 32"), "{told}");
    moved.wait_for_writes_to(primary.name)?;
    pair.wait_synchronous()?;
    moved.check_donor()?;
    let lost = "select count(*) from ledger";
    let acknowledged = pair.sql(lost)?.parse::<u64>()?;
    wait("the standby to have all", || {
        let has = pair.sql_at(standby, lost).map_err(|error| format!("{error:#}"))?;
        let has = has.parse::<u64>().map_err(|error| error.to_string())?;
        if has >= acknowledged { Ok(()) } else { Err(format!("{has} of {acknowledged}")) }
    })
}

/// The same as a person does it who types what the runbook says.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_moves_a_primary_with_its_standby() -> Result<()> {
    let moved = Move::with(|_| {}, Pair::make)?;
    let pair = moved.stage.donor();
    let [primary, standby] = &pair.servers;
    moved.wait_for_writes_to(primary.name)?;
    let book = moved.runbook()?;
    book.type_until("compare")?;
    // Started by mistake, and typed by mistake from the beginning: it ends before anything opens.
    pair.tell(primary, "start")?;
    for (told, expected) in [
        (book.type_only("open-recipient"), "STOP: the donor is stopped and closed: \"it runs\""),
        (book.type_until("end"), "STOP: the donor is closed: it was stopped before"),
    ] {
        let told = told.unwrap_err().to_string();
        ensure!(told.lines().any(|line| line.starts_with(expected)), "{told}");
    }
    let serves = moved.primary().psql("select pg_is_in_recovery()")?;
    ensure!(serves[0][0].as_deref() == Some("t"), "amber serves: {serves:?}");
    book.go_back()?;
    moved.wait_for_writes_to(primary.name)?;
    pair.wait_synchronous()?;

    book.type_until("end")?;
    moved.wait_for_writes_to("amber")?;
    for server in &pair.servers {
        ensure!(pair.sql_at(server, "select 1").is_err(), "{} runs", server.name);
    }
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    book.go_back()?;
    moved.wait_for_writes_to(primary.name)?;
    pair.wait_synchronous()?;
    moved.check_donor()?;
    let follows = pair.sql_at(standby, "select count(*) from pg_stat_wal_receiver")?;
    ensure!(follows == "1", "the standby follows: {follows}");
    Ok(())
}
