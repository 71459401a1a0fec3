//! What idle shards cost: their members' sessions and watches on a ZooKeeper ensemble of three
//! servers on this machine.
//!
//! The members run in a process of their own, so that its memory and its processor time are theirs
//! alone; on the way to the servers every request is counted by its kind. Says whether there was
//! anything but heartbeats while nothing happened, and fails if there was.
//!
//! `make bench-idle`, or `cargo bench --package adapters --bench idle -- SHARDS`.

mod members;
mod wire;

use adapters::clock;
use adapters::testing::Ensemble;
use cluster::Millis;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Of each shard.
const MEMBERS: usize = 3;
/// What is asked for; the ensemble grants it.
const SESSION: Millis = Millis(60_000);
/// A whole session, so that every member beats and every ping of the client that there may be comes.
const WINDOW: Millis = SESSION;
/// Shards, if nothing else is said.
const SHARDS: usize = 1000;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // A connection of each member, twice in the process that counts.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    if let [mode, servers, shards] = &arguments[..]
        && mode == members::MODE
    {
        return members::run(servers, shards.parse()?);
    }
    // Cargo adds words of its own.
    let shards = arguments.iter().find_map(|word| word.parse().ok()).unwrap_or(SHARDS);
    measure(shards)
}

fn measure(shards: usize) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let ensemble = Ensemble::start(directory.path(), 3)?;
    let wire = wire::Wire::start((0..3).map(|index| ensemble.address(index)).collect())?;
    println!("{shards} shards of {MEMBERS} members, sessions of {} s", SESSION.0 / 1000);
    let (begin, mut members) = (clock::now(), Members::start(&wire.servers(), shards)?);
    members.wait_for("started")?;
    let empty = members.usage()?;
    members.wait_for("idle")?;
    println!("all joined and confirmed after {} s", (clock::now() - begin).0 / 1000);
    report("joining", &wire.take(), clock::now() - begin, shards);

    let (begin, before) = (clock::now(), members.usage()?);
    std::thread::sleep(Duration::from_millis(WINDOW.0));
    let (time, after, counts) = (clock::now() - begin, members.usage()?, wire.take());
    report("idle", &counts, time, shards);
    let resident = after.resident.saturating_sub(empty.resident);
    println!("memory: {} KiB a shard", (resident >> 10) / shards as u64);
    let processor = after.processor.0 - before.processor.0;
    println!("processor: {processor} ms in {} s for all", time.0 / 1000);
    let told = members.end()?;
    println!("told meanwhile, besides confirmations: {told} events");
    if counts.keys().any(|kind| !wire::is_heartbeat(*kind)) || told > 0 {
        return Err("idle shards did more than to beat".into());
    }
    println!("idle traffic was nothing but heartbeats");
    Ok(())
}

fn report(what: &str, counts: &BTreeMap<i32, u64>, time: Millis, shards: usize) {
    for (kind, count) in counts {
        let rate = *count as f64 * 1000.0 / time.0.max(1) as f64;
        println!(
            "{what}: {:<22} {count:>8} requests {rate:>9.1}/s {:>8.3}/s a shard",
            wire::name(*kind),
            rate / shards as f64
        );
    }
}

/// The process with the members. Dropping it ends it.
struct Members {
    child: Child,
    words: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

/// What a process has used.
struct Usage {
    /// In bytes.
    resident: u64,
    processor: Millis,
}

impl Members {
    fn start(servers: &str, shards: usize) -> Outcome<Members> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([members::MODE, servers, &shards.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let words = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        Ok(Members { child, words })
    }

    fn wait_for(&mut self, word: &str) -> Outcome<()> {
        let told = self.words.next().ok_or("the process with the members ended")??;
        if told == word { Ok(()) } else { Err(format!("{told:?} in place of {word:?}").into()) }
    }

    fn usage(&self) -> Outcome<Usage> {
        let process = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.and_then(|text| text.split_whitespace().next());
        let resident = kibibytes.ok_or("no VmRSS")?.parse::<u64>()? << 10;
        let stat = fs::read_to_string(format!("{process}/stat"))?;
        // Behind the name, which may hold anything: time in user mode and in the kernel.
        let (_, rest) = stat.rsplit_once(')').ok_or("no name in stat")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let processor = Millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
        Ok(Usage { resident, processor })
    }

    /// Ends it. How much its members were told while all was idle.
    fn end(mut self) -> Outcome<u64> {
        drop(self.child.stdin.take());
        Ok(self.words.next().ok_or("no last word")??.parse()?)
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // It is our child, not waited for yet: the id is its own.
        let _ = (self.child.kill(), self.child.wait());
    }
}
