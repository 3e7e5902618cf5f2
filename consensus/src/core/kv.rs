//! Ordered rows of bytes: how the core reads applied state, and how it says what changes.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::RwLock;

/// The store failed; the text says where and what to do. The peer stops its replicas on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KvError(pub String);

/// Rows in the order of their keys.
pub trait Kv {
    /// The value at `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// At most `limit` rows with `start <= key < end`, in key order, or from the last one back with `reverse`.
    /// An empty `end` means no upper bound.
    fn scan(&self, start: &[u8], end: &[u8], limit: usize, reverse: bool) -> Result<Vec<(Bytes, Bytes)>, KvError>;
}

/// Changes that are applied together or not at all; `None` removes a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The last change of each key.
    pub ops: BTreeMap<Bytes, Option<Bytes>>,
}

/// Rows in memory, for tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryKv {
    rows: RwLock<BTreeMap<Bytes, Bytes>>,
}

impl MemoryKv {
    /// Applies a batch.
    pub fn write(&self, batch: &WriteBatch) {
        let mut rows = self.rows.write();
        for (key, value) in &batch.ops {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
    }

    /// All rows, for comparing replicas.
    pub fn snapshot(&self) -> BTreeMap<Bytes, Bytes> {
        self.rows.read().clone()
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize, reverse: bool) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        if !end.is_empty() && start >= end {
            return Ok(Vec::new());
        }
        let rows = self.rows.read();
        let end = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let inside = rows.range::<[u8], _>((Bound::Included(start), end));
        let copy = |(key, value): (&Bytes, &Bytes)| (key.clone(), value.clone());
        Ok(if reverse { inside.rev().take(limit).map(copy).collect() } else { inside.take(limit).map(copy).collect() })
    }
}
