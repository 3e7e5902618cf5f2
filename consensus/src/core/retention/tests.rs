//! What a policy lets go, and what a trim comes to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use canal_proto::log::TopicSpec;
use canal_proto::log::TriggerSpec;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::core::keys::Keys;
use crate::core::kv::MemoryKv;

const GROUP: GroupId = GroupId(7);
const TOPIC: TopicId = TopicId(3);

/// A topic whose events are known one by one: payload and time of each, from offset 0; `cuts` are the ends of segments,
/// `runs` those of what was appended together behind them.
#[derive(Debug, Clone)]
struct Model {
    events: Vec<(u64, u64)>,
    cuts: Vec<u64>,
    runs: Vec<u64>,
    oldest: u64,
}

impl Model {
    fn bytes(&self, before: u64) -> u64 {
        self.events[..before as usize].iter().map(|(bytes, _)| bytes).sum()
    }

    fn segments(&self) -> Vec<Segment> {
        let firsts = std::iter::once(0).chain(self.cuts.iter().copied());
        let segment = |(first, end): (u64, &u64)| Segment {
            topic: TOPIC.0,
            first,
            count: end - first,
            payload: self.bytes(*end) - self.bytes(first),
            before: self.bytes(first),
            last_ms: self.events[first as usize..*end as usize].iter().map(|(_, time)| *time).max().unwrap(),
            ..Segment::default()
        };
        firsts.zip(&self.cuts).map(segment).filter(|segment| segment.end() > self.oldest).collect()
    }

    fn row(&self) -> Topic {
        let next = self.events.len() as u64;
        let sealed = self.cuts.last().copied().unwrap_or(0).max(self.oldest);
        let bytes = self.bytes(next);
        let segments = self.segments();
        let trimmed = segments.first().map_or(self.bytes(self.oldest), |first| bytes_before(first, self.oldest));
        Topic { next, bytes, sealed, oldest: self.oldest, trimmed, ..Topic::default() }
    }

    fn kv(&self, policy: Retention, cursors: &[(u64, u64)]) -> MemoryKv {
        let keys = Keys(GROUP);
        let mut batch = WriteBatch::default();
        let mut txn_put = |key: Bytes, value: Vec<u8>| drop(batch.ops.insert(key, Some(value.into())));
        txn_put(keys.topic_only(Table::Topics, TOPIC), self.row().encode_to_vec());
        for segment in self.segments() {
            txn_put(keys.topic(Table::Segments, TOPIC, segment.first), segment.encode_to_vec());
        }
        let mut first = self.cuts.last().copied().unwrap_or(0);
        for end in &self.runs {
            let before = self.bytes(first);
            let locator = Locator { index: *end, part: 0, count: (end - first) as u32, before };
            txn_put(keys.topic(Table::Events, TOPIC, first), locator.encode_to_vec());
            first = *end;
        }
        let mut spec = GroupSpec {
            topics: vec![TopicSpec { id: TOPIC.0, name: "a".into(), retention: Some(policy) }],
            ..GroupSpec::default()
        };
        for (id, low) in cursors {
            let mut trigger = TriggerSpec::default();
            trigger.info.id = *id;
            spec.triggers.push(trigger);
            txn_put(keys.cursor(TriggerId(*id), TOPIC), Cursor::new(*id, TOPIC.0, *low).encode_to_vec());
        }
        txn_put(keys.one(Table::Spec), spec.encode_to_vec());
        let kv = MemoryKv::default();
        kv.write(&batch);
        kv
    }

    fn decide(&self, policy: Retention, cursors: &[(u64, u64)], now_ms: u64) -> (Option<u64>, Option<u64>) {
        let time = |offset: u64| Ok(self.events.get(offset as usize).map(|(_, time)| *time));
        let decision = decide(&self.kv(policy, cursors), GROUP, TOPIC, now_ms, time).unwrap();
        let trim = decision.trim.map(|trim| {
            assert_eq!(trim.topic, TOPIC.0);
            trim.before
        });
        (trim, decision.held_by.map(|trigger| trigger.0))
    }
}

/// Twelve events of ten bytes, one a second from 1 s on: segments of 4 and 4, then runs of 1, 2 and 1.
fn model() -> Model {
    let events = (1..=12).map(|at| (10, 1000 * at)).collect();
    Model { events, cuts: vec![4, 8], runs: vec![9, 11, 12], oldest: 0 }
}

fn events(events: u64) -> Retention {
    Retention { events, ..Retention::default() }
}

fn bytes(bytes: u64) -> Retention {
    Retention { bytes, ..Retention::default() }
}

fn age(age_ms: u64) -> Retention {
    Retention { age_ms, ..Retention::default() }
}

#[test]
fn the_newest_events_stay() {
    let go = |keep| model().decide(events(keep), &[], 0).0;
    assert_eq!([0, 12, 99].map(go), [None; 3]);
    assert_eq!([11, 8, 5, 4, 3].map(go), [Some(1), Some(4), Some(7), Some(8), Some(9)]);
    // 9 and 10 were appended together, and stay together
    assert_eq!([2, 1].map(go), [Some(9), Some(11)]);
    assert_eq!(Model { oldest: 9, ..model() }.decide(events(2), &[], 0).0, None);
    assert_eq!(Model { oldest: 9, ..model() }.decide(events(1), &[], 0).0, Some(11));
}

#[test]
fn no_more_bytes_stay_than_are_allowed() {
    let go = |keep| model().decide(bytes(keep), &[], 0).0;
    assert_eq!([0, 120, 121].map(go), [None; 3]);
    assert_eq!([119, 111, 110, 109].map(go), [Some(1), Some(1), Some(1), Some(2)]);
    assert_eq!([80, 79, 41, 40].map(go), [Some(4), Some(5), Some(8), Some(8)]);
    // in the log, what was appended together goes together
    assert_eq!([39, 30, 29, 10, 9].map(go), [Some(9), Some(9), Some(11), Some(11), Some(12)]);
    assert_eq!(Model { oldest: 4, ..model() }.decide(bytes(80), &[], 0).0, None);
}

#[test]
fn what_is_too_old_goes_once_all_of_its_segment_is() {
    let go = |now_ms| model().decide(age(5000), &[], now_ms).0;
    // the newest event of the first segment is of 4 s
    assert_eq!([0, 4000, 8999, 9000].map(go), [None; 4]);
    assert_eq!([9001, 13_000].map(go), [Some(4); 2]);
    assert_eq!([13_001, 14_000, 14_001, 15_001].map(go), [Some(8), Some(8), Some(9), Some(9)]);
    assert_eq!([16_001, 17_001, 99_000].map(go), [Some(11), Some(12), Some(12)]);
}

#[test]
fn an_event_that_is_younger_than_those_behind_it_holds_them() {
    let mut model = model();
    model.events[8].1 = 50_000;
    assert_eq!(model.decide(age(5000), &[], 40_000).0, Some(8));
    model.events[1].1 = 50_000;
    assert_eq!(model.decide(age(5000), &[], 40_000).0, None);
}

#[test]
fn while_segments_are_made_nothing_goes_that_is_in_none() {
    let row = Topic { oldest: 10, sealed: 40, next: 90, ..Topic::default() };
    let decided = |before: u64| Decision { trim: Some(Trim { topic: TOPIC.0, before }), held_by: None };
    let left = |before: u64, row: &Topic| decided(before).in_segments(row).trim.map(|trim| trim.before);
    assert_eq!((left(30, &row), left(70, &row)), (Some(30), Some(40)));
    assert_eq!(left(70, &Topic { sealed: 10, ..row }), None);
    assert_eq!(Decision::default().in_segments(&row), Decision::default());
}

#[test]
fn a_trigger_that_is_behind_is_named() {
    let cursors = [(20, 9), (21, 3), (22, 5)];
    assert_eq!(model().decide(events(1), &cursors, 0), (Some(3), Some(21)));
    assert_eq!(model().decide(events(9), &cursors, 0), (Some(3), None));
    assert_eq!(Model { oldest: 3, ..model() }.decide(events(8), &cursors, 0), (None, Some(21)));
}

#[test]
fn one_trim_lets_go_of_a_bounded_number_of_segments() {
    let count = MAX_CUT as u64 + 5;
    let model =
        Model { events: vec![(1, 1); count as usize], cuts: (1..=count).collect(), runs: Vec::new(), oldest: 0 };
    for policy in [events(1), bytes(1), age(1)] {
        let (before, _) = model.decide(policy, &[], 99);
        assert_eq!(before, Some(MAX_CUT as u64), "{policy:?}");
    }
    let rest = Model { oldest: MAX_CUT as u64, ..model };
    assert_eq!(rest.decide(events(1), &[], 99).0, Some(count - 1));
}

fn a_model() -> impl Strategy<Value = Model> {
    let ends = |most: usize| prop::collection::btree_set(1u64..30, 0..most);
    (prop::collection::vec((0u64..50, 0u64..10_000), 1..30), ends(5), ends(8), any::<prop::sample::Index>()).prop_map(
        |(events, cuts, runs, oldest)| {
            let next = events.len() as u64;
            let cuts: Vec<u64> = cuts.into_iter().filter(|cut| *cut <= next).collect();
            let sealed = cuts.last().copied().unwrap_or(0);
            let inside = runs.into_iter().filter(|end| (sealed + 1..next).contains(end));
            let runs: Vec<u64> = inside.chain((sealed < next).then_some(next)).collect();
            // inside of a segment, or where something was appended
            let at: Vec<u64> = (0..=sealed).chain(runs.iter().copied()).collect();
            let oldest = *oldest.get(&at);
            Model { events, cuts, runs, oldest }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decision_is_what_applying_it_does(
        model in a_model(),
        policy in (0u64..30, 0u64..400, 0u64..12_000),
        cursors in prop::collection::btree_map(20u64..24, 0u64..30, 0..3),
        now_ms in 0u64..20_000,
    ) {
        let policy = Retention { events: policy.0, bytes: policy.1, age_ms: policy.2 };
        let cursors: BTreeMap<u64, u64> = cursors.into_iter().map(|(id, low)| (id, low.max(model.oldest))).collect();
        let cursors: Vec<_> = cursors.into_iter().collect();
        let row = model.row();
        let (before, _) = model.decide(policy, &cursors, now_ms);
        let Some(before) = before else { return Ok(()) };
        let kv = model.kv(policy, &cursors);
        let mut none = WriteBatch::default();
        let txn = Txn::new(GROUP, &kv, &mut none);
        let spec = super::super::machine::spec(&txn).unwrap();
        let cut = cut(&txn, &spec, TOPIC, &row, before).unwrap().expect("a trim that lets go of something");
        // it does exactly what was decided, so it is not decided again
        prop_assert_eq!(cut.oldest, before);
        prop_assert!(before > row.oldest && before <= row.next);
        prop_assert!(cursors.iter().all(|(_, low)| before <= *low));
        prop_assert!(cut.trimmed >= row.trimmed && cut.trimmed <= row.bytes);
        let whole = model.segments().into_iter().filter(|segment| segment.end() <= before).count();
        prop_assert_eq!(cut.segments.len(), whole);
        // and then there is nothing to propose, until more comes
        let after = Model { oldest: before, ..model.clone() };
        prop_assert_eq!(after.decide(policy, &cursors, now_ms).0, None);
        // and nothing goes that all bounds would keep
        let first = (policy.events == 0 || before > row.next - policy.events.min(row.next))
            && (policy.bytes == 0 || row.bytes - row.trimmed <= policy.bytes)
            && policy.age_ms == 0;
        prop_assert!(!first, "{:?}", cut);
    }
}
