//! What a shard of a test meets in: an SQLite file or a private service, as the environment says, so
//! that the same tests run against each of them.

use adapters::testing::{Ensemble, EnsembleOptions, Etcd, EtcdOptions, Host};
use anyhow::{Context, Result, bail};
use std::{env, net::IpAddr, path::Path};

/// Names the coordination of every shard whose test does not bring its own: `sqlite` (if nothing is
/// given), `zookeeper` or `etcd`.
const SWITCH: &str = "MANATEE_TEST_COORDINATION";

/// A private coordination. Dropping it ends it.
pub enum Service {
    /// The file that a shard makes where it is not told of another place.
    Sqlite,
    ZooKeeper(Ensemble),
    Etcd(Etcd),
    /// The test sees to it.
    Foreign,
}

/// What was taken away, until [`Away::give_back`].
pub enum Away<'a> {
    Sqlite(rusqlite::Connection),
    ZooKeeper(&'a Ensemble),
    Etcd(&'a Etcd),
}

impl Service {
    /// Starts one server of the kind that the environment names, at this address, with its files in
    /// `directory`.
    pub fn start(directory: &Path, ip: IpAddr) -> Result<Service> {
        let host = Host { ip, enter: Vec::new() };
        match env::var(SWITCH).as_deref() {
            Err(env::VarError::NotPresent) | Ok("sqlite") => Ok(Service::Sqlite),
            Ok("zookeeper") => {
                let options = EnsembleOptions { hosts: vec![host], ..EnsembleOptions::default() };
                Ok(Service::ZooKeeper(Ensemble::start_with(directory, 1, &options)?))
            }
            Ok("etcd") => {
                let options = EtcdOptions { ip, ..EtcdOptions::default() };
                Ok(Service::Etcd(Etcd::start_with(directory, 1, options)?))
            }
            other => bail!("{SWITCH} is {other:?}: give sqlite, zookeeper or etcd"),
        }
    }

    /// Its address, where the shard has to be told.
    pub fn url(&self) -> Option<String> {
        match self {
            Service::Sqlite | Service::Foreign => None,
            Service::ZooKeeper(ensemble) => Some(ensemble.url()),
            Service::Etcd(etcd) => Some(etcd.url()),
        }
    }

    /// From now on it takes no writes, so that every session runs out. `url` is where the shard meets.
    pub fn take_away(&self, url: &str) -> Result<Away<'_>> {
        match self {
            Service::Sqlite => {
                let lock =
                    rusqlite::Connection::open(url.strip_prefix("sqlite:").context(SWITCH)?)?;
                lock.execute_batch("begin immediate")?;
                Ok(Away::Sqlite(lock))
            }
            Service::ZooKeeper(ensemble) => {
                ensemble.kill(0);
                Ok(Away::ZooKeeper(ensemble))
            }
            Service::Etcd(etcd) => {
                etcd.kill(0);
                Ok(Away::Etcd(etcd))
            }
            Service::Foreign => bail!("this test brought its coordination itself"),
        }
    }
}

impl Away<'_> {
    /// It is back, with what it held.
    pub fn give_back(self) -> Result<()> {
        match self {
            Away::Sqlite(lock) => lock.execute_batch("rollback")?,
            Away::ZooKeeper(ensemble) => {
                ensemble.launch(0)?;
                ensemble.wait_serving(0)?;
            }
            Away::Etcd(etcd) => {
                etcd.launch(0)?;
                etcd.wait_serving(0)?;
            }
        }
        Ok(())
    }
}
