//! The thread on which all groups of a peer take their turns.
//!
//! A turn: take what has arrived; let every group that has something to do say what it wants on disk; write that for
//! all groups together and sync once; then let them apply, answer and send. Applied state is written once a turn, in
//! one batch, and not synced: the log is, and it is replayed from wherever the state was.
//!
//! A store that fails stops the thread for good: a replica whose disk can't be trusted must not vote.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use canal_proto::log::{AppendItem, Kind};
use canal_proto::peer::{RaftEnvelope, Replica, Seed};
use canal_proto::{GroupId, MeshId, PeerId, TopicId};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::RwLock;
use prost::Message as _;
use raft::eraftpb::Entry;
use tokio::sync::{oneshot, watch};

use crate::convert;
use crate::core::group::{Group, Input, Origin, Output, Persist, Refused, Ticket, Ticks};
use crate::core::kv::{KvError, WriteBatch};
use crate::core::log::LogReader;
use crate::core::machine::{Effect, Reply};
use crate::handle::{Error, Inner, MAX_INBOX, Options, Outgoing, Shared};
use crate::log_store::{GroupWrite, LogStore};
use crate::view::View;

/// How often applied state is made durable, and the log's files are tidied up. It bounds what a restart replays.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// Answers a request.
pub(crate) type Responder = oneshot::Sender<Result<Reply, Refused>>;

/// A request to one group.
pub(crate) enum Command {
    Append(AppendItem, Responder),
    Propose(Box<Kind>, Responder),
    Read(Responder),
    AddLearner(Replica, Responder),
    Promote(u64, Responder),
    Transfer(u64),
    Unreachable(u64),
}

/// What the worker is told.
pub(crate) enum Request {
    Group(GroupId, Command),
    Message(PeerId, Box<RaftEnvelope>),
    Create(Box<Seed>, oneshot::Sender<Result<(), Error>>),
    Stop,
}

impl LogReader for LogStore {
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError> {
        LogStore::entries(self, group, low, high, max_bytes).map_err(|e| KvError(e.to_string()))
    }

    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, KvError> {
        LogStore::term(self, group, index).map_err(|e| KvError(e.to_string()))
    }
}

struct Member {
    group: Group<LogStore>,
    shared: Arc<Shared>,
}

/// The worker.
pub(crate) struct Worker {
    inner: Arc<Inner>,
    requests: Receiver<Request>,
    outgoing: Arc<dyn Outgoing>,
    tick: Duration,
    ticks: Ticks,
    logger: slog::Logger,
    members: BTreeMap<GroupId, Member>,
    dirty: BTreeSet<GroupId>,
    responders: HashMap<Ticket, Responder>,
    next_ticket: Ticket,
    stopping: bool,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Worker {
    pub(crate) fn open(
        inner: Arc<Inner>,
        requests: Receiver<Request>,
        outgoing: Arc<dyn Outgoing>,
        options: &Options,
    ) -> Result<Self, Error> {
        let mut worker = Self {
            inner,
            requests,
            outgoing,
            tick: options.tick,
            ticks: options.ticks,
            // raft-rs logs every step of every election; what a user needs to know, the peer says itself
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            members: BTreeMap::new(),
            dirty: BTreeSet::new(),
            responders: HashMap::new(),
            next_ticket: 1,
            stopping: false,
        };
        let groups = worker.inner.log.groups()?;
        if groups.is_empty() && !worker.inner.kv.scan(&[], &[], 1, false)?.is_empty() {
            let message = "there is applied state, but no log: the log was lost or moved. Restore it, or remove this \
                           peer's data directory and let it join as a new peer";
            return Err(KvError(message.to_owned()).into());
        }
        for id in groups {
            let Some(meta) = worker.inner.log.meta(id)? else { continue };
            let seed = Seed::decode(meta.as_slice()).map_err(|e| {
                KvError(format!("the record of group {id} is damaged: {e}; restore the data directory"))
            })?;
            worker.bring_to_life(seed)?;
        }
        Ok(worker)
    }

    fn bring_to_life(&mut self, seed: Seed) -> Result<(), Error> {
        let id = GroupId(seed.group);
        let loaded = self.inner.log.load(id)?;
        let (hard_state, last) = loaded.map_or_else(Default::default, |loaded| (loaded.hard_state, loaded.last));
        let origin: Origin<LogStore> = Origin { seed, reader: self.inner.log.clone(), hard_state, last };
        let mut group = Group::open(origin, self.ticks, self.inner.kv.as_ref(), &self.logger)?;
        if group.is_alone() {
            // nobody else can lead, so there is nothing to wait for
            group.handle(Input::Campaign, now_ms());
        }
        let status = group.status();
        let view = View::new(id, self.inner.kv.clone(), self.inner.log.clone());
        let mut heads = BTreeMap::new();
        for topic in &status.spec.topics {
            if let Some(row) = view.topic(TopicId(topic.id))? {
                heads.insert(TopicId(topic.id), row.next);
            }
        }
        let seed = group.seed().clone();
        let mesh = MeshId::from_slice(&seed.mesh).ok();
        let shared = Arc::new(Shared { mesh, seed, status: watch::Sender::new(status), heads: RwLock::new(heads) });
        self.inner.groups.write().insert(id, shared.clone());
        self.inner.members.send_modify(|version| *version += 1);
        self.members.insert(id, Member { group, shared });
        self.dirty.insert(id);
        Ok(())
    }

    /// Takes turns until told to stop, or until a store fails.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.turns() {
            tracing::error!(%error, "the stores of this peer failed; its groups stop and no longer vote");
            self.inner.failed.send_replace(Some(error.to_string()));
        }
        if let Err(error) = self.inner.kv.flush() {
            tracing::warn!(%error, "applied state was not flushed; it is replayed from the log at the next start");
        }
    }

    fn turns(&mut self) -> Result<(), Error> {
        let mut next_tick = Instant::now() + self.tick;
        let mut next_flush = Instant::now() + FLUSH_EVERY;
        while !self.stopping {
            if self.dirty.is_empty() {
                match self.requests.recv_deadline(next_tick) {
                    Ok(request) => self.take(request)?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
            for _ in 0..MAX_INBOX {
                let Ok(request) = self.requests.try_recv() else { break };
                self.take(request)?;
            }
            let now = Instant::now();
            if now >= next_tick {
                // ticks that were missed are not made up for: a peer that was paused must not rush to an election
                next_tick = now + self.tick;
                self.tick_all();
            }
            self.turn()?;
            if now >= next_flush {
                next_flush = now + FLUSH_EVERY;
                self.inner.kv.flush()?;
                self.inner.log.purge()?;
            }
        }
        Ok(())
    }

    fn tick_all(&mut self) {
        let now = now_ms();
        for (id, member) in &mut self.members {
            member.group.handle(Input::Tick, now);
            if member.group.has_work() {
                self.dirty.insert(*id);
            }
        }
    }

    fn take(&mut self, request: Request) -> Result<(), Error> {
        match request {
            Request::Stop => self.stopping = true,
            Request::Create(seed, responder) => {
                let result = self.create(*seed);
                if let Err(error @ (Error::Log(_) | Error::State(_) | Error::Kv(_))) = result {
                    let _ = responder.send(Err(Error::Stopped));
                    return Err(error);
                }
                let _ = responder.send(result);
            }
            Request::Message(peer, envelope) => {
                let id = GroupId(envelope.group);
                match (self.members.get_mut(&id), convert::from_wire(envelope.message)) {
                    (Some(member), Ok(message)) if message.to == member.group.seed().replica => {
                        member.group.handle(Input::Message(peer, Box::new(message)), now_ms());
                        self.dirty.insert(id);
                    }
                    (Some(_), Ok(message)) => {
                        tracing::debug!(group = %id, to = message.to, "a message for another replica; dropped");
                    }
                    (None, _) => tracing::debug!(group = %id, "a message for a group without a replica here; dropped"),
                    (_, Err(error)) => tracing::warn!(group = %id, %error, "a malformed message"),
                }
            }
            Request::Group(id, command) => self.command(id, command),
        }
        Ok(())
    }

    fn command(&mut self, id: GroupId, command: Command) {
        let input = match command {
            Command::Append(item, responder) => Input::Append(self.expect(responder), item),
            Command::Propose(kind, responder) => Input::Propose(self.expect(responder), *kind),
            Command::Read(responder) => Input::Read(self.expect(responder)),
            Command::AddLearner(replica, responder) => Input::AddLearner(self.expect(responder), replica),
            Command::Promote(replica, responder) => Input::Promote(self.expect(responder), replica),
            Command::Transfer(to) => Input::Transfer(to),
            Command::Unreachable(replica) => Input::Unreachable(replica),
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.group.handle(input, now_ms());
            self.dirty.insert(id);
        }
    }

    fn expect(&mut self, responder: Responder) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.responders.insert(ticket, responder);
        ticket
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
        if View::new(id, self.inner.kv.clone(), self.inner.log.clone()).applied()? > 0 {
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

    /// One turn of all groups that have something to do.
    fn turn(&mut self) -> Result<(), Error> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return Ok(());
        }
        let now = now_ms();
        let mut writes = Vec::new();
        let mut sync = false;
        for id in &dirty {
            let Some(member) = self.members.get_mut(id) else { continue };
            if let Some(persist) = member.group.prepare(now) {
                sync |= persist.sync;
                let Persist { entries, hard_state, .. } = persist;
                if !entries.is_empty() || hard_state.is_some() {
                    writes.push(GroupWrite { group: *id, entries, hard_state });
                }
            }
            self.give(*id);
        }
        if !writes.is_empty() {
            self.inner.log.write(&writes, sync)?;
        }
        let mut batch = WriteBatch::default();
        for id in &dirty {
            let Some(member) = self.members.get_mut(id) else { continue };
            member.group.persisted(self.inner.kv.as_ref(), &mut batch)?;
            if let Some(hard_state) = member.group.must_persist() {
                let write = GroupWrite { group: *id, entries: Vec::new(), hard_state: Some(hard_state) };
                self.inner.log.write(&[write], true)?;
            }
        }
        if !batch.ops.is_empty() {
            self.inner.kv.write(&batch)?;
        }
        for id in &dirty {
            self.give(*id);
            let Some(member) = self.members.get_mut(id) else { continue };
            if member.group.has_work() {
                self.dirty.insert(*id);
            }
            let status = member.group.status();
            member.shared.status.send_if_modified(|old| {
                let changed = *old != status;
                *old = status;
                changed
            });
        }
        Ok(())
    }

    /// Hands out what a group wants.
    fn give(&mut self, id: GroupId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        for output in member.group.take_outputs() {
            match output {
                Output::Send(messages) => {
                    for message in messages {
                        if let Some(replica) = member.group.replica(message.to) {
                            let message = convert::to_wire(message);
                            self.outgoing.send(replica, RaftEnvelope { group: id.0, message });
                        }
                    }
                }
                Output::Reply(ticket, reply) => {
                    if let Some(responder) = self.responders.remove(&ticket) {
                        // the asker may have given up: its deadline passed
                        let _ = responder.send(reply);
                    }
                }
                Output::Effect(Effect::Head { topic, next }) => {
                    member.shared.heads.write().insert(topic, next);
                }
                Output::Effect(Effect::Spec) => {
                    let spec = member.group.status().spec;
                    let hosted: BTreeSet<u64> = spec.topics.iter().map(|topic| topic.id).collect();
                    member.shared.heads.write().retain(|topic, _| hosted.contains(&topic.0));
                }
                Output::Effect(Effect::Outbox(_) | Effect::Catalog) => {}
            }
        }
    }
}
