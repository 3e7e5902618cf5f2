//! What a group has for another gets there once, and in the order of its queue.
//!
//! Source: DESIGN, promise 4 ("effects for another group go through the outbox and are deduplicated by origin there"), and
//! "outbox: a group's replicated queue of effects meant for other groups". A number of a queue means the same effect
//! whenever it is sent; it is only taken out after the other group's receipt; and in the end the other topic has exactly
//! the numbers 1 to the queue's last.

use std::collections::BTreeMap;

use canal_consensus::core::keys::{Keys, Table, end_of, tail_number};
use canal_consensus::core::kv::Kv as _;
use canal_consensus::core::rows::{OutboxRow, OutboxTopic};
use canal_proto::event::Stored;
use canal_proto::log::{Command, Kind};
use canal_proto::{GroupId, ProducerId, TopicId};
use prost::Message as _;
use raft::eraftpb::Entry;

use super::ensure;
use super::read::{OUTBOX_ACK, digest, kind, row, topics, voters};
use crate::sim::around::Machine;
use crate::sim::seen::{Invariant, Look, Seen};

/// What was seen of queues.
#[derive(Debug, Default)]
pub(super) struct OutboxOnce {
    queues: BTreeMap<(GroupId, u64), Queue>,
    /// The group behind the producer id of an outbox.
    origins: BTreeMap<Vec<u8>, GroupId>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Stands for the effects with the numbers 1, 2, ….
    effects: Vec<Option<u64>>,
    /// The last number for which there was a receipt.
    received: u64,
}

impl Queue {
    /// Notes what a number means; false when it meant something else before.
    fn means(&mut self, number: u64, effect: u64) -> bool {
        let Some(at) = number.checked_sub(1).and_then(|at| usize::try_from(at).ok()) else { return false };
        if self.effects.len() <= at {
            self.effects.resize(at + 1, None);
        }
        self.effects.get_mut(at).is_some_and(|known| *known.get_or_insert(effect) == effect)
    }
}

impl OutboxOnce {
    /// The group whose outbox sends as this producer.
    fn origin(&mut self, producer: &[u8], look: &dyn Look) -> Option<GroupId> {
        if self.origins.is_empty() {
            let groups = look.groups().into_iter();
            self.origins = groups.map(|group| (ProducerId::of_outbox(group).to_vec(), group)).collect();
        }
        self.origins.get(producer).copied()
    }

    fn sends(
        &mut self,
        peer: Machine,
        group: GroupId,
        topic: u64,
        numbers: std::ops::Range<u64>,
        look: &dyn Look,
    ) -> Result<(), String> {
        let replicas = look.replicas(group);
        let Some(replica) = replicas.iter().find(|replica| replica.peer() == peer) else { return Ok(()) };
        let queue = self.queues.entry((group, topic)).or_default();
        ensure(numbers.start <= queue.received + 1, || {
            let (first, received) = (numbers.start, queue.received);
            format!(
                "group {group} goes on with effect {first} for topic {topic}, which has received those to {received}"
            )
        })?;
        for number in numbers {
            let key = Keys(group).topic(Table::Outbox, TopicId(topic), number);
            let Some(found) = row::<OutboxRow>(replica.as_ref(), &key)? else { continue };
            ensure(queue.means(number, digest(&found.emit.event.payload)), || {
                format!(
                    "effect {number} of group {group} for topic {topic} is another now than it was: {:?}",
                    found.emit.event
                )
            })?;
        }
        Ok(())
    }

    fn taken_out(&mut self, group: GroupId, entry: &Entry) -> Result<(), String> {
        let command = Command::decode(entry.data.as_ref()).map_err(|e| e.to_string())?;
        let Some(Kind::OutboxAck(ack)) = command.kind else { return Ok(()) };
        let queue = self.queues.entry((group, ack.topic)).or_default();
        if ack.refused {
            // they went to their dead-letter topics
            queue.received = queue.received.max(ack.through);
        }
        ensure(ack.through <= queue.received, || {
            let (through, topic, received) = (ack.through, ack.topic, queue.received);
            format!(
                "group {group} took effects to {through} for topic {topic} out of its outbox; received are {received}"
            )
        })
    }

    fn arrived(&mut self, group: GroupId, topic: u64, number: u64, payload: &[u8]) -> Result<(), String> {
        let queue = self.queues.entry((group, topic)).or_default();
        ensure(queue.means(number, digest(payload)), || {
            let payload = String::from_utf8_lossy(payload);
            format!(
                "effect {number} of group {group} arrived in topic {topic} as `{payload}`, which is not what was sent"
            )
        })
    }

    /// Whether a topic has just what a queue held.
    fn all_there(
        &mut self,
        group: GroupId,
        topic: TopicId,
        queue: OutboxTopic,
        events: &[Stored],
    ) -> Result<(), String> {
        let OutboxTopic { last, acked } = queue;
        ensure(last == acked, || format!("group {group} still has effects {acked} to {last} for topic {topic}"))?;
        let producer = ProducerId::of_outbox(group).to_vec();
        let mut next = 1;
        for event in events.iter().filter(|event| event.producer == producer) {
            ensure(event.sequence == next, || {
                let (found, offset) = (event.sequence, event.offset);
                format!("topic {topic} has effect {found} of group {group} at offset {offset}; {next} was next")
            })?;
            self.arrived(group, topic.0, event.sequence, &event.event.payload)?;
            next += 1;
        }
        ensure(next == last + 1, || format!("topic {topic} has effects to {} of group {group}, of {last}", next - 1))
    }
}

impl Invariant for OutboxOnce {
    fn name(&self) -> &'static str {
        "outbox_once"
    }

    fn see(&mut self, seen: &Seen, look: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Sends { peer, group, topic, first, count } => {
                self.sends(*peer, *group, *topic, *first..first + count, look)
            }
            Seen::Receipt { topic, producer, first, count, .. } => {
                if let Some(group) = self.origin(producer, look) {
                    let queue = self.queues.entry((group, *topic)).or_default();
                    queue.received = queue.received.max((first + count).saturating_sub(1));
                }
                Ok(())
            }
            Seen::Applied { group, entry, .. } if kind(entry) == OUTBOX_ACK => self.taken_out(*group, entry),
            Seen::Delivered { topic, producer, sequence, payload, .. } => match self.origin(producer, look) {
                Some(group) => self.arrived(group, *topic, *sequence, payload),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        let mut events: BTreeMap<TopicId, Vec<Stored>> = BTreeMap::new();
        for group in look.groups() {
            let voters = voters(look, group);
            if let Some((replica, _)) = voters.first() {
                events.extend(topics(&voters).into_iter().map(|(id, _)| (id, replica.events(id))));
            }
        }
        for group in look.groups() {
            let voters = voters(look, group);
            let Some((replica, _)) = voters.first() else { continue };
            let prefix = Keys(group).one(Table::OutboxTopics);
            for (key, value) in replica.kv().scan(&prefix, &end_of(&prefix), usize::MAX, false).map_err(|e| e.0)? {
                let topic = TopicId(tail_number(&key));
                let queue = OutboxTopic::decode(value).map_err(|e| e.to_string())?;
                self.all_there(group, topic, queue, events.get(&topic).map_or(&[], Vec::as_slice))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use canal_proto::Event;
    use canal_proto::log::{Emit, OutboxAck};

    use super::super::fake::{GROUP, World, caught, entry, holds};
    use super::*;

    const OTHER: GroupId = GroupId(3);
    const TOPIC: u64 = 21;

    fn origin() -> Vec<u8> {
        ProducerId::of_outbox(GROUP).to_vec()
    }

    fn world(arrived: &[(u64, &str)], last: u64, acked: u64) -> World {
        let mut world = World::three();
        world.add(OTHER, &[(TOPIC, "out/a")]);
        let event = |(offset, (sequence, payload)): (u64, &(u64, &str))| Stored {
            offset,
            event: Event::new(payload.as_bytes().to_vec()),
            producer: origin().into(),
            sequence: *sequence,
        };
        let events: Vec<Stored> = (0..).zip(arrived).map(event).collect();
        world.each(OTHER, |fake| fake.fill(OTHER, TOPIC, events.clone()));
        world.each(GROUP, |fake| {
            fake.put(Keys(GROUP).topic_only(Table::OutboxTopics, TopicId(TOPIC)), &OutboxTopic { last, acked });
            for (number, payload) in [(1, "a"), (2, "b")] {
                let emit = Emit { event: Event::new(payload), ..Emit::default() };
                fake.put(Keys(GROUP).topic(Table::Outbox, TopicId(TOPIC), number), &OutboxRow { emit });
            }
        });
        world
    }

    fn sends() -> Seen {
        Seen::Sends { peer: 1, group: GROUP, topic: TOPIC, first: 1, count: 2 }
    }

    fn receipt(first: u64, count: u64) -> Seen {
        let producer = origin();
        Seen::Receipt {
            peer: 2,
            group: OTHER,
            topic: TOPIC,
            producer,
            first,
            count,
            offset: Some(0),
            index: 1,
            term: 1,
        }
    }

    fn ack(through: u64, refused: bool) -> Seen {
        let kind = Some(Kind::OutboxAck(OutboxAck { topic: TOPIC, through, refused }));
        let data = Command { time_ms: 5, kind }.encode_to_vec();
        let entry = Entry { data: data.into(), ..entry(9, 1, "") };
        Seen::Applied { peer: 1, group: GROUP, replica: 1, entry }
    }

    #[test]
    fn nothing_is_taken_out_before_its_receipt() {
        let world = world(&[(1, "a"), (2, "b")], 2, 2);
        let later = Seen::Sends { peer: 1, group: GROUP, topic: TOPIC, first: 2, count: 1 };
        caught(&mut OutboxOnce::default(), &world, &[sends(), later.clone()]);
        holds(&mut OutboxOnce::default(), &world, &[sends(), receipt(1, 1), later]);
        holds(&mut OutboxOnce::default(), &world, &[sends(), receipt(1, 2), ack(2, false)]);
        holds(&mut OutboxOnce::default(), &world, &[sends(), ack(2, true)]);
        caught(&mut OutboxOnce::default(), &world, &[sends(), receipt(1, 1), ack(2, false)]);
    }

    #[test]
    fn a_number_means_one_effect() {
        let delivered = |payload: &str| {
            let (producer, payload) = (origin(), payload.as_bytes().to_vec());
            Seen::Delivered { client: 9, topic: TOPIC, offset: 0, producer, sequence: 1, payload }
        };
        let good = world(&[(1, "a"), (2, "b")], 2, 2);
        let mut invariant = OutboxOnce::default();
        holds(&mut invariant, &good, &[sends(), delivered("a")]);
        caught(&mut invariant, &good, &[delivered("x")]);
        let mut changed = world(&[(1, "a"), (2, "b")], 2, 2);
        let emit = Emit { event: Event::new("y"), ..Emit::default() };
        changed.one(1).put(Keys(GROUP).topic(Table::Outbox, TopicId(TOPIC), 1), &OutboxRow { emit });
        caught(&mut invariant, &changed, &[sends()]);
    }

    #[test]
    fn all_of_a_queue_is_there_in_order_in_the_end() {
        let end = |arrived: &[(u64, &str)], last, acked| {
            let world = world(arrived, last, acked);
            let mut invariant = OutboxOnce::default();
            assert_eq!(invariant.see(&sends(), &world), Ok(()));
            invariant.end(&world)
        };
        assert_eq!(end(&[(1, "a"), (2, "b")], 2, 2), Ok(()));
        assert!(end(&[(1, "a")], 2, 2).is_err());
        assert!(end(&[(1, "a"), (2, "b")], 2, 1).is_err());
        assert!(end(&[(1, "a"), (2, "b"), (2, "b")], 2, 2).is_err());
        assert!(end(&[(2, "b"), (1, "a")], 2, 2).is_err());
        assert!(end(&[(1, "a"), (2, "c")], 2, 2).is_err());
        assert!(end(&[(1, "a"), (2, "b"), (3, "c")], 2, 2).is_err());
    }
}
