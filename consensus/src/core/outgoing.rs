//! What a group's outbox sends next: reads of its rows, for whoever delivers.
//!
//! Each topic's queue is published there under the group's own producer id, with the numbers in the queue as sequences: what
//! is sent twice is appended once. An effect leaves the queue by an entry of this group ([`Batch::acknowledged`]), after the
//! other group has it on disk; a crash in between sends it again.

use canal_proto::event::Event;
use canal_proto::log::{AppendItem, OutboxAck, Target};
use canal_proto::{GroupId, ProducerId, TopicId};

use super::keys::{Keys, Table, end_of, tail_number};
use super::kv::{Kv, KvError};
use super::rows::{OutboxRow, OutboxTopic};
use super::txn::decode;

/// All rows of a table that has a bound of its own.
const ALL: usize = usize::MAX / 2;

/// Topics elsewhere for which effects wait.
///
/// # Errors
/// When the store fails, or a row is damaged.
pub fn queues(kv: &dyn Kv, group: GroupId) -> Result<Vec<(TopicId, OutboxTopic)>, KvError> {
    let prefix = Keys(group).one(Table::OutboxTopics);
    let mut queues = Vec::new();
    for (key, value) in kv.scan(&prefix, &end_of(&prefix), ALL, false)? {
        let queue: OutboxTopic = decode(&key, value)?;
        if queue.acked < queue.last {
            queues.push((TopicId(tail_number(&key)), queue));
        }
    }
    Ok(queues)
}

/// The front of a topic's queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Where it goes.
    pub target: Target,
    /// Number of the first effect in its queue.
    pub first: u64,
    /// The effects.
    pub events: Vec<Event>,
}

/// The first effects that wait for a topic: at most `max`, and of no more than about `max_bytes` (one in any case).
///
/// # Errors
/// As [`queues`].
pub fn batch(
    kv: &dyn Kv,
    group: GroupId,
    topic: TopicId,
    max: usize,
    max_bytes: usize,
) -> Result<Option<Batch>, KvError> {
    let prefix = Keys(group).topic_only(Table::Outbox, topic);
    let mut batch: Option<Batch> = None;
    let mut bytes = 0;
    for (key, value) in kv.scan(&prefix, &end_of(&prefix), max, false)? {
        let OutboxRow { emit } = decode(&key, value)?;
        bytes += emit.event.payload.len() + emit.event.key.len();
        match &mut batch {
            None => {
                batch = Some(Batch { target: emit.target, first: tail_number(&key), events: vec![emit.event] });
            }
            Some(_) if bytes > max_bytes => break,
            Some(batch) => batch.events.push(emit.event),
        }
    }
    Ok(batch)
}

impl Batch {
    /// How many effects it has.
    pub fn count(&self) -> u64 {
        self.events.len() as u64
    }

    /// What is appended where it goes. `group` is the one whose outbox this is.
    pub fn item(&self, group: GroupId) -> AppendItem {
        AppendItem {
            topic: self.target.topic,
            producer: ProducerId::of_outbox(group).to_vec().into(),
            first_sequence: self.first,
            events: self.events.clone(),
            origin: group.0,
        }
    }

    /// What this group is told once the other one has taken so many of them, as its receipt says; `None`: nothing was taken.
    pub fn acknowledged(&self, taken: u64) -> Option<OutboxAck> {
        let through = (self.first + taken.min(self.count())).checked_sub(1).filter(|_| taken > 0)?;
        Some(OutboxAck { topic: self.target.topic, through, refused: false })
    }

    /// What this group is told when the topic is gone for good.
    pub fn refused(&self) -> OutboxAck {
        let through = (self.first + self.count()).saturating_sub(1);
        OutboxAck { topic: self.target.topic, through, refused: true }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_proto::log::Emit;
    use prost::Message as _;

    use super::*;
    use crate::core::kv::{MemoryKv, WriteBatch};

    const GROUP: GroupId = GroupId(7);

    /// Three effects for topic 3, numbered from 5; nothing for topic 4 any more.
    fn rows() -> MemoryKv {
        let keys = Keys(GROUP);
        let mut batch = WriteBatch::default();
        let mut put = |key, bytes: Vec<u8>| batch.ops.insert(key, Some(bytes.into()));
        for (topic, queue) in [(3, OutboxTopic { last: 7, acked: 4 }), (4, OutboxTopic { last: 2, acked: 2 })] {
            put(keys.topic_only(Table::OutboxTopics, TopicId(topic)), queue.encode_to_vec());
        }
        let target = Target { topic: 3, group: 8, name: "t".into() };
        for number in 5..8 {
            let event = Event::new(format!("payload {number}"));
            let row = OutboxRow { emit: Emit { target: target.clone(), event, dead: target.clone() } };
            put(keys.topic(Table::Outbox, TopicId(3), number), row.encode_to_vec());
        }
        let kv = MemoryKv::default();
        kv.write(&batch);
        kv
    }

    #[test]
    fn only_queues_with_effects_are_served() {
        let queues = queues(&rows(), GROUP).unwrap();
        assert_eq!(queues, [(TopicId(3), OutboxTopic { last: 7, acked: 4 })]);
        assert_eq!(batch(&rows(), GROUP, TopicId(4), 9, 9).unwrap(), None);
    }

    #[test]
    fn a_batch_is_bounded_and_names_what_it_sends() {
        let kv = rows();
        let take = |max, bytes| batch(&kv, GROUP, TopicId(3), max, bytes).unwrap().unwrap();
        let counts = [take(9, 1000), take(2, 1000), take(9, 18), take(9, 0)].map(|batch| batch.count());
        assert_eq!(counts, [3, 2, 2, 1]);
        let batch = take(9, 1000);
        let item = batch.item(GROUP);
        assert_eq!((item.topic, item.first_sequence, item.events.len(), item.origin), (3, 5, 3, 7));
        assert_eq!(item.producer, ProducerId::of_outbox(GROUP).to_vec());
        let ack = |taken| batch.acknowledged(taken).map(|ack| (ack.topic, ack.through, ack.refused));
        assert_eq!(
            [ack(0), ack(2), ack(3), ack(9)],
            [None, Some((3, 6, false)), Some((3, 7, false)), Some((3, 7, false))]
        );
        assert_eq!(batch.refused(), OutboxAck { topic: 3, through: 7, refused: true });
    }
}
