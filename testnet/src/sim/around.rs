//! What the parts of a simulation may do to the world around them.
//!
//! Everything that is not a core itself is an *actor*: a room of a simulated peer (it lives as long as a leadership), or a
//! client on a machine of its own. It is woken, told answers, and acts through [`Around`]. It keeps no clock and draws no
//! random number but from there, so a seed makes the whole run.

use canal_consensus::core::group::{Input, Ticket};
use canal_consensus::core::kv::MemoryKv;
use canal_consensus::{Refused, Reply, Status};
use canal_proto::event::Stored;
use canal_proto::log::{AppendItem, Kind};
use canal_proto::peer::Seed;
use canal_proto::request::Route;
use canal_proto::{GroupId, PeerId, TopicId, WireError};

use super::rng::Rng;
use super::seen::Seen;
use super::setup::{Setup, Wish};

/// Names a question of an actor until it is answered; chosen by the actor.
pub type Token = u64;

/// Number of a peer, or of a client's machine behind all peers.
pub type Machine = usize;

/// A question to a peer, over the simulated network.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Publish to a topic of this group.
    Append(GroupId, AppendItem),
    /// Write state or move a cursor: any command that a client may propose.
    Propose(GroupId, Box<Kind>),
    /// A linearizable read of a row of a bucket.
    State(GroupId, String, String),
    /// Read a row of a bucket from what this peer has applied.
    Stale(GroupId, String, String),
    /// Read events of a topic from any replica: topic, first offset, how many.
    Events(GroupId, TopicId, u64, usize),
    /// Find the route of a name, as this peer does it.
    Route(String),
    /// The same, past what this peer remembers: for who was led nowhere by [`Ask::Route`].
    Afresh(String),
    /// Store a signed route record for the DHT: `Yes`, or `No` when it is refused.
    Store(bytes::Bytes),
    /// How this peer stands, for gossip.
    Describe,
    /// Which replicas the group has, as the replica on this peer has it.
    Standing(GroupId),
    /// Create a replica.
    Create(Seed),
    /// Remove a replica that was let go: group, replica.
    Remove(GroupId, u64),
    /// Whether this peer holds this replica of the group: group, replica.
    Holds(GroupId, u64),
}

/// What a peer answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The proposal was applied.
    Reply(Reply),
    /// The row; none when there is no such row.
    Row(Option<bytes::Bytes>),
    /// Events, and the next offset of the topic.
    Events(Vec<Stored>, u64),
    /// The route.
    Route(Route),
    /// How the peer stands.
    Peer(Box<canal_proto::peer::PeerInfo>),
    /// The largest replica id that the group has used, and its replicas.
    Standing(u64, Vec<canal_proto::peer::Replica>),
    /// It is done, or it is so.
    Yes,
    /// It is not so.
    No,
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub enum Failed {
    /// This peer does not lead the group; the one that does, if it is known. Anything but a publish has not taken effect.
    NotLeader(Option<Machine>),
    /// The group is not here.
    NotHere,
    /// The group refused it; it has not taken effect.
    Refused(Refused),
    /// A typed error.
    Error(WireError),
    /// Nothing came in time: it may or may not have taken effect.
    Silence,
}

/// The world, as an actor sees it.
pub trait Around {
    /// The clock of this machine, in milliseconds since 1970; clocks of machines differ and may jump.
    fn now_ms(&self) -> u64;
    /// What this machine's clock has counted since it started, in milliseconds: it may run fast or slow, but never jumps.
    fn mono_ms(&self) -> u64 {
        self.now_ms()
    }
    /// Chance. Its draws depend on this actor only.
    fn rng(&mut self) -> &mut Rng;
    /// How many peers there are. Those below this number are peers.
    fn peers(&self) -> usize;
    /// The machine that this runs on: a peer's, or a client's own.
    fn machine(&self) -> Machine;
    /// The id of a peer.
    fn peer_id(&self, peer: Machine) -> PeerId;
    /// The peer with this id.
    fn machine_of(&self, peer: &PeerId) -> Option<Machine>;
    /// What the run was set up with.
    fn setup(&self) -> &Setup;
    /// How many replicas a group should have at the moment, and where, as its catalog would say.
    fn wish(&self, group: GroupId) -> Wish;
    /// Asks a peer; the answer, or [`Failed::Silence`] after a while, comes to [`Actor::answered`].
    fn ask(&mut self, token: Token, to: Machine, ask: Ask);
    /// Wakes this actor so many milliseconds from now. Each call adds a waking.
    fn wake_in(&mut self, ms: u64);
    /// Tells the invariants, and the trace.
    fn see(&mut self, seen: Seen);
    /// Of a room: its group's replica on this peer; `None` for a client.
    fn replica(&mut self) -> Option<&mut dyn Here>;
}

/// The replica of a room.
pub trait Here {
    /// How it stands.
    fn status(&self) -> Status;
    /// What it was created with.
    fn seed(&self) -> Seed;
    /// What this peer has applied.
    fn kv(&self) -> &MemoryKv;
    /// Events as this peer has them, in its log or its segments; fewer than asked for where they end.
    fn events(&self, topic: TopicId, from: u64, max: usize) -> Vec<Stored>;
    /// Milliseconds since this replica last heard of another one.
    fn silent_ms(&self, replica: u64) -> u64;
    /// Proposes; what becomes of it comes to [`Actor::proposed`].
    fn propose(&mut self, token: Token, kind: Kind);
    /// Any other input that needs an answer (`AddLearner`, `Change`, …), made from the ticket it gets; what becomes of it
    /// comes to [`Actor::proposed`].
    fn request(&mut self, token: Token, make: Box<dyn FnOnce(Ticket) -> Input>);
    /// An input without an answer (`Transfer`).
    fn input(&mut self, input: Input);
}

/// A room or a client.
pub trait Actor {
    /// Called once when it begins to live, whenever its time has come, and, for a room, after each turn in which something was
    /// applied to its group.
    fn wake(&mut self, around: &mut dyn Around);
    /// What became of a question.
    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around);
    /// What became of a proposal; `Err` says nothing about whether it will be applied.
    fn proposed(&mut self, token: Token, reply: Result<Reply, Refused>, around: &mut dyn Around) {
        let _ = (token, reply, around);
    }
    /// One line on how it stands, for people who look for what went wrong.
    fn describe(&self) -> String;
    /// Whether it has done all that it was asked to do; rooms always have.
    fn is_done(&self) -> bool {
        true
    }
    /// The faults are over: it wants a little more from now on, so that it is seen to be served again.
    fn heal(&mut self) {}
}
