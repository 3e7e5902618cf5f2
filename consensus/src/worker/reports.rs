//! What became of work on other threads.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use canal_proto::GroupId;
use canal_proto::log::{Kind, Seal};
use canal_proto::peer::Manifest;
use prost::Message as _;

use super::{Report, Waiter, Worker, now_ms};
use crate::compaction::{Prepared, Work, notes};
use crate::core::group::{Input, SnapshotPoint};
use crate::core::kv::WriteBatch;
use crate::handle::Error;
use crate::log_store::GroupWrite;
use crate::sealer::Made;

impl Worker {
    pub(super) fn report(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Sealed { group, result } => {
                self.ended(group);
                self.sealed(group, result);
            }
            Report::Made { group, number, result } => {
                self.ended(group);
                self.made(group, number, result?)?;
            }
            Report::Dumped { group, point, result } => {
                self.ended(group);
                self.dumped(group, point, result);
            }
            Report::Installed { group, result } => {
                self.ended(group);
                self.installed(group, result)?;
            }
            Report::Forgotten { group, result } => {
                self.ended(group);
                result?;
            }
            Report::Cleared { group, result } => {
                self.ended(group);
                match result? {
                    true => self.clearing.remove(&group),
                    false => self.clearing.insert(group, false),
                };
                self.sweep.get_or_insert_with(Instant::now);
            }
            Report::Swept { result } => {
                self.running = self.running.saturating_sub(1);
                self.sweeping = false;
                if result? {
                    let again = Instant::now() + self.limits.grace.max(Duration::from_millis(100));
                    self.sweep.get_or_insert(again);
                }
            }
            Report::Fetched { group, number, result } => self.fetched(group, number, result),
            Report::Flushed { applied, result } => {
                result?;
                self.flushing = false;
                for (id, (replica, index)) in applied {
                    let member = self.members.get_mut(&id).filter(|member| member.group.seed().replica == replica);
                    if let Some(member) = member {
                        member.history.flushed = member.history.flushed.max(index);
                    }
                }
                self.cut_all()?;
            }
        }
        self.let_leave()?;
        self.dispatch()
    }

    fn ended(&mut self, id: GroupId) {
        self.running = self.running.saturating_sub(1);
        if let Some(member) = self.members.get_mut(&id) {
            member.history.work = None;
        }
    }

    fn sealed(&mut self, id: GroupId, result: Result<Option<Seal>, String>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match result {
            Ok(Some(seal)) => {
                member.history.proposed = Some(seal.segments.clone());
                let ticket = self.ticket(id, Waiter::Seal);
                self.propose(id, ticket, Kind::Seal(seal));
            }
            Ok(None) => member.tell_sealing(),
            Err(reason) => {
                tracing::warn!(group = %id, reason, "events could not be moved to segments; it is tried again");
                member.history.rest(Work::Seal, Instant::now());
                member.tell_sealing();
            }
        }
    }

    fn propose(&mut self, id: GroupId, ticket: u64, kind: Kind) {
        if let Some(member) = self.members.get_mut(&id) {
            member.group.handle(Input::Propose(ticket, Box::new(kind)), now_ms());
            self.dirty.insert(id);
        }
    }

    fn made(&mut self, id: GroupId, number: u64, made: Made) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let history = &mut member.history;
        match made {
            Made::Here { here, lacking, superseded } => {
                let ops = notes(id, self.inner.kv.as_ref(), here)?;
                if !ops.is_empty() {
                    self.inner.kv.write(&WriteBatch { ops })?;
                }
                history.made(number, lacking, superseded);
                history.leftovers = true;
                self.sweep.get_or_insert_with(Instant::now);
            }
            Made::Failed(reason) => {
                tracing::warn!(group = %id, reason, "segments could not be made; it is tried again");
                history.rest(Work::Make, Instant::now());
            }
        }
        Ok(())
    }

    fn dumped(&mut self, id: GroupId, point: SnapshotPoint, result: Result<Manifest, String>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let input = match result {
            Ok(mut manifest) => {
                manifest.peer = self.peer.to_vec().into();
                self.inner.counts.written.fetch_add(1, Ordering::Relaxed);
                let data = manifest.encode_to_vec().into();
                member.history.prepared = Some(Prepared { manifest });
                Input::SnapshotReady(point, data)
            }
            Err(reason) => {
                tracing::warn!(group = %id, reason, "a snapshot could not be written; it is tried again");
                Input::SnapshotFailed
            }
        };
        member.group.handle(input, now_ms());
        self.dirty.insert(id);
        self.sweep.get_or_insert_with(Instant::now);
    }

    fn installed(&mut self, id: GroupId, result: Result<(), crate::dump::Error>) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some((install, _)) = member.history.installing.take() else { return Ok(()) };
        match result {
            Ok(()) => {}
            Err(crate::dump::Error::Kv(error)) => return Err(error.into()),
            Err(error) => {
                // a file was damaged meanwhile, and whoever gave it may not have it any more; without this replica the
                // group may have no majority for another snapshot, so it takes part as it did before
                tracing::warn!(group = %id, %error, "a snapshot can't be taken over; this replica asks for another");
                return self.give_up_installation(id);
            }
        }
        let (compacted, hard_state) = install.finish(member.group.seed(), self.inner.kv.as_ref())?;
        // it went with the rows that were there before
        let seed = member.group.seed().clone();
        self.note_seed(&seed)?;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        self.cuts.remove(&id);
        self.inner.log.write(&[GroupWrite::installed(id, compacted, hard_state)], true)?;
        member.group.installed(self.inner.kv.as_ref())?;
        let status = member.group.status();
        tracing::info!(group = %id, index = install.index, "a snapshot was taken over");
        self.inner.counts.installed.fetch_add(1, Ordering::Relaxed);
        let heads = self.heads(id, status.spec.topics.iter().map(|topic| topic.id))?;
        let mut history = self.history_of(id)?;
        history.flushed = install.index;
        if let Some(member) = self.members.get_mut(&id) {
            *member.shared.heads.write() = heads;
            member.history = history;
        }
        self.dirty.insert(id);
        self.sweep.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn fetched(&mut self, id: GroupId, number: u64, result: Result<(), String>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let history = &mut member.history;
        if history.fetched(number, result.is_ok(), Instant::now()) {
            if let Err(reason) = result {
                tracing::warn!(group = %id, reason, "files could not be fetched; it is tried again");
            }
            return;
        }
        if history.offered.as_ref().is_none_or(|offered| offered.number != number) {
            return;
        }
        let Some(offered) = history.offered.take() else { return };
        match result {
            Ok(()) => {
                member.group.handle(Input::Message(offered.from, offered.message), now_ms());
                self.dirty.insert(id);
            }
            // the leader offers it, or a newer one, again
            Err(reason) => {
                tracing::warn!(group = %id, reason, "this replica could not be filled; it goes on when its leader asks again");
                history.interrupted(offered, Instant::now());
            }
        }
    }
}
