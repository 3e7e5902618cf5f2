//! Between the wire's Raft messages, which prost parses, and raft-rs's own types.

use canal_proto::peer::{RaftEntry, RaftMessage};
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType,
};

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
        ..RaftMessage::default()
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

/// From the wire. Messages that a replica makes only for itself are refused, and so is a snapshot, which does not
/// travel inside Raft messages.
pub fn from_wire(wire: RaftMessage) -> Result<Message, Unknown> {
    let msg_type = match wire.msg_type {
        3 => MessageType::MsgAppend,
        4 => MessageType::MsgAppendResponse,
        5 => MessageType::MsgRequestVote,
        6 => MessageType::MsgRequestVoteResponse,
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
    Ok(message)
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
        for local in [0, 1, 2, 7, 10, 11, 12, 13, 15, 99] {
            assert!(from_wire(RaftMessage { msg_type: local, ..RaftMessage::default() }).is_err(), "{local}");
        }
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
