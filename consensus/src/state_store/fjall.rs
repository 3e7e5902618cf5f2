//! State in fjall 3: one keyspace. The only module that names fjall.
//!
//! fjall's readers may see some rows of a batch before the others, through a snapshot too: a table that is finished
//! meanwhile moves the instant at which snapshots are taken past the batch. So reads hold off batches here, and a batch
//! that fjall delays, because its tables are behind, delays them.
//!
//! A batch is one checksummed record of the journal, handed to the operating system before the write returns
//! (`PersistMode::Buffer`), so that a killed process loses nothing; [`StateStore::flush`] syncs the journal. An
//! unfinished record at the journal's end is dropped when it is opened. But if power is lost, the pages of unsynced
//! records may have reached the disk out of order, and a record with a hole in it is refused for its checksum: the
//! state then does not open. As long as the log still has all that was applied, the state can be made anew from it.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{
    Database, Guard, Iter, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable as _, Snapshot,
};
use parking_lot::RwLock;

use super::{StateStore, allocated, check, failure, has_room};
use crate::core::keys::end_of;
use crate::core::kv::{Kv, KvError, WriteBatch};

/// Bytes of journals at most: the least that fjall takes. They hold what is not yet in a table.
const JOURNALS: u64 = 64 << 20;
/// Threads that write tables: one for memtables beside one that compacts, so that a long compaction stalls no write.
const WORKERS: usize = 2;
/// Part of the cache's size that a memtable may take beside it. fjall stops writing at four full ones, so memory
/// stays below twice the cache.
const MEMTABLE_PART: u64 = 8;
/// A memtable at least: smaller ones make so many tables that compaction never rests.
const MIN_MEMTABLE: u64 = 1 << 20;
/// A memtable at most: fjall's own default.
const MAX_MEMTABLE: u64 = 64 << 20;

/// Rows in fjall.
pub struct Rows {
    database: Database,
    rows: Keyspace,
    dir: PathBuf,
    /// Shared by reads, exclusive to a batch.
    batches: RwLock<()>,
}

impl Rows {
    /// Opens the rows in `dir`. The memtable's size is fixed when it is created.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, String> {
        let open = || -> fjall::Result<Self> {
            let builder = Database::builder(dir).cache_size(cache_bytes).max_journaling_size(JOURNALS);
            let database = builder.worker_threads(WORKERS).open()?;
            let memtable = (cache_bytes / MEMTABLE_PART).clamp(MIN_MEMTABLE, MAX_MEMTABLE);
            let rows = database.keyspace("rows", || KeyspaceCreateOptions::default().max_memtable_size(memtable))?;
            Ok(Self { database, rows, dir: dir.to_owned(), batches: RwLock::default() })
        };
        open().map_err(|error| error.to_string())
    }
}

impl Kv for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let _no_batch = self.batches.read();
        let value = self.rows.get(key).map_err(|error| failure("read", &self.dir, error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize, reverse: bool) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        if !has_room(start, end) {
            return Ok(Vec::new());
        }
        let _no_batch = self.batches.read();
        let range = if end.is_empty() { self.rows.range(start..) } else { self.rows.range(start..end) };
        collect(range, limit, reverse, &self.dir)
    }
}

fn collect(range: Iter, limit: usize, reverse: bool, dir: &Path) -> Result<Vec<(Bytes, Bytes)>, KvError> {
    let row = |row: Guard| {
        let (key, value) = row.into_inner().map_err(|error| failure("read", dir, error))?;
        Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
    };
    if reverse { range.rev().take(limit).map(row).collect() } else { range.take(limit).map(row).collect() }
}

/// Rows under a prefix, through a snapshot that was taken between two batches.
struct Frozen {
    snapshot: Snapshot,
    rows: Keyspace,
    dir: PathBuf,
    prefix: Vec<u8>,
    end: Vec<u8>,
}

impl Kv for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if !key.starts_with(&self.prefix) {
            return Ok(None);
        }
        let value = self.snapshot.get(&self.rows, key).map_err(|error| failure("read", &self.dir, error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize, reverse: bool) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let start = start.max(&self.prefix);
        let end = if end.is_empty() || (!self.end.is_empty() && &self.end[..] < end) { &self.end[..] } else { end };
        if !has_room(start, end) {
            return Ok(Vec::new());
        }
        let range = if end.is_empty() {
            self.snapshot.range(&self.rows, start..)
        } else {
            self.snapshot.range(&self.rows, start..end)
        };
        collect(range, limit, reverse, &self.dir)
    }
}

impl StateStore for Rows {
    fn write(&self, batch: &WriteBatch) -> Result<(), KvError> {
        check(batch)?;
        let changes = OwnedWriteBatch::with_capacity(self.database.clone(), batch.ops.len());
        let mut changes = changes.durability(Some(PersistMode::Buffer));
        for (key, value) in &batch.ops {
            match value {
                Some(value) => changes.insert(&self.rows, key.as_ref(), value.as_ref()),
                None => changes.remove(&self.rows, key.as_ref()),
            }
        }
        let _no_read = self.batches.write();
        changes.commit().map_err(|error| failure("write", &self.dir, error))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.database.persist(PersistMode::SyncData).map_err(|error| failure("flush", &self.dir, error))
    }

    fn freeze(&self, prefix: &[u8]) -> Result<Box<dyn Kv + Send>, KvError> {
        // a batch that is under way would show through it in part; later ones never do
        let _no_batch = self.batches.read();
        let snapshot = self.database.snapshot();
        let (prefix, end) = (prefix.to_vec(), end_of(prefix));
        Ok(Box::new(Frozen { snapshot, rows: self.rows.clone(), dir: self.dir.clone(), prefix, end }))
    }

    fn name(&self) -> &'static str {
        "fjall"
    }

    fn size_on_disk(&self) -> u64 {
        allocated(&self.dir)
    }
}
