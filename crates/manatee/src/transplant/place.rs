//! Where a peer's server is to run: what would keep it from that, and what it will load.

use crate::sitter::config::Config;
use adapters::{
    exec::{Exec, OsUser},
    postgres::Settings,
};
use anyhow::Result;
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{TcpListener, ToSocketAddrs},
    path::Path,
};
use transplant::{Hindrance, LIBRARY_SETTINGS};

/// What its sitter's file says of the libraries that its server loads.
pub(super) fn library_settings(settings: &Settings) -> BTreeMap<String, String> {
    let known = |name: &str| LIBRARY_SETTINGS.iter().find(|known| known.eq_ignore_ascii_case(name));
    let settings = settings.user_settings.iter();
    settings.filter_map(|(name, value)| Some(((*known(name)?).to_owned(), value.clone()))).collect()
}

/// What would keep the server, or the sitter, of a peer from running; `place` is the directory that the
/// dataset is in, or is made in.
pub(super) fn hindrances(
    config: &Config,
    settings: &Settings,
    place: &Path,
) -> Result<Vec<Hindrance>> {
    let status = (config.status.listen.unwrap_or(config.ip).to_string(), config.status_port());
    let backup = config.backup_address();
    let postgres = settings.listen.split(',').map(str::trim).filter(|host| !host.is_empty());
    let mut wanted: Vec<(&str, (String, u16))> =
        postgres.map(|host| ("server", (host.to_owned(), settings.port))).collect();
    wanted.push(("backup service", (backup.ip().to_string(), backup.port())));
    wanted.push(("status endpoint", status));
    let mut hindrances = Vec::new();
    for (what, (host, port)) in wanted {
        if let Some(problem) = taken(&host, port) {
            hindrances.push(Hindrance::Address(what.to_owned(), format!("{host}:{port}"), problem));
        }
    }
    if let Some(problem) = shut(place, settings.os_user.as_deref())? {
        hindrances.push(Hindrance::Directory(place.display().to_string(), problem));
    }
    Ok(hindrances)
}

/// Why nobody can listen there. Whoever does for this moment is gone when it returns.
fn taken(host: &str, port: u16) -> Option<String> {
    let host = if host == "*" { "0.0.0.0" } else { host };
    let addresses: Vec<_> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Some(error.to_string()),
    };
    // A name may stand for addresses of which the host has one: that is enough for the server.
    let failed: Vec<_> =
        addresses.iter().filter_map(|address| TcpListener::bind(address).err()).collect();
    let in_use = failed.iter().find(|error| error.kind() == ErrorKind::AddrInUse);
    let none = failed.first().filter(|_| failed.len() == addresses.len());
    in_use.or(none).map(ToString::to_string)
}

/// Why a database cannot be put into a directory. Where we are root, what is made there is given to the
/// user of the server, who has to be able to get there.
fn shut(place: &Path, user: Option<&str>) -> Result<Option<String>> {
    let user = user.map(OsUser::find).transpose()?;
    let test = |script: &str, user: Option<&OsUser>| {
        let exec = Exec::new("sh").as_user(user).args(["-c", script, "sh"]).arg(place);
        exec.run_briefly().is_ok()
    };
    Ok(if !test("test -w \"$1\"", None) {
        Some("it cannot be written to".to_owned())
    } else if !test("cd -- \"$1\"", user.as_ref()) {
        Some("the user of the server cannot get into it".to_owned())
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::clock;
    use cluster::Millis;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn a_port_that_somebody_has_is_taken() {
        let here = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = here.local_addr().expect("its address").port();
        let problem = taken("127.0.0.1", port).expect("it is taken");
        assert!(problem.contains("in use"), "{problem}");
        assert!(taken("*", port).is_some());
        drop(here);
        // A child that another test has forked has it, too, until it becomes another program.
        let limit = clock::now() + Millis(10_000);
        while taken("127.0.0.1", port).is_some() {
            assert!(clock::now() < limit, "nobody listens there");
        }
        // TEST-NET-1: no host has it.
        assert!(taken("192.0.2.1", port).is_some_and(|problem| problem.contains("assign")));
    }

    #[test]
    fn a_directory_that_the_server_cannot_reach_is_shut() {
        let directory = tempfile::tempdir().expect("a directory");
        let (inside, nobody) = (directory.path().join("inside"), Some("nobody"));
        fs::create_dir(&inside).expect("made");
        let mode = |mode| fs::Permissions::from_mode(mode);
        if !rustix::process::geteuid().is_root() {
            assert_eq!(shut(&inside, None).expect("looked at"), None);
            fs::set_permissions(&inside, mode(0o500)).expect("set");
            let problem = shut(&inside, None).expect("looked at").expect("it is shut");
            assert!(problem.contains("cannot be written to"), "{problem}");
            return;
        }
        fs::set_permissions(directory.path(), mode(0o755)).expect("set");
        assert_eq!(shut(&inside, nobody).expect("looked at"), None);
        fs::set_permissions(directory.path(), mode(0o700)).expect("set");
        let problem = shut(&inside, nobody).expect("looked at").expect("it is shut");
        assert!(problem.contains("cannot get into it"), "{problem}");
    }
}
