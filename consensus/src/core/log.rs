//! A group's Raft log as raft-rs sees it: the newest entries in memory, older ones through [`LogReader`].

use std::collections::VecDeque;

use canal_proto::GroupId;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::kv::KvError;

/// Entries of one group kept in memory, in bytes: what followers that keep up, and appliers, read.
const TAIL_BYTES: usize = 1 << 20;

/// Reads entries that have been persisted.
pub trait LogReader {
    /// Entries with `low <= index < high`, at least one, and no more than about `max_bytes`.
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError>;

    /// Term of an entry; `None` when it is not in the log.
    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, KvError>;
}

/// The log of one group.
pub struct GroupLog<L> {
    reader: L,
    group: GroupId,
    hard_state: HardState,
    conf_state: ConfState,
    last: u64,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
}

impl<L: LogReader> GroupLog<L> {
    /// The log with what was persisted of it.
    pub fn new(reader: L, group: GroupId, hard_state: HardState, conf_state: ConfState, last: u64) -> Self {
        Self { reader, group, hard_state, conf_state, last, tail: VecDeque::new(), tail_bytes: 0 }
    }

    /// Takes entries that the driver is about to persist; what stood at their indexes and behind is gone.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.tail.back().is_some_and(|last| last.index >= first.index) {
            if let Some(gone) = self.tail.pop_back() {
                self.tail_bytes -= size(&gone);
            }
        }
        for entry in entries {
            self.tail_bytes += size(entry);
            self.last = entry.index;
            self.tail.push_back(entry.clone());
        }
        while self.tail_bytes > TAIL_BYTES && self.tail.len() > 1 {
            if let Some(old) = self.tail.pop_front() {
                self.tail_bytes -= size(&old);
            }
        }
    }

    /// Takes the hard state that the driver is about to persist.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Takes a commit index, which goes to disk with the next hard state.
    pub fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// The hard state.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Takes a configuration that has been applied.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    fn place_in_tail(&self, index: u64) -> Option<usize> {
        let first = self.tail.front()?.index;
        index.checked_sub(first).and_then(|at| usize::try_from(at).ok()).filter(|at| *at < self.tail.len())
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 48
}

fn broken(error: KvError) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(error)))
}

impl<L: LogReader> Storage for GroupLog<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max = max_size.into();
        let Some(from) = self.place_in_tail(low) else {
            let stop = self.tail.front().map_or(high, |first| first.index.min(high));
            return self.reader.entries(self.group, low, stop, max).map_err(broken);
        };
        let mut out: Vec<Entry> = Vec::new();
        let mut bytes = 0u64;
        for entry in self.tail.range(from..).take_while(|entry| entry.index < high) {
            bytes += size(entry) as u64;
            if max.is_some_and(|max| bytes > max) && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == 0 {
            return Ok(0);
        }
        if index > self.last {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if let Some(entry) = self.place_in_tail(index).and_then(|at| self.tail.get(at)) {
            return Ok(entry.term);
        }
        let term = self.reader.term(self.group, index).map_err(broken)?;
        term.ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        // the log is whole until it is compacted into segments: see docs/architecture.md
        Ok(1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
