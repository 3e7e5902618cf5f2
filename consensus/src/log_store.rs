//! The Raft logs of all groups of a peer, in one raft-engine.
//!
//! A turn's entries and hard states, of however many groups, are one [`LogStore::write`]: one batch, whole or
//! absent after a crash, and with `sync` on disk when it returns. Entries appended at an index that the log has
//! already replace it and everything after it, as Raft's rule for a new leader's entries wants.
//!
//! What is refused: an append that would leave a gap or reach below the log's first entry (raft-engine would write
//! it and panic, then and at every start), and every write after one that failed. A failed `fsync` cannot be
//! retried, because the kernel may have dropped the dirty pages; raft-engine panics on it. The panic is caught
//! here and becomes an error, and the store stays [`Error::Stopped`] until the peer is restarted. The caller must
//! neither vote nor acknowledge after such an error. Writes pass one at a time: with two, raft-engine forms a
//! group, and its followers would be told that all is well when the leader's `fsync` panics.
//!
//! A log is cut in front by [`GroupWrite::compact`], in the batch that also says where; a record of it tells, from then
//! on, where the log begins, whatever raft-engine brings back when it purges its files. A log that a snapshot replaces is
//! removed and begun anew in one batch.
//!
//! Opening tolerates a torn tail: the last file is cut at its first broken batch. A cut that would take away what was
//! synced is damage, not a tail (`mark` tells the two apart): then nothing is cut, and it is [`Error::Damaged`], as is
//! damage in any older file, a file that is missing, and an entry that does not match its checksum when it is read.
//!
//! Reads go on beside writes, purges and each other, from any thread: raft-engine keeps the place of each entry
//! behind a lock a group and reads files by position. It reads and checks the entries of a whole batch to return
//! one of them, and remembers the last batch a thread; so a turn should stay within a few MiB.
//!
//! Stored bytes are `eraftpb.Entry` and `eraftpb.HardState` as protobuf, in raft-engine's format 2. Its parser
//! (rust-protobuf 2) meets only bytes that this peer wrote. Records stand beside them by their keys: `m` how the replica
//! came to life, `c` where its log was cut ([`Compacted`]), `i` the snapshot that is being installed, `g` the largest id of
//! a replica that was removed (8 bytes, big-endian).

use std::any::Any;
use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use canal_proto::GroupId;
use parking_lot::Mutex;
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

pub use crate::core::log::Compacted;

mod disk;
#[cfg(test)]
pub(crate) mod faults;
mod mark;
#[cfg(test)]
mod tests;

#[cfg(not(test))]
use raft_engine::env::DefaultFileSystem as Plain;

#[cfg(test)]
use faults::Files as Plain;

type Files = disk::Watched<Plain>;

/// Key of a group's [`HardState`].
const HARD_STATE: &[u8] = b"h";
/// Key of a group's record ([`LogStore::put_meta`]).
const META: &[u8] = b"m";
/// Key of a group's [`Compacted`].
const COMPACTED: &[u8] = b"c";
/// Key of the record of a snapshot that is being installed.
const INSTALLING: &[u8] = b"i";
/// Key of the largest id of a replica that was removed here (u64, big-endian).
const GONE: &[u8] = b"g";
/// Bytes of entries that one read returns at most, if it asks for no fewer: raft-engine adds them up in 32 bits,
/// and no caller has use for more at once.
const MAX_READ_BYTES: u64 = 64 << 20;
/// Entries that one read returns at most: the places of all of them are collected before the first is read.
const MAX_READ_ENTRIES: u64 = 64 << 10;
/// How often a read is tried. One that meets a purge may find the file gone whose place it has just looked up; the
/// next lookup has the new place, and purges are seconds apart.
const READ_ATTEMPTS: usize = 3;
/// Bytes of entries that are checked at a time: what somebody who looks at all of a log holds in memory.
pub(crate) const CHECK_BYTES: u64 = 1 << 20;
/// Entries that are read to estimate the size of a log: one reads the whole batch that it was written in.
const SAMPLES: u64 = 16;

/// Why the logs could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the directory, or this one has opened it twice.
    #[error("the raft log in `{}` is in use; stop the other peer, or give this one a data directory of its own", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory or a file in it could not be opened.
    #[error("cannot open the raft log in `{}`: {reason}; check the path, its permissions and the free space", dir.display())]
    Open {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        reason: String,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "the raft log in `{}` is damaged: {reason}; check the disk, and restore the peer's data directory, or discard what \
         it holds and let its groups rebuild its replicas",
        dir.display()
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is damaged.
        reason: String,
    },
    /// This write, or its sync, failed.
    #[error("cannot write the raft log: {0}; check the disk and its free space, then restart the peer")]
    Write(String),
    /// A write before this one failed.
    #[error("the raft log takes no writes after one that failed; restart the peer")]
    Stopped,
    /// An append that does not fit the log. Nothing of its turn was written.
    #[error("group {group}: cannot append entry {index} to the log {first}..={last}; append at its end or inside it")]
    Misplaced {
        /// The group.
        group: GroupId,
        /// The entry's index.
        index: u64,
        /// First index of the log, as the turn's writes before this one leave it.
        first: u64,
        /// Last index.
        last: u64,
    },
    /// A read outside the log.
    #[error("group {group}: entries {low}..{high} are not in the log {first}..={last}; read inside it")]
    Missing {
        /// The group.
        group: GroupId,
        /// First index that was asked for.
        low: u64,
        /// The index after the last that was asked for.
        high: u64,
        /// First index of the log.
        first: u64,
        /// Last index; below `first` when the log is empty.
        last: u64,
    },
}

/// Sizes of the log's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes after which a new file is begun. A file is deleted or reused as a whole, and beginning one costs two
    /// syncs: at 16 MiB that is no more than a few a second at full speed.
    pub file_size: u64,
    /// Bytes of files above which [`LogStore::purge`] starts to clear the oldest. What is still live in them is
    /// written again, so this should be well above the live log; up to half of it more is kept as files for reuse.
    pub purge_above: u64,
}

impl Options {
    /// For devices whose flash is counted in hundreds of megabytes: some 50 MiB in all.
    pub fn small() -> Self {
        Self { file_size: 4 << 20, purge_above: 32 << 20 }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { file_size: 16 << 20, purge_above: 256 << 20 }
    }
}

/// What one group has to write in a turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupWrite {
    /// The group.
    pub group: GroupId,
    /// Entries to append, with consecutive indices.
    pub entries: Vec<Entry>,
    /// Its hard state, if that has changed.
    pub hard_state: Option<HardState>,
    /// Cuts the log: entries up to this index go, and the record says so from then on. `entries` come after it.
    pub compact: Option<Compacted>,
    /// With `compact`: entries behind its index go as well. What is appended then begins right behind it, wherever the
    /// log ended before.
    pub replace: bool,
    /// Sets the record of a snapshot that is being installed, or takes it away.
    pub installing: Option<Option<Bytes>>,
}

impl GroupWrite {
    /// The last step of an installation (see [`Install`](crate::core::group::Install)).
    pub fn installed(group: GroupId, compacted: Compacted, hard_state: HardState) -> Self {
        Self {
            group,
            hard_state: Some(hard_state),
            compact: Some(compacted),
            replace: true,
            installing: Some(None),
            ..Self::default()
        }
    }
}

/// A group's log, as [`LogStore::load`] finds it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The last hard state written, or the initial one.
    pub hard_state: HardState,
    /// First index; when the log is empty, the one behind what was compacted, or 1.
    pub first: u64,
    /// Last index; one below `first` when the log is empty.
    pub last: u64,
    /// Where the log was cut last.
    pub compacted: Option<Compacted>,
    /// The record of a snapshot whose installation has not ended.
    pub installing: Option<Bytes>,
}

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The logs of all groups of a peer. Clones share them.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` only while it is dropped.
    engine: Option<Engine<Files>>,
    files: Arc<Files>,
    dir: PathBuf,
    /// One write at a time (see the module).
    writing: Mutex<()>,
    /// A write failed.
    stopped: AtomicBool,
    /// Groups of whose log something could not be read, until somebody takes them.
    unreadable: Mutex<BTreeSet<GroupId>>,
    any_unreadable: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Closing syncs once more, and would panic in the middle of a drop if that failed too. The process is about
        // to end for that reason; its files end with it.
        if self.stopped.load(Ordering::Acquire) {
            std::mem::forget(self.engine.take());
            return;
        }
        // closing syncs, and a panic for a sync that fails would end the process here without a word
        match self.files.sync_all() {
            Ok(()) => drop(self.engine.take()),
            Err(error) => {
                tracing::error!(%error, "the raft log could not be closed in order; what was acknowledged was synced before");
                std::mem::forget(self.engine.take());
            }
        }
    }
}

impl LogStore {
    /// Opens the logs in `dir`, which is created if it does not exist.
    pub fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        let failed = |reason: String| Error::Open { dir: dir.to_owned(), reason };
        let path = dir.to_str().ok_or_else(|| failed("the path is not UTF-8".into()))?;
        std::fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
        let config = Config {
            dir: path.to_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            // Off: payloads are small, or compressed already; it costs time on the thread that Raft runs on, and a
            // whole batch would be unpacked to read one entry.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(options.file_size),
            purge_threshold: ReadableSize(options.purge_above),
            ..Config::default()
        };
        let damaged = |reason: String| Error::Damaged { dir: dir.to_owned(), reason };
        let files = match Files::new(Plain, dir) {
            Ok(Ok(files)) => Arc::new(files),
            Ok(Err(damage)) => return Err(damaged(damage.0)),
            Err(error) => return Err(failed(error.to_string())),
        };
        let opened = catch_unwind(AssertUnwindSafe(|| Engine::open_with_file_system(config, files.clone())));
        let engine = match (opened, files.damage()) {
            (Ok(Ok(engine)), None) => engine,
            (_, Some(damage)) => return Err(damaged(damage.0)),
            (Ok(Err(error)), None) => return Err(opening(dir, error)),
            (Err(panic), None) => return Err(damaged(text_of(panic.as_ref()))),
        };
        // raft-engine syncs its first file, but not that the directory has it, nor that the parent has the directory.
        for dir in [Some(dir), dir.parent()].into_iter().flatten().filter(|dir| !dir.as_os_str().is_empty()) {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| failed(error.to_string()))?;
        }
        files.opened().map_err(|error| failed(error.to_string()))?;
        let inner = Inner {
            engine: Some(engine),
            files,
            dir: dir.to_owned(),
            writing: Mutex::new(()),
            stopped: AtomicBool::new(false),
            unreadable: Mutex::default(),
            any_unreadable: AtomicBool::new(false),
        };
        let store = Self { inner: Arc::new(inner) };
        store.cut_again()?;
        Ok(store)
    }

    /// Cuts what was cut before. raft-engine may bring back the oldest entries of a log when it has purged the file that
    /// said that they are compacted before the one that they were moved to; with a gap behind them, the next append would
    /// make it panic.
    fn cut_again(&self) -> Result<(), Error> {
        self.commit(false, |engine, batch| {
            for group in engine.raft_groups() {
                let Some(first) = engine.first_index(group) else { continue };
                let compacted = self.compacted(engine, GroupId(group))?;
                if let Some(compacted) = compacted.filter(|compacted| first <= compacted.index) {
                    batch.add_command(group, Command::Compact { index: compacted.index.saturating_add(1) });
                }
            }
            Ok(())
        })
    }

    /// Writes a turn: all of it or, after a crash, none of it. With `sync` it is on disk when this returns, with all
    /// that was written before; an empty turn writes and syncs nothing.
    pub fn write(&self, turn: &[GroupWrite], sync: bool) -> Result<(), Error> {
        self.commit(sync, |engine, batch| {
            let mut spans = BTreeMap::new();
            for write in turn {
                let group = write.group;
                let span = match spans.entry(group) {
                    Slot::Occupied(known) => known.into_mut(),
                    Slot::Vacant(new) => new.insert(self.extent(engine, group)?),
                };
                if let Some(compact) = &write.compact {
                    *span = Some(cut(group, *span, compact, write.replace)?);
                    if write.replace {
                        begin_anew(engine, batch, group)?;
                    } else {
                        batch.add_command(group.0, Command::Compact { index: compact.index.saturating_add(1) });
                    }
                    batch.put(group.0, COMPACTED.to_vec(), compact.encode_to_vec()).map_err(writing)?;
                }
                *span = extended(group, *span, &write.entries)?;
                batch.add_entries::<Entries>(group.0, &write.entries).map_err(writing)?;
                if let Some(hard_state) = &write.hard_state {
                    batch.put_message(group.0, HARD_STATE.to_vec(), hard_state).map_err(writing)?;
                }
                match &write.installing {
                    Some(Some(record)) => batch.put(group.0, INSTALLING.to_vec(), record.to_vec()).map_err(writing)?,
                    Some(None) => batch.delete(group.0, INSTALLING.to_vec()),
                    None => {}
                }
            }
            Ok(())
        })
    }

    /// A group's hard state and records, and the extent of its log; `None` if nothing of it was ever written.
    pub fn load(&self, group: GroupId) -> Result<Option<Loaded>, Error> {
        let hard_state: Option<HardState> = self.read(group, |engine| engine.get_message(group.0, HARD_STATE))?;
        let engine = self.engine()?;
        let compacted = self.compacted(engine, group)?;
        let installing = engine.get(group.0, INSTALLING).map(Bytes::from);
        let span = self.extent(engine, group)?;
        if hard_state.is_none() && span.is_none() && installing.is_none() {
            return Ok(None);
        }
        let (first, last) = span.unwrap_or((1, 0));
        Ok(Some(Loaded { hard_state: hard_state.unwrap_or_default(), first, last, compacted, installing }))
    }

    /// How many entries a group's log has, and about how many bytes they are: a few are read, the others taken for
    /// alike.
    pub fn live(&self, group: GroupId) -> Result<(u64, u64), Error> {
        let Some((first, last)) = self.extent(self.engine()?, group)? else { return Ok((0, 0)) };
        let count = last.saturating_add(1).saturating_sub(first);
        let step = count.div_ceil(SAMPLES).max(1);
        let (mut samples, mut bytes) = (0u64, 0u64);
        let mut index = first;
        while index <= last {
            let entry = match self.entry(group, index) {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                // whoever needs it is told; this is only an estimate
                Err(Error::Damaged { .. }) => Entry::default(),
                Err(error) => return Err(error),
            };
            samples += 1;
            bytes += entry.data.len() as u64 + entry.context.len() as u64;
            let Some(next) = index.checked_add(step) else { break };
            index = next;
        }
        let all = u128::from(bytes) * u128::from(count) / u128::from(samples.max(1));
        Ok((count, u64::try_from(all).unwrap_or(u64::MAX)))
    }

    fn compacted(&self, engine: &Engine<Files>, group: GroupId) -> Result<Option<Compacted>, Error> {
        let Some(record) = engine.get(group.0, COMPACTED) else { return Ok(None) };
        let damaged = |e| Error::Damaged {
            dir: self.inner.dir.clone(),
            reason: format!("group {group}: the record of compaction can't be read: {e}"),
        };
        Compacted::decode(record.as_slice()).map(Some).map_err(damaged)
    }

    /// First and last index of a group's log, if it ever had an entry.
    fn extent(&self, engine: &Engine<Files>, group: GroupId) -> Result<Option<(u64, u64)>, Error> {
        if let Some(span) = span(engine, group) {
            return Ok(Some(span));
        }
        // all of it is compacted
        let compacted = self.compacted(engine, group)?;
        Ok(compacted.map(|compacted| (compacted.index.saturating_add(1), compacted.index)))
    }

    /// The entries `low..high`, or as many of the first of them as `max_bytes` and the bounds of one read allow, but
    /// at least one. A reader that gets fewer than it asked for asks again.
    pub fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, Error> {
        if low >= high {
            return Ok(Vec::new());
        }
        let max_bytes = max_bytes.unwrap_or(MAX_READ_BYTES).min(MAX_READ_BYTES) as usize;
        self.read(group, |engine| {
            let (first, last) = span(engine, group).unwrap_or((1, 0));
            if low < first || high > last.saturating_add(1) {
                return Ok(Err(Error::Missing { group, low, high, first, last }));
            }
            let end = high.min(low.saturating_add(MAX_READ_ENTRIES));
            let mut entries = Vec::new();
            engine.fetch_entries_to::<Entries>(group.0, low, end, Some(max_bytes), &mut entries)?;
            Ok(Ok(entries))
        })?
    }

    /// The entry at `index`, if the log has it.
    pub fn entry(&self, group: GroupId, index: u64) -> Result<Option<Entry>, Error> {
        self.read(group, |engine| engine.get_entry::<Entries>(group.0, index))
    }

    /// The term of the entry at `index`, if the log has it.
    pub fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, Error> {
        Ok(self.entry(group, index)?.map(|entry| entry.term))
    }

    /// Keeps a small record beside a group's log: how its replica came to life. On disk when this returns.
    pub fn put_meta(&self, group: GroupId, record: &[u8]) -> Result<(), Error> {
        self.commit(true, |_, batch| batch.put(group.0, META.to_vec(), record.to_vec()).map_err(writing))
    }

    /// The record of a group.
    pub fn meta(&self, group: GroupId) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.engine()?.get(group.0, META))
    }

    /// All groups that have a record, in their order.
    pub fn groups(&self) -> Result<Vec<GroupId>, Error> {
        let engine = self.engine()?;
        let mut groups = engine.raft_groups();
        groups.retain(|group| engine.get(*group, META).is_some());
        groups.sort_unstable();
        Ok(groups.into_iter().map(GroupId).collect())
    }

    /// Removes a group's log, hard state and records, and remembers that this replica of it is gone. On disk when this
    /// returns.
    pub fn remove(&self, group: GroupId, replica: u64) -> Result<(), Error> {
        let gone = self.gone(group)?.max(replica);
        self.commit(true, |_, batch| {
            batch.add_command(group.0, Command::Clean);
            batch.put(group.0, GONE.to_vec(), gone.to_be_bytes().to_vec()).map_err(writing)
        })
    }

    /// The largest id of a replica of the group that was removed here; 0 when none was. An id that is not larger must
    /// not come to life again: what it has voted is forgotten.
    pub fn gone(&self, group: GroupId) -> Result<u64, Error> {
        let record = self.engine()?.get(group.0, GONE);
        Ok(record.and_then(|record| record.first_chunk::<8>().map(|id| u64::from_be_bytes(*id))).unwrap_or(0))
    }

    /// Clears the oldest files once there is more than [`Options::purge_above`]. Made for a timer: cheap when there is
    /// nothing to do, and reads and writes go on meanwhile. It rids them of what was compacted and overwritten: entries,
    /// hard states, removed groups.
    pub fn purge(&self) -> Result<(), Error> {
        let engine = self.engine()?;
        if self.inner.stopped.load(Ordering::Acquire) {
            return Err(Error::Stopped);
        }
        match catch_unwind(AssertUnwindSafe(|| engine.purge_expired_files())) {
            Ok(Ok(_)) => self.inner.files.sync_note().map_err(|error| self.stop(error.to_string())),
            Ok(Err(error)) => Err(self.stop(error.to_string())),
            Err(panic) => Err(self.stop(text_of(panic.as_ref()))),
        }
    }

    /// Bytes of the files that hold logs, rounded up to whole files.
    pub fn size_on_disk(&self) -> u64 {
        self.inner.engine.as_ref().map_or(0, |engine| engine.get_used_size() as u64)
    }

    fn engine(&self) -> Result<&Engine<Files>, Error> {
        self.inner.engine.as_ref().ok_or(Error::Stopped)
    }

    /// Fills a batch and writes it. The batch is filled under the lock, so that what it was checked against holds.
    fn commit(
        &self,
        sync: bool,
        fill: impl FnOnce(&Engine<Files>, &mut LogBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let engine = self.engine()?;
        let _one_at_a_time = self.inner.writing.lock();
        if self.inner.stopped.load(Ordering::Acquire) {
            return Err(Error::Stopped);
        }
        let mut batch = LogBatch::default();
        fill(engine, &mut batch)?;
        match catch_unwind(AssertUnwindSafe(|| engine.write(&mut batch, sync))) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.stop(error.to_string())),
            Err(panic) => Err(self.stop(text_of(panic.as_ref()))),
        }
    }

    fn stop(&self, reason: String) -> Error {
        self.inner.stopped.store(true, Ordering::Release);
        Error::Write(reason)
    }

    /// Reads entries, again if that fails; raft-engine panics where a file has become shorter than it was.
    fn read<T>(&self, group: GroupId, read: impl Fn(&Engine<Files>) -> raft_engine::Result<T>) -> Result<T, Error> {
        let engine = self.engine()?;
        let mut reason = String::new();
        for _ in 0..READ_ATTEMPTS {
            reason = match catch_unwind(AssertUnwindSafe(|| read(engine))) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => text_of(panic.as_ref()),
            };
        }
        self.inner.unreadable.lock().insert(group);
        self.inner.any_unreadable.store(true, Ordering::Release);
        Err(Error::Damaged { dir: self.inner.dir.clone(), reason: format!("group {group}: {reason}") })
    }

    /// The groups of whose log something could not be read since the last call.
    pub(crate) fn take_unreadable(&self) -> BTreeSet<GroupId> {
        if !self.inner.any_unreadable.swap(false, Ordering::AcqRel) {
            return BTreeSet::new();
        }
        std::mem::take(&mut self.inner.unreadable.lock())
    }

    /// Reads the entries of a group's log from `low` on, as many as fit one read; says where the next begin, `None` when
    /// there are no more.
    ///
    /// # Errors
    /// [`Error::Damaged`] when one can't be read.
    pub(crate) fn check(&self, group: GroupId, low: u64) -> Result<Option<u64>, Error> {
        let Some((first, last)) = span(self.engine()?, group) else { return Ok(None) };
        let low = low.max(first);
        if low > last {
            return Ok(None);
        }
        match self.entries(group, low, last.saturating_add(1), Some(CHECK_BYTES)) {
            Ok(entries) => Ok(entries.last().map(|entry| entry.index.saturating_add(1))),
            // it was cut meanwhile
            Err(Error::Missing { first, last, .. }) => Ok((first <= last && low < first).then_some(first)),
            Err(error) => Err(error),
        }
    }
}

/// First and last index of a group's log.
fn span(engine: &Engine<Files>, group: GroupId) -> Option<(u64, u64)> {
    engine.first_index(group.0).zip(engine.last_index(group.0))
}

/// Adds to a batch what makes a group's log empty, whatever it holds, and leaves its records as they are.
///
/// A compaction would not do: raft-engine may forget one when it purges files, and then entries that were replaced by a
/// snapshot would be back. It does not forget that all of a group was removed.
fn begin_anew(engine: &Engine<Files>, batch: &mut LogBatch, group: GroupId) -> Result<(), Error> {
    batch.add_command(group.0, Command::Clean);
    for key in [HARD_STATE, META, INSTALLING, GONE] {
        if let Some(record) = engine.get(group.0, key) {
            batch.put(group.0, key.to_vec(), record).map_err(writing)?;
        }
    }
    Ok(())
}

/// The log's extent after it was cut, if there is something to cut.
fn cut(group: GroupId, span: Option<(u64, u64)>, compact: &Compacted, replace: bool) -> Result<(u64, u64), Error> {
    let index = compact.index;
    let (first, last) = span.unwrap_or((1, 0));
    let outside = index.saturating_add(1) < first || index > last;
    if index == u64::MAX || (outside && !replace) {
        return Err(Error::Misplaced { group, index, first, last });
    }
    Ok((index + 1, if replace { index } else { last }))
}

/// The log's extent after an append, if the append fits.
fn extended(group: GroupId, span: Option<(u64, u64)>, entries: &[Entry]) -> Result<Option<(u64, u64)>, Error> {
    let Some(start) = entries.first().map(|entry| entry.index) else { return Ok(span) };
    let (first, last) = span.unwrap_or((start, start.saturating_sub(1)));
    let misplaced = |index| Error::Misplaced { group, index, first, last };
    if start < first.max(1) || start > last.saturating_add(1) {
        return Err(misplaced(start));
    }
    let mut next = start;
    for entry in entries {
        if entry.index != next {
            return Err(misplaced(entry.index));
        }
        next = next.checked_add(1).ok_or_else(|| misplaced(entry.index))?;
    }
    Ok(Some((first, next.saturating_sub(1))))
}

fn writing(error: raft_engine::Error) -> Error {
    Error::Write(error.to_string())
}

fn opening(dir: &Path, error: raft_engine::Error) -> Error {
    let dir = dir.to_owned();
    match error {
        raft_engine::Error::Corruption(_) | raft_engine::Error::Codec(_) | raft_engine::Error::Protobuf(_) => {
            Error::Damaged { dir, reason: error.to_string() }
        }
        // raft-engine has no kind of its own for it.
        error if error.to_string().contains("Failed to lock") => Error::InUse { dir },
        error => Error::Open { dir, reason: error.to_string() },
    }
}

/// What a panic says.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it says nothing").to_owned()
}
