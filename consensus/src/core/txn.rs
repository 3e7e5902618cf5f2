//! Reads and writes of one group's rows while entries are applied: writes go to the turn's batch, reads see them.

use bytes::Bytes;
use canal_proto::GroupId;
use prost::Message;

use super::keys::{Keys, end_of};
use super::kv::{Kv, KvError, WriteBatch};

/// The rows of a group, with the batch of the turn on top.
pub struct Txn<'a> {
    /// Makes the group's keys.
    pub keys: Keys,
    kv: &'a dyn Kv,
    batch: &'a mut WriteBatch,
}

impl<'a> Txn<'a> {
    /// The rows of `group`.
    pub fn new(group: GroupId, kv: &'a dyn Kv, batch: &'a mut WriteBatch) -> Self {
        Self { keys: Keys(group), kv, batch }
    }

    /// The bytes at a key.
    pub fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        match self.batch.ops.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.kv.get(key),
        }
    }

    /// The row at a key.
    pub fn get<M: Message + Default>(&self, key: &[u8]) -> Result<Option<M>, KvError> {
        self.get_bytes(key)?.map(|bytes| decode(key, bytes)).transpose()
    }

    /// The row at a key, or an empty one.
    pub fn get_or_default<M: Message + Default>(&self, key: &[u8]) -> Result<M, KvError> {
        Ok(self.get(key)?.unwrap_or_default())
    }

    /// Sets the bytes at a key.
    pub fn put_bytes(&mut self, key: Bytes, value: Bytes) {
        self.batch.ops.insert(key, Some(value));
    }

    /// Sets the row at a key.
    pub fn put<M: Message>(&mut self, key: Bytes, row: &M) {
        self.put_bytes(key, row.encode_to_vec().into());
    }

    /// Removes the row at a key.
    pub fn delete(&mut self, key: Bytes) {
        self.batch.ops.insert(key, None);
    }

    /// The first `limit` rows whose keys begin with `prefix`, in key order.
    pub fn scan_bytes(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let end = end_of(prefix);
        let inside = |key: &Bytes| key.starts_with(prefix);
        let changed: Vec<_> =
            self.batch.ops.range(Bytes::copy_from_slice(prefix)..).take_while(|(key, _)| inside(key)).collect();
        // every removed row may hide one of the store's
        let stored = self.kv.scan(prefix, &end, limit.saturating_add(changed.len()), false)?;
        let mut rows: std::collections::BTreeMap<Bytes, Bytes> = stored.into_iter().collect();
        for (key, value) in changed {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows.into_iter().take(limit).collect())
    }

    /// The first `limit` rows whose keys begin with `prefix`, decoded.
    pub fn scan<M: Message + Default>(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Bytes, M)>, KvError> {
        let rows = self.scan_bytes(prefix, limit)?;
        rows.into_iter().map(|(key, value)| decode(&key, value).map(|row| (key, row))).collect()
    }

    /// The last row whose key begins with `prefix` and is not above `most`.
    pub fn last<M: Message + Default>(&self, prefix: &[u8], most: &[u8]) -> Result<Option<(Bytes, M)>, KvError> {
        if *most < *prefix {
            return Ok(None);
        }
        let behind = if most.starts_with(prefix) { [most, &[0]].concat() } else { end_of(prefix) };
        let inside = |key: &Bytes| key.starts_with(prefix) && **key <= *most;
        let changed: Vec<_> =
            self.batch.ops.range(Bytes::copy_from_slice(prefix)..).take_while(|(key, _)| inside(key)).collect();
        // every removed row may hide one of the store's
        let stored = self.kv.scan(prefix, &behind, changed.len().saturating_add(1), true)?;
        let mut rows: std::collections::BTreeMap<Bytes, Bytes> = stored.into_iter().collect();
        for (key, value) in changed {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        rows.pop_last().map(|(key, value)| decode(&key, value).map(|row| (key, row))).transpose()
    }

    /// Removes all rows whose keys begin with `prefix`.
    pub fn delete_all(&mut self, prefix: &[u8]) -> Result<(), KvError> {
        for (key, _) in self.scan_bytes(prefix, usize::MAX / 2)? {
            self.delete(key);
        }
        Ok(())
    }
}

/// Reads a row; a row that can't be read is damage, not data.
pub fn decode<M: Message + Default>(key: &[u8], bytes: Bytes) -> Result<M, KvError> {
    M::decode(bytes).map_err(|e| KvError(format!("the row at key {key:02x?} is damaged: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::core::kv::MemoryKv;
    use crate::core::rows::Counter;

    #[test]
    fn the_last_row_is_found_under_the_turns_changes() {
        let kv = MemoryKv::default();
        let row = |value| Counter { value };
        let mut stored = WriteBatch::default();
        for (key, value) in [("a9", 9), ("b1", 1), ("b3", 3), ("b5", 5), ("c0", 0)] {
            stored.ops.insert(key.into(), Some(row(value).encode_to_vec().into()));
        }
        kv.write(&stored);
        let mut batch = WriteBatch::default();
        let mut txn = Txn::new(GroupId(1), &kv, &mut batch);
        let last =
            |txn: &Txn<'_>, most: &str| txn.last::<Counter>(b"b", most.as_bytes()).unwrap().map(|(_, row)| row.value);
        assert_eq!(
            ["b0", "b1", "b2", "b4", "b5", "b9", "c9"].map(|most| last(&txn, most)),
            [None, Some(1), Some(1), Some(3), Some(5), Some(5), Some(5)]
        );
        assert_eq!(last(&txn, "a9"), None);
        txn.delete("b5".into());
        txn.delete("b3".into());
        txn.put("b2".into(), &row(2));
        assert_eq!(["b1", "b3", "b9"].map(|most| last(&txn, most)), [Some(1), Some(2), Some(2)]);
        txn.put("b7".into(), &row(7));
        assert_eq!(["b6", "b9"].map(|most| last(&txn, most)), [Some(2), Some(7)]);
    }
}
