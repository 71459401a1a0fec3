//! WAL as a tree of timelines: what a database holds is a point in it, and a database has lost a
//! record when its point no longer lies behind that record.
//!
//! A timeline has two names here. PostgreSQL knows it by a number that grows by one with each
//! promotion, so that two promotions from one timeline get the same number; the tree knows it by a
//! [`BranchId`] that is never used twice. Where the two disagree is where PostgreSQL can be fooled.

/// One timeline of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(u32);

/// The end of a database's WAL, or the place of a record in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// On which timeline.
    pub branch: BranchId,
    /// After how much WAL; a record counts as one.
    pub position: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Branch {
    /// Where it forked off; none for the first timeline of a database.
    parent: Option<Point>,
    /// Which database it belongs to: PostgreSQL's system identifier.
    system: u32,
    /// PostgreSQL's name of it.
    number: u32,
    /// Up to where it was written.
    end: u64,
}

/// Why a standby cannot stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is another database altogether.
    System,
    /// The upstream's history has not the standby's timeline, or left it before its position.
    Diverged,
    /// The standby is ahead on the same timeline.
    Ahead,
    /// What comes next for the standby is no longer kept there.
    Removed,
}

impl Point {
    /// Whether a server that keeps its WAL from `kept` on has what comes after this.
    ///
    /// # Errors
    /// What it says if it has not.
    pub(super) fn is_kept(self, kept: u64) -> Result<(), Refusal> {
        if self.position < kept { Err(Refusal::Removed) } else { Ok(()) }
    }
}

/// All WAL that was ever written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Timelines {
    branches: Vec<Branch>,
}

impl Timelines {
    /// Where the WAL of a new database begins.
    pub(super) const START: u64 = 100;

    fn get(&self, id: BranchId) -> &Branch {
        &self.branches[id.0 as usize]
    }

    fn add(&mut self, branch: Branch) -> Point {
        let id = BranchId(u32::try_from(self.branches.len()).expect("few timelines"));
        let position = branch.end;
        self.branches.push(branch);
        Point { branch: id, position }
    }

    /// A new database; its first timeline has this number.
    pub fn create(&mut self, number: u32) -> Point {
        let system = u32::try_from(self.branches.len()).expect("few timelines");
        self.add(Branch { parent: None, system, number, end: Self::START })
    }

    /// A promotion: a new timeline, with the record that PostgreSQL writes first on it. Its number is
    /// the next one, or `at_least`.
    pub fn promote(&mut self, from: Point, at_least: u32) -> Point {
        let Branch { system, number, .. } = *self.get(from.branch);
        let end = from.position + 1;
        self.add(Branch { parent: Some(from), system, number: (number + 1).max(at_least), end })
    }

    /// Whether another timeline of the same database has the number of this one.
    pub(super) fn has_a_namesake(&self, id: BranchId) -> bool {
        let Branch { system, number, .. } = *self.get(id);
        let alike = |one: &&Branch| one.system == system && one.number == number;
        self.branches.iter().filter(alike).count() > 1
    }

    /// Appends a record. `None` when somebody else wrote on this timeline since: two servers take
    /// themselves for its primary.
    pub fn append(&mut self, to: Point) -> Option<Point> {
        let branch = &mut self.branches[to.branch.0 as usize];
        if branch.end != to.position {
            return None;
        }
        branch.end += 1;
        Some(Point { position: branch.end, ..to })
    }

    /// PostgreSQL's number of a timeline.
    pub fn number(&self, id: BranchId) -> u32 {
        self.get(id).number
    }

    /// Whether a database that ends at `whole` holds the record, or all of the database, at `part`.
    pub fn contains(&self, whole: Point, part: Point) -> bool {
        let Point { mut branch, mut position } = whole;
        loop {
            if branch == part.branch {
                return part.position <= position;
            }
            let Some(fork) = self.get(branch).parent else { return false };
            branch = fork.branch;
            position = position.min(fork.position);
        }
    }

    /// The point at `position` in the history of a database that ends at `whole`.
    pub fn at(&self, whole: Point, position: u64) -> Point {
        let mut branch = whole.branch;
        while let Some(fork) = self.get(branch).parent
            && position <= fork.position
        {
            branch = fork.branch;
        }
        Point { branch, position: position.min(whole.position) }
    }

    /// What PostgreSQL says when a standby that ends at `standby` asks to stream from a server that
    /// ends at `upstream`: it compares numbers and positions, nothing else.
    ///
    /// # Errors
    /// Why it refuses.
    pub fn may_stream(&self, upstream: Point, standby: Point) -> Result<(), Refusal> {
        let theirs = self.get(standby.branch);
        let mut id = upstream.branch;
        if self.get(id).system != theirs.system {
            return Err(Refusal::System);
        }
        let mut limit = upstream.position;
        let mut beyond = Refusal::Ahead;
        while self.get(id).number > theirs.number {
            let Some(fork) = self.get(id).parent else { return Err(Refusal::Diverged) };
            (id, limit, beyond) = (fork.branch, fork.position, Refusal::Diverged);
        }
        if self.get(id).number != theirs.number {
            Err(Refusal::Diverged)
        } else if standby.position > limit {
            Err(beyond)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_forks_and_what_was_beyond_the_fork_is_lost() {
        let mut tree = Timelines::default();
        let start = tree.create(1);
        let shared = tree.append(start).expect("the end");
        let lost = tree.append(shared).expect("the end");
        assert_eq!(tree.append(shared), None, "somebody wrote there already");
        let new = tree.promote(shared, 0);
        assert!(tree.contains(new, shared) && !tree.contains(new, lost));
        assert_eq!(tree.at(new, shared.position), shared);
        assert_eq!(tree.at(new, new.position), new);
        assert_eq!(tree.may_stream(new, shared), Ok(()));
        assert_eq!(tree.may_stream(new, lost), Err(Refusal::Diverged));
        assert_eq!(tree.may_stream(shared, lost), Err(Refusal::Ahead));
        assert_eq!(tree.may_stream(lost, new), Err(Refusal::Diverged));
        let other = tree.create(1);
        assert_eq!(tree.may_stream(other, start), Err(Refusal::System));
    }

    /// What rule D7 is for.
    #[test]
    fn two_promotions_from_one_timeline_fool_postgresql() {
        let mut tree = Timelines::default();
        let start = tree.create(1);
        let (one, other) = (tree.promote(start, 0), tree.promote(start, 0));
        assert_eq!(tree.number(one.branch), tree.number(other.branch));
        assert_eq!(tree.may_stream(one, other), Ok(()));
        assert!(!tree.contains(one, other));
    }
}
