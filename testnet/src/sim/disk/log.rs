//! The logs of all groups of a peer: what was written, and what of it a crash would leave.
//!
//! A write is whole or absent: the store finds a torn one by its sum and leaves it out. Unsynced writes are lost from the
//! newest on, however many. An entry that is damaged is found by its sum when it is read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use canal_consensus::core::kv::KvError;
use canal_consensus::core::log::{Compacted, LogReader};
use canal_consensus::log_store::GroupWrite;
use canal_proto::GroupId;
use canal_proto::peer::Seed;
use raft::eraftpb::{Entry, HardState};

use crate::sim::rng::Rng;

/// One write.
#[derive(Debug, Clone)]
enum Write {
    /// Of a turn, for all groups that have something.
    Turn(Rc<Vec<GroupWrite>>),
    /// A replica comes to life.
    Create(Rc<Seed>),
    /// A replica goes, and its id is remembered.
    Remove(GroupId, u64),
}

/// The log of a group at some moment.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// What the replica was created with.
    pub seed: Option<Rc<Seed>>,
    /// The hard state.
    pub hard_state: HardState,
    /// Where it was cut.
    pub compacted: Option<Compacted>,
    /// A snapshot that is being installed.
    pub installing: Option<Bytes>,
    entries: VecDeque<Entry>,
    bytes: u64,
    damaged: BTreeSet<u64>,
}

fn size(entry: &Entry) -> u64 {
    entry.data.len() as u64 + 48
}

impl Image {
    fn write(&mut self, write: &GroupWrite) -> Result<(), KvError> {
        if let Some(compact) = &write.compact {
            let before = self.before();
            if write.replace {
                self.entries.clear();
                self.bytes = 0;
            } else if (before..=self.last()).contains(&compact.index) {
                for entry in self.entries.drain(..usize::try_from(compact.index - before).unwrap_or_default()) {
                    self.bytes -= size(&entry);
                }
            } else {
                return Err(KvError(format!("group {} is cut at {}, outside its log", write.group, compact.index)));
            }
            self.compacted = Some(compact.clone());
            self.damaged.retain(|index| *index > compact.index && !write.replace);
        }
        if let Some(first) = write.entries.first() {
            if first.index <= self.before() || first.index > self.last() + 1 {
                return Err(KvError(format!("group {}: entry {} would leave a gap", write.group, first.index)));
            }
            while self.last() >= first.index {
                self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
            }
            self.damaged.retain(|index| *index < first.index);
            self.bytes += write.entries.iter().map(size).sum::<u64>();
            self.entries.extend(write.entries.iter().cloned());
        }
        if let Some(hard_state) = &write.hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Some(installing) = &write.installing {
            self.installing = installing.clone();
        }
        Ok(())
    }

    /// Index of the last entry that is cut.
    pub fn before(&self) -> u64 {
        self.compacted.as_ref().map_or(0, |compacted| compacted.index)
    }

    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.before() + self.entries.len() as u64
    }

    /// Bytes of the entries, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An entry, damaged or not.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.before() + 1)?).ok()?)
    }

    fn read(&self, group: GroupId, index: u64) -> Result<Option<&Entry>, KvError> {
        if self.damaged.contains(&index) {
            return Err(KvError(format!("group {group}: entry {index} of the log is damaged")));
        }
        Ok(self.entry(index))
    }
}

#[derive(Debug, Default)]
struct Logs {
    now: BTreeMap<GroupId, Image>,
    synced: BTreeMap<GroupId, Image>,
    gone: BTreeMap<GroupId, u64>,
    synced_gone: BTreeMap<GroupId, u64>,
    unsynced: VecDeque<Write>,
}

fn perform(
    write: &Write,
    logs: &mut BTreeMap<GroupId, Image>,
    gone: &mut BTreeMap<GroupId, u64>,
) -> Result<(), KvError> {
    match write {
        Write::Turn(writes) => writes.iter().try_for_each(|write| logs.entry(write.group).or_default().write(write)),
        Write::Create(seed) => {
            logs.entry(GroupId(seed.group)).or_default().seed = Some(seed.clone());
            Ok(())
        }
        Write::Remove(group, replica) => {
            logs.remove(group);
            let last = gone.entry(*group).or_default();
            *last = (*last).max(*replica);
            Ok(())
        }
    }
}

/// The logs of a peer. Clones are the same logs.
#[derive(Debug, Clone, Default)]
pub struct Log(Rc<RefCell<Logs>>);

impl Log {
    fn perform(&self, write: Write) -> Result<(), KvError> {
        let logs = &mut *self.0.borrow_mut();
        perform(&write, &mut logs.now, &mut logs.gone)?;
        logs.unsynced.push_back(write);
        Ok(())
    }

    /// Writes a turn, unsynced.
    pub fn write(&self, writes: Vec<GroupWrite>) -> Result<(), KvError> {
        self.perform(Write::Turn(Rc::new(writes)))
    }

    /// Makes everything that was written so far durable.
    pub fn sync(&self) -> Result<(), KvError> {
        let logs = &mut *self.0.borrow_mut();
        while let Some(write) = logs.unsynced.pop_front() {
            perform(&write, &mut logs.synced, &mut logs.synced_gone)?;
        }
        Ok(())
    }

    /// Writes what a replica is created with, synced.
    pub fn create(&self, seed: Seed) -> Result<(), KvError> {
        self.perform(Write::Create(Rc::new(seed)))?;
        self.sync()
    }

    /// Removes a replica, synced.
    pub fn remove(&self, group: GroupId, replica: u64) -> Result<(), KvError> {
        self.perform(Write::Remove(group, replica))?;
        self.sync()
    }

    /// The machine stops: of the unsynced writes, some of the first may be there.
    pub fn crash(&self, rng: &mut Rng) {
        let logs = &mut *self.0.borrow_mut();
        let kept = rng.index(logs.unsynced.len() + 1);
        for write in std::mem::take(&mut logs.unsynced).into_iter().take(kept) {
            // each was performed before, on the same images
            let _ = perform(&write, &mut logs.synced, &mut logs.synced_gone);
        }
        logs.now.clone_from(&logs.synced);
        logs.gone.clone_from(&logs.synced_gone);
    }

    /// Whether a crash now would take something.
    pub fn is_synced(&self) -> bool {
        self.0.borrow().unsynced.is_empty()
    }

    /// Groups with a replica.
    pub fn groups(&self) -> Vec<GroupId> {
        let logs = self.0.borrow();
        logs.now.iter().filter(|(_, image)| image.seed.is_some()).map(|(group, _)| *group).collect()
    }

    /// The largest id of a replica that was removed here.
    pub fn gone(&self, group: GroupId) -> u64 {
        self.0.borrow().gone.get(&group).copied().unwrap_or_default()
    }

    /// Reads a group's log as it stands.
    pub fn read<T>(&self, group: GroupId, read: impl FnOnce(&Image) -> T) -> Option<T> {
        self.0.borrow().now.get(&group).map(read)
    }

    /// Reads what a crash would leave of it.
    pub fn read_synced<T>(&self, group: GroupId, read: impl FnOnce(&Image) -> T) -> Option<T> {
        self.0.borrow().synced.get(&group).map(read)
    }

    /// Flips a bit in an entry of this group that is on disk. `false`: there is none.
    pub fn flip(&self, group: GroupId, rng: &mut Rng) -> bool {
        let logs = &mut *self.0.borrow_mut();
        let Some(image) = logs.synced.get_mut(&group).filter(|image| !image.entries.is_empty()) else { return false };
        let index = image.before() + 1 + rng.below(image.entries.len() as u64);
        image.damaged.insert(index);
        if let Some(image) = logs.now.get_mut(&group) {
            image.damaged.insert(index);
        }
        true
    }

    /// The groups whose logs have damaged entries, as the store finds them when it is opened.
    pub fn damaged(&self) -> Vec<GroupId> {
        let logs = self.0.borrow();
        logs.now.iter().filter(|(_, image)| !image.damaged.is_empty()).map(|(group, _)| *group).collect()
    }

    /// Reads an entry; none when the log does not have it.
    pub fn entry(&self, group: GroupId, index: u64) -> Result<Option<Entry>, KvError> {
        let logs = self.0.borrow();
        let Some(image) = logs.now.get(&group) else { return Ok(None) };
        Ok(image.read(group, index)?.cloned())
    }
}

impl LogReader for Log {
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError> {
        let logs = self.0.borrow();
        let lacks = |index: u64| KvError(format!("group {group}: entry {index} is not in the log"));
        let image = logs.now.get(&group).ok_or_else(|| lacks(low))?;
        let mut out: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let entry = image.read(group, index)?.ok_or_else(|| lacks(index))?;
            bytes += entry.data.len() as u64;
            if max_bytes.is_some_and(|max| bytes > max) && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, KvError> {
        let logs = self.0.borrow();
        let Some(image) = logs.now.get(&group) else { return Ok(None) };
        Ok(image.read(group, index)?.map(|entry| entry.term))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GROUP: GroupId = GroupId(3);

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<GroupWrite> {
        let entries = range.map(|index| Entry { index, term, ..Entry::default() }).collect();
        vec![GroupWrite { group: GROUP, entries, ..GroupWrite::default() }]
    }

    #[test]
    fn a_crash_takes_a_suffix_of_what_was_not_synced() {
        let mut lengths = BTreeSet::new();
        for seed in 0..50 {
            let log = Log::default();
            log.create(Seed { group: GROUP.0, ..Seed::default() }).unwrap();
            log.write(entries(1..=3, 1)).unwrap();
            log.sync().unwrap();
            log.write(entries(4..=4, 1)).unwrap();
            log.write(entries(3..=5, 2)).unwrap();
            assert_eq!(log.read(GROUP, |log| (log.last(), log.entry(3).map(|e| e.term))), Some((5, Some(2))));
            assert_eq!(log.read_synced(GROUP, Image::last), Some(3));
            log.crash(&mut Rng::new(seed));
            assert_eq!(log.read(GROUP, Image::last), log.read_synced(GROUP, Image::last));
            lengths.insert(log.read(GROUP, |log| (log.last(), log.entry(3).map(|e| e.term))).unwrap());
        }
        assert_eq!(Vec::from_iter(lengths), [(3, Some(1)), (4, Some(1)), (5, Some(2))]);
    }

    #[test]
    fn a_flipped_entry_is_found_when_it_is_read() {
        let log = Log::default();
        assert!(!log.flip(GROUP, &mut Rng::new(1)));
        log.write(entries(1..=3, 1)).unwrap();
        log.sync().unwrap();
        assert!(log.flip(GROUP, &mut Rng::new(1)));
        assert!(log.entries(GROUP, 1, 4, None).is_err());
        assert_eq!(log.damaged(), [GROUP]);
        // what takes its place is whole
        log.write(entries(1..=1, 2)).unwrap();
        assert!(log.entries(GROUP, 1, 2, None).is_ok());
    }

    #[test]
    fn a_gap_is_refused_and_a_cut_stays_inside_the_log() {
        let log = Log::default();
        log.write(entries(1..=5, 1)).unwrap();
        assert!(log.write(entries(7..=7, 1)).is_err());
        let cut = |index| {
            let compact = Some(Compacted { index, term: 1, ..Compacted::default() });
            vec![GroupWrite { group: GROUP, compact, ..GroupWrite::default() }]
        };
        assert!(log.write(cut(6)).is_err());
        log.write(cut(3)).unwrap();
        assert_eq!(log.read(GROUP, |log| (log.before(), log.last())), Some((3, 5)));
        assert!(log.entry(GROUP, 3).unwrap().is_none());
    }
}
