//! Reads of one group's applied state and log, from any thread.
//!
//! What a view sees is what this replica has applied: on a follower it may be behind. Events are read from the topic's
//! segments, and the newest ones from the Raft log, where they are stored once.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use canal_proto::catalog::{FunctionInfo, GroupInfo, TopicInfo, TriggerInfo};
use canal_proto::cursor::Cursor;
use canal_proto::event::Stored;
use canal_proto::log::{ActivationRecord, GroupSpec, Segment, StateOp, Step, Subscription};
use canal_proto::{GroupId, TopicId, TriggerId};
use prost::Message;

use crate::core::keys::{Keys, Table, end_of};
use crate::core::kv::{KvError, WriteBatch};
use crate::core::machine;
use crate::core::outgoing::{self, Batch};
use crate::core::rows::{BlobRow, Counter, OutboxTopic, Topic};
use crate::core::txn::{Txn, decode};
use crate::files::{self, Files};
use crate::log_store::{self, LogStore};
use crate::state_store::StateStore;

mod events;
mod kept;
mod producers;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use events::OnDisk;
pub use events::{Content, Source};

/// All rows of a table that has a bound of its own.
const ALL: usize = usize::MAX / 2;

/// Why events could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state failed, or a row or an entry is damaged.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] log_store::Error),
    /// The files failed.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The offset is before the oldest event that the topic still has.
    #[error("the oldest event that there is has offset {oldest}; go on from there")]
    OutOfRange {
        /// Offset of the oldest event.
        oldest: u64,
    },
    /// The events exist, but this replica has yet to get them.
    #[error("this replica does not have these events yet; read them at another one")]
    Lacking,
}

/// Reads one group.
#[derive(Clone)]
pub struct View {
    group: GroupId,
    keys: Keys,
    kv: Arc<dyn StateStore>,
    log: LogStore,
    files: Files,
}

impl View {
    pub(crate) fn new(group: GroupId, kv: Arc<dyn StateStore>, log: LogStore, files: Files) -> Self {
        Self { group, keys: Keys(group), kv, log, files }
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

    /// At most `max` events of a topic from offset `from` on, and no more than about `max_bytes` (one in any case).
    /// Empty when there is none yet.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] before the topic's oldest event, [`Error::Lacking`] when another replica has to be asked.
    pub fn events(&self, topic: TopicId, from: u64, max: usize, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        let content = OnDisk { log: &self.log, files: &self.files };
        let source = Source { group: self.group, kv: self.kv.as_ref(), content: &content };
        source.events(topic, from, max, max_bytes)
    }

    /// The run of events in the log that an event was appended with, and when that was; `None` when the log does not have it.
    pub(crate) fn appended(&self, topic: TopicId, offset: u64) -> Result<Option<(Range<u64>, u64)>, Error> {
        let content = OnDisk { log: &self.log, files: &self.files };
        let source = Source { group: self.group, kv: self.kv.as_ref(), content: &content };
        source.appended(topic, offset)
    }

    /// Offset of a topic's oldest event, which is the next one's when it has none.
    pub fn oldest(&self, topic: TopicId) -> Result<u64, KvError> {
        Ok(self.topic(topic)?.unwrap_or_default().oldest)
    }

    /// The events of a topic before this offset are in segments, or gone.
    pub fn sealed(&self, topic: TopicId) -> Result<u64, KvError> {
        Ok(self.topic(topic)?.unwrap_or_default().sealed)
    }

    /// The events of all entries up to this index are in segments, or gone.
    pub fn sealed_through(&self) -> Result<u64, KvError> {
        Ok(self.get::<Counter>(&self.keys.one(Table::Sealed))?.unwrap_or_default().value)
    }

    /// The segments of a topic, by their offsets.
    pub fn segments(&self, topic: TopicId) -> Result<Vec<Segment>, KvError> {
        self.table_under(&self.keys.topic_only(Table::Segments, topic))
    }

    /// The segments of all topics that the group hosts or has hosted; whose file is in none of these rows is not needed
    /// by the group.
    pub fn all_segments(&self) -> Result<Vec<Segment>, KvError> {
        self.table(Table::Segments)
    }

    /// The durable subscriptions of a topic, by name.
    pub fn subscriptions(&self, topic: TopicId) -> Result<Vec<Subscription>, KvError> {
        self.table_under(&self.keys.topic_only(Table::Subscriptions, topic))
    }

    /// A durable subscription.
    pub fn subscription(&self, topic: TopicId, name: &str) -> Result<Option<Subscription>, KvError> {
        self.get(&self.keys.make(Table::Subscriptions, &[&topic.0.to_be_bytes(), name.as_bytes()]))
    }

    /// The steps in which the group's replicas changed, as many as are kept, the oldest first.
    pub fn steps(&self) -> Result<Vec<Step>, KvError> {
        self.table(Table::Steps)
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
        outgoing::queues(self.kv.as_ref(), self.group)
    }

    /// The first effects that wait for a topic: at most `max`, and of no more than about `max_bytes` (one in any case).
    pub fn outbox(&self, topic: TopicId, max: usize, max_bytes: usize) -> Result<Option<Batch>, KvError> {
        outgoing::batch(self.kv.as_ref(), self.group, topic, max, max_bytes)
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
        self.table_under(&self.keys.one(table))
    }

    fn table_under<M: Message + Default>(&self, prefix: &[u8]) -> Result<Vec<M>, KvError> {
        Ok(self.scan(prefix, ALL)?.into_iter().map(|(_, row)| row).collect())
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
