//! When a group is sealed, and what that makes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::core::kv::{MemoryKv, WriteBatch};
use prost::Message;

const GROUP: GroupId = GroupId(7);

/// Rows of a group; topic 3's locators are given as (first offset, events, entry).
fn rows(topic: Topic, locators: &[(u64, u32, u64)], segments: &[Segment], sealed: u64) -> MemoryKv {
    let keys = Keys(GROUP);
    let mut batch = WriteBatch::default();
    let mut put = |key: Bytes, value: Vec<u8>| drop(batch.ops.insert(key, Some(value.into())));
    put(keys.topic_only(Table::Topics, TopicId(3)), topic.encode_to_vec());
    put(keys.one(Table::Sealed), Counter { value: sealed }.encode_to_vec());
    for (first, count, index) in locators {
        let locator = Locator { index: *index, part: 0, count: *count, before: 0 };
        put(keys.topic(Table::Events, TopicId(3), *first), locator.encode_to_vec());
    }
    for segment in segments {
        put(keys.topic(Table::Segments, TopicId(3), segment.first), segment.encode_to_vec());
    }
    let kv = MemoryKv::default();
    kv.write(&batch);
    kv
}

fn segment(first: u64, count: u64, size: u64) -> Segment {
    Segment { topic: 3, first, count, size, ..Segment::default() }
}

#[test]
fn a_group_is_sealed_when_it_is_large_or_when_that_helps() {
    let unsealed = |entries, bytes| Unsealed { entries, bytes };
    assert!(!due(unsealed(SEAL_ENTRIES - 1, SEAL_BYTES - 1), false));
    assert!(due(unsealed(SEAL_ENTRIES, 0), false));
    assert!(due(unsealed(1, SEAL_BYTES), false));
    assert!(!due(unsealed(WORTH_ENTRIES - 1, WORTH_BYTES - 1), true), "it would free next to nothing");
    assert!(due(unsealed(WORTH_ENTRIES, 0), true));
    assert!(due(unsealed(1, WORTH_BYTES), true));
    assert!(!due(Unsealed::default(), true));
}

#[test]
fn one_seal_goes_as_far_as_is_applied_within_a_bound() {
    let small = Unsealed { entries: SEAL_ENTRIES + 1, bytes: SEAL_BYTES };
    assert_eq!(reach(5, 9, small), 9);
    assert_eq!(reach(5, 5 + SEAL_ENTRIES + 1, small), 5 + SEAL_ENTRIES);
    // entries of a MiB each
    let large = Unsealed { entries: 10_000, bytes: 10_000 << 20 };
    assert_eq!(reach(5, 10_005, large), 5 + 1024);
    assert_eq!(reach(5, 6, Unsealed::default()), 6);
    assert_eq!(reach(5, 9, Unsealed { entries: 1, bytes: u64::MAX }), 6);
}

#[test]
fn a_plan_takes_the_events_of_all_entries_up_to_one() {
    let locators = [(4, 2, 10), (6, 1, 10), (7, 5, 12), (12, 1, 13), (13, 3, 20)];
    let topic = Topic { next: 16, sealed: 4, ..Topic::default() };
    let kv = rows(topic, &locators, &[], 8);
    let end =
        |through| plan(&kv, GROUP, through).unwrap().map(|plan| plan.parts.first().map(|part| (part.first, part.end)));
    assert_eq!([7, 8].map(end), [None, None], "that is sealed already");
    assert_eq!(end(9), Some(None), "these entries hold no events");
    assert_eq!([10, 11].map(end), [Some(Some((4, 7))); 2]);
    assert_eq!([12, 13, 19].map(end), [Some(Some((4, 12))), Some(Some((4, 13))), Some(Some((4, 13)))]);
    assert_eq!([20, 99].map(end), [Some(Some((4, 16))); 2]);
}

#[test]
fn a_small_last_segment_is_taken_over() {
    let topic = Topic { next: 7, sealed: 4, ..Topic::default() };
    let part = |segments: &[Segment]| {
        let plan = plan(&rows(topic, &[(4, 3, 10)], segments, 8), GROUP, 10).unwrap().unwrap();
        (plan.parts[0].first, plan.parts[0].replaces.clone())
    };
    let small = segment(2, 2, MERGE_BELOW - 1);
    assert_eq!(part(&[segment(0, 2, 1), small.clone()]), (2, Some(small)));
    assert_eq!(part(&[segment(2, 2, MERGE_BELOW)]), (4, None));
    assert_eq!(part(&[]), (4, None));
}

#[test]
fn damage_is_told() {
    let topic = Topic { next: 7, sealed: 4, ..Topic::default() };
    for locators in [&[][..], &[(4, 1, 10)], &[(5, 2, 10)]] {
        assert!(plan(&rows(topic, locators, &[], 8), GROUP, 9).is_err(), "{locators:?}");
    }
}

#[test]
fn a_search_finds_every_boundary() {
    let locators: Vec<_> = (0..50u64).map(|at| (100 + at * (at + 1) / 2, at as u32 + 1, 2 * at)).collect();
    let next = 100 + 50 * 51 / 2;
    let topic = Topic { next, sealed: 100, ..Topic::default() };
    let kv = rows(topic, &locators, &[], 0);
    for at in 0..=100u64 {
        let found = search(&kv, GROUP, TopicId(3), &topic, |locator| locator.index >= at).unwrap();
        let want = locators.iter().find(|(_, _, index)| *index >= at).map_or(next, |(first, _, _)| *first);
        assert_eq!(found, want, "{at}");
    }
}
