//! Who belongs to the group: learners come, learners become voters, and what a change of that has to leave on disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use canal_proto::PeerId;
use canal_proto::limits::MAX_REPLICAS;
use canal_proto::peer::Replica;
use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, HardState};
use raft::{INVALID_ID, StateRole};

use super::{ChangeSet, Group, MAX_MET, Output, Refused, Ticket};
use crate::convert;
use crate::core::keys::Table;
use crate::core::kv::{Kv, KvError, WriteBatch};
use crate::core::log::LogReader;
use crate::core::rows::Configuration;
use crate::core::txn::Txn;

/// Replicas of a group at one time: those that it should have, and as many that are coming while others go.
const MAX_HELD: usize = 2 * MAX_REPLICAS;

impl<L: LogReader> Group<L> {
    /// Remembers where a replica is that the configuration does not name yet: one that is still without the log knows
    /// only the group's first replicas, and must be able to answer a leader that came later.
    pub(super) fn meet(&mut self, peer: PeerId, id: u64) {
        let known = self.configuration.replicas.iter().any(|replica| replica.id == id);
        if !known && (self.met.len() < MAX_MET || self.met.contains_key(&id)) {
            self.met.insert(id, Replica { id, peer: peer.to_vec(), addresses: Vec::new() });
        }
    }

    /// Whether the configuration says that this replica is on another peer than the one which speaks for it.
    pub fn is_impostor(&self, peer: PeerId, id: u64) -> bool {
        let held = |replica: &&Replica| replica.id == id;
        self.configuration.replicas.iter().find(held).is_some_and(|replica| replica.peer != peer.public_key())
    }

    pub(super) fn add_learner(&mut self, ticket: Ticket, mut replica: Replica) {
        if self.configuration.replicas.iter().any(|held| held.peer == replica.peer) {
            let refused = Refused::Configuration("the peer holds a replica already");
            return self.outputs.push(Output::Reply(ticket, Err(refused)));
        }
        if self.configuration.replicas.len() >= MAX_HELD {
            let refused = Refused::Configuration("the group has as many replicas as it may; remove one first");
            return self.outputs.push(Output::Reply(ticket, Err(refused)));
        }
        replica.id = self.configuration.last_id + 1;
        let context = replica.encode_to_vec();
        let mut single = ConfChangeSingle { node_id: replica.id, ..ConfChangeSingle::default() };
        single.set_change_type(ConfChangeType::AddLearnerNode);
        self.propose_change(ticket, vec![single], context);
    }

    /// Proposes that learners vote and replicas go. One replica is a change of one step; several are a joint change,
    /// which Raft leaves by itself once both majorities have it.
    pub(super) fn change(&mut self, ticket: Ticket, change: &ChangeSet) {
        match self.checked(change) {
            Ok(singles) => self.propose_change(ticket, singles, Vec::new()),
            Err(reason) => self.outputs.push(Output::Reply(ticket, Err(Refused::Configuration(reason)))),
        }
    }

    fn checked(&self, change: &ChangeSet) -> Result<Vec<ConfChangeSingle>, &'static str> {
        let ChangeSet { promote, remove } = change;
        let now = &self.configuration;
        let ids: BTreeSet<u64> = promote.iter().chain(remove).copied().collect();
        if ids.is_empty() || ids.len() != promote.len() + remove.len() {
            return Err("name each replica once, and at least one");
        }
        if !now.voters_outgoing.is_empty() {
            return Err("another change of the configuration is under way");
        }
        if !promote.iter().all(|id| now.learners.contains(id)) {
            return Err("there is no such learner");
        }
        if remove.contains(&self.seed.replica) {
            return Err("the leader does not remove itself; hand leadership over first");
        }
        if !remove.iter().all(|id| now.voters.contains(id) || now.learners.contains(id)) {
            return Err("there is no such replica");
        }
        let stays = |id: &&u64| !remove.contains(id);
        if now.voters.iter().chain(promote).filter(stays).count() == 0 {
            return Err("no voter would be left");
        }
        let single = |change_type| {
            move |id: &u64| {
                let mut single = ConfChangeSingle { node_id: *id, ..ConfChangeSingle::default() };
                single.set_change_type(change_type);
                single
            }
        };
        let promoted = promote.iter().map(single(ConfChangeType::AddNode));
        Ok(promoted.chain(remove.iter().map(single(ConfChangeType::RemoveNode))).collect())
    }

    fn propose_change(&mut self, ticket: Ticket, singles: Vec<ConfChangeSingle>, context: Vec<u8>) {
        let mut change = ConfChangeV2 { context: context.into(), ..ConfChangeV2::default() };
        change.set_changes(singles.into());
        let refused = if !self.leads() {
            Some(Refused::NotLeader)
        } else if self.raw.raft.has_pending_conf() || !self.configuration.voters_outgoing.is_empty() {
            Some(Refused::Configuration("another change of the configuration is under way"))
        } else {
            self.raw.propose_conf_change(Vec::new(), change).err().map(|_| Refused::NotLeader)
        };
        self.wait_for_last(vec![ticket], refused);
    }

    /// Hands leadership to a voter.
    pub(super) fn transfer(&mut self, to: u64) {
        if self.raw.raft.state == StateRole::Leader && self.configuration.voters.contains(&to) {
            self.raw.transfer_leader(to);
        }
    }

    /// Leaves a joint configuration that Raft has not left by itself. raft-rs does it when the leader applies the
    /// change, or the entry with which it began to lead; this is for what it may miss.
    pub(super) fn leave_joint(&mut self) {
        let joint = !self.configuration.voters_outgoing.is_empty();
        if joint && self.leads() && !self.raw.raft.has_pending_conf() {
            // it is refused while leadership is handed over, and tried again with the next tick
            let _ = self.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    /// Applies a change; whether it fits the configuration. One that does not changes nothing, at any replica.
    pub(super) fn apply_change(
        &mut self,
        index: u64,
        data: Bytes,
        kv: &dyn Kv,
        batch: &mut WriteBatch,
    ) -> Result<bool, KvError> {
        let broken = |e: String| KvError(format!("group {}: entry {index}: {e}", self.id));
        let change = convert::conf_change(data).map_err(|e| broken(e.to_string()))?;
        let Ok(state) = self.raw.apply_conf_change(&change) else { return Ok(false) };
        let term = self.raw.raft.term;
        if self.raw.raft.state == StateRole::Leader && !self.raw.raft.promotable() {
            // raft-rs would go on to lead, and panic when it commits the next entry: it has no progress of its own
            self.raw.raft.become_follower(term, INVALID_ID);
        }
        let mut replicas = self.configuration.replicas.clone();
        if let Ok(replica) = Replica::decode(change.context.clone())
            && replica.id != 0
            && !replicas.iter().any(|held| held.id == replica.id)
        {
            replicas.push(replica);
        }
        replicas.retain(|replica| {
            state.voters.contains(&replica.id)
                || state.learners.contains(&replica.id)
                || state.voters_outgoing.contains(&replica.id)
        });
        let last_id = replicas.iter().map(|replica| replica.id).max().unwrap_or_default();
        // raft-rs gives them in the order of a hash map, and the row is to be the same everywhere
        let sorted = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>().into_iter().collect();
        let configuration = Configuration {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            voters_outgoing: sorted(&state.voters_outgoing),
            learners_next: sorted(&state.learners_next),
            auto_leave: state.auto_leave,
            index,
            replicas,
            last_id: last_id.max(self.configuration.last_id),
        };
        let mut txn = Txn::new(self.id, kv, batch);
        txn.put(txn.keys.one(Table::Configuration), &configuration);
        self.met.retain(|id, _| !configuration.replicas.iter().any(|replica| replica.id == *id));
        self.configuration = Arc::new(configuration);
        self.changed = true;
        self.raw.mut_store().set_conf_state(state);
        Ok(true)
    }

    /// A hard state that has to be on disk, synced, before anything else of [`Self::persisted`] is handed on: the
    /// configuration has changed.
    ///
    /// A replica acts by the configuration that it has applied. If it forgot both that state and how far the log is
    /// committed, it would start with an older configuration, and could win an election among too few. With the commit
    /// index on disk it applies the change again before it may stand.
    pub fn must_persist(&mut self) -> Option<HardState> {
        std::mem::take(&mut self.changed).then(|| self.raw.store().hard_state().clone())
    }
}
