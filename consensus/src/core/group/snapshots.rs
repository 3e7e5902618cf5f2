//! Filling followers by snapshots, being filled by one, and cutting the log where nobody needs it any more.
//!
//! A leader whose log has lost what a follower needs asks for a snapshot of the rows ([`Output::WantsSnapshot`]), and
//! keeps the log behind it until the follower has caught up or is silent. While a follower has not said that it has the
//! snapshot, it is sent again every [`RESEND`] ticks: the first may have been lost, or the leader before this one sent it.
//!
//! A replica whose rows are older than the beginning of its log is *hollow*: it votes and keeps entries, but applies
//! none, never stands for election, and asks its leader for a snapshot until it is filled.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Snapshot, SnapshotMetadata};
use raft::{ProgressState, SnapshotStatus, StateRole, Storage as _};

use super::{Group, Install, Output, Progress, SnapshotPoint, conf_state, first_configuration};
use crate::core::keys::{Keys, Table};
use crate::core::kv::{Kv, KvError, WriteBatch};
use crate::core::log::{Compacted, LogReader};
use crate::core::machine;
use crate::core::rows::{Applied, Configuration, Counter};
use crate::core::txn::Txn;

/// Ticks after which a snapshot is sent again to a follower that has not said to have it: 10 s at 50 ms.
pub const RESEND: u64 = 200;
/// Ticks that a prepared snapshot is kept without a follower that needs it: a follower that comes back soon is spared the
/// making of another, but it holds the log behind it.
const KEEP_PREPARED: u64 = 200;

/// What a leader remembers of followers and of the snapshot that it makes or has made for them.
#[derive(Debug, Default)]
pub(super) struct Filling {
    /// Ticks since a replica was last heard of, or since this one began to lead.
    silent: BTreeMap<u64, u64>,
    /// Ticks since a snapshot was sent to a replica that has not said to have it.
    sent: BTreeMap<u64, u64>,
    /// The point of a snapshot that is being made.
    making: Option<SnapshotPoint>,
    /// The point of the snapshot that is there, and ticks since it was last of use.
    made: Option<(SnapshotPoint, u64)>,
}

impl<L: LogReader> Group<L> {
    pub(super) fn heard(&mut self, from: u64) {
        if self.raw.raft.state == StateRole::Leader && self.raw.raft.prs().get(from).is_some() {
            self.filling.silent.insert(from, 0);
        }
    }

    /// Ticks since a replica was last heard of, or since this one leads; `None` on others than the leader.
    pub fn silent(&self, replica: u64) -> Option<u64> {
        self.filling.silent.get(&replica).copied()
    }

    pub(super) fn progress(&self) -> BTreeMap<u64, Progress> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return BTreeMap::new();
        }
        let within = raft.election_timeout() as u64;
        let progress = |(id, progress): (&u64, &raft::Progress)| {
            let recent = *id == self.seed.replica || self.silent(*id).is_some_and(|silent| silent <= within);
            let snapshot = progress.state == ProgressState::Snapshot || progress.pending_request_snapshot != 0;
            (*id, Progress { matched: progress.matched, snapshot, recent })
        };
        raft.prs().iter().map(progress).collect()
    }

    /// A tick of a leader's time with its followers.
    pub(super) fn tick_followers(&mut self) {
        if self.raw.raft.state != StateRole::Leader {
            return self.stop_filling();
        }
        let own = self.seed.replica;
        let states: BTreeMap<u64, ProgressState> =
            self.raw.raft.prs().iter().filter(|(id, _)| **id != own).map(|(id, p)| (*id, p.state)).collect();
        let filling = &mut self.filling;
        filling.silent.retain(|id, _| states.contains_key(id));
        for id in states.keys() {
            *filling.silent.entry(*id).or_insert(0) += 1;
        }
        filling.sent.retain(|id, _| states.get(id) == Some(&ProgressState::Snapshot));
        let mut lost = Vec::new();
        for (id, _) in states.iter().filter(|(_, state)| **state == ProgressState::Snapshot) {
            let since = filling.sent.entry(*id).or_insert(0);
            *since += 1;
            if *since > RESEND {
                lost.push(*id);
            }
        }
        let in_use = self.raw.raft.raft_log.store.take_asked() || !filling.sent.is_empty();
        if let Some((_, idle)) = &mut filling.made {
            *idle = if in_use { 0 } else { *idle + 1 };
            if *idle > KEEP_PREPARED {
                filling.made = None;
                self.raw.mut_store().set_prepared(None);
            }
        }
        lost.into_iter().for_each(|id| self.snapshot_lost(id));
        self.leave_joint();
    }

    /// Another leads: what was prepared is of no use here.
    fn stop_filling(&mut self) {
        if self.filling.made.is_some() {
            self.raw.mut_store().set_prepared(None);
        }
        self.raw.store().clear_wanted();
        let making = self.filling.making.take();
        self.filling = Filling { making, ..Filling::default() };
    }

    /// Notices by a follower's commit index that it has the snapshot whose installation it has not told of: it crashed
    /// right behind it, or the answer was lost.
    pub(super) fn notice_filled(&mut self, id: u64, committed: u64) {
        let raft = &self.raw.raft;
        let filled = |progress: &raft::Progress| {
            progress.state == ProgressState::Snapshot && progress.pending_snapshot <= committed
        };
        if raft.state == StateRole::Leader && raft.prs().get(id).is_some_and(filled) {
            self.raw.report_snapshot(id, SnapshotStatus::Finish);
        }
    }

    pub(super) fn snapshot_lost(&mut self, id: u64) {
        self.filling.sent.remove(&id);
        // raft-rs probes again with the next answer to a heartbeat, and sends the snapshot that is there by then
        self.raw.report_snapshot(id, SnapshotStatus::Failure);
    }

    /// Asks for a snapshot, when a follower needs one and the state has all that it must have.
    pub(super) fn want_snapshot(&mut self) {
        let leads = self.raw.raft.state == StateRole::Leader && self.filling.making.is_none();
        let Some(low) = self.raw.store().wanted().filter(|_| leads) else { return };
        if self.applied.index < low {
            return;
        }
        self.raw.store().clear_wanted();
        let Applied { index, term, .. } = self.applied;
        let point = SnapshotPoint { index, term, configuration: Arc::clone(&self.configuration) };
        self.filling.making = Some(point.clone());
        self.outputs.push(Output::WantsSnapshot(point));
    }

    pub(super) fn snapshot_failed(&mut self) {
        self.filling.making = None;
    }

    pub(super) fn snapshot_ready(&mut self, point: &SnapshotPoint, data: Bytes) {
        if self.filling.making.as_ref() != Some(point) {
            return;
        }
        self.filling.making = None;
        if self.raw.raft.state != StateRole::Leader || point.index + 1 < self.raw.store().first() {
            return;
        }
        let mut metadata = SnapshotMetadata { index: point.index, term: point.term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(conf_state(&point.configuration));
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        snapshot.set_metadata(metadata);
        self.raw.mut_store().set_prepared(Some(snapshot));
        // what was asked for while it was made is asked for again, if this one does not do
        self.raw.store().clear_wanted();
        self.filling.made = Some((point.clone(), 0));
    }

    /// The snapshot that followers get can't be read any more: whoever needs one gets another.
    pub fn snapshot_spoilt(&mut self) {
        self.filling.made = None;
        self.raw.mut_store().set_prepared(None);
        let sent: Vec<u64> = self.filling.sent.keys().copied().collect();
        sent.into_iter().for_each(|id| self.snapshot_lost(id));
    }

    /// The snapshot that followers get at the moment: what its data names has to stay.
    pub fn prepared(&self) -> Option<&SnapshotPoint> {
        self.filling.made.as_ref().map(|(point, _)| point)
    }

    /// Up to which index the log may be cut: nowhere while a snapshot is made of it, and not behind one that followers get.
    pub fn compactable(&self) -> u64 {
        // a snapshot that is being made is partly read from the log
        if self.is_deaf() || self.hollow || self.filling.making.is_some() {
            return self.raw.store().first().saturating_sub(1);
        }
        let within = |progress: &&raft::Progress| progress.state == ProgressState::Snapshot;
        let prs = self.raw.raft.prs();
        let on_their_way = prs.iter().filter(|(id, _)| self.silent(**id).is_some_and(|silent| silent <= RESEND));
        let on_their_way = on_their_way.map(|(_, progress)| progress).filter(within).map(|p| p.pending_snapshot);
        let leading = self.raw.raft.state == StateRole::Leader;
        let kept = self.prepared().into_iter().map(|point| point.index).chain(on_their_way).filter(|_| leading);
        kept.chain([self.applied.index]).min().unwrap_or(0)
    }

    /// Cuts the log: entries up to `index`, or as far as [`Self::compactable`] allows, are gone from it. The record has
    /// to be written in the batch that cuts the stored log, and the rows have to be flushed at or behind `index` before.
    /// `None` when nothing is to be cut.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn compact(&mut self, index: u64) -> Result<Option<Compacted>, KvError> {
        let index = index.min(self.compactable());
        if index < self.raw.store().first() || index > self.raw.store().last() {
            return Ok(None);
        }
        let term =
            self.raw.store().term(index).map_err(|e| KvError(format!("group {}: entry {index}: {e}", self.id)))?;
        self.raw.mut_store().compact(index, term);
        Ok(Some(Compacted { index, term, configuration: Configuration::clone(&self.configuration) }))
    }

    /// Whether a snapshot up to this index would be installed, and so is worth fetching.
    pub fn needs_snapshot(&self, index: u64) -> bool {
        let raft = &self.raw.raft;
        !self.is_deaf()
            && raft.state != StateRole::Leader
            && (index > raft.raft_log.committed || (self.hollow && index >= raft.raft_log.committed))
    }

    /// Asks the leader for a snapshot, as long as the rows are older than the log.
    pub(super) fn ask_to_be_filled(&mut self) {
        if self.raw.raft.pending_request_snapshot == 0 && self.raw.request_snapshot().is_ok() {
            self.outputs.push(Output::Refill { leader: self.raw.raft.leader_id });
        }
    }

    /// Takes note of a snapshot that raft-rs wants persisted.
    pub(super) fn begin_install(&mut self, ready: &raft::Ready) -> Option<Install> {
        let snapshot = ready.snapshot();
        let metadata = snapshot.get_metadata();
        if metadata.index == 0 {
            return None;
        }
        let hard_state = self.raw.store().hard_state();
        let install = Install {
            index: metadata.index,
            term: metadata.term,
            data: snapshot.data.clone(),
            own_term: hard_state.term,
            vote: hard_state.vote,
        };
        self.raw.mut_store().install(metadata.index, metadata.term, metadata.get_conf_state().clone());
        self.installing = Some(install.clone());
        Some(install)
    }

    /// Goes on with the rows of the snapshot that [`Persist::install`](super::Persist) asked to install: they are in
    /// `kv`, flushed, and the log store has what [`Install::finish`] gave. The leader is answered now.
    ///
    /// # Errors
    /// When the store fails or has other rows. The replica must not go on.
    pub fn installed(&mut self, kv: &dyn Kv) -> Result<(), KvError> {
        let Some(install) = self.installing.take() else { return Ok(()) };
        let keys = Keys(self.id);
        let mut none = WriteBatch::default();
        let txn = Txn::new(self.id, kv, &mut none);
        let applied: Applied = txn.get_or_default(&keys.one(Table::Applied))?;
        if (applied.index, applied.term) != (install.index, install.term) {
            let (index, found) = (install.index, applied.index);
            let message = format!("group {}: a snapshot at entry {index} left rows as of entry {found}", self.id);
            return Err(KvError(message));
        }
        let configuration =
            txn.get(&keys.one(Table::Configuration))?.unwrap_or_else(|| first_configuration(&self.seed));
        self.spec = Arc::new(machine::spec(&txn)?);
        self.outbox = txn.get_or_default::<Counter>(&keys.one(Table::OutboxCount))?.value;
        self.configuration = Arc::new(configuration);
        self.met.retain(|id, _| !self.configuration.replicas.iter().any(|replica| replica.id == *id));
        self.applied = applied;
        self.hollow = false;
        self.advance();
        self.raw.advance_apply_to(install.index);
        Ok(())
    }
}
