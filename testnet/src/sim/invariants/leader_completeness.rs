//! Leader completeness: what was committed in a term is in the logs of the leaders of all later terms.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), figure 3 and section 5.4.
//! An entry that is first seen applied was committed in no later term than the latest that had a leader by then. The last
//! entry of those stands for all, by log matching.

use std::collections::BTreeMap;

use canal_proto::GroupId;

use super::ensure;
use crate::sim::around::Machine;
use crate::sim::seen::{Invariant, Look, Seen};

/// How far groups had come by the terms of their leaders.
#[derive(Debug, Default)]
pub(super) struct LeaderCompleteness {
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// Latest term that had a leader.
    term: u64,
    /// By that: index and term of the last entry that was known to be committed.
    committed: BTreeMap<u64, (u64, u64)>,
}

impl Group {
    fn commit(&mut self, index: u64, term: u64) {
        let known = self.committed.last_key_value().map_or(0, |(_, (index, _))| *index);
        if index > known {
            self.committed.insert(self.term.max(term), (index, term));
        }
    }
}

impl LeaderCompleteness {
    fn leads(&mut self, peer: Machine, group: GroupId, id: u64, term: u64, look: &dyn Look) -> Result<(), String> {
        let known = self.groups.entry(group).or_default();
        known.term = known.term.max(term);
        let Some((_, (index, of))) = known.committed.range(..term).next_back() else { return Ok(()) };
        let replicas = look.replicas(group);
        let Some(leader) = replicas.iter().find(|replica| replica.peer() == peer && replica.seed().replica == id)
        else {
            return Err(format!("replica {id} of group {group} leads term {term}, and is not on peer {peer}"));
        };
        let has = leader.before() >= *index || leader.entry(*index).is_some_and(|entry| entry.term == *of);
        ensure(has, || {
            let (before, last) = (leader.before(), leader.last());
            format!(
                "replica {id} of group {group} leads term {term} without entry {index} of term {of}, which is committed; its \
                 log has entries {} to {last}",
                before + 1
            )
        })
    }
}

impl Invariant for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader_completeness"
    }

    fn see(&mut self, seen: &Seen, look: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Applied { group, entry, .. } => {
                self.groups.entry(*group).or_default().commit(entry.index, entry.term);
            }
            Seen::Leads { peer, group, replica, term } => return self.leads(*peer, *group, *replica, *term, look),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, entry, holds};
    use super::*;

    fn applied(index: u64, term: u64) -> Seen {
        Seen::Applied { peer: 1, group: GROUP, replica: 1, entry: entry(index, term, "") }
    }

    fn leads(replica: u64, term: u64) -> Seen {
        Seen::Leads { peer: replica as usize, group: GROUP, replica, term }
    }

    #[test]
    fn a_leader_has_what_was_committed_before_its_term() {
        let mut world = World::three();
        world.one(1).entries = vec![entry(1, 1, "a"), entry(2, 1, "b")];
        world.one(2).entries = vec![entry(1, 1, "a")];
        world.one(3).before = 2;
        let mut invariant = LeaderCompleteness::default();
        holds(&mut invariant, &world, &[leads(1, 1), applied(1, 1), leads(2, 2), leads(3, 4)]);
        caught(&mut invariant, &world, &[applied(2, 1), leads(2, 5)]);
        // the votes of an earlier term may come in late
        let mut late = LeaderCompleteness::default();
        holds(&mut late, &world, &[leads(1, 3), applied(1, 1), applied(2, 1), leads(2, 2)]);
    }

    #[test]
    fn an_entry_of_another_term_is_not_what_was_committed() {
        let mut world = World::three();
        world.one(2).entries = vec![entry(1, 2, "x")];
        caught(&mut LeaderCompleteness::default(), &world, &[leads(1, 1), applied(1, 1), leads(2, 3)]);
    }
}
