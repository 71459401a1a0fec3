//! Which shard, and where: from options, the environment or a sitter's file.

use crate::sitter::config::{AccessConfig, AccessTables};
use adapters::coord::zookeeper::{Address, ZkCoord};
use adapters::coord::{self, Access, Coordination};
use anyhow::{Context, Result, bail};
use clap::Args;
use cluster::Millis;
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How long a call to the coordination may take: as long as a sitter's by default.
const CALL_TIMEOUT: Millis = Millis(10_000);

/// How to reach the shard. The options stand before or after the command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Which shard")]
pub struct Reach {
    /// Where the peers of the shard meet: zk://host:port,host:port, etcd://host:port,host:port or
    /// sqlite:/path/of/the/file
    ///
    /// Environment: MANATEE_COORDINATION.
    #[arg(long, value_name = "URL")]
    pub coordination: Option<String>,
    /// ZooKeeper servers, ip:port,ip:port,…: the same as --coordination zk://ip:port,ip:port,…
    ///
    /// Environment: ZK_IPS.
    #[arg(short, long, value_name = "ZK_IPS", conflicts_with = "coordination")]
    pub zk: Option<String>,
    /// The name of the shard
    ///
    /// Environment: SHARD.
    #[arg(short, long)]
    pub shard: Option<String>,
    /// A sitter's file, for whichever of the two no option gives; it goes before the environment
    ///
    /// Only `coordination`, `shard`, `[zookeeper]` and `[etcd]` are read from it; by `rebuild`,
    /// `snapshot` and `backup` all of it. Environment: MANATEE_SITTER_CONFIG. But for those three, the
    /// file that this names is read only where options and the rest of the environment lack one of the
    /// two; where it is not read, its credentials are not used either.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The shard that was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address of its coordination.
    pub url: String,
    /// Its name.
    pub shard: String,
    /// Who we are to the coordination, where a sitter's file was read that says so.
    pub access: Option<AccessTables>,
}

/// What is read of a sitter's file: nothing else in it may be a reason to refuse.
#[derive(Debug, Default, Deserialize)]
struct SitterFile {
    coordination: Option<String>,
    shard: Option<String>,
    #[serde(default)]
    zookeeper: AccessConfig,
    #[serde(default)]
    etcd: AccessConfig,
}

impl SitterFile {
    fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read sitter file {name}"))?;
        toml::from_str(&text).map_err(|error| anyhow::anyhow!("sitter file {name}: {error}"))
    }

    fn access(self, path: &Path) -> AccessTables {
        AccessTables { zookeeper: self.zookeeper, etcd: self.etcd, file: path.to_owned() }
    }
}

impl Reach {
    /// These options, and those of `outer` where they say nothing. An address given here is the
    /// whole address: one of the other kind further out does not compete with it.
    #[must_use]
    pub fn or(self, outer: Reach) -> Reach {
        let addressed = self.coordination.is_some() || self.zk.is_some();
        let outer_address = if addressed { (None, None) } else { (outer.coordination, outer.zk) };
        Reach {
            coordination: self.coordination.or(outer_address.0),
            zk: self.zk.or(outer_address.1),
            shard: self.shard.or(outer.shard),
            config: self.config.or(outer.config),
        }
    }

    /// The sitter's file of the peer that is meant, for what is done on the peer itself.
    ///
    /// # Errors
    /// When it is given nowhere.
    pub fn sitter_file(self, environment: impl Fn(&str) -> Option<String>) -> Result<PathBuf> {
        let variable = environment("MANATEE_SITTER_CONFIG").filter(|path| !path.is_empty());
        self.config.or(variable.map(PathBuf::from)).context(
            "this is done on the peer itself: give its sitter's file with --config \
             (MANATEE_SITTER_CONFIG)",
        )
    }

    /// The shard that is meant. Options go before the file that they name, and that before the
    /// environment.
    ///
    /// # Errors
    /// When the address or the name is given nowhere, or the sitter's file cannot be read.
    pub fn target(self, environment: impl Fn(&str) -> Option<String>) -> Result<Target> {
        let variable = |name| environment(name).filter(|value| !value.is_empty());
        let zk = |servers: String| format!("zk://{servers}");
        let mut named =
            self.config.as_deref().map(SitterFile::load).transpose()?.unwrap_or_default();
        let mut url = self
            .coordination
            .or(self.zk.map(zk))
            .or(named.coordination.take())
            .or_else(|| variable("MANATEE_COORDINATION"))
            .or_else(|| variable("ZK_IPS").map(zk));
        let mut shard = self.shard.or(named.shard.take()).or_else(|| variable("SHARD"));
        let mut access = self.config.as_deref().map(|path| named.access(path));
        if let (None, Some(path)) = (&self.config, variable("MANATEE_SITTER_CONFIG"))
            && (url.is_none() || shard.is_none())
        {
            let mut file = SitterFile::load(Path::new(&path)).context("MANATEE_SITTER_CONFIG")?;
            url = url.or(file.coordination.take());
            shard = shard.or(file.shard.take());
            access = Some(file.access(Path::new(&path)));
        }
        let Some(url) = url else {
            bail!(
                "where the shard's coordination is was not said: give --coordination URL \
                 (MANATEE_COORDINATION), --zk ZK_IPS (ZK_IPS), or --config with a sitter's file \
                 that has `coordination` (MANATEE_SITTER_CONFIG)"
            );
        };
        let Some(shard) = shard else {
            bail!(
                "which shard at {url} was not said: give --shard NAME (SHARD), or --config with a \
                 sitter's file that has `shard` (MANATEE_SITTER_CONFIG)"
            );
        };
        Ok(Target { url, shard, access })
    }
}

impl Target {
    /// Opens the coordination. What a sitter would make anew is refused here when it is missing:
    /// a mistyped path must not look like an empty shard.
    pub fn open(&self) -> Result<Arc<dyn Coordination>> {
        if let Some(path) = self.url.strip_prefix("sqlite:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            let there = path
                .try_exists()
                .with_context(|| format!("coordination {}: cannot look for the file", self.url))?;
            if path.is_absolute() && !there {
                bail!(
                    "coordination {}: there is no such file: a sitter makes it when it first \
                     starts; compare with `coordination` in the sitter's file",
                    self.url
                );
            }
        }
        let mut options = coord::Options::new(CALL_TIMEOUT);
        options.access = self.access()?;
        Ok(coord::open(&self.url, &self.shard, &options)?)
    }

    /// Whether there is a node at this path in ZooKeeper.
    ///
    /// # Errors
    /// When the coordination is none, or cannot be asked.
    pub async fn node_exists(&self, path: &str) -> Result<bool> {
        let Some(rest) = self.url.strip_prefix("zk:") else {
            bail!("{path} would be a node in ZooKeeper; coordination {} is none", self.url);
        };
        let address = Address::parse(rest, &self.shard)
            .with_context(|| format!("coordination {}", self.url))?;
        let coord = ZkCoord::open(address, &self.access()?, CALL_TIMEOUT, None)?;
        Ok(coord.exists(path).await?)
    }

    fn access(&self) -> Result<Access> {
        Ok(match &self.access {
            Some(tables) => tables.access(&self.url)?,
            None => Access::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn reach(coordination: &str, zk: &str, shard: &str, config: Option<&Path>) -> Reach {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Reach {
            coordination: given(coordination),
            zk: given(zk),
            shard: given(shard),
            config: config.map(Path::to_owned),
        }
    }

    fn check(reach: Reach, environment: &[(&str, &str)], expected: Result<(&str, &str), &str>) {
        let environment: BTreeMap<_, _> = environment.iter().copied().collect();
        let got = reach.target(|name| environment.get(name).map(|value| (*value).to_owned()));
        match (got, expected) {
            (Ok(Target { url, shard, .. }), Ok(expected)) => {
                assert_eq!((url.as_str(), shard.as_str()), expected);
            }
            (Err(error), Err(part)) => {
                let text = format!("{error:#}");
                assert!(text.contains(part), "{text:?} without {part:?}");
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn from_options_and_environment() {
        check(reach("sqlite:/a", "", "s", None), &[], Ok(("sqlite:/a", "s")));
        check(reach("", "1:2181,2:2181", "s", None), &[], Ok(("zk://1:2181,2:2181", "s")));
        let environment = [("MANATEE_COORDINATION", "sqlite:/e"), ("ZK_IPS", "1"), ("SHARD", "e")];
        check(Reach::default(), &environment, Ok(("sqlite:/e", "e")));
        check(Reach::default(), &environment[1..], Ok(("zk://1", "e")));
        check(reach("sqlite:/a", "", "", None), &environment, Ok(("sqlite:/a", "e")));
        check(reach("", "2", "s", None), &environment, Ok(("zk://2", "s")));
    }

    #[test]
    fn what_is_missing_is_said() {
        check(Reach::default(), &[], Err("give --coordination URL"));
        check(Reach::default(), &[("MANATEE_COORDINATION", "")], Err("give --coordination URL"));
        check(reach("sqlite:/a", "", "", None), &[], Err("which shard at sqlite:/a"));
    }

    #[test]
    fn from_a_sitters_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sitter.toml");
        let text =
            "shard = 'f'\ncoordination = 'sqlite:/f'\n[replication]\npassword_file = '/no'\n";
        fs::write(&path, text).expect("written");
        let name = path.to_str().expect("UTF-8");
        check(reach("", "", "", Some(&path)), &[], Ok(("sqlite:/f", "f")));
        check(reach("", "", "s", Some(&path)), &[], Ok(("sqlite:/f", "s")));
        check(reach("", "", "", Some(&path)), &[("SHARD", "e")], Ok(("sqlite:/f", "f")));
        let environment = [("SHARD", "e"), ("MANATEE_SITTER_CONFIG", name)];
        check(Reach::default(), &environment, Ok(("sqlite:/f", "e")));
        // A file that is not needed is not read.
        let environment = [("MANATEE_SITTER_CONFIG", "/nonexistent")];
        check(reach("sqlite:/a", "", "s", None), &environment, Ok(("sqlite:/a", "s")));
        check(Reach::default(), &environment, Err("cannot read sitter file /nonexistent"));
        fs::write(&path, "shard = 7\n").expect("written");
        check(reach("", "", "", Some(&path)), &[], Err("sitter.toml: TOML parse error at line 1"));
    }

    #[test]
    fn options_after_the_command_go_before_those_ahead_of_it() {
        let outer = reach("sqlite:/outer", "", "outer", None);
        let merged = reach("", "1", "", None).or(outer.clone());
        assert_eq!(merged, reach("", "1", "outer", None));
        assert_eq!(Reach::default().or(outer.clone()), outer);
    }
}
