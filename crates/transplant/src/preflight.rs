//! What is there, and everything that is wrong with it, at once.

mod collation;
mod donor;
mod grounds;
mod hosts;
mod libraries;
mod needs;
mod peers;

pub use needs::LIBRARY_SETTINGS;

use crate::{
    Donor, Facts, Inventory, Method, PatroniFacts, PeerFacts,
    manatee::{self, preflight::SeenShard},
    patroni,
    plan::DonorFacts,
    recipient,
};
use anyhow::Result;
use cluster::Millis;
use grounds::Grounds;
use serde::Serialize;
use std::fmt;

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where: the donor, or a peer.
    pub at: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.at, self.problem, self.remedy)
    }
}

/// What was found, or why it was not.
#[derive(Debug, Clone)]
pub struct Seen {
    pub(crate) donor: Result<DonorFacts, String>,
    pub(crate) shard: Option<SeenShard>,
    /// Why the first peer cannot stream from it as things are, where that has to be so.
    pub(crate) login: Result<(), String>,
    pub(crate) peers: Vec<Result<PeerFacts, String>>,
    /// Standbys that are not where the inventory says, and why.
    pub(crate) misplaced: Vec<(String, String)>,
    pub(crate) patroni: Result<Option<PatroniFacts>, String>,
    /// The hosts, and what the databases need of them; none where the donor does not
    /// answer, or is too old.
    pub(crate) grounds: Option<Grounds>,
}

/// Looks at everything that the inventory names.
pub async fn look(inventory: &Inventory) -> Seen {
    let limit = Millis(inventory.limits.service_seconds * 1000);
    let server = Donor { config: inventory.donor.clone(), limit, config_file: None };
    let donor = donor::look(&server).await.map_err(|error| format!("{error:#}"));
    let patroni = patroni::look(&inventory.donor, &server).await;
    let patroni = patroni.map_err(|error| format!("{error:#}"));
    let mut peers = Vec::new();
    for (index, peer) in inventory.recipient.iter().enumerate() {
        let backup = inventory.backup.as_ref().filter(|_| index == 0);
        let backup = backup.map(|backup| backup.dir.as_str());
        peers.push(recipient::look(peer, backup).await.map_err(|error| format!("{error:#}")));
    }
    let shard = manatee::preflight::see(inventory).await;
    let login = match (&donor, peers.first()) {
        (Ok(donor), Some(Ok(first))) if manatee::is_rendered(&donor.hba_file) => {
            manatee::preflight::log_in(inventory, first).await
        }
        _ => Ok(()),
    };
    let mut misplaced = Vec::new();
    // Those of a shard are known by their registrations.
    let standbys = inventory.donor.standbys.iter();
    for standby in standbys.filter(|_| !inventory.donor.kind.has_sitter()) {
        let control = server.standby(standby).control().await;
        let problem = match (control, &donor) {
            (Err(error), _) => format!("{error:#}"),
            (Ok(control), Ok(donor)) if control.system_identifier != donor.system_identifier => {
                "the database there is another one".to_owned()
            }
            _ => continue,
        };
        misplaced.push((standby.name.clone(), problem));
    }
    let grounds = match &donor {
        // An older one has to be brought to another version first.
        Ok(facts) if facts.version >= 130_000 => {
            Some(grounds::see(inventory, &server, facts, &peers).await)
        }
        _ => None,
    };
    Seen { donor, shard, login, peers, misplaced, patroni, grounds }
}

/// What is not wrong, and should be known.
pub fn notes(inventory: &Inventory, seen: &Seen) -> Vec<String> {
    let mut notes = Vec::new();
    if inventory.backup.is_none() {
        notes.push(
            "no backup is made before the donor is stopped: give [backup] to have one".into(),
        );
    }
    notes.extend(seen.grounds.iter().flat_map(|grounds| grounds.notes(inventory, &seen.peers)));
    notes
}

/// One thing that may be wrong: whether it is, what, and what to do.
pub(crate) type Doubt = (bool, String, &'static str);

/// What is wrong, all of it; empty when a plan can be made.
pub fn problems(inventory: &Inventory, seen: &Seen) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |at: &str, doubts: Vec<Doubt>| {
        for (_, problem, remedy) in doubts.into_iter().filter(|(wrong, ..)| *wrong) {
            problems.push(Problem { at: at.to_owned(), problem, remedy: remedy.to_owned() });
        }
    };
    match &seen.donor {
        Err(problem) => {
            let remedy = "start it, and compare [donor] of the inventory with where it is; its superuser \
                          must be let in over the socket without a password";
            tell("donor", vec![(true, problem.clone(), remedy)]);
        }
        Ok(donor) => tell("donor", donor::doubts(inventory, donor)),
    }
    if let Some(shard) = &seen.shard {
        tell("donor", manatee::preflight::doubts(inventory, shard));
    }
    if let Err(problem) = &seen.login {
        let remedy = "its sitter writes its own pg_hba.conf, which lets in the replication role of its \
                      shard: give the recipient's sitters the same [replication] user and password";
        tell(
            "recipient",
            vec![(true, format!("it cannot stream from the donor: {problem}"), remedy)],
        );
    }
    if let Some(grounds) = &seen.grounds {
        tell("donor", grounds.donor_doubts(inventory, seen.donor.as_ref().ok()));
    }
    for (name, problem) in &seen.misplaced {
        let remedy =
            "set host and data_dir of this one of donor.standbys: its files are changed there";
        tell(&format!("standby {name}"), vec![(true, problem.clone(), remedy)]);
    }
    match &seen.patroni {
        Err(problem) => {
            let remedy = "name the REST API of a running member as donor.patroni.url, with user, \
                          password_file and ca where it asks for them";
            tell("donor's Patroni", vec![(true, problem.clone(), remedy)]);
        }
        Ok(None) => {}
        Ok(Some(patroni)) => tell("donor's Patroni", donor::patroni_doubts(inventory, patroni)),
    }
    for (index, (peer, facts)) in inventory.recipient.iter().zip(&seen.peers).enumerate() {
        match facts {
            Err(problem) => {
                let remedy = "install the program there, write the sitter's file, and name both in the \
                              inventory";
                let at = format!("recipient {} on {}", peer.config, peer.host);
                tell(&at, vec![(true, problem.clone(), remedy)]);
            }
            Ok(facts) => {
                let at = format!("recipient {}", facts.peer.zone_id);
                let donor = seen.donor.as_ref().ok();
                tell(&at, peers::doubts(facts, index == 0, donor));
                if let Some(grounds) = &seen.grounds {
                    tell(&at, grounds.peer_doubts(inventory, index, facts));
                }
                tell(&at, manatee::preflight::peer_doubts(inventory, facts, donor));
                let method = &inventory.donor;
                let kind = method.dataset.as_ref().map_or("", |dataset| dataset.kind.name());
                let other = method.method == Method::Snapshots && facts.storage != kind;
                let problem =
                    format!("its storage is {}, the donor's dataset {kind}", facts.storage);
                let remedy = "give its sitter a dataset of that kind, or move by streaming";
                tell(&at, vec![(index == 0 && other, problem, remedy)]);
            }
        }
    }
    let shards = seen.peers.iter().flatten().map(|facts| facts.shard.as_str());
    let shards: std::collections::BTreeSet<&str> = shards.collect();
    if shards.len() > 1 {
        let remedy = "name the peers of one shard";
        let problem = format!("its peers are of different shards: {shards:?}");
        tell("recipient", vec![(true, problem, remedy)]);
    }
    problems
}

impl Seen {
    /// What a plan is made from.
    ///
    /// # Errors
    /// When something was not found; [`problems`] tells all of it.
    pub fn facts(self, inventory: Inventory, id: String) -> Result<Facts> {
        let first = self.peers.first().and_then(|first| first.as_ref().ok());
        let after_opening = self.grounds.map(|grounds| grounds.after_opening(first));
        let peers: Result<Vec<PeerFacts>, String> = self.peers.into_iter().collect();
        Ok(Facts {
            id,
            inventory,
            after_opening: after_opening.unwrap_or_default(),
            shard: self.shard.map(|shard| shard.facts).transpose().map_err(anyhow::Error::msg)?,
            donor: self.donor.map_err(anyhow::Error::msg)?,
            peers: peers.map_err(anyhow::Error::msg)?,
            patroni: self.patroni.map_err(anyhow::Error::msg)?,
        })
    }
}
