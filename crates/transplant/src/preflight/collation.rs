//! How texts are sorted. The C library and ICU change that from version to version, and an index that is in
//! the order of before finds less than is there, and lets in what has to be unique: nobody is told.

use super::{
    Doubt,
    hosts::{HostFacts, UNKNOWN},
    needs::{Collation, Database, Needs},
};
use crate::PeerFacts;

/// What of a database is sorted in another way on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    database: String,
    /// How it is sorted.
    order: Collation,
    /// The library on the donor's host, and the one there.
    from: String,
    to: String,
}

/// Whether no version of a library sorts it otherwise: PostgreSQL itself says the same.
fn is_fixed(order: &Collation) -> bool {
    let locale = order.locale.to_ascii_uppercase();
    order.provider == "b" || locale == "C" || locale == "POSIX" || locale.starts_with("C.")
}

/// The library that sorts, as a host has it; `None` where that does not matter.
fn library(order: &Collation, host: &HostFacts) -> Option<String> {
    match order.provider.as_str() {
        _ if is_fixed(order) => None,
        "i" if host.icu.is_empty() => Some("no ICU".to_owned()),
        "i" => Some(format!("ICU {}", host.icu)),
        _ => Some(host.libc.clone()),
    }
}

/// What is sorted in another way on the host of a peer than on the donor's.
pub(super) fn changed(needs: &Needs, donor: &HostFacts, peer: &HostFacts) -> Vec<Changed> {
    let mut changed = Vec::new();
    for database in &needs.databases {
        for order in database.orders() {
            let (Some(from), Some(to)) = (library(&order, donor), library(&order, peer)) else {
                continue;
            };
            if from != to || to.ends_with(UNKNOWN) {
                changed.push(Changed { database: database.name.clone(), order, from, to });
            }
        }
    }
    changed
}

impl Changed {
    /// Whether anything is in its order already.
    pub fn matters(&self) -> bool {
        self.order.indexes > 0
    }

    fn without_library(&self) -> bool {
        self.to == "no ICU"
    }

    fn told(&self) -> String {
        let Changed { database, order, from, to } = self;
        let example = order.example.as_deref().unwrap_or("none");
        format!(
            "{to} sorts there, {from} does on the donor's host: indexes of database {database} in the order of \
             {:?} ({}, such as {example}) may be wrong there, and nobody is told",
            order.locale, order.indexes
        )
    }
}

/// Whether its host sorts what the donor has as the donor's does.
pub(super) fn doubts(
    needs: &Needs,
    donor: &HostFacts,
    peer: &HostFacts,
    accepted: bool,
) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for one in changed(needs, donor, peer) {
        if one.without_library() {
            let problem = format!(
                "its PostgreSQL has no ICU, by which database {} sorts ({:?})",
                one.database, one.order.locale
            );
            doubts.push((true, problem, "install a PostgreSQL there that was built with ICU"));
        } else {
            let remedy = "give its host the release of the operating system that the donor's has; or accept it \
                          (limits.accept_collation_change = true) and reindex as soon as the shard is open";
            doubts.push((one.matters() && !accepted, one.told(), remedy));
        }
    }
    doubts
}

/// Whether it sorts as the first peer does: what was made anew for one must be right on all.
pub(super) fn doubts_among(needs: &Needs, first: &HostFacts, peer: &HostFacts) -> Vec<Doubt> {
    let different = changed(needs, first, peer).into_iter().find(|one| !one.without_library());
    let different = different.iter().map(|one| {
        let problem = format!(
            "{} sorts there, {} does on the first peer's host: indexes cannot be right on both (database {}, \
             {:?})",
            one.to, one.from, one.database, one.order.locale
        );
        (true, problem, "give all hosts of the shard the same release of the operating system")
    });
    different.collect()
}

/// What is to be known of it.
pub(super) fn notes(
    needs: &Needs,
    donor: &HostFacts,
    first: &HostFacts,
    accepted: bool,
) -> Vec<String> {
    let mut notes = Vec::new();
    for database in &needs.databases {
        for order in database.orders() {
            let now = library(&order, donor);
            let made = order.version.as_ref().filter(|_| order.provider == "c");
            if let (Some(made), Some(now)) = (made, &now)
                && now.strip_prefix("glibc ").is_some_and(|now| now != made)
            {
                notes.push(format!(
                    "database {} was made with glibc {made}, and {now} sorts on the donor's host by now: if its \
                     indexes were not made anew since, some may be wrong already (collation {:?})",
                    database.name, order.name
                ));
            }
        }
    }
    for one in changed(needs, donor, first) {
        if one.matters() && accepted {
            notes.push(format!(
                "{}: reindex as soon as the shard is open; after that, and a rollback, the donor's have to be made anew, \
                 too",
                one.told()
            ));
        } else if !one.matters() && !one.without_library() {
            notes.push(format!(
                "database {} will sort by {}, where {} does now (collation {:?}): nothing is in that order yet",
                one.database, one.to, one.from, one.order.name
            ));
        }
    }
    notes
}

/// What makes it right again, once the shard is open: commands of the shell for root on the first peer's host.
pub(super) fn commands(
    needs: &Needs,
    donor: &HostFacts,
    first: &HostFacts,
    peer: &PeerFacts,
) -> Vec<String> {
    let program = |name: &str, database: &str| {
        let PeerFacts { bin_dir, socket_dir, port, superuser, .. } = peer;
        let (program, socket) = (shown(&format!("{bin_dir}/{name}")), shown(socket_dir));
        let database = shown(&format!("dbname='{}'", escaped(database)));
        format!("{program} -h {socket} -p {port} -U {} -d {database}", shown(superuser))
    };
    let changed = changed(needs, donor, first);
    let mut commands = Vec::new();
    for Database { name, .. } in &needs.databases {
        let of_this: Vec<&Changed> = changed.iter().filter(|one| one.database == *name).collect();
        if of_this.iter().any(|one| one.matters()) {
            commands.push(program("reindexdb", name) + " --concurrently");
        }
        for one in of_this {
            let statement = match one.order.name.as_str() {
                "default" if peer.version < 15 => continue,
                "default" => {
                    format!("alter database {} refresh collation version", quoted(name))
                }
                other => format!("alter collation {other} refresh version"),
            };
            commands.push(format!("{} -c {}", program("psql", name), shown(&statement)));
        }
    }
    commands
}

fn shown(word: &str) -> String {
    adapters::service::quote(word)
}

/// A name as a value in a connection string.
fn escaped(name: &str) -> String {
    name.replace('\\', r"\\").replace('\'', r"\'")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The locales of the C library that something needs, and where.
pub(super) fn locales(needs: &Needs) -> Vec<(String, String)> {
    let mut locales: Vec<(String, String)> = Vec::new();
    for database in &needs.databases {
        for order in database.orders() {
            let own = (order.provider == "c").then_some(&order.locale);
            for locale in own.into_iter().chain(&order.ctype) {
                if !locale.is_empty() && !locales.iter().any(|(known, _)| known == locale) {
                    locales.push((locale.clone(), database.name.clone()));
                }
            }
        }
    }
    locales
}

#[cfg(test)]
#[path = "collation_tests.rs"]
mod tests;
