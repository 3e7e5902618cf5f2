//! One turn of all groups of a peer that have something to do: one write for all of them, synced once; then they apply,
//! answer and send. Nothing that stands on the write leaves before it is synced.

use std::collections::BTreeSet;

use bytes::Bytes;
use canal_consensus::compaction::{note_replaced, segments_of};
use canal_consensus::convert;
use canal_consensus::core::group::{Install, Output, Persist};
use canal_consensus::core::keys::Table;
use canal_consensus::core::kv::{KvError, MemoryKv, WriteBatch};
use canal_consensus::core::machine::{Effect, Reply};
use canal_consensus::log_store::GroupWrite;
use canal_consensus::{Refused, Ticks};
use canal_proto::{Code, GroupId, WireError};
use raft::eraftpb::Message;

use super::{Inbound, Waiter, entries};
use crate::sim::around::{Answer, Failed, Machine};
use crate::sim::faults::Kind;
use crate::sim::mutants::{self, Mutant};
use crate::sim::queue::Micros;
use crate::sim::seen::Seen;
use crate::sim::world::{Call, Event, World};

/// As the node has them.
pub const TICKS: Ticks = Ticks { election: 10, heartbeat: 2 };
/// What is taken in at most before groups take their turns.
const MAX_INBOX: usize = 4096;
/// How long syncing takes, at least and at most.
const SYNC: (Micros, Micros) = (60, 400);

/// A turn whose write is being synced.
pub struct Turn {
    dirty: BTreeSet<GroupId>,
    installs: Vec<(GroupId, Install)>,
    synced: bool,
}

/// The changes of cursors, taken out of a turn's batch: a deliberate bug writes them apart.
fn take_cursors(batches: &mut [(GroupId, WriteBatch)]) -> Vec<(GroupId, WriteBatch)> {
    let is_cursor = |key: &[u8]| key.get(8) == Some(&(Table::Cursors as u8));
    let take = |(group, batch): &mut (GroupId, WriteBatch)| {
        let (cursors, rest) = std::mem::take(&mut batch.ops).into_iter().partition(|(key, _)| is_cursor(key));
        batch.ops = rest;
        (*group, WriteBatch { ops: cursors })
    };
    batches.iter_mut().map(take).filter(|(_, batch)| !batch.ops.is_empty()).collect()
}

impl World {
    /// Lets a peer take turns, until it has nothing to do or waits for its disk.
    pub(in crate::sim) fn turn(&mut self, peer: Machine) {
        loop {
            match self.begin_turn(peer) {
                Ok(true) => {
                    if let Err(error) = self.end_turn(peer) {
                        return self.store_failed(peer, &error);
                    }
                }
                Ok(false) => return,
                Err(error) => return self.store_failed(peer, &error),
            }
        }
    }

    /// The write of a peer's turn is on its disk.
    pub(in crate::sim) fn turn_synced(&mut self, peer: Machine) {
        match self.end_turn(peer) {
            Ok(()) => self.turn(peer),
            Err(error) => self.store_failed(peer, &error),
        }
    }

    /// The first half. `true`: the second may follow at once; `false`: there is nothing to do, or it waits for its disk.
    fn begin_turn(&mut self, peer: Machine) -> Result<bool, KvError> {
        for _ in 0..MAX_INBOX {
            let Some(live) = self.peers[peer].live.as_mut().filter(|live| live.turn.is_none()) else {
                return Ok(false);
            };
            let Some(inbound) = live.inbox.pop_front() else { break };
            self.take(peer, inbound)?;
        }
        let now_ms = self.now_ms(peer);
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(false) };
        let dirty = std::mem::take(&mut live.dirty);
        if dirty.is_empty() {
            return Ok(false);
        }
        let mut turn = Turn { dirty, installs: Vec::new(), synced: false };
        let mut writes = Vec::new();
        for id in &turn.dirty {
            self.tell_role(peer, *id);
            let Some(live) = self.peers[peer].live.as_mut() else { return Ok(false) };
            let cut = live.cuts.remove(id);
            let Some(member) = live.members.get_mut(id) else { continue };
            turn.synced |= cut.is_some();
            let mut write = GroupWrite { group: *id, compact: cut, ..GroupWrite::default() };
            if let Some(persist) = member.group.prepare(now_ms) {
                turn.synced |= persist.sync;
                let Persist { entries, hard_state, install, .. } = persist;
                (write.entries, write.hard_state) = (entries, hard_state);
                if peer == 1 && mutants::is(Mutant::StoresOther) {
                    let some = write.entries.iter_mut().filter(|entry| entry.index.is_multiple_of(40));
                    some.for_each(|entry| entry.data = Bytes::new());
                }
                if let Some(install) = install {
                    write.installing = Some(Some(install.record()));
                    turn.installs.push((*id, install));
                }
            }
            let has = !write.entries.is_empty() || write.hard_state.is_some() || write.compact.is_some();
            if has || write.installing.is_some() {
                writes.push(write);
            }
            self.give(peer, *id)?;
        }
        let wrote = !writes.is_empty();
        if turn.synced && self.dies_in_turn(peer) {
            return Ok(false);
        }
        let held = &mut self.peers[peer];
        if wrote {
            held.disk.log.write(writes)?;
        }
        let Some(live) = held.live.as_mut() else { return Ok(false) };
        let synced = turn.synced && wrote;
        turn.synced = synced;
        live.turn = Some(turn);
        if synced {
            let slow = self.setup.faults.strength(Kind::SlowDisk);
            let mut lasts = self.disk_rng.between(SYNC.0, SYNC.1);
            if self.faulty && slow > 0 && self.slow_disks.contains(&peer) {
                lasts += self.disk_rng.below(slow * 1000);
            }
            let start = self.peers[peer].start;
            self.queue.push(self.now + lasts, Event::Synced { peer, start });
        }
        Ok(!synced)
    }

    /// The second half.
    fn end_turn(&mut self, peer: Machine) -> Result<(), KvError> {
        let held = &mut self.peers[peer];
        let Some(turn) = held.live.as_mut().and_then(|live| live.turn.take()) else { return Ok(()) };
        let Turn { dirty, installs, synced } = turn;
        if synced {
            held.disk.log.sync()?;
        }
        for (id, install) in installs {
            self.begin_installation(peer, id, install)?;
        }
        let none = MemoryKv::default();
        let mut batches = Vec::new();
        let mut sealed = Vec::new();
        let mut persisted = false;
        let held = &mut self.peers[peer];
        let Some(live) = held.live.as_mut() else { return Ok(()) };
        for id in &dirty {
            let Some(member) = live.members.get_mut(id) else { continue };
            let kv = held.disk.rows.of(*id).unwrap_or(&none);
            let mut batch = WriteBatch::default();
            member.group.persisted(kv, &mut batch)?;
            if let Some(hard_state) = member.group.must_persist() {
                let write = GroupWrite { group: *id, hard_state: Some(hard_state), ..GroupWrite::default() };
                held.disk.log.write(vec![write])?;
                persisted = true;
            }
            if !batch.ops.is_empty() {
                note_replaced(*id, kv, |hash| held.disk.files.contains(hash), &mut batch)?;
                sealed.extend(segments_of(&BTreeSet::from([*id]), &batch)?);
                batches.push((*id, batch));
            }
        }
        if persisted {
            held.disk.log.sync()?;
        }
        dirty.iter().for_each(|id| self.tell_role(peer, *id));
        // whatever becomes of the process from here on, it has applied them
        dirty.iter().for_each(|id| self.tell_applied(peer, *id));
        if (synced || persisted) && self.dies_in_turn(peer) {
            return Ok(());
        }
        let cursors = if mutants::is(Mutant::CursorApart) { take_cursors(&mut batches) } else { Vec::new() };
        for batch in [batches, cursors].into_iter().filter(|batch| !batch.is_empty()) {
            self.peers[peer].disk.rows.write(batch);
        }
        if synced && self.dies_in_turn(peer) {
            return Ok(());
        }
        for (id, through, segments) in sealed {
            if let Some(member) = self.member(peer, id) {
                member.history.sealed(through, segments);
            }
        }
        for id in &dirty {
            self.give(peer, *id)?;
            self.show(peer, *id);
        }
        Ok(())
    }

    fn dies_in_turn(&mut self, peer: Machine) -> bool {
        let strength = self.setup.faults.strength(Kind::CrashInTurn);
        // the chance is for the turn, which has three places where it asks
        let dies = self.faulty && strength > 0 && self.disk_rng.below(3000) < strength;
        if dies {
            self.crash(peer, Kind::CrashInTurn);
        }
        dies
    }

    /// Tells that a replica leads a new term.
    fn tell_role(&mut self, peer: Machine, group: GroupId) {
        let Some(member) = self.member(peer, group) else { return };
        let pulse = member.group.pulse();
        if pulse.rules && pulse.term > member.ruled {
            member.ruled = pulse.term;
            let replica = member.group.seed().replica;
            self.tally.elections += 1;
            self.see(Seen::Leads { peer, group, replica, term: pulse.term });
        }
    }

    /// Tells what was applied, and wakes the rooms that wait for it.
    fn tell_applied(&mut self, peer: Machine, group: GroupId) {
        let Some(member) = self.member(peer, group) else { return };
        let pulse = member.group.pulse();
        let (from, upto) = (member.told, pulse.applied);
        if upto <= from || pulse.installing {
            return;
        }
        member.told = upto;
        let replica = member.group.seed().replica;
        let rooms: Vec<_> = member.led.iter().chain(&member.rooms).copied().collect();
        if !pulse.hollow {
            for entry in entries(&self.peers[peer].disk.log, group, from, upto) {
                self.trace.note(&[group.0, replica, entry.index, entry.term]);
                self.see(Seen::Applied { peer, group, replica, entry });
            }
        }
        self.calls.extend(rooms.into_iter().map(Call::Wake));
    }

    /// Shows how a group stands after its turn: rooms come when it begins to lead, and go when it does not any more.
    pub(in crate::sim) fn show(&mut self, peer: Machine, group: GroupId) {
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        let Some(member) = live.members.get_mut(&group) else { return };
        if member.group.has_work() {
            live.dirty.insert(group);
        }
        let pulse = member.group.pulse();
        // who lost the lead and won it again in one turn leads anew
        let anew = member.leads && pulse.leads && member.led_term != pulse.term;
        if pulse.leads == member.leads && !anew {
            return;
        }
        member.leads = pulse.leads;
        member.led_term = pulse.term;
        let gone = std::mem::take(&mut member.led);
        gone.into_iter().for_each(|actor| self.dismiss(actor));
        if pulse.leads {
            self.hire_leader(peer, group);
        }
    }

    /// Hands out what a group wants.
    pub(in crate::sim) fn give(&mut self, peer: Machine, id: GroupId) -> Result<(), KvError> {
        let Some(member) = self.member(peer, id) else { return Ok(()) };
        for output in member.group.take_outputs() {
            match output {
                Output::Send(messages) => messages.into_iter().for_each(|message| self.send(peer, id, message)),
                Output::Reply(ticket, reply) => {
                    let waiter = self.peers[peer].live.as_mut().and_then(|live| live.waiters.remove(&ticket));
                    if let Some((_, waiter)) = waiter {
                        self.reply(peer, id, waiter, reply);
                    }
                }
                Output::Effect(effect) => {
                    let Some(member) = self.member(peer, id) else { return Ok(()) };
                    if matches!(effect, Effect::Spec | Effect::Sealed { .. } | Effect::Trimmed { .. }) {
                        member.history.leftovers = true;
                        self.wants_sweep(peer);
                    }
                }
                Output::WantsSnapshot(point) => self.write_snapshot(peer, id, point),
                Output::Refill { .. } => self.tally.count("asked to be filled"),
                Output::Forgotten { leader, acknowledged, last } => {
                    let text =
                        format!("acknowledged entry {acknowledged} to replica {leader}, but its log ends at {last}");
                    self.tally.count("found to have forgotten");
                    self.see(Seen::Contradiction { peer, group: id, text });
                }
                Output::Contradicted { from, index } => {
                    let text = format!("contradicts replica {from} at entry {index}");
                    self.see(Seen::Contradiction { peer, group: id, text });
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, peer: Machine, group: GroupId, message: Message) {
        let Some(member) = self.member(peer, group) else { return };
        let replica = member.group.replica(message.to);
        let to = replica.and_then(|replica| replica.peer_id().ok()).and_then(|id| self.identities.machine(id));
        let Some(to) = to else { return };
        let [one, two] = self.network.send(peer, to, self.now);
        let Some(first) = one else { return };
        let message = Box::new(convert::to_wire(message));
        if let Some(second) = two {
            let message = message.clone();
            self.tally.count("duplicate");
            self.queue.push(second, Event::Message { from: peer, to, group, message });
        }
        self.queue.push(first, Event::Message { from: peer, to, group, message });
    }

    /// Answers who waited for a ticket.
    pub(in crate::sim) fn reply(
        &mut self,
        peer: Machine,
        group: GroupId,
        waiter: Waiter,
        reply: Result<Reply, Refused>,
    ) {
        match waiter {
            Waiter::Publisher { ask, topic, producer, first, count } => {
                if let Ok(Reply::Appended(results)) = &reply
                    && let Some(Ok(receipt)) = results.first()
                {
                    self.see(Seen::Receipt {
                        peer,
                        group,
                        topic,
                        producer: producer.to_vec(),
                        first,
                        count: count.min(receipt.count.into()),
                        offset: receipt.offset,
                        index: receipt.index,
                        term: receipt.term,
                    });
                }
                self.reply_to_ask(peer, group, ask, reply);
            }
            // as the node says it: a publish may be sent again, anything else may not
            Waiter::Proposer(ask) if reply == Err(Refused::Uncertain) => {
                let error = WireError::new(Code::NoQuorum, Refused::Uncertain.to_string());
                self.answer(peer, ask, Err(Failed::Error(error)));
            }
            Waiter::Proposer(ask) => self.reply_to_ask(peer, group, ask, reply),
            Waiter::Reader { ask, bucket, key } => {
                let answer = match reply {
                    Ok(_) => Ok(Answer::Row(self.row(peer, group, &bucket, &key))),
                    Err(refused) => Err(self.failed(peer, group, refused)),
                };
                self.answer(peer, ask, answer);
            }
            Waiter::Room(actor, token) => self.calls.push_back(Call::Proposed(actor, token, Box::new(reply))),
            Waiter::Seal => {
                if let Some(member) = self.member(peer, group) {
                    let _ = member.history.seal_ended(matches!(reply, Ok(Reply::Sealed(Ok(())))));
                }
                self.wants_sweep(peer);
            }
        }
    }

    fn reply_to_ask(&mut self, peer: Machine, group: GroupId, ask: u64, reply: Result<Reply, Refused>) {
        let answer = match reply {
            Ok(reply) => Ok(Answer::Reply(reply)),
            Err(refused) => Err(self.failed(peer, group, refused)),
        };
        self.answer(peer, ask, answer);
    }

    /// What a refusal is to who asked.
    pub(in crate::sim) fn failed(&self, peer: Machine, group: GroupId, refused: Refused) -> Failed {
        if !matches!(refused, Refused::NotLeader | Refused::Uncertain) {
            return Failed::Refused(refused);
        }
        let member = self.peers[peer].live.as_ref().and_then(|live| live.members.get(&group));
        let leader = member.and_then(|member| {
            let leader = member.group.pulse().leader;
            member.group.replica(leader).and_then(|replica| self.identities.holder(replica))
        });
        Failed::NotLeader(leader.filter(|leader| *leader != peer))
    }

    /// A peer takes something in.
    fn take(&mut self, peer: Machine, inbound: Inbound) -> Result<(), KvError> {
        let now_ms = self.now_ms(peer);
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        match inbound {
            Inbound::Tick => {
                for (id, member) in &mut live.members {
                    member.group.handle(canal_consensus::core::group::Input::Tick, now_ms);
                    if member.group.has_work() {
                        live.dirty.insert(*id);
                    }
                }
                self.look(peer)
            }
            Inbound::Input(group, input) => {
                if let Some(member) = live.members.get_mut(&group) {
                    member.group.handle(*input, now_ms);
                    live.dirty.insert(group);
                }
                Ok(())
            }
            Inbound::Message(from, group, message) => self.message(peer, from, group, *message),
            Inbound::Ask(ask, question) => self.asked(peer, ask, *question),
            Inbound::Report(report) => self.report(peer, report),
        }
    }
}
