//! What holds for every sequence of commands, nonsense included.

use std::collections::BTreeMap;

use canal_proto::catalog::{BlobChunk, CatalogCommand, Change, CreateTopic, SetPaused};
use canal_proto::log::{EndProducer, OutboxAck, Outcome, Outcomes, StateOp, StateWrite};
use proptest::prelude::*;

use super::runs::{emit, outcome};
use super::*;
use crate::core::keys::tail_number;
use crate::core::rows::{Counter, Locator, OutboxTopic};

const TOPICS: [(u64, &str); 4] = [(3, "a"), (4, "b"), (5, "a/c"), (90, "$dead/one")];

fn an_append() -> impl Strategy<Value = Kind> {
    let item =
        (2u64..6, 0u8..3, 0u64..6, 0usize..4).prop_map(|(topic, name, first, count)| item(topic, name, first, count));
    prop::collection::vec(item, 0..4).prop_map(|items| Kind::Append(Append { items }))
}

fn an_outcome() -> impl Strategy<Value = Outcome> {
    let to = prop::collection::vec((2u64..6, prop_oneof![Just(GROUP.0), Just(8)]), 0..3);
    (9u64..12, 2u64..6, 0u64..5, 0u32..3, 0i32..4, to).prop_map(|(trigger, topic, offset, attempt, disposition, to)| {
        Outcome {
            attempt,
            disposition,
            writes: vec![StateOp { key: format!("k{offset}"), value: (attempt < 2).then(|| "v".into()) }],
            emits: to.into_iter().map(|(topic, group)| emit(topic, group, "x")).collect(),
            ..outcome(trigger, topic, offset)
        }
    })
}

fn a_spec() -> impl Strategy<Value = Kind> {
    (0u64..6, prop::sample::subsequence(TOPICS.to_vec(), 0..=4), 0usize..3).prop_map(|(version, topics, count)| {
        let triggers = [trigger(10, "one", "a/#"), trigger(11, "two", "+")];
        Kind::Spec(spec_of(version, &topics, &triggers[..count]))
    })
}

fn a_change() -> impl Strategy<Value = Option<Change>> {
    let name = || prop::sample::select(vec!["", "a", "b/c", "$dead/one", "one", "a//b"]).prop_map(str::to_owned);
    let hash = blake3::hash(b"x").as_bytes().to_vec();
    let deploy =
        canal_proto::catalog::FunctionInfo { name: "f".into(), component: hash.clone().into(), ..Default::default() };
    prop_oneof![
        Just(None),
        (name(), name(), 0u32..11).prop_map(|(name, group, replicas)| Some(Change::CreateTopic(CreateTopic {
            name,
            group,
            replicas,
            ..CreateTopic::default()
        }))),
        name().prop_map(|name| Some(Change::RemoveTopic(name))),
        (0u32..2).prop_map(move |number| {
            Some(Change::PutChunk(BlobChunk { hash: hash.clone().into(), number, data: "x".into() }))
        }),
        Just(Some(Change::Deploy(deploy))),
        Just(Some(Change::RemoveFunction("f".into()))),
        name().prop_map(|name| Some(Change::CreateTrigger(trigger(0, &name, "a/#").info))),
        name().prop_map(|name| Some(Change::RemoveTrigger(name))),
        any::<bool>().prop_map(|paused| Some(Change::SetPaused(SetPaused { trigger: "one".into(), paused }))),
        any::<u64>().prop_map(|id| Some(Change::GroupActive(id))),
    ]
}

fn a_command() -> impl Strategy<Value = Kind> {
    let placement = vec![canal_proto::peer::Replica::default()];
    prop_oneof![
        4 => an_append(),
        4 => prop::collection::vec(an_outcome(), 0..4).prop_map(|outcomes| Kind::Outcomes(Outcomes { outcomes })),
        2 => a_spec(),
        1 => (2u64..6, 0u8..3, 0u64..4).prop_map(|(topic, name, last_sequence)| {
            Kind::EndProducer(EndProducer { topic, producer: producer(name), last_sequence })
        }),
        1 => (2u64..92, 0u64..4, any::<bool>())
            .prop_map(|(topic, through, refused)| Kind::OutboxAck(OutboxAck { topic, through, refused })),
        1 => Just(Kind::StateWrite(StateWrite { bucket: "one".into(), ops: vec![] })),
        2 => a_change().prop_map(move |change| Kind::Catalog(CatalogCommand { change, placement: placement.clone() })),
    ]
}

/// Locators of a topic cover 0 to its next offset without a gap; the outbox's counters say what is in it.
fn check(bench: &Bench) {
    let rows = bench.kv.snapshot();
    let mut next: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for (key, value) in rows.iter().filter(|(key, _)| key.starts_with(&keys().one(Table::Events))) {
        let expected = next.entry(key[9..17].to_vec()).or_default();
        assert_eq!(tail_number(key), *expected);
        *expected += u64::from(Locator::decode(value.clone()).unwrap().count);
    }
    for (key, value) in rows.iter().filter(|(key, _)| key.starts_with(&keys().one(Table::Topics))) {
        let topic = Topic::decode(value.clone()).unwrap();
        assert_eq!(next.remove(&key[9..17]).unwrap_or(0), topic.next);
        assert_eq!(bench.count(keys().make(Table::Producers, &[&key[9..17]])) as u64, topic.producers);
    }
    assert!(next.is_empty(), "events without their topic");
    let queued: Counter = bench.row(keys().one(Table::OutboxCount)).unwrap_or_default();
    assert_eq!(bench.count(keys().one(Table::Outbox)) as u64, queued.value);
    let queues = rows.iter().filter(|(key, _)| key.starts_with(&keys().one(Table::OutboxTopics)));
    let waiting =
        queues.map(|(_, value)| OutboxTopic::decode(value.clone()).unwrap()).map(|queue| queue.last - queue.acked);
    assert_eq!(waiting.sum::<u64>(), queued.value);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replicas_come_to_the_same_rows_and_answers(commands in prop::collection::vec(a_command(), 0..40)) {
        let triggers = [trigger(10, "one", "a/#")];
        let (mut one, mut two) = (Bench::with(&TOPICS[..2], &triggers), Bench::with(&TOPICS[..2], &triggers));
        for command in commands {
            let first = one.try_run(Some(command.clone()));
            prop_assert!(first.is_ok(), "{:?}", first);
            // the other replica reads the entry back from its log
            let bytes = Command { time_ms: 0, kind: Some(command) }.encode_to_vec();
            prop_assert_eq!(first, two.try_run(Command::decode(bytes.as_slice()).unwrap().kind));
            check(&one);
        }
        prop_assert_eq!(one.kv.snapshot(), two.kv.snapshot());
    }
}
