//! Disks that forget: what a write leaves behind depends on whether it was synced when the machine stopped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use canal_proto::GroupId;
use raft::eraftpb::{Entry, HardState};

use super::rng::Rng;
use crate::core::group::Persist;
use crate::core::kv::{Kv as _, KvError, MemoryKv, WriteBatch};
use crate::core::log::LogReader;

/// A log as some moment left it.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: HardState,
}

impl Image {
    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) {
        if let Some(first) = entries.first() {
            assert!(first.index >= 1 && first.index <= self.last() + 1, "an append that leaves a gap");
            self.entries.truncate(first.index as usize - 1);
            self.entries.extend_from_slice(entries);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index).ok()?.checked_sub(1)?)
    }
}

#[derive(Debug, Default)]
struct Disk {
    now: Image,
    synced: Image,
    unsynced: Vec<(Vec<Entry>, Option<HardState>)>,
}

/// A log whose unsynced writes may be lost, the latest first, each as a whole.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryLog(Rc<RefCell<Disk>>);

impl MemoryLog {
    pub(super) fn write(&self, persist: Persist, honest: bool) {
        let mut disk = self.0.borrow_mut();
        disk.now.write(&persist.entries, persist.hard_state.as_ref());
        disk.unsynced.push((persist.entries, persist.hard_state));
        if persist.sync && honest {
            disk.synced = disk.now.clone();
            disk.unsynced.clear();
        }
    }

    /// The machine stopped: some of the unsynced writes may have reached the disk.
    pub(super) fn crash(&self, rng: &mut Rng) {
        let disk = &mut *self.0.borrow_mut();
        let kept = rng.below(disk.unsynced.len() as u64 + 1) as usize;
        for (entries, hard_state) in disk.unsynced.drain(..).take(kept) {
            disk.synced.write(&entries, hard_state.as_ref());
        }
        disk.now = disk.synced.clone();
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Image) -> T) -> T {
        read(&self.0.borrow().now)
    }

    /// Term of an entry that would survive a crash now.
    pub(super) fn synced_term(&self, index: u64) -> Option<u64> {
        self.0.borrow().synced.get(index).map(|entry| entry.term)
    }
}

impl LogReader for MemoryLog {
    fn entries(&self, _: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError> {
        self.read(|image| {
            let mut out: Vec<Entry> = Vec::new();
            let mut bytes = 0;
            for index in low..high {
                let entry = image.get(index).ok_or_else(|| KvError(format!("entry {index} was never written")))?;
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
