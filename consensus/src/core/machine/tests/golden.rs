//! Pins the bytes of the rows: a change here is a change of the format, and needs a new version of it.

use canal_proto::log::Emit;
use canal_proto::peer::Replica;

use super::*;
use crate::core::rows::{
    Applied, BlobRow, Configuration, Counter, Locator, OutboxRow, OutboxTopic, Producer, Run, Topic,
};

#[track_caller]
fn pinned<M: Message + Default + PartialEq + std::fmt::Debug>(row: &M, want: &[u8]) {
    let bytes = row.encode_to_vec();
    assert_eq!(bytes, want);
    assert_eq!(M::decode(bytes.as_slice()).as_ref(), Ok(row));
}

#[test]
fn rows_are_pinned() {
    pinned(&Applied { index: 300, term: 2, began: 9 }, b"\x08\xac\x02\x10\x02\x18\x09");
    let topic = Topic { next: 300, bytes: 1, producers: 2, oldest: 3, sealed: 4, trimmed: 5 };
    pinned(&topic, b"\x08\xac\x02\x10\x01\x18\x02\x20\x03\x28\x04\x30\x05");
    let locator = Locator { index: 300, part: 1, count: 2, before: 3 };
    pinned(&locator, b"\x08\xac\x02\x10\x01\x18\x02\x20\x03");
    pinned(&OutboxTopic { last: 300, acked: 2 }, b"\x08\xac\x02\x10\x02");
    pinned(&Counter { value: 300 }, b"\x08\xac\x02");
    pinned(&BlobRow { data: "xyz".into() }, b"\x0a\x03xyz");
}

#[test]
fn a_producer_is_pinned() {
    let runs = vec![Run { sequence: 1, offset: 300, count: 4 }, Run { sequence: 5, offset: 0, count: 1 }];
    let want = b"\x08\x05\x12\x07\x08\x01\x10\xac\x02\x18\x04\x12\x04\x08\x05\x18\x01";
    pinned(&Producer { last: 5, runs }, want);
}

#[test]
fn a_configuration_is_pinned() {
    let configuration = Configuration {
        voters: vec![1, 300],
        learners: vec![3],
        voters_outgoing: vec![4],
        learners_next: vec![5],
        auto_leave: true,
        index: 6,
        replicas: vec![Replica { id: 2, peer: vec![7; 2], addresses: vec!["/a".into()] }],
        last_id: 8,
    };
    let want = b"\x0a\x03\x01\xac\x02\x12\x01\x03\x1a\x01\x04\x22\x01\x05\x28\x01\x30\x06\
        \x3a\x0a\x08\x02\x12\x02\x07\x07\x1a\x02/a\x40\x08";
    pinned(&configuration, want);
}

#[test]
fn an_effect_is_pinned() {
    let emit = Emit {
        target: Target { topic: 4, group: 5, name: "t".into() },
        event: Event::new("x"),
        dead: Target { topic: 6, group: 5, name: "$dead/n".into() },
    };
    let want = b"\x0a\x1d\x0a\x07\x08\x04\x10\x05\x1a\x01t\x12\x03\x1a\x01x\x1a\x0d\x08\x06\x10\x05\x1a\x07$dead/n";
    pinned(&OutboxRow { emit }, want);
}
