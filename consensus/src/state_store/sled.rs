//! State in sled 0.34: one tree. The only module that names sled.
//!
//! sled applies a batch under a lock that keeps readers of single rows out; a scan reads row by row and could see
//! half of a batch, so it holds off batches here. sled recovers a batch whole or not at all. It has no snapshots: rows
//! are frozen by a copy.
//!
//! sled's own flush hands the log to the device without waiting for its cache, and never syncs the files that it
//! makes for large pages (`blobs`); [`StateStore::flush`] does both. Its flushing thread is off. Threads of sled's
//! hold the files for a moment after the last handle is dropped; dropping [`Rows`] waits for them, so that it can be
//! opened again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use sled::{Batch, Config, Db, IVec};

use super::{StateStore, allocated, check, copied, failure, has_room};
use crate::core::keys::end_of;
use crate::core::kv::{Kv, KvError, WriteBatch};

/// How long dropping the rows waits for sled's threads. They need milliseconds; should one never end, the process
/// still can.
const CLOSE: Duration = Duration::from_secs(5);

/// Rows in sled.
pub struct Rows {
    tree: Db,
    /// Dropped after the tree.
    _closed: Closed,
    dir: PathBuf,
    /// Shared by scans, exclusive to a batch.
    batches: RwLock<()>,
    /// The files in `blobs` that are synced. They are written once.
    synced: Mutex<BTreeSet<OsString>>,
}

impl Rows {
    /// Opens the rows in `dir`.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, String> {
        let config = Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
        let tree = config.open().map_err(|error| error.to_string())?;
        let rows = Self {
            tree,
            _closed: Closed(dir.join("db")),
            dir: dir.to_owned(),
            batches: RwLock::default(),
            synced: Mutex::default(),
        };
        File::open(dir.join("conf")).and_then(|file| file.sync_all()).map_err(|error| error.to_string())?;
        rows.sync().map_err(|error| error.to_string())?;
        Ok(rows)
    }

    /// Syncs sled's files, of which the log comes last, because it names the others.
    fn sync(&self) -> io::Result<()> {
        let blobs = self.dir.join("blobs");
        let mut synced = self.synced.lock();
        let mut found = BTreeSet::new();
        for blob in fs::read_dir(&blobs)? {
            let name = blob?.file_name();
            if !synced.contains(&name) {
                match File::open(blobs.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // It was replaced meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            found.insert(name);
        }
        if found != *synced {
            File::open(&blobs)?.sync_all()?;
            *synced = found;
        }
        File::open(self.dir.join("db"))?.sync_all()
    }
}

/// Waits, when it is dropped, until sled's file is no longer locked.
struct Closed(PathBuf);

impl Drop for Closed {
    fn drop(&mut self) {
        let Ok(file) = File::open(&self.0) else { return };
        let end = Instant::now() + CLOSE;
        while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn bytes(value: IVec) -> Bytes {
    Bytes::copy_from_slice(&value)
}

impl Kv for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.tree.get(key).map_err(|error| failure("read", &self.dir, error))?.map(bytes))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize, reverse: bool) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        if !has_room(start, end) {
            return Ok(Vec::new());
        }
        let _no_batch = self.batches.read();
        let range = if end.is_empty() { self.tree.range(start..) } else { self.tree.range(start..end) };
        let row = |row: sled::Result<(IVec, IVec)>| {
            row.map(|(key, value)| (bytes(key), bytes(value))).map_err(|error| failure("read", &self.dir, error))
        };
        if reverse { range.rev().take(limit).map(row).collect() } else { range.take(limit).map(row).collect() }
    }
}

impl StateStore for Rows {
    fn write(&self, batch: &WriteBatch) -> Result<(), KvError> {
        check(batch)?;
        let mut changes = Batch::default();
        for (key, value) in &batch.ops {
            match value {
                Some(value) => changes.insert(key.as_ref(), value.as_ref()),
                None => changes.remove(key.as_ref()),
            }
        }
        let _no_scan = self.batches.write();
        self.tree.apply_batch(changes).map_err(|error| failure("write", &self.dir, error))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.tree.flush().map_err(|error| failure("flush", &self.dir, error))?;
        self.sync().map_err(|error| failure("flush", &self.dir, error))
    }

    fn freeze(&self, prefix: &[u8]) -> Result<Box<dyn Kv + Send>, KvError> {
        Ok(copied(self.scan(prefix, &end_of(prefix), usize::MAX, false)?))
    }

    fn name(&self) -> &'static str {
        "sled"
    }

    fn size_on_disk(&self) -> u64 {
        allocated(&self.dir)
    }
}
