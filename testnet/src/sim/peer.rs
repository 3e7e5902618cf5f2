//! A simulated peer: what the product's driver keeps around its groups, around the same cores and with the same steps.
//!
//! A turn is cut in two ([`turn`]): what groups want on disk is written and begins to be synced; when that is done, they
//! apply, answer and send. Between the two, time passes and a crash finds the write unsynced. Files, snapshots and flushes
//! ([`history`]) take time as well, and are reported back to the turn, as the product's other threads do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use canal_consensus::compaction::History;
use canal_consensus::core::group::{Group, Input, Ticket};
use canal_consensus::core::log::Compacted;
use canal_proto::peer::RaftMessage;
use canal_proto::{GroupId, PeerId};
use raft::eraftpb::Entry;

use super::around::{Ask, Machine, Token};
use super::disk::{Disk, Log};
use super::queue::Micros;
use super::rooms::Place;
use super::world::ActorId;

pub mod fetch;
pub mod history;
pub mod open;
pub mod requests;
pub mod turn;

/// Milliseconds since 1970 at the beginning of every run.
pub const BEGIN_MS: u64 = 1_760_000_000_000;
/// Length of a tick, by the peer's own clock.
pub const TICK: Micros = 50_000;

/// A machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Milliseconds that it is ahead.
    pub ahead_ms: i64,
    /// Millionths by which it is too fast.
    pub fast_ppm: i64,
}

impl Clock {
    /// What it shows.
    pub fn now_ms(&self, now: Micros) -> u64 {
        BEGIN_MS.saturating_add_signed(self.ahead_ms).saturating_add(self.mono_ms(now))
    }

    /// What it has counted.
    pub fn mono_ms(&self, now: Micros) -> u64 {
        let drift = i128::from(now) * i128::from(self.fast_ppm) / 1_000_000;
        now.saturating_add_signed(i64::try_from(drift).unwrap_or_default()) / 1000
    }

    /// How long something takes that it measures to last so long.
    pub fn lasts(&self, micros: Micros) -> Micros {
        let drift = i128::from(micros) * i128::from(self.fast_ppm) / 1_000_000;
        micros.saturating_add_signed(-i64::try_from(drift).unwrap_or_default())
    }
}

/// Where a peer is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has yet to join.
    Absent,
    /// It runs.
    Up,
    /// It is down, and starts again.
    Down,
    /// It has left for good.
    Left,
}

/// A peer.
pub struct Peer {
    /// Its id.
    pub id: PeerId,
    /// Its disk.
    pub disk: Disk,
    /// Its clock.
    pub clock: Clock,
    /// Where it is in its life.
    pub stage: Stage,
    /// Which start of its process this is; what belongs to an earlier one comes to nothing.
    pub start: u64,
    /// It stands still until then.
    pub paused_until: Micros,
    /// What its process holds.
    pub live: Option<Live>,
}

/// A question under way.
pub type AskId = u64;

/// What a process holds in memory.
pub struct Live {
    pub(super) members: BTreeMap<GroupId, Member>,
    pub(super) dirty: BTreeSet<GroupId>,
    pub(super) inbox: VecDeque<Inbound>,
    pub(super) turn: Option<turn::Turn>,
    pub(super) waiters: BTreeMap<Ticket, (GroupId, Waiter)>,
    pub(super) next_ticket: Ticket,
    pub(super) cuts: BTreeMap<GroupId, Compacted>,
    pub(super) clearing: BTreeSet<GroupId>,
    pub(super) leaving: Vec<(GroupId, u64, AskId)>,
    pub(super) files: history::Threads,
    pub(super) fetches: BTreeMap<u64, fetch::Task>,
    pub(super) next_task: u64,
    pub(super) place: Place,
    pub(super) rooms: Vec<ActorId>,
}

impl Live {
    pub(super) fn new(place: Place) -> Self {
        Self {
            members: BTreeMap::new(),
            dirty: BTreeSet::new(),
            inbox: VecDeque::new(),
            turn: None,
            waiters: BTreeMap::new(),
            next_ticket: 1,
            cuts: BTreeMap::new(),
            clearing: BTreeSet::new(),
            leaving: Vec::new(),
            files: history::Threads::default(),
            fetches: BTreeMap::new(),
            next_task: 1,
            place,
            rooms: Vec::new(),
        }
    }

    pub(super) fn ticket(&mut self, group: GroupId, waiter: Waiter) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiters.insert(ticket, (group, waiter));
        ticket
    }
}

/// A replica that runs.
pub struct Member {
    pub(super) group: Group<Log>,
    pub(super) history: History,
    /// It led at the end of its last turn.
    pub(super) leads: bool,
    /// The term that it leads.
    pub(super) led_term: u64,
    /// The last term of which was told that this replica leads it.
    pub(super) ruled: u64,
    /// Up to where it was told what was applied.
    pub(super) told: u64,
    /// When it came to life.
    pub(super) opened: Micros,
    /// When it last heard of each replica.
    pub(super) heard: BTreeMap<u64, Micros>,
    /// Rooms of its leadership.
    pub(super) led: Vec<ActorId>,
    /// Rooms of the replica.
    pub(super) rooms: Vec<ActorId>,
}

/// What a peer's process has to take in.
pub enum Inbound {
    /// A message of another replica.
    Message(Machine, GroupId, Box<RaftMessage>),
    /// An input of a room.
    Input(GroupId, Box<Input>),
    /// A question.
    Ask(AskId, Box<Ask>),
    /// Something that took time has ended.
    Report(history::Report),
    /// Time passed.
    Tick,
}

/// Who waits for the answer to a ticket.
pub enum Waiter {
    /// A publisher.
    Publisher { ask: AskId, topic: u64, producer: bytes::Bytes, first: u64, count: u64 },
    /// Who proposed something else.
    Proposer(AskId),
    /// Who reads a row.
    Reader { ask: AskId, bucket: String, key: String },
    /// A room.
    Room(ActorId, Token),
    /// The driver: it has proposed a seal.
    Seal,
}

/// The entries between two indexes, as a log has them.
pub(super) fn entries(log: &Log, group: GroupId, after: u64, upto: u64) -> Vec<Entry> {
    let range =
        |image: &super::disk::log::Image| (after + 1..=upto).filter_map(|at| image.entry(at).cloned()).collect();
    log.read(group, range).unwrap_or_default()
}
