//! Between a backend and its reader: what was not read yet, at most one event of each kind.
//!
//! A slow reader costs no memory and never holds the backend up; it sees the latest `State` and
//! `Active` instead of every one of them. The order that [`CoordEvent`] promises survives this:
//! a newer `State` or `Active` takes the place of the unread one, so it stays ahead of a
//! `Confirmed` that vouches for it; everything else goes to the end.

use super::CoordEvent;
use std::collections::VecDeque;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::mpsc;

/// An empty mailbox, as its two ends.
pub(super) fn mailbox() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

/// The backend's end. Dropping it lets the reader finish what is there, then end.
pub(super) struct Sender(Arc<Shared>);

/// The reader's end. Dropping it tells the backend to stop.
pub(super) struct Receiver(Arc<Shared>);

#[derive(Default)]
struct Shared {
    unread: Mutex<Unread>,
    sent: Notify,
    reader_gone: Notify,
}

#[derive(Default)]
struct Unread {
    events: VecDeque<CoordEvent>,
    sender_gone: bool,
    reader_gone: bool,
}

impl Unread {
    fn push(&mut self, event: CoordEvent) {
        let same = |unread: &CoordEvent| discriminant(unread) == discriminant(&event);
        match self.events.iter().position(same) {
            Some(place) if matches!(event, CoordEvent::State(_) | CoordEvent::Active(_)) => {
                self.events[place] = event;
            }
            Some(place) => {
                self.events.remove(place);
                self.events.push_back(event);
            }
            None => self.events.push_back(event),
        }
    }
}

impl Shared {
    /// No code panics while it holds the lock, and each change of the queue is whole, so a
    /// poisoned lock still guards a sound queue.
    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Leaves an event for the reader.
    pub(super) fn push(&self, event: CoordEvent) {
        self.0.unread().push(event);
        self.0.sent.notify_one();
    }

    /// Returns once the reader is gone. Cancel-safe.
    pub(super) async fn closed(&self) {
        while !self.0.unread().reader_gone {
            // There is one waiter, and `notify_one` is remembered if it does not wait yet.
            self.0.reader_gone.notified().await;
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.unread().sender_gone = true;
        self.0.sent.notify_one();
    }
}

impl Receiver {
    /// The next event; `None` when the sender is gone and everything was read. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<CoordEvent> {
        loop {
            {
                let mut unread = self.0.unread();
                if let Some(event) = unread.events.pop_front() {
                    return Some(event);
                }
                if unread.sender_gone {
                    return None;
                }
            }
            self.0.sent.notified().await;
        }
    }

    /// Moves the events into a channel of one, each taken only when there is room for it, so that
    /// at most one event that the reader gets is not the latest.
    pub(super) fn into_channel(mut self) -> mpsc::Receiver<CoordEvent> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(room) = sender.reserve().await {
                tokio::select! {
                    event = self.next() => match event {
                        Some(event) => room.send(event),
                        None => return,
                    },
                    () = sender.closed() => return,
                }
            }
        });
        receiver
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.unread().reader_gone = true;
        self.0.reader_gone.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::{StoredState, Version};
    use cluster::Monotonic;
    use proptest::prelude::*;

    fn state(version: i64) -> CoordEvent {
        let json = String::new();
        CoordEvent::State(Some(StoredState { version: Version(version), json }))
    }

    fn confirmed(sent: u64) -> CoordEvent {
        let sent = Monotonic(sent);
        CoordEvent::Confirmed { sent }
    }

    fn check(pushed: &[CoordEvent], expected: &[CoordEvent]) {
        let mut unread = Unread::default();
        pushed.iter().cloned().for_each(|event| unread.push(event));
        assert_eq!(Vec::from(unread.events), expected, "after {pushed:?}");
    }

    #[test]
    fn only_the_latest_of_each_kind_waits() {
        let active = CoordEvent::Active(Vec::new());
        check(&[state(1), state(2)], &[state(2)]);
        check(
            &[state(1), active.clone(), confirmed(1), state(2)],
            &[state(2), active, confirmed(1)],
        );
        check(&[confirmed(1), state(2)], &[confirmed(1), state(2)]);
        check(&[confirmed(1), state(2), confirmed(2)], &[state(2), confirmed(2)]);
        let cut = |reason: &str| CoordEvent::Unreachable(reason.to_owned());
        check(
            &[cut("a"), confirmed(1), cut("b"), CoordEvent::Expired],
            &[confirmed(1), cut("b"), CoordEvent::Expired],
        );
    }

    proptest! {
        /// Numbers the facts of a run; `Confirmed { sent: n }` vouches for all facts up to `n`.
        /// Whenever the reader reads, however late, it has what a confirmation vouches for.
        #[test]
        fn a_confirmation_never_overtakes_what_it_vouches_for(
            steps in proptest::collection::vec(0..3_u8, 0..60)
        ) {
            let mut unread = Unread::default();
            let (mut committed, mut read) = (0, 0);
            for step in steps {
                match step {
                    0 => {
                        committed += 1;
                        unread.push(state(committed));
                    }
                    1 => unread.push(confirmed(committed.unsigned_abs())),
                    _ => match unread.events.pop_front() {
                        Some(CoordEvent::State(Some(state))) => {
                            prop_assert!(state.version.0 > read, "never goes back");
                            read = state.version.0;
                        }
                        Some(CoordEvent::Confirmed { sent }) => {
                            prop_assert!(read.unsigned_abs() >= sent.0);
                        }
                        _ => {}
                    },
                }
                prop_assert!(unread.events.len() <= 5);
            }
        }
    }

    #[tokio::test]
    async fn ends_on_both_sides() {
        let (sender, mut receiver) = mailbox();
        sender.push(CoordEvent::Expired);
        drop(sender);
        assert_eq!(receiver.next().await, Some(CoordEvent::Expired));
        assert_eq!(receiver.next().await, None);

        let (sender, receiver) = mailbox();
        drop(receiver);
        sender.closed().await;

        let (sender, receiver) = mailbox();
        drop(receiver.into_channel());
        sender.closed().await;
    }
}
