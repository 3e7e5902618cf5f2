//! What holds for every sequence of commands, nonsense included.

use std::collections::BTreeMap;

use canal_proto::catalog::{BlobChunk, CatalogCommand, Change, CreateTopic, Retention, SetGroup, SetPaused, SetTopic};
use canal_proto::limits::{MAX_STEPS, MAX_SUBSCRIPTIONS};
use canal_proto::log::{
    Advance, EndProducer, OutboxAck, Outcome, Outcomes, Segment, StateOp, StateWrite, Step, SubscriptionChange,
    SubscriptionOp, Trim,
};
use proptest::prelude::*;

use super::runs::{emit, outcome};
use super::seals::{planned, sweep};
use super::*;
use crate::core::keys::{Locals, number_at, tail_number};
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
            emits: to.into_iter().map(|(topic, group)| emit(topic, group, "xyz")).collect(),
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
        (name(), 0u64..3).prop_map(|(name, events)| {
            Some(Change::SetTopic(SetTopic { name, retention: Some(Retention { events, ..Retention::default() }) }))
        }),
        (prop_oneof![Just(GROUP.0), any::<u64>()], 0u32..11)
            .prop_map(|(group, replicas)| Some(Change::SetGroup(SetGroup { group, replicas, placement: None }))),
    ]
}

fn a_subscription() -> impl Strategy<Value = Kind> {
    let op = prop_oneof![
        Just(None),
        any::<u64>().prop_map(|from| Some(SubscriptionOp::Open(from % 8))),
        (0u64..40, 0u64..9).prop_map(|(session, next)| Some(SubscriptionOp::Advance(Advance { session, next }))),
        Just(Some(SubscriptionOp::Remove(true))),
    ];
    (2u64..6, prop::sample::select(vec!["s", "t", "a/b", ""]), 0u8..3, any::<bool>(), op).prop_map(
        |(topic, name, holder, again, op)| {
            let holder = vec![holder; usize::from(holder)].into();
            Kind::Subscription(SubscriptionChange { topic, name: name.into(), op, holder, again })
        },
    )
}

fn a_bad_seal() -> impl Strategy<Value = Kind> {
    let segment = (2u64..6, 0u64..6, 0u64..6, 31usize..33).prop_map(|(topic, first, count, hash)| Segment {
        topic,
        first,
        count,
        hash: vec![1; hash].into(),
        payload: 3 * count,
        ..Segment::default()
    });
    (0u64..50, prop::collection::vec(segment, 0..3))
        .prop_map(|(through, segments)| Kind::Seal(canal_proto::log::Seal { through, segments }))
}

/// What happens: an entry, a seal of all but the newest entries, or one replica removing what it no longer needs.
#[derive(Debug, Clone)]
enum Act {
    Entry(Box<Kind>),
    /// The number is a segment that is left out, if there is one.
    Seal {
        behind: u64,
        size: u64,
        without: usize,
    },
    Sweep {
        limit: usize,
    },
}

fn an_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => a_command().prop_map(|kind| Act::Entry(Box::new(kind))),
        4 => (0u64..3, prop_oneof![Just(1u64), Just(1 << 20)], 0usize..9)
            .prop_map(|(behind, size, without)| Act::Seal { behind, size, without }),
        2 => (1usize..5).prop_map(|limit| Act::Sweep { limit }),
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
        2 => (2u64..6, 0u64..8).prop_map(|(topic, before)| Kind::Trim(Trim { topic, before })),
        2 => a_subscription(),
        1 => a_bad_seal(),
        1 => any::<bool>().prop_map(|report| {
            let report = report.then(|| emit(4, GROUP.0, "xyz"));
            Kind::Step(Step { what: "joined".into(), report, ..Step::default() })
        }),
        1 => Just(Kind::StateWrite(StateWrite { bucket: "one".into(), ops: vec![] })),
        2 => a_change().prop_map(move |change| Kind::Catalog(CatalogCommand { change, placement: placement.clone() })),
    ]
}

/// Segments of a topic follow on up to its sealed offset and locators from there to its next one, without a gap, and no
/// cursor is below its oldest event; the outbox's counters say what is in it. (Every event has three bytes of payload.)
fn check(bench: &Bench) {
    let rows = bench.kv.snapshot();
    let table = |table: Table| rows.iter().filter(move |(key, _)| key.starts_with(&keys().one(table)));
    let through = bench.row::<Counter>(keys().one(Table::Sealed)).unwrap_or_default().value;
    for (key, value) in table(Table::Topics) {
        let topic = Topic::decode(value.clone()).unwrap();
        assert!(topic.oldest <= topic.sealed && topic.sealed <= topic.next, "{topic:?}");
        assert_eq!(
            (topic.bytes, topic.trimmed, topic.kept()),
            (3 * topic.next, 3 * topic.oldest, 3 * (topic.next - topic.oldest))
        );
        let id = tail_number(key);
        let of_topic = |(key, _): &(&Bytes, &Bytes)| number_at(key, 9) == Some(id);
        let mut next = None;
        for (key, value) in table(Table::Segments).filter(of_topic) {
            let segment = Segment::decode(value.clone()).unwrap();
            assert_eq!(tail_number(key), segment.first);
            assert_eq!(segment.before, 3 * segment.first);
            // the first may begin before the oldest event, but has to hold it
            assert!(next.map_or(segment.first <= topic.oldest, |next| next == segment.first), "{segment:?}");
            assert!(segment.end() > topic.oldest);
            next = Some(segment.end());
        }
        assert_eq!(next.unwrap_or(topic.oldest), topic.sealed);
        let mut next = topic.sealed;
        for (key, value) in table(Table::Events).filter(of_topic).filter(|(key, _)| tail_number(key) >= topic.sealed) {
            let locator = Locator::decode(value.clone()).unwrap();
            assert_eq!((tail_number(key), locator.before), (next, 3 * next));
            assert!(locator.index > through, "an event that is sealed and in no segment");
            next += u64::from(locator.count);
        }
        assert_eq!(next, topic.next);
        assert_eq!(table(Table::Producers).filter(of_topic).count() as u64, topic.producers);
        assert!(table(Table::Subscriptions).filter(of_topic).count() <= MAX_SUBSCRIPTIONS);
        for (_, value) in table(Table::Cursors).filter(|(key, _)| tail_number(key) == id) {
            assert!(Cursor::decode(value.clone()).unwrap().low >= topic.oldest);
        }
    }
    assert!(table(Table::Steps).count() as u64 <= MAX_STEPS);
    let queued: Counter = bench.row(keys().one(Table::OutboxCount)).unwrap_or_default();
    assert_eq!(bench.count(keys().one(Table::Outbox)) as u64, queued.value);
    let queues = table(Table::OutboxTopics);
    let waiting =
        queues.map(|(_, value)| OutboxTopic::decode(value.clone()).unwrap()).map(|queue| queue.last - queue.acked);
    assert_eq!(waiting.sum::<u64>(), queued.value);
}

/// The rows that all replicas have.
fn common(bench: &Bench) -> BTreeMap<Bytes, Bytes> {
    let locals = Locals::load(&bench.kv, GROUP).unwrap();
    let mut rows = bench.kv.snapshot();
    rows.retain(|key, _| !locals.is_local(key));
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replicas_come_to_the_same_rows_and_answers(acts in prop::collection::vec(an_act(), 0..60)) {
        let triggers = [trigger(10, "one", "a/#")];
        let (mut one, mut two) = (Bench::with(&TOPICS[..2], &triggers), Bench::with(&TOPICS[..2], &triggers));
        for act in acts {
            let command = match act {
                Act::Entry(kind) => *kind,
                Act::Seal { behind, size, without } => {
                    let Some(mut seal) = planned(&one, one.index.saturating_sub(behind), size) else { continue };
                    if without < seal.segments.len() {
                        seal.segments.remove(without);
                    }
                    Kind::Seal(seal)
                }
                Act::Sweep { limit } => {
                    // the second replica keeps all its own rows
                    let before = common(&one);
                    sweep(&mut one, u64::MAX, limit);
                    prop_assert_eq!(common(&one), before);
                    continue;
                }
            };
            let first = one.try_run(Some(command.clone()));
            prop_assert!(first.is_ok(), "{:?}", first);
            // the other replica reads the entry back from its log
            let bytes = Command { time_ms: 0, kind: Some(command.clone()) }.encode_to_vec();
            prop_assert_eq!(&first, &two.try_run(Command::decode(bytes.as_slice()).unwrap().kind));
            check(&one);
            let stands = !matches!(first, Ok((Reply::Sealed(Err(_)), _)));
            if stands && matches!(command, Kind::Seal(_) | Kind::Trim(_) | Kind::Spec(_)) {
                // once more, it changes nothing
                let before = common(&one);
                let again = one.try_run(Some(command.clone())).unwrap();
                prop_assert_eq!(again.1, vec![]);
                prop_assert_eq!(common(&one), before);
                two.try_run(Some(command)).unwrap();
            }
        }
        prop_assert_eq!(common(&one), common(&two));
        while sweep(&mut one, u64::MAX, 3) > 0 {}
        // nothing is left over: what it does not need is gone, with all that belonged to topics that are gone
        prop_assert_eq!(one.kv.snapshot(), common(&two));
    }
}
