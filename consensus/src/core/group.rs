//! One replica of a group: Raft, and the state machine behind it.
//!
//! A turn has two halves. In the first, [`Group::handle`] takes inputs and [`Group::prepare`] says what has to be on
//! disk, together with the messages that may leave at once (a leader's appends: it needs a majority, not itself). When
//! that is synced, [`Group::persisted`] gives the messages that stood on it, applies what is committed to the turn's
//! batch, and answers. So nothing that depends on a write leaves before the write is done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use canal_proto::limits::{MAX_ENTRY, MAX_REPLICAS};
use canal_proto::log::{Append, AppendItem, Command, GroupSpec, Kind};
use canal_proto::peer::{Replica, Seed};
use canal_proto::{GroupId, MeshId};
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message};
use raft::{Config, RawNode, ReadOnlyOption, StateRole};

use super::keys::{Keys, Table};
use super::kv::{Kv, KvError, WriteBatch};
use super::log::{GroupLog, LogReader, Persisted};
use super::machine::{self, Effect, Place, Reply};
use super::rows::{Applied, Configuration, Counter};
use super::txn::Txn;
use snapshots::Filling;

mod guard;
mod install;
mod membership;
mod snapshots;
mod timing;
mod types;

pub use install::Install;
pub use types::{
    ChangeSet, Input, Origin, Output, Persist, Progress, Pulse, Refused, SnapshotPoint, Status, Ticket, Ticks,
};

/// Bytes of append items that are put into one entry: an entry is sent, synced and applied as a whole.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of entries that may wait to be committed; above it a proposal is refused as busy.
const MAX_UNCOMMITTED: u64 = 32 << 20;
/// Messages with entries on their way to one follower.
const MAX_INFLIGHT: usize = 256;
/// Bytes of entries in one message: one large entry, or many small ones, and well below a frame.
const MAX_MESSAGE: u64 = 1 << 20;
/// Committed entries applied in one turn, in bytes: a replica that catches up must not hold up the others.
const MAX_APPLY: u64 = 4 << 20;
/// Replicas that are remembered although the configuration does not name them.
const MAX_MET: usize = 2 * MAX_REPLICAS;

/// A replica.
pub struct Group<L: LogReader> {
    seed: Seed,
    id: GroupId,
    mesh: MeshId,
    raw: RawNode<GroupLog<L>>,
    configuration: Arc<Configuration>,
    spec: Arc<GroupSpec>,
    outbox: u64,
    met: BTreeMap<u64, Replica>,
    changed: bool,
    applied: Applied,
    appends: Vec<(Ticket, AppendItem)>,
    waiting: VecDeque<Waiting>,
    reads: BTreeMap<u64, Vec<Ticket>>,
    reads_asked: BTreeMap<Ticket, ()>,
    ready: Option<raft::Ready>,
    after: Vec<Message>,
    committed: Vec<Entry>,
    outputs: Vec<Output>,
    filling: Filling,
    /// The rows are older than the log's beginning.
    hollow: bool,
    installing: Option<Install>,
    forgotten: bool,
}

struct Waiting {
    index: u64,
    term: u64,
    tickets: Vec<Ticket>,
}

/// The configuration with which a group begins.
fn first_configuration(seed: &Seed) -> Configuration {
    Configuration {
        voters: seed.first.iter().map(|replica| replica.id).collect(),
        replicas: seed.first.clone(),
        last_id: seed.first.iter().map(|replica| replica.id).max().unwrap_or_default(),
        ..Configuration::default()
    }
}

/// Whether a group of this configuration can't go on without a replica: the voters beside it are no majority of all.
pub fn is_needed(configuration: &Configuration, replica: u64) -> bool {
    let needed = |voters: &[u64]| {
        let others = voters.iter().filter(|voter| **voter != replica).count();
        voters.contains(&replica) && others * 2 <= voters.len()
    };
    needed(&configuration.voters) || needed(&configuration.voters_outgoing)
}

/// The configuration of a replica, by its rows and what it was created with.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn configuration_of(seed: &Seed, kv: &dyn Kv) -> Result<Configuration, KvError> {
    let mut none = WriteBatch::default();
    let keys = Keys(GroupId(seed.group));
    let row = Txn::new(GroupId(seed.group), kv, &mut none).get(&keys.one(Table::Configuration))?;
    Ok(row.unwrap_or_else(|| first_configuration(seed)))
}

pub(super) fn conf_state(configuration: &Configuration) -> ConfState {
    let mut state = ConfState::default();
    state.set_voters(configuration.voters.clone());
    state.set_learners(configuration.learners.clone());
    state.set_voters_outgoing(configuration.voters_outgoing.clone());
    state.set_learners_next(configuration.learners_next.clone());
    state.set_auto_leave(configuration.auto_leave);
    state
}

impl<L: LogReader> Group<L> {
    /// Brings a replica to life from what is on disk.
    ///
    /// # Errors
    /// When the store fails, or when log and state contradict each other: the state has applied entries that the log
    /// does not hold.
    pub fn open(origin: Origin<L>, ticks: Ticks, kv: &dyn Kv, logger: &slog::Logger) -> Result<Self, KvError> {
        let Origin { seed, reader, mut hard_state, last, log_bytes, compacted } = origin;
        let id = GroupId(seed.group);
        let mesh = MeshId::from_slice(&seed.mesh).map_err(|e| KvError(e.to_string()))?;
        let keys = Keys(id);
        let mut none = WriteBatch::default();
        let txn = Txn::new(id, kv, &mut none);
        let mut applied: Applied = txn.get_or_default(&keys.one(Table::Applied))?;
        let mut configuration = txn.get(&keys.one(Table::Configuration))?.unwrap_or_else(|| first_configuration(&seed));
        let spec = machine::spec(&txn)?;
        let outbox = txn.get_or_default::<Counter>(&keys.one(Table::OutboxCount))?.value;
        if applied.index > last {
            return Err(KvError(format!(
                "group {id}: the state has applied entry {}, but the log ends at {last}; the log was lost or replaced. \
                 Remove this peer's data directory and let it join as a new peer",
                applied.index
            )));
        }
        let mut before = (0, 0);
        let mut hollow = false;
        if let Some(compacted) = compacted {
            before = (compacted.index, compacted.term);
            if applied.index < compacted.index {
                // what is missing between the rows and the log can't be replayed: see `snapshots`
                hollow = true;
                applied = Applied { index: compacted.index, term: compacted.term, began: compacted.index };
                configuration = compacted.configuration;
            }
        }
        #[cfg(feature = "mutants")]
        if crate::mutants::is(crate::mutants::Mutant::ForgottenVote) {
            hard_state.vote = 0;
        }
        // raft-rs panics on one, and rows come from other peers as well
        if !guard::is_configuration(&conf_state(&configuration)) {
            return Err(KvError(format!(
                "group {id}: its configuration at entry {} is none that a group can have; the disk is damaged. Remove this \
                 peer's data directory and let it join as a new peer",
                configuration.index
            )));
        }
        // the commit index may be older on disk than what the state has seen of it
        hard_state.commit = hard_state.commit.max(applied.index);
        let persisted = Persisted { hard_state, before, last: last.max(before.0), bytes: log_bytes };
        let log = GroupLog::new(reader, id, persisted, conf_state(&configuration));
        // raft-rs would draw it by chance: when a replica stands is said in `timing`
        let timeout = timing::longest(ticks.election);
        let config = Config {
            id: seed.replica,
            election_tick: ticks.election,
            heartbeat_tick: ticks.heartbeat,
            min_election_tick: timeout,
            max_election_tick: timeout + 1,
            applied: applied.index,
            max_size_per_msg: MAX_MESSAGE,
            max_inflight_msgs: MAX_INFLIGHT,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: MAX_UNCOMMITTED,
            max_committed_size_per_ready: MAX_APPLY,
            ..Config::default()
        };
        let raw = RawNode::new(&config, log, logger).map_err(|e| KvError(format!("group {id}: {e}")))?;
        Ok(Self {
            seed,
            id,
            mesh,
            raw,
            configuration: Arc::new(configuration),
            spec: Arc::new(spec),
            outbox,
            met: BTreeMap::new(),
            changed: false,
            applied,
            appends: Vec::new(),
            waiting: VecDeque::new(),
            reads: BTreeMap::new(),
            reads_asked: BTreeMap::new(),
            ready: None,
            after: Vec::new(),
            committed: Vec::new(),
            outputs: Vec::new(),
            filling: Filling::default(),
            hollow,
            installing: None,
            forgotten: false,
        })
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// What it was created with.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// Whether it leads, and has applied an entry of its own term, and so all that was committed before.
    ///
    /// This is asked anew for every input: a message of the same turn may have deposed it, and raft-rs would pass a
    /// proposal on to the new leader instead of refusing it.
    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.applied.term == self.raw.raft.term
    }

    /// The replica with this id, if the configuration names it or it has sent something.
    pub fn replica(&self, id: u64) -> Option<&Replica> {
        self.configuration.replicas.iter().find(|replica| replica.id == id).or_else(|| self.met.get(&id))
    }

    /// Whether this replica is its group's only voter.
    pub fn is_alone(&self) -> bool {
        self.configuration.voters == [self.seed.replica]
    }

    /// The numbers of [`Self::status`] that change most, without making all of it.
    pub fn pulse(&self) -> Pulse {
        let raft = &self.raw.raft;
        Pulse {
            rules: raft.state == StateRole::Leader,
            leads: self.leads(),
            term: raft.term,
            leader: raft.leader_id,
            applied: self.applied.index,
            last: raft.raft_log.last_index(),
            hollow: self.hollow,
            installing: self.installing.is_some(),
            forgotten: self.forgotten,
        }
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let matched = if raft.state == StateRole::Leader {
            raft.prs().iter().map(|(id, progress)| (*id, progress.matched)).collect()
        } else {
            BTreeMap::new()
        };
        Status {
            group: self.id,
            replica: self.seed.replica,
            leads: self.leads(),
            term: raft.term,
            leader: raft.leader_id,
            committed: raft.raft_log.committed,
            applied: self.applied.index,
            first: raft.raft_log.store.first(),
            last: raft.raft_log.last_index(),
            log_bytes: raft.raft_log.store.live_bytes(),
            epoch: self.applied.began.max(self.configuration.index),
            configuration: self.configuration.clone(),
            joint: !self.configuration.voters_outgoing.is_empty(),
            spec: self.spec.clone(),
            outbox: self.outbox,
            matched,
            progress: self.progress(),
            hollow: self.hollow,
            installing: self.installing.is_some(),
            forgotten: self.forgotten,
        }
    }

    /// Takes an input. What it leads to comes out of [`Self::prepare`] and [`Self::persisted`].
    ///
    /// While a snapshot is installed, and once the disk was found to have forgotten, messages and time pass unheard,
    /// and requests are refused.
    pub fn handle(&mut self, input: Input, now_ms: u64) {
        if self.is_deaf() {
            return self.refuse(input);
        }
        match input {
            Input::Tick => self.tick(),
            Input::Message(peer, message) => {
                self.meet(peer, message.from);
                self.hear(*message);
            }
            Input::Append(ticket, item) => self.appends.push((ticket, item)),
            Input::Propose(ticket, kind) => {
                self.flush_appends(now_ms);
                self.propose(vec![ticket], Command { time_ms: now_ms, kind: Some(*kind) });
            }
            Input::Read(ticket) => {
                #[cfg(feature = "mutants")]
                if self.leads() && crate::mutants::is(crate::mutants::Mutant::DeposedRead) {
                    return self.reads.entry(self.applied.index).or_default().push(ticket);
                }
                if self.leads() {
                    self.reads_asked.insert(ticket, ());
                    self.raw.read_index(ticket.to_be_bytes().to_vec());
                } else {
                    self.outputs.push(Output::Reply(ticket, Err(Refused::NotLeader)));
                }
            }
            Input::AddLearner(ticket, replica) => self.add_learner(ticket, replica),
            Input::Promote(ticket, id) => {
                self.change(ticket, &ChangeSet { promote: vec![id], remove: Vec::new() });
            }
            Input::Change(ticket, change) => self.change(ticket, &change),
            Input::Transfer(to) => self.transfer(to),
            Input::Unreachable(id) => self.raw.report_unreachable(id),
            Input::Campaign => self.campaign(),
            Input::SnapshotReady(point, data) => self.snapshot_ready(&point, data),
            Input::SnapshotFailed => self.snapshot_failed(),
            Input::SnapshotLost(id) => self.snapshot_lost(id),
        }
    }

    /// Whether it takes nothing in: a snapshot is being installed, or it must not take part any more.
    fn is_deaf(&self) -> bool {
        self.forgotten || self.installing.is_some()
    }

    fn refuse(&mut self, input: Input) {
        match input {
            Input::Append(ticket, _)
            | Input::Propose(ticket, _)
            | Input::Read(ticket)
            | Input::AddLearner(ticket, _)
            | Input::Promote(ticket, _)
            | Input::Change(ticket, _) => self.outputs.push(Output::Reply(ticket, Err(Refused::NotLeader))),
            Input::SnapshotReady(..) | Input::SnapshotFailed => self.snapshot_failed(),
            Input::Tick
            | Input::Message(..)
            | Input::Transfer(_)
            | Input::Unreachable(_)
            | Input::Campaign
            | Input::SnapshotLost(_) => {}
        }
    }

    fn propose(&mut self, tickets: Vec<Ticket>, command: Command) {
        let data = command.encode_to_vec();
        let refused = if data.len() > MAX_ENTRY {
            Some(Refused::TooLarge(data.len()))
        } else if !self.leads() {
            Some(Refused::NotLeader)
        } else {
            match self.raw.propose(Vec::new(), data) {
                Ok(()) => None,
                Err(raft::Error::ProposalDropped) if self.raw.raft.state == StateRole::Leader => Some(Refused::Busy),
                Err(_) => Some(Refused::NotLeader),
            }
        };
        self.wait_for_last(tickets, refused);
    }

    fn wait_for_last(&mut self, tickets: Vec<Ticket>, refused: Option<Refused>) {
        match refused {
            Some(refused) => {
                let replies = tickets.into_iter().map(|ticket| Output::Reply(ticket, Err(refused.clone())));
                self.outputs.extend(replies);
            }
            None => {
                let (index, term) = (self.raw.raft.raft_log.last_index(), self.raw.raft.term);
                self.waiting.push_back(Waiting { index, term, tickets });
            }
        }
    }

    fn flush_appends(&mut self, now_ms: u64) {
        let mut tickets = Vec::new();
        let mut items = Vec::new();
        let mut bytes = 0;
        for (ticket, mut item) in std::mem::take(&mut self.appends) {
            item.events.iter_mut().filter(|event| event.time_ms == 0).for_each(|event| event.time_ms = now_ms);
            let size = item.encoded_len();
            if bytes + size > BATCH_BYTES && !items.is_empty() {
                self.propose_appends(&mut tickets, &mut items, now_ms);
                bytes = 0;
            }
            bytes += size;
            tickets.push(ticket);
            items.push(item);
        }
        if !items.is_empty() {
            self.propose_appends(&mut tickets, &mut items, now_ms);
        }
    }

    fn propose_appends(&mut self, tickets: &mut Vec<Ticket>, items: &mut Vec<AppendItem>, now_ms: u64) {
        let kind = Some(Kind::Append(Append { items: std::mem::take(items) }));
        self.propose(std::mem::take(tickets), Command { time_ms: now_ms, kind });
    }

    /// Ends the first half of a turn: what to persist, if anything. Take [`Self::take_outputs`] right after it: these
    /// messages need not wait.
    pub fn prepare(&mut self, now_ms: u64) -> Option<Persist> {
        self.flush_appends(now_ms);
        if self.is_deaf() || !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let messages = ready.take_messages();
        if !messages.is_empty() {
            self.outputs.push(Output::Send(messages));
        }
        self.committed.extend(ready.take_committed_entries());
        self.after = ready.take_persisted_messages();
        #[cfg(feature = "mutants")]
        if crate::mutants::is(crate::mutants::Mutant::AckBeforeSync) {
            self.outputs.push(Output::Send(std::mem::take(&mut self.after)));
        }
        for state in ready.take_read_states() {
            let ticket = state.request_ctx.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
            if let Some(ticket) = ticket.filter(|ticket| self.reads_asked.remove(ticket).is_some()) {
                self.reads.entry(state.index).or_default().push(ticket);
            }
        }
        let entries = ready.take_entries();
        let mut sync = ready.must_sync();
        let mut hard_state = ready.hs().cloned();
        if let Some(hard_state) = &hard_state {
            self.raw.mut_store().set_hard_state(hard_state.clone());
        }
        let install = self.begin_install(&ready);
        if install.is_some() {
            // the commit index is ahead of the log until the installation ends, and goes to disk with that
            hard_state = None;
            sync = true;
        }
        self.raw.mut_store().append(&entries);
        self.ready = Some(ready);
        Some(Persist { entries, hard_state, sync, install })
    }

    /// Whether there is more to do without another input.
    pub fn has_work(&self) -> bool {
        !self.is_deaf() && (self.ready.is_some() || !self.committed.is_empty() || self.raw.has_ready())
    }

    /// Goes on once what [`Self::prepare`] gave is on disk: applies what is committed to `batch`, answers, sends.
    ///
    /// # Errors
    /// When the store fails or is damaged. The replica must not go on.
    pub fn persisted(&mut self, kv: &dyn Kv, batch: &mut WriteBatch) -> Result<(), KvError> {
        if self.is_deaf() {
            return Ok(());
        }
        self.advance();
        let committed = std::mem::take(&mut self.committed);
        if let Some(last) = committed.last().filter(|_| self.hollow) {
            // nothing can be applied; raft-rs is told otherwise, so that it has done with these entries
            self.applied = Applied { index: last.index, term: last.term, began: last.index };
            self.raw.advance_apply_to(last.index);
        } else if !committed.is_empty() {
            for entry in committed {
                self.apply(entry, kv, batch)?;
            }
            let mut txn = Txn::new(self.id, kv, batch);
            txn.put(txn.keys.one(Table::Applied), &self.applied);
            self.raw.advance_apply_to(self.applied.index);
        }
        self.notice_role();
        self.answer_reads();
        self.want_snapshot();
        Ok(())
    }

    /// Tells raft-rs that what [`Self::prepare`] gave is on disk.
    fn advance(&mut self) {
        let Some(ready) = self.ready.take() else { return };
        let mut light = self.raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().set_commit(commit);
        }
        let mut messages = std::mem::take(&mut self.after);
        messages.extend(light.take_messages());
        if !messages.is_empty() {
            self.outputs.push(Output::Send(messages));
        }
        self.committed.extend(light.take_committed_entries());
    }

    fn apply(&mut self, entry: Entry, kv: &dyn Kv, batch: &mut WriteBatch) -> Result<(), KvError> {
        let (index, term) = (entry.index, entry.term);
        let mut refused = None;
        let reply = match entry.entry_type {
            // the entry with which a leader begins its term
            EntryType::EntryNormal if entry.data.is_empty() => Reply::Done,
            EntryType::EntryNormal => {
                let mut txn = Txn::new(self.id, kv, batch);
                let command = Command::decode(entry.data)
                    .map_err(|e| KvError(format!("group {}: entry {index} can't be read: {e}", self.id)))?;
                let namespace = self.seed.namespace.as_str();
                let place = Place { mesh: self.mesh, group: self.id, namespace, index, term };
                let (reply, effects) = machine::apply(&mut txn, place, &command)?;
                for effect in effects {
                    match &effect {
                        Effect::Spec => self.spec = Arc::new(machine::spec(&txn)?),
                        Effect::Outbox(len) => self.outbox = *len,
                        _ => {}
                    }
                    self.outputs.push(Output::Effect(effect));
                }
                reply
            }
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                if !self.apply_change(index, entry.data, kv, batch)? {
                    refused = Some(Refused::Configuration("the change does not fit the configuration"));
                }
                Reply::Done
            }
        };
        let reply = refused.map_or(Ok(reply), Err);
        let began = if term == self.applied.term { self.applied.began } else { index };
        self.applied = Applied { index, term, began };
        while self.waiting.front().is_some_and(|waiting| waiting.index <= index) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let ours = waiting.index == index && waiting.term == term;
            self.answer(waiting.tickets, if ours { reply.clone() } else { Err(Refused::NotLeader) });
        }
        Ok(())
    }

    fn answer(&mut self, tickets: Vec<Ticket>, reply: Result<Reply, Refused>) {
        match (reply, tickets.as_slice()) {
            (Ok(Reply::Appended(results)), tickets) if tickets.len() == results.len() => {
                for (ticket, result) in tickets.iter().zip(results) {
                    self.outputs.push(Output::Reply(*ticket, Ok(Reply::Appended(vec![result]))));
                }
            }
            (reply, tickets) => {
                for ticket in tickets {
                    self.outputs.push(Output::Reply(*ticket, reply.clone()));
                }
            }
        }
    }

    fn notice_role(&mut self) {
        let leader = self.raw.raft.state == StateRole::Leader;
        if !leader {
            let waiting = std::mem::take(&mut self.waiting);
            for waiting in waiting {
                // its entry may be on other disks, and the next leader's to commit
                self.answer(waiting.tickets, Err(Refused::Uncertain));
            }
            let asked = std::mem::take(&mut self.reads_asked).into_keys();
            let ready = std::mem::take(&mut self.reads).into_values().flatten();
            let refused: Vec<_> = asked.chain(ready).collect();
            self.answer(refused, Err(Refused::NotLeader));
        }
    }

    fn answer_reads(&mut self) {
        while let Some(first) = self.reads.first_entry().filter(|first| *first.key() <= self.applied.index) {
            let tickets = first.remove();
            self.answer(tickets, Ok(Reply::Done));
        }
    }

    /// What has come out since the last call.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }
}
