//! Published events.

use canal_proto::ProducerId;
use canal_proto::limits::MAX_PRODUCERS;
use canal_proto::log::EndProducer;

use super::*;
use crate::core::rows::{Locator, MAX_RUNS, Producer, Run};

fn gap(expected: u64, sent: u64) -> Result<Receipt, WireError> {
    let message = format!("sequence {sent} skips; {expected} was expected: send again from there");
    Err(WireError::new(Code::SequenceGap, message).with_detail(expected))
}

#[test]
fn offsets_follow_on_and_locators_say_where_events_stand() {
    let mut bench = Bench::with(&[(3, "a"), (4, "b")], &[]);
    let items = vec![item(3, 1, 1, 2), item(4, 1, 1, 1), item(3, 2, 1, 3)];
    let (reply, effects) = bench.run(Kind::Append(Append { items }));
    let want = [receipt(2, Some(0), 2, false), receipt(2, Some(0), 1, false), receipt(2, Some(2), 3, false)];
    assert_eq!(reply, Reply::Appended(want.to_vec()));
    let head = |topic, next| Effect::Head { topic: TopicId(topic), next };
    assert_eq!(effects, [head(3, 2), head(4, 1), head(3, 5)]);
    assert_eq!(bench.append(vec![item(3, 1, 3, 1)]), [receipt(3, Some(5), 1, false)]);
    assert_eq!(bench.topic(3), Some(Topic { next: 6, bytes: 18, producers: 2, ..Topic::default() }));
    assert_eq!(bench.topic(4), Some(Topic { next: 1, bytes: 3, producers: 1, ..Topic::default() }));
    let at = |offset| bench.row::<Locator>(keys().topic(Table::Events, TopicId(3), offset));
    assert_eq!(at(0), Some(Locator { index: 2, part: 0, count: 2, before: 0 }));
    assert_eq!(at(2), Some(Locator { index: 2, part: 2, count: 3, before: 6 }));
    assert_eq!(at(5), Some(Locator { index: 3, part: 0, count: 1, before: 15 }));
    assert_eq!(bench.count(keys().topic_only(Table::Events, TopicId(3))), 3);
}

#[test]
fn a_retry_gets_its_first_offset_and_changes_nothing() {
    let mut bench = Bench::with(&[(3, "a")], &[]);
    bench.append(vec![item(3, 1, 1, 3)]);
    let before = bench.kv.snapshot();
    assert_eq!(bench.append(vec![item(3, 1, 1, 3)]), [receipt(3, Some(0), 3, true)]);
    assert_eq!(bench.append(vec![item(3, 1, 2, 2)]), [receipt(4, Some(1), 2, true)]);
    assert_eq!(bench.kv.snapshot(), before);
    // the same again within one entry
    let twice = bench.append(vec![item(3, 1, 4, 1), item(3, 1, 4, 1)]);
    assert_eq!(twice, [receipt(5, Some(3), 1, false), receipt(5, Some(3), 1, true)]);
}

#[test]
fn a_retry_covers_only_what_stands_at_consecutive_offsets() {
    let mut bench = Bench::with(&[(3, "a")], &[]);
    // producer 1: sequences 1-3 at 0-2, then 4-5 at 4-5
    bench.append(vec![item(3, 1, 1, 3), item(3, 2, 1, 1), item(3, 1, 4, 2)]);
    assert_eq!(bench.append(vec![item(3, 1, 2, 4)]), [receipt(3, Some(1), 2, true)]);
    assert_eq!(bench.append(vec![item(3, 1, 4, 9)]), [receipt(4, Some(4), 2, true)]);
    assert_eq!(bench.topic(3), Some(Topic { next: 6, bytes: 18, producers: 2, ..Topic::default() }));
}

#[test]
fn a_retry_older_than_the_window_is_known_without_its_offset() {
    const RUNS: u64 = MAX_RUNS as u64;
    let mut bench = Bench::with(&[(3, "a")], &[]);
    // as after turns with another producer, so that no two sequences stand together: sequence s at 2(s - 1)
    let runs = (1..=RUNS).map(|sequence| Run { sequence, offset: 2 * (sequence - 1), count: 1 }).collect();
    let key = keys().make(Table::Producers, &[&3u64.to_be_bytes(), &producer(1)]);
    bench.put(key, &Producer { last: RUNS, runs });
    let next = 2 * RUNS;
    bench.put(keys().topic_only(Table::Topics, TopicId(3)), &Topic { next, producers: 1, ..Topic::default() });
    assert_eq!(bench.append(vec![item(3, 1, 1, 1)]), [receipt(2, Some(0), 1, true)]);
    assert_eq!(bench.append(vec![item(3, 1, RUNS + 1, 1)]), [receipt(3, Some(next), 1, false)]);
    assert_eq!(bench.append(vec![item(3, 1, 1, 1)]), [receipt(4, None, 1, true)]);
    // it covers what is forgotten; the next request gets an offset again
    assert_eq!(bench.append(vec![item(3, 1, 1, 3)]), [receipt(5, None, 1, true)]);
    assert_eq!(bench.append(vec![item(3, 1, 2, 1)]), [receipt(6, Some(2), 1, true)]);
    assert_eq!(bench.topic(3).unwrap().next, next + 1);
}

#[test]
fn what_skips_is_refused_with_the_number_that_was_expected() {
    let mut bench = Bench::with(&[(3, "a")], &[]);
    let before = bench.kv.snapshot();
    assert_eq!(bench.append(vec![item(3, 1, 2, 1)]), [gap(1, 2)]);
    let nothing = WireError::new(Code::InvalidArgument, "a publish needs a sequence from 1 on, and at least one event");
    let refused = bench.append(vec![item(3, 1, 0, 1), item(3, 1, 1, 0)]);
    assert_eq!(refused, [Err(nothing.clone()), Err(nothing)]);
    let unknown = "topic 0000000000000008 is not, or no longer, in this group; resolve its name again";
    assert_eq!(bench.append(vec![item(8, 1, 1, 1)]), [Err(WireError::new(Code::UnknownTopic, unknown))]);
    assert_eq!(bench.kv.snapshot(), before, "what is refused leaves no producer behind");
    bench.append(vec![item(3, 1, 1, 2)]);
    let results = bench.append(vec![item(3, 1, 4, 1), item(3, 1, 3, 1), item(3, 1, 4, 1)]);
    assert_eq!(results, [gap(3, 4), receipt(6, Some(2), 1, false), receipt(6, Some(3), 1, false)]);
}

#[test]
fn a_topic_that_knows_its_fill_of_producers_takes_no_new_ones_but_outboxes() {
    let mut bench = Bench::with(&[(3, "a")], &[]);
    bench.append(vec![item(3, 1, 1, 1)]);
    let key = keys().topic_only(Table::Topics, TopicId(3));
    let full = Topic { producers: MAX_PRODUCERS, ..bench.topic(3).unwrap() };
    bench.put(key.clone(), &full);
    let before = bench.kv.snapshot();
    let message = "the topic remembers 100000 producers, as many as it may; end some that are done with `canal topic \
                   producers`, or use one of them";
    let refused = Err(WireError::new(Code::TooManyProducers, message).with_detail(MAX_PRODUCERS));
    // one that only says that it is an outbox is none
    let pretended = AppendItem { origin: 8, ..item(3, 2, 1, 1) };
    assert_eq!(bench.append(vec![item(3, 2, 1, 1), pretended]), [refused.clone(), refused]);
    assert_eq!(bench.kv.snapshot(), before);
    assert_eq!(bench.append(vec![item(3, 1, 2, 1)]), [receipt(4, Some(1), 1, false)], "who is known goes on");
    let producer = ProducerId::of_outbox(GroupId(8)).to_vec().into();
    let outbox = AppendItem { producer, origin: 8, ..item(3, 2, 1, 1) };
    assert_eq!(bench.append(vec![outbox]), [receipt(5, Some(2), 1, false)]);
    assert_eq!(bench.topic(3).unwrap().producers, MAX_PRODUCERS + 1);
    bench.put(key, &Topic { producers: MAX_PRODUCERS - 1, ..bench.topic(3).unwrap() });
    assert_eq!(bench.append(vec![item(3, 2, 1, 1)]), [receipt(6, Some(3), 1, false)]);
}

#[test]
fn a_producer_ends_only_at_its_last_sequence() {
    let mut bench = Bench::with(&[(3, "a")], &[]);
    bench.append(vec![item(3, 1, 1, 2), item(3, 2, 1, 1)]);
    let end =
        |topic, name, last_sequence| Kind::EndProducer(EndProducer { topic, producer: producer(name), last_sequence });
    let before = bench.kv.snapshot();
    for nonsense in [end(3, 1, 1), end(3, 1, 3), end(3, 9, 0), end(8, 1, 2)] {
        assert_eq!(bench.run(nonsense), (Reply::Done, vec![]));
        assert_eq!(bench.kv.snapshot(), before);
    }
    for _ in 0..2 {
        assert_eq!(bench.run(end(3, 1, 2)), (Reply::Done, vec![]));
        assert_eq!(bench.topic(3), Some(Topic { next: 3, bytes: 9, producers: 1, ..Topic::default() }));
    }
    assert_eq!(bench.row::<Producer>(keys().make(Table::Producers, &[&3u64.to_be_bytes(), &producer(1)])), None);
    assert_eq!(bench.append(vec![item(3, 1, 1, 1)]), [receipt(9, Some(3), 1, false)]);
}
