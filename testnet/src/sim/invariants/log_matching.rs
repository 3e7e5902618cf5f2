//! Log matching: if two logs have an entry of the same index and term, they are the same in all entries up to it.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), figure 3 and section 5.3.
//! Checked by its induction step: of each index and term there is one entry, ever, and one term of the entry before it.
//! So an entry is looked at once in each log, and logs need not be held against each other.

use std::collections::{BTreeMap, VecDeque};

use canal_proto::GroupId;

use super::ensure;
use super::read::digest_of;
use crate::sim::seen::{Invariant, Look, Replica};

/// What was found in the logs so far.
#[derive(Debug, Default)]
pub(super) struct LogMatching {
    /// By group, index and term: the term of the entry before, where it was there to be seen, and what the entry does.
    known: BTreeMap<(GroupId, u64, u64), (Option<u64>, u64)>,
    /// By group and replica: the terms in its log as they were looked at.
    checked: BTreeMap<(GroupId, u64), Checked>,
}

#[derive(Debug, Default)]
struct Checked {
    before: u64,
    terms: VecDeque<u64>,
}

impl Checked {
    fn term(&self, index: u64) -> Option<u64> {
        self.terms.get(usize::try_from(index.checked_sub(self.before + 1)?).ok()?).copied()
    }

    /// Forgets what the log does not have any more.
    fn cut(&mut self, before: u64, behind: u64) {
        while self.before < before {
            self.before += 1;
            if self.terms.pop_front().is_none() {
                self.before = before;
            }
        }
        self.terms.truncate(usize::try_from(behind.saturating_sub(self.before)).unwrap_or(usize::MAX));
    }
}

impl LogMatching {
    fn check(&mut self, group: GroupId, replica: &dyn Replica) -> Result<(), String> {
        let id = replica.seed().replica;
        let checked = self.checked.entry((group, id)).or_default();
        let (before, last) = (replica.before(), replica.last());
        if before < checked.before {
            // a crash has undone the cut
            *checked = Checked { before, terms: VecDeque::new() };
        }
        checked.cut(before, last);
        let mut new = Vec::new();
        for index in (before + 1..=last).rev() {
            let Some(entry) = replica.entry(index) else {
                return Err(format!(
                    "replica {id} of group {group} has entries {} to {last}, but not {index}",
                    before + 1
                ));
            };
            if checked.term(index) == Some(entry.term) {
                break;
            }
            new.push((index, entry.term, digest_of(&entry)));
        }
        let first = new.last().map_or(last + 1, |(index, ..)| *index);
        checked.cut(before, first - 1);
        for (index, term, digest) in new.into_iter().rev() {
            let previous = checked.term(index - 1);
            let (known, does) = self.known.entry((group, index, term)).or_insert((previous, digest));
            let same = *does == digest && (known.is_none() || previous.is_none() || *known == previous);
            ensure(same, || {
                let (does, found) = (*does, (previous, digest));
                format!(
                    "entry {index} of term {term} in group {group} is {found:x?} at replica {id}, and was {:x?} in another log \
                     (term of the entry before it, digest)",
                    (*known, does)
                )
            })?;
            *known = known.or(previous);
            checked.terms.push_back(term);
        }
        Ok(())
    }
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log_matching"
    }

    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            look.replicas(group).iter().try_for_each(|replica| self.check(group, replica.as_ref()))?;
        }
        Ok(())
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        // anew: what was looked at may have been damaged since
        self.checked.clear();
        self.look(look)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{World, caught, entry, holds};
    use super::*;

    fn world(logs: [&[(u64, &str)]; 3]) -> World {
        let mut world = World::three();
        for (id, log) in (1..).zip(logs) {
            world.one(id).entries = (1..).zip(log).map(|(index, (term, data))| entry(index, *term, data)).collect();
        }
        world
    }

    #[test]
    fn logs_that_agree_on_a_term_agree_before_it() {
        let good = world([&[(1, "a"), (1, "b"), (3, "c")], &[(1, "a"), (2, "x")], &[(1, "a"), (1, "b")]]);
        let mut invariant = LogMatching::default();
        holds(&mut invariant, &good, &[]);
        let mut cut = world([&[(1, "a"), (1, "b"), (3, "c")], &[(1, "a"), (1, "b"), (3, "c"), (3, "d")], &[]]);
        cut.one(2).before = 2;
        holds(&mut invariant, &cut, &[]);

        caught(&mut LogMatching::default(), &world([&[(1, "a")], &[(1, "b")], &[]]), &[]);
        caught(&mut LogMatching::default(), &world([&[(1, "a"), (3, "c")], &[(2, "a"), (3, "c")], &[]]), &[]);
    }

    #[test]
    fn an_entry_that_changes_in_place_is_seen_in_the_end() {
        let mut invariant = LogMatching::default();
        let logs: [&[(u64, &str)]; 3] = [&[(1, "a"), (1, "b")], &[], &[]];
        invariant.look(&world(logs)).ok();
        caught(&mut invariant, &world([&[(1, "z"), (1, "b")], &[], &[]]), &[]);
    }
}
