//! What invariants are told while a simulation runs, and what they may look at.

use canal_consensus::Status;
use canal_consensus::core::kv::MemoryKv;
use canal_proto::peer::Seed;
use canal_proto::{GroupId, PeerId, TopicId};
use raft::eraftpb::{Entry, HardState};

use super::around::Machine;

/// Something that happened. Times are simulated milliseconds, the same for all, and known to the world only.
#[derive(Debug, Clone)]
pub enum Seen {
    /// A replica leads: told in the turn in which it becomes the leader of a term, before anything else of that turn.
    Leads { peer: Machine, group: GroupId, replica: u64, term: u64 },
    /// A replica has applied an entry (told again after a restart that replays it). Entries that a snapshot brought are not told.
    Applied { peer: Machine, group: GroupId, replica: u64, entry: Entry },
    /// A replica has installed a snapshot that ends with this entry.
    Installed { peer: Machine, group: GroupId, replica: u64, index: u64, term: u64 },
    /// A group answered a publish: the world sees it before the client does, in the turn that answers.
    Receipt {
        peer: Machine,
        group: GroupId,
        topic: u64,
        producer: Vec<u8>,
        first: u64,
        count: u64,
        offset: Option<u64>,
        index: u64,
        term: u64,
    },
    /// A producer sends events for the first time: sequences `first..first + count`, with these payloads.
    Publishes { client: Machine, topic: u64, producer: Vec<u8>, first: u64, payloads: Vec<Vec<u8>> },
    /// A producer has its receipt in hand.
    Acknowledged { client: Machine, topic: u64, producer: Vec<u8>, first: u64, count: u64, offset: Option<u64> },
    /// A subscriber has received an event.
    Delivered { client: Machine, topic: u64, offset: u64, producer: Vec<u8>, sequence: u64, payload: Vec<u8> },
    /// A client begins an operation on a register (a row of a bucket).
    Invoked { client: Machine, operation: u64, register: String, write: Option<Vec<u8>> },
    /// It ended: what was read, if it was a read.
    Returned { client: Machine, operation: u64, read: Option<Vec<u8>> },
    /// Nobody knows what became of it; it may yet take effect, at any later time.
    Lost { client: Machine, operation: u64 },
    /// A peer stored a route record.
    Routed { peer: Machine, name: String, group: GroupId, topic: u64, epoch: u64, issued_ms: u64 },
    /// A peer refused a route record.
    RouteRefused { peer: Machine, name: String, epoch: u64 },
    /// A lookup ended: at whom it led, following redirects, and whether that peer led the group of the name.
    LookedUp { client: Machine, name: String, group: GroupId, at: Machine, leads: bool },
    /// The outbox of a group sends to a topic of another group: numbers `first..first + count` of its queue.
    Sends { peer: Machine, group: GroupId, topic: u64, first: u64, count: u64 },
    /// A replica found that its disk has forgotten, or contradicts another.
    Contradiction { peer: Machine, group: GroupId, text: String },
    /// A client was answered what it must never be, by what it knows itself; in words.
    Broken { client: Machine, text: String },
    /// A fault begins or ends, for people: `crash`, `partition`, ….
    Fault { peer: Option<Machine>, text: String },
    /// All faults are over, for good.
    Healed,
    /// A line for the trace.
    Note { text: String },
}

/// One replica, as an all-knowing observer sees it.
pub trait Replica {
    /// Its peer.
    fn peer(&self) -> Machine;
    /// What it was created with.
    fn seed(&self) -> &Seed;
    /// How it stands; none while its peer is down.
    fn status(&self) -> Option<Status>;
    /// Index of the last entry that was cut from the log.
    fn before(&self) -> u64;
    /// Index of the last entry in the log.
    fn last(&self) -> u64;
    /// An entry of the log as it stands, synced or not.
    fn entry(&self, index: u64) -> Option<Entry>;
    /// Index of the last entry that was cut from the log as a crash would leave it.
    fn synced_before(&self) -> u64;
    /// An entry of the log as a crash would leave it.
    fn synced(&self, index: u64) -> Option<Entry>;
    /// The hard state as a crash would leave it.
    fn synced_hard_state(&self) -> HardState;
    /// Up to which index the applied rows are durable.
    fn flushed(&self) -> u64;
    /// The applied rows.
    fn kv(&self) -> &MemoryKv;
    /// All events of a topic that this replica can read, from the oldest on, with their offsets.
    fn events(&self, topic: TopicId) -> Vec<canal_proto::event::Stored>;
}

/// The whole world, for an invariant that has to look at all of it.
pub trait Look {
    /// Simulated milliseconds since the beginning.
    fn now(&self) -> u64;
    /// Peers.
    fn peers(&self) -> usize;
    /// The id of a peer.
    fn peer_id(&self, peer: Machine) -> PeerId;
    /// The groups that there are.
    fn groups(&self) -> Vec<GroupId>;
    /// The replicas of a group that have something on a disk.
    fn replicas(&self, group: GroupId) -> Vec<Box<dyn Replica + '_>>;
    /// How many replicas a group should have.
    fn wanted(&self, group: GroupId) -> usize;
    /// Peers on which a replica may be in the end: those that have not left.
    fn staying(&self) -> Vec<Machine>;
    /// Replicas whose disks were emptied or damaged by a fault, and the last entry that each had then: what they had synced is
    /// gone, and this was done to a minority only.
    fn robbed(&self, group: GroupId) -> Vec<(u64, u64)>;
    /// Whether the faults are over.
    fn healed(&self) -> bool;
}

/// Something that must hold, whatever happens.
pub trait Invariant {
    /// Its name, as in the table of `docs/reliability.md`.
    fn name(&self) -> &'static str;
    /// Told of everything, as it happens; `look` is the world at this moment.
    ///
    /// # Errors
    /// When it does not hold: what was seen, for people.
    fn see(&mut self, seen: &Seen, look: &dyn Look) -> Result<(), String> {
        let _ = (seen, look);
        Ok(())
    }
    /// Called every simulated second.
    ///
    /// # Errors
    /// As above.
    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        let _ = look;
        Ok(())
    }
    /// The run is over, everything is at rest.
    ///
    /// # Errors
    /// As above.
    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        let _ = look;
        Ok(())
    }
}
