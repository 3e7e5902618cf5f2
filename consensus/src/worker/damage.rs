//! What is done about damage in one group: a file, or an entry of its log, that can't be read.
//!
//! A file is made or fetched again. A log is not mended: a replica that can't read what it has promised to keep takes no
//! part any more, and its group replaces it by one with a new id. Only where the group can't go on without it, it stays:
//! all that it can still read is worth more than its silence.

use std::sync::atomic::Ordering;
use std::time::Instant;

use canal_proto::GroupId;
use canal_proto::peer::Seed;
use prost::Message as _;

use super::Worker;
use crate::core::group::{Group, Status};
use crate::core::keys::{Keys, Table};
use crate::core::kv::WriteBatch;
use crate::damage::{self, Damage};
use crate::handle::Error;
use crate::log_store::{self, LogStore};

impl Worker {
    /// Sees to it that files come back that were found damaged by whoever read them.
    pub(super) fn find_damaged(&mut self) -> Result<(), Error> {
        let damaged = self.inner.files.take_damaged();
        if damaged.is_empty() {
            return Ok(());
        }
        for hash in &damaged {
            tracing::error!(%hash, "a file is damaged; it is made or fetched again. Check this peer's disk");
        }
        for (id, member) in &mut self.members {
            if member.history.damaged(&damaged) {
                member.group.snapshot_spoilt();
                self.dirty.insert(*id);
            }
            for segment in self.inner.view(*id).all_segments()? {
                if damaged.iter().any(|hash| hash.0[..] == segment.hash[..]) {
                    member.history.lost(segment);
                }
            }
        }
        self.sweep.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Looks at the groups of whose log something could not be read.
    pub(super) fn find_unreadable(&mut self) {
        for id in self.inner.log.take_unreadable() {
            self.unreadable(id);
        }
    }

    fn unreadable(&mut self, id: GroupId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if std::mem::replace(&mut member.unreadable, true) {
            return;
        }
        self.inner.counts.damage_found.fetch_add(1, Ordering::Relaxed);
        if member.group.is_needed() {
            tracing::error!(
                group = %id,
                "entries of the log of this group can't be read, and the group can't go on without this replica: it goes on, \
                 but they can neither be read nor sent to others. Check this peer's disk, and restore it from a copy"
            );
            return;
        }
        tracing::error!(
            group = %id, replica = member.group.seed().replica,
            "entries of the log of this replica can't be read: it takes no part any more, and its group replaces it. Check \
             this peer's disk"
        );
        member.group.give_up();
        self.dirty.insert(id);
    }

    /// Notices that state that was lost is there again.
    pub(super) fn notice_mended(&mut self) {
        let whole = |status: &Status| !status.hollow && !status.installing && status.applied >= status.committed;
        let mending = self.inner.counts.mending.load(Ordering::Relaxed) && !self.members.is_empty();
        if mending && self.members.values().all(|member| whole(&member.shared.status.borrow())) {
            self.inner.counts.mending.store(false, Ordering::Relaxed);
            self.inner.counts.damage_repaired.fetch_add(1, Ordering::Relaxed);
            tracing::info!("what was lost to damage is here again");
        }
    }

    /// Looks at what a replica that comes to life has to read at once: entries that are not applied, and the last.
    pub(super) fn read_ahead(&self, group: &Group<LogStore>, applied: u64, last: u64) -> Result<bool, Error> {
        let id = group.id();
        let mut next = Some(applied.saturating_add(1).min(last));
        let reason = loop {
            match next.map(|next| self.inner.log.check(id, next)) {
                Some(Ok(more)) => next = more,
                None => return Ok(true),
                Some(Err(log_store::Error::Damaged { reason, .. })) => break reason,
                Some(Err(error)) => return Err(error.into()),
            }
        };
        if !group.is_needed() {
            return Ok(false);
        }
        let reason = format!("the raft log of group {} is damaged: {reason}", group.seed().name);
        Err(Error::Damaged(Damage { reason, needed: [group.seed().name.clone()].into(), unknown: false }))
    }

    /// Writes down beside the rows who else holds the group. Durable with the next flush.
    pub(super) fn note_seed(&self, seed: &Seed) -> Result<bool, Error> {
        let key = Keys(GroupId(seed.group)).one(Table::Seed);
        let row = seed.encode_to_vec();
        if self.inner.kv.get(&key)?.is_some_and(|known| known == row) {
            return Ok(false);
        }
        self.inner.kv.write(&WriteBatch { ops: [(key, Some(row.into()))].into() })?;
        Ok(true)
    }

    /// The log is not what the rows say that it was.
    pub(super) fn contradicted(&self, reason: String) -> Error {
        match damage::by_rows(self.inner.kv.as_ref(), reason) {
            Ok(damage) => Error::Damaged(damage),
            Err(error) => error.into(),
        }
    }
}
