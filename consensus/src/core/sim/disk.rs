//! Disks that forget: what a write leaves behind depends on whether it was synced when the machine stopped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use canal_proto::GroupId;
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::rng::Rng;
use crate::core::group::Persist;
use crate::core::keys::{Keys, Table};
use crate::core::kv::{Kv as _, KvError, MemoryKv, WriteBatch};
use crate::core::log::{Compacted, LogReader};
use crate::core::rows::Applied;

/// One write to a log: all of it or nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Write {
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: Option<HardState>,
    pub(super) compact: Option<Compacted>,
    /// With `compact`: the entries behind it go too.
    pub(super) replace: bool,
    pub(super) installing: Option<Option<Bytes>>,
    pub(super) sync: bool,
}

impl From<Persist> for Write {
    fn from(persist: Persist) -> Self {
        let Persist { entries, hard_state, sync, install } = persist;
        let installing = install.map(|install| Some(install.record()));
        Self { entries, hard_state, sync, installing, ..Self::default() }
    }
}

/// A log as some moment left it.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    entries: Vec<Entry>,
    pub(super) hard_state: HardState,
    pub(super) compacted: Option<Compacted>,
    pub(super) installing: Option<Bytes>,
}

impl Image {
    fn write(&mut self, write: &Write) {
        if let Some(compact) = &write.compact {
            assert!(write.replace || (self.before()..=self.last()).contains(&compact.index), "a cut outside the log");
            let gone = if write.replace { self.entries.len() } else { (compact.index - self.before()) as usize };
            self.entries.drain(..gone);
            self.compacted = Some(compact.clone());
        }
        if let Some(first) = write.entries.first() {
            assert!(first.index > self.before() && first.index <= self.last() + 1, "an append that leaves a gap");
            self.entries.truncate((first.index - self.before()) as usize - 1);
            self.entries.extend_from_slice(&write.entries);
        }
        if let Some(hard_state) = &write.hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Some(installing) = &write.installing {
            self.installing = installing.clone();
        }
    }

    /// Index of the last entry that is compacted.
    pub(super) fn before(&self) -> u64 {
        self.compacted.as_ref().map_or(0, |compacted| compacted.index)
    }

    pub(super) fn last(&self) -> u64 {
        self.before() + self.entries.len() as u64
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.before() + 1)?).ok()?)
    }
}

#[derive(Debug, Default)]
struct Disk {
    now: Image,
    synced: Image,
    unsynced: Vec<Write>,
}

/// A log whose unsynced writes may be lost, the latest first, each as a whole.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryLog(Rc<RefCell<Disk>>);

impl MemoryLog {
    pub(super) fn write(&self, write: impl Into<Write>, honest: bool) {
        let (write, mut disk) = (write.into(), self.0.borrow_mut());
        disk.now.write(&write);
        let sync = write.sync;
        disk.unsynced.push(write);
        if sync && honest {
            disk.synced = disk.now.clone();
            disk.unsynced.clear();
        }
    }

    /// The machine stopped: some of the unsynced writes may have reached the disk.
    pub(super) fn crash(&self, rng: &mut Rng) {
        let disk = &mut *self.0.borrow_mut();
        let kept = rng.below(disk.unsynced.len() as u64 + 1) as usize;
        for write in disk.unsynced.drain(..).take(kept) {
            disk.synced.write(&write);
        }
        disk.now = disk.synced.clone();
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Image) -> T) -> T {
        read(&self.0.borrow().now)
    }

    /// What would survive a crash now.
    pub(super) fn read_synced<T>(&self, read: impl FnOnce(&Image) -> T) -> T {
        read(&self.0.borrow().synced)
    }
}

impl LogReader for MemoryLog {
    fn entries(&self, _: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError> {
        self.read(|image| {
            let mut out: Vec<Entry> = Vec::new();
            let mut bytes = 0;
            for index in low..high {
                let entry = image.get(index).ok_or_else(|| KvError(format!("entry {index} is not in the log")))?;
                bytes += entry.data.len() as u64;
                if max_bytes.is_some_and(|max| bytes > max) && !out.is_empty() {
                    break;
                }
                out.push(entry.clone());
            }
            Ok(out)
        })
    }

    fn term(&self, _: GroupId, index: u64) -> Result<Option<u64>, KvError> {
        Ok(self.read(|image| image.get(index).map(|entry| entry.term)))
    }
}

/// Applied state that is flushed now and then; a crash goes back to that, or to any whole batch behind it.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) kv: MemoryKv,
    flushed: BTreeMap<Bytes, Bytes>,
    unflushed: Vec<WriteBatch>,
}

impl State {
    pub(super) fn write(&mut self, batch: WriteBatch) {
        self.kv.write(&batch);
        self.unflushed.push(batch);
    }

    pub(super) fn flush(&mut self) {
        self.flushed = self.kv.snapshot();
        self.unflushed.clear();
    }

    /// Index up to which entries are in the flushed rows.
    pub(super) fn flushed_to(&self, group: GroupId) -> u64 {
        let row = self.flushed.get(&Keys(group).one(Table::Applied));
        row.map_or(0, |row| Applied::decode(row.clone()).unwrap().index)
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.below(self.unflushed.len() as u64 + 1) as usize;
        self.kv = MemoryKv::default();
        let flushed = self.flushed.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        self.kv.write(&WriteBatch { ops: flushed });
        for batch in self.unflushed.drain(..).take(kept) {
            self.kv.write(&batch);
        }
        self.flush();
    }

    /// Removes what begins with a prefix: damage, for proving that the checks see it.
    pub(super) fn damage(&mut self, prefix: &[u8]) {
        let rows = self.kv.scan(prefix, &crate::core::keys::end_of(prefix), usize::MAX, false).unwrap();
        self.write(WriteBatch { ops: rows.into_iter().map(|(key, _)| (key, None)).collect() });
    }
}
