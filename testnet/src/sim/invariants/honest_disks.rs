//! A replica finds that its disk has forgotten, or that another contradicts it, only where a fault did something to a disk.
//!
//! Source: `docs/architecture.md`, "a disk that was set back". The guard against disks that forget is the last line; behind
//! disks that keep what was synced nothing may ever reach it, so here it means that something was acknowledged too early
//! or thrown away.

use super::ensure;
use crate::sim::seen::{Invariant, Look, Seen};

/// It remembers nothing.
#[derive(Debug, Default)]
pub(super) struct HonestDisks;

impl Invariant for HonestDisks {
    fn name(&self) -> &'static str {
        "honest_disks"
    }

    fn see(&mut self, seen: &Seen, look: &dyn Look) -> Result<(), String> {
        let Seen::Contradiction { peer, group, text } = seen else { return Ok(()) };
        ensure(!look.robbed(*group).is_empty(), || {
            format!("peer {peer}, group {group}: {text}; no disk of the group was touched by a fault")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, holds};
    use super::*;

    #[test]
    fn a_disk_that_forgot_was_made_to() {
        let contradiction = Seen::Contradiction { peer: 1, group: GROUP, text: "its log ends at 4".into() };
        let mut world = World::three();
        caught(&mut HonestDisks, &world, std::slice::from_ref(&contradiction));
        world.robbed = vec![(2, 9)];
        holds(&mut HonestDisks, &world, &[contradiction]);
    }
}
