//! The hosts: whether the files of a database can be used as they are on another one, and what time it is
//! there.

use super::Doubt;
use adapters::service::Host;
use anyhow::{Context, Result};
use cluster::Millis;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// How long a host may take to answer.
const LIMIT: Millis = Millis(60_000);
/// How far clocks may be apart, in milliseconds. Logs of hosts that differ by more cannot be read together,
/// and times that clients are given go back at the cut-over.
const SKEW: i64 = 2_000;

/// What a server program was built with that its files depend on.
const SIZES: [&str; 4] = ["block_size", "wal_block_size", "segment_size", "max_identifier_length"];

/// Says what a host is, a `name=value` a line; `$1` is where its server programs are, the rest the names of
/// [`SIZES`]. The server program ends after a setting was printed: it needs no database for that.
const SEE: &str = r#"
echo "machine=$(uname -m)"
echo "bits=$(getconf LONG_BIT 2>/dev/null)"
echo "order=$(printf '\001\000' | od -An -tu2 | tr -d ' ')"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc=
[ -n "$libc" ] || ! ldd --version 2>&1 | grep -q musl || libc=musl
echo "libc=${libc:-$(uname -sr)}"
bin=$1
shift
linked=$(ldd "$bin/postgres" 2>/dev/null) || linked=libicui18n.so.unknown
echo "icu=$(echo "$linked" | sed -n 's/.*libicui18n\.so\.\([0-9a-z.]*\).*/\1/p' | head -n 1)"
for size; do
    echo "$size=$("$bin/postgres" -C "$size" -D "$bin" -c config_file=/dev/null 2>/dev/null)"
done
"#;

/// A version that cannot be seen.
pub(super) const UNKNOWN: &str = "unknown";

/// What a host is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    /// Its kind of processor.
    pub machine: String,
    /// How it has numbers in memory: how many bits a word has, and which byte comes first.
    pub words: (String, String),
    /// Its C library, with the version.
    pub libc: String,
    /// The version of the ICU library that its PostgreSQL uses; empty without one, [`UNKNOWN`] where that
    /// cannot be seen.
    pub icu: String,
    /// What its PostgreSQL was built with.
    pub sizes: BTreeMap<String, String>,
    /// How far its clock is before ours.
    pub clock: Ahead,
}

/// How far a clock is before ours, in milliseconds: at least, and at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub least: i64,
    pub most: i64,
}

impl Ahead {
    /// From what the other one said, in answer to a question asked and answered at these times of ours.
    fn of(asked: i64, said: &str, answered: i64) -> Option<Ahead> {
        let (seconds, fraction) = said.trim().split_once('.').unwrap_or((said.trim(), ""));
        let seconds = seconds.parse::<i64>().ok()? * 1000;
        // Not every `date` knows fractions.
        let millis = fraction.get(..3).and_then(|millis| millis.parse::<i64>().ok());
        let (from, to) =
            millis.map_or((seconds, seconds + 999), |millis| (seconds + millis, seconds + millis));
        Some(Ahead { least: from - answered, most: to - asked })
    }
}

/// Looks at a host.
pub(super) async fn see(host: &Host, user: Option<&str>, bin_dir: &str) -> Result<HostFacts> {
    let output = host.shell(user, SEE, &[&[bin_dir], &SIZES[..]].concat())?.limit(LIMIT).run();
    let output = output.await?.stdout;
    // Over a connection that is there by now.
    let now = || Timestamp::now().as_millisecond();
    let asked = now();
    let said = host.shell(None, "date +%s.%N", &[])?.limit(LIMIT).run().await?.stdout;
    let answered = now();
    let said = String::from_utf8_lossy(&said);
    let clock = Ahead::of(asked, &said, answered);
    let clock = clock.with_context(|| format!("{host} says no time: {said:?}"))?;
    Ok(parse(&String::from_utf8_lossy(&output), clock))
}

fn parse(text: &str, clock: Ahead) -> HostFacts {
    let fields: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once('=')).collect();
    let field = |name: &str| fields.get(name).map_or("", |value| value.trim()).to_owned();
    // The same, in the words of different systems.
    let machine = match field("machine").as_str() {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        other => other.to_owned(),
    };
    let order = match field("order").as_str() {
        "1" => "little-endian".to_owned(),
        "256" => "big-endian".to_owned(),
        other => other.to_owned(),
    };
    HostFacts {
        machine,
        words: (field("bits"), order),
        libc: field("libc"),
        icu: field("icu"),
        sizes: SIZES.iter().map(|&name| (name.to_owned(), field(name))).collect(),
        clock,
    }
}

/// Why the donor's files cannot be used on another host.
pub(super) fn doubts(donor: &HostFacts, peer: &HostFacts) -> Vec<Doubt> {
    let what = |host: &HostFacts| {
        let (bits, order) = &host.words;
        format!("{} ({bits} bits, {order})", host.machine)
    };
    let mut doubts = vec![(
        (&donor.machine, &donor.words) != (&peer.machine, &peer.words),
        format!(
            "its host is {}, the donor's is {}: the files of a database cannot be used there",
            what(peer),
            what(donor)
        ),
        "name a peer on a host like the donor's; to another kind of processor only a dump and restore, or \
         logical replication, leads",
    )];
    for (name, size) in &donor.sizes {
        let own = peer.sizes.get(name).map_or("", String::as_str);
        doubts.push((
            !size.is_empty() && !own.is_empty() && size != own,
            format!("its PostgreSQL was built with {name} {own}, the donor's with {size}"),
            "install a PostgreSQL there that was built as the donor's was",
        ));
    }
    doubts
}

/// Whether its clock is another one than ours.
pub(super) fn clock_doubt(clock: Ahead) -> Doubt {
    let Ahead { least, most } = clock;
    let apart = if least > 0 { least } else { most.min(0) };
    let how = if apart > 0 { "ahead of" } else { "behind" };
    (
        apart.abs() > SKEW,
        format!(
            "its clock is at least {}.{} s {how} this host's",
            apart.abs() / 1000,
            apart.abs() % 1000 / 100
        ),
        "set the clocks by NTP, of all hosts (chronyc tracking, timedatectl): whichever is wrong",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "machine=x86_64\nbits=64\norder=1\nlibc=glibc 2.36\nicu=72\nblock_size=8192\n\
                        wal_block_size=8192\nsegment_size=131072\nmax_identifier_length=63\n";

    fn host(change: (&str, &str)) -> HostFacts {
        parse(&TEXT.replace(change.0, change.1), Ahead::default())
    }

    #[test]
    fn files_go_to_hosts_of_the_same_kind_only() {
        let check = |from: &str, to: &str, expected: &[&str]| {
            let found = doubts(&host(("", "")), &host((from, to)));
            let found: Vec<String> =
                found.into_iter().filter(|(wrong, ..)| *wrong).map(|(_, what, _)| what).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{expected:?} is not in {found:?}");
            }
        };
        check("", "", &[]);
        check("x86_64", "amd64", &[]);
        check("glibc 2.36", "glibc 2.31", &[]);
        check("x86_64", "aarch64", &["its host is aarch64 (64 bits, little-endian), the donor's"]);
        check("bits=64", "bits=32", &["x86_64 (32 bits, little-endian)"]);
        check("order=1", "order=256", &["(64 bits, big-endian)"]);
        check("block_size=8192\nwal", "block_size=32768\nwal", &["block_size 32768"]);
        check("segment_size=131072", "segment_size=262144", &["segment_size 262144"]);
        // One that cannot say it is told of when its server does not start on the copy.
        check("segment_size=131072", "segment_size=", &[]);
    }

    #[test]
    fn clocks_are_judged_by_what_is_certain() {
        let ahead = |asked, said, answered| Ahead::of(asked, said, answered).expect("a time");
        assert_eq!(ahead(1_000, "1.250000000", 1_400), Ahead { least: -150, most: 250 });
        assert_eq!(ahead(1_000, "1.%N", 1_400), Ahead { least: -400, most: 999 });
        assert_eq!(ahead(1_000, "1\n", 1_400), Ahead { least: -400, most: 999 });
        assert_eq!(Ahead::of(1, "no time", 2), None);
        let check = |asked, said, answered, expected: Option<&str>| {
            let (wrong, problem, _) = clock_doubt(ahead(asked, said, answered));
            assert_eq!(wrong, expected.is_some(), "{problem}");
            assert!(problem.contains(expected.unwrap_or_default()), "{problem}");
        };
        check(10_000, "10.100", 10_200, None);
        check(10_000, "12.100", 10_100, None);
        check(10_000, "12.300", 10_200, Some("at least 2.1 s ahead of"));
        check(10_000, "7.500", 10_200, Some("at least 2.5 s behind"));
        // It took long to ask: it may be 9 s behind, or level.
        check(10_000, "10.000", 19_000, None);
        check(10_000, "30.000", 19_000, Some("at least 11.0 s ahead of"));
    }
}
