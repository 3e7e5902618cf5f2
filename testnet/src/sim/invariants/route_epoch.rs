//! The route record that a peer stores for a name only gets newer; and a lookup that succeeds ends, in the end, at the
//! group's leader.
//!
//! Source: DESIGN, words ("route record … at an epoch. A hint") and "Find" ("an epoch that only grows"). What is stored is
//! memory: a peer that starts begins with nothing, and a record whose life is over by a clock that jumped stands no longer.

use std::collections::BTreeMap;

use canal_proto::GroupId;

use super::ensure;
use crate::sim::around::Machine;
use crate::sim::seen::{Invariant, Look, Seen};

/// Words in the text of a fault after which a peer may have forgotten its records.
const FORGETTING: [&str; 4] = ["crash", "power", "clock", "emptied"];

/// What peers stored, and how lookups ended.
#[derive(Debug, Default)]
pub(super) struct RouteEpoch {
    /// By peer and name: topic, epoch and time of issue.
    stored: BTreeMap<(Machine, String), (u64, u64, u64)>,
    /// The group of each topic: it never changes.
    groups: BTreeMap<u64, GroupId>,
    /// By client and name, since the faults are over: where the last lookup ended, and whether it was right.
    ended: BTreeMap<(Machine, String), (Machine, bool)>,
}

impl Invariant for RouteEpoch {
    fn name(&self) -> &'static str {
        "route_epoch"
    }

    fn see(&mut self, seen: &Seen, look: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Routed { peer, name, group, topic, epoch, issued_ms } => {
                let new = (*topic, *epoch, *issued_ms);
                let known = self.stored.insert((*peer, name.clone()), new);
                ensure(known.is_none_or(|known| known < new), || {
                    format!("peer {peer} had {known:?} for `{name}` and stored {new:?} (topic, epoch, time of issue)")
                })?;
                if *topic != 0 {
                    let of = *self.groups.entry(*topic).or_insert(*group);
                    ensure(of == *group, || format!("topic {topic} is said to be in group {of} and in group {group}"))?;
                }
            }
            Seen::Fault { peer, text } if FORGETTING.iter().any(|word| text.contains(word)) => {
                self.stored.retain(|(of, _), _| peer.is_some_and(|peer| peer != *of));
            }
            // a peer stopped by itself: it found its log damaged
            Seen::Note { text } if text.contains(" stops: ") => self.stored.clear(),
            Seen::LookedUp { client, name, at, leads, .. } if look.healed() => {
                self.ended.insert((*client, name.clone()), (*at, *leads));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, _: &dyn Look) -> Result<(), String> {
        let lost = self.ended.iter().find(|(_, (_, leads))| !leads);
        ensure(lost.is_none(), || {
            format!("(client, name) and (peer, leads) of a lookup that does not end at the leader: {lost:?}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, holds};
    use super::*;

    fn routed(peer: usize, epoch: u64, issued_ms: u64) -> Seen {
        Seen::Routed { peer, name: "in/a".into(), group: GROUP, topic: 11, epoch, issued_ms }
    }

    fn looked_up(leads: bool) -> Seen {
        Seen::LookedUp { client: 9, name: "in/a".into(), group: GROUP, at: 1, leads }
    }

    #[test]
    fn a_stored_record_only_gets_newer() {
        let world = World::three();
        let mut invariant = RouteEpoch::default();
        holds(&mut invariant, &world, &[routed(1, 5, 10), routed(1, 5, 20), routed(1, 6, 15), routed(2, 4, 1)]);
        let crash = |peer| Seen::Fault { peer, text: "crash".into() };
        holds(&mut invariant, &world, &[crash(Some(2)), routed(2, 3, 1)]);
        caught(&mut invariant, &world, &[crash(Some(2)), routed(1, 5, 30)]);
        let mut all = RouteEpoch::default();
        holds(
            &mut all,
            &world,
            &[routed(1, 5, 10), Seen::Fault { peer: None, text: "power cut".into() }, routed(1, 4, 1)],
        );
        let elsewhere =
            Seen::Routed { peer: 3, name: "in/a".into(), group: GroupId(9), topic: 11, epoch: 9, issued_ms: 1 };
        caught(&mut all, &world, &[elsewhere]);
    }

    #[test]
    fn lookups_end_at_the_leader_once_all_is_well() {
        let mut world = World::three();
        holds(&mut RouteEpoch::default(), &world, &[looked_up(false)]);
        world.healed = true;
        holds(&mut RouteEpoch::default(), &world, &[looked_up(false), looked_up(true)]);
        caught(&mut RouteEpoch::default(), &world, &[looked_up(true), looked_up(false)]);
    }
}
