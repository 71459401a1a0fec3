//! What a peer does about a write that is refused: certainly not stored (rule M4).

mod one;

use cluster::{
    Action, Counts, Database, Event, Generation, Lsn, Monotonic, PgCommand, PgConfig, PgOutcome,
    PutOutcome, Reason, Version,
};
use one::{One, all, counts_again, declared_and_not_answered, peer, primary, seen, state};

fn refused() -> Event {
    Event::PutDone(PutOutcome::Refused("no permission".to_owned()))
}

fn puts(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Put { .. })).count()
}

/// After the longest delay, with the session confirmed meanwhile.
fn later(one: &mut One) -> Vec<Action> {
    one.now += 2_000;
    one.tell(Event::Confirmed { sent: Monotonic(one.now) })
}

/// Nobody counts any more, so that a declaration may follow.
fn quiesced(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Postgres(PgCommand::Apply(config)) => config.is_quiesced(),
        _ => false,
    })
}

/// Peer 1, primary, while its async is gone, which it is about to write down.
fn updating_asyncs() -> (One, Vec<Action>) {
    let counts = Counts::Sync(peer(2).id);
    let mut one = One::new(Database::Established, Some(primary(1, counts)));
    let actions = one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(2)]);
    (one, actions)
}

/// It goes on, says what was refused, and tries again later and later; when it may, it does.
#[test]
fn a_write_that_is_refused_is_tried_again_later_and_later() {
    let (mut one, actions) = updating_asyncs();
    assert_eq!(puts(&actions), 1);
    let begin = one.now;
    let mut tried = Vec::new();
    for _ in 0..5 {
        let actions = one.tell(refused());
        assert!(!actions.contains(&Action::Read), "nothing is to be settled: {actions:?}");
        let problem = "no permission".to_owned();
        assert_eq!(one.machine.snapshot().failure.as_ref(), Some(&problem));
        assert_eq!(one.machine.reason(), &Reason::Refused { problem });
        while puts(&one.tell(Event::Wake)) == 0 {
            one.now += 100;
        }
        tried.push(one.now - begin);
    }
    assert_eq!(tried, [500, 1_500, 3_500, 5_500, 7_500]);
    one.tell(Event::PutDone(PutOutcome::Committed(Version(2))));
    assert_eq!(one.machine.reason(), &Reason::Serving { sync: peer(2).id });
    assert_eq!(one.machine.snapshot().failure, None);
}

/// The async comes back before it may be written down that it is gone: nothing is said any more.
#[test]
fn a_write_that_is_not_wanted_any_more_is_forgotten() {
    let (mut one, _) = updating_asyncs();
    one.tell(refused());
    let actions = one.tell(Event::Active(all()));
    assert_eq!((puts(&actions), one.rule()), (0, "A1"));
}

/// It wakes by itself.
#[test]
fn the_next_attempt_is_an_alarm() {
    let (mut one, _) = updating_asyncs();
    let at = Monotonic(one.now + 500);
    assert!(one.tell(refused()).contains(&Action::WakeAt(at)));
}

/// Peer 1, primary, has quiesced to replace its sync, which is gone, and may not declare: it lets that sync
/// count again, and comes to declare once more; when the sync is back, it counts at once.
#[test]
fn a_declarer_that_is_refused_goes_back() {
    let counts = Counts::Sync(peer(2).id);
    let mut one = One::new(Database::Established, Some(primary(1, counts)));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    for _ in 0..3 {
        let applied = || {
            let position = Lsn::new(200);
            Event::PgDone(PgOutcome::Applied { position, timeline: Some(1) })
        };
        assert_eq!(puts(&one.tell(applied())), 1, "quiesced: it declares");
        let actions = one.tell(refused());
        assert!(counts_again(&actions), "{actions:?}");
        assert_eq!(one.rule(), "M4");
        let actions = one.tell(applied());
        assert!(!quiesced(&actions), "not at once: {actions:?}");
        let actions = later(&mut one);
        assert!(quiesced(&actions), "{actions:?}");
    }
    let position = Lsn::new(200);
    one.tell(Event::PgDone(PgOutcome::Applied { position, timeline: Some(1) }));
    one.tell(refused());
    let actions = one.tell(Event::Active(all()));
    assert_eq!((puts(&actions), one.rule()), (0, "A2"), "nothing is to be settled");
}

/// A refusal settles nothing of an earlier declaration whose answer was lost (rule D5): that may still
/// arrive, so the old sync does not count until the same state is stored once more, or a newer one is read.
#[test]
fn a_refusal_does_not_settle_what_was_lost_before() {
    for stored in [true, false] {
        let mut one = declared_and_not_answered();
        one.tell(Event::Active(all()));
        let actions = one.tell(Event::ReadDone(Ok(seen(1, state(1, [1, 2, 3])))));
        assert_eq!(puts(&actions), 1, "the same state once more");
        for _ in 0..3 {
            let actions = one.tell(refused());
            assert!(!counts_again(&actions), "{actions:?}");
            assert_eq!(one.rule(), "M4");
            let actions = later(&mut one);
            assert!(puts(&actions) == 1 && !counts_again(&actions), "{actions:?}");
        }
        if stored {
            let actions = one.tell(Event::PutDone(PutOutcome::Committed(Version(2))));
            assert!(counts_again(&actions), "{actions:?}");
        } else {
            one.tell(refused());
            let actions = one.tell(Event::State(seen(2, state(2, [1, 3, 2]))));
            assert!(!counts_again(&actions), "{actions:?}");
            let generation = one.machine.state().map(|state| state.generation);
            assert_eq!(generation, Some(Generation(2)));
        }
    }
}

/// A sitter that has just started and may not store what makes sure that nothing declared before can
/// arrive brings PostgreSQL to nothing that takes part (rule D6).
#[test]
fn a_start_that_is_refused_does_not_take_part() {
    let mut one = One::new(Database::Established, None);
    let actions = one.join(seen(7, state(2, [1, 2, 3])), all());
    assert_eq!(puts(&actions), 1);
    for _ in 0..3 {
        let actions = one.tell(refused());
        let takes_part = |action: &Action| match action {
            Action::Postgres(PgCommand::Apply(config)) => {
                matches!(config, PgConfig::Primary { .. }) && !config.is_quiesced()
            }
            _ => false,
        };
        assert!(!actions.iter().any(takes_part), "{actions:?}");
        assert_eq!(one.rule(), "M4");
        assert_eq!(puts(&later(&mut one)), 1);
    }
    let actions = one.tell(Event::PutDone(PutOutcome::Committed(Version(8))));
    assert!(actions.iter().any(|action| matches!(action, Action::Postgres(_))), "{actions:?}");
}
