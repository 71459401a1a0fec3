//! What each event changes in what is known. No decision is taken here.

use super::{
    Action, ApplyError, Event, InFlight, Known, Machine, PgCommand, PgOutcome, PutOutcome, Server,
    Session, StateSeen, Writing, distinct, fence::needs_proof,
};
use crate::{Applied, Database, Millis, Monotonic};

/// A server that ended sooner than this after its start counts as not having started at all.
const STABLE: Millis = Millis(10_000);

impl Machine {
    pub(super) fn take(&mut self, now: Monotonic, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Inspected { database, running, applied } => {
                self.take_inspected(now, database, running, applied);
            }
            Event::InspectFailed(problem) => {
                self.inspecting = false;
                self.failure = Some(problem);
                self.back_off(now);
                // A server that cannot be looked at may be a primary: one lease, as an adopted one.
                if self.server == Server::Unknown && !self.exposed {
                    self.exposed = true;
                    self.prove(now);
                }
            }
            Event::Joined => {
                self.session = Session::Joined;
                // The session starts from what it reads: nothing known before counts as present.
                self.known = Known::Nothing;
                self.active = None;
                self.confirmed = false;
                self.session_problem = None;
                self.join_attempts = 0;
                // Who gave up the one before tries anew in this one.
                self.failing_since = None;
                self.unanswered_since = None;
            }
            Event::JoinFailed(problem) => {
                self.session = Session::None;
                self.session_problem = Some(problem);
                self.join_at = now + self.delay(self.join_attempts);
                self.join_attempts += 1;
            }
            // A session that is being given up may expire instead: either ends it.
            Event::Left | Event::Expired if self.session == Session::Leaving => {
                // The problem said why when it was given up, and goes on saying so.
                self.session = Session::None;
                self.join_at = now + self.config.give_up;
            }
            Event::Left => {}
            Event::Expired => self.lose_session("it expired"),
            Event::Unreachable(problem) => self.session_problem = Some(problem),
            Event::State(seen) => self.take_state(seen),
            Event::Active(peers) => self.active = Some(distinct(peers)),
            Event::Confirmed { sent } => {
                self.session_problem = None;
                self.confirmed = true;
                if self.is_informed() {
                    self.prove(sent);
                }
            }
            Event::PutDone(outcome) => self.take_put(now, outcome, actions),
            Event::ReadDone(result) => self.take_read(now, result),
            Event::PgDone(outcome) => self.take_pg_done(now, outcome),
            Event::PgFailed(error) => self.take_pg_failed(now, error),
            Event::Fenced(result) => self.take_fenced(now, result),
            Event::PgExited(problem) => self.take_exit(now, problem),
            Event::PgMissing(problem) => {
                // What is in flight says what is true after it.
                if self.server == Server::Running && self.postgres.is_none() && !self.fencing {
                    // Where it has been started again since, a fence finds it.
                    let exposed = self.exposed;
                    self.take_exit(now, problem);
                    self.exposed = exposed;
                }
            }
            Event::Probed { wal, timeline, caught_up, sync_answered } => {
                self.wal = Some(wal);
                self.timeline = self.timeline.max(timeline);
                self.caught_up = caught_up;
                if let Some(at) = sync_answered {
                    self.prove(at);
                }
                if self.unanswered_since.take().is_some() {
                    self.failure = None;
                }
                let idle = self.postgres.is_none() && self.applied.is_some();
                if idle && now - self.started_at >= STABLE {
                    self.mended();
                }
            }
            Event::ProbeFailed(problem) => {
                if self.server == Server::Running && self.postgres.is_none() {
                    self.unanswered_since.get_or_insert(now);
                    self.failure = Some(problem);
                }
            }
            Event::DiskHangs(problem) => {
                self.disk_hangs_since.get_or_insert(now);
                self.failure = Some(problem);
            }
            Event::DiskAnswers => {
                if self.disk_hangs_since.take().is_some() {
                    self.failure = None;
                }
            }
            Event::Overridden => self.stale = self.applied.is_some(),
            Event::Diverged { from } => self.diverged_from = Some(from),
            Event::RebuildAsked { full } => self.take_request(full),
            Event::Wake => {}
        }
    }

    /// Whether state and registrations of the present session are known, and to be no older than it:
    /// what a service shows first may be what was true before, and a peer that acts on a state which
    /// it has itself replaced since may let the sync of then acknowledge.
    pub(super) fn is_informed(&self) -> bool {
        self.session == Session::Joined
            && self.confirmed
            && self.active.is_some()
            && self.known != Known::Nothing
    }

    /// The delay after this many failures: doubled each time, up to the longest.
    pub(super) fn delay(&self, failures: u32) -> Millis {
        let doubled = self.config.retry_min.0.saturating_mul(1 << failures.min(16));
        Millis(doubled.min(self.config.retry_max.0))
    }

    fn back_off(&mut self, now: Monotonic) {
        self.retry_at = now + self.delay(self.attempts);
        self.attempts += 1;
    }

    fn lose_session(&mut self, problem: &str) {
        self.session = Session::None;
        self.session_problem = Some(problem.to_owned());
    }

    fn take_inspected(
        &mut self,
        now: Monotonic,
        database: Database,
        running: bool,
        applied: Option<Applied>,
    ) {
        self.inspecting = false;
        self.database = Some(database);
        self.server = if running { Server::Running } else { Server::Stopped };
        self.applied = applied.filter(|_| running);
        self.failure = None;
        self.attempts = 0;
        // Nothing is brought to take part before it is settled: what takes part, is.
        self.settled = self.applied.as_ref().is_some_and(|one| !one.config.is_quiesced());
        // What a fence is under way for is exposed until that has ended.
        self.exposed = self.fencing
            || running && self.applied.as_ref().is_none_or(|applied| needs_proof(&applied.config));
        // A sitter that restarts knows nothing of the proofs before: what it adopts gets one lease
        // to find the next one, from when it could have been looked at first (rule F2).
        if self.exposed && self.proof.is_none() {
            self.prove(now);
        }
    }

    fn take_state(&mut self, seen: Option<StateSeen>) {
        let version = seen.as_ref().map(|seen| seen.version);
        // The answer of a put may overtake the news of what was stored before it: within a session,
        // what is known never goes back.
        if version.is_some() && version < self.version() {
            return;
        }
        self.known = match seen {
            None => Known::Absent,
            Some(StateSeen { version, state: Ok(state) }) => Known::Legal(version, Box::new(state)),
            Some(StateSeen { version, state: Err(error) }) => Known::Illegal(version, error),
        };
    }

    /// The version of the stored state that is known.
    pub fn version(&self) -> Option<super::Version> {
        match &self.known {
            Known::Legal(version, _) | Known::Illegal(version, _) => Some(*version),
            Known::Nothing | Known::Absent => None,
        }
    }

    fn take_put(&mut self, now: Monotonic, outcome: PutOutcome, actions: &mut Vec<Action>) {
        let Writing::Putting(put) = std::mem::replace(&mut self.writing, Writing::Nothing) else {
            unreachable!("a put was answered that was not in flight: {outcome:?}");
        };
        let unsettled = match outcome {
            PutOutcome::Refused(problem) => {
                self.refusal = Some(problem);
                self.put_at = now + self.delay(self.refusals);
                self.refusals += 1;
                // It leaves nothing to settle; what it was to settle may still arrive.
                if put.settles {
                    self.writing = Writing::Limbo(put);
                }
                return;
            }
            PutOutcome::Committed(version) => {
                self.forget_refusal();
                // A watch may have told of it, or of something newer, already. And without a session no
                // decision is taken from it: until one is, a declaration is not settled.
                if self.is_informed() && self.version() == put.expected {
                    self.known = Known::Legal(version, Box::new(put.state));
                } else if put.declares {
                    self.writing = Writing::Limbo(put);
                }
                return;
            }
            // What is stored instead is not known before it is read, and may be a declaration of
            // this peer that was lost on its way before.
            PutOutcome::Conflict => Some(put),
            PutOutcome::Unknown(problem) => {
                self.session_problem = Some(problem);
                Some(put)
            }
        };
        self.forget_refusal();
        self.put_at = now + self.config.retry_min;
        self.writing = Writing::Reading { unsettled };
        self.reading = true;
        actions.push(Action::Read);
    }

    fn take_read(&mut self, now: Monotonic, result: Result<Option<StateSeen>, String>) {
        self.reading = false;
        let Writing::Reading { unsettled } = std::mem::replace(&mut self.writing, Writing::Nothing)
        else {
            unreachable!("a read was answered that was not in flight");
        };
        match result {
            Ok(seen) => {
                let read = seen.as_ref().map(|seen| seen.version);
                if let Some(put) = unsettled.filter(|put| put.declares) {
                    self.writing = Writing::Limbo(put);
                }
                // A watch may have told of something newer while the read was on its way.
                if self.version() < read {
                    self.take_state(seen);
                }
            }
            Err(problem) => {
                self.session_problem = Some(problem);
                self.put_at = now + self.config.retry_min;
                self.writing = Writing::Reading { unsettled };
            }
        }
    }

    /// The command in flight, which was answered: what it did, it has done, and the next fence is of that.
    fn answered(&mut self, now: Monotonic) -> InFlight {
        self.fence_at = self.fence_at.min(now);
        self.postgres.take().expect("a command was answered that was not in flight")
    }

    fn take_pg_done(&mut self, now: Monotonic, outcome: PgOutcome) {
        let operation = self.answered(now);
        match (outcome, operation.command) {
            (PgOutcome::Applied { position, timeline }, PgCommand::Apply(config)) => {
                if self.server != Server::Running {
                    self.started_at = now;
                }
                self.server = Server::Running;
                self.wal = self.wal.max(Some(position));
                self.timeline = self.timeline.max(timeline);
                if config.is_primary() {
                    self.database = Some(Database::Established);
                }
                if !self.has_diverged(&config) {
                    // What could not be followed is not what is followed now.
                    self.diverged_from = None;
                }
                self.exposed = needs_proof(&config);
                self.applied = Some(Applied { config, position });
                self.fenced = false;
                self.stale = false;
            }
            (PgOutcome::Prepared, PgCommand::Prepare) => self.database = Some(Database::Prepared),
            (PgOutcome::Copied, PgCommand::Seed(_)) => self.take_copy(),
            (PgOutcome::Copied, PgCommand::Rebuild(..)) => {
                self.take_copy();
                self.asked = self.asked.filter(|asked| asked.deposed);
                self.rebuilt_in = operation.generation;
            }
            (PgOutcome::Stopped, PgCommand::Stop) => {
                self.stopped();
                self.retry_at = now;
                // That it is down mends nothing of what it was stopped for.
                return;
            }
            (outcome, command) => unreachable!("{command:?} was answered by {outcome:?}"),
        }
        self.retry_at = now;
        self.failure = None;
        // A server that starts and ends again and again has not been mended by its last start.
        if now - self.started_at >= STABLE || self.server != Server::Running {
            self.mended();
        }
    }

    fn mended(&mut self) {
        self.attempts = 0;
        self.failing_since = None;
        self.failure = None;
    }

    fn take_copy(&mut self) {
        self.stopped();
        self.database = Some(Database::Established);
        self.forget_data();
    }

    /// What was known of data that is gone says nothing of what comes in its place.
    fn forget_data(&mut self) {
        self.timeline = None;
        self.wal = None;
        self.diverged_from = None;
    }

    fn stopped(&mut self) {
        self.server = Server::Stopped;
        // What is being brought up as a primary may serve at any moment, whatever ended before it.
        self.exposed = self.postgres.as_ref().is_some_and(|operation| {
            matches!(&operation.command, PgCommand::Apply(config) if needs_proof(config))
        });
        // A server that had to be stopped because it did not answer has failed since then.
        if let Some(since) = self.unanswered_since.take() {
            self.failing_since.get_or_insert(since);
        }
        self.applied = None;
        self.caught_up = None;
    }

    fn take_pg_failed(&mut self, now: Monotonic, error: ApplyError) {
        let operation = self.answered(now);
        if let Some(database) = error.database {
            self.database = Some(database);
        }
        // What was kept aside for a copy that failed proves nothing of what is here.
        if self.database == Some(Database::None) {
            self.forget_data();
        }
        // Which configuration is in force after a failure is not known: it is applied anew.
        if error.running {
            self.server = Server::Running;
            self.applied = None;
            self.caught_up = None;
        } else {
            self.stopped();
        }
        if operation.command == PgCommand::Stop {
            self.stop_at = now + self.config.retry_min;
        }
        if !operation.cancelled && !self.fencing {
            self.failure = Some(error.problem);
            self.failing_since.get_or_insert(now);
            self.back_off(now);
        }
    }

    fn take_fenced(&mut self, now: Monotonic, result: Result<(), String>) {
        self.fencing = false;
        match result {
            Ok(()) => {
                self.stopped();
                // A command that was given before the fence brings nothing up any more, and has yet to say so.
                if self.postgres.is_some() {
                    self.fence_at = now + self.config.retry_max;
                }
            }
            // Something of it still runs: tried again, and again.
            Err(problem) => {
                self.failure = Some(problem);
                self.server = Server::Running;
                self.fence_at = now + self.config.retry_min;
            }
        }
    }

    fn take_exit(&mut self, now: Monotonic, problem: String) {
        let early = now - self.started_at < STABLE;
        self.stopped();
        self.failure = Some(problem);
        self.failing_since.get_or_insert(now);
        if early {
            self.back_off(now);
        }
    }
}
