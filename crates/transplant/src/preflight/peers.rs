//! A peer of the recipient, by what it says of itself.

use super::Doubt;
use crate::{
    BackupPlace, Hindrance, PeerFacts,
    plan::{DonorFacts, ROLLED_BACK},
};

pub(super) fn doubts(facts: &PeerFacts, first: bool, donor: Option<&DonorFacts>) -> Vec<Doubt> {
    let rolled_back = facts.state.as_ref().is_some_and(|state| state.get(ROLLED_BACK).is_some());
    let mut doubts = vec![
        (
            facts.has_database,
            format!("there is a database in {}", facts.data_dir),
            "move it away, or name a peer that has none: nothing is written over what is there",
        ),
        (
            facts.sitter_runs,
            "its sitter runs: it would set the shard up with an empty database".to_owned(),
            "stop it; the transplant starts it when its database is there",
        ),
        (
            facts.state.is_some() && !rolled_back,
            format!("shard {:?} has a cluster state: it is, or was, in use", facts.shard),
            "give the shard another name in its sitters' files",
        ),
    ];
    // What listens there while it runs is itself.
    for hindrance in facts.hindrances.iter().filter(|_| !facts.sitter_runs) {
        doubts.push(match hindrance {
            Hindrance::Address(what, address, problem) => (
                true,
                format!("its {what} cannot listen on {address}: {problem}"),
                "stop what has that port, or give its sitter's file another one, or an address of its host",
            ),
            Hindrance::Directory(path, problem) => (
                true,
                format!("its database cannot be put into {path}: {problem}"),
                "let the user of its server into every directory above it, and root write there",
            ),
        });
    }
    if let Some(place) = &facts.backup {
        doubts.extend(backup_doubts(place, donor));
    }
    if let Some(donor) = donor {
        doubts.push((
            facts.version != donor.version / 10_000,
            format!(
                "its PostgreSQL is {}, the donor's is {}",
                facts.version,
                donor.version / 10_000
            ),
            "install the donor's version there: the database is moved as it is",
        ));
        doubts.push((
            facts.free_bytes < donor.bytes + donor.bytes / 10,
            format!(
                "{} MiB are free, the database has {} MiB",
                facts.free_bytes >> 20,
                donor.bytes >> 20
            ),
            "make room for it and a tenth more",
        ));
        for (name, least) in &donor.replicated {
            let has = facts.replicated.get(name).copied().unwrap_or_default();
            doubts.push((
                has < *least,
                format!("its {name} is {has}, the donor's is {least}: it could not follow"),
                "set at least as much in [postgres.settings] of its sitter's file",
            ));
        }
        doubts.push((
            first && facts.data_dir == donor.data_dir,
            "its data directory is the donor's".to_owned(),
            "give its sitter a dataset of its own",
        ));
    }
    doubts
}

/// What is wrong with the place for the backup.
fn backup_doubts(place: &BackupPlace, donor: Option<&DonorFacts>) -> Vec<Doubt> {
    if let Some(problem) = &place.problem {
        let remedy = "make it a directory that the user of the server can get into";
        return vec![(true, format!("backup.dir: {problem}"), remedy)];
    }
    let Some(donor) = donor else { return Vec::new() };
    // The file, and what is restored from it; and the copy, where that takes from the same space.
    let times = if place.beside_database { 3 } else { 2 };
    let needed = donor.bytes * times + donor.bytes / 10;
    vec![(
        place.free_bytes < needed,
        format!(
            "backup.dir: {} MiB are free, {} MiB are needed to make and to prove a backup",
            place.free_bytes >> 20,
            needed >> 20
        ),
        "make room for it, or name a directory elsewhere",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hinders_a_peer_is_said_unless_that_is_itself() {
        let text = |text: &str| text.to_owned();
        let mut facts = PeerFacts::example(15);
        let wrong = |facts: &PeerFacts| -> Vec<String> {
            let found = doubts(facts, true, None).into_iter().filter(|(wrong, ..)| *wrong);
            found.map(|(_, problem, _)| problem).collect()
        };
        assert_eq!(wrong(&facts), [""; 0]);
        facts.hindrances = vec![
            Hindrance::Address(text("server"), text("10.0.0.1:5432"), text("in use")),
            Hindrance::Directory(text("/pool"), text("it cannot be written to")),
        ];
        assert_eq!(
            wrong(&facts),
            [
                "its server cannot listen on 10.0.0.1:5432: in use",
                "its database cannot be put into /pool: it cannot be written to",
            ]
        );
        facts.sitter_runs = true;
        let running = wrong(&facts);
        assert!(running.len() == 1 && running[0].contains("its sitter runs"), "{running:?}");
    }
}
