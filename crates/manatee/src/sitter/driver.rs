//! The driver: one task, one queue. It stamps the time, lets the machine decide, writes the trace,
//! publishes what is known and hands the actions to the executor. It waits for nothing but events,
//! so that the fence is never late because something else is slow.

use super::{executor::Executor, server::Shared, trace::Trace};
use crate::backup::Secret;
use adapters::{clock, postgres::Settings};
use anyhow::Result;
use cluster::{Action, Event, Machine, MachineConfig, Monotonic, Now, Snapshot};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// The runtime's timers stand still while the machine is suspended, deadlines do not: look at the
/// clock at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// A file that was read again.
#[derive(Debug)]
pub struct Reloaded {
    /// For the machine.
    pub machine: MachineConfig,
    /// For PostgreSQL.
    pub settings: Settings,
    /// For the backup services of the shard.
    pub secret: Secret,
}

/// What the operator wants of a running sitter.
#[derive(Debug)]
pub enum Control {
    /// Stop in an orderly way.
    Stop,
    /// Take what was read again.
    Reload(Box<Reloaded>),
    /// PostgreSQL's part of it was taken.
    Reloaded(Box<MachineConfig>),
    /// Rebuild the database.
    Rebuild {
        /// Whether everything is to be copied.
        full: bool,
        /// Is told why not; `None`: it will be.
        answer: oneshot::Sender<Option<String>>,
    },
}

pub(super) struct Driver {
    machine: Machine,
    executor: Executor,
    queue: mpsc::Receiver<Event>,
    controls: mpsc::Receiver<Control>,
    control: mpsc::Sender<Control>,
    trace: Trace,
    shared: Arc<Shared>,
    wake: Option<Monotonic>,
    told: Option<Snapshot>,
}

impl Driver {
    pub(super) fn new(
        machine: Machine,
        executor: Executor,
        queue: mpsc::Receiver<Event>,
        (control, controls): (mpsc::Sender<Control>, mpsc::Receiver<Control>),
        trace: Trace,
        shared: Arc<Shared>,
    ) -> Self {
        let (wake, told) = (None, None);
        Driver { machine, executor, queue, controls, control, trace, shared, wake, told }
    }

    /// Runs until it is told to stop.
    pub(super) async fn run(mut self, first: Vec<Action>) -> Result<()> {
        self.perform(first);
        loop {
            let until = self.wake.map_or(LONGEST_SLEEP, |at| {
                Duration::from_millis((at - clock::now()).0).min(LONGEST_SLEEP)
            });
            let event = tokio::select! {
                biased;
                () = sleep_until(Instant::now() + until), if self.wake.is_some() => {
                    if self.wake.is_some_and(|at| clock::now() < at) {
                        continue;
                    }
                    self.wake = None;
                    Event::Wake
                }
                Some(control) = self.controls.recv() => match control {
                    Control::Stop => return self.stop().await,
                    Control::Reload(reloaded) => {
                        self.executor.reload(*reloaded, self.control.clone());
                        continue;
                    }
                    Control::Reloaded(machine) => {
                        self.machine.reconfigure(*machine);
                        tracing::info!("the file was read again and taken");
                        Event::Wake
                    }
                    Control::Rebuild { full, answer } => {
                        self.rebuild(full, answer);
                        continue;
                    }
                },
                Some(event) = self.queue.recv() => event,
            };
            self.handle(event);
        }
    }

    /// The machine takes the request or refuses it; what it says is published before it is answered.
    fn rebuild(&mut self, full: bool, answer: oneshot::Sender<Option<String>>) {
        let refusal = self.machine.rebuild_refusal();
        match &refusal {
            None => {
                tracing::info!(full, "an operator asks to rebuild the database");
                self.handle(Event::RebuildAsked { full });
            }
            Some(why) => tracing::warn!("a request to rebuild the database was refused: {why}"),
        }
        if answer.send(refusal).is_err() {
            tracing::debug!("nobody waits for the answer any more");
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Now { monotonic: clock::now(), wall: Timestamp::now() };
        let actions = self.machine.handle(now, event.clone());
        // What is to be done first: a fence must not wait for a disk or a terminal.
        self.perform(actions.clone());
        self.trace.append(now, &event, &actions);
        self.publish();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::WakeAt(at) => self.wake = Some(at),
                action => self.executor.start(action),
            }
        }
    }

    /// Tells what changed, to the log and to whoever asks.
    fn publish(&mut self) {
        let snapshot = self.machine.snapshot();
        if self.told.as_ref() == Some(&snapshot) {
            return;
        }
        let told = self.told.as_ref();
        if told.is_none_or(|told| told.role != snapshot.role || told.reason != snapshot.reason) {
            let rule = snapshot.reason.rule();
            tracing::info!(role = %snapshot.role, rule, "{}", snapshot.reason);
        }
        if let Some(failure) = &snapshot.failure
            && told.is_none_or(|told| told.failure.as_ref() != Some(failure))
        {
            tracing::warn!("{failure}");
        }
        if snapshot.fenced && told.is_none_or(|told| !told.fenced) {
            tracing::error!(
                "fenced: neither the session was confirmed nor the sync answered within the lease"
            );
        }
        self.shared.publish(snapshot.clone());
        self.told = Some(snapshot);
    }

    /// PostgreSQL first, so that its last WAL reaches the sync; then the session, so that the others
    /// act at once.
    async fn stop(self) -> Result<()> {
        tracing::info!("stopping: PostgreSQL first, then the session");
        let Driver { executor, queue, .. } = self;
        // Whoever still has something to tell must not wait for somebody to take it: the session is among them.
        drop(queue);
        executor.shut_down().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{Jobs, StorageOutlet};
    use crate::sitter::{config::Config, machine_config};
    use adapters::coord::{Coordination, memory::MemoryService};
    use cluster::Database;
    use tokio::runtime::Handle;

    /// Whoever has something to tell must not wait for a driver that has ended: the session's task would never come
    /// to leave, and the session be kept alive.
    #[tokio::test]
    async fn a_full_queue_keeps_nobody_from_stopping() {
        let directory = tempfile::tempdir().expect("a directory");
        let dataset = directory.path().join("set");
        let file = directory.path().join("sitter.toml");
        let text = format!(
            "shard = \"1.example\"\nip = \"127.0.0.1\"\ndataset = {dataset:?}\n\
             coordination = \"sqlite:/x.db\"\nreplication.password = \"secret\"\n"
        );
        std::fs::write(&file, text).expect("a file");
        let config = Config::load(&file).expect("a file of a sitter");
        let (me, machine) =
            (config.ident().expect("a peer"), machine_config(&config).expect("one"));
        let service = MemoryService::new("1.example");
        let storage = config.open_storage().expect("a storage");
        let jobs = Jobs::new(Arc::new(StorageOutlet::new(storage.clone())), config.backup_limits());
        let trace = Trace::open(&config, &machine).expect("a trace");
        let (machine, _) = Machine::new(machine);
        let shared = Shared::new(&config, me.clone(), &machine, jobs);
        let (events, queue) = mpsc::channel(1);
        let coordination: Arc<dyn Coordination> = Arc::new(service.client());
        let mut executor = Executor::new(
            Handle::current(),
            storage,
            coordination.clone(),
            events.clone(),
            shared.clone(),
            &config,
            (me, config.secret()),
        )
        .expect("settings");
        executor.start(Action::Join { database: Database::None });
        // Its first event fills the queue, and it waits with the next one.
        let full = async {
            while events.capacity() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), full).await.expect("it is full");
        let driver = Driver::new(machine, executor, queue, mpsc::channel(1), trace, shared);
        let stopped = tokio::time::timeout(Duration::from_secs(20), driver.stop()).await;
        stopped.expect("it stops").expect("in an orderly way");
        assert!(coordination.read().await.expect("reachable").active.is_empty(), "it has left");
    }
}
