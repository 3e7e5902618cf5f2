//! Bringing replicas to life: those that the stores hold at start, and new ones; and what a crash has left of others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use canal_proto::peer::{Manifest, Seed};
use canal_proto::{ContentHash, GroupId, TopicId};
use prost::Message as _;

use super::{Member, Worker, now_ms};
use crate::compaction::{self, History};
use crate::core::group::{Group, Input, Install, Origin};
use crate::core::keys::end_of;
use crate::core::kv::WriteBatch;
use crate::damage::groups_with_rows;
use crate::dump;
use crate::handle::{Error, Shared};
use crate::log_store::{GroupWrite, Loaded, LogStore};

/// Rows removed in one batch when nothing else goes on yet.
const SLICE: usize = 16_384;

/// A replica as the stores hold it.
struct Opened {
    group: Group<LogStore>,
    /// The next offsets of its topics.
    heads: BTreeMap<TopicId, u64>,
    history: History,
    /// What has to be read of its log at once can be.
    readable: bool,
}

impl Worker {
    /// Opens the replicas that the stores hold.
    pub(super) fn open_all(&mut self) -> Result<(), Error> {
        let groups = self.inner.log.groups()?;
        let mut lost = false;
        for id in groups_with_rows(self.inner.kv.as_ref())? {
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
        if lost {
            let missing = match groups.is_empty() {
                true => "there is applied state, but no log: the log was lost or moved",
                false => "there is applied state of groups that the log knows nothing of: a part of the log was lost",
            };
            return Err(self.contradicted(missing.to_owned()));
        }
        for id in groups {
            let Some(meta) = self.inner.log.meta(id)? else { continue };
            let seed = Seed::decode(meta.as_slice())
                .map_err(|e| self.contradicted(format!("the record of group {id} in the raft log is damaged: {e}")))?;
            self.bring_to_life(seed)?;
        }
        Ok(())
    }

    pub(super) fn bring_to_life(&mut self, seed: Seed) -> Result<(), Error> {
        let id = GroupId(seed.group);
        let Opened { group, heads, history, readable } = self.open_replica(seed)?;
        let shared = Arc::new(Shared::new(group.seed().clone(), group.status(), heads));
        self.inner.groups.write().insert(id, shared.clone());
        self.inner.members.send_modify(|version| *version += 1);
        self.members.insert(id, Member { group, shared, history, leads: false, leader: 0, unreadable: false });
        self.dirty.insert(id);
        if !readable {
            self.find_unreadable();
        }
        Ok(())
    }

    /// The snapshot that a replica was taking over can't be had: it goes on as after a crash, from what is on disk.
    /// Meanwhile it heard and said nothing, so nobody else notices.
    pub(super) fn give_up_installation(&mut self, id: GroupId) -> Result<(), Error> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let opened = self.open_replica(member.group.seed().clone())?;
        self.transfer.cancel(id);
        self.cuts.remove(&id);
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        (member.group, member.history) = (opened.group, opened.history);
        *member.shared.heads.write() = opened.heads;
        self.dirty.insert(id);
        Ok(())
    }

    fn open_replica(&self, seed: Seed) -> Result<Opened, Error> {
        let id = GroupId(seed.group);
        let mut loaded = self.inner.log.load(id)?;
        if let Some(record) = loaded.as_ref().and_then(|loaded| loaded.installing.clone()) {
            self.finish_installation(&seed, &Install::from_record(record)?)?;
            loaded = self.inner.log.load(id)?;
        }
        let Loaded { hard_state, last, compacted, .. } = loaded.unwrap_or_default();
        let applied = self.inner.view(id).applied()?;
        if applied > last {
            let reason =
                format!("group {}: the state has applied entry {applied}, but the log ends at {last}", seed.name);
            return Err(self.contradicted(reason));
        }
        if self.note_seed(&seed)? {
            self.inner.kv.flush()?;
        }
        let (_, log_bytes) = self.inner.log.live(id)?;
        let origin: Origin<LogStore> =
            Origin { seed, reader: self.inner.log.clone(), hard_state, last, log_bytes, compacted };
        let mut group = Group::open(origin, self.ticks, self.inner.kv.as_ref(), &self.logger)?;
        let readable = self.read_ahead(&group, applied, last)?;
        if group.is_alone() {
            // nobody else can lead, so there is nothing to wait for
            group.handle(Input::Campaign, now_ms());
        }
        let status = group.status();
        if status.hollow {
            let (group, first) = (id, status.first);
            tracing::warn!(%group, first, "the state of a replica is lost and its log was cut; its group has to fill it");
        }
        let heads = self.heads(id, status.spec.topics.iter().map(|topic| topic.id))?;
        let history = self.history_of(id)?;
        Ok(Opened { group, heads, history, readable })
    }

    /// What the rows say of a group's seals, and which of their files are here.
    pub(super) fn history_of(&self, id: GroupId) -> Result<History, Error> {
        let (kv, has) = (self.inner.kv.as_ref(), |hash: &ContentHash| self.inner.files.contains(hash));
        let batch = compaction::old_notes(id, kv, has)?;
        if !batch.ops.is_empty() {
            kv.write(&batch)?;
        }
        Ok(compaction::load(id, kv, has)?)
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
