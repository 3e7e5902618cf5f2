//! What the groups of a peer have applied: rows that are written as they come and made durable now and then.
//!
//! A turn's changes, of all its groups, are one batch. A crash leaves a prefix of the batches, with everything in it that
//! was flushed.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::kv::{MemoryKv, WriteBatch};
use canal_consensus::core::rows::Applied;
use canal_proto::GroupId;
use prost::Message as _;

use crate::sim::rng::Rng;

/// The changes of a turn, by group.
pub type Batch = Vec<(GroupId, WriteBatch)>;

#[derive(Debug, Default)]
struct Held {
    now: MemoryKv,
    flushed: BTreeMap<Bytes, Bytes>,
}

/// The rows of a peer.
#[derive(Debug, Default)]
pub struct Rows {
    none: MemoryKv,
    groups: BTreeMap<GroupId, Held>,
    unflushed: VecDeque<Batch>,
    /// Batches written, and batches flushed.
    written: u64,
    flushed: u64,
}

fn perform(batch: &Batch, groups: &mut BTreeMap<GroupId, Held>) {
    for (group, batch) in batch {
        let rows = &mut groups.entry(*group).or_default().flushed;
        for (key, value) in &batch.ops {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
    }
}

impl Rows {
    /// The rows of a group, made empty if there are none.
    pub fn open(&mut self, group: GroupId) -> &MemoryKv {
        &self.groups.entry(group).or_default().now
    }

    /// The rows of a group.
    pub fn of(&self, group: GroupId) -> Option<&MemoryKv> {
        self.groups.get(&group).map(|held| &held.now)
    }

    /// The rows of a group, which may be none.
    pub fn open_ref(&self, group: GroupId) -> &MemoryKv {
        self.of(group).unwrap_or(&self.none)
    }

    /// Writes a batch.
    pub fn write(&mut self, batch: Batch) {
        for (group, batch) in &batch {
            self.groups.entry(*group).or_default().now.write(batch);
        }
        self.unflushed.push_back(batch);
        self.written += 1;
    }

    /// Writes the changes of one group.
    pub fn write_one(&mut self, group: GroupId, batch: WriteBatch) {
        if !batch.ops.is_empty() {
            self.write(vec![(group, batch)]);
        }
    }

    /// How many batches were written: what a flush that begins now will have made durable.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// A flush has ended: so many batches are durable.
    pub fn flush(&mut self, upto: u64) {
        while self.flushed < upto
            && let Some(batch) = self.unflushed.pop_front()
        {
            perform(&batch, &mut self.groups);
            self.flushed += 1;
        }
    }

    /// Index up to which the durable rows of a group have applied its log.
    pub fn flushed_to(&self, group: GroupId) -> u64 {
        let row = self.groups.get(&group).and_then(|held| held.flushed.get(&Keys(group).one(Table::Applied)));
        row.and_then(|row| Applied::decode(row.clone()).ok()).map_or(0, |applied| applied.index)
    }

    /// The machine stops.
    pub fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.index(self.unflushed.len() + 1);
        for batch in std::mem::take(&mut self.unflushed).into_iter().take(kept) {
            perform(&batch, &mut self.groups);
        }
        self.flushed = self.written;
        self.groups.retain(|_, held| !held.flushed.is_empty());
        for held in self.groups.values_mut() {
            held.now = MemoryKv::default();
            let ops = held.flushed.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
            held.now.write(&WriteBatch { ops });
        }
    }

    /// The rows were found damaged, and moved aside: there are none any more.
    pub fn lose(&mut self) {
        *self = Self::default();
    }

    /// The groups that have rows.
    pub fn groups(&self) -> Vec<GroupId> {
        let rows = self.groups.iter().filter(|(_, held)| !held.now.snapshot().is_empty());
        rows.map(|(group, _)| *group).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    const GROUP: GroupId = GroupId(3);

    fn batch(index: u64) -> Batch {
        let row = Applied { index, ..Applied::default() }.encode_to_vec();
        let ops = [(Keys(GROUP).one(Table::Applied), Some(row.into()))].into_iter().collect();
        vec![(GROUP, WriteBatch { ops })]
    }

    #[test]
    fn a_crash_leaves_what_was_flushed_and_perhaps_more() {
        let mut left = BTreeSet::new();
        for seed in 0..50 {
            let mut rows = Rows::default();
            rows.write(batch(1));
            rows.write(batch(2));
            let flush = rows.written();
            rows.write(batch(3));
            rows.write(batch(4));
            rows.flush(flush);
            assert_eq!(rows.flushed_to(GROUP), 2);
            rows.crash(&mut Rng::new(seed));
            left.insert(rows.flushed_to(GROUP));
            let now = rows.of(GROUP).unwrap().snapshot();
            let row = now.get(&Keys(GROUP).one(Table::Applied)).unwrap();
            assert_eq!(Applied::decode(row.clone()).unwrap().index, rows.flushed_to(GROUP));
            rows.write(batch(9));
            rows.flush(rows.written());
            assert_eq!(rows.flushed_to(GROUP), 9);
        }
        assert_eq!(Vec::from_iter(left), [2, 3, 4]);
    }
}
