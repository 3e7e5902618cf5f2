//! Who belongs to the group: learners come, learners become voters, and what a change of that has to leave on disk.

use std::sync::Arc;

use bytes::Bytes;
use canal_proto::PeerId;
use canal_proto::peer::Replica;
use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, HardState};

use super::{Group, MAX_MET, Output, Refused, Ticket};
use crate::convert;
use crate::core::keys::Table;
use crate::core::kv::{Kv, KvError, WriteBatch};
use crate::core::log::LogReader;
use crate::core::rows::Configuration;
use crate::core::txn::Txn;

impl<L: LogReader> Group<L> {
    /// Remembers where a replica is that the configuration does not name yet: one that is still without the log knows
    /// only the group's first replicas, and must be able to answer a leader that came later.
    pub(super) fn meet(&mut self, peer: PeerId, id: u64) {
        let known = self.configuration.replicas.iter().any(|replica| replica.id == id);
        if !known && (self.met.len() < MAX_MET || self.met.contains_key(&id)) {
            self.met.insert(id, Replica { id, peer: peer.to_vec(), addresses: Vec::new() });
        }
    }

    pub(super) fn add_learner(&mut self, ticket: Ticket, mut replica: Replica) {
        if self.configuration.replicas.iter().any(|held| held.peer == replica.peer) {
            let refused = Refused::Configuration("the peer holds a replica already");
            return self.outputs.push(Output::Reply(ticket, Err(refused)));
        }
        replica.id = self.configuration.last_id + 1;
        let context = replica.encode_to_vec();
        self.change(ticket, ConfChangeType::AddLearnerNode, replica.id, context);
    }

    pub(super) fn promote(&mut self, ticket: Ticket, id: u64) {
        if self.configuration.learners.contains(&id) {
            self.change(ticket, ConfChangeType::AddNode, id, Vec::new());
        } else {
            let refused = Refused::Configuration("there is no such learner");
            self.outputs.push(Output::Reply(ticket, Err(refused)));
        }
    }

    fn change(&mut self, ticket: Ticket, change_type: ConfChangeType, id: u64, context: Vec<u8>) {
        let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
        single.set_change_type(change_type);
        let mut change = ConfChangeV2 { context: context.into(), ..ConfChangeV2::default() };
        change.set_changes(vec![single].into());
        let refused = if !self.leads() {
            Some(Refused::NotLeader)
        } else if self.raw.raft.has_pending_conf() {
            Some(Refused::Configuration("another change of the configuration is under way"))
        } else {
            self.raw.propose_conf_change(Vec::new(), change).err().map(|_| Refused::NotLeader)
        };
        self.wait_for_last(vec![ticket], refused);
    }

    pub(super) fn apply_change(
        &mut self,
        index: u64,
        data: Bytes,
        kv: &dyn Kv,
        batch: &mut WriteBatch,
    ) -> Result<(), KvError> {
        let broken = |e: String| KvError(format!("group {}: entry {index}: {e}", self.id));
        let change = convert::conf_change(data).map_err(|e| broken(e.to_string()))?;
        let state = self.raw.apply_conf_change(&change).map_err(|e| broken(e.to_string()))?;
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
        let configuration = Configuration {
            voters: state.voters.clone(),
            learners: state.learners.clone(),
            voters_outgoing: state.voters_outgoing.clone(),
            learners_next: state.learners_next.clone(),
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
        Ok(())
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
