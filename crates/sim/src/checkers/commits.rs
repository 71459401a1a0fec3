//! No acknowledged commit is lost, and nobody who was superseded acknowledges: whatever was
//! acknowledged in a generation is in the data that every later generation was declared from, and in
//! the data of every later primary that serves.

use super::{Serving, Write};
use crate::world::{Point, Timelines};
use cluster::Generation;

/// The newest acknowledged commit of a timeline in a generation: it stands for those before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Acknowledged {
    generation: Generation,
    commit: Point,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Declared {
    generation: Generation,
    content: Point,
}

/// The ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Commits {
    acknowledged: Vec<Acknowledged>,
    declared: Vec<Declared>,
    count: u64,
}

impl Commits {
    pub(super) fn acknowledgements(&self) -> u64 {
        self.count
    }

    pub(super) fn acknowledged(
        &mut self,
        peer: usize,
        generation: Generation,
        commit: Point,
        timelines: &Timelines,
    ) -> Result<(), String> {
        self.count += 1;
        let known =
            self.acknowledged.iter_mut().rev().find(|known| {
                known.generation == generation && known.commit.branch == commit.branch
            });
        match known {
            Some(known) => known.commit = known.commit.max(commit),
            None => self.acknowledged.push(Acknowledged { generation, commit }),
        }
        let later = self.declared.iter().rev().take_while(|one| one.generation > generation);
        for Declared { generation: later, content } in later {
            if !timelines.contains(*content, commit) {
                return Err(format!(
                    "peer {peer} acknowledges {} in generation {generation}, and generation {later} \
                     was declared without it",
                    commit.position
                ));
            }
        }
        Ok(())
    }

    fn first_missing(
        &self,
        end: Point,
        generation: Generation,
        timelines: &Timelines,
    ) -> Option<&Acknowledged> {
        self.acknowledged
            .iter()
            .filter(|known| known.generation < generation)
            .find(|known| !timelines.contains(end, known.commit))
    }

    pub(super) fn declared(&mut self, write: &Write<'_>, tree: &Timelines) -> Result<(), String> {
        let generation = write.next.generation;
        if write.before.is_some_and(|before| before.generation == generation) {
            return Ok(());
        }
        let Some(content) = write.content else { return Ok(()) };
        self.declared.push(Declared { generation, content });
        match self.first_missing(content, generation, tree) {
            None => Ok(()),
            Some(lost) => Err(format!(
                "generation {generation} is declared from {}, without {}, which was acknowledged in \
                 generation {}",
                content.position, lost.commit.position, lost.generation
            )),
        }
    }

    pub(super) fn serves(&self, serving: &Serving, timelines: &Timelines) -> Result<(), String> {
        let Serving { peer, generation, end, .. } = serving;
        match self.first_missing(*end, *generation, timelines) {
            None => Ok(()),
            Some(lost) => Err(format!(
                "peer {peer} serves in generation {generation} without {}, which was acknowledged \
                 in generation {}",
                lost.commit.position, lost.generation
            )),
        }
    }

    /// Whether everything that was ever acknowledged is in this database.
    pub(super) fn all_in(&self, end: Point, timelines: &Timelines) -> Result<(), String> {
        match self.first_missing(end, Generation(u64::MAX), timelines) {
            None => Ok(()),
            Some(lost) => Err(format!(
                "the last primary has lost {}, which was acknowledged in generation {}",
                lost.commit.position, lost.generation
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_commit_that_a_later_primary_has_not() {
        let mut tree = Timelines::default();
        let start = tree.create(1);
        let commit = tree.append(start).expect("the end");
        let without = tree.promote(start, 0);
        let with = tree.promote(commit, 0);
        let mut ledger = Commits::default();
        ledger.acknowledged(0, Generation(1), commit, &tree).expect("nothing later yet");
        let serving = |end, generation| Serving {
            now: 0,
            peer: 1,
            generation: Generation(generation),
            end,
            supervised_since: None,
        };
        assert_eq!(ledger.serves(&serving(with, 2), &tree), Ok(()));
        assert_eq!(ledger.serves(&serving(without, 1), &tree), Ok(()), "not a later one");
        assert!(ledger.serves(&serving(without, 2), &tree).is_err());
        assert!(ledger.all_in(without, &tree).is_err());
    }

    #[test]
    fn sees_who_acknowledges_what_its_successor_has_not() {
        let mut tree = Timelines::default();
        let start = tree.create(1);
        let kept = tree.append(start).expect("the end");
        let beyond = tree.append(kept).expect("the end");
        let mut ledger = Commits::default();
        ledger.declared.push(Declared { generation: Generation(2), content: kept });
        assert_eq!(ledger.acknowledged(0, Generation(1), kept, &tree), Ok(()));
        assert!(ledger.acknowledged(0, Generation(1), beyond, &tree).is_err());
    }
}
