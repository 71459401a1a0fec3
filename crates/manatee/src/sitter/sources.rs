//! Where events come from by themselves: the coordination session and the end of PostgreSQL.

use adapters::{
    coord::{CoordEvent, Coordination, Membership, StoredState},
    postgres::Postgres,
};
use cluster::{ClusterState, Event, Millis, PeerIdent, Snapshot, StateError, StateSeen};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use transplant::ROLLED_BACK;

/// An error with all its causes, in one line.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// A stored state as the machine takes it: parsed once, here. One that a transplant was rolled back from is
/// not to be acted on: its database serves elsewhere (rule K8).
pub(super) fn seen(stored: &StoredState) -> StateSeen {
    let state = ClusterState::parse(&stored.json).and_then(|state| {
        let Some(when) = state.extra.get(ROLLED_BACK) else { return Ok(state) };
        let problem = format!(
            "says that the transplant which made this shard was rolled back ({when}): its database went \
             back to where it came from, and nothing is served here"
        );
        Err(StateError { field: ROLLED_BACK.to_owned(), problem })
    });
    StateSeen { version: stored.version, state }
}

/// Holds a session until it expires or `leave` comes, and tells what it tells.
pub(super) async fn hold_session(
    coordination: Arc<dyn Coordination>,
    me: PeerIdent,
    timeout: Millis,
    events: mpsc::Sender<Event>,
    mut leave: oneshot::Receiver<()>,
) {
    let mut session = match coordination.join(&me, timeout).await {
        Ok(session) => session,
        Err(error) => return send(&events, Event::JoinFailed(whole(&error))).await,
    };
    send(&events, Event::Joined).await;
    loop {
        let event = tokio::select! {
            event = session.next() => event,
            left = &mut leave => match left {
                Ok(()) => return end_session(session, &events).await,
                // The executor is gone: so is everything that this session was for.
                Err(_) => return,
            },
        };
        match event {
            Some(CoordEvent::Expired) | None => return send(&events, Event::Expired).await,
            Some(event) => send(&events, machine_event(event)).await,
        }
    }
}

async fn end_session(session: Box<dyn Membership>, events: &mpsc::Sender<Event>) {
    if let Err(error) = session.leave().await {
        tracing::warn!("the session could not be ended and will expire instead: {}", whole(&error));
    }
    send(events, Event::Left).await;
}

fn machine_event(event: CoordEvent) -> Event {
    match event {
        CoordEvent::State(stored) => Event::State(stored.as_ref().map(seen)),
        CoordEvent::Active(list) => {
            Event::Active(list.into_iter().map(|registration| registration.peer).collect())
        }
        CoordEvent::Confirmed { sent } => Event::Confirmed { sent },
        CoordEvent::Expired => Event::Expired,
        CoordEvent::Unreachable(problem) => Event::Unreachable(problem),
    }
}

/// Tells when PostgreSQL ends by itself, until another `Postgres` takes the place of this one.
pub(super) async fn watch_exits(
    postgres: Arc<Postgres>,
    mut current: watch::Receiver<Option<Arc<Postgres>>>,
    events: mpsc::Sender<Event>,
) {
    let mut exits = postgres.exits();
    loop {
        let replaced = |now: &Option<Arc<Postgres>>| {
            now.as_ref().is_none_or(|now| !Arc::ptr_eq(now, &postgres))
        };
        tokio::select! {
            biased;
            _ = current.wait_for(replaced) => return,
            changed = exits.changed() => if changed.is_err() { return },
        }
        let exit = exits.borrow_and_update().clone();
        if let Some(exit) = exit {
            let status = exit.status.unwrap_or_else(|| "status unknown".to_owned());
            let problem =
                format!("PostgreSQL ended by itself ({status}); its log ends: {}", exit.log);
            send(&events, Event::PgExited(problem)).await;
        }
    }
}

/// A server that is not there at one look after the other, though it is thought to run: it ended just before that
/// was thought, and nobody tells again.
#[derive(Default)]
pub(super) struct Missing {
    before: Option<Snapshot>,
}

impl Missing {
    /// Whether it has to be told, after a look that began when this was known.
    pub(super) fn judge(&mut self, now: &Snapshot, runs: bool) -> bool {
        let before = self.before.take();
        if runs {
            return false;
        }
        self.before = Some(now.clone());
        // Nothing was done in between that could have started it.
        before.is_some_and(|before| before.applied == now.applied && before.pending == now.pending)
    }
}

/// Hands an event to the driver. Without a driver the sitter is stopping, and nobody needs it.
pub(super) async fn send(events: &mpsc::Sender<Event>, event: Event) {
    if events.send(event).await.is_err() {
        tracing::debug!("an event came after the driver ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{DeposedPolicy, Machine, MachineConfig};

    /// Rule H3.
    #[test]
    fn what_is_missing_twice_is_told() {
        let (machine, _) = Machine::new(MachineConfig {
            me: PeerIdent::new("10.0.0.1", 5432, 12345, "zone1"),
            one_node_write_mode: false,
            deposed: DeposedPolicy::Auto,
            lease: Millis(3_000),
            retry_min: Millis(500),
            retry_max: Millis(2_000),
            give_up: Millis(10_000),
        });
        let idle = Snapshot { running: true, ..machine.snapshot() };
        let busy = Snapshot { pending: vec!["start it".to_owned()], ..idle.clone() };
        let mut missing = Missing::default();
        assert!(!missing.judge(&idle, false), "it may just have ended");
        assert!(!missing.judge(&idle, true));
        assert!(!missing.judge(&idle, false), "it was there in between");
        assert!(!missing.judge(&busy, false), "something was begun in between");
        assert!(!missing.judge(&idle, false), "and has ended");
        assert!(missing.judge(&idle, false));
    }
}
