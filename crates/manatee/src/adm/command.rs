//! The commands of `manatee adm` and their options, as the command line has them.

use super::peers::PeerColumn;
use super::{
    history, promote::Promotion, reach::Reach, reap::Which, restore::Restore,
    snapshot::SnapshotCommand,
};
use clap::{Args, Subcommand, ValueEnum};
use cluster::Role;
use std::{path::PathBuf, time::Duration};

/// What `manatee adm` can do.
#[derive(Debug, Subcommand)]
pub enum AdmCommand {
    /// Print the version of this program
    Version {
        #[command(flatten)]
        json: Json,
    },
    /// Show the shard on one page: its state, its peers, what is wrong
    ///
    /// Exits with 0 also when there are problems; `verify` is for scripts.
    Show {
        /// Also show who the peers are, and what each sitter says of itself
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// List the peers that have a place in the shard
    Peers {
        #[command(flatten)]
        rows: Rows,
        #[command(flatten)]
        reach: Reach,
    },
    /// List the peers with the state of their PostgreSQL and of its replication
    ///
    /// REPL, SENT, WRITE, FLUSH and REPLAY tell of the peer in the next row, as this one sees it;
    /// LAG tells of the peer itself. What is wrong follows after an empty line, unless -H, -o or
    /// -r asks for a plain table.
    PgStatus {
        #[command(flatten)]
        rows: Rows,
        /// Show whole names in place of abbreviations
        #[arg(short, long)]
        wide: bool,
        /// Again every so many seconds, from 0.1 to 86400, with or without a fraction
        #[arg(value_parser = period)]
        period: Option<Duration>,
        /// That many times
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        #[command(flatten)]
        reach: Reach,
    },
    /// List every write of the cluster state
    ///
    /// --shard has no short form here: -s is --sort.
    #[command(mut_arg("shard", |shard| shard.short(None)))]
    History {
        /// Also say what each write changed
        #[arg(short, long)]
        verbose: bool,
        /// One JSON object a line: {time, state, zkSeq}, with -v also summary; v1 for an event of the
        /// first version, raw and error where the state is no JSON
        #[arg(short, long)]
        json: bool,
        /// By what they are sorted
        #[arg(short, long, value_enum, default_value_t)]
        sort: history::Sort,
        #[command(flatten)]
        reach: Reach,
    },
    /// Say what is wrong, one problem a line; exit with 0 only if nothing is
    ///
    /// A line begins with `error:` when the shard does not serve or nobody can tell, and with
    /// `warning:` when it serves and needs attention. A freeze is no problem.
    Verify {
        /// Also say so when nothing is wrong, and whether the shard is frozen
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Print where PostgreSQL is to be had: primary, sync, asyncs, a URL each
    ///
    /// From the cluster state where there is one; in a shard of the first version, which has none, from
    /// the order of registrations. With -w all URLs of a topology stand on one line, and - means that
    /// there is nobody.
    Topology {
        /// Then print a line for each change, as it happens, until interrupted
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Print the shard by role as JSON, with the state of each PostgreSQL
    ///
    /// It is JSON, whether that is asked for or not.
    Status {
        /// Take the roles from the order of registrations, as in a shard of the first version
        #[arg(short, long = "legacyOrderMode", visible_alias = "legacy-order-mode")]
        legacy: bool,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Give a shard of the first version the cluster state that the second one needs
    ///
    /// In the order of registrations, but for the last async, which becomes the sync, and the sync,
    /// which becomes the last async. The shard is frozen: `unfreeze` when all peers are upgraded but
    /// the primary. Refuses when there is a state. What was written is printed as JSON, whether that is
    /// asked for or not.
    StateBackfill {
        /// Write without asking
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Exit with 1 if there is a node at this path in ZooKeeper, with 0 if there is none
    ///
    /// For scripts that take turns by such a node. Exits with 1 as well, and says why, when that cannot
    /// be told.
    CheckLock {
        /// The whole path of the node
        #[arg(short, long, value_parser = node_path)]
        path: String,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Freeze the shard: no takeover and no new sync, whatever fails, until `unfreeze`
    ///
    /// If the primary or the sync is lost meanwhile, writes stop until it is back, or until `unfreeze`.
    Freeze {
        /// Why, for whoever comes next
        #[arg(short, long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Let the shard react to failures again
    Unfreeze {
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Move a peer one place up: the sync to primary, an async towards the sync
    ///
    /// The first async changes places with the sync, every other one with the async before it. Shows the
    /// problems of the shard and asks, as each of them may make it the wrong moment; then waits until it is
    /// done and the primary takes writes. Exits with 1 if it was not granted. Interrupted, it leaves
    /// the request to the peers; `clear-promote` takes it back.
    Promote {
        #[command(flatten)]
        promotion: Promotion,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Take a request for a promotion back, if it was not granted yet
    ClearPromote {
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Drop a deposed peer that is gone for good
    ///
    /// Without -i and -n, the only one that is deposed. Refuses for a peer that is active: that one
    /// comes back by itself, or by `rebuild`.
    Reap {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Rebuild the database of this peer now; run it on the peer itself
    ///
    /// Asks the sitter whose file -c names, and shows what it does until the database streams again. A
    /// deposed peer comes back, also with `deposed = "manual"`, in the cheapest way that is proven right.
    /// An async is copied from its upstream although nothing is wrong. What was there is kept aside.
    ///
    /// Refuses on the primary and the sync, on a peer that has no place in the shard, in one-node-write
    /// mode, while a copy is under way, while the state of the shard is not known, and on an async whose
    /// upstream is not active. Ctrl-C ends only what is shown: the sitter goes on. A sitter that is
    /// restarted forgets the request.
    Rebuild {
        /// Copy everything: no rewind, and no difference to a snapshot that is here
        #[arg(long)]
        full: bool,
        /// Begin without asking
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Snapshots of the database of this peer; run it on the peer itself
    ///
    /// On the dataset that the sitter's file names (-c), whether the sitter runs or not. A snapshot of a
    /// running PostgreSQL is what a crash would leave, and recovers like one.
    #[command(mut_arg("config", |config| config.global(true)))]
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
        #[command(flatten)]
        reach: Reach,
    },
    /// Write a backup of this peer's database into one file; run it on the peer itself
    ///
    /// Where its storage has snapshots, the files of a new one, without PostgreSQL noticing; else a base
    /// backup of the PostgreSQL that runs here. Compressed, checksummed, with a manifest that says which. The
    /// file appears only when it is complete, and never replaces another. It is restored on any storage;
    /// `zstd -dc FILE | tar -x` unpacks it as well as `restore`.
    Backup {
        /// The file to write, or an existing directory, where it gets a name that says what it is
        #[arg(long, value_name = "FILE|DIR")]
        to: PathBuf,
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Restore a backup into an empty directory, to look inside
    ///
    /// All of the file is verified before anything is written. What is restored is a database of its own,
    /// no member of the shard: it listens on a socket in its directory only, and follows nobody.
    Restore(Restore),
    /// Not here: one-node-write mode is a field of the sitter's file
    #[command(hide = true)]
    SetOnwm {
        /// Whatever it was called with
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Print the cluster state exactly as it is stored
    ///
    /// It is stored as JSON, whether that is asked for or not.
    #[command(visible_alias = "state")]
    ZkState {
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
    /// Print the registrations of peers with a live session, in order, as JSON
    #[command(visible_alias = "active")]
    ZkActive {
        #[command(flatten)]
        json: Json,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Debug, Clone, Copy, Args)]
/// Whether JSON is asked for.
pub struct Json {
    /// Print JSON, for programs
    #[arg(short, long)]
    pub json: bool,
}

/// Which rows and columns of a table of peers.
#[derive(Debug, Args)]
pub struct Rows {
    /// Leave the header out
    #[arg(short = 'H', long = "omitHeader", visible_alias = "omit-header")]
    pub omit_header: bool,
    /// Only these columns, in this order
    #[arg(short = 'o', long, value_enum, value_delimiter = ',', value_name = "COLUMN,…")]
    pub columns: Vec<PeerColumn>,
    /// Only peers of this role
    #[arg(short, long, value_enum)]
    pub role: Option<PeerRole>,
    /// Print JSON, for programs
    #[arg(short, long, conflicts_with_all = ["omit_header", "columns"])]
    pub json: bool,
}

/// A role that peers are asked for by.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PeerRole {
    Primary,
    Sync,
    Async,
    Deposed,
}

impl From<PeerRole> for Role {
    fn from(role: PeerRole) -> Role {
        match role {
            PeerRole::Primary => Role::Primary,
            PeerRole::Sync => Role::Sync,
            PeerRole::Async => Role::Async,
            PeerRole::Deposed => Role::Deposed,
        }
    }
}

fn period(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.1..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "give seconds, from 0.1 to 86400".to_owned())
}

fn node_path(text: &str) -> Result<String, String> {
    let sound = text.starts_with('/') && text.len() > 1 && !text.ends_with('/');
    if sound { Ok(text.to_owned()) } else { Err("give the whole path of a node: /a/b".to_owned()) }
}
