//! Keys of a group's rows. Every key begins with the group's id (8 bytes, big-endian) and a byte that names the table;
//! numbers in keys are big-endian, so that a scan goes in their order.

use bytes::Bytes;
use canal_proto::{GroupId, TopicId, TriggerId};

/// A table of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    /// `Applied`.
    Applied = b'a',
    /// Function state: bucket, 0, key → value.
    State = b'b',
    /// `Configuration`.
    Configuration = b'c',
    /// Where events stand: topic, first offset → `Locator`.
    Events = b'e',
    /// Records of runs: trigger, number → `ActivationRecord`.
    Activations = b'v',
    /// Records made so far: trigger → `Counter`.
    ActivationCount = b'n',
    /// Effects for other groups: topic, sequence → `OutboxRow`.
    Outbox = b'o',
    /// Producers: topic, producer → `Producer`.
    Producers = b'p',
    /// The outbox's topics: topic → `OutboxTopic`.
    OutboxTopics = b'q',
    /// Effects in the outbox: `Counter`.
    OutboxCount = b'w',
    /// `GroupSpec`.
    Spec = b's',
    /// Topics: topic → `Topic`.
    Topics = b't',
    /// Cursors: trigger, topic → `Cursor`.
    Cursors = b'u',
    /// Catalog, topics: name → `TopicInfo`.
    CatalogTopics = b'1',
    /// Catalog, groups: id → `GroupInfo`.
    CatalogGroups = b'2',
    /// Catalog, groups by name: name → id (8 bytes).
    CatalogGroupNames = b'3',
    /// Catalog, functions: name → `FunctionInfo`.
    CatalogFunctions = b'4',
    /// Catalog, triggers: name → `TriggerInfo`.
    CatalogTriggers = b'5',
    /// Catalog, components: hash, number of the piece → `BlobRow`.
    CatalogBlobs = b'6',
}

/// Makes the keys of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys(pub GroupId);

impl Keys {
    /// A key of `table` out of these parts.
    pub fn make(self, table: Table, parts: &[&[u8]]) -> Bytes {
        let mut key = Vec::with_capacity(9 + parts.iter().map(|part| part.len()).sum::<usize>());
        key.extend_from_slice(&self.0.0.to_be_bytes());
        key.push(table as u8);
        parts.iter().for_each(|part| key.extend_from_slice(part));
        key.into()
    }

    /// The only key of a table with one row.
    pub fn one(self, table: Table) -> Bytes {
        self.make(table, &[])
    }

    /// A key made of a topic and a number.
    pub fn topic(self, table: Table, topic: TopicId, number: u64) -> Bytes {
        self.make(table, &[&topic.0.to_be_bytes(), &number.to_be_bytes()])
    }

    /// A key made of a topic alone.
    pub fn topic_only(self, table: Table, topic: TopicId) -> Bytes {
        self.make(table, &[&topic.0.to_be_bytes()])
    }

    /// A trigger's cursor in a topic.
    pub fn cursor(self, trigger: TriggerId, topic: TopicId) -> Bytes {
        self.make(Table::Cursors, &[&trigger.0.to_be_bytes(), &topic.0.to_be_bytes()])
    }

    /// A row of function state.
    pub fn state(self, bucket: &str, key: &str) -> Bytes {
        self.make(Table::State, &[bucket.as_bytes(), &[0], key.as_bytes()])
    }

    /// How many bytes of a state row's key stand before what the function calls its key.
    pub fn state_prefix_len(bucket: &str) -> usize {
        9 + bucket.len() + 1
    }
}

/// The first key behind all that begin with `prefix`; empty when there is none.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}

/// The number in the last eight bytes of a key.
pub fn tail_number(key: &[u8]) -> u64 {
    key.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_pinned_and_sort_by_number() {
        let keys = Keys(GroupId(1));
        assert_eq!(
            keys.topic(Table::Events, TopicId(2), 3).as_ref(),
            b"\0\0\0\0\0\0\0\x01e\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03"
        );
        assert_eq!(keys.state("b", "k").as_ref(), b"\0\0\0\0\0\0\0\x01bb\0k");
        assert_eq!(tail_number(&keys.topic(Table::Events, TopicId(2), 300)), 300);
        assert!(keys.topic(Table::Events, TopicId(2), 255) < keys.topic(Table::Events, TopicId(2), 256));
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b"\xff\xff"), b"");
    }
}
