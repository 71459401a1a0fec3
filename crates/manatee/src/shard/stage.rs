//! A donor, and the peers of a shard that it can be moved into, all on this machine: what a transplant is
//! shown and tested with.
//!
//! Contract: as of [`super::Shard`]: whatever runs in its directory ends with it; only the directory stays.

use super::{
    CLIENT, Ledger, LedgerReport, Peer, ShardOptions, Writer, files, processes,
    writer::{self, route},
};
use adapters::{
    exec::{Exec, OsUser},
    postgres,
    service::quote,
    testing::free_ports,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// What the writer calls the donor.
pub const DONOR: &str = "donor";

/// What a transplant moves away from.
pub trait Donor {
    /// The table `donor` of the inventory.
    fn inventory(&self) -> Result<toml::Table>;

    /// Where whoever writes finds its servers, by their names.
    fn servers(&self) -> Vec<(String, (IpAddr, u16))>;

    /// What these statements give at the server that takes writes, by its superuser.
    ///
    /// # Errors
    /// When it does not run or refuses.
    fn sql(&self, sql: &str) -> Result<String>;
}

/// The stage of a transplant.
#[derive(Debug)]
pub struct Stage<D = Standalone> {
    directory: PathBuf,
    binary: PathBuf,
    password: String,
    peers: Vec<Peer>,
    donor: D,
}

impl Stage {
    /// Makes and starts a donor that stands by itself, writes the sitters' files of the peers, which it does
    /// not start, and an inventory, `move.toml`, of both.
    ///
    /// # Errors
    /// When the directory is no place for it, or the donor cannot be made.
    pub fn set(options: &ShardOptions) -> Result<Stage> {
        Stage::with(options, Standalone::make)
    }

    /// The donor's data directory.
    pub fn data(&self) -> PathBuf {
        self.donor.data()
    }

    /// Starts or stops the donor, behind the back of whoever moves it.
    ///
    /// # Errors
    /// When it is not done.
    pub fn donor_service(&self, verb: &str) -> Result<String> {
        sh(&self.donor.command(verb))
    }
}

/// Runs a script of the shell.
///
/// # Errors
/// When it fails.
pub fn sh(script: &str) -> Result<String> {
    let output = Exec::new("sh").args(["-c", script]).run_briefly()?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// A PostgreSQL that stands by itself.
#[derive(Debug)]
pub struct Standalone {
    home: PathBuf,
    bin_dir: PathBuf,
    user: Option<OsUser>,
    port: u16,
}

impl Standalone {
    /// Makes and starts one below this directory, and executes the statements `setup`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(directory: &Path, setup: &str) -> Result<Standalone> {
        let root = rustix::process::geteuid().is_root();
        let donor = Standalone {
            home: directory.join(DONOR),
            bin_dir: postgres::programs(None)?.0,
            user: root.then(|| OsUser::find("postgres")).transpose()?,
            port: free_ports(1)?[0],
        };
        let home = &donor.home;
        // A dataset may be there, for it.
        fs::create_dir_all(home)?;
        fs::set_permissions(home, fs::Permissions::from_mode(0o755))?;
        if let Some(user) = &donor.user {
            std::os::unix::fs::chown(home, Some(user.uid), Some(user.gid))?;
        }
        Exec::new(donor.bin_dir.join("initdb"))
            .as_user(donor.user.as_ref())
            .args(["-k", "-U", &donor.superuser()?])
            .args(["--auth-local=peer", "--auth-host=scram-sha-256", "-D"])
            .arg(donor.data())
            .run_briefly()
            .context("the donor's database cannot be made")?;
        let settings = donor.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&settings)?;
        text += &format!(
            "max_connections = 50\nport = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n",
            donor.port,
            home.display()
        );
        fs::write(&settings, text)?;
        sh(&donor.command("start"))?;
        donor.sql(setup)?;
        Ok(donor)
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn superuser(&self) -> Result<String> {
        match &self.user {
            Some(user) => Ok(user.name.clone()),
            None => Ok(OsUser::own_name()?),
        }
    }

    /// What tells its server to start or stop, for a shell.
    fn command(&self, verb: &str) -> String {
        let pg_ctl = quote(&self.bin_dir.join("pg_ctl").display().to_string());
        let log = quote(&self.home.join("log").display().to_string());
        let command = format!(
            "{pg_ctl} {verb} -w -m fast -D {} -l {log}",
            quote(&self.data().display().to_string())
        );
        match &self.user {
            Some(user) => format!("su -s /bin/sh {} -c {}", quote(&user.name), quote(&command)),
            None => command,
        }
    }
}

impl Donor for Standalone {
    fn inventory(&self) -> Result<toml::Table> {
        let mut donor = toml::Table::new();
        let mut set = |name: &str, value: String| donor.insert(name.to_owned(), value.into());
        set("kind", "postgres".to_owned());
        set("address", Ipv4Addr::LOCALHOST.to_string());
        set("data_dir", self.data().display().to_string());
        set("bin_dir", self.bin_dir.display().to_string());
        set("socket_dir", self.home.display().to_string());
        set("superuser", self.superuser()?);
        set("os_user", self.superuser()?);
        donor.insert("port".to_owned(), i64::from(self.port).into());
        let service = commands(self.command("start"), self.command("stop"));
        donor.insert("service".to_owned(), service.into());
        Ok(donor)
    }

    fn servers(&self) -> Vec<(String, (IpAddr, u16))> {
        vec![(DONOR.to_owned(), (Ipv4Addr::LOCALHOST.into(), self.port))]
    }

    fn sql(&self, sql: &str) -> Result<String> {
        let output = Exec::new(self.bin_dir.join("psql"))
            .as_user(self.user.as_ref())
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-p"])
            .arg(self.port.to_string())
            .arg("-h")
            .arg(&self.home)
            .args(["-U", &self.superuser()?, "-c", sql])
            .run_briefly()?;
        Ok(String::from_utf8_lossy(&output).trim_end().to_owned())
    }
}

impl<D: Donor> Stage<D> {
    /// Sets a stage with the donor that `make` makes and starts: in this directory, which is there, and
    /// with these statements executed by its superuser, so that the writer can be its client.
    ///
    /// # Errors
    /// When the directory is no place for it, or the donor cannot be made.
    pub fn with(
        options: &ShardOptions,
        make: impl FnOnce(&Path, &str) -> Result<D>,
    ) -> Result<Stage<D>> {
        let directory = files::make_directory(&options.directory)?;
        let coordination = files::coordination(&directory);
        let coordination = options.coordination.clone().unwrap_or(coordination);
        let peers = files::make_peers(options, &directory, &coordination)?;
        let password = uuid::Uuid::new_v4().simple().to_string();
        let donor = make(&directory, &writer::setup((CLIENT, &password))).inspect_err(|_| {
            if let Err(error) = processes::kill(&directory, &options.binary) {
                eprintln!("manatee: something of the donor may still be running: {error:#}");
            }
        })?;
        let binary = options.binary.clone();
        let stage = Stage { directory, binary, password, peers, donor };
        fs::write(stage.inventory(), stage.inventory_text()?)?;
        Ok(stage)
    }

    /// The donor.
    pub fn donor(&self) -> &D {
        &self.donor
    }

    /// The inventory of the move.
    pub fn inventory(&self) -> PathBuf {
        self.directory.join("move.toml")
    }

    fn inventory_text(&self) -> Result<String> {
        let peers = self.peers.iter().map(|peer| {
            let (start, stop) = peer.service();
            let mut table = toml::Table::new();
            table.insert("config".to_owned(), peer.config_file().display().to_string().into());
            table.insert("manatee".to_owned(), self.binary.display().to_string().into());
            table.insert("service".to_owned(), commands(start, stop).into());
            toml::Value::from(table)
        });
        let mut inventory = toml::Table::new();
        inventory.insert("recipient".to_owned(), peers.collect::<Vec<_>>().into());
        inventory.insert("donor".to_owned(), self.donor.inventory()?.into());
        Ok(toml::to_string(&inventory)?)
    }

    /// Starts the sitter of a peer, as its service does.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_peer(&self, peer: &Peer) -> Result<()> {
        sh(&peer.service().0).map(drop)
    }

    /// The peers, in the order of the inventory.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// What these statements give at the donor, by its superuser.
    ///
    /// # Errors
    /// When it does not run or refuses.
    pub fn donor_sql(&self, sql: &str) -> Result<String> {
        self.donor.sql(sql)
    }

    /// A client of whoever takes writes, the donor or the shard.
    ///
    /// # Errors
    /// When its ledger cannot be written.
    pub fn writer(&self) -> Result<Writer> {
        let client = (CLIENT, self.password.as_str());
        let servers = self.donor.servers().into_iter();
        let servers = servers.map(|(name, address)| route(&name, address, client));
        let peers = self.peers.iter().map(|peer| route(peer.zone(), peer.host(), client));
        let routes = servers.chain(peers).collect();
        Writer::to(routes, &self.directory.join("ledger"), 1)
    }

    /// Holds a ledger against what the donor has.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn check_donor(&self, ledger: &Ledger) -> Result<LedgerReport> {
        let rows = self.donor_sql(
            "set enable_indexonlyscan = off; set enable_indexscan = off; \
            select n from ledger order by n",
        )?;
        let numbers: Result<Vec<i64>, _> = rows.lines().map(str::parse).collect();
        Ok(ledger.compare(&numbers.context("the donor's ledger is none")?))
    }

    /// Ends everything that runs in the directory.
    ///
    /// # Errors
    /// When something cannot be ended.
    pub fn end_all(&self) -> Result<()> {
        processes::end(&self.directory, &self.binary).map(drop)
    }

    /// `manatee transplant …` with the inventory; what it printed.
    ///
    /// # Errors
    /// When it fails: what it printed is in the error.
    pub fn transplant(&self, args: &[&str]) -> Result<String> {
        let output = std::process::Command::new(&self.binary)
            .arg("transplant")
            .arg(args[0])
            .arg(self.inventory())
            .args(&args[1..])
            .stdin(std::process::Stdio::null())
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if !output.status.success() {
            bail!("manatee transplant {}: {}: {text}", args.join(" "), output.status);
        }
        Ok(text)
    }
}

/// A service of these commands, for an inventory.
pub fn commands(start: String, stop: String) -> toml::Table {
    let fields = [("kind", "commands".to_owned()), ("start", start), ("stop", stop)];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

impl<D> Drop for Stage<D> {
    fn drop(&mut self) {
        if let Err(error) = processes::end(&self.directory, &self.binary) {
            eprintln!("manatee: something of the stage may still be running: {error:#}");
        }
    }
}
