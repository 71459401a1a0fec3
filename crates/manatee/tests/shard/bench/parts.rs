//! What the return of a deposed primary consists of, as the logs of its sitter and of its PostgreSQL tell.

use anyhow::{Context, Result};
use jiff::Timestamp;

/// Prints the parts in their order, and how long it was without PostgreSQL's own recovery and start.
pub(super) fn show(sitter: &str, server: &str, took: u64, known: Timestamp) -> Result<()> {
    let at = |what: &str| -> Result<Timestamp> {
        let line = sitter.lines().find(|line| line.contains(what));
        let line = line.with_context(|| format!("the sitter's log has no {what:?}: {sitter}"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let deposed = at("deposed: its data is kept aside")?;
    let kept = at("the old database is kept in")?;
    let rewound = at("the database was rewound")?;
    let follows = at(" role=async")?;
    let server = |what: &str| -> Result<Timestamp> {
        let mut all = server.lines().filter_map(|line| Some((time_of(line)?, line)));
        let found = all.find(|(time, line)| *time >= follows && line.contains(what));
        Ok(found
            .with_context(|| format!("PostgreSQL's log has no {what:?} at the end: {server}"))?
            .0)
    };
    let starting = server("starting PostgreSQL")?;
    let ready = server("ready to accept read-only connections")?;
    let streams = server("started streaming WAL")?.max(ready);
    let field = |name: &str| -> Result<u64> {
        let line = sitter.lines().find(|line| line.contains("the database was rewound"));
        let value = line.and_then(|line| line.split_once(&format!(" {name}=")));
        let value = value.with_context(|| format!("no {name} in the log: {sitter}"))?.1;
        Ok(value.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let between = |from: Timestamp, to: Timestamp| {
        u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
    };
    let (recovery, start) = (field("recovery_ms")?, between(starting, ready));
    let rewinding = between(kept, rewound).saturating_sub(recovery);
    let looking = took.saturating_sub(between(deposed, known));
    let rewound_as = format!(
        "rewinding: {} ms to compare, {} to fetch {} MiB, {} to have them on the disk",
        field("comparing_ms")?,
        field("copying_ms")?,
        field("copied_mib")?,
        field("syncing_ms")?
    );
    for (part, took) in [
        ("starting the sitter, and finding itself deposed", looking),
        ("keeping what is here in a snapshot", between(deposed, kept)),
        ("PostgreSQL's recovery from its crash", recovery),
        (&rewound_as, rewinding),
        ("getting back into the chain", between(rewound, starting)),
        ("PostgreSQL's start as a standby", start),
        ("until it streams", between(ready, streams)),
        ("until that is known", between(streams, known)),
    ] {
        println!("  {took:>6} ms  {part}");
    }
    println!("  {:>6} ms  without PostgreSQL's own recovery and start", took - recovery - start);
    Ok(())
}

/// When PostgreSQL wrote a line: it begins with the date, the time and UTC.
fn time_of(line: &str) -> Option<Timestamp> {
    let mut words = line.split(' ');
    let (date, time) = (words.next()?, words.next()?);
    (words.next()? == "UTC").then_some(())?;
    format!("{date}T{time}Z").parse().ok()
}
