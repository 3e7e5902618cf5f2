//! One turn of all groups that have something to do.

use std::collections::BTreeSet;
use std::time::Instant;

use canal_proto::GroupId;
use canal_proto::peer::{Manifest, RaftEnvelope};
use prost::Message as _;

use super::{Waiter, Worker, now_ms};
use crate::compaction::{note_replaced, segments_of};
use crate::convert;
use crate::core::group::{Install, Output, Persist};
use crate::core::kv::{KvError, WriteBatch};
use crate::core::machine::{Effect, Reply};
use crate::handle::Error;
use crate::log_store::GroupWrite;

impl Worker {
    /// Lets every group that has something to do take its turn, with one write of the log for all.
    pub(super) fn turn(&mut self) -> Result<(), Error> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return Ok(());
        }
        let now = now_ms();
        let mut writes = Vec::new();
        let mut installs = Vec::new();
        let mut sync = false;
        for id in &dirty {
            let cut = self.cuts.remove(id);
            let Some(member) = self.members.get_mut(id) else { continue };
            // what was cut may be cleared with the next purge, so the record of it must not be lost
            sync |= cut.is_some();
            let mut write = GroupWrite { group: *id, compact: cut, ..GroupWrite::default() };
            if let Some(persist) = member.group.prepare(now) {
                sync |= persist.sync;
                let Persist { entries, hard_state, install, .. } = persist;
                (write.entries, write.hard_state) = (entries, hard_state);
                if let Some(install) = install {
                    write.installing = Some(Some(install.record()));
                    installs.push((*id, install));
                }
            }
            if !write.entries.is_empty()
                || write.hard_state.is_some()
                || write.compact.is_some()
                || write.installing.is_some()
            {
                writes.push(write);
            }
            // nothing leaves of a replica that could not read what it would say something of
            self.find_unreadable();
            self.give(*id)?;
        }
        if !writes.is_empty() {
            self.inner.log.write(&writes, sync)?;
        }
        for (id, install) in installs {
            self.begin_installation(id, install)?;
        }
        let mut batch = WriteBatch::default();
        let mut reconfigured = false;
        for id in &dirty {
            let Some(member) = self.members.get_mut(id) else { continue };
            member.group.persisted(self.inner.kv.as_ref(), &mut batch)?;
            if let Some(hard_state) = member.group.must_persist() {
                let write = GroupWrite { group: *id, hard_state: Some(hard_state), ..GroupWrite::default() };
                self.inner.log.write(&[write], true)?;
                reconfigured = true;
            }
            note_replaced(*id, self.inner.kv.as_ref(), |hash| self.inner.files.contains(hash), &mut batch)?;
        }
        let sealed = if batch.ops.is_empty() { Vec::new() } else { segments_of(&dirty, &batch)? };
        if !batch.ops.is_empty() {
            self.inner.kv.write(&batch)?;
        }
        if reconfigured {
            // who else holds a group is asked of the rows when the log can't be read
            self.inner.kv.flush()?;
        }
        for (id, through, segments) in sealed {
            if let Some(member) = self.members.get_mut(&id) {
                member.history.sealed(through, segments);
            }
        }
        for id in &dirty {
            self.give(*id)?;
            self.show(*id);
        }
        Ok(())
    }

    /// Shows how a group stands after its turn.
    pub(super) fn show(&mut self, id: GroupId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.group.has_work() {
            self.dirty.insert(id);
        }
        let status = member.group.status();
        if status.leader != 0 && status.leader != status.replica {
            member.leader = status.leader;
        }
        if status.leads != member.leads {
            member.leads = status.leads;
            let now = Instant::now();
            let mut heard = member.shared.heard.lock();
            if status.leads {
                // others were heard since, by their votes
                let before = heard.last.get(&member.leader).copied().unwrap_or(now);
                member.shared.stall.lock().leads(before, now);
            }
            heard.since = now;
            heard.last.clear();
        }
        member.shared.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    /// From now on the group waits for a snapshot's rows: its record is in the log store.
    fn begin_installation(&mut self, id: GroupId, install: Install) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let manifest = Manifest::decode(install.data.clone())
            .map_err(|e| KvError(format!("group {id}: a snapshot's manifest can't be read: {e}")))?;
        tracing::info!(group = %id, index = install.index, "takes over a snapshot");
        member.history.offered = None;
        self.transfer.cancel(id);
        member.history.installing = Some((install, manifest));
        // before the first row goes
        member.shared.status.send_modify(|status| status.installing = true);
        self.dispatch()
    }

    /// Hands out what a group wants.
    pub(super) fn give(&mut self, id: GroupId) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        for output in member.group.take_outputs() {
            let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
            match output {
                Output::Send(messages) => {
                    for message in messages {
                        if let Some(replica) = member.group.replica(message.to) {
                            let message = convert::to_wire(message);
                            self.outgoing.send(replica, RaftEnvelope { group: id.0, message });
                        }
                    }
                }
                Output::Reply(ticket, reply) => match self.waiters.remove(&ticket).map(|(_, waiter)| waiter) {
                    // the asker may have given up: its deadline passed
                    Some(Waiter::Client(responder)) => drop(responder.send(reply)),
                    Some(Waiter::Publisher(responder)) => {
                        member.shared.stall.lock().answered(reply.is_ok(), Instant::now());
                        drop(responder.send(reply));
                    }
                    Some(Waiter::Seal) => {
                        let taken = matches!(reply, Ok(Reply::Sealed(Ok(()))));
                        if !taken {
                            tracing::debug!(group = %id, ?reply, "a seal was not taken");
                        }
                        if let Some(times) = member.history.seal_ended(taken) {
                            tracing::warn!(
                                group = %id, times, ?reply,
                                "events can't be moved from the log to segments, so the log grows; it is tried again"
                            );
                        }
                        member.tell_sealing();
                        self.sweep.get_or_insert_with(Instant::now);
                    }
                    None => {}
                },
                Output::Effect(effect) => self.effect(id, effect),
                Output::WantsSnapshot(point) => self.write_snapshot(id, point)?,
                Output::Refill { leader } => {
                    tracing::info!(group = %id, leader, "this replica has lost its state and asks to be filled");
                }
                Output::Forgotten { leader, acknowledged, last } => {
                    tracing::error!(
                        group = %id, leader, acknowledged, last,
                        "this replica has acknowledged entries that its log does not have: the disk has forgotten. It takes \
                         no part any more, and its group replaces it"
                    );
                    self.inner.forgotten.send_if_modified(|groups| groups.insert(id));
                }
                Output::Contradicted { from, index } => {
                    tracing::error!(
                        group = %id, from, index,
                        "a replica contradicts what is committed here; check the disks of both peers"
                    );
                }
            }
        }
        Ok(())
    }

    fn effect(&mut self, id: GroupId, effect: Effect) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match effect {
            Effect::Head { topic, next } => {
                member.shared.heads.write().insert(topic, next);
            }
            Effect::Spec => {
                let spec = member.group.status().spec;
                let hosted: BTreeSet<u64> = spec.topics.iter().map(|topic| topic.id).collect();
                member.shared.heads.write().retain(|topic, _| hosted.contains(&topic.0));
                // topics may be gone, with rows and files
                member.history.leftovers = true;
                self.sweep.get_or_insert_with(Instant::now);
            }
            Effect::Sealed { .. } | Effect::Trimmed { .. } => {
                member.history.leftovers = true;
                self.sweep.get_or_insert_with(Instant::now);
            }
            Effect::Outbox(_) | Effect::Catalog | Effect::Subscription { .. } | Effect::Step(_) => {}
        }
    }
}
