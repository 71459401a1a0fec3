//! The directory of a shard, the ports and the files of its peers.

use super::{Host, Peer, ShardOptions, Volumes, peer::Place};
use adapters::testing::free_ports;
use anyhow::{Context, Result, ensure};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The name of the shard.
pub(super) const SHARD: &str = "demo";

/// Trees, in the order of the alphabet, so that who is who can be remembered.
const ZONES: [&str; 9] =
    ["amber", "birch", "cedar", "durian", "elm", "fir", "ginkgo", "hazel", "ilex"];

/// Those of a peer that has a host to itself: PostgreSQL, backup service, status endpoint.
const HOST_PORTS: [u16; 3] = [5432, 12_345, 5433];

/// What a socket's path may be long, in bytes, on every system.
pub(crate) const SOCKET_PATH: usize = 103;

/// Where the peers of a shard in this directory meet if nobody says otherwise.
pub(super) fn coordination(directory: &Path) -> String {
    format!("sqlite:{}", directory.join("shard.db").display())
}

/// Makes the directory, for the user that PostgreSQL runs as to enter. What is wrong with it is found
/// before anything is made.
pub(super) fn make_directory(wanted: &Path) -> Result<PathBuf> {
    let name = wanted.display();
    let mut directory =
        std::path::absolute(wanted).with_context(|| format!("no path: {name:?}"))?;
    if directory.exists() {
        directory = directory.canonicalize().with_context(|| format!("cannot resolve {name}"))?;
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {name}"))?;
        ensure!(
            entries.count() == 0,
            "{name} is not empty: give a directory that is, or one that does not exist"
        );
    }
    let socket = directory.join(ZONES[3]).join("dataset/run/.s.PGSQL.65535");
    let length = socket.as_os_str().len();
    ensure!(
        length <= SOCKET_PATH,
        "{name} is too long a path: a socket in it would need {length} bytes, {SOCKET_PATH} are \
         possible; give a shorter one"
    );
    if rustix::process::geteuid().is_root() {
        for ancestor in directory.ancestors().skip(1).filter(|ancestor| ancestor.exists()) {
            let metadata = fs::metadata(ancestor)
                .with_context(|| format!("cannot look at {}", ancestor.display()))?;
            ensure!(
                metadata.permissions().mode() & 0o001 != 0,
                "{name} is no place for PostgreSQL, which does not run as root: others cannot enter \
                 {}; give a directory that everybody can reach, such as one in /tmp or /var/tmp",
                ancestor.display()
            );
        }
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make the directory {name}"))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open {name} to others"))?;
    Ok(directory)
}

/// Makes the peers and writes their files.
pub(super) fn make_peers(
    options: &ShardOptions,
    directory: &Path,
    coordination: &str,
) -> Result<Vec<Peer>> {
    ensure!(
        (1..=ZONES.len()).contains(&options.peers),
        "{} peers: give 1 to {}",
        options.peers,
        ZONES.len()
    );
    let password = uuid::Uuid::new_v4().simple().to_string();
    let mut peers = Vec::new();
    for place in places(options, directory)? {
        let made = fs::create_dir(&place.directory);
        made.with_context(|| format!("cannot make {}", place.directory.display()))?;
        let mut table = sitter_file(options, coordination, &place, &password)?;
        if let Some(storage) = storage(&place)? {
            table.insert("storage".to_owned(), storage.into());
        }
        merge(&mut table, &options.overrides);
        write_private(&place.config_file(), &toml::to_string(&table)?)?;
        peers.push(Peer::new(place, options.binary.clone()));
    }
    Ok(peers)
}

/// Where each peer is: on the host that it was given, or on the loopback address at ports that
/// nobody uses.
fn places(options: &ShardOptions, directory: &Path) -> Result<Vec<Place>> {
    let place = |zone: &str, host: Host, ports: [u16; 3]| Place {
        zone: zone.to_owned(),
        directory: directory.join(zone),
        host,
        postgres_port: ports[0],
        backup_port: ports[1],
        status_port: ports[2],
        volumes: options.volumes.clone(),
    };
    let zones = ZONES.iter().take(options.peers);
    if options.hosts.is_empty() {
        let ports = free_ports(3 * options.peers)?;
        let ports = ports.chunks(3).map(|ports| [ports[0], ports[1], ports[2]]);
        return Ok(zones
            .zip(ports)
            .map(|(zone, ports)| place(zone, Host::local(), ports))
            .collect());
    }
    ensure!(
        options.hosts.len() == options.peers,
        "{} peers on {} hosts: give each peer one",
        options.peers,
        options.hosts.len()
    );
    let hosts = options.hosts.iter().cloned();
    Ok(zones.zip(hosts).map(|(zone, host)| place(zone, host, HOST_PORTS)).collect())
}

/// A sitter's file that suits a small machine and a short attention.
fn sitter_file(
    options: &ShardOptions,
    coordination: &str,
    place: &Place,
    replication_password: &str,
) -> Result<toml::Table> {
    let utf8 = |path: &Path| -> Result<String> {
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        Ok(text.to_owned())
    };
    let dataset = utf8(&place.dataset())?;
    // Clients of a shard on one machine are on it, too; those of hosts are beside them.
    let clients = if options.hosts.is_empty() { "samehost" } else { "samenet" };
    let client_access = format!("host all all {clients} scram-sha-256");
    let (zone, ip) = (place.zone.clone(), place.host.ip.to_string());
    let (postgres, backup, status) = (place.postgres_port, place.backup_port, place.status_port);
    let slowly = |seconds: f64| seconds * f64::from(options.slowness);
    let session_timeout = slowly(options.session_timeout);
    let (coordination_timeout, query_timeout) = (slowly(2.0), slowly(5.0));
    // What is seen less often proves nothing.
    let (interval, give_up) = (slowly(0.5).min(4.0), slowly(10.0));
    Ok(toml::toml! {
        shard = SHARD
        coordination = coordination
        dataset = dataset
        zone = zone
        ip = ip
        session_timeout = session_timeout
        coordination_timeout = coordination_timeout

        [postgres]
        port = postgres
        client_access = [client_access]
        wal_keep_mib = 128
        slot_keep_mib = 1024
        query_timeout = query_timeout

        [postgres.settings]
        shared_buffers = "32MB"
        max_connections = 50

        [replication]
        password = replication_password

        [backup]
        port = backup

        [status]
        port = status

        [health]
        interval = interval
        give_up = give_up
        retry_min = 0.2
        retry_max = 2.0
    })
}

/// Where the database lies, when that is not the peer's directory.
fn storage(place: &Place) -> Result<Option<toml::Table>> {
    let (backend, parent) = match &place.volumes {
        Volumes::None => return Ok(None),
        Volumes::Btrfs(parent) => {
            ("btrfs", parent.to_str().with_context(|| format!("{parent:?} is not UTF-8"))?)
        }
        Volumes::Zfs(parent) => ("zfs", parent.as_str()),
    };
    let name = format!("{parent}/{}", place.volume());
    Ok(Some(toml::toml! {
        backend = backend
        name = name
    }))
}

fn merge(table: &mut toml::Table, overrides: &toml::Table) {
    for (key, value) in overrides {
        match (table.get_mut(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            _ => drop(table.insert(key.clone(), value.clone())),
        }
    }
}

/// Writes a file that only we can read: it holds a password.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sitter::config::Config;

    fn place(directory: &Path) -> Place {
        Place {
            zone: "amber".to_owned(),
            directory: directory.join("amber"),
            host: Host::local(),
            postgres_port: 20_001,
            backup_port: 20_002,
            status_port: 20_003,
            volumes: Volumes::None,
        }
    }

    #[test]
    fn the_sitter_takes_the_file_that_we_write() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = ShardOptions::new("manatee", directory.path());
        options.overrides = toml::toml! {
            deposed = "manual"
            [health]
            give_up = 4.0
        };
        let place = place(directory.path());
        fs::create_dir(&place.directory).expect("a directory");
        let meet = coordination(directory.path());
        let mut table = sitter_file(&options, &meet, &place, "secret").expect("a file");
        merge(&mut table, &options.overrides);
        write_private(&place.config_file(), &toml::to_string(&table).expect("TOML")).expect("room");
        let config = Config::load(&place.config_file()).expect("a sitter's file");
        assert_eq!(config.zone.as_deref(), Some("amber"));
        assert_eq!(config.status_port(), 20_003);
        assert_eq!(config.session_timeout.get_ref().millis().0, 3000);
        assert_eq!(config.health.give_up.millis().0, 4000);
        assert_eq!(config.health.interval.millis().0, 500);
        assert!(matches!(config.deposed, crate::sitter::config::Deposed::Manual));
    }

    fn refusal(directory: &Path, expected: &str) {
        let error = make_directory(directory).expect_err("must be refused").to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }

    #[test]
    fn a_directory_that_will_not_do_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        refusal(&directory.path().join("x".repeat(90)), "is too long a path");
        fs::write(directory.path().join("file"), "").expect("a file");
        refusal(directory.path(), "is not empty");
    }
}
