//! A sitter: hands events to its machine and starts what the machine wants, as the driver and the
//! executor do.

use super::{
    Happening, LEASE, Peer, World, commands,
    faults::PutFault,
    pace::Delay,
    peer::{Clock, Names, Sitter},
};
use crate::Mutation;
use cluster::{
    Action, Applied, Database, DeposedPolicy, Event, Lsn, Machine, MachineConfig, Millis,
    Monotonic, Now, PeerIdent,
};
use jiff::Timestamp;

impl Peer {
    pub(super) fn new(ident: PeerIdent, clock: Clock, alone: bool) -> Self {
        Peer {
            ident,
            clock,
            alone,
            up: false,
            sitter: None,
            life: 0,
            boots: 0,
            operations: 0,
            stopped: [false; 3],
            doomed: None,
            resumed: 0,
            held: Vec::new(),
            disk: None,
            server: None,
            record: None,
            next_put: PutFault::None,
            fail_next: false,
        }
    }
}

impl World {
    fn machine_config(&self, peer: usize) -> MachineConfig {
        MachineConfig {
            me: self.peers[peer].ident.clone(),
            one_node_write_mode: self.peers[peer].alone,
            deposed: if self.setup.manual { DeposedPolicy::Manual } else { DeposedPolicy::Auto },
            lease: LEASE,
            retry_min: Millis(500),
            retry_max: Millis(10_000),
            give_up: Millis(20_000),
        }
    }

    /// Starts a sitter on a host that runs, if there is none.
    pub(super) fn start_sitter(&mut self, peer: usize) {
        if !self.peers[peer].up || self.peers[peer].sitter.is_some() {
            return;
        }
        let (machine, actions) = Machine::new(self.machine_config(peer));
        let now = self.now;
        let host = &mut self.peers[peer];
        let sole = host.alone;
        host.life += 1;
        let life = host.life;
        host.sitter = Some(Sitter {
            machine,
            since: now,
            sole,
            session: None,
            joining: None,
            leaving: false,
            delivered: 0,
            confirmed: Monotonic(0),
            put: None,
            read: None,
            calls: 0,
            operation: None,
            answer: None,
            wake: None,
            disk_hangs: false,
            fence_held: false,
        });
        self.perform(peer, actions);
        self.schedule_in(1_000, Happening::Probe { peer, life });
    }

    /// An operator changes the sitter's file; the sitter reads it again, one that is stopped when it
    /// goes on.
    pub(super) fn configure(&mut self, peer: usize, alone: bool) {
        self.peers[peer].alone = alone;
        let config = self.machine_config(peer);
        let stopped = self.peers[peer].is_stopped(super::Part::Sitter);
        let Some(sitter) = self.peers[peer].sitter.as_mut().filter(|_| !stopped) else { return };
        sitter.sole = alone;
        sitter.machine.reconfigure(config);
        self.tell(peer, Event::Wake);
    }

    /// Ends a sitter without its knowing; what runs goes on running.
    pub(super) fn kill_sitter(&mut self, peer: usize) {
        if let Some(sitter) = self.peers[peer].sitter.take()
            && let Some((_, key)) = sitter.wake
        {
            self.queue.remove(&key);
        }
    }

    pub(super) fn sitter(&mut self, peer: usize, life: u32) -> Option<&mut Sitter> {
        let host = &mut self.peers[peer];
        host.sitter.as_mut().filter(|_| host.life == life)
    }

    /// Hands an event to the machine and starts what it wants.
    pub(super) fn tell(&mut self, peer: usize, event: Event) {
        let host = &mut self.peers[peer];
        let Some(sitter) = &mut host.sitter else { return };
        let wall = i64::try_from(self.now).expect("not that late");
        let now = Now {
            monotonic: host.clock.read(self.now),
            wall: Timestamp::from_millisecond(wall).expect("not that late"),
        };
        let before = self.diary.is_some().then(|| sitter.machine.reason().clone());
        let role = sitter.machine.role();
        let actions = sitter.machine.handle(now, event);
        if let Some(before) = before
            && *sitter.machine.reason() != before
        {
            let (role, reason) = (sitter.machine.role(), sitter.machine.reason().clone());
            self.note(|world| {
                format!("{} is {role}: {}", world.name(peer), world.in_letters(&reason.to_string()))
            });
        }
        self.moved(peer, role);
        self.perform(peer, actions);
        self.check_serving(peer);
    }

    fn perform(&mut self, peer: usize, actions: Vec<Action>) {
        let life = self.peers[peer].life;
        for action in actions {
            match action {
                Action::Inspect => {
                    self.schedule(Delay::Local, Happening::Inspected { peer, life });
                }
                Action::Join { .. } => self.join(peer),
                Action::Leave => self.leave(peer),
                Action::Put { expected, state } => self.put(peer, expected, *state),
                Action::Read => self.read(peer),
                Action::Postgres(command) => self.command(peer, command),
                Action::CancelPostgres => self.cancel(peer),
                Action::Fence => self.fence(peer),
                Action::WakeAt(at) => self.set_wake(peer, at),
            }
        }
    }

    fn set_wake(&mut self, peer: usize, at: Monotonic) {
        let life = self.peers[peer].life;
        let old = self.peers[peer].sitter.as_ref().and_then(|sitter| sitter.wake);
        if let Some((time, key)) = old {
            if time == at {
                return;
            }
            self.queue.remove(&key);
        }
        let after = self.peers[peer].clock.when(at, self.now) - self.now;
        let key = self.schedule_in(after, Happening::Wake { peer, life });
        if let Some(sitter) = &mut self.peers[peer].sitter {
            sitter.wake = Some((at, key));
        }
    }

    pub(super) fn wake(&mut self, peer: usize, life: u32) {
        let Some(sitter) = self.sitter(peer, life) else { return };
        sitter.wake = None;
        let calls = sitter.put.is_some() || sitter.read.is_some() || sitter.joining.is_some();
        if calls && self.mutated(Mutation::FenceWaits) {
            // The driver hangs in the call: its alarm is looked at only afterwards.
            self.schedule_in(100, Happening::Wake { peer, life });
            return;
        }
        self.tell(peer, Event::Wake);
    }

    /// Looks what is on the host; a PostgreSQL that runs is adopted.
    pub(super) fn inspected(&mut self, peer: usize, life: u32) {
        if self.sitter(peer, life).is_none() {
            return;
        }
        let host = &self.peers[peer];
        let database = host.disk.as_ref().map_or(Database::None, |disk| disk.database);
        let running = host.server.is_some();
        // As the executor does: what a quiesced configuration proved is not known any more.
        let applied = host
            .record
            .clone()
            .filter(|config| running && !config.is_quiesced())
            .map(|config| Applied { config, position: Lsn::ZERO });
        self.tell(peer, Event::Inspected { database, running, applied });
    }

    /// Stops PostgreSQL at once; nothing comes before that.
    fn fence(&mut self, peer: usize) {
        let life = self.peers[peer].life;
        let Some(sitter) = &mut self.peers[peer].sitter else { return };
        let calls = sitter.put.is_some() || sitter.read.is_some() || sitter.joining.is_some();
        if calls && self.mutated(Mutation::FenceWaits) {
            if let Some(sitter) = &mut self.peers[peer].sitter {
                sitter.fence_held = true;
            }
            return;
        }
        self.note(|world| format!("{} stops its PostgreSQL at once (fence)", world.name(peer)));
        let host = &mut self.peers[peer];
        let hangs = host.is_stopped(super::Part::Disk);
        // What began before the fence starts nothing any more; and says so, where it waits for a disk, when that comes
        // back.
        if let Some(operation) = host.sitter.as_mut().and_then(|sitter| sitter.operation.as_mut()) {
            operation.cancelled = true;
            let ends = Happening::CommandLimit { peer, life, operation: operation.id };
            if hangs {
                host.held.push(ends);
            } else {
                self.schedule_in(0, ends);
            }
        }
        let host = &mut self.peers[peer];
        if hangs && host.server.is_some() {
            host.doomed = Some(life);
            host.held.push(Happening::Fenced { peer, life });
            return;
        }
        self.crash_server(peer);
        self.schedule(Delay::Stop, Happening::Fenced { peer, life });
    }

    /// A fence that waited for a call, where that is the mutation.
    pub(super) fn call_ended(&mut self, peer: usize) {
        if let Some(sitter) = &mut self.peers[peer].sitter
            && std::mem::take(&mut sitter.fence_held)
        {
            self.fence(peer);
        }
    }

    pub(super) fn fenced(&mut self, peer: usize, life: u32) {
        if self.sitter(peer, life).is_some() {
            self.tell(peer, Event::Fenced(Ok(())));
        }
    }

    pub(super) fn exited(&mut self, peer: usize, life: u32) {
        // One that was started anew since is none that has ended.
        if self.sitter(peer, life).is_some() && self.peers[peer].server.is_none() {
            self.tell(peer, Event::PgExited("it ended by itself".to_owned()));
        }
    }

    pub(super) fn names_of(&self, counts: &cluster::Counts) -> Names {
        commands::names(self, counts)
    }
}
