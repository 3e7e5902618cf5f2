//! What each kind of entry does to the rows, by its exact answers, and the bytes of the rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use canal_proto::TopicName;
use canal_proto::catalog::TriggerInfo;
use canal_proto::cursor::Cursor;
use canal_proto::event::{Durability, Event};
use canal_proto::log::{Append, AppendItem, FunctionLimits, Target, TopicSpec, TriggerSpec};
use prost::Message;

use super::*;
use crate::core::keys::Keys;
use crate::core::kv::{Kv, MemoryKv, WriteBatch};

mod appends;
mod catalogs;
mod golden;
mod laws;
mod outboxes;
mod runs;
mod seals;
mod specs;
mod steps;
mod subscriptions;

const GROUP: GroupId = GroupId(7);
const MESH: MeshId = MeshId([1; 16]);
const TERM: u64 = 2;

/// A group's rows, and the index of the last entry applied to them.
#[derive(Default)]
struct Bench {
    kv: MemoryKv,
    index: u64,
}

impl Bench {
    /// A group that has applied these as its first spec.
    fn with(topics: &[(u64, &str)], triggers: &[TriggerSpec]) -> Self {
        let mut bench = Self::default();
        assert_eq!(bench.run(Kind::Spec(spec_of(1, topics, triggers))).0, Reply::Done);
        bench
    }

    fn try_run(&mut self, kind: Option<Kind>) -> Result<(Reply, Vec<Effect>), KvError> {
        self.index += 1;
        let mut batch = WriteBatch::default();
        let place = Place { mesh: MESH, group: GROUP, namespace: "n", index: self.index, term: TERM };
        let done = apply(&mut Txn::new(GROUP, &self.kv, &mut batch), place, &Command { time_ms: 1000, kind })?;
        self.kv.write(&batch);
        Ok(done)
    }

    fn run(&mut self, kind: Kind) -> (Reply, Vec<Effect>) {
        self.try_run(Some(kind)).unwrap()
    }

    fn append(&mut self, items: Vec<AppendItem>) -> Vec<Result<Receipt, WireError>> {
        match self.run(Kind::Append(Append { items })).0 {
            Reply::Appended(results) => results,
            other => panic!("{other:?}"),
        }
    }

    fn row<M: Message + Default>(&self, key: Bytes) -> Option<M> {
        self.kv.get(&key).unwrap().map(|bytes| M::decode(bytes).unwrap())
    }

    fn put<M: Message>(&mut self, key: Bytes, row: &M) {
        let mut batch = WriteBatch::default();
        batch.ops.insert(key, Some(row.encode_to_vec().into()));
        self.kv.write(&batch);
    }

    /// Rows whose keys begin with these bytes.
    fn count(&self, prefix: Bytes) -> usize {
        self.kv.snapshot().keys().filter(|key| key.starts_with(&prefix)).count()
    }

    fn topic(&self, id: u64) -> Option<Topic> {
        self.row(keys().topic_only(Table::Topics, TopicId(id)))
    }

    fn cursor(&self, trigger: u64, topic: u64) -> Option<Cursor> {
        self.row(keys().cursor(canal_proto::TriggerId(trigger), TopicId(topic)))
    }
}

fn keys() -> Keys {
    Keys(GROUP)
}

fn spec_of(version: u64, topics: &[(u64, &str)], triggers: &[TriggerSpec]) -> GroupSpec {
    let topics =
        topics.iter().map(|(id, name)| TopicSpec { id: *id, name: (*name).into(), ..TopicSpec::default() }).collect();
    GroupSpec { version, topics, triggers: triggers.to_vec(), replicas: 3, ..GroupSpec::default() }
}

fn trigger(id: u64, name: &str, pattern: &str) -> TriggerSpec {
    TriggerSpec {
        info: TriggerInfo {
            id,
            name: name.into(),
            patterns: vec![pattern.into()],
            function: "f".into(),
            bucket: name.into(),
            ..TriggerInfo::default()
        },
        component: Bytes::from_static(&[9; 32]),
        limits: FunctionLimits::default(),
        dead: Target { topic: 90, group: GROUP.0, name: TopicName::dead_letters(name) },
    }
}

fn producer(name: u8) -> Bytes {
    vec![name; 16].into()
}

/// `count` events of three bytes each.
fn item(topic: u64, name: u8, first_sequence: u64, count: usize) -> AppendItem {
    AppendItem { topic, producer: producer(name), first_sequence, events: vec![Event::new("abc"); count], origin: 0 }
}

fn receipt(index: u64, offset: Option<u64>, count: u32, duplicate: bool) -> Result<Receipt, WireError> {
    Ok(Receipt { offset, count, term: TERM, index, duplicate, durability: Durability::Quorum.into() })
}

#[test]
fn an_unknown_kind_stops_the_replica() {
    let mut bench = Bench::default();
    let error = bench.try_run(None).unwrap_err();
    assert!(error.0.ends_with("entry 1: an entry is of a kind that this version does not know; update this peer"));
    assert!(bench.kv.snapshot().is_empty());
}
