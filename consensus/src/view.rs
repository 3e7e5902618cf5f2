//! Reads of one group's applied state and log, from any thread.
//!
//! What a view sees is what this replica has applied: on a follower it may be behind. Events are found through their
//! locators and read from the Raft log, where they are stored once.

use std::sync::Arc;

use bytes::Bytes;
use canal_proto::catalog::{FunctionInfo, GroupInfo, TopicInfo, TriggerInfo};
use canal_proto::cursor::Cursor;
use canal_proto::event::Stored;
use canal_proto::log::{ActivationRecord, Command, GroupSpec, Kind, StateOp};
use canal_proto::{GroupId, TopicId, TriggerId};
use prost::Message;

use crate::core::keys::{Keys, Table, end_of, tail_number};
use crate::core::kv::{KvError, WriteBatch};
use crate::core::machine;
use crate::core::rows::{BlobRow, Locator, OutboxRow, OutboxTopic, Topic};
use crate::core::txn::{Txn, decode};
use crate::log_store::LogStore;
use crate::state_store::StateStore;

/// All rows of a table that has a bound of its own.
const ALL: usize = usize::MAX / 2;

/// Reads one group.
#[derive(Clone)]
pub struct View {
    group: GroupId,
    keys: Keys,
    kv: Arc<dyn StateStore>,
    log: LogStore,
}

impl View {
    pub(crate) fn new(group: GroupId, kv: Arc<dyn StateStore>, log: LogStore) -> Self {
        Self { group, keys: Keys(group), kv, log }
    }

    fn get<M: Message + Default>(&self, key: &[u8]) -> Result<Option<M>, KvError> {
        self.kv.get(key)?.map(|bytes| decode(key, bytes)).transpose()
    }

    fn scan<M: Message + Default>(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Bytes, M)>, KvError> {
        let rows = self.kv.scan(prefix, &end_of(prefix), limit, false)?;
        rows.into_iter().map(|(key, value)| decode(&key, value).map(|row| (key, row))).collect()
    }

    /// Index of the last entry applied.
    pub fn applied(&self) -> Result<u64, KvError> {
        let applied: Option<crate::core::rows::Applied> = self.get(&self.keys.one(Table::Applied))?;
        Ok(applied.unwrap_or_default().index)
    }

    /// What the group hosts.
    pub fn spec(&self) -> Result<GroupSpec, KvError> {
        Ok(self.get(&self.keys.one(Table::Spec))?.unwrap_or_default())
    }

    /// A topic, if the group hosts it.
    pub fn topic(&self, topic: TopicId) -> Result<Option<Topic>, KvError> {
        self.get(&self.keys.topic_only(Table::Topics, topic))
    }

    /// At most `max` events of a topic from offset `from` on, and no more than about `max_bytes`. Empty when there is
    /// none yet.
    ///
    /// # Errors
    /// When the store fails, or an entry that was applied is no longer in the log.
    pub fn events(&self, topic: TopicId, from: u64, max: usize, max_bytes: usize) -> Result<Vec<Stored>, KvError> {
        let prefix = self.keys.topic_only(Table::Events, topic);
        let start = self.keys.topic(Table::Events, topic, from);
        let behind = self.keys.topic(Table::Events, topic, from.saturating_add(1));
        let first = self.kv.scan(&prefix, &behind, 1, true)?;
        let start = first.into_iter().next().map_or(start, |(key, _)| key);
        let mut events = Vec::new();
        let mut bytes = 0;
        for (key, value) in self.kv.scan(&start, &end_of(&prefix), max, false)? {
            let locator: Locator = decode(&key, value)?;
            let base = tail_number(&key);
            if base + u64::from(locator.count) <= from {
                continue;
            }
            for event in self.at(topic, base, locator)? {
                if event.offset < from {
                    continue;
                }
                bytes += event.event.encoded_len();
                if events.len() >= max || (bytes > max_bytes && !events.is_empty()) {
                    return Ok(events);
                }
                events.push(event);
            }
        }
        Ok(events)
    }

    /// The events that stand at one place of the log.
    fn at(&self, topic: TopicId, base: u64, locator: Locator) -> Result<Vec<Stored>, KvError> {
        let missing =
            || KvError(format!("group {}: entry {} holds events, but is not in the log", self.group, locator.index));
        let entry = self.log.entry(self.group, locator.index).map_err(|e| KvError(e.to_string()))?;
        let command = Command::decode(entry.ok_or_else(missing)?.data).map_err(|e| KvError(e.to_string()))?;
        let part = locator.part as usize;
        let events = match command.kind {
            Some(Kind::Append(mut append)) if part < append.items.len() => {
                let item = append.items.swap_remove(part);
                let numbered = item.events.into_iter().zip(base..).zip(item.first_sequence..);
                let producer = item.producer;
                numbered
                    .map(|((event, offset), sequence)| Stored { offset, event, producer: producer.clone(), sequence })
                    .collect()
            }
            Some(Kind::Outcomes(mut outcomes)) if part < outcomes.outcomes.len() => {
                let outcome = outcomes.outcomes.swap_remove(part);
                let here = outcome.emits.into_iter().filter(|emit| emit.target.topic == topic.0);
                here.zip(base..)
                    .map(|(emit, offset)| Stored { offset, event: emit.event, producer: Bytes::new(), sequence: 0 })
                    .collect()
            }
            _ => return Err(missing()),
        };
        Ok(events)
    }

    /// One row of function state.
    pub fn state(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, KvError> {
        self.kv.get(&self.keys.state(bucket, key))
    }

    /// The first `limit` rows of function state whose keys begin with `prefix`.
    pub fn states(&self, bucket: &str, prefix: &str, limit: usize) -> Result<Vec<StateOp>, KvError> {
        let from = self.keys.state(bucket, prefix);
        let skip = Keys::state_prefix_len(bucket);
        let rows = self.kv.scan(&from, &end_of(&from), limit, false)?;
        let key = |key: Bytes| String::from_utf8_lossy(key.get(skip..).unwrap_or_default()).into_owned();
        Ok(rows.into_iter().map(|(k, value)| StateOp { key: key(k), value: Some(value) }).collect())
    }

    /// All cursors.
    pub fn cursors(&self) -> Result<Vec<Cursor>, KvError> {
        Ok(self.scan(&self.keys.one(Table::Cursors), ALL)?.into_iter().map(|(_, cursor)| cursor).collect())
    }

    /// Topics elsewhere for which effects wait.
    pub fn outbox_topics(&self) -> Result<Vec<(TopicId, OutboxTopic)>, KvError> {
        let rows = self.scan::<OutboxTopic>(&self.keys.one(Table::OutboxTopics), ALL)?;
        Ok(rows
            .into_iter()
            .filter(|(_, queue)| queue.acked < queue.last)
            .map(|(key, queue)| (TopicId(tail_number(&key)), queue))
            .collect())
    }

    /// The first `limit` effects that wait for a topic, with their sequences.
    pub fn outbox(&self, topic: TopicId, limit: usize) -> Result<Vec<(u64, OutboxRow)>, KvError> {
        let rows = self.scan(&self.keys.topic_only(Table::Outbox, topic), limit)?;
        Ok(rows.into_iter().map(|(key, row)| (tail_number(&key), row)).collect())
    }

    /// At most `limit` records of a trigger's runs, the newest first.
    pub fn activations(&self, trigger: TriggerId, limit: usize) -> Result<Vec<ActivationRecord>, KvError> {
        let prefix = self.keys.make(Table::Activations, &[&trigger.0.to_be_bytes()]);
        let rows = self.kv.scan(&prefix, &end_of(&prefix), limit, true)?;
        rows.into_iter().map(|(key, value)| decode(&key, value)).collect()
    }

    /// The record of one run.
    pub fn activation(&self, trigger: TriggerId, number: u64) -> Result<Option<ActivationRecord>, KvError> {
        self.get(&self.keys.make(Table::Activations, &[&trigger.0.to_be_bytes(), &number.to_be_bytes()]))
    }

    /// Catalog: a topic by its name.
    pub fn catalog_topic(&self, name: &str) -> Result<Option<TopicInfo>, KvError> {
        self.get(&self.keys.make(Table::CatalogTopics, &[name.as_bytes()]))
    }

    /// Catalog: all topics, by name.
    pub fn catalog_topics(&self) -> Result<Vec<TopicInfo>, KvError> {
        self.table(Table::CatalogTopics)
    }

    /// Catalog: all groups, by id.
    pub fn catalog_groups(&self) -> Result<Vec<GroupInfo>, KvError> {
        self.table(Table::CatalogGroups)
    }

    /// Catalog: all functions, by name.
    pub fn catalog_functions(&self) -> Result<Vec<FunctionInfo>, KvError> {
        self.table(Table::CatalogFunctions)
    }

    /// Catalog: all triggers, by name.
    pub fn catalog_triggers(&self) -> Result<Vec<TriggerInfo>, KvError> {
        self.table(Table::CatalogTriggers)
    }

    fn table<M: Message + Default>(&self, table: Table) -> Result<Vec<M>, KvError> {
        Ok(self.scan(&self.keys.one(table), ALL)?.into_iter().map(|(_, row)| row).collect())
    }

    /// Catalog: a piece of a component.
    pub fn blob(&self, hash: &[u8], number: u32) -> Result<Option<Bytes>, KvError> {
        let row: Option<BlobRow> = self.get(&self.keys.make(Table::CatalogBlobs, &[hash, &number.to_be_bytes()]))?;
        Ok(row.map(|row| row.data))
    }

    /// Catalog: what a group should host.
    pub fn group_spec(&self, group: GroupId) -> Result<Option<GroupSpec>, KvError> {
        let mut none = WriteBatch::default();
        machine::group_spec(&Txn::new(self.group, self.kv.as_ref(), &mut none), group)
    }
}
