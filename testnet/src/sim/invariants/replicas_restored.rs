//! In the end a group has as many replicas as it should, all of them voters, on peers that stay, and none is left elsewhere.
//!
//! Source: DESIGN, "Place and move" ("the same loop replaces a dead peer's replica", "grows to the wanted count as peers
//! join") and promise 7.

use std::collections::BTreeSet;

use super::ensure;
use super::read::{leader, standing};
use crate::sim::seen::{Invariant, Look};

/// It remembers nothing.
#[derive(Debug, Default)]
pub(super) struct ReplicasRestored;

impl Invariant for ReplicasRestored {
    fn name(&self) -> &'static str {
        "replicas_restored"
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        let staying = look.staying();
        for group in look.groups() {
            let wanted = look.wanted(group).min(staying.len());
            let standing = standing(look, group);
            let Some((_, status)) = leader(&standing) else { return Err(format!("group {group} has no leader")) };
            let configuration = &status.configuration;
            let only = configuration.learners.is_empty() && configuration.voters_outgoing.is_empty() && !status.joint;
            ensure(configuration.voters.len() == wanted && configuration.replicas.len() == wanted && only, || {
                format!("group {group} should have {wanted} voters and nothing else; it has {configuration:?}")
            })?;
            let named: BTreeSet<u64> = configuration.replicas.iter().map(|replica| replica.id).collect();
            for id in &configuration.voters {
                let held = standing.iter().find(|(_, status)| status.replica == *id);
                let Some((replica, status)) = held else {
                    return Err(format!("voter {id} of group {group} is nowhere"));
                };
                let peer = replica.peer();
                let at = configuration.replicas.iter().find(|replica| replica.id == *id);
                let here = look.peer_id(peer).to_vec();
                ensure(staying.contains(&peer) && at.is_some_and(|at| at.peer == here), || {
                    format!(
                        "voter {id} of group {group} is on peer {peer}, which leaves or is not where it is said to be"
                    )
                })?;
                ensure(status.serves(), || {
                    format!("voter {id} of group {group} on peer {peer} is still not whole: {status:?}")
                })?;
            }
            for replica in look.replicas(group) {
                let (id, peer) = (replica.seed().replica, replica.peer());
                let counts = named.contains(&id) || !staying.contains(&peer);
                ensure(counts, || format!("replica {id} of group {group} was let go, and is still on peer {peer}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::World;
    use super::*;

    fn end(change: impl FnOnce(&mut World)) -> Result<(), String> {
        let mut world = World::three();
        change(&mut world);
        ReplicasRestored.end(&world)
    }

    #[test]
    fn all_that_should_vote_do_and_no_others() {
        assert_eq!(end(|_| {}), Ok(()));
        assert!(end(|world| world.configure(|c| c.voters = vec![1, 2])).is_err());
        assert!(end(|world| world.configure(|c| c.learners = vec![4])).is_err());
        assert!(end(|world| world.configure(|c| c.replicas.truncate(2))).is_err());
        assert!(end(|world| world.one(1).status.joint = true).is_err());
        assert!(end(|world| world.one(1).status.leads = false).is_err());
        assert!(end(|world| world.one(3).up = false).is_err());
        assert!(end(|world| world.one(3).status.hollow = true).is_err());
        assert!(end(|world| world.staying = vec![1, 2, 0]).is_err());
        assert!(end(|world| world.one(3).seed.replica = 9).is_err());
    }

    #[test]
    fn a_small_mesh_does_with_fewer() {
        let two = |world: &mut World| {
            world.staying = vec![1, 2];
            world.configure(|c| (c.voters, c.replicas) = (vec![1, 2], c.replicas.iter().take(2).cloned().collect()));
        };
        assert_eq!(end(two), Ok(()));
    }
}
