//! What one peer does about a state that is not there, is illegal, or was written by others; and what
//! it says then.

mod one;

use cluster::{
    Action, Applied, ApplyError, ClusterState, Counts, Database, Event, Freeze, Generation, Lsn,
    Monotonic, PgCommand, PgConfig, PgOutcome, PutOutcome, Reason, Role, StateError, StateSeen,
    Version, check_successor,
};
use one::{
    LEASE, One, all, counts_again, declared_and_not_answered, is_command, peer, primary, seen,
    state,
};

/// Holds everything as it is and says which field is wrong (rule S1); goes on when it is mended.
#[test]
fn a_state_that_is_illegal_is_not_acted_on() {
    let counts = Counts::Sync(peer(2).id);
    let mut one = One::new(Database::Established, Some(primary(1, counts.clone())));
    one.join(seen(1, state(1, [1, 2, 3])), all());
    assert_eq!(one.machine.reason(), &Reason::Serving { sync: peer(2).id });
    let error: StateError = state(1, [1, 1, 3]).validate().expect_err("a peer in two places");
    let actions =
        one.tell(Event::State(Some(StateSeen { version: Version(2), state: Err(error) })));
    assert!(!actions.iter().any(is_command), "{actions:?}");
    assert_eq!((one.rule(), one.machine.state()), ("S1", None));
    assert!(one.machine.reason().to_string().contains("sync"), "{}", one.machine.reason());
    one.tell(Event::State(seen(1, state(1, [1, 2, 3]))));
    assert_eq!(one.rule(), "S1", "news of before come late");
    one.tell(Event::State(seen(3, state(1, [1, 2, 3]))));
    assert_eq!(one.rule(), "A1");
}

/// Nobody sets up over a database that has served (rule G2): not the peer that has it, nor another.
#[test]
fn a_database_without_a_state_waits_for_an_operator() {
    let mut one = One::new(Database::Established, None);
    let actions = one.join(None, all());
    assert!(!actions.iter().any(is_command), "{actions:?}");
    assert_eq!(one.machine.reason(), &Reason::DatabaseWithoutState);
    let mut served = all();
    served[2] = peer(3).with_database(Database::Established);
    let mut one = One::new(Database::None, None);
    let actions = one.join(None, served);
    assert!(!actions.iter().any(is_command), "{actions:?}");
    assert_eq!(one.machine.reason(), &Reason::DatabaseElsewhere { peer: peer(3).id });
}

/// Who sets up (rule G1): the first of two that are there, never one alone, nor one that does not yet
/// see itself.
#[test]
fn the_first_of_two_sets_up() {
    let reason = |active| {
        let mut one = One::new(Database::None, None);
        one.join(None, active);
        one.machine.reason().clone()
    };
    assert_eq!(reason(vec![]), Reason::SetupUnregistered);
    assert_eq!(reason(vec![peer(1)]), Reason::SetupAlone);
    assert_eq!(reason(vec![peer(2), peer(1)]), Reason::SetupByAnother { first: peer(2).id });
    assert_eq!(reason(vec![peer(1), peer(2)]), Reason::PreparingDatabase);
}

/// What was known in another session counts for nothing, and nothing is decided before it is known that
/// what is shown is no older than this one (rule M1).
#[test]
fn nothing_is_decided_before_the_session_is_confirmed() {
    let mut one = One::new(Database::Established, None);
    let shown = [Event::Joined, Event::State(seen(5, state(2, [1, 2, 3]))), Event::Active(all())];
    for event in shown {
        let actions = one.tell(event);
        assert!(!actions.iter().any(is_command), "{actions:?}");
        assert_eq!(one.machine.role(), Role::Unknown);
    }
    one.tell(Event::Confirmed { sent: Monotonic(one.now) });
    assert_eq!(one.machine.role(), Role::Primary);
    // News that comes late does not take it back.
    one.tell(Event::State(seen(4, state(1, [2, 1, 3]))));
    assert_eq!((one.machine.role(), one.machine.version()), (Role::Primary, Some(Version(5))));
}

/// A sitter that starts stores the present state once more before PostgreSQL takes part (rule D6), and
/// says so; then it is brought up.
#[test]
fn a_sitter_that_starts_settles_first() {
    let mut one = One::new(Database::Established, None);
    let actions = one.join(seen(7, state(2, [1, 2, 3])), all());
    let puts: Vec<_> =
        actions.iter().filter(|action| matches!(action, Action::Put { .. })).collect();
    let expected = Some(Version(7));
    let state = Box::new(state(2, [1, 2, 3]));
    assert_eq!(puts, [&Action::Put { expected, state }]);
    assert!(!actions.iter().any(|action| matches!(action, Action::Postgres(_))), "{actions:?}");
    assert_eq!(one.rule(), "D6");
    let actions = one.tell(Event::PutDone(PutOutcome::Committed(Version(8))));
    assert!(actions.iter().any(|action| matches!(action, Action::Postgres(PgCommand::Apply(_)))));
}

/// What is shown before the session is confirmed may be older than what the sitter before expected when it
/// declared: that something newer comes then settles nothing (rules D6, M1).
#[test]
fn news_of_before_the_session_settle_nothing() {
    let mut one = One::new(Database::Established, None);
    let sent = Monotonic(one.now);
    let stale = Event::State(seen(6, state(2, [1, 2, 3])));
    for event in [Event::Joined, stale, Event::Active(all())] {
        one.tell(event);
    }
    one.tell(Event::State(seen(7, state(2, [1, 2, 3]))));
    let brings = |action: &Action| matches!(action, Action::Postgres(_));
    let actions = one.tell(Event::Confirmed { sent });
    assert!(!actions.iter().any(brings), "{actions:?}");
    assert_eq!(one.rule(), "D6");
    let actions = one.tell(Event::PutDone(PutOutcome::Committed(Version(8))));
    assert!(actions.iter().any(brings), "{actions:?}");
}

/// A declaration whose answer is lost keeps its writer quiesced, also when there is no reason for it any
/// more, until it is settled (rule D5); and it says so.
#[test]
fn a_lost_answer_is_settled_before_anything_else() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    assert_eq!(one.rule(), "D2", "peer 2 is gone");
    let position = Lsn::new(200);
    let quiesced = PgOutcome::Applied { position, timeline: Some(1) };
    let actions = one.tell(Event::PgDone(quiesced));
    assert!(actions.iter().any(|action| matches!(action, Action::Put { .. })), "{actions:?}");
    one.tell(Event::PutDone(PutOutcome::Unknown("no answer".to_owned())));
    let actions = one.tell(Event::Active(all()));
    assert!(!actions.iter().any(is_command), "peer 2 is back, and may not count: {actions:?}");
    one.now += 1_000;
    let actions = one.tell(Event::ReadDone(Ok(seen(1, state(1, [1, 2, 3])))));
    assert_eq!(one.machine.reason(), &Reason::Settling { generation: Generation(2) });
    let once_more =
        Action::Put { expected: Some(Version(1)), state: Box::new(state(1, [1, 2, 3])) };
    assert!(actions.contains(&once_more), "{actions:?}");
    let actions = one.tell(Event::PutDone(PutOutcome::Committed(Version(2))));
    assert!(counts_again(&actions), "{actions:?}");
}

/// Nor does the answer that it was stored, when there is no session any more in which a decision could be taken
/// from that: the old pair must not go on (rule D5).
#[test]
fn an_answer_without_a_session_settles_nothing() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    let quiesced = PgOutcome::Applied { position: Lsn::new(200), timeline: Some(1) };
    let actions = one.tell(Event::PgDone(quiesced));
    assert!(actions.iter().any(|action| matches!(action, Action::Put { .. })), "{actions:?}");
    one.tell(Event::Expired);
    for event in [Event::PutDone(PutOutcome::Committed(Version(2))), Event::Wake] {
        let actions = one.tell(event);
        assert!(!actions.iter().any(is_command), "{actions:?}");
    }
    let next = ClusterState { sync: Some(peer(3)), asyncs: vec![], ..state(2, [1, 2, 3]) };
    let actions = one.join(seen(2, next), vec![peer(1), peer(3)]);
    let counts = |action: &Action| match action {
        Action::Postgres(PgCommand::Apply(PgConfig::Primary { counts, .. })) => {
            Some(counts.clone())
        }
        _ => None,
    };
    let counts: Vec<_> = actions.iter().filter_map(counts).collect();
    assert_eq!(counts, [Counts::Sync(peer(3).id)], "{actions:?}");
}

/// A conflict settles nothing (rule D5): the present state is stored once more, and is answered with a
/// conflict, because the lost declaration has just arrived. Only what is read then says so.
#[test]
fn a_conflict_settles_nothing() {
    let mut one = declared_and_not_answered();
    one.tell(Event::Active(all()));
    let actions = one.tell(Event::ReadDone(Ok(seen(1, state(1, [1, 2, 3])))));
    assert!(actions.iter().any(|action| matches!(action, Action::Put { .. })), "{actions:?}");
    let actions = one.tell(Event::PutDone(PutOutcome::Conflict));
    assert!(actions.contains(&Action::Read) && !counts_again(&actions), "{actions:?}");
    let actions = one.tell(Event::ReadDone(Ok(seen(2, state(2, [1, 3, 2])))));
    assert!(!counts_again(&actions), "{actions:?}");
    assert_eq!(one.machine.state().map(|state| state.generation), Some(Generation(2)));
}

/// A target that is held settles nothing (rule D5): without a session it is read that the declaration was
/// stored, and the target, to let the old sync acknowledge again, was decided without knowing that.
#[test]
fn a_target_that_is_held_settles_nothing() {
    let mut one = declared_and_not_answered();
    one.tell(Event::Active(all()));
    one.tell(Event::Expired);
    let actions = one.tell(Event::ReadDone(Ok(seen(2, state(2, [1, 3, 2])))));
    assert!(!counts_again(&actions), "{actions:?}");
    one.now += 1_000;
    let actions = one.tell(Event::Wake);
    assert!(!counts_again(&actions), "{actions:?}");
    assert_eq!(one.machine.state().map(|state| state.generation), Some(Generation(2)));
}

/// Nor does a state that nothing is decided from (rules D5, S1): it may have been written over the declaration.
#[test]
fn an_illegal_state_settles_nothing() {
    let mut one = declared_and_not_answered();
    one.tell(Event::Active(all()));
    let error: StateError = state(2, [1, 1, 3]).validate().expect_err("a peer in two places");
    let illegal = Some(StateSeen { version: Version(3), state: Err(error) });
    let events = [Event::State(illegal), Event::ReadDone(Err("no answer".to_owned())), Event::Wake];
    for event in events {
        one.now += 1_000;
        one.tell(Event::Confirmed { sent: Monotonic(one.now) });
        let actions = one.tell(event);
        assert!(!counts_again(&actions), "{actions:?}");
    }
    assert_eq!(one.rule(), "S1");
}

/// A sync whose database was kept aside for a copy that failed has nothing to take over with, and says so
/// (rule D3); what the old one held counts for nothing.
#[test]
fn a_sync_without_a_database_does_not_take_over() {
    let mut one = One::new(Database::Established, None);
    one.join(seen(1, state(1, [2, 1, 3])), all());
    one.tell(Event::PutDone(PutOutcome::Committed(Version(2))));
    let position = Lsn::new(200);
    one.tell(Event::PgDone(PgOutcome::Applied { position, timeline: Some(1) }));
    one.tell(Event::Diverged { from: peer(2).id });
    let actions = one.tell(Event::PgDone(PgOutcome::Stopped));
    let copies = |action: &Action| matches!(action, Action::Postgres(PgCommand::Rebuild(..)));
    assert!(actions.iter().any(copies), "{actions:?}");
    let problem = "no source gives a copy".to_owned();
    let database = Some(Database::None);
    one.tell(Event::PgFailed(ApplyError { problem, running: false, database }));
    one.tell(Event::Active(vec![peer(1), peer(3)]));
    assert_eq!(one.machine.reason(), &Reason::TakeoverUnproven { primary: peer(2).id });
}

/// A proof ends when it is left (rule D2): on the way back to its sync, which may acknowledge at any
/// moment, a primary that loses it again declares nothing from the position that it read before.
#[test]
fn a_position_counts_only_as_long_as_it_is_quiesced() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    assert_eq!(one.rule(), "D2", "quiescing");
    let actions = one.tell(Event::Active(all()));
    assert!(!counts_again(&actions), "one command at a time: {actions:?}");
    let position = Lsn::new(200);
    let actions = one.tell(Event::PgDone(PgOutcome::Applied { position, timeline: Some(1) }));
    assert!(counts_again(&actions), "{actions:?}");
    let actions = one.tell(Event::Active(vec![peer(1), peer(3)]));
    assert!(!actions.iter().any(|action| matches!(action, Action::Put { .. })), "{actions:?}");
    assert_eq!(one.rule(), "D2", "it has to quiesce anew");
}

/// Nor when somebody has overridden who counts (rule D2): it quiesces anew, and declares from where it is then.
#[test]
fn a_position_counts_no_more_once_it_was_overridden() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    let quiesced =
        |position| PgOutcome::Applied { position: Lsn::new(position), timeline: Some(1) };
    let declared = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Put { state, .. } => Some(state.init_wal),
            _ => None,
        })
    };
    assert_eq!(declared(&one.tell(Event::PgDone(quiesced(200)))), Some(Lsn::new(200)));
    one.tell(Event::PutDone(PutOutcome::Conflict));
    one.tell(Event::ReadDone(Ok(seen(2, state(1, [1, 2, 3])))));
    one.now += 1_000;
    let actions = one.tell(Event::Overridden);
    assert_eq!(declared(&actions), None, "{actions:?}");
    assert_eq!(one.rule(), "D2");
    assert_eq!(declared(&one.tell(Event::PgDone(quiesced(300)))), Some(Lsn::new(300)));
}

/// A primary whose database has lost what was there when its generation began declares none from it
/// (rule D3), and says what is missing.
#[test]
fn a_primary_that_lost_writes_declares_nothing() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), vec![peer(1), peer(3)]);
    let (wal, needed) = (Lsn::new(99), Lsn::new(100));
    let actions = one.tell(Event::PgDone(PgOutcome::Applied { position: wal, timeline: Some(1) }));
    assert!(!actions.iter().any(is_command), "{actions:?}");
    assert_eq!(one.machine.reason(), &Reason::PrimaryBehind { wal, needed });
}

/// Without a proof for a lease PostgreSQL is stopped at once, and it says why (rules F1 and F2); so it
/// is when it is not known what runs.
#[test]
fn who_has_no_proof_is_fenced_and_says_so() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.now += LEASE - 1;
    assert!(!one.tell(Event::Wake).contains(&Action::Fence), "one lease from its start");
    one.now += 1;
    assert!(one.tell(Event::Wake).contains(&Action::Fence));
    one.tell(Event::Fenced(Err("a process is left".to_owned())));
    one.now += 500;
    assert!(one.tell(Event::Wake).contains(&Action::Fence), "it is tried again");
    one.tell(Event::Fenced(Ok(())));
    assert!(one.machine.snapshot().fenced);
}

/// That lease begins when it could have been looked at first, not again when a look has succeeded (rule F2); a standby
/// needs none.
#[test]
fn what_could_not_be_looked_at_gets_no_second_lease() {
    let look = |applied: Option<PgConfig>| {
        let mut one = One::starting();
        one.tell(Event::InspectFailed("the disk does not answer".to_owned()));
        one.now += LEASE - 1;
        let applied = applied.map(|config| Applied { config, position: Lsn::new(100) });
        let database = Database::Established;
        one.tell(Event::Inspected { database, running: true, applied });
        one.now += 1;
        one.tell(Event::Wake).contains(&Action::Fence)
    };
    assert!(look(Some(primary(1, Counts::Sync(peer(2).id)))));
    assert!(look(None), "it may be a primary");
    let place = cluster::StandbyRole::Async;
    assert!(!look(Some(PgConfig::Standby { place, upstream: Some(peer(3)), downstream: vec![] })));
}

/// A server that is found not to run is brought up again (rule H3), unless a command is in flight, which says what is
/// true after it.
#[test]
fn what_is_not_there_is_brought_up_again() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    one.join(seen(1, state(1, [1, 2, 3])), all());
    assert_eq!(one.machine.reason(), &Reason::Serving { sync: peer(2).id });
    let missing = || Event::PgMissing("the server is not running".to_owned());
    let brings = |action: &Action| matches!(action, Action::Postgres(PgCommand::Apply(_)));
    one.now += 1_000;
    let mut actions = one.tell(missing());
    one.now += 1_000;
    actions.extend(one.tell(Event::Wake));
    assert_eq!(actions.iter().filter(|action| brings(action)).count(), 1, "{actions:?}");
    let actions = one.tell(missing());
    assert!(!actions.iter().any(is_command), "{actions:?}");
    one.tell(Event::PgDone(PgOutcome::Applied { position: Lsn::new(100), timeline: Some(1) }));
    assert!(one.machine.snapshot().running);
}

/// A peer that reads that another is the primary stops at once what serves (rule F3).
#[test]
fn who_is_superseded_stops_at_once() {
    let mut one = One::new(Database::Established, Some(primary(1, Counts::Sync(peer(2).id))));
    let next = ClusterState { deposed: vec![peer(1)], asyncs: vec![], ..state(2, [2, 3, 1]) };
    let actions = one.join(seen(2, next), all());
    assert!(actions.contains(&Action::Fence), "{actions:?}");
    assert_eq!(one.machine.role(), Role::Deposed);
}

/// A standby that cannot follow says so while it is copied anew (rule X4).
#[test]
fn who_cannot_follow_is_copied_and_says_so() {
    let upstream = peer(2);
    let config = PgConfig::Standby {
        place: cluster::StandbyRole::Async,
        upstream: Some(peer(3)),
        downstream: vec![],
    };
    let mut one = One::new(Database::Established, Some(config));
    one.join(seen(2, state(1, [3, 2, 1])), all());
    one.tell(Event::PgDone(PgOutcome::Applied { position: Lsn::new(5), timeline: Some(1) }));
    assert_eq!(one.machine.reason(), &Reason::Following { upstream: upstream.id.clone() });
    let actions = one.tell(Event::Diverged { from: upstream.id.clone() });
    assert!(actions.contains(&Action::Postgres(PgCommand::Stop)), "{actions:?}");
    let actions = one.tell(Event::PgDone(PgOutcome::Stopped));
    let copies = |action: &Action| matches!(action, Action::Postgres(PgCommand::Rebuild(..)));
    assert!(actions.iter().any(copies), "{actions:?}");
    assert_eq!(one.machine.reason(), &Reason::CannotFollow { upstream: upstream.id });
}

/// What could not be followed says nothing of the database once it has come to follow another (rule X4).
#[test]
fn who_follows_another_may_follow_again() {
    let config = |upstream: usize| PgConfig::Standby {
        place: cluster::StandbyRole::Async,
        upstream: Some(peer(upstream)),
        downstream: vec![],
    };
    let mut one = One::new(Database::Established, Some(config(3)));
    one.join(seen(2, state(1, [3, 2, 1])), all());
    // It is on its way to another upstream when it is told of the one that it leaves.
    one.tell(Event::Diverged { from: peer(3).id });
    one.tell(Event::PgDone(PgOutcome::Applied { position: Lsn::new(5), timeline: Some(1) }));
    let actions = one.tell(Event::State(seen(3, state(2, [3, 1, 2]))));
    let follows = Action::Postgres(PgCommand::Apply(PgConfig::Standby {
        place: cluster::StandbyRole::Sync,
        upstream: Some(peer(3)),
        downstream: vec![peer(2).id],
    }));
    assert!(actions.contains(&follows), "{actions:?}");
}

/// The law of what may be stored (rule S2), where no run of whole shards comes to.
#[test]
fn what_breaks_the_law_is_refused_with_its_rule() {
    let before = state(3, [1, 2, 3]);
    let check = |before: Option<&ClusterState>, next: &ClusterState, writer: usize, rule: &str| {
        let error = check_successor(before, next, &peer(writer).id).expect_err(rule);
        assert_eq!(error.rule, rule, "{error}");
        assert!(error.to_string().contains(rule), "{error}");
    };
    check(None, &state(1, [1, 2, 3]), 2, "G1");
    check(None, &state(2, [1, 2, 3]), 1, "G1");
    check(Some(&before), &state(5, [1, 3, 2]), 1, "S2");
    let back = ClusterState { init_wal: Lsn::new(99), ..state(4, [1, 3, 2]) };
    check(Some(&before), &back, 1, "D3");
    let moved = ClusterState { init_wal: Lsn::new(101), ..before.clone() };
    check(Some(&before), &moved, 1, "D3");
    check(Some(&before), &state(3, [1, 3, 2]), 1, "D1");
    let with_deposed = ClusterState { deposed: vec![peer(4)], ..before.clone() };
    check(Some(&with_deposed), &before, 1, "X1");
    let without_async = ClusterState { asyncs: vec![], ..before.clone() };
    check(Some(&before), &without_async, 3, "C2");
    check(Some(&before), &state(4, [2, 3, 4]), 1, "D1");
    let frozen = ClusterState { freeze: Some(Freeze::Bare(true)), ..before };
    check(Some(&frozen), &state(4, [1, 3, 2]), 1, "D4");
}
