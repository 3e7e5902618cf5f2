//! What goes into a replica and comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use canal_proto::limits::MAX_ENTRY;
use canal_proto::log::{AppendItem, GroupSpec, Kind};
use canal_proto::peer::{Replica, Seed};
use canal_proto::{GroupId, PeerId};
use raft::eraftpb::{Entry, HardState, Message};

use super::install::Install;
use crate::core::log::Compacted;
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
    /// Index of the last entry in its log, or that of `compacted` when there is none behind it.
    pub last: u64,
    /// Bytes of the entries in its log, about.
    pub log_bytes: u64,
    /// Where its log begins, when it was compacted.
    pub compacted: Option<Compacted>,
}

/// Names a request until it is answered.
pub type Ticket = u64;

/// A change of the configuration: one entry, and one change that Raft makes, jointly when more than one replica is
/// concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Learners that are to vote.
    pub promote: Vec<u64>,
    /// Replicas that are to go, voters or learners.
    pub remove: Vec<u64>,
}

/// What a replica is told.
#[derive(Debug)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A replica on this peer sent this. A `MsgSnapshot` is only given when all that its data names is on disk.
    Message(PeerId, Box<Message>),
    /// Publish these.
    Append(Ticket, AppendItem),
    /// Propose this.
    Propose(Ticket, Box<Kind>),
    /// Confirm that a read now sees everything that was acknowledged before.
    Read(Ticket),
    /// Add a replica, which learns but does not vote; its id is chosen here.
    AddLearner(Ticket, Replica),
    /// Let a learner vote.
    Promote(Ticket, u64),
    /// Let learners vote and replicas go.
    Change(Ticket, ChangeSet),
    /// Hand leadership to this replica.
    Transfer(u64),
    /// This replica could not be reached.
    Unreachable(u64),
    /// Stand for election now.
    Campaign,
    /// The snapshot that [`Output::WantsSnapshot`] asked for, of the same point; its data goes to followers as it is.
    SnapshotReady(SnapshotPoint, Bytes),
    /// The snapshot that [`Output::WantsSnapshot`] asked for could not be made. It is asked for again when a follower
    /// still needs it.
    SnapshotFailed,
    /// A snapshot did not get to this replica: it is sent again without waiting.
    SnapshotLost(u64),
}

/// Why a request was not taken, or was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// This replica does not lead: it has not taken effect here, and never will.
    #[error("not the leader")]
    NotLeader,
    /// This replica led when it proposed this, and does not any more, or has stopped: it may take effect yet, or have done so.
    #[error("the replica that proposed it leads no more: it may or may not have taken effect")]
    Uncertain,
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

/// A point in a group's log at which its rows were frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPoint {
    /// Index of the last entry applied to them.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The configuration in them.
    pub configuration: Arc<Configuration>,
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
    /// A follower needs a snapshot. Freeze the rows as the batch of this turn leaves them, which is at this point, and
    /// come back with [`Input::SnapshotReady`] or [`Input::SnapshotFailed`].
    WantsSnapshot(SnapshotPoint),
    /// The rows are older than the log, and a snapshot was asked for: the replica is filled when it comes.
    Refill {
        /// Whom.
        leader: u64,
    },
    /// A leader knows that this replica has acknowledged an entry that its log does not have: its disk has forgotten.
    /// It takes no part any more, since it may have forgotten a vote as well.
    Forgotten {
        /// Who knows it.
        leader: u64,
        /// Index of an entry that was acknowledged.
        acknowledged: u64,
        /// Index of the last entry in the log.
        last: u64,
    },
    /// A message contradicts what is committed here; it was dropped. One of the two replicas has a damaged disk.
    Contradicted {
        /// Who sent it.
        from: u64,
        /// Index of the entry.
        index: u64,
    },
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
    /// A snapshot to install, and then nothing else is here. The replica does nothing until
    /// [`Group::installed`](super::Group::installed), however many turns that takes.
    pub install: Option<Install>,
}

/// How far a replica is, as its leader knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last index that it is known to have.
    pub matched: u64,
    /// It is being filled by a snapshot.
    pub snapshot: bool,
    /// It was heard of within the time of an election.
    pub recent: bool,
}

/// How a replica stands, in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// It was elected in its term; it leads once it has applied an entry of it.
    pub rules: bool,
    /// As in [`Status`].
    pub leads: bool,
    /// Term.
    pub term: u64,
    /// The leader, 0 when unknown.
    pub leader: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Index of the last entry.
    pub last: u64,
    /// As in [`Status`].
    pub hollow: bool,
    /// As in [`Status`].
    pub installing: bool,
    /// As in [`Status`].
    pub forgotten: bool,
}

impl Pulse {
    /// As [`Status::serves`].
    pub fn serves(&self) -> bool {
        !self.hollow && !self.installing && !self.forgotten
    }
}

impl Status {
    /// Whether its rows are those of some moment of the group: one that is being filled has none, or parts of them.
    pub fn serves(&self) -> bool {
        !self.hollow && !self.installing && !self.forgotten
    }
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
    /// Index of the first entry in the log; one behind the last when it has none.
    pub first: u64,
    /// Index of the last entry.
    pub last: u64,
    /// Bytes of the entries in the log, about.
    pub log_bytes: u64,
    /// Epoch of the route ([`canal_proto::route::RouteRecord::epoch`]).
    pub epoch: u64,
    /// The configuration.
    pub configuration: Arc<Configuration>,
    /// Two majorities decide at the moment: a change is half done.
    pub joint: bool,
    /// The spec.
    pub spec: Arc<GroupSpec>,
    /// Effects in the outbox.
    pub outbox: u64,
    /// On the leader: the last index that each replica is known to have.
    pub matched: BTreeMap<u64, u64>,
    /// On the leader: how far each replica is, itself included.
    pub progress: BTreeMap<u64, Progress>,
    /// Its rows are older than its log: it waits for a snapshot.
    pub hollow: bool,
    /// It is installing a snapshot.
    pub installing: bool,
    /// It has found out that its disk forgot, and takes no part.
    pub forgotten: bool,
}
