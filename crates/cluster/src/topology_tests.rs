use super::*;
use crate::{Generation, Lsn};
use proptest::prelude::*;

fn peer(number: u8) -> PeerIdent {
    PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}"))
}

fn peers(numbers: &[u8]) -> Vec<PeerIdent> {
    numbers.iter().map(|number| peer(*number)).collect()
}

/// A state with these in the chain and one deposed.
fn state(generation: u64, chain: &[u8]) -> ClusterState {
    ClusterState {
        generation: Generation(generation),
        primary: peer(chain[0]),
        sync: chain.get(1).map(|number| peer(*number)),
        asyncs: peers(chain.get(2..).unwrap_or_default()),
        deposed: peers(&[99]),
        init_wal: Lsn::ZERO,
        init_timeline: None,
        primary_timeline: None,
        freeze: None,
        one_node_write_mode: (chain.len() == 1).then_some(true),
        promote: None,
        extra: serde_json::Map::new(),
    }
}

fn stored(generation: u64, chain: &[u8]) -> Seen {
    Seen::State(Some(state(generation, chain).to_json()))
}

fn registered(numbers: &[u8]) -> Seen {
    Seen::Registered(peers(numbers))
}

/// What is told of a row of facts: `s` or `e` for the source, then the last bytes of the addresses;
/// `?` and the field for a state that cannot be understood.
fn check(seen: &[Seen], expected: &[&str]) {
    let mut resolver = Resolver::default();
    let told: Vec<String> =
        seen.iter().filter_map(|seen| resolver.see(seen.clone())).map(brief).collect();
    assert_eq!(told, expected, "of {seen:?}");
}

fn brief(told: Result<Topology, StateError>) -> String {
    let topology = match told {
        Ok(topology) => topology,
        Err(error) => return format!("?{}", error.field),
    };
    let source = match topology.source {
        TopologySource::State => "s",
        TopologySource::Election => "e",
    };
    let number = |url: &String| {
        let address = url.strip_prefix("tcp://postgres@10.0.0.").expect("one of ours");
        address.strip_suffix(":5432/postgres").expect("one of ours").to_owned()
    };
    let numbers: Vec<_> = topology.urls.iter().map(number).collect();
    format!("{source} {}", numbers.join(" "))
}

#[test]
fn the_state_goes_before_the_election() {
    check(&[stored(1, &[1, 2, 3])], &["s 1 2 3"]);
    check(&[registered(&[3, 1, 2]), stored(1, &[1, 2, 3]), registered(&[3])], &["s 1 2 3"]);
    check(&[stored(1, &[7])], &["s 7"]);
}

#[test]
fn nothing_is_said_before_enough_was_read() {
    check(&[registered(&[1, 2])], &[]);
    check(&[Seen::State(None)], &[]);
    check(&[Seen::State(None), registered(&[1, 2])], &["e 1 2"]);
    check(&[registered(&[1, 2]), Seen::State(None)], &["e 1 2"]);
    check(&[Seen::State(None), registered(&[])], &["e "]);
}

#[test]
fn follows_the_state_as_it_comes_and_goes() {
    check(
        &[
            Seen::State(None),
            registered(&[1, 2, 3]),
            stored(0, &[1, 3, 2]),
            registered(&[2, 3]),
            stored(1, &[3, 2]),
            Seen::State(None),
            registered(&[2]),
            stored(1, &[3, 2]),
        ],
        &["e 1 2 3", "s 1 3 2", "s 3 2", "e 2 3", "e 2", "s 3 2"],
    );
}

#[test]
fn says_nothing_twice() {
    let mut frozen = state(1, &[1, 2]);
    frozen.freeze = Some(crate::Freeze::Bare(true));
    check(
        &[stored(1, &[1, 2]), Seen::State(Some(frozen.to_json())), stored(2, &[1, 2])],
        &["s 1 2"],
    );
    check(&[Seen::State(None), registered(&[1, 2]), registered(&[1, 2])], &["e 1 2"]);
}

#[test]
fn a_peer_that_is_registered_twice_counts_where_it_stood_first() {
    check(&[Seen::State(None), registered(&[1, 2, 1, 3, 2])], &["e 1 2 3"]);
}

#[test]
fn what_cannot_be_understood_is_told_and_never_guessed() {
    check(
        &[
            registered(&[3, 4]),
            stored(1, &[1, 2]),
            Seen::State(Some("{}".to_owned())),
            registered(&[4]),
            Seen::State(Some("{".to_owned())),
            stored(1, &[1, 2]),
        ],
        &["s 1 2", "?generation", "?JSON", "s 1 2"],
    );
}

fn fact() -> impl Strategy<Value = Seen> {
    let chain = proptest::sample::subsequence((1..6_u8).collect::<Vec<_>>(), 1..=4).prop_shuffle();
    let registrations = proptest::collection::vec(1..6_u8, 0..6);
    prop_oneof![
        1 => Just(Seen::State(None)),
        1 => Just(Seen::State(Some("no JSON".to_owned()))),
        3 => (0..9_u64, chain).prop_map(|(generation, chain)| stored(generation, &chain)),
        3 => registrations.prop_map(|numbers| registered(&numbers)),
    ]
}

proptest! {
    /// Whatever came, in whichever order: what is known at the end depends on the last state and the
    /// last registrations alone, and each telling differs from the one before.
    #[test]
    fn only_the_latest_counts(facts in proptest::collection::vec(fact(), 1..20)) {
        let mut resolver = Resolver::default();
        let told: Vec<_> = facts.iter().filter_map(|seen| resolver.see(seen.clone())).collect();
        prop_assert!(told.windows(2).all(|pair| pair[0] != pair[1]));

        let state = facts.iter().rev().find_map(|seen| match seen {
            Seen::State(text) => Some(text.clone()),
            Seen::Registered(_) => None,
        });
        let registered = facts.iter().rev().find_map(|seen| match seen {
            Seen::Registered(peers) => Some(peers.clone()),
            Seen::State(_) => None,
        });
        let urls = |peers: Vec<PeerIdent>| {
            peers.into_iter().map(|peer| peer.pg_url).collect::<Vec<_>>()
        };
        match (state, registered) {
            (None, _) => prop_assert!(told.is_empty()),
            (Some(Some(text)), _) => match (ClusterState::parse(&text), told.last()) {
                (Ok(state), Some(Ok(last))) => {
                    prop_assert_eq!(last.source, TopologySource::State);
                    prop_assert_eq!(&last.urls, &urls(state.chain().cloned().collect()));
                }
                (Err(error), Some(Err(last))) => prop_assert_eq!(&error, last),
                other => prop_assert!(false, "{other:?}"),
            },
            (Some(None), Some(peers)) => {
                let last = told.last().expect("told").clone().expect("a topology");
                prop_assert_eq!(last.source, TopologySource::Election);
                let mut left = urls(peers);
                // Each once, in the order of the first registrations.
                for url in &last.urls {
                    prop_assert_eq!(left.first(), Some(url));
                    left.retain(|other| other != url);
                }
                prop_assert!(left.is_empty());
            }
            // There was no state at last, and nobody knows who is registered.
            (Some(None), None) => {}
        }
    }
}
