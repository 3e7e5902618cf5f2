//! What goes into a replica and comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use canal_proto::limits::MAX_ENTRY;
use canal_proto::log::{AppendItem, GroupSpec, Kind};
use canal_proto::peer::{Replica, Seed};
use canal_proto::{GroupId, PeerId};
use raft::eraftpb::{Entry, HardState, Message};

use crate::core::machine::{Effect, Reply};
use crate::core::rows::Configuration;

/// How a replica counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    /// Ticks without a leader before a replica stands for election, at least.
    pub election: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat: usize,
}

/// What a replica begins with: as persisted, or as new.
pub struct Origin<L> {
    /// What it was created with.
    pub seed: Seed,
    /// Reads its entries.
    pub reader: L,
    /// Its hard state.
    pub hard_state: HardState,
    /// Index of the last entry in its log.
    pub last: u64,
}

/// Names a request until it is answered.
pub type Ticket = u64;

/// What a replica is told.
#[derive(Debug)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A replica on this peer sent this.
    Message(PeerId, Box<Message>),
    /// Publish these.
    Append(Ticket, AppendItem),
    /// Propose this.
    Propose(Ticket, Kind),
    /// Confirm that a read now sees everything that was acknowledged before.
    Read(Ticket),
    /// Add a replica, which learns but does not vote; its id is chosen here.
    AddLearner(Ticket, Replica),
    /// Let a learner vote.
    Promote(Ticket, u64),
    /// Hand leadership to this replica.
    Transfer(u64),
    /// This replica could not be reached.
    Unreachable(u64),
    /// Stand for election now.
    Campaign,
}

/// Why a request was not taken, or was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// This replica does not lead, or no longer: it may or may not have taken effect.
    #[error("not the leader")]
    NotLeader,
    /// Too much waits to be committed.
    #[error("too much waits to be committed; try again")]
    Busy,
    /// It does not fit an entry.
    #[error("{0} bytes do not fit an entry of {MAX_ENTRY}")]
    TooLarge(usize),
    /// A change of the configuration that can't be made now.
    #[error("{0}")]
    Configuration(&'static str),
}

/// What a replica wants.
#[derive(Debug)]
pub enum Output {
    /// Send to the replicas they are addressed to.
    Send(Vec<Message>),
    /// Answer a proposal.
    Reply(Ticket, Result<Reply, Refused>),
    /// Something was applied.
    Effect(Effect),
}

/// What has to be on disk before the turn goes on.
#[derive(Debug, Default)]
pub struct Persist {
    /// Entries to append; what stands at their indexes and behind is overwritten.
    pub entries: Vec<Entry>,
    /// The hard state, when it changed.
    pub hard_state: Option<HardState>,
    /// Whether it has to be synced.
    pub sync: bool,
}

/// How a replica stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The group.
    pub group: GroupId,
    /// This replica's id.
    pub replica: u64,
    /// It leads, and has applied everything that was committed before its term.
    pub leads: bool,
    /// Term.
    pub term: u64,
    /// The leader, 0 when unknown.
    pub leader: u64,
    /// Index of the last committed entry.
    pub committed: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Index of the last entry.
    pub last: u64,
    /// Epoch of the route ([`canal_proto::route::RouteRecord::epoch`]).
    pub epoch: u64,
    /// The configuration.
    pub configuration: Arc<Configuration>,
    /// The spec.
    pub spec: Arc<GroupSpec>,
    /// Effects in the outbox.
    pub outbox: u64,
    /// On the leader: the last index that each replica is known to have.
    pub matched: BTreeMap<u64, u64>,
}
