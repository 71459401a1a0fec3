//! Why a peer does what it does, or does nothing: typed, so that what the operator reads is what
//! the decision was.

use crate::{Generation, Lsn, PeerId, StateError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The place of a peer in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// It has not yet read the state of its shard.
    Unknown,
    /// It stands nowhere in the state.
    Unassigned,
    /// It takes the writes.
    Primary,
    /// It acknowledges them.
    Sync,
    /// It follows.
    Async,
    /// It was primary and is to be repaired.
    Deposed,
}

impl Role {
    /// The role as it is printed and stored.
    pub fn label(self) -> &'static str {
        match self {
            Role::Unknown => "unknown",
            Role::Unassigned => "unassigned",
            Role::Primary => "primary",
            Role::Sync => "sync",
            Role::Async => "async",
            Role::Deposed => "deposed",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident $({ $($field:ident: $type:ty),* })? = $rule:literal, $text:literal; )*) => {
        /// Why. Each variant names the rule of `SPEC.md` that it follows ([`Reason::rule`]).
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
        #[allow(missing_docs)] // the fields are what the doc line of their variant says
        pub enum Reason { $( $(#[$doc])* $variant $({ $($field: $type),* })?, )* }

        impl Reason {
            /// The id of its rule in `SPEC.md`.
            pub fn rule(&self) -> &'static str {
                match self { $( Reason::$variant { .. } => $rule, )* }
            }

            /// Every rule id that some reason names.
            pub const RULES: &'static [&'static str] = &[$($rule),*];
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $( Reason::$variant $({ $($field),* })? => write!(f, $text), )* }
            }
        }
    };
}

reasons! {
    /// Nothing is known yet.
    Starting = "M1", "starting: has not yet read the state of the shard";
    /// What is on this host cannot be looked at.
    CannotInspect { problem: String } = "M1", "cannot look at PostgreSQL on this host: {problem}";
    /// The stored state is malformed or illegal.
    IllegalState { error: StateError } = "S1",
        "holding everything as it is, because the stored state cannot be acted on: {error}";
    /// The session is lost; a new one is being opened.
    NoSession { problem: String } = "M2",
        "holding everything as it is, without a coordination session: {problem}";
    /// A write was refused, and is tried again.
    Refused { problem: String } = "M4",
        "the cluster state may not be stored; going on with what is stored, and trying again: {problem}";
    /// A write's outcome is not settled yet.
    Settling { generation: Generation } = "D5",
        "holding everything as it is until it is known whether the write of generation {generation} was stored";
    /// What an earlier sitter of this peer may have declared is not settled yet.
    SettlingStart = "D6",
        "just started: making sure that nothing which was declared here before can still be stored";
    /// No proof is left that nobody else serves, and PostgreSQL was stopped for that.
    Fenced { problem: String } = "F1",
        "fenced: PostgreSQL was stopped, because neither the coordination nor the sync had answered within the lease ({problem})";

    /// No state, and another peer came first.
    SetupByAnother { first: PeerId } = "G1", "no cluster state yet: {first} came first and sets the shard up";
    /// No state, and nobody else is there.
    SetupAlone = "G1", "no cluster state yet: waiting for a second peer before setting the shard up";
    /// No state, and this peer is not registered yet.
    SetupUnregistered = "G1", "no cluster state yet, and this peer is not yet in the list of active peers";
    /// No state, but a database is here.
    DatabaseWithoutState = "G2",
        "there is a database here but no cluster state: waiting for an operator to restore the state, never setting up over it";
    /// No state, but another active peer has a database.
    DatabaseElsewhere { peer: PeerId } = "G2",
        "no cluster state, but {peer} has a database that has served: waiting for an operator to restore the state, never setting up over it";
    /// Creating the database to declare.
    PreparingDatabase = "G1", "setting the shard up: creating a database";
    /// Declaring generation 1.
    Declaring { generation: Generation } = "G1", "setting the shard up: declaring generation {generation}";

    /// Stands nowhere in the state.
    AwaitingPlace { primary: PeerId } = "C2", "waiting for the primary {primary} to append this peer to the chain";
    /// The shard is in one-node-write mode and its primary is another.
    SoleOther { primary: PeerId } = "O1", "the shard is in one-node-write mode with primary {primary}: nothing to do";

    /// Serves with its sync.
    Serving { sync: PeerId } = "A1", "serving; {sync} acknowledges";
    /// Its sync is active and has not caught up.
    ClosedUntilSync { sync: PeerId } = "A2", "closed for writes until the sync {sync} streams and has caught up";
    /// The sync is gone and there is nobody to replace it.
    NoReplacement { sync: PeerId } = "D1", "the sync {sync} is gone and nobody is present to replace it: writes wait until a peer comes";
    /// The sync is gone and the shard is frozen.
    ReplacementFrozen { sync: PeerId } = "D4", "the sync {sync} is gone, but the shard is frozen: no new generation";
    /// Replacing the sync: first nobody counts any more.
    QuiescingToReplace { sync: PeerId } = "D2", "replacing the sync {sync}: making sure that it acknowledges nothing any more";
    /// Replacing the sync: declaring.
    ReplacingSync { sync: PeerId, generation: Generation } = "D1",
        "replacing the sync {sync}: declaring generation {generation}";
    /// The list of asyncs is brought to what is active.
    UpdatingAsyncs = "C2", "bringing the list of asyncs to what is present";
    /// A promote request was granted or is void, and is taken out of the state.
    PromoteSettled { peer: PeerId } = "P1", "settling the promote request for {peer}";
    /// A promote request asks for a new generation of a frozen shard.
    PromoteFrozen { peer: PeerId } = "D4", "{peer} is to be promoted, but the shard is frozen: no new generation";
    /// The sync is to take over, and there is nobody to become its sync.
    PromoteNoAsync { peer: PeerId } = "D1", "{peer} is to be promoted, but no async is present to become sync";
    /// This peer is primary and its database is gone.
    DatabaseMissing = "X3",
        "primary by the state, but there is no database here: never creating an empty one in its place; leaving so that the sync can take over";
    /// This peer alone has the shard's database by the state, and it is gone.
    OnlyDatabaseMissing = "X3",
        "alone by the state, but there is no database here: never creating an empty one in its place; waiting for an operator to bring it back";

    /// This primary has less WAL than when it was declared: its database is not the one it was.
    PrimaryBehind { wal: Lsn, needed: Lsn } = "D3",
        "the sync is gone, but the WAL here ends at {wal}, before {needed} where this generation began: this database lost writes, so no generation is declared from it";

    /// Alone by configuration.
    Alone = "O1", "one-node-write mode: serving alone";
    /// To leave one-node-write mode, somebody else must be there.
    AloneNoPeer = "O2", "configured to leave one-node-write mode: waiting for a second peer";
    /// To leave one-node-write mode, the shard must be unfrozen.
    AloneFrozen = "D4", "configured to leave one-node-write mode, but the shard is frozen";
    /// Leaving one-node-write mode.
    LeavingAlone { sync: PeerId } = "O2", "leaving one-node-write mode with {sync} as sync";

    /// Follows its upstream.
    Following { upstream: PeerId } = "C1", "following {upstream}";
    /// Its upstream cannot give it what comes next.
    CannotFollow { upstream: PeerId } = "X4",
        "cannot follow {upstream} any more: keeping the database aside and copying one";
    /// An operator wants its database rebuilt.
    RebuildingAsked { upstream: PeerId } = "X5",
        "an operator asked for it: keeping the database aside and copying that of {upstream}";
    /// The primary is gone and the shard is frozen.
    TakeoverFrozen { primary: PeerId } = "D4", "the primary {primary} is gone, but the shard is frozen: no takeover";
    /// The primary is gone and neither an async is there nor anybody who stands nowhere.
    TakeoverNoAsync { primary: PeerId } = "D1",
        "the primary {primary} is gone, but nobody is present to become sync: no takeover until a peer comes";
    /// The primary is gone and this peer has no database, or does not know yet what is in it.
    TakeoverUnproven { primary: PeerId } = "D3",
        "no takeover from {primary}: there is no database here yet, or it is not known how far it goes";
    /// The primary is gone and this peer has not all that was acknowledged.
    TakeoverBehind { primary: PeerId, wal: Lsn, needed: Lsn } = "D3",
        "no takeover from {primary}: the WAL here ends at {wal}, and {needed} is where this generation began";
    /// The primary is gone and this peer's data is on another timeline.
    TakeoverDiverged { primary: PeerId, timeline: u32, needed: u32 } = "D3",
        "no takeover from {primary}: the database here is on timeline {timeline}, and this generation began on {needed}";
    /// Taking over: first detach.
    Detaching { primary: PeerId } = "D2", "taking over from {primary}: detaching from it first";
    /// Taking over: declaring.
    TakingOver { primary: PeerId, generation: Generation } = "D1",
        "taking over from {primary}: declaring generation {generation}";

    /// Its PostgreSQL keeps failing, and the others can go on.
    GivingUp { problem: String } = "H2",
        "PostgreSQL keeps failing here: leaving so that the others can go on ({problem})";

    /// Deposed, to be repaired by hand.
    DeposedManual = "X1", "deposed: waiting for an operator to rebuild this peer";
    /// Deposed, being rebuilt.
    Rebuilding = "X2", "deposed: its data is kept aside while it is rebuilt";
    /// Deposed, but there is nobody to rebuild from.
    RebuildNoSource = "X2", "deposed: waiting for a peer to rebuild from";
    /// Rebuilt: asking to be taken back.
    Rejoining = "X2", "deposed and rebuilt: taking itself out of the deposed";
}
