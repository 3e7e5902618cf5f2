//! A group has a leader again soon after a majority of its voters is up and connected.
//!
//! Source: DESIGN, promise 7 ("minorities wait, majorities go on, and healing needs no operator"). It is asked of groups
//! once all faults are over: before that, nobody can say how long a majority that can talk stays one.

use std::collections::BTreeMap;

use canal_proto::GroupId;

use super::ensure;
use super::read::{leader, standing};
use crate::sim::seen::{Invariant, Look};

/// Simulated milliseconds without a leader: a restart, some elections that split or meet a replica that must not stand, and
/// the first entry of the term. An election takes up to a second at 50 ms a tick.
const BOUND_MS: u64 = 15_000;

/// Since when groups are without a leader.
#[derive(Debug, Default)]
pub(super) struct LeaderReturns {
    since: BTreeMap<GroupId, u64>,
}

impl LeaderReturns {
    fn check(&mut self, look: &dyn Look, bound: u64) -> Result<(), String> {
        for group in look.groups() {
            let standing = standing(look, group);
            if leader(&standing).is_some() {
                self.since.remove(&group);
                continue;
            }
            let now = look.now();
            let since = *self.since.entry(group).or_insert(now);
            ensure(now - since < bound, || {
                let each = standing
                    .iter()
                    .map(|(replica, s)| (replica.peer(), s.replica, s.term, s.last, &s.configuration.voters));
                let each: Vec<_> = each.collect();
                format!(
                    "group {group} is without a leader for {} ms, and nothing is wrong any more; (peer, replica, term, last entry, \
                     voters) {each:?}",
                    now - since
                )
            })?;
        }
        Ok(())
    }
}

impl Invariant for LeaderReturns {
    fn name(&self) -> &'static str {
        "leader_returns"
    }

    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        if look.healed() { self.check(look, BOUND_MS) } else { Ok(()) }
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        self.check(look, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::World;
    use super::*;

    #[test]
    fn a_healed_group_has_a_leader_in_time() {
        let mut world = World::three();
        let mut invariant = LeaderReturns::default();
        world.one(1).status.leads = false;
        let mut look = |world: &mut World, now: u64, healed: bool| {
            (world.now, world.healed) = (now, healed);
            invariant.look(world).is_ok()
        };
        assert!(look(&mut world, 100_000, false));
        assert!(look(&mut world, 200_000, true) && look(&mut world, 200_000 + BOUND_MS - 1, true));
        world.one(2).status.leads = true;
        assert!(look(&mut world, 300_000, true));
        world.one(2).up = false;
        assert!(look(&mut world, 301_000, true));
        assert!(!look(&mut world, 301_000 + BOUND_MS, true));
    }

    #[test]
    fn in_the_end_every_group_has_one() {
        let mut world = World::three();
        assert_eq!(LeaderReturns::default().end(&world), Ok(()));
        world.one(1).status.leads = false;
        assert!(LeaderReturns::default().end(&world).is_err());
    }
}
