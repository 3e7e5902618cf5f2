//! What peers say to each other: who they are, where a group's replicas live, and Raft messages.
//!
//! The Raft messages have the field numbers of raft-rs's `eraftpb.proto`, but are parsed here by prost: the parser
//! that raft-rs brings along (rust-protobuf 2, RUSTSEC-2024-0437) never meets a byte from the network.

use bytes::Bytes;

use crate::id::{ParseIdError, PeerId};

/// Where a peer stands between sensors and datacentre.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Tier {
    /// A device.
    Iot = 0,
    /// A box near devices.
    Edge = 1,
    /// A datacentre.
    Cloud = 2,
}

impl Tier {
    /// The tier's name, as flags and files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iot => "iot",
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        }
    }
}

impl std::str::FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "iot" => Ok(Self::Iot),
            "edge" => Ok(Self::Edge),
            "cloud" => Ok(Self::Cloud),
            other => Err(format!("`{other}` is not a tier; use iot, edge or cloud")),
        }
    }
}

/// A replica of a group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Replica {
    /// Its Raft id: unique in the group, never used again.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The peer that holds it: its public key, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub peer: Vec<u8>,
    /// Multiaddresses of the peer, as last known.
    #[prost(string, repeated, tag = "3")]
    pub addresses: Vec<String>,
}

impl Replica {
    /// The peer that holds it.
    pub fn peer_id(&self) -> Result<PeerId, ParseIdError> {
        PeerId::from_slice(&self.peer)
    }
}

/// A label: what a peer offers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Label {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A peer's description of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerInfo {
    /// Public key, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub peer: Vec<u8>,
    /// Multiaddresses at which it can be reached.
    #[prost(string, repeated, tag = "2")]
    pub addresses: Vec<String>,
    /// Tier.
    #[prost(enumeration = "Tier", tag = "3")]
    pub tier: i32,
    /// Site: the failure and latency domain.
    #[prost(string, tag = "4")]
    pub site: String,
    /// Labels.
    #[prost(message, repeated, tag = "5")]
    pub labels: Vec<Label>,
    /// Logical processors.
    #[prost(uint32, tag = "6")]
    pub cpus: u32,
    /// Memory of the machine, in bytes.
    #[prost(uint64, tag = "7")]
    pub memory: u64,
    /// Replicas held.
    #[prost(uint32, tag = "8")]
    pub replicas: u32,
    /// Groups led.
    #[prost(uint32, tag = "9")]
    pub leads: u32,
    /// Version of the program.
    #[prost(string, tag = "10")]
    pub version: String,
    /// Milliseconds since it was last heard of, by whoever answers.
    #[prost(uint64, tag = "11")]
    pub heard_ms_ago: u64,
    /// Processors in use, in thousandths of all of them.
    #[prost(uint32, tag = "12")]
    pub load: u32,
    /// Where it stands in the space of round trips.
    #[prost(message, optional, tag = "13")]
    pub coordinate: Option<Coordinate>,
    /// It is being emptied: it takes no new replicas, and those that it has move away.
    #[prost(bool, tag = "14")]
    pub draining: bool,
    /// How many times it has started; a larger one replaces what is known of a smaller.
    #[prost(uint64, tag = "15")]
    pub boot: u64,
    /// Number of this description since the start; a larger one replaces what is known of a smaller.
    #[prost(uint64, tag = "16")]
    pub revision: u64,
    /// How many times it has started, by its own disk: what a stream of Raft messages begins with. 0: it does not say.
    #[prost(uint64, tag = "17")]
    pub start: u64,
    /// The random number of that start.
    #[prost(uint64, tag = "18")]
    pub nonce: u64,
}

/// A network coordinate with height (Vivaldi; Dabek, Cox, Kaashoek, Morris, 2004, section 5.4): the distance of two
/// estimates their round trip.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Coordinate {
    /// Milliseconds.
    #[prost(double, tag = "1")]
    pub x: f64,
    /// Milliseconds.
    #[prost(double, tag = "2")]
    pub y: f64,
    /// Milliseconds from the peer into the network.
    #[prost(double, tag = "3")]
    pub height: f64,
    /// Estimated relative error: 1 knows nothing.
    #[prost(double, tag = "4")]
    pub error: f64,
}

/// Says who opens a stream of Raft messages, before the first of them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RaftHello {
    /// [`crate::request::VERSION`] of the sender.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// How many times the sender has started, by its own disk.
    #[prost(uint64, tag = "2")]
    pub boot: u64,
    /// A random number of this start.
    #[prost(uint64, tag = "3")]
    pub nonce: u64,
    /// The receiver's disk is older than what was seen of it: how many times it has started already, as far as the
    /// sender knows. Zero: it is not.
    #[prost(uint64, tag = "4")]
    pub seen_boot: u64,
    /// With `seen_boot`: the random number of that start.
    #[prost(uint64, tag = "5")]
    pub seen_nonce: u64,
}

/// Answers a [`RaftHello`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftVerdict {
    /// Why no messages are taken, if they are not.
    #[prost(message, optional, tag = "1")]
    pub refused: Option<crate::error::WireError>,
    /// With `Forgotten`: how many times the sender has started already, as far as is known here.
    #[prost(uint64, tag = "2")]
    pub boot: u64,
    /// With `Forgotten`: the random number of that start.
    #[prost(uint64, tag = "3")]
    pub nonce: u64,
}

/// What a snapshot consists of: the data of a [`RaftSnapshot`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Manifest {
    /// The group's rows as of the snapshot's index, in the order of their keys, cut in pieces.
    #[prost(message, repeated, tag = "1")]
    pub rows: Vec<Piece>,
    /// The segments that the rows name.
    #[prost(message, repeated, tag = "2")]
    pub segments: Vec<Piece>,
    /// The peer that has all of them.
    #[prost(bytes = "bytes", tag = "3")]
    pub peer: Bytes,
}

/// A file by its content.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Piece {
    /// BLAKE3 of it, 32 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// Rows of a snapshot: the content of a piece.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rows {
    /// The rows; keys are without the group's id.
    #[prost(message, repeated, tag = "1")]
    pub rows: Vec<Row>,
}

/// A row.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Row {
    /// Key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `eraftpb.Snapshot`, with its metadata in it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RaftSnapshot {
    /// A [`Manifest`].
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Index of the last entry in it.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// Voters.
    #[prost(uint64, repeated, tag = "4")]
    pub voters: Vec<u64>,
    /// Learners.
    #[prost(uint64, repeated, tag = "5")]
    pub learners: Vec<u64>,
    /// Voters of the outgoing half of a joint configuration.
    #[prost(uint64, repeated, tag = "6")]
    pub voters_outgoing: Vec<u64>,
    /// Learners once the outgoing half is gone.
    #[prost(uint64, repeated, tag = "7")]
    pub learners_next: Vec<u64>,
    /// Whether Raft leaves the joint configuration by itself.
    #[prost(bool, tag = "8")]
    pub auto_leave: bool,
}

/// How a replica comes to life on a peer: enough to start with an empty log and the group's first configuration.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Seed {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Its name, unique in its namespace.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// The voters that the group began with.
    #[prost(message, repeated, tag = "4")]
    pub first: Vec<Replica>,
    /// The id of the replica that is to be created.
    #[prost(uint64, tag = "5")]
    pub replica: u64,
    /// The mesh, 16 bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub mesh: Vec<u8>,
}

/// Messages between two peers' replicas, of any groups, in the order in which they were sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftBatch {
    /// The messages.
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<RaftEnvelope>,
}

/// One Raft message with its group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftEnvelope {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The message.
    #[prost(message, required, tag = "2")]
    pub message: RaftMessage,
}

/// `eraftpb.Entry`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RaftEntry {
    /// 0 normal, 1 configuration change, 2 configuration change v2.
    #[prost(int32, tag = "1")]
    pub entry_type: i32,
    /// Term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Index.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// A [`crate::log::Command`], or a configuration change.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// Context.
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
}

/// `eraftpb.Message`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftMessage {
    /// `eraftpb.MessageType`.
    #[prost(int32, tag = "1")]
    pub msg_type: i32,
    /// Replica id of the receiver.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// Replica id of the sender.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// Term.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// Term of the entry before `entries`.
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    /// Index of the entry before `entries`.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Entries.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<RaftEntry>,
    /// Commit index.
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    /// Snapshot.
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<RaftSnapshot>,
    /// Rejected.
    #[prost(bool, tag = "10")]
    pub reject: bool,
    /// Where the rejecting log may match.
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    /// Context, of read index requests and transfers.
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    /// Index from which a snapshot is asked for.
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    /// Term of the commit index.
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    /// Priority.
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{DrainAsk, Peers, Version};
    use prost::Message;

    #[test]
    fn greetings_of_raft_streams_are_pinned() {
        let hello = RaftHello { version: 1, boot: 2, nonce: 300, seen_boot: 4, seen_nonce: 5 };
        assert_eq!(hello.encode_to_vec(), b"\x08\x01\x10\x02\x18\xac\x02\x20\x04\x28\x05");
        let refused = Some(crate::WireError::new(crate::Code::Forgotten, "m"));
        let verdict = RaftVerdict { refused, boot: 2, nonce: 3 };
        assert_eq!(verdict.encode_to_vec(), b"\x0a\x05\x08\x18\x12\x01m\x10\x02\x18\x03");
        let welcome = crate::request::Welcome { version: 1, boot: 2, nonce: 3, ..Default::default() };
        assert_eq!(welcome.encode_to_vec(), b"\x08\x01\x30\x02\x38\x03");
    }

    #[test]
    fn exchanges_of_descriptions_are_pinned() {
        let info = PeerInfo {
            peer: b"p".to_vec(),
            tier: Tier::Cloud.into(),
            site: "s".into(),
            heard_ms_ago: 5,
            load: 500,
            coordinate: Some(Coordinate { x: 1.0, y: 0.0, height: 0.0, error: 0.0 }),
            draining: true,
            boot: 6,
            revision: 7,
            start: 8,
            nonce: 9,
            ..PeerInfo::default()
        };
        assert_eq!(
            info.encode_to_vec(),
            b"\x0a\x01p\x18\x02\x22\x01s\x58\x05\x60\xf4\x03\x6a\x09\x09\0\0\0\0\0\0\xf0\x3f\x70\x01\x78\x06\x80\x01\x07\
              \x88\x01\x08\x90\x01\x09"
        );
        let known = vec![Version { peer: 0x0102, boot: 3, revision: 4 }];
        let peers = Peers { peers: vec![PeerInfo { boot: 1, ..PeerInfo::default() }], known };
        assert_eq!(peers.encode_to_vec(), b"\x0a\x02\x78\x01\x12\x0d\x09\x02\x01\0\0\0\0\0\0\x10\x03\x18\x04");
        assert_eq!(DrainAsk { on: true }.encode_to_vec(), b"\x08\x01");
    }

    #[test]
    fn raft_messages_are_pinned() {
        let message = RaftMessage {
            msg_type: 3,
            to: 2,
            from: 1,
            term: 5,
            log_term: 4,
            index: 9,
            entries: vec![RaftEntry { term: 5, index: 10, data: Bytes::from_static(b"x"), ..RaftEntry::default() }],
            commit: 9,
            ..RaftMessage::default()
        };
        let envelope = RaftEnvelope { group: 7, message };
        assert_eq!(
            envelope.encode_to_vec(),
            b"\x08\x07\x12\x17\x08\x03\x10\x02\x18\x01\x20\x05\x28\x04\x30\x09\x3a\x07\x10\x05\x18\x0a\x22\x01x\x40\x09"
        );
    }
}
