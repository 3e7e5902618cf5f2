//! What a client asks a peer, and what peers ask each other, over a long-lived stream.
//!
//! A connection opens one stream per protocol. On the `client` and `peer` protocols, requests and responses are
//! frames ([`crate::frame`]) that carry an id; responses may come in another order than the requests. The first
//! request is [`Hello`]. On the `subscribe` protocol, the client sends one [`Subscribe`] and reads [`Delivery`]
//! frames until either side ends the stream. On the `raft` protocol, one side sends [`crate::peer::RaftBatch`].

use bytes::Bytes;

use crate::catalog::{CatalogCommand, CatalogReply, FunctionInfo, GroupInfo, TopicInfo, TriggerInfo};
use crate::catalog::{Placement, Retention};
use crate::error::WireError;
use crate::event::{Event, Receipt, Stored};
use crate::log::{ActivationRecord, StateOp, StateWrite, Step, Subscription, SubscriptionChange};
use crate::peer::{PeerInfo, Replica, Seed};

/// Version of the requests and responses here. The first one is 1.
pub const VERSION: u32 = 1;

/// Name of a stream protocol in a mesh: `/canal/MESH/WHAT/1`, with WHAT one of `client`, `peer`, `subscribe`,
/// `raft`, `kad`. Until credentials stand, this is what keeps two meshes apart.
pub fn protocol(mesh: &str, what: &str) -> String {
    format!("/canal/{mesh}/{what}/1")
}

/// A request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Chosen by the client; the response has the same.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// How long the client waits, in milliseconds. Zero: 5 s.
    #[prost(uint32, tag = "2")]
    pub deadline_ms: u32,
    /// What is asked.
    #[prost(
        oneof = "Ask",
        tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 22, 23, 24, 25, 26, 27, 28"
    )]
    pub ask: Option<Ask>,
}

/// What is asked.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    /// Opens the conversation.
    #[prost(message, tag = "3")]
    Hello(Hello),
    /// Where a topic, group or catalog lives. Any peer answers.
    #[prost(message, tag = "4")]
    Resolve(Resolve),
    /// Publishes events. The group's leader answers.
    #[prost(message, tag = "5")]
    Publish(Publish),
    /// Ends a producer. The group's leader answers.
    #[prost(message, tag = "6")]
    EndProducer(EndProducer),
    /// How a topic stands. Any replica of its group answers.
    #[prost(message, tag = "7")]
    TopicStatus(TopicStatusAsk),
    /// Changes the catalog. Its leader answers.
    #[prost(message, tag = "8")]
    Change(CatalogCommand),
    /// Reads the catalog. Any replica of it answers, its leader with the latest.
    #[prost(message, tag = "9")]
    Catalog(CatalogAsk),
    /// Reads a piece of a component. Any replica of the catalog answers.
    #[prost(message, tag = "10")]
    Blob(BlobAsk),
    /// Reads function state.
    #[prost(message, tag = "11")]
    StateGet(StateGet),
    /// Lists function state.
    #[prost(message, tag = "12")]
    StateList(StateList),
    /// Writes function state. The group's leader answers.
    #[prost(message, tag = "13")]
    StatePut(StatePut),
    /// Lists activation records. The group's leader answers.
    #[prost(message, tag = "14")]
    Activations(ActivationsAsk),
    /// How a group stands. Any replica of it answers.
    #[prost(uint64, tag = "15")]
    GroupStatus(u64),
    /// The peers that this peer knows of.
    #[prost(message, tag = "16")]
    Peers(PeersAsk),
    /// How this peer stands.
    #[prost(message, tag = "17")]
    PeerStatus(PeerStatusAsk),
    // 18 and 21 are not to be used again
    /// Creates a replica here. Only between peers.
    #[prost(message, tag = "19")]
    CreateReplica(Seed),
    /// Proposes a spec to a group. Only between peers; the group's leader answers.
    #[prost(message, tag = "20")]
    ApplySpec(ApplySpec),
    /// Exchanges descriptions of peers: some that the sender knows, its own first. Only between peers; answered with
    /// some that the receiver knows, its own first.
    #[prost(message, tag = "22")]
    Gossip(Peers),
    /// Removes a replica that its group has let go. Only between peers.
    #[prost(message, tag = "23")]
    RemoveReplica(RemoveReplica),
    /// Reads part of a segment or of a snapshot. Only between peers.
    #[prost(message, tag = "24")]
    Piece(PieceAsk),
    /// Changes a durable subscription. The group's leader answers.
    #[prost(message, tag = "25")]
    Subscription(SubscriptionAsk),
    /// Lists the durable subscriptions of a topic. Any replica of its group answers.
    #[prost(message, tag = "26")]
    Subscriptions(SubscriptionsAsk),
    /// Begins to empty this peer, or gives that up.
    #[prost(message, tag = "27")]
    Drain(DrainAsk),
    /// Lists the producers that a topic remembers. Any replica of its group answers.
    #[prost(message, tag = "28")]
    Producers(ProducersAsk),
}

/// Removes a replica that its group has let go.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RemoveReplica {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The replica's id.
    #[prost(uint64, tag = "2")]
    pub replica: u64,
}

/// Reads part of a file that is named by its content.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PieceAsk {
    /// BLAKE3 of it, 32 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    /// Where to begin.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes at most; no more than [`crate::limits::MAX_PIECE`] are given.
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

/// Part of a file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PieceData {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Bytes of the whole.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// Changes a durable subscription.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubscriptionAsk {
    /// Name of the topic.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// The change; its topic id may be 0: whatever has the name.
    #[prost(message, required, tag = "2")]
    pub change: SubscriptionChange,
}

/// Lists durable subscriptions of a topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubscriptionsAsk {
    /// Name of the topic.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// Only the one with this name. Empty: all.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Lists producers of a topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ProducersAsk {
    /// Name of the topic.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// Those from this id on, 16 bytes. Empty: from the first.
    #[prost(bytes = "bytes", tag = "2")]
    pub from: Bytes,
    /// At most so many; 0, and above what a page holds: a page.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

/// Producers that a topic remembers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Producers {
    /// The producers, by id.
    #[prost(message, repeated, tag = "1")]
    pub producers: Vec<ProducerInfo>,
    /// The id of the next one, if there are more; empty: there are none.
    #[prost(bytes = "bytes", tag = "2")]
    pub next: Bytes,
    /// Producers that the topic remembers in all.
    #[prost(uint64, tag = "3")]
    pub all: u64,
}

/// A producer that a topic remembers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ProducerInfo {
    /// Its id, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub producer: Bytes,
    /// The last sequence that was appended.
    #[prost(uint64, tag = "2")]
    pub last_sequence: u64,
    /// Offset of the event with it.
    #[prost(uint64, optional, tag = "3")]
    pub newest: Option<u64>,
}

/// Durable subscriptions.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Subscriptions {
    /// The subscriptions, by name.
    #[prost(message, repeated, tag = "1")]
    pub subscriptions: Vec<Subscription>,
    /// Offset that the topic's next event will get.
    #[prost(uint64, tag = "2")]
    pub head: u64,
    /// Offset of the topic's oldest event.
    #[prost(uint64, tag = "3")]
    pub oldest: u64,
}

/// Begins to empty a peer, or gives that up.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DrainAsk {
    /// Whether it is to be emptied.
    #[prost(bool, tag = "1")]
    pub on: bool,
}

/// Opens the conversation.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The namespace of all names in the conversation.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Between peers: the sender's mesh, 16 bytes. Empty from a client, and from a peer that has yet to join.
    #[prost(bytes = "bytes", tag = "3")]
    pub mesh: Bytes,
    /// Between peers: the addresses at which the sender can be reached.
    #[prost(string, repeated, tag = "4")]
    pub addresses: Vec<String>,
}

/// Answers a [`Hello`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Welcome {
    /// [`VERSION`] of the peer.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The peer's public key, 32 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub peer: Bytes,
    /// The mesh, 16 bytes; empty from a peer that has yet to join.
    #[prost(bytes = "bytes", tag = "3")]
    pub mesh: Bytes,
    /// The mesh's name.
    #[prost(string, tag = "4")]
    pub mesh_name: String,
    /// The peer's addresses.
    #[prost(string, repeated, tag = "5")]
    pub addresses: Vec<String>,
    /// How many times the peer has started, by its own disk; on a stream of Raft messages.
    #[prost(uint64, tag = "6")]
    pub boot: u64,
    /// A random number of this start.
    #[prost(uint64, tag = "7")]
    pub nonce: u64,
}

/// Asks where something lives.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Resolve {
    /// A topic's name, [`crate::route::CATALOG`] or a [`crate::route::group_name`].
    #[prost(string, tag = "1")]
    pub name: String,
    /// Asks the DHT again, whatever is cached.
    #[prost(bool, tag = "2")]
    pub fresh: bool,
    /// A replica id: a peer that holds a replica waits until it knows another leader than this one.
    #[prost(uint64, tag = "3")]
    pub other_than: u64,
    /// For how long it waits, at the most; then it answers what it knows.
    #[prost(uint32, tag = "4")]
    pub wait_ms: u32,
}

/// Where something lives.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Route {
    /// Topic id, or 0.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// The group.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// Epoch of the record.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// The replicas.
    #[prost(message, repeated, tag = "4")]
    pub replicas: Vec<Replica>,
    /// Replica id of the leader, as last known; 0 when unknown.
    #[prost(uint64, tag = "5")]
    pub leader: u64,
    /// How it was found: `local`, `cache`, `dht` or `catalog`.
    #[prost(string, tag = "6")]
    pub source: String,
}

/// Publishes events to one topic.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Publish {
    /// The topic's name.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// The topic's id, to be sure that it is still the same topic; 0: whatever has the name.
    #[prost(uint64, tag = "2")]
    pub topic_id: u64,
    /// The producer, 16 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub producer: Bytes,
    /// Sequence of the first event, in this topic, from 1; the others follow on.
    #[prost(uint64, tag = "4")]
    pub first_sequence: u64,
    /// The events.
    #[prost(message, repeated, tag = "5")]
    pub events: Vec<Event>,
    /// The group whose outbox they come from; 0: a publisher. Only between peers.
    #[prost(uint64, tag = "6")]
    pub origin: u64,
}

/// Ends a producer that has all its receipts, so that the group may forget it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EndProducer {
    /// The topic's name.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// The producer, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub producer: Bytes,
    /// Its last sequence.
    #[prost(uint64, tag = "3")]
    pub last_sequence: u64,
}

/// Asks how a topic stands.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TopicStatusAsk {
    /// The topic's name.
    #[prost(string, tag = "1")]
    pub topic: String,
}

/// How a topic stands, at the replica that answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TopicStatus {
    /// Topic id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The group.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// Offset of the oldest event that can be read.
    #[prost(uint64, tag = "3")]
    pub oldest: u64,
    /// Offset that the next event will get.
    #[prost(uint64, tag = "4")]
    pub next: u64,
    /// Producers remembered.
    #[prost(uint64, tag = "5")]
    pub producers: u64,
    /// Bytes of payload appended.
    #[prost(uint64, tag = "6")]
    pub bytes: u64,
    /// Bytes of payload that are kept.
    #[prost(uint64, tag = "7")]
    pub kept_bytes: u64,
    /// Events before this offset are in segments; later ones are in the log.
    #[prost(uint64, tag = "8")]
    pub sealed: u64,
    /// Segments.
    #[prost(uint64, tag = "9")]
    pub segments: u64,
    /// Bytes of their files.
    #[prost(uint64, tag = "10")]
    pub segment_bytes: u64,
    /// How long events are kept.
    #[prost(message, optional, tag = "11")]
    pub retention: Option<Retention>,
    /// The trigger that has yet to handle the oldest event, if retention waits for one.
    #[prost(string, tag = "12")]
    pub held_by: String,
    /// Durable subscriptions.
    #[prost(message, repeated, tag = "13")]
    pub subscriptions: Vec<Subscription>,
}

/// Reads the catalog.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CatalogAsk {
    /// Topics that this pattern matches. Empty: all but the system's.
    #[prost(string, tag = "1")]
    pub pattern: String,
    /// Parts wanted: any of `topics`, `groups`, `functions`, `triggers`.
    #[prost(string, repeated, tag = "2")]
    pub parts: Vec<String>,
    /// Only from the leader, after a round with its majority.
    #[prost(bool, tag = "3")]
    pub linearizable: bool,
}

/// The catalog, or parts of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CatalogView {
    /// Topics, by name.
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<TopicInfo>,
    /// Groups, by id.
    #[prost(message, repeated, tag = "2")]
    pub groups: Vec<GroupInfo>,
    /// Functions, by name.
    #[prost(message, repeated, tag = "3")]
    pub functions: Vec<FunctionInfo>,
    /// Triggers, by name.
    #[prost(message, repeated, tag = "4")]
    pub triggers: Vec<TriggerInfo>,
    /// Index of the catalog entry up to which this holds.
    #[prost(uint64, tag = "5")]
    pub applied: u64,
}

/// Reads a piece of a component.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BlobAsk {
    /// BLAKE3 of the whole, 32 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    /// Number of the piece.
    #[prost(uint32, tag = "2")]
    pub number: u32,
}

/// A piece of a component.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Blob {
    /// The piece; empty behind the last.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Consistency {
    /// The latest: the leader confirms with a majority that it still leads (Raft thesis, 6.4).
    Linearizable = 0,
    /// What the replica that answers has applied.
    Stale = 1,
}

/// Reads one row of function state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateGet {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The namespace of rows.
    #[prost(string, tag = "2")]
    pub bucket: String,
    /// Key of the row.
    #[prost(string, tag = "3")]
    pub key: String,
    /// How fresh.
    #[prost(enumeration = "Consistency", tag = "4")]
    pub consistency: i32,
}

/// Lists rows of function state, by key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateList {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The namespace of rows.
    #[prost(string, tag = "2")]
    pub bucket: String,
    /// Prefix of the keys.
    #[prost(string, tag = "3")]
    pub prefix: String,
    /// Rows at most; 0 or more than [`crate::limits::MAX_SCAN`]: that many.
    #[prost(uint32, tag = "4")]
    pub limit: u32,
    /// How fresh.
    #[prost(enumeration = "Consistency", tag = "5")]
    pub consistency: i32,
}

/// Rows of function state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateRows {
    /// The rows. A `StateGet` of a row that does not exist answers none.
    #[prost(message, repeated, tag = "1")]
    pub rows: Vec<StateOp>,
    /// Index of the entry up to which this holds.
    #[prost(uint64, tag = "2")]
    pub applied: u64,
}

/// Writes function state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StatePut {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The writes.
    #[prost(message, required, tag = "2")]
    pub write: StateWrite,
}

/// Lists activation records, the newest first.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ActivationsAsk {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Name of the trigger; empty: all of the group.
    #[prost(string, tag = "2")]
    pub trigger: String,
    /// Records at most. Zero: 50.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
    /// Only this number (0: any); needs the trigger.
    #[prost(uint64, tag = "4")]
    pub number: u64,
}

/// Activation records.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Activations {
    /// The records.
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<ActivationRecord>,
}

/// Asks for the peers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PeersAsk {}

/// Peers: all, by id; or in an [`Ask::Gossip`] some, the sender first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Peers {
    /// The peers.
    #[prost(message, repeated, tag = "1")]
    pub peers: Vec<PeerInfo>,
    /// In an [`Ask::Gossip`]: all that the sender knows of, so that the answer is what it lacks.
    #[prost(message, repeated, tag = "2")]
    pub known: Vec<Version>,
}

/// Which description of a peer somebody has.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Version {
    /// The first 8 bytes of the peer's public key, little-endian: enough to tell peers apart here.
    #[prost(fixed64, tag = "1")]
    pub peer: u64,
    /// [`PeerInfo::boot`].
    #[prost(uint64, tag = "2")]
    pub boot: u64,
    /// [`PeerInfo::revision`].
    #[prost(uint64, tag = "3")]
    pub revision: u64,
}

/// Asks a peer how it stands.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PeerStatusAsk {}

/// How a peer stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerStatus {
    /// The peer.
    #[prost(message, required, tag = "1")]
    pub info: PeerInfo,
    /// Replicas held here.
    #[prost(message, repeated, tag = "2")]
    pub groups: Vec<GroupStatus>,
    /// Peers of the mesh with a connection.
    #[prost(uint32, tag = "3")]
    pub neighbours: u32,
    /// Route records stored for the DHT.
    #[prost(uint32, tag = "4")]
    pub records: u32,
    /// Route records refused: unsigned, forged, stale, oversized.
    #[prost(uint64, tag = "5")]
    pub records_refused: u64,
    /// Whether this peer has joined a mesh.
    #[prost(bool, tag = "6")]
    pub joined: bool,
    /// Entries in the logs of all its replicas.
    #[prost(uint64, tag = "7")]
    pub log_entries: u64,
    /// Their bytes.
    #[prost(uint64, tag = "8")]
    pub log_bytes: u64,
    /// Segments kept.
    #[prost(uint64, tag = "9")]
    pub segments: u64,
    /// Their bytes.
    #[prost(uint64, tag = "10")]
    pub segment_bytes: u64,
    /// Bytes of events that came in for subscribers here from other peers.
    #[prost(uint64, tag = "11")]
    pub relayed_in: u64,
    /// Bytes of these events that went out to subscribers.
    #[prost(uint64, tag = "12")]
    pub relayed_out: u64,
    /// Peers that it has heard of lately, itself included.
    #[prost(uint32, tag = "13")]
    pub known: u32,
    /// Raft messages sent to other peers, since the start.
    #[prost(uint64, tag = "14")]
    pub raft_messages: u64,
    /// Frames that they travelled in.
    #[prost(uint64, tag = "15")]
    pub raft_frames: u64,
    /// Bytes of these frames.
    #[prost(uint64, tag = "16")]
    pub raft_bytes: u64,
    /// Damage found on its disk since the start: files, logs of groups, state.
    #[prost(uint64, tag = "17")]
    pub damage_found: u64,
    /// Damage that was made good since the start.
    #[prost(uint64, tag = "18")]
    pub damage_repaired: u64,
    /// What came from outside and was refused since the start, by reason; only what was refused at all.
    #[prost(message, repeated, tag = "19")]
    pub refused: Vec<RefusedCount>,
}

/// How often something was refused for one reason.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RefusedCount {
    /// `connections` and `streams` above what the peer serves, `incompatible`, `malformed`, `late`, `unread`, `busy`.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// How often.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// How a group stands, at the replica that answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GroupStatus {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// This replica's id.
    #[prost(uint64, tag = "3")]
    pub replica: u64,
    /// Replica id of the leader; 0 when there is none.
    #[prost(uint64, tag = "4")]
    pub leader: u64,
    /// Term.
    #[prost(uint64, tag = "5")]
    pub term: u64,
    /// Index of the last committed entry.
    #[prost(uint64, tag = "6")]
    pub committed: u64,
    /// Index of the last applied entry.
    #[prost(uint64, tag = "7")]
    pub applied: u64,
    /// Index of the last entry in the log.
    #[prost(uint64, tag = "8")]
    pub last: u64,
    /// Epoch of the route.
    #[prost(uint64, tag = "9")]
    pub epoch: u64,
    /// All replicas.
    #[prost(message, repeated, tag = "10")]
    pub replicas: Vec<Replica>,
    /// Ids of those that vote.
    #[prost(uint64, repeated, tag = "11")]
    pub voters: Vec<u64>,
    /// Replicas wanted.
    #[prost(uint32, tag = "12")]
    pub wanted: u32,
    /// Version of the spec applied.
    #[prost(uint64, tag = "13")]
    pub spec_version: u64,
    /// Effects in the outbox.
    #[prost(uint64, tag = "14")]
    pub outbox: u64,
    /// Topics, by id, without what has to be counted or read: segments, who holds events back, durable subscriptions.
    /// Those are in an [`Ask::TopicStatus`].
    #[prost(message, repeated, tag = "15")]
    pub topics: Vec<TopicStatus>,
    /// Lag of each trigger.
    #[prost(message, repeated, tag = "16")]
    pub triggers: Vec<TriggerLag>,
    /// Index of the first entry in the log.
    #[prost(uint64, tag = "17")]
    pub first: u64,
    /// Bytes of the log.
    #[prost(uint64, tag = "18")]
    pub log_bytes: u64,
    /// The latest steps in which the replicas changed, the newest first.
    #[prost(message, repeated, tag = "19")]
    pub steps: Vec<Step>,
    /// Where the replicas should be.
    #[prost(message, optional, tag = "20")]
    pub placement: Option<Placement>,
    /// On the leader: how far each replica is.
    #[prost(message, repeated, tag = "21")]
    pub progress: Vec<ReplicaProgress>,
    /// The step that is under way, for people; empty when there is none.
    #[prost(string, tag = "22")]
    pub under_way: String,
    /// The largest replica id that was ever used: one up to it that `replicas` does not name was let go for good.
    #[prost(uint64, tag = "23")]
    pub last_id: u64,
}

/// How far a replica is, as its leader knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReplicaProgress {
    /// The replica.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    /// Index of the last entry that it is known to have.
    #[prost(uint64, tag = "2")]
    pub matched: u64,
    /// Milliseconds since it was last heard of.
    #[prost(uint64, tag = "3")]
    pub silent_ms: u64,
    /// It is being filled by a snapshot.
    #[prost(bool, tag = "4")]
    pub snapshot: bool,
}

/// How far a trigger is in a topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TriggerLag {
    /// The trigger's name.
    #[prost(string, tag = "1")]
    pub trigger: String,
    /// The topic's name.
    #[prost(string, tag = "2")]
    pub topic: String,
    /// All events before this offset are handled.
    #[prost(uint64, tag = "3")]
    pub low: u64,
    /// Events not handled yet.
    #[prost(uint64, tag = "4")]
    pub waiting: u64,
    /// Of these, events that failed and wait for another try.
    #[prost(uint64, tag = "5")]
    pub parked: u64,
}

/// Proposes a spec to a group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ApplySpec {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The spec.
    #[prost(message, required, tag = "2")]
    pub spec: crate::log::GroupSpec,
}

/// A response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// The request's id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The answer.
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19")]
    pub answer: Option<Answer>,
}

/// An answer.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// It went wrong.
    #[prost(message, tag = "2")]
    Error(WireError),
    /// To [`Ask::Hello`].
    #[prost(message, tag = "3")]
    Welcome(Welcome),
    /// To [`Ask::Resolve`].
    #[prost(message, tag = "4")]
    Route(Route),
    /// To [`Ask::Publish`].
    #[prost(message, tag = "5")]
    Receipt(Receipt),
    /// It is done; there is nothing to say.
    #[prost(message, tag = "6")]
    Done(Done),
    /// To [`Ask::TopicStatus`].
    #[prost(message, tag = "7")]
    TopicStatus(TopicStatus),
    /// To [`Ask::Change`].
    #[prost(message, tag = "8")]
    Changed(CatalogReply),
    /// To [`Ask::Catalog`].
    #[prost(message, tag = "9")]
    Catalog(CatalogView),
    /// To [`Ask::Blob`].
    #[prost(message, tag = "10")]
    Blob(Blob),
    /// To [`Ask::StateGet`] and [`Ask::StateList`].
    #[prost(message, tag = "11")]
    Rows(StateRows),
    /// To [`Ask::Activations`].
    #[prost(message, tag = "12")]
    Activations(Activations),
    /// To [`Ask::GroupStatus`].
    #[prost(message, tag = "13")]
    GroupStatus(GroupStatus),
    /// To [`Ask::Peers`] and [`Ask::Gossip`].
    #[prost(message, tag = "14")]
    Peers(Peers),
    /// To [`Ask::PeerStatus`].
    #[prost(message, tag = "15")]
    PeerStatus(PeerStatus),
    /// To [`Ask::Piece`].
    #[prost(message, tag = "16")]
    Piece(PieceData),
    /// To [`Ask::Subscription`].
    #[prost(message, tag = "17")]
    Subscription(Subscription),
    /// To [`Ask::Subscriptions`].
    #[prost(message, tag = "18")]
    Subscriptions(Subscriptions),
    /// To [`Ask::Producers`].
    #[prost(message, tag = "19")]
    Producers(Producers),
}

/// Nothing to say.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Done {
    /// Index of the entry, where there was one.
    #[prost(uint64, tag = "1")]
    pub index: u64,
}

/// Opens a subscription to one topic, at any replica of its group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Subscribe {
    /// [`VERSION`] of the client.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The topic's name.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// Topic id, to be sure that it is still the same topic; 0: whatever has the name.
    #[prost(uint64, tag = "4")]
    pub topic_id: u64,
    /// Where to begin.
    #[prost(oneof = "From", tags = "5, 6, 7")]
    pub from: Option<From>,
    /// Name of a durable subscription, which goes on where it was; `from` says where a new one begins. Empty: none.
    #[prost(string, tag = "8")]
    pub durable: String,
    /// Bytes of events that may be sent before more is granted. Zero: [`DEFAULT_CREDIT`].
    #[prost(uint64, tag = "9")]
    pub credit: u64,
    /// The peer may fetch the events from a replica elsewhere. Without it, a peer that hosts no replica says `NotHere`.
    #[prost(bool, tag = "10")]
    pub relay: bool,
    /// Of a durable subscription: the subscriber, see [`SubscriptionChange::holder`].
    #[prost(bytes = "bytes", tag = "11")]
    pub holder: Bytes,
    /// Of a durable subscription: it was open before, see [`SubscriptionChange::again`]; it goes on at `from`, wherever its
    /// cursor is.
    #[prost(bool, tag = "12")]
    pub again: bool,
}

/// Bytes of events that a subscriber takes unless it says otherwise.
pub const DEFAULT_CREDIT: u64 = 4 << 20;

/// What a subscriber says after its [`Subscribe`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubscriberFrame {
    /// The content.
    #[prost(oneof = "Say", tags = "1, 2")]
    pub say: Option<Say>,
}

/// What a subscriber says.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Say {
    /// So many more bytes of events may be sent. An event costs its encoded length in [`Events`]; one that is larger than
    /// what is left is sent when anything is left.
    #[prost(uint64, tag = "1")]
    Credit(u64),
    /// Everything before this offset is handled (only of a durable subscription).
    #[prost(uint64, tag = "2")]
    Handled(u64),
}

/// Where a subscription begins.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum From {
    /// At the oldest event there is.
    #[prost(message, tag = "5")]
    Earliest(Done),
    /// Behind the newest event that the replica has applied.
    #[prost(message, tag = "6")]
    Latest(Done),
    /// At this offset.
    #[prost(uint64, tag = "7")]
    Offset(u64),
}

/// What a subscriber reads.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Delivery {
    /// The content.
    #[prost(oneof = "Content", tags = "1, 2, 3, 4, 5")]
    pub content: Option<Content>,
}

/// The content of a delivery.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Content {
    /// The subscription ends with an error.
    #[prost(message, tag = "1")]
    Error(WireError),
    /// The subscription stands; comes first, once.
    #[prost(message, tag = "2")]
    Opened(Opened),
    /// Events, in order.
    #[prost(message, tag = "3")]
    Events(Events),
    /// The subscription still stands; comes every second when nothing else does, and when credit runs out.
    #[prost(message, tag = "4")]
    Standing(Standing),
    /// A durable subscription's cursor is committed at this offset.
    #[prost(uint64, tag = "5")]
    Handled(u64),
}

/// How a subscription stands.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Standing {
    /// Offset of the event that will be sent next.
    #[prost(uint64, tag = "1")]
    pub next: u64,
    /// Offset that the topic's next event will get, as this replica knows it: `head - next` events lag.
    #[prost(uint64, tag = "2")]
    pub head: u64,
}

/// The subscription stands.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Opened {
    /// Topic id.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// Offset of the first event that will come.
    #[prost(uint64, tag = "2")]
    pub next: u64,
    /// Offset that the topic's next event will get, as this replica knows it.
    #[prost(uint64, tag = "3")]
    pub head: u64,
    /// Offset of the oldest event that can be read.
    #[prost(uint64, tag = "4")]
    pub oldest: u64,
    /// Of a durable subscription: its session.
    #[prost(uint64, tag = "5")]
    pub session: u64,
    /// Of a durable subscription: where its cursor is. Events between it and `next` are gone, unless it goes on again.
    #[prost(uint64, tag = "6")]
    pub cursor: u64,
}

/// Events of a topic.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Events {
    /// The events, at consecutive offsets.
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<Stored>,
    /// Offset that the topic's next event will get, as this replica knows it.
    #[prost(uint64, tag = "2")]
    pub head: u64,
}

impl Events {
    /// What an event costs of a subscriber's credit: its length in an encoded [`Events`], in bytes.
    pub fn cost(event: &Stored) -> u64 {
        prost::encoding::message::encoded_len(1, event) as u64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use prost::Message;

    fn pinned<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, bytes: &[u8]) {
        assert_eq!(message.encode_to_vec(), bytes);
        assert_eq!(M::decode(bytes).as_ref(), Ok(message));
    }

    #[test]
    fn what_is_asked_of_subscriptions_and_producers_is_pinned() {
        // as before a name could be given: all
        let ask = |name: &str| {
            let ask = Ask::Subscriptions(SubscriptionsAsk { topic: "t".into(), name: name.into() });
            Request { id: 1, deadline_ms: 0, ask: Some(ask) }
        };
        pinned(&ask(""), b"\x08\x01\xd2\x01\x03\x0a\x01t");
        pinned(&ask("n"), b"\x08\x01\xd2\x01\x06\x0a\x01t\x12\x01n");
        pinned(
            &ProducersAsk { topic: "t".into(), from: Bytes::from_static(b"p"), limit: 300 },
            b"\x0a\x01t\x12\x01p\x18\xac\x02",
        );
        let producer = ProducerInfo { producer: Bytes::from_static(b"p"), last_sequence: 300, newest: Some(0) };
        let page = Producers { producers: vec![producer], next: Bytes::from_static(b"q"), all: 2 };
        pinned(&page, b"\x0a\x08\x0a\x01p\x10\xac\x02\x18\x00\x12\x01q\x18\x02");
    }

    #[test]
    fn the_words_of_a_subscription_are_pinned() {
        let subscribe = Subscribe {
            version: 1,
            namespace: "n".into(),
            topic: "t".into(),
            topic_id: 2,
            from: Some(From::Offset(3)),
            durable: "d".into(),
            credit: 300,
            relay: true,
            holder: Bytes::from_static(b"h"),
            again: true,
        };
        pinned(&subscribe, b"\x08\x01\x12\x01n\x1a\x01t\x20\x02\x38\x03\x42\x01d\x48\xac\x02\x50\x01\x5a\x01h\x60\x01");
        pinned(&SubscriberFrame { say: Some(Say::Credit(300)) }, b"\x08\xac\x02");
        pinned(&SubscriberFrame { say: Some(Say::Handled(0)) }, b"\x10\x00");
        let opened = Opened { topic: 1, next: 2, head: 3, oldest: 4, session: 5, cursor: 6 };
        pinned(
            &Delivery { content: Some(Content::Opened(opened)) },
            b"\x12\x0c\x08\x01\x10\x02\x18\x03\x20\x04\x28\x05\x30\x06",
        );
        let events = vec![Stored { offset: 7, event: Event::new("x"), ..Stored::default() }];
        assert_eq!(Events::cost(&events[0]), 9);
        let events = Content::Events(Events { events, head: 8 });
        pinned(&Delivery { content: Some(events) }, b"\x1a\x0b\x0a\x07\x08\x07\x12\x03\x1a\x01x\x10\x08");
        let standing = Content::Standing(Standing { next: 1, head: 2 });
        pinned(&Delivery { content: Some(standing) }, b"\x22\x04\x08\x01\x10\x02");
        pinned(&Delivery { content: Some(Content::Handled(9)) }, b"\x28\x09");
    }
}
