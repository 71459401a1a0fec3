//! A donor that is a shard of Manatee, as its coordination tells of it.

use super::{Asking, Draft, Lead, SITTER_FILE, server::service_unit};
use crate::{
    DonorShard, ShardFacts,
    manatee::{look_at, named},
};
use adapters::service::Host;
use anyhow::{Context, Result};
use cluster::{Millis, PeerIdent};
use std::{collections::BTreeMap, path::Path};

/// How long it may take to look at what runs on a host.
const LIMIT: Millis = Millis(30_000);
/// Where the database of a shard usually is.
const DATA_DIR: &str = "/manatee/pg/data";
/// Prints of each sitter on a host the unit of systemd that it is of, its directory, and its arguments, a
/// line each, and an empty line: of ours, and of the original's.
const SITTERS: &str = r#"
for file in $(grep -lzE '^sitter$|(^|/)sitter\.js$' /proc/[0-9]*/cmdline 2>/dev/null); do
    process=${file%/cmdline}
    ps -o unit= -p "${process#/proc/}" 2>/dev/null || echo -
    readlink "$process/cwd" 2>/dev/null || echo /
    tr '\0' '\n' <"$file" 2>/dev/null
    echo
done"#;

/// A sitter that runs on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sitter {
    file: String,
    unit: Option<String>,
}

/// The sitters of a host by where their servers are, or why they are not known.
type Sitters = Result<BTreeMap<(String, u16), Sitter>, String>;

/// The draft of an inventory whose donor is a shard.
pub(super) async fn draft(
    asking: &Asking,
    coordination: &str,
    shard: &str,
    access: Option<&str>,
) -> Result<Draft> {
    let place = DonorShard {
        coordination: coordination.to_owned(),
        shard: shard.to_owned(),
        sitter: SITTER_FILE.to_owned(),
        access: access.map(str::to_owned),
    };
    draft_of(asking, &place, &look_at(&place).await?).await
}

async fn draft_of(asking: &Asking, place: &DonorShard, facts: &ShardFacts) -> Result<Draft> {
    let DonorShard { coordination, shard, .. } = place;
    let primary = facts.primary.as_ref().with_context(|| {
        format!(
            "shard {shard:?} at {coordination} has no cluster state, and nobody is registered: start \
             its sitters, or correct --shard and --coordination"
        )
    })?;
    let (address, port) = primary.pg_address()?;
    let lead = Lead::ask(asking, &address, port).await;
    let mut hosts = Hosts::default();

    let mut draft = Draft::of(&format!("shard {shard:?} at {coordination}{}", lead.told()));
    tell(&mut draft, facts);
    let kind = if facts.generation.is_some() { "manatee-v2" } else { "manatee-v1" };
    draft.lead(kind, &lead, asking, DATA_DIR);
    let sitter = hosts.sitter(lead.host.as_ref(), primary).await;
    let unit = sitter.as_ref().ok().and_then(|sitter| sitter.unit.as_deref()).or(lead.unit());
    draft.unit(unit, "manatee-sitter", "its sitter")?;
    draft.line("\n[donor.manatee]");
    draft.set("coordination", coordination);
    draft.set("shard", shard);
    let file = draft.sitter(&sitter);
    draft.set("sitter", &file);
    if let Some(access) = &place.access {
        draft.set("access", access);
    }

    for peer in &facts.others {
        draft.line("\n[[donor.standbys]]");
        draft.note(&named(peer));
        if !facts.has(peer) {
            draft.unknown("it is not registered: its sitter does not run");
        }
        draft.set("name", peer.id.as_str());
        let (address, _) = peer.pg_address()?;
        let host = lead.place(&address);
        draft.host(host.as_ref(), &address);
        let sitter = hosts.sitter(host.as_ref(), peer).await;
        let file = draft.sitter(&sitter);
        draft.set("sitter", &file);
        let unit = sitter.ok().and_then(|sitter| sitter.unit);
        draft.unit(unit.as_deref(), "manatee-sitter", "its sitter")?;
    }
    Ok(draft)
}

/// What a person should know of the shard.
fn tell(draft: &mut Draft, facts: &ShardFacts) {
    draft.line("");
    match facts.generation {
        Some(generation) => draft.note(&format!("It has a cluster state, of generation {generation}.")),
        None => draft.note(
            "It has no cluster state: its primary is who registered first. Its other peers are known \
             only while they are registered: see that all of them are there.",
        ),
    }
    if facts.one_node_write_mode {
        draft.note("It is in one-node-write mode: its primary serves alone.");
    }
    if facts.frozen {
        draft.note("It is frozen: a rollback leaves it so.");
    }
    if facts.primary.as_ref().is_some_and(|primary| !facts.has(primary)) {
        draft.unknown("its primary is not registered: start its sitter");
    }
    if facts.promote {
        draft.unknown("an operator has asked for a promotion in it: let that come to its end");
    }
    for peer in &facts.deposed {
        draft.unknown(&format!(
            "{} is deposed: rebuild it and draft again, or drop it (`manatee adm reap`) and stop its \
             sitter",
            named(peer)
        ));
    }
}

impl Draft {
    /// The sitter's file, or where it usually is.
    fn sitter(&mut self, sitter: &Result<Sitter, String>) -> String {
        match sitter {
            Ok(sitter) => sitter.file.clone(),
            Err(problem) => {
                self.unknown(&format!("which file its sitter has ({problem})"));
                SITTER_FILE.to_owned()
            }
        }
    }
}

/// The sitters of hosts that were looked at.
#[derive(Default)]
struct Hosts(BTreeMap<String, Sitters>);

impl Hosts {
    /// The sitter of a peer on its host, or why it is not known.
    async fn sitter(&mut self, host: Option<&Host>, peer: &PeerIdent) -> Result<Sitter, String> {
        let host = host.ok_or("its host was not asked")?;
        let name = host.to_string();
        if !self.0.contains_key(&name) {
            let sitters = sitters(host).await.map_err(|error| format!("{error:#}"));
            self.0.insert(name.clone(), sitters);
        }
        let sitters = self.0[&name].as_ref().map_err(Clone::clone)?;
        let address = peer.pg_address().map_err(|error| error.to_string())?;
        let sitter = sitters.get(&address).cloned();
        sitter.ok_or_else(|| format!("no process on {name} is its sitter and names one"))
    }
}

async fn sitters(host: &Host) -> Result<BTreeMap<(String, u16), Sitter>> {
    let output = host.shell(None, SITTERS, &[])?.limit(LIMIT).run().await?.stdout;
    let mut sitters = BTreeMap::new();
    for sitter in String::from_utf8_lossy(&output).split("\n\n").filter_map(running) {
        let text = host.read(None, &sitter.file).await?;
        if let Some(address) = text.as_deref().and_then(server) {
            sitters.entry(address).or_insert(sitter);
        }
    }
    Ok(sitters)
}

/// A sitter as [`SITTERS`] tells of it, if its arguments name a file.
fn running(told: &str) -> Option<Sitter> {
    let mut lines = told.trim_start_matches('\n').lines();
    let (unit, directory) = (service_unit(lines.next()?), lines.next()?);
    let arguments: Vec<&str> = lines.collect();
    let next = |n: usize| arguments.get(n + 1).copied();
    let named = arguments.iter().enumerate().find_map(|(n, argument)| match *argument {
        "--config" | "-c" | "--file" | "-f" => next(n),
        argument => argument.strip_prefix("--config="),
    })?;
    Some(Sitter { file: Path::new(directory).join(named).display().to_string(), unit })
}

/// Where the server is that this sitter's file is of: TOML, or the original's JSON.
fn server(text: &str) -> Option<(String, u16)> {
    let read = toml::from_str(text).ok();
    let file: serde_json::Value = read.or_else(|| serde_json::from_str(text).ok())?;
    let port = file["postgres"]["port"].as_u64().or(file["postgresPort"].as_u64()).unwrap_or(5432);
    Some((file["ip"].as_str()?.to_owned(), port.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DonorKind, Inventory};
    use cluster::Generation;

    #[test]
    fn sitters_are_known_by_their_arguments() {
        let sitter = |file: &str, unit: Option<&str>| {
            Some(Sitter { file: file.to_owned(), unit: unit.map(str::to_owned) })
        };
        for (told, expected) in [
            (
                "manatee-sitter.service\n/\n/usr/bin/manatee\nsitter\n--config\n/etc/my sitter.toml",
                sitter("/etc/my sitter.toml", Some("manatee-sitter")),
            ),
            ("-\n/root\nmanatee\nsitter\n--config=peer/s.toml", sitter("/root/peer/s.toml", None)),
            (
                "session-1.scope\n/opt/manatee\nnode\nsitter.js\n-v\n-f\netc/sitter.json",
                sitter("/opt/manatee/etc/sitter.json", None),
            ),
            ("-\n/\nmanatee\nsitter\n", None),
            ("-\n/\nmanatee\nsitter\n--config", None),
            ("", None),
        ] {
            assert_eq!(running(told), expected, "{told}");
        }
    }

    #[test]
    fn files_of_sitters_say_where_their_servers_are() {
        for (text, expected) in [
            ("ip = \"10.0.0.1\"\n", Some(("10.0.0.1", 5432))),
            ("ip = \"10.0.0.1\"\n[postgres]\nport = 5442\n", Some(("10.0.0.1", 5442))),
            (r#"{"ip": "10.0.0.1", "postgresPort": 5442}"#, Some(("10.0.0.1", 5442))),
            ("moved away by manatee transplant: …", None),
            ("[postgres]\nport = 5442\n", None),
        ] {
            let expected = expected.map(|(ip, port): (&str, u16)| (ip.to_owned(), port));
            assert_eq!(server(text), expected, "{text}");
        }
    }

    fn peer(number: u8) -> PeerIdent {
        PeerIdent::new(&format!("192.0.2.{number}"), 5432, 12345, &format!("zone{number}"))
    }

    /// Nothing but the coordination could be asked.
    #[tokio::test]
    async fn a_draft_of_what_is_elsewhere_loads_and_says_what_it_lacks() {
        let asking = Asking {
            host: None,
            socket_dir: None,
            os_user: "postgres".to_owned(),
            superuser: "postgres".to_owned(),
        };
        let place = DonorShard {
            coordination: "zk://192.0.2.9:2181".to_owned(),
            shard: "1.example".to_owned(),
            sitter: SITTER_FILE.to_owned(),
            access: Some("/etc/access.toml".to_owned()),
        };
        let facts = ShardFacts {
            generation: Some(Generation(7)),
            primary: Some(peer(1)),
            registration: None,
            others: vec![peer(2), peer(3)],
            deposed: vec![peer(4)],
            registered: vec![peer(2)],
            frozen: true,
            promote: true,
            one_node_write_mode: true,
        };
        let mut draft = draft_of(&asking, &place, &facts).await.unwrap();
        draft.recipients(&[], "manatee").unwrap();
        let text = draft.into_text();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("move.toml");
        std::fs::write(&file, &text).unwrap();
        let donor = Inventory::load(&file).unwrap().donor;
        assert_eq!(donor.kind, DonorKind::ManateeV2);
        assert_eq!(donor.host, Host::Ssh("root@192.0.2.1".to_owned()));
        assert_eq!((donor.address.as_str(), donor.port), ("192.0.2.1", 5432));
        assert_eq!(donor.manatee, Some(place));
        let names: Vec<&str> = donor.standbys.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["192.0.2.2:5432:12345", "192.0.2.3:5432:12345"]);
        for told in [
            "# It has a cluster state, of generation 7.",
            "# It is in one-node-write mode",
            "# It is frozen",
            "# LOOK HERE: its primary is not registered",
            "# LOOK HERE: an operator has asked for a promotion",
            "# LOOK HERE: zone4 (192.0.2.4:5432:12345) is deposed",
            "# LOOK HERE: its server was not asked (192.0.2.1 is another host; with --host \
             ssh:root@192.0.2.1,",
            "# zone3 (192.0.2.3:5432:12345)\n# LOOK HERE: it is not registered",
            "# LOOK HERE: which file its sitter has (its host was not asked)",
        ] {
            assert!(text.contains(told), "{told}: {text}");
        }

        let nobody = ShardFacts { generation: None, primary: None, ..facts };
        let place = donor.manatee.unwrap();
        let told = draft_of(&asking, &place, &nobody).await.unwrap_err().to_string();
        assert!(told.contains("nobody is registered"), "{told}");
    }
}
