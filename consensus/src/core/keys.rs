//! Keys of a group's rows. Every key begins with the group's id (8 bytes, big-endian) and a byte that names the table;
//! numbers in keys are big-endian, so that a scan goes in their order.
//!
//! Most rows are the same at all replicas that have applied the same entries. Some are a replica's own: they stand or
//! not, as its log and its files do. [`Locals`] tells which; applying an entry never looks at those.

use std::collections::BTreeMap;

use bytes::Bytes;
use canal_proto::{GroupId, TopicId, TriggerId};

use super::kv::{Kv, KvError};
use super::rows::Topic;
use super::txn::decode;

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
    /// Durable subscriptions: topic, name → `Subscription`.
    Subscriptions = b'd',
    /// Segments: topic, first offset → `Segment`.
    Segments = b'g',
    /// Steps in which the replicas changed: number → `Step`.
    Steps = b'h',
    /// Events that came with a snapshot and are not in segments yet: topic, offset → `Stored`.
    Inline = b'i',
    /// Steps recorded so far: `Counter`.
    StepCount = b'j',
    /// Index of the last entry whose events are in segments: `Counter`.
    Sealed = b'l',
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
    /// Segments that another took the place of, until its file is here: topic, first offset → `Segment`.
    Replaced = b'r',
    /// Cursors: trigger, topic → `Cursor`.
    Cursors = b'u',
    /// What the replica was created with: `Seed`. Its own, so that it is known who else holds the group when the log, which
    /// has it as well, can't be read.
    Seed = b'y',
    /// Topics that are gone and whose rows are still to be removed: topic → nothing.
    Gone = b'x',
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

/// Tables whose keys begin with a topic and whose rows go with it, each replica removing them in its own time.
pub const OF_TOPIC: [Table; 6] =
    [Table::Events, Table::Inline, Table::Producers, Table::Replaced, Table::Segments, Table::Subscriptions];

/// Tells the rows that are a replica's own from those that are the same everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locals {
    sealed: BTreeMap<TopicId, u64>,
}

impl Locals {
    /// As the rows of a group stand.
    ///
    /// # Errors
    /// When the store fails, or the row of a topic is damaged.
    pub fn load(kv: &dyn Kv, group: GroupId) -> Result<Self, KvError> {
        let prefix = Keys(group).one(Table::Topics);
        let mut sealed = BTreeMap::new();
        for (key, value) in kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)? {
            let topic: Topic = decode(&key, value)?;
            sealed.insert(TopicId(tail_number(&key)), topic.sealed);
        }
        Ok(Self { sealed })
    }

    /// Whether the row at a key is the replica's own: a locator below its topic's sealed offset, an event that came with
    /// a snapshot, a segment whose file is still needed, a row of a topic that is gone, or what the replica was created with.
    /// Such rows are left out of snapshots and of comparisons.
    pub fn is_local(&self, key: &[u8]) -> bool {
        let topic = || number_at(key, 9).map(TopicId);
        let sealed = || topic().and_then(|topic| self.sealed.get(&topic));
        #[cfg(feature = "mutants")]
        if crate::mutants::is(crate::mutants::Mutant::DedupLostInSnapshot)
            && key.get(8) == Some(&(Table::Producers as u8))
        {
            return true;
        }
        #[cfg(feature = "mutants")]
        if crate::mutants::is(crate::mutants::Mutant::CursorsLostInSnapshot)
            && key.get(8) == Some(&(Table::Subscriptions as u8))
        {
            return true;
        }
        match key.get(8) {
            Some(table)
                if [Table::Gone, Table::Inline, Table::Replaced, Table::Seed]
                    .iter()
                    .any(|own| *own as u8 == *table) =>
            {
                true
            }
            Some(table) if *table == Table::Events as u8 => sealed().is_none_or(|sealed| tail_number(key) < *sealed),
            Some(table) if OF_TOPIC.iter().any(|of_topic| *of_topic as u8 == *table) => sealed().is_none(),
            _ => false,
        }
    }
}

/// The number in the eight bytes of a key from `at` on.
pub fn number_at(key: &[u8], at: usize) -> Option<u64> {
    key.get(at..)?.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
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
        assert_eq!(number_at(&keys.topic(Table::Events, TopicId(2), 300), 9), Some(2));
        assert_eq!(number_at(b"12345678e", 9), None);
    }

    #[test]
    fn a_replicas_own_rows_are_told_apart() {
        let keys = Keys(GroupId(1));
        let locals = Locals { sealed: BTreeMap::from([(TopicId(2), 10)]) };
        let own = [
            keys.topic(Table::Events, TopicId(2), 9),
            keys.topic(Table::Events, TopicId(3), 20),
            keys.topic(Table::Inline, TopicId(2), 10),
            keys.topic(Table::Segments, TopicId(3), 0),
            keys.make(Table::Producers, &[&3u64.to_be_bytes(), &[7; 16]]),
            keys.make(Table::Subscriptions, &[&3u64.to_be_bytes(), b"s"]),
            keys.topic_only(Table::Gone, TopicId(3)),
            keys.topic(Table::Replaced, TopicId(2), 0),
            keys.one(Table::Seed),
        ];
        let common = [
            keys.topic(Table::Events, TopicId(2), 10),
            keys.topic(Table::Segments, TopicId(2), 0),
            keys.make(Table::Producers, &[&2u64.to_be_bytes(), &[7; 16]]),
            keys.make(Table::Subscriptions, &[&2u64.to_be_bytes(), b"s"]),
            keys.topic_only(Table::Topics, TopicId(2)),
            keys.topic(Table::Outbox, TopicId(3), 1),
            keys.state("b", "k"),
            keys.one(Table::Applied),
        ];
        for key in own {
            assert!(locals.is_local(&key), "{key:?}");
        }
        for key in common {
            assert!(!locals.is_local(&key), "{key:?}");
        }
    }
}
