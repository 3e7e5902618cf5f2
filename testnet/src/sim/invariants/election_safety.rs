//! Election safety: at most one replica leads a group in a term. And what it stands on: a replica votes once in a term,
//! and what it has on disk of it stays.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), figure 3, and figure 2
//! (`currentTerm` and `votedFor` are persistent).

use std::collections::BTreeMap;

use canal_proto::GroupId;
use raft::eraftpb::HardState;

use super::ensure;
use crate::sim::seen::{Invariant, Look, Seen};

/// Who led when, and who voted for whom.
#[derive(Debug, Default)]
pub(super) struct ElectionSafety {
    leaders: BTreeMap<(GroupId, u64), u64>,
    /// By group and replica: its latest term on disk, and its vote in it.
    votes: BTreeMap<(GroupId, u64), (u64, u64)>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election_safety"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        let Seen::Leads { group, replica, term, .. } = seen else { return Ok(()) };
        let known = *self.leaders.entry((*group, *term)).or_insert(*replica);
        ensure(known == *replica, || format!("replicas {known} and {replica} both lead group {group} in term {term}"))
    }

    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            for replica in look.replicas(group) {
                let id = replica.seed().replica;
                let HardState { term, vote, .. } = replica.synced_hard_state();
                let (of, voted) = self.votes.insert((group, id), (term, vote)).unwrap_or_default();
                ensure(of < term || (of == term && (voted == 0 || voted == vote)), || {
                    format!(
                        "replica {id} of group {group} voted for {voted} in term {of}; its disk says {vote} in term {term}"
                    )
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, holds};
    use super::*;

    fn leads(replica: u64, term: u64) -> Seen {
        Seen::Leads { peer: replica as usize, group: GROUP, replica, term }
    }

    #[test]
    fn one_leader_a_term() {
        let world = World::default();
        holds(&mut ElectionSafety::default(), &world, &[leads(1, 1), leads(2, 2), leads(2, 2), leads(1, 3)]);
        caught(&mut ElectionSafety::default(), &world, &[leads(1, 1), leads(2, 2), leads(1, 2)]);
    }

    #[test]
    fn a_vote_stays() {
        let mut world = World::three();
        let mut invariant = ElectionSafety::default();
        let mut look = |term, vote| {
            world.one(2).hard_state = HardState { term, vote, ..HardState::default() };
            invariant.look(&world).is_ok()
        };
        assert!(look(1, 0) && look(1, 3) && look(1, 3) && look(2, 0) && look(2, 1));
        assert!(!look(2, 0));
        assert!(!look(1, 0));
    }
}
