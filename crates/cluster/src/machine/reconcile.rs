//! From what is known to what is done next: decide, then at most one operation per resource.

use super::{
    Action, InFlight, Known, Machine, Now, PgCommand, Put, Server, Session, Way, Writing,
    fence::needs_proof,
};
use crate::{
    Applied, Database, Monotonic, PeerIdent, PgConfig, PgTarget, Reason, Role, StandbyRole, View,
    decide,
};

impl Machine {
    pub(super) fn reconcile(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.database.is_none() {
            self.inspect_again(now.monotonic, actions);
            self.check_fence(now.monotonic, actions);
            if let Some(at) = self.next_wake(now.monotonic) {
                actions.push(Action::WakeAt(at));
            }
            return;
        }
        self.decide(now);
        self.settle();
        self.check_fence(now.monotonic, actions);
        self.explain(now.monotonic);
        self.note_ending(now.monotonic);
        self.drive_session(now.monotonic, actions);
        self.drive_write(now.monotonic, actions);
        self.drive_postgres(now.monotonic, actions);
        if let Some(at) = self.next_wake(now.monotonic) {
            actions.push(Action::WakeAt(at));
        }
    }

    fn inspect_again(&mut self, now: Monotonic, actions: &mut Vec<Action>) {
        if let Some(problem) = &self.failure {
            self.decision.reason = Reason::CannotInspect { problem: problem.clone() };
        }
        if !self.inspecting && self.retry_at <= now {
            self.inspecting = true;
            actions.push(Action::Inspect);
        }
    }

    /// Decides if everything that a decision looks at is known; otherwise holds the last target and
    /// says why.
    fn decide(&mut self, now: Now) {
        self.decision.write = None;
        if !self.is_informed() {
            if self.decision.role != Role::Unknown || self.session_problem.is_some() {
                let problem = self.session_problem.clone().unwrap_or_else(|| "joining".to_owned());
                self.decision.reason = Reason::NoSession { problem };
            }
            // Quiesced, and unable to declare: the old pair goes on as if nothing had been begun.
            if !self.declaration_unsettled()
                && let Some(retreat) = self.decision.retreat.take()
            {
                self.decision.postgres = retreat;
            }
            return;
        }
        let state = match &self.known {
            Known::Nothing => unreachable!("informed without a state"),
            Known::Absent => None,
            Known::Legal(_, state) => Some(state.as_ref()),
            Known::Illegal(_, error) => {
                self.decision.reason = Reason::IllegalState { error: error.clone() };
                return;
            }
        };
        let view = View {
            me: &self.config.me,
            one_node_write_mode: self.config.one_node_write_mode,
            deposed_policy: self.deposed_policy(),
            now: now.wall,
            state,
            active: self.active.as_deref().unwrap_or_default(),
            database: self.database.expect("decides only after it has looked"),
            applied: self.applied_for_sure(),
            wal: self.wal,
            timeline: self.timeline,
            caught_up: self.caught_up.as_ref(),
            rebuilt: state.is_some_and(|state| self.rebuilt_in == Some(state.generation)),
        };
        self.decision = decide(&view);
        self.decided_in = self.state().map(|state| state.generation);
        self.forget_request();
        self.yield_to_refusal(now.monotonic);
        if self.should_give_up(now.monotonic) {
            self.decision.postgres = PgTarget::Abdicate;
            self.decision.write = None;
            let problem = self.failure.clone().unwrap_or_default();
            self.decision.reason = Reason::GivingUp { problem };
            self.forget_refusal();
        }
    }

    /// A write that was refused is not tried again at once, and until then this peer is what it was
    /// before it quiesced: its partner may need it (rule M4).
    fn yield_to_refusal(&mut self, now: Monotonic) {
        if self.decision.retreat.is_none() && !self.wants_write() {
            self.forget_refusal();
        } else if self.refusal.is_some()
            && now < self.put_at
            && !self.declaration_unsettled()
            && let Some(retreat) = self.decision.retreat.take()
        {
            self.decision.postgres = retreat;
            self.decision.write = None;
        }
    }

    pub(super) fn forget_refusal(&mut self) {
        self.refusal = None;
        self.refusals = 0;
    }

    /// Where what is done is not what was decided, says why.
    fn explain(&mut self, now: Monotonic) {
        let stopped = self.fenced && self.server != Server::Running && !self.may_serve(now);
        if stopped && matches!(self.decision.role, Role::Primary | Role::Unknown) {
            let problem = self.session_problem.clone().unwrap_or_else(|| "in a session".to_owned());
            self.decision.reason = Reason::Fenced { problem };
            return;
        }
        if let (Some(problem), true) = (&self.refusal, self.is_informed()) {
            self.decision.reason = Reason::Refused { problem: problem.clone() };
            return;
        }
        let PgTarget::Run { config, .. } = &self.decision.postgres else { return };
        let in_force = self.applied.as_ref().is_some_and(|applied| applied.config == *config);
        if !self.may_decide() || in_force || config.is_quiesced() {
            return;
        }
        let put = match &self.writing {
            Writing::Nothing => None,
            Writing::Putting(put) | Writing::Limbo(put) => Some(put),
            Writing::Reading { unsettled } => unsettled.as_ref(),
        };
        if let (true, Some(put)) = (self.declaration_unsettled(), put) {
            let generation = put.state.generation;
            self.decision.reason = Reason::Settling { generation };
        } else if self.declaration_unsettled() {
            self.decision.reason = Reason::SettlingStart;
        } else if let (true, Reason::Following { upstream }) =
            (self.has_diverged(config), &self.decision.reason)
        {
            self.decision.reason = Reason::CannotFollow { upstream: upstream.clone() };
        } else if let (Some(_), Reason::Following { upstream }) =
            (self.asked_source(config), &self.decision.reason)
        {
            self.decision.reason = Reason::RebuildingAsked { upstream: upstream.clone() };
        }
    }

    /// The configuration in force, as far as a decision may rest on it: a quiesced one proves nothing
    /// any more as soon as PostgreSQL has been told to leave it, or somebody else may have made it do so
    /// (rule D2).
    fn applied_for_sure(&self) -> Option<&Applied> {
        let left = self.postgres.is_some() || self.stale;
        self.applied.as_ref().filter(|applied| !(left && applied.config.is_quiesced()))
    }

    /// Whether what is known now is what decisions are taken from; otherwise the last target is held.
    fn may_decide(&self) -> bool {
        self.is_informed() && !matches!(self.known, Known::Illegal(..))
    }

    /// What may have been declared is settled once a decision has been taken from another version than
    /// the one that it was to replace: whatever was on its way can now only fail. Not sooner: a target
    /// that is held without a session was decided before that was known (rules D5, D6).
    fn settle(&mut self) {
        if !self.may_decide() {
            return;
        }
        let version = self.version();
        if matches!(&self.writing, Writing::Limbo(put) if put.expected != version) {
            self.writing = Writing::Nothing;
        }
        // What an earlier sitter sent expects no newer version than the first one that is known to be no older
        // than this session: what was shown before that may be older than what it expects.
        let first = *self.seen.get_or_insert(version);
        self.settled |= version > first;
    }

    /// A primary or sync whose PostgreSQL keeps failing steps aside when the others can go on
    /// without it (rule H2).
    fn should_give_up(&self, now: Monotonic) -> bool {
        let Some(state) = self.state() else {
            return false;
        };
        // What runs as it should, or is still being tried, does not fail now, whatever failed before. To stop it is
        // to try nothing.
        let stops = |operation: &InFlight| operation.command == PgCommand::Stop;
        let idle = self.applied.is_none() && self.postgres.as_ref().is_none_or(stops);
        let long = |since: Option<Monotonic>| {
            since.is_some_and(|since| now - since >= self.config.give_up)
        };
        let failing = idle && long(self.failing_since)
            || long(self.unanswered_since)
            || long(self.disk_hangs_since);
        let active =
            |peer: &PeerIdent| self.active.iter().flatten().any(|active| active.id == peer.id);
        let partner = match self.decision.role {
            Role::Primary => state.sync.as_ref(),
            Role::Sync => Some(&state.primary),
            Role::Unknown | Role::Unassigned | Role::Async | Role::Deposed => None,
        };
        failing
            && !state.is_frozen()
            && partner.is_some_and(active)
            && state.asyncs.iter().any(active)
    }

    /// Since when PostgreSQL is being stopped for others to act, if it is not yet. Until it is, a session
    /// that was given up is not begun again.
    fn note_ending(&mut self, now: Monotonic) {
        let stopped = self.server == Server::Stopped && self.postgres.is_none();
        if stopped || self.decision.postgres != PgTarget::Abdicate {
            self.ending_since = None;
        } else {
            self.ending_since.get_or_insert(now);
        }
    }

    fn drive_session(&mut self, now: Monotonic, actions: &mut Vec<Action>) {
        // What the kernel does not let go of, because it waits for a disk that hangs, ends when it may.
        let hangs = self.ending_since.is_some_and(|since| now - since >= self.config.give_up);
        match self.session {
            Session::None
                if now >= self.join_at
                    && self.ending_since.is_none()
                    && self.disk_hangs_since.is_none() =>
            {
                self.session = Session::Joining;
                let database = self.database.expect("joins only after it has looked");
                actions.push(Action::Join { database });
            }
            // Only once PostgreSQL is down, or does not come down: until then this peer may still be needed.
            Session::Joined
                // In a new session it decides anew first: the old decision would end it at once.
                if self.is_informed()
                    && self.decision.postgres == PgTarget::Abdicate
                    && (self.ending_since.is_none() || hangs)
                    && self.writing == Writing::Nothing =>
            {
                let why = &self.decision.reason;
                self.session_problem = Some(format!("given up so that others can act ({why})"));
                self.session = Session::Leaving;
                actions.push(Action::Leave);
            }
            _ => {}
        }
    }

    fn drive_write(&mut self, now: Monotonic, actions: &mut Vec<Action>) {
        if matches!(self.writing, Writing::Reading { .. }) && !self.reading && now >= self.put_at {
            self.reading = true;
            actions.push(Action::Read);
        }
        let limbo = matches!(self.writing, Writing::Limbo(_));
        if !limbo && self.writing != Writing::Nothing || !self.is_informed() || now < self.put_at {
            return;
        }
        if !self.wants_write() {
            return;
        }
        let expected = self.version();
        let Some(state) = self.decision.write.take().or_else(|| self.state().cloned()) else {
            return;
        };
        let state = state.without_words_of_registrations();
        let declares = self.state().is_some_and(|old| old.generation != state.generation)
            || limbo
            || self.may_have_declared();
        let put = Put { expected, state: state.clone(), declares, settles: limbo };
        self.writing = Writing::Putting(put);
        actions.push(Action::Put { expected, state: Box::new(state) });
    }

    /// Whether there is something to store: what was decided; or, going back on a declaration that may
    /// still arrive, the same state under a new version, which makes sure that it cannot (rule D5).
    fn wants_write(&self) -> bool {
        let unsettled = matches!(self.writing, Writing::Limbo(_)) || self.may_have_declared();
        self.decision.write.is_some()
            || unsettled && !self.keeps_quiesced() && self.state().is_some()
    }

    fn keeps_quiesced(&self) -> bool {
        matches!(&self.decision.postgres, PgTarget::Run { config, .. } if config.is_quiesced())
    }

    /// Whether a declaration of this peer may still be stored, so that its old pair must acknowledge
    /// nothing more (rule D5).
    fn declaration_unsettled(&self) -> bool {
        let put = match &self.writing {
            Writing::Nothing => None,
            Writing::Putting(put) | Writing::Limbo(put) => Some(put),
            Writing::Reading { unsettled } => unsettled.as_ref(),
        };
        // Another version than the expected one settles it: it was stored, or can only fail.
        let own = put.is_some_and(|put| {
            put.declares && (!self.may_decide() || put.expected == self.version())
        });
        own || self.may_have_declared()
    }

    /// Whether an earlier sitter of this peer may have declared what is not stored yet (rule D6).
    fn may_have_declared(&self) -> bool {
        let me = &self.config.me.id;
        let in_pair = self.state().is_some_and(|state| {
            state.primary.id == *me || state.sync.as_ref().is_some_and(|sync| sync.id == *me)
        });
        !self.settled && (in_pair || !self.may_decide())
    }

    fn drive_postgres(&mut self, now: Monotonic, actions: &mut Vec<Action>) {
        let superseded = self.decision.role != Role::Primary
            && self.is_informed()
            && matches!(self.known, Known::Legal(..));
        let hangs = self.unanswered_since.is_some() || self.disk_hangs_since.is_some();
        let hung =
            self.decision.postgres == PgTarget::Abdicate && self.server == Server::Running && hangs;
        if superseded || hung {
            // Not one more answer, not even a stale one (rule F3); and what does not answer does not
            // stop when it is asked to.
            self.fence(now, actions);
        }
        if self.fencing {
            return;
        }
        let next = self.next_command(now);
        if let Some(operation) = &mut self.postgres {
            let outdated = match (&operation.command, &next) {
                (PgCommand::Seed(from) | PgCommand::Rebuild(from, _), Some(next)) => match next {
                    PgCommand::Seed(to) | PgCommand::Rebuild(to, _) => {
                        !from.iter().any(|peer| to.iter().any(|other| other.id == peer.id))
                    }
                    _ => true,
                },
                (PgCommand::Seed(_) | PgCommand::Rebuild(..), None) => {
                    self.decision.postgres != PgTarget::Hold
                }
                _ => false,
            };
            if outdated && !operation.cancelled {
                operation.cancelled = true;
                actions.push(Action::CancelPostgres);
            }
            return;
        }
        let Some(command) = next else { return };
        // A stop waits for nothing but a stop that has failed.
        if now < if command == PgCommand::Stop { self.stop_at } else { self.retry_at } {
            return;
        }
        // A target that is held belongs to the generation that it was decided in, not to a newer one
        // of which only the state is known yet.
        let generation = self.decided_in;
        let operation = InFlight { command: command.clone(), generation, cancelled: false };
        if matches!(&command, PgCommand::Apply(config) if needs_proof(config)) {
            self.exposed = true;
            // No fence before it is one of it.
            self.fence_at = now;
        }
        if matches!(command, PgCommand::Rebuild(..)) {
            // From here on the copy that there was is being replaced: it is no reason to come back.
            self.rebuilt_in = None;
        }
        self.postgres = Some(operation);
        actions.push(Action::Postgres(command));
    }

    /// The next step from what PostgreSQL is to what it should be; `None`: there is nothing to do,
    /// or it must not be done now.
    fn next_command(&self, now: Monotonic) -> Option<PgCommand> {
        let stop = || (self.server != Server::Stopped).then_some(PgCommand::Stop);
        match &self.decision.postgres {
            PgTarget::Hold => None,
            PgTarget::Offline | PgTarget::Abdicate => stop(),
            PgTarget::Prepared => match self.database {
                Some(Database::None) => Some(PgCommand::Prepare),
                _ => stop(),
            },
            PgTarget::Rebuilt(sources) => {
                let way = if self.asked_in_full() { Way::Whole } else { Way::Cheapest };
                stop().or_else(|| Some(PgCommand::Rebuild(sources.clone(), way)))
            }
            PgTarget::Run { config, sources } => {
                if let Some(source) = self.asked_source(config) {
                    let way = if self.asked_in_full() { Way::Whole } else { Way::Copied };
                    return stop().or_else(|| Some(PgCommand::Rebuild(vec![source.clone()], way)));
                }
                // A database that was created here for a setup that another peer then did is none
                // of the shard's.
                let foreign = self.database == Some(Database::Prepared) && !config.is_primary();
                let rebuild = |sources: &[PeerIdent]| {
                    stop().or_else(|| Some(PgCommand::Rebuild(sources.to_vec(), Way::Cheapest)))
                };
                match (self.database, sources.as_slice()) {
                    (Some(Database::None), []) => return None,
                    (Some(Database::None), _) => return Some(PgCommand::Seed(sources.clone())),
                    (_, [upstream, ..]) if self.has_diverged(config) => {
                        return rebuild(std::slice::from_ref(upstream));
                    }
                    (_, [_, ..]) if foreign => return rebuild(sources),
                    _ => {}
                }
                let in_force =
                    self.applied.as_ref().is_some_and(|applied| applied.config == *config);
                if in_force && !self.stale {
                    return None;
                }
                if self.declaration_unsettled() && !config.is_quiesced() {
                    return None;
                }
                if needs_proof(config) && !self.may_serve(now) {
                    return None;
                }
                Some(PgCommand::Apply(config.clone()))
            }
        }
    }

    /// Whether what is to be followed is known to have another history (rule X4).
    pub(super) fn has_diverged(&self, config: &PgConfig) -> bool {
        match config {
            PgConfig::Standby { upstream: Some(upstream), .. } => {
                self.diverged_from.as_ref() == Some(&upstream.id)
            }
            _ => false,
        }
    }

    /// The earliest time at which something is due without an event.
    fn next_wake(&self, now: Monotonic) -> Option<Monotonic> {
        let join = (self.session == Session::None).then_some(self.join_at);
        let write = self.decision.write.is_some() || self.refusal.is_some();
        let put = (self.writing != Writing::Nothing || write).then_some(self.put_at);
        let retry = self.postgres.is_none().then_some(self.retry_at);
        let stop = self.postgres.is_none().then_some(self.stop_at);
        let fence = if self.exposed { self.serve_until() } else { None };
        let fence_again = self.exposed.then_some(self.fence_at);
        let failing = self.failing_since.map(|since| since + self.config.give_up);
        let hung = self.unanswered_since.map(|since| since + self.config.give_up);
        let disk = self.disk_hangs_since.map(|since| since + self.config.give_up);
        let ending = self.ending_since.map(|since| since + self.config.give_up);
        [join, put, retry, stop, fence, fence_again, failing, hung, disk, ending]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }
}

/// Which vector or table calls this configuration what.
impl PgConfig {
    /// The role as the original names it.
    pub fn role_label(&self) -> &'static str {
        match self {
            PgConfig::Primary { .. } => "primary",
            PgConfig::Standby { place: StandbyRole::Sync, .. } => "sync",
            PgConfig::Standby { place: StandbyRole::Async, .. } => "async",
        }
    }
}
