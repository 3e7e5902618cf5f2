//! What arrives: requests, and messages of other replicas.

use std::sync::atomic::Ordering;
use std::time::Instant;

use canal_proto::peer::{Manifest, RaftEnvelope, Seed};
use canal_proto::{ContentHash, GroupId, PeerId};
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::oneshot;

use super::{Command, Leaving, Request, Waiter, Worker, now_ms};
use crate::compaction::Offered;
use crate::convert;
use crate::core::group::{Input, Refused};
use crate::handle::Error;
use crate::transfer::{Source, Task};

impl Worker {
    pub(super) fn take(&mut self, request: Request) -> Result<(), Error> {
        match request {
            Request::Stop => self.stopping = true,
            Request::Create(seed, responder) => {
                let result = self.create(*seed);
                return tell(responder, result);
            }
            Request::Remove(group, replica, responder) => {
                let busy = self.members.get(&group).is_some_and(|member| member.history.work.is_some());
                if busy {
                    self.leaving.push(Leaving { group, replica, responder });
                } else {
                    let result = self.remove(group, replica);
                    return tell(responder, result);
                }
            }
            Request::Message(peer, envelope) => self.message(peer, *envelope),
            Request::Group(id, command) => self.command(id, command),
            Request::Report(report) => return self.report(report),
        }
        Ok(())
    }

    fn message(&mut self, peer: PeerId, envelope: RaftEnvelope) {
        let id = GroupId(envelope.group);
        let Some(member) = self.members.get_mut(&id) else {
            return tracing::debug!(group = %id, "a message for a group without a replica here; dropped");
        };
        let message = match convert::from_wire(envelope.message) {
            Ok(message) if message.to == member.group.seed().replica => message,
            Ok(message) => {
                return tracing::debug!(group = %id, to = message.to, "a message for another replica; dropped");
            }
            Err(error) => return tracing::warn!(group = %id, %error, "a malformed message"),
        };
        if member.group.is_impostor(peer, message.from) {
            return tracing::warn!(group = %id, %peer, from = message.from, "a message in another peer's name; dropped");
        }
        member.shared.heard.lock().note(message.from);
        if message.msg_type == MessageType::MsgSnapshot {
            self.offered(id, peer, Box::new(message));
        } else {
            member.group.handle(Input::Message(peer, Box::new(message)), now_ms());
            self.dirty.insert(id);
        }
    }

    /// A leader offers a snapshot. Raft hears of it only when all of it is here: until then it counts as not arrived.
    fn offered(&mut self, id: GroupId, peer: PeerId, message: Box<Message>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let index = message.get_snapshot().get_metadata().index;
        let manifest = match Manifest::decode(message.get_snapshot().data.clone()) {
            Ok(manifest) => manifest,
            Err(error) => return tracing::warn!(group = %id, %error, "a malformed snapshot; dropped"),
        };
        if member.history.installing.is_some() {
            return;
        }
        if let Some(running) = member.history.offered.as_mut().filter(|running| running.manifest == manifest) {
            // it comes again every few seconds: what is under way goes on
            (running.from, running.message) = (peer, message);
            return;
        }
        let files = &self.inner.files;
        let here = |hash: &[u8]| ContentHash::from_slice(hash).is_ok_and(|hash| files.contains(&hash));
        let pieces = manifest.rows.iter().chain(&manifest.segments).filter(|piece| !here(&piece.hash));
        let pieces: Vec<_> = pieces.cloned().collect();
        let known = member.shared.status.borrow().committed >= index;
        if pieces.is_empty() || (known && !member.group.needs_snapshot(index)) {
            member.group.handle(Input::Message(peer, message), now_ms());
            self.dirty.insert(id);
            return;
        }
        let number = self.next_task;
        self.next_task += 1;
        member.history.fetching = None;
        let mut sources: Vec<Source> = Vec::new();
        let from = PeerId::from_slice(&manifest.peer).unwrap_or(peer);
        let replicas = member.group.status().configuration.replicas.clone();
        let addresses = |peer: PeerId| replicas.iter().find(|r| r.peer == peer.to_vec()).map(|r| r.addresses.clone());
        sources.push(Source { peer: from, addresses: addresses(from).unwrap_or_default() });
        if from != peer {
            sources.push(Source { peer, addresses: addresses(peer).unwrap_or_default() });
        }
        tracing::info!(group = %id, index, files = pieces.len(), from = %from, "this replica is being filled by a snapshot");
        member.history.offered = Some(Offered { from: peer, message, manifest, number });
        self.transfer.begin(Task { group: id, number, pieces, sources });
    }

    fn command(&mut self, id: GroupId, command: Command) {
        if !self.members.contains_key(&id) {
            // whoever waits learns that nobody answers
            return;
        }
        let input = match command {
            Command::Append(item, responder) => Input::Append(self.ticket(id, Waiter::Publisher(responder)), item),
            Command::Propose(kind, responder) => Input::Propose(self.ticket(id, Waiter::Client(responder)), kind),
            Command::Read(responder) => Input::Read(self.ticket(id, Waiter::Client(responder))),
            Command::AddLearner(replica, responder) => {
                Input::AddLearner(self.ticket(id, Waiter::Client(responder)), replica)
            }
            Command::Promote(replica, responder) => Input::Promote(self.ticket(id, Waiter::Client(responder)), replica),
            Command::Change(change, responder) => Input::Change(self.ticket(id, Waiter::Client(responder)), change),
            Command::Transfer(to) => Input::Transfer(to),
            Command::Unreachable(replica) => Input::Unreachable(replica),
        };
        if let Some(member) = self.members.get_mut(&id) {
            if matches!(input, Input::Append(..)) {
                member.shared.stall.lock().asked(Instant::now());
            }
            member.group.handle(input, now_ms());
            self.dirty.insert(id);
        }
    }

    fn create(&mut self, seed: Seed) -> Result<(), Error> {
        let id = GroupId(seed.group);
        if let Some(member) = self.members.get(&id) {
            return if member.group.seed().replica == seed.replica {
                Ok(())
            } else {
                Err(Refused::Configuration("the group has a replica of another id on this peer").into())
            };
        }
        if seed.replica <= self.inner.log.gone(id)? {
            let gone = "this replica was removed from this peer: it may not come back";
            return Err(Refused::Configuration(gone).into());
        }
        if self.clearing.contains_key(&id) {
            return Err(Refused::Configuration("the replica before this one is still being removed; try again").into());
        }
        if self.inner.view(id).applied()? > 0 {
            let lost = "this peer has state of the group, but no log of it: a replica may not begin again here";
            return Err(Refused::Configuration(lost).into());
        }
        self.inner.log.put_meta(id, &seed.encode_to_vec())?;
        let stands = seed.first.first().is_some_and(|first| first.id == seed.replica);
        self.bring_to_life(seed)?;
        if stands && let Some(member) = self.members.get_mut(&id) {
            // it is created last of the first replicas, so the others are there to vote: nobody needs to wait for a
            // timeout
            member.group.handle(Input::Campaign, now_ms());
        }
        Ok(())
    }

    /// Removes a replica: the log first, with a note of its id, then what it had applied. A crash in between is seen at
    /// the next start by that note.
    pub(super) fn remove(&mut self, id: GroupId, replica: u64) -> Result<(), Error> {
        match self.members.get(&id) {
            None => return Ok(()),
            Some(member) if member.group.seed().replica != replica => {
                let other = "the group has a replica of another id on this peer";
                return Err(Refused::Configuration(other).into());
            }
            Some(_) => {}
        }
        self.inner.log.remove(id, replica)?;
        if let Some(member) = self.members.remove(&id) {
            if member.unreadable {
                // its group has replaced it
                self.inner.counts.damage_repaired.fetch_add(1, Ordering::Relaxed);
            }
            self.inner.groups.write().remove(&id);
            member.shared.gone.store(true, Ordering::Release);
            member.shared.status.send_modify(|status| status.leads = false);
            self.inner.members.send_modify(|version| *version += 1);
        }
        for (_, (_, waiter)) in self.waiters.extract_if(|_, (group, _)| *group == id) {
            if let Waiter::Client(responder) | Waiter::Publisher(responder) = waiter {
                let _ = responder.send(Err(Refused::Uncertain));
            }
        }
        self.inner.forgotten.send_if_modified(|groups| groups.remove(&id));
        self.transfer.cancel(id);
        self.dirty.remove(&id);
        self.cuts.remove(&id);
        self.clearing.insert(id, false);
        tracing::info!(group = %id, replica, "a replica was removed");
        Ok(())
    }

    /// Removes the replicas that waited for the end of work on their files.
    pub(super) fn let_leave(&mut self) -> Result<(), Error> {
        let busy = |worker: &Self, leaving: &Leaving| {
            worker.members.get(&leaving.group).is_some_and(|member| member.history.work.is_some())
        };
        for leaving in std::mem::take(&mut self.leaving) {
            if busy(self, &leaving) {
                self.leaving.push(leaving);
            } else {
                let result = self.remove(leaving.group, leaving.replica);
                tell(leaving.responder, result)?;
            }
        }
        Ok(())
    }
}

/// Answers; a store's failure is the worker's end as well.
fn tell(responder: oneshot::Sender<Result<(), Error>>, result: Result<(), Error>) -> Result<(), Error> {
    if let Err(error @ (Error::Log(_) | Error::State(_) | Error::Kv(_))) = result {
        let _ = responder.send(Err(Error::Stopped));
        return Err(error);
    }
    let _ = responder.send(result);
    Ok(())
}
