//! An event is appended once: a producer's sequence stands at one offset of a topic, an offset has one event, and each
//! producer's events stand in the order of their sequences.
//!
//! Source: DESIGN, promise 2 ("a retry never doubles") and the publisher's part of promise 7 ("in order, once").

use std::collections::BTreeMap;

use canal_proto::TopicId;

use super::ensure;
use super::read::{hex, topics, voters};
use crate::sim::seen::{Invariant, Look, Seen};

/// Where events were seen to stand.
#[derive(Debug, Default)]
pub(super) struct ProducerOnce {
    /// By topic and producer, for each sequence from 1 on: its offset, once it is known.
    offsets: BTreeMap<(u64, Vec<u8>), Vec<Option<u64>>>,
    /// By topic and offset: producer and sequence.
    events: BTreeMap<(u64, u64), (Vec<u8>, u64)>,
}

impl ProducerOnce {
    fn stands(&mut self, topic: u64, producer: &[u8], sequence: u64, offset: u64) -> Result<(), String> {
        if producer.is_empty() {
            // a function of the topic's own group made it
            return Ok(());
        }
        let of = hex(producer);
        let Some(at) = sequence.checked_sub(1).and_then(|at| usize::try_from(at).ok()) else {
            return Err(format!("an event of producer {of} in topic {topic} has no sequence"));
        };
        let offsets = self.offsets.entry((topic, producer.to_vec())).or_default();
        if offsets.len() <= at {
            offsets.resize(at + 1, None);
        }
        let near = |at: Option<usize>| at.and_then(|at| offsets.get(at)).copied().flatten();
        let (before, known, behind) = (near(at.checked_sub(1)), near(Some(at)), near(Some(at + 1)));
        ensure(known.is_none_or(|known| known == offset), || {
            format!("event {sequence} of producer {of} stands in topic {topic} at offsets {known:?} and {offset}")
        })?;
        if known.is_some() {
            return Ok(());
        }
        let ordered = before.is_none_or(|before| before < offset) && behind.is_none_or(|behind| offset < behind);
        ensure(ordered, || {
            format!(
                "event {sequence} of producer {of} stands in topic {topic} at {offset}, its neighbours at {before:?}, {behind:?}"
            )
        })?;
        if let Some(place) = offsets.get_mut(at) {
            *place = Some(offset);
        }
        let other = self.events.insert((topic, offset), (producer.to_vec(), sequence));
        ensure(other.is_none(), || {
            format!("offset {offset} of topic {topic} has {other:?} and event {sequence} of {of}")
        })
    }

    fn stand(
        &mut self,
        topic: u64,
        producer: &[u8],
        first: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<(), String> {
        let Some(offset) = offset else { return Ok(()) };
        (0..count).try_for_each(|n| self.stands(topic, producer, first + n, offset + n))
    }
}

impl Invariant for ProducerOnce {
    fn name(&self) -> &'static str {
        "producer_once"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Receipt { topic, producer, first, count, offset, .. }
            | Seen::Acknowledged { topic, producer, first, count, offset, .. } => {
                self.stand(*topic, producer, *first, *count, *offset)
            }
            Seen::Delivered { topic, offset, producer, sequence, .. } => {
                self.stands(*topic, producer, *sequence, *offset)
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            let voters = voters(look, group);
            let topics = topics(&voters);
            let Some((replica, _)) = voters.first() else { continue };
            for (TopicId(topic), _) in topics {
                let mut last: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
                for event in replica.events(TopicId(topic)) {
                    self.stands(topic, &event.producer, event.sequence, event.offset)?;
                    let before = last.insert(event.producer.to_vec(), event.sequence);
                    let follows = before.is_none_or(|before| event.sequence == before + 1) || event.producer.is_empty();
                    ensure(follows, || {
                        let of = hex(&event.producer);
                        let (offset, sequence) = (event.offset, event.sequence);
                        format!(
                            "in topic {topic}, event {sequence} of producer {of} stands at {offset}, behind its event {before:?}"
                        )
                    })?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, holds, stored};
    use super::*;

    fn receipt(producer: u8, first: u64, count: u64, offset: u64) -> Seen {
        let producer = vec![producer; 16];
        let offset = Some(offset);
        Seen::Receipt { peer: 1, group: GROUP, topic: 11, producer, first, count, offset, index: 1, term: 1 }
    }

    fn delivered(producer: u8, sequence: u64, offset: u64) -> Seen {
        let producer = vec![producer; 16];
        Seen::Delivered { client: 9, topic: 11, offset, producer, sequence, payload: Vec::new() }
    }

    #[test]
    fn a_sequence_has_one_offset_and_an_offset_one_event() {
        let world = World::three();
        let mut invariant = ProducerOnce::default();
        holds(
            &mut invariant,
            &world,
            &[receipt(1, 1, 3, 0), receipt(2, 1, 1, 3), receipt(1, 2, 2, 1), delivered(2, 1, 3)],
        );
        holds(&mut invariant, &world, &[delivered(1, 6, 9)]);
        caught(&mut invariant, &world, &[receipt(1, 2, 1, 5)]);
        caught(&mut invariant, &world, &[delivered(3, 1, 2)]);
        caught(&mut invariant, &world, &[delivered(1, 5, 12)]);
        caught(&mut invariant, &world, &[delivered(1, 0, 20)]);
    }

    #[test]
    fn what_stands_in_the_end_is_looked_at() {
        let end = |events: &[(u8, u64)]| {
            let mut world = World::three();
            world.add(GROUP, &[(11, "in/a")]);
            let events: Vec<_> =
                (0..).zip(events).map(|(offset, (of, sequence))| stored(offset, *of, *sequence, "")).collect();
            world.each(GROUP, |fake| fake.fill(GROUP, 11, events.clone()));
            let mut invariant = ProducerOnce::default();
            assert_eq!(invariant.see(&receipt(1, 1, 1, 0), &world), Ok(()));
            invariant.end(&world)
        };
        assert_eq!(end(&[(1, 1), (2, 1), (1, 2), (2, 2)]), Ok(()));
        assert!(end(&[(1, 1), (2, 1), (2, 1)]).is_err());
        assert!(end(&[(1, 1), (2, 2), (2, 1)]).is_err());
        assert!(end(&[(2, 1), (1, 1)]).is_err());
        assert!(end(&[(1, 1), (1, 3)]).is_err());
    }
}
