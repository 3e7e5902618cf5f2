//! Between the wire's Raft messages, which prost parses, and raft-rs's own types.

use canal_proto::limits::MAX_REPLICAS;
use canal_proto::peer::{RaftEntry, RaftMessage, RaftSnapshot};
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType, Snapshot, SnapshotMetadata,
};

/// Replicas of one kind in a configuration at most: those that a group may have, and as many on their way in or out.
const MAX_IDS: usize = 2 * MAX_REPLICAS;

/// A message that can't be what a replica sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a raft message with an unknown {0}; it is dropped")]
pub struct Unknown(&'static str);

/// To the wire.
pub fn to_wire(mut message: Message) -> RaftMessage {
    RaftMessage {
        msg_type: message.msg_type as i32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.take_entries().into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.take_context(),
        request_snapshot: message.request_snapshot,
        commit_term: message.commit_term,
        priority: message.priority,
        snapshot: (message.msg_type == MessageType::MsgSnapshot).then(|| snapshot_to_wire(message.take_snapshot())),
    }
}

fn snapshot_to_wire(mut snapshot: Snapshot) -> RaftSnapshot {
    let mut metadata = snapshot.take_metadata();
    let state = metadata.take_conf_state();
    RaftSnapshot {
        data: std::mem::take(&mut snapshot.data),
        index: metadata.index,
        term: metadata.term,
        voters: state.voters,
        learners: state.learners,
        voters_outgoing: state.voters_outgoing,
        learners_next: state.learners_next,
        auto_leave: state.auto_leave,
    }
}

fn entry_to_wire(mut entry: Entry) -> RaftEntry {
    RaftEntry {
        entry_type: entry.entry_type as i32,
        term: entry.term,
        index: entry.index,
        data: entry.take_data(),
        context: entry.take_context(),
    }
}

/// From the wire. Messages that a replica makes only for itself are refused, and so is a snapshot with more replicas than a
/// group can have.
pub fn from_wire(wire: RaftMessage) -> Result<Message, Unknown> {
    let msg_type = match wire.msg_type {
        3 => MessageType::MsgAppend,
        4 => MessageType::MsgAppendResponse,
        5 => MessageType::MsgRequestVote,
        6 => MessageType::MsgRequestVoteResponse,
        7 => MessageType::MsgSnapshot,
        8 => MessageType::MsgHeartbeat,
        9 => MessageType::MsgHeartbeatResponse,
        14 => MessageType::MsgTimeoutNow,
        17 => MessageType::MsgRequestPreVote,
        18 => MessageType::MsgRequestPreVoteResponse,
        _ => return Err(Unknown("type")),
    };
    let mut message = Message {
        msg_type,
        to: wire.to,
        from: wire.from,
        term: wire.term,
        log_term: wire.log_term,
        index: wire.index,
        commit: wire.commit,
        commit_term: wire.commit_term,
        reject: wire.reject,
        reject_hint: wire.reject_hint,
        request_snapshot: wire.request_snapshot,
        priority: wire.priority,
        context: wire.context,
        ..Message::default()
    };
    let mut entries = Vec::with_capacity(wire.entries.len());
    for entry in wire.entries {
        entries.push(entry_from_wire(entry)?);
    }
    message.set_entries(entries.into());
    match (msg_type, wire.snapshot) {
        (MessageType::MsgSnapshot, Some(snapshot)) => message.set_snapshot(snapshot_from_wire(snapshot)?),
        (MessageType::MsgSnapshot, None) => return Err(Unknown("snapshot")),
        (_, _) => {}
    }
    Ok(message)
}

fn snapshot_from_wire(wire: RaftSnapshot) -> Result<Snapshot, Unknown> {
    let RaftSnapshot { data, index, term, voters, learners, voters_outgoing, learners_next, auto_leave } = wire;
    if [&voters, &learners, &voters_outgoing, &learners_next].iter().any(|ids| ids.len() > MAX_IDS) {
        return Err(Unknown("configuration"));
    }
    let state = ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, ..ConfState::default() };
    let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
    metadata.set_conf_state(state);
    let mut snapshot = Snapshot { data, ..Snapshot::default() };
    snapshot.set_metadata(metadata);
    Ok(snapshot)
}

fn entry_from_wire(wire: RaftEntry) -> Result<Entry, Unknown> {
    let entry_type = match wire.entry_type {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(Unknown("entry type")),
    };
    Ok(Entry {
        entry_type,
        term: wire.term,
        index: wire.index,
        data: wire.data,
        context: wire.context,
        ..Entry::default()
    })
}

/// `eraftpb.ConfChangeV2`, parsed by prost because its bytes come from another peer.
#[derive(Clone, PartialEq, prost::Message)]
struct WireChange {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<WireSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    context: bytes::Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireSingle {
    #[prost(int32, tag = "1")]
    change_type: i32,
    #[prost(uint64, tag = "2")]
    node_id: u64,
}

/// Reads a change of the configuration from an entry's data.
pub fn conf_change(data: bytes::Bytes) -> Result<ConfChangeV2, Unknown> {
    let wire = <WireChange as prost::Message>::decode(data).map_err(|_| Unknown("configuration change"))?;
    let mut change = ConfChangeV2 { context: wire.context, ..ConfChangeV2::default() };
    change.set_transition(match wire.transition {
        0 => ConfChangeTransition::Auto,
        1 => ConfChangeTransition::Implicit,
        2 => ConfChangeTransition::Explicit,
        _ => return Err(Unknown("transition")),
    });
    let mut singles = Vec::with_capacity(wire.changes.len());
    for one in wire.changes {
        let mut single = ConfChangeSingle { node_id: one.node_id, ..ConfChangeSingle::default() };
        single.set_change_type(match one.change_type {
            0 => ConfChangeType::AddNode,
            1 => ConfChangeType::RemoveNode,
            2 => ConfChangeType::AddLearnerNode,
            _ => return Err(Unknown("change type")),
        });
        singles.push(single);
    }
    change.set_changes(singles.into());
    Ok(change)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use protobuf::Message as _;

    #[test]
    fn a_message_comes_back_and_local_ones_are_refused() {
        let mut message = Message { msg_type: MessageType::MsgAppend, to: 2, from: 1, term: 3, ..Message::default() };
        let entry = Entry { term: 3, index: 7, data: b"x"[..].into(), ..Entry::default() };
        message.set_entries(vec![entry].into());
        assert_eq!(from_wire(to_wire(message.clone())), Ok(message));
        for local in [0, 1, 2, 10, 11, 12, 13, 15, 99] {
            assert!(from_wire(RaftMessage { msg_type: local, ..RaftMessage::default() }).is_err(), "{local}");
        }
    }

    #[test]
    fn a_snapshot_comes_back_with_its_configuration() {
        let mut message = Message { msg_type: MessageType::MsgSnapshot, to: 2, from: 1, term: 3, ..Message::default() };
        let mut metadata = SnapshotMetadata { index: 40, term: 3, ..SnapshotMetadata::default() };
        metadata.set_conf_state(ConfState {
            voters: vec![1, 4],
            learners: vec![5],
            voters_outgoing: vec![1, 2],
            learners_next: vec![2],
            auto_leave: true,
            ..ConfState::default()
        });
        let mut snapshot = Snapshot { data: b"manifest"[..].into(), ..Snapshot::default() };
        snapshot.set_metadata(metadata);
        message.set_snapshot(snapshot);
        let wire = to_wire(message.clone());
        assert_eq!(
            prost::Message::encode_to_vec(&wire),
            b"\x08\x07\x10\x02\x18\x01\x20\x03\x4a\x1e\x0a\x08manifest\x10\x28\x18\x03\x22\x02\x01\x04\x2a\x01\x05\x32\x02\x01\x02\x3a\x01\x02\x40\x01"
        );
        assert_eq!(from_wire(wire.clone()), Ok(message));
        assert!(from_wire(RaftMessage { snapshot: None, ..wire.clone() }).is_err());
        let mut crowd = wire.clone();
        if let Some(snapshot) = &mut crowd.snapshot {
            snapshot.learners = (1..=1000).collect();
        }
        assert!(from_wire(crowd).is_err());
        // beside another kind of message it means nothing
        let append = from_wire(RaftMessage { msg_type: 3, ..wire }).unwrap();
        assert!(append.snapshot.is_none());
    }

    #[test]
    fn a_conf_change_reads_as_raft_rs_wrote_it() {
        let mut change = ConfChangeV2 { context: b"c"[..].into(), ..ConfChangeV2::default() };
        let mut single = ConfChangeSingle { node_id: 4, ..ConfChangeSingle::default() };
        single.set_change_type(ConfChangeType::AddLearnerNode);
        change.set_changes(vec![single].into());
        assert_eq!(conf_change(change.write_to_bytes().unwrap().into()), Ok(change));
        assert!(conf_change(b"\xff\xff"[..].into()).is_err());
    }
}
