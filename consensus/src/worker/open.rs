//! Bringing replicas to life: those that the stores hold at start, and new ones; and what a crash has left of others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use canal_proto::log::Segment;
use canal_proto::peer::{Manifest, Seed};
use canal_proto::{ContentHash, GroupId, TopicId};
use prost::Message as _;

use super::{Member, Worker, now_ms};
use crate::compaction::History;
use crate::core::group::{Group, Input, Install, Origin};
use crate::core::keys::{Keys, Table, end_of};
use crate::core::kv::{KvError, WriteBatch};
use crate::core::sealing;
use crate::core::txn::decode;
use crate::dump;
use crate::handle::{Error, Shared};
use crate::log_store::{GroupWrite, Loaded, LogStore};

/// Rows removed in one batch when nothing else goes on yet.
const SLICE: usize = 16_384;

impl Worker {
    /// Opens the replicas that the stores hold.
    pub(super) fn open_all(&mut self) -> Result<(), Error> {
        let groups = self.inner.log.groups()?;
        let mut lost = false;
        for id in self.groups_with_rows()? {
            if groups.contains(&id) {
                continue;
            }
            if self.inner.log.gone(id)? > 0 {
                // it was being removed
                self.clearing.insert(id, false);
            } else {
                lost = true;
            }
        }
        if lost && groups.is_empty() {
            let message = "there is applied state, but no log: the log was lost or moved. Restore it, or remove this \
                           peer's data directory and let it join as a new peer";
            return Err(KvError(message.to_owned()).into());
        }
        for id in groups {
            let Some(meta) = self.inner.log.meta(id)? else { continue };
            let seed = Seed::decode(meta.as_slice()).map_err(|e| {
                KvError(format!("the record of group {id} is damaged: {e}; restore the data directory"))
            })?;
            self.bring_to_life(seed)?;
        }
        Ok(())
    }

    /// The groups that have rows: the first key of each is asked for.
    fn groups_with_rows(&self) -> Result<Vec<GroupId>, Error> {
        let mut groups = Vec::new();
        let mut start = Vec::new();
        while let Some((key, _)) = self.inner.kv.scan(&start, &[], 1, false)?.pop() {
            let Some(prefix) = key.first_chunk::<8>() else {
                return Err(KvError("the state has a row of no group; restore the data directory".to_owned()).into());
            };
            groups.push(GroupId(u64::from_be_bytes(*prefix)));
            start = end_of(prefix);
            if start.is_empty() {
                break;
            }
        }
        Ok(groups)
    }

    pub(super) fn bring_to_life(&mut self, seed: Seed) -> Result<(), Error> {
        let id = GroupId(seed.group);
        let mut loaded = self.inner.log.load(id)?;
        if let Some(record) = loaded.as_ref().and_then(|loaded| loaded.installing.clone()) {
            self.finish_installation(&seed, &Install::from_record(record)?)?;
            loaded = self.inner.log.load(id)?;
        }
        let Loaded { hard_state, last, compacted, .. } = loaded.unwrap_or_default();
        let (_, log_bytes) = self.inner.log.live(id)?;
        let origin: Origin<LogStore> =
            Origin { seed, reader: self.inner.log.clone(), hard_state, last, log_bytes, compacted };
        let mut group = Group::open(origin, self.ticks, self.inner.kv.as_ref(), &self.logger)?;
        if group.is_alone() {
            // nobody else can lead, so there is nothing to wait for
            group.handle(Input::Campaign, now_ms());
        }
        let status = group.status();
        if status.hollow {
            let (group, first) = (id, status.first);
            tracing::warn!(%group, first, "the state of a replica is lost and its log was cut; its group has to fill it");
            if status.configuration.replicas.len() < 2 {
                tracing::error!(%group, "there is no other replica: restore `state` from `state.damaged-*` if you can");
            }
        }
        let heads = self.heads(id, status.spec.topics.iter().map(|topic| topic.id))?;
        let history = self.history_of(id)?;
        let shared = Arc::new(Shared::new(group.seed().clone(), status, heads));
        self.inner.groups.write().insert(id, shared.clone());
        self.inner.members.send_modify(|version| *version += 1);
        self.members.insert(id, Member { group, shared, history, leads: false });
        self.dirty.insert(id);
        Ok(())
    }

    /// What the rows say of a group's seals, and which of their files are here.
    pub(super) fn history_of(&self, id: GroupId) -> Result<History, Error> {
        let sealed = sealing::sealed(self.inner.kv.as_ref(), id)?;
        self.drop_notes(id)?;
        let prefix = Keys(id).one(Table::Segments);
        let mut segments = Vec::new();
        for (key, value) in self.inner.kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)? {
            let segment: Segment = decode(&key, value)?;
            if !self.is_here(&segment) {
                segments.push(segment);
            }
        }
        let mut history = History { sealed, leftovers: true, ..History::default() };
        if segments.is_empty() {
            history.here = sealed;
        } else {
            history.sealed(sealed, segments);
        }
        Ok(history)
    }

    fn is_here(&self, segment: &Segment) -> bool {
        ContentHash::from_slice(&segment.hash).is_ok_and(|hash| self.inner.files.contains(&hash))
    }

    /// Removes the notes of replaced segments where the file of the new one is here: a crash came between the two.
    fn drop_notes(&self, id: GroupId) -> Result<(), Error> {
        let keys = Keys(id);
        let prefix = keys.one(Table::Replaced);
        let mut batch = WriteBatch::default();
        for (note, value) in self.inner.kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)? {
            let old: Segment = decode(&note, value)?;
            let key = keys.topic(Table::Segments, TopicId(old.topic), old.first);
            let row: Option<Segment> = self.inner.kv.get(&key)?.map(|row| decode(&key, row)).transpose()?;
            if row.is_none_or(|row| self.is_here(&row)) {
                batch.ops.insert(note, None);
            }
        }
        if !batch.ops.is_empty() {
            self.inner.kv.write(&batch)?;
        }
        Ok(())
    }

    /// Does again what the record of an installation says, that a crash cut off. When its files are not all here, or
    /// damaged, the group's rows go: the replica begins with its log, or waits to be filled.
    fn finish_installation(&self, seed: &Seed, install: &Install) -> Result<(), Error> {
        let id = GroupId(seed.group);
        let manifest = Manifest::decode(install.data.clone()).unwrap_or_default();
        let finished = match dump::install(id, &manifest, &self.inner.files, self.inner.kv.as_ref()) {
            Ok(()) => install.finish(seed, self.inner.kv.as_ref()).map(Some)?,
            Err(dump::Error::Kv(error)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(group = %id, %error, "a snapshot that was being taken over is given up");
                None
            }
        };
        let write = match finished {
            Some((compacted, hard_state)) => {
                self.inner.counts.installed.fetch_add(1, Ordering::Relaxed);
                GroupWrite::installed(id, compacted, hard_state)
            }
            None => {
                self.clear_now(id)?;
                self.inner.kv.flush()?;
                GroupWrite { group: id, installing: Some(None), ..GroupWrite::default() }
            }
        };
        Ok(self.inner.log.write(&[write], true)?)
    }

    fn clear_now(&self, id: GroupId) -> Result<(), Error> {
        let prefix = id.0.to_be_bytes();
        loop {
            let rows = self.inner.kv.scan(&prefix, &end_of(&prefix), SLICE, false)?;
            if rows.is_empty() {
                return Ok(());
            }
            let ops = rows.into_iter().map(|(key, _)| (key, None)).collect();
            self.inner.kv.write(&WriteBatch { ops })?;
        }
    }
}
