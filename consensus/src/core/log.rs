//! A group's Raft log as raft-rs sees it: the newest entries in memory, older ones through [`LogReader`], and in place
//! of those that are compacted a [`Compacted`] record and, while a follower needs one, a prepared snapshot.

use std::cell::Cell;
use std::collections::VecDeque;

use canal_proto::GroupId;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::kv::KvError;
use super::rows::Configuration;

mod size;

use size::LiveBytes;

/// Entries of one group kept in memory, in bytes: what followers that keep up, and appliers, read.
const TAIL_BYTES: usize = 1 << 20;

/// Reads entries that have been persisted.
pub trait LogReader {
    /// Entries with `low <= index < high`, at least one, and no more than about `max_bytes`.
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError>;

    /// Term of an entry; `None` when it is not in the log.
    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, KvError>;
}

/// Where a log was cut: all entries up to an index are gone from it, and in the state instead.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Compacted {
    /// Index of the last entry that is gone.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// A configuration as of that index or later: what a replica goes by whose state was lost.
    #[prost(message, required, tag = "3")]
    pub configuration: Configuration,
}

/// The log of one group.
pub struct GroupLog<L> {
    reader: L,
    group: GroupId,
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term of the last entry that is compacted; 0 and 0 when none is.
    before: (u64, u64),
    last: u64,
    live: LiveBytes,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    prepared: Option<Snapshot>,
    /// The lowest index that a snapshot would need that was asked for and is not there.
    wanted: Cell<Option<u64>>,
    /// A snapshot was asked for, whether it was there or not.
    asked: Cell<bool>,
}

/// What was persisted of a log.
#[derive(Debug, Clone, Default)]
pub struct Persisted {
    /// The hard state.
    pub hard_state: HardState,
    /// Index and term of the last entry that is compacted; 0 and 0 when none is.
    pub before: (u64, u64),
    /// Index of the last entry.
    pub last: u64,
    /// Bytes of the entries, about.
    pub bytes: u64,
}

impl<L: LogReader> GroupLog<L> {
    /// The log with what was persisted of it.
    pub fn new(reader: L, group: GroupId, persisted: Persisted, conf_state: ConfState) -> Self {
        let Persisted { hard_state, before, last, bytes } = persisted;
        Self {
            reader,
            group,
            hard_state,
            conf_state,
            before,
            last,
            live: LiveBytes::new(before.0 + 1, last, bytes),
            tail: VecDeque::new(),
            tail_bytes: 0,
            prepared: None,
            wanted: Cell::new(None),
            asked: Cell::new(false),
        }
    }

    /// Takes entries that the driver is about to persist; what stood at their indexes and behind is gone.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.tail.back().is_some_and(|last| last.index >= first.index) {
            if let Some(gone) = self.tail.pop_back() {
                self.tail_bytes -= size(&gone);
            }
        }
        self.live.truncate(first.index);
        for entry in entries {
            self.tail_bytes += size(entry);
            self.live.push(entry.index, size(entry) as u64);
            self.last = entry.index;
            self.tail.push_back(entry.clone());
        }
        while self.tail_bytes > TAIL_BYTES && self.tail.len() > 1 {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(old) = self.tail.pop_front() {
            self.tail_bytes -= size(&old);
        }
    }

    /// Lets go of all entries up to one that the log holds; its term is remembered.
    pub fn compact(&mut self, index: u64, term: u64) {
        self.before = (index, term);
        self.live.compact(index);
        while self.tail.front().is_some_and(|first| first.index <= index) {
            self.drop_oldest();
        }
    }

    /// Begins anew behind a snapshot: what the log held is gone, before and behind the snapshot's index.
    pub fn install(&mut self, index: u64, term: u64, conf_state: ConfState) {
        self.before = (index, term);
        self.last = index;
        self.live = LiveBytes::new(index + 1, index, 0);
        self.tail.clear();
        self.tail_bytes = 0;
        self.conf_state = conf_state;
        self.prepared = None;
        self.hard_state.commit = self.hard_state.commit.max(index);
    }

    /// Index of the first entry; one behind the last when there is none.
    pub fn first(&self) -> u64 {
        self.before.0 + 1
    }

    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of the entries, about.
    pub fn live_bytes(&self) -> u64 {
        self.live.total()
    }

    /// Takes a snapshot that followers may have from now on, or takes it away.
    pub fn set_prepared(&mut self, snapshot: Option<Snapshot>) {
        self.prepared = snapshot;
    }

    /// What a snapshot that was asked for and not there has to reach.
    pub fn wanted(&self) -> Option<u64> {
        self.wanted.get()
    }

    /// Forgets [`Self::wanted`]: one is being made.
    pub fn clear_wanted(&self) {
        self.wanted.set(None);
    }

    /// Whether a snapshot was asked for since the last call.
    pub fn take_asked(&self) -> bool {
        self.asked.replace(false)
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

/// What raft-rs is told when entries can't be read: anything else, it answers by panicking. The reader has taken note, and
/// the driver sees to it that this replica takes no part any more.
fn unreadable(_noted: KvError) -> raft::Error {
    raft::Error::Store(StorageError::LogTemporarilyUnavailable)
}

fn unknown_term(_noted: KvError) -> raft::Error {
    raft::Error::Store(StorageError::Unavailable)
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
        if low <= self.before.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let max = max_size.into();
        let Some(from) = self.place_in_tail(low) else {
            let stop = self.tail.front().map_or(high, |first| first.index.min(high));
            return self.reader.entries(self.group, low, stop, max).map_err(unreadable);
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
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if let Some(entry) = self.place_in_tail(index).and_then(|at| self.tail.get(at)) {
            return Ok(entry.term);
        }
        let term = self.reader.term(self.group, index).map_err(unknown_term)?;
        term.ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// The prepared snapshot, if it reaches what is asked for, the log goes on behind it, and whoever gets it is named in
    /// it: raft-rs does not take one of a time before it belonged to the group.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        self.asked.set(true);
        let mut low = request_index.max(self.before.0);
        if let Some(prepared) = &self.prepared {
            let metadata = prepared.get_metadata();
            let state = metadata.get_conf_state();
            let named = [&state.voters, &state.learners, &state.voters_outgoing].iter().any(|ids| ids.contains(&to));
            if named && metadata.index >= low {
                return Ok(prepared.clone());
            }
            low = low.max(metadata.index + u64::from(!named));
        }
        self.wanted.set(Some(self.wanted.get().unwrap_or(u64::MAX).min(low)));
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests;
