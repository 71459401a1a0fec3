//! Rules that are broken on purpose, so that it is known that the checkers would see it. They are
//! broken in the world, never in the rules: the machine is lied to, or what it asks for is not done.

use std::{fmt, str::FromStr};

macro_rules! mutations {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, $rule:literal; )*) => {
        /// A rule that is broken on purpose.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Mutation { $( $(#[$doc])* $variant, )* }

        impl Mutation {
            /// All of them.
            pub const ALL: &'static [Mutation] = &[$(Mutation::$variant),*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $( Mutation::$variant => $name, )* }
            }

            /// The rule of `SPEC.md` that it breaks.
            pub fn rule(self) -> &'static str {
                match self { $( Mutation::$variant => $rule, )* }
            }
        }
    };
}

mutations! {
    /// A quiesced configuration is answered as applied, and nothing is detached or uncounted.
    NoQuiesce = "no-quiesce", "D2";
    /// The machine is shown `initWal` 0/0 and no `initTimeline`.
    IgnoreInitWal = "ignore-init-wal", "D3";
    /// PostgreSQL acknowledges by itself.
    EmptyNames = "empty-names", "A1";
    /// The machine is never shown that the shard is frozen.
    IgnoreFreeze = "ignore-freeze", "D4";
    /// The machine is told that its write is stored before it is.
    AssumeStored = "assume-stored", "S2";
    /// The fence waits for calls to the coordination.
    FenceWaits = "fence-waits", "F1";
    /// A rebuild is answered as done and nothing is copied.
    RejoinUnrepaired = "rejoin-unrepaired", "X1";
    /// An async that is asked to rebuild copies any other member than its upstream.
    CopyAnybody = "copy-anybody", "X5";
    /// The write that settles a lost declaration is answered as stored and is not.
    NeverSettle = "never-settle", "D5";
    /// A standby reports what it has received as flushed.
    ReportUnflushed = "report-unflushed", "A1";
    /// A primary that has served alone is told to count its sync, answers that it does, and does not.
    StayAlone = "stay-alone", "O2";
    /// Two promotions from one timeline get the same number, as PostgreSQL by itself gives them.
    TimelinesCollide = "timelines-collide", "D7";
    /// A promotion goes by the generation alone, which a timeline may be ahead of.
    TimelinesByGeneration = "timelines-by-generation", "D7";
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Mutation::ALL.iter().map(|one| one.name()).collect::<Vec<_>>().join(", ");
        Mutation::ALL
            .iter()
            .copied()
            .find(|mutation| mutation.name() == name)
            .ok_or_else(|| format!("no such mutation: {name:?}; there are {}", names()))
    }
}
