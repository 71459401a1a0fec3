//! Scenarios as text: what happens to a shard, line by line, and what is to be true then. A file of
//! them says first, in prose, what it shows; what it prints is kept beside it.

use crate::{
    Mutation,
    world::{Fault, Pace, Part, PutFault, Setup, Who, World},
};
use std::fmt::Write;

/// What can be said; for people.
pub const HELP: &str = "\
peers N                     a shard of so many peers, named a, b, c…; first of all, else 3
mutation NAME               break a rule on purpose; before anything happens
start a b c                 start hosts
run 10s | run 500ms         let time pass
write [N]                   clients write on the primary, so often
write on a                  a client writes on a, whatever it is, closed or not
cut a coord                 a does not reach the coordination, nor it a
cut a b | cut a -> b        the link between two peers, or one way of it
heal a coord | heal links   undo that
heal                        everything is well again, and frozen no more
kill host|sitter|postgres a
start sitter a
stop sitter|postgres a      SIGSTOP
resume a                    SIGCONT
lose disk a                 the host fails, and its data is gone
expire a                    the service ends the session of a
next put of a late|lost|answer-lost|refused
fail next command of a
freeze | unfreeze
promote sync | promote async N
configure a alone|normal    a is to serve alone (one-node-write mode), or not to
rebuild a                   an operator asks the sitter of a to rebuild its database
recycle a                   PostgreSQL of a keeps only its newest WAL
show                        what there is now
story                       what has happened since it was told last
expect primary|sync|async|deposed a
expect serving a | expect not serving a
expect generation N
expect acknowledged N       so many commits in all
expect nothing lost";

/// A scenario under way.
pub struct Script {
    peers: usize,
    mutation: Option<Mutation>,
    world: Option<World>,
}

impl Default for Script {
    fn default() -> Self {
        Script { peers: 3, mutation: None, world: None }
    }
}

impl Script {
    fn world(&mut self) -> &mut World {
        let Script { peers, mutation, .. } = *self;
        self.world.get_or_insert_with(|| {
            let mut world = World::new(Setup {
                peers,
                seed: 0,
                pace: Pace::Steady,
                timeline: 1,
                manual: false,
                alone: 0,
                own_expiry: true,
                stale_reads: false,
                mutation,
            });
            world.keep_diary();
            world
        })
    }

    /// Takes one line and says what it has to say.
    ///
    /// # Errors
    /// Why it cannot be understood, or what was expected and is not so.
    pub fn line(&mut self, line: &str) -> Result<String, String> {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => return Ok(String::new()),
            ["help"] => return Ok(format!("{HELP}\n")),
            ["peers", number] if self.world.is_none() => {
                let number = number.parse().ok().filter(|number| (3..=7).contains(number));
                self.peers = number.ok_or("a shard has three to seven peers")?;
                return Ok(String::new());
            }
            ["mutation", name] if self.world.is_none() => {
                self.mutation = Some(name.parse()?);
                return Ok(String::new());
            }
            ["peers" | "mutation", _] => return Err("this comes before anything else".to_owned()),
            ["show"] => return Ok(self.world().show()),
            ["story"] => {
                let story = self.world().take_diary();
                return Ok(story.into_iter().fold(String::new(), |text, line| text + &line + "\n"));
            }
            ["run", time] => {
                let length = parse_time(time)?;
                let world = self.world();
                world.run_until(world.now() + length);
            }
            ["expect", expected @ ..] => return self.expect(expected).map(|()| String::new()),
            words => {
                for fault in self.faults(words)? {
                    self.world().inflict(fault);
                }
            }
        }
        match self.world().violation() {
            Some(violation) => Err(format!("VIOLATED  {violation}")),
            None => Ok(String::new()),
        }
    }

    fn peer(&mut self, name: &str) -> Result<usize, String> {
        let letter = name.as_bytes().first().filter(|_| name.len() == 1);
        let index = letter.and_then(|letter| letter.checked_sub(b'a')).map(usize::from);
        index.filter(|index| *index < self.peers).ok_or_else(|| format!("no peer {name:?}"))
    }

    fn who(&mut self, name: &str) -> Result<Who, String> {
        self.peer(name).map(Who::Peer)
    }

    fn faults(&mut self, words: &[&str]) -> Result<Vec<Fault>, String> {
        Ok(vec![match *words {
            ["start", "sitter", peer] => Fault::StartSitter(self.who(peer)?),
            ["start", ref peers @ ..] => {
                return peers.iter().map(|peer| self.who(peer).map(Fault::StartHost)).collect();
            }
            ["write"] => Fault::Write { who: Who::Primary, honest: true },
            ["write", "on", peer] => Fault::Write { who: self.who(peer)?, honest: false },
            ["write", number] => {
                let number: usize = number.parse().map_err(|_| format!("how many: {number:?}"))?;
                return Ok(vec![Fault::Write { who: Who::Primary, honest: true }; number]);
            }
            ["cut", peer, "coord"] => {
                Fault::CutCoordination { who: self.who(peer)?, requests: true, answers: true }
            }
            ["cut", from, "->", to] => {
                Fault::CutLink { from: self.who(from)?, to: self.who(to)?, both: false }
            }
            ["cut", from, to] => {
                Fault::CutLink { from: self.who(from)?, to: self.who(to)?, both: true }
            }
            ["heal", peer, "coord"] => Fault::HealCoordination(self.who(peer)?),
            ["heal", "links"] => Fault::HealLinks,
            ["heal"] => Fault::HealAll,
            ["kill", "host", peer] => Fault::KillHost(self.who(peer)?),
            ["kill", "sitter", peer] => Fault::KillSitter(self.who(peer)?),
            ["kill", "postgres", peer] => Fault::KillPostgres(self.who(peer)?),
            ["stop", "sitter", peer] => Fault::Stop(self.who(peer)?, Part::Sitter),
            ["stop", "postgres", peer] => Fault::Stop(self.who(peer)?, Part::Postgres),
            ["stop", "disk", peer] => Fault::Stop(self.who(peer)?, Part::Disk),
            ["resume", peer] => Fault::Resume(self.who(peer)?),
            ["lose", "disk", peer] => Fault::LoseDisk(self.who(peer)?),
            ["expire", peer] => Fault::ExpireSession(self.who(peer)?),
            ["next", "put", "of", peer, how] => {
                let fault = match how {
                    "late" => PutFault::Late,
                    "lost" => PutFault::Lost,
                    "answer-lost" => PutFault::AnswerLost,
                    "refused" => PutFault::Refused,
                    _ => return Err(format!("late, lost, answer-lost or refused, not {how:?}")),
                };
                Fault::NextPut(self.who(peer)?, fault)
            }
            ["fail", "next", "command", "of", peer] => Fault::FailNextCommand(self.who(peer)?),
            ["configure", peer, how @ ("alone" | "normal")] => {
                Fault::Configure(self.who(peer)?, how == "alone")
            }
            ["rebuild", peer] => Fault::Rebuild(self.who(peer)?),
            ["recycle", peer] => Fault::Recycle(self.who(peer)?),
            ["freeze"] => Fault::Freeze,
            ["unfreeze"] => Fault::Unfreeze,
            ["promote", "sync"] => Fault::PromoteSync,
            ["promote", "async", index] => {
                Fault::PromoteAsync(index.parse().map_err(|_| format!("which: {index:?}"))?)
            }
            _ => return Err(format!("not understood: {} (`help` lists it all)", words.join(" "))),
        }])
    }

    fn expect(&mut self, expected: &[&str]) -> Result<(), String> {
        let unless = |met: bool, found: String| if met { Ok(()) } else { Err(found) };
        let peer = expected.last().and_then(|name| self.peer(name).ok());
        let world = self.world();
        let serves = |peer: usize| {
            let server = world.peers[peer].primary();
            server.is_some_and(|server| server.clients && server.open)
        };
        let now = || format!("not so; there is\n{}", world.show());
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match (expected, peer) {
            (["serving", _], Some(peer)) => unless(serves(peer), now()),
            (["not", "serving", _], Some(peer)) => unless(!serves(peer), now()),
            ([role @ ("primary" | "sync" | "async" | "deposed"), _], Some(peer)) => {
                let id = &world.peers[peer].ident.id;
                let state = world.service.cluster();
                let met = state.is_some_and(|state| {
                    state.places().any(|(place, peer)| place.starts_with(role) && peer.id == *id)
                });
                unless(met, now())
            }
            (["generation", text], _) => unless(world.generation().0 == number(text)?, now()),
            (["acknowledged", text], _) => {
                let count = world.checkers.acknowledgements();
                unless(count == number(text)?, format!("{count} are acknowledged"))
            }
            (["nothing", "lost"], _) => match world.violation() {
                None => Ok(()),
                Some(violation) => Err(violation.to_string()),
            },
            _ => {
                Err(format!("not understood: expect {} (`help` lists it all)", expected.join(" ")))
            }
        }
    }
}

fn parse_time(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1_000),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("a time is 10s or 500ms, not {text:?}"))?;
    Ok(number.saturating_mul(unit).min(86_400_000))
}

/// Runs a whole scenario: what it prints, and whether everything was as expected.
pub fn run(text: &str) -> (String, bool) {
    let mut script = Script::default();
    let mut output = String::new();
    for line in text.lines() {
        // Writing to a string does not fail.
        let _ = writeln!(output, "{line}");
        match script.line(line) {
            Ok(said) => output += &said,
            Err(problem) => {
                let _ = writeln!(output, "FAILED: {problem}");
                return (output, false);
            }
        }
    }
    (output, true)
}
