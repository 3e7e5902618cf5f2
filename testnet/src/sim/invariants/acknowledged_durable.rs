//! What is acknowledged is durable, and stays.
//!
//! Source: DESIGN, promise 1 ("an ack is durable: a majority of the group's voters have it on disk, synced") and 5. At the
//! moment of a receipt the entry is synced on a majority of the voters, of both majorities while the configuration is
//! joint, and so it stays; a disk that a fault emptied since counts as if it had it still, since such faults hit a minority
//! only. A replica that says that it has a snapshot has its rows on disk. In the end every replica that can be asked has
//! each acknowledged event at its offset, with the payload that was sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use canal_consensus::core::rows::Configuration;
use canal_proto::{GroupId, TopicId};
use raft::eraftpb::EntryType;

use super::ensure;
use super::read::{Standing, digest, hex, topic, topics, voters};
use crate::sim::around::Machine;
use crate::sim::seen::{Invariant, Look, Replica, Seen};

/// What was sent and acknowledged.
#[derive(Debug, Default)]
pub(super) struct AcknowledgedDurable {
    /// By topic and producer, for each sequence from 1 on.
    events: BTreeMap<(u64, Vec<u8>), Vec<Event>>,
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Event {
    /// Stands for its payload, once it is known.
    payload: Option<u64>,
    acknowledged: bool,
    offset: Option<u64>,
}

#[derive(Debug, Default)]
struct Group {
    /// Terms of applied entries, from index 1 on: what a cut log can't say any more.
    terms: Vec<u64>,
    /// The newest configuration that was seen, and the one before.
    now: Option<Arc<Configuration>>,
    before: Option<Arc<Configuration>>,
    /// The latest entry with a receipt: most entries carry many.
    checked: (u64, u64),
}

impl Group {
    fn configured(&mut self, configuration: &Arc<Configuration>) {
        let newer = self.now.as_ref().is_none_or(|now| now.index < configuration.index);
        if newer {
            self.before = self.now.replace(Arc::clone(configuration));
        }
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.terms.get(usize::try_from(index.checked_sub(1)?).ok()?).copied()
    }

    /// Whether a crash of this replica now would leave it with the entry, in its log or in its rows.
    fn keeps(&self, replica: &dyn Replica, index: u64, term: u64) -> bool {
        if let Some(entry) = replica.synced(index) {
            return entry.term == term;
        }
        let before = replica.synced_before();
        // a fault may take the rows, of a minority: what is left then waits to be filled, and says that it is hollow
        let lost = || replica.flushed() == 0 || replica.status().is_some_and(|status| status.hollow);
        index <= before && self.term(index) == Some(term) && (replica.flushed() >= before || lost())
    }

    /// Whether a majority of the voters, of now or of before the last change, would have an entry after a crash of all. What has
    /// just been acknowledged is on so many; of an even number of voters half are enough later on, since a voter that had it
    /// may have been let go: every majority still has somebody with it.
    fn is_durable(&self, id: GroupId, index: u64, term: u64, just: bool, look: &dyn Look) -> Result<(), String> {
        // what it had, it would have but for the fault; what came later it never had
        let robbed = look.robbed(id);
        let had = |voter: u64| robbed.iter().any(|(replica, through)| *replica == voter && index <= *through);
        let keeps: Vec<u64> = look
            .replicas(id)
            .iter()
            .filter(|replica| self.keeps(replica.as_ref(), index, term))
            .map(|replica| replica.seed().replica)
            .collect();
        let majority = |voters: &[u64]| {
            let kept = voters.iter().filter(|voter| keeps.contains(voter) || had(**voter)).count();
            kept * 2 > voters.len() || (!just && kept * 2 == voters.len())
        };
        let holds = |configuration: &Configuration| {
            let outgoing = &configuration.voters_outgoing;
            majority(&configuration.voters) && (outgoing.is_empty() || majority(outgoing))
        };
        let configurations = [&self.now, &self.before];
        ensure(configurations.iter().any(|c| c.as_ref().is_some_and(|c| holds(c))), || {
            let voters = configurations.iter().filter_map(|c| c.as_ref().map(|c| (&c.voters, &c.voters_outgoing)));
            let voters: Vec<_> = voters.collect();
            format!(
                "entry {index} of term {term} of group {id} is synced on replicas {keeps:?}, no majority of {voters:?}"
            )
        })
    }
}

impl AcknowledgedDurable {
    fn receipt(&mut self, peer: Machine, id: GroupId, index: u64, term: u64, look: &dyn Look) -> Result<(), String> {
        let group = self.groups.entry(id).or_default();
        if group.checked == (index, term) {
            return Ok(());
        }
        let replicas = look.replicas(id);
        let leader = replicas.iter().find(|replica| replica.peer() == peer).and_then(|replica| replica.status());
        if let Some(status) = leader {
            group.configured(&status.configuration);
        }
        let durable = group.is_durable(id, index, term, true, look);
        durable.map_err(|text| format!("peer {peer} acknowledged what is not durable: {text}"))?;
        group.checked = group.checked.max((index, term));
        Ok(())
    }

    /// The place of a sequence in what is remembered.
    fn event(&mut self, topic: u64, producer: &[u8], sequence: u64) -> Option<&mut Event> {
        let at = usize::try_from(sequence.checked_sub(1)?).ok()?;
        let events = self.events.entry((topic, producer.to_vec())).or_default();
        if events.len() <= at {
            events.resize(at + 1, Event::default());
        }
        events.get_mut(at)
    }

    fn note(&mut self, topic: u64, producer: &[u8], first: u64, count: u64, offset: Option<u64>) {
        for n in 0..count {
            if let Some(event) = self.event(topic, producer, first + n) {
                event.acknowledged = true;
                event.offset = event.offset.or(offset.map(|offset| offset + n));
            }
        }
    }

    /// Whether a replica has everything that was acknowledged in a topic.
    fn has_all(&self, group: GroupId, id: TopicId, (replica, status): &Standing<'_>) -> Result<(), String> {
        let oldest = topic(replica.as_ref(), group, id)?.unwrap_or_default().oldest;
        let found = replica.events(id);
        let mut places: BTreeMap<(&[u8], u64), (u64, u64)> = BTreeMap::new();
        for event in &found {
            places.insert((event.producer.as_ref(), event.sequence), (event.offset, digest(&event.event.payload)));
        }
        let low = found.iter().map(|event| (event.producer.as_ref(), event.sequence));
        let mut lowest: BTreeMap<&[u8], u64> = BTreeMap::new();
        for (producer, sequence) in low {
            let first = lowest.entry(producer).or_insert(sequence);
            *first = (*first).min(sequence);
        }
        for ((_, producer), events) in self.events.range((id.0, Vec::new())..(id.0 + 1, Vec::new())) {
            let kept_from = lowest.get(producer.as_slice()).copied();
            for (sequence, event) in (1..).zip(events).filter(|(_, event)| event.acknowledged) {
                let gone = match event.offset {
                    Some(offset) => offset < oldest,
                    // its offset is not known; the producer's events stand in order
                    None => oldest > 0 && kept_from.is_none_or(|from| sequence < from),
                };
                let place = places.get(&(producer.as_slice(), sequence));
                let right = place.is_some_and(|(offset, payload)| {
                    event.offset.is_none_or(|known| known == *offset)
                        && event.payload.is_none_or(|sent| sent == *payload)
                });
                ensure(gone || right, || {
                    let (of, at, name) = (hex(producer), event.offset, status.replica);
                    let place =
                        place.map(|(offset, payload)| (offset, event.payload.is_none_or(|sent| sent == *payload)));
                    format!(
                        "event {sequence} of producer {of} was acknowledged in topic {id} at offset {at:?}; at replica {name} of \
                         group {group} there is {place:?} (offset, with its payload)"
                    )
                })?;
            }
        }
        Ok(())
    }
}

impl Invariant for AcknowledgedDurable {
    fn name(&self) -> &'static str {
        "acknowledged_durable"
    }

    fn see(&mut self, seen: &Seen, look: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Applied { peer, group, entry, .. } => {
                let known = self.groups.entry(*group).or_default();
                if known.terms.len() as u64 + 1 == entry.index {
                    known.terms.push(entry.term);
                }
                if entry.entry_type != EntryType::EntryNormal {
                    let replica = look.replicas(*group).into_iter().find(|replica| replica.peer() == *peer);
                    let status = replica.and_then(|replica| replica.status());
                    status.into_iter().for_each(|status| known.configured(&status.configuration));
                }
            }
            Seen::Leads { peer, group, .. } => {
                let replica = look.replicas(*group).into_iter().find(|replica| replica.peer() == *peer);
                let status = replica.and_then(|replica| replica.status());
                let known = self.groups.entry(*group).or_default();
                status.into_iter().for_each(|status| known.configured(&status.configuration));
            }
            Seen::Installed { peer, group, replica: id, index, .. } => {
                let replicas = look.replicas(*group);
                let replica = replicas.iter().find(|replica| replica.peer() == *peer);
                let flushed = replica.map_or(0, |replica| replica.flushed());
                ensure(flushed >= *index, || {
                    format!(
                        "replica {id} of group {group} says it has a snapshot at {index}; its rows on disk are at {flushed}"
                    )
                })?;
            }
            Seen::Publishes { topic, producer, first, payloads, .. } => {
                for (sequence, payload) in (*first..).zip(payloads) {
                    if let Some(event) = self.event(*topic, producer, sequence) {
                        event.payload.get_or_insert(digest(payload));
                    }
                }
            }
            Seen::Receipt { peer, group, topic, producer, first, count, offset, index, term } => {
                self.receipt(*peer, *group, *index, *term, look)?;
                self.note(*topic, producer, *first, *count, *offset);
            }
            Seen::Acknowledged { topic, producer, first, count, offset, .. } => {
                self.note(*topic, producer, *first, *count, *offset);
            }
            _ => {}
        }
        Ok(())
    }

    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        for (id, group) in &self.groups {
            let (index, term) = group.checked;
            if index > 0 {
                let durable = group.is_durable(*id, index, term, false, look);
                durable.map_err(|text| format!("what was acknowledged is not durable any more: {text}"))?;
            }
        }
        Ok(())
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            let voters = voters(look, group);
            for (id, _) in topics(&voters) {
                voters.iter().try_for_each(|voter| self.has_all(group, id, voter))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, entry, holds, stored};
    use super::*;

    fn receipt(index: u64, offset: Option<u64>) -> Seen {
        let producer = vec![1; 16];
        Seen::Receipt { peer: 1, group: GROUP, topic: 11, producer, first: 1, count: 1, offset, index, term: 1 }
    }

    fn leads() -> Seen {
        Seen::Leads { peer: 1, group: GROUP, replica: 1, term: 1 }
    }

    /// Three replicas with one event, synced everywhere.
    fn world() -> World {
        let mut world = World::three();
        world.add(GROUP, &[(11, "in/a")]);
        world.each(GROUP, |fake| {
            fake.entries = vec![entry(1, 1, "a")];
            fake.fill(GROUP, 11, vec![stored(0, 1, 1, "p")]);
        });
        world
    }

    #[test]
    fn a_receipt_stands_on_a_synced_majority() {
        let mut world = world();
        world.one(2).synced = 0;
        holds(&mut AcknowledgedDurable::default(), &world, &[leads(), receipt(1, Some(0))]);
        world.one(3).synced = 0;
        caught(&mut AcknowledgedDurable::default(), &world, &[leads(), receipt(1, Some(0))]);
        world.robbed = vec![(3, 1)];
        holds(&mut AcknowledgedDurable::default(), &world, &[leads(), receipt(1, Some(0))]);
        world.robbed = vec![(3, 0)];
        caught(&mut AcknowledgedDurable::default(), &world, &[leads(), receipt(1, Some(0))]);
        world.robbed = vec![(3, 1)];
        world.one(1).entries = vec![entry(1, 2, "x")];
        caught(&mut AcknowledgedDurable::default(), &world, &[leads(), receipt(1, Some(0))]);
    }

    #[test]
    fn an_entry_that_left_the_log_is_in_flushed_rows() {
        let mut world = world();
        world.one(2).synced = 0;
        world.one(3).before = 1;
        let applied = Seen::Applied { peer: 1, group: GROUP, replica: 1, entry: entry(1, 1, "a") };
        world.one(3).flushed = 1;
        world.one(3).before = 2;
        caught(&mut AcknowledgedDurable::default(), &world, &[applied.clone(), receipt(1, Some(0))]);
        world.one(3).flushed = 2;
        holds(&mut AcknowledgedDurable::default(), &world, &[applied, receipt(1, Some(0))]);
    }

    #[test]
    fn what_was_acknowledged_stays_durable() {
        let mut world = world();
        let mut invariant = AcknowledgedDurable::default();
        let applied = Seen::Applied { peer: 1, group: GROUP, replica: 1, entry: entry(1, 1, "a") };
        holds(&mut invariant, &world, &[leads(), applied, receipt(1, Some(0))]);
        world.one(2).entries.clear();
        assert_eq!(invariant.look(&world), Ok(()));
        (world.one(3).before, world.one(3).flushed) = (9, 5);
        assert!(invariant.look(&world).is_err());
        world.one(3).status.hollow = true;
        assert_eq!(invariant.look(&world), Ok(()));
    }

    #[test]
    fn a_snapshot_that_is_there_is_on_disk() {
        let installed = Seen::Installed { peer: 3, group: GROUP, replica: 3, index: 7, term: 1 };
        let mut world = world();
        world.one(3).flushed = 7;
        holds(&mut AcknowledgedDurable::default(), &world, std::slice::from_ref(&installed));
        world.one(3).flushed = 6;
        caught(&mut AcknowledgedDurable::default(), &world, &[installed]);
    }

    #[test]
    fn a_joint_configuration_needs_both_majorities() {
        let mut world = world();
        world.configure(|c| c.voters_outgoing = vec![2, 3, 4]);
        holds(&mut AcknowledgedDurable::default(), &world, &[receipt(1, Some(0))]);
        world.one(3).synced = 0;
        caught(&mut AcknowledgedDurable::default(), &world, &[receipt(1, Some(0))]);
    }

    #[test]
    fn a_learner_does_not_count() {
        let mut world = world();
        world.configure(|c| (c.voters, c.learners) = (vec![1, 2], vec![3]));
        world.one(2).synced = 0;
        caught(&mut AcknowledgedDurable::default(), &world, &[receipt(1, Some(0))]);
    }

    #[test]
    fn acknowledged_events_stand_at_their_offsets_in_the_end() {
        let publishes = |payload: &str| {
            let payloads = vec![payload.as_bytes().to_vec()];
            Seen::Publishes { client: 9, topic: 11, producer: vec![1; 16], first: 1, payloads }
        };
        let mut world = world();
        holds(&mut AcknowledgedDurable::default(), &world, &[publishes("p"), receipt(1, Some(0))]);
        holds(&mut AcknowledgedDurable::default(), &world, &[publishes("p"), receipt(1, None)]);
        caught(&mut AcknowledgedDurable::default(), &world, &[publishes("q"), receipt(1, Some(0))]);
        caught(&mut AcknowledgedDurable::default(), &world, &[publishes("p"), receipt(1, Some(1))]);
        world.one(3).events.clear();
        caught(&mut AcknowledgedDurable::default(), &world, &[receipt(1, None)]);
    }
}
