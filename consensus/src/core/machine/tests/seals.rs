//! Events that move to segments, and events that go.

use canal_proto::log::{Seal, Segment, Trim};

use super::*;
use crate::core::rows::{Counter, Locator};
use crate::core::sealing;

/// The seal that a leader would propose, of events with three bytes of payload in files of this size.
pub(super) fn planned(bench: &Bench, through: u64, size: u64) -> Option<Seal> {
    let plan = sealing::plan(&bench.kv, GROUP, through).unwrap()?;
    let segment = |part: sealing::Part| segment(part.topic.0, part.first, part.end - part.first, size);
    Some(Seal { through: plan.through, segments: plan.parts.into_iter().map(segment).collect() })
}

fn segment(topic: u64, first: u64, count: u64, size: u64) -> Segment {
    let hash = blake3::hash(format!("{topic} {first} {count}").as_bytes()).as_bytes().to_vec().into();
    Segment { topic, first, count, hash, size, payload: 3 * count, last_ms: 1000, ..Segment::default() }
}

/// Removes what a replica no longer needs, as its driver does; says how many rows that were.
pub(super) fn sweep(bench: &mut Bench, through: u64, limit: usize) -> usize {
    let gone = sealing::sealed_locators(&bench.kv, GROUP, through, limit).unwrap();
    assert!(gone.len() <= limit);
    let mut batch = WriteBatch::default();
    gone.iter().for_each(|key| {
        batch.ops.insert(key.clone(), None);
    });
    bench.kv.write(&batch);
    gone.len()
}

impl Bench {
    /// Applies a seal that has to stand.
    #[track_caller]
    fn seal(&mut self, seal: &Seal) {
        let want = (Reply::Sealed(Ok(())), vec![Effect::Sealed { through: seal.through }]);
        assert_eq!(self.run(Kind::Seal(seal.clone())), want);
    }

    /// Asserts that a seal is refused like this, and changes nothing.
    #[track_caller]
    fn unsealed(&mut self, seal: Seal, message: &str) {
        let before = self.kv.snapshot();
        let refused = Reply::Sealed(Err(WireError::new(Code::InvalidArgument, message)));
        assert_eq!(self.run(Kind::Seal(seal)), (refused, vec![]));
        assert_eq!(self.kv.snapshot(), before);
    }

    fn segments(&self, topic: u64) -> Vec<Segment> {
        let prefix = keys().topic_only(Table::Segments, TopicId(topic));
        let rows = self.kv.snapshot();
        let values = rows.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, value)| value.clone());
        values.map(|value| Segment::decode(value).unwrap()).collect()
    }

    fn locators(&self, topic: u64) -> usize {
        self.count(keys().topic_only(Table::Events, TopicId(topic)))
    }

    fn trim(&mut self, topic: u64, before: u64) -> Vec<Effect> {
        let (reply, effects) = self.run(Kind::Trim(Trim { topic, before }));
        assert_eq!(reply, Reply::Done);
        effects
    }
}

/// Topics 3 and 4: entries 2 to 5 with events of 3 at 0-1, 2, 4-5 and of 4 at 0; topic 3 ends at 6.
fn filled() -> Bench {
    let mut bench = Bench::with(&[(3, "a"), (4, "b"), (5, "c")], &[]);
    bench.append(vec![item(3, 1, 1, 2)]);
    bench.append(vec![item(3, 1, 3, 1), item(4, 1, 1, 1)]);
    bench.append(vec![item(3, 1, 4, 1)]);
    bench.append(vec![item(3, 1, 5, 2)]);
    bench
}

#[test]
fn a_seal_moves_the_events_of_whole_entries() {
    let mut bench = filled();
    let seal = planned(&bench, 3, 1 << 20).unwrap();
    let made = |topic, first, count, before| Segment { before, ..segment(topic, first, count, 1 << 20) };
    assert_eq!(seal, Seal { through: 3, segments: vec![segment(3, 0, 3, 1 << 20), segment(4, 0, 1, 1 << 20)] });
    bench.seal(&seal);
    assert_eq!((bench.segments(3), bench.segments(4)), (vec![made(3, 0, 3, 0)], vec![made(4, 0, 1, 0)]));
    assert_eq!(bench.topic(3).unwrap(), Topic { next: 6, bytes: 18, producers: 1, sealed: 3, ..Topic::default() });
    assert_eq!(bench.row::<Counter>(keys().one(Table::Sealed)), Some(Counter { value: 3 }));
    assert_eq!((bench.locators(3), bench.locators(4)), (4, 1), "each replica removes them in its own time");
    // the next goes on from there, as far as the entry before itself
    let seal = planned(&bench, 6, 1 << 20).unwrap();
    assert_eq!(seal.segments, [segment(3, 3, 3, 1 << 20)]);
    bench.seal(&seal);
    assert_eq!(bench.segments(3), [made(3, 0, 3, 0), made(3, 3, 3, 9)]);
    // entries without events are sealed all the same
    bench.seal(&Seal { through: 7, segments: vec![] });
}

#[test]
fn a_small_last_segment_is_made_anew() {
    let mut bench = filled();
    bench.seal(&planned(&bench, 3, 100).unwrap());
    let seal = planned(&bench, 5, 100).unwrap();
    assert_eq!(seal.segments, [segment(3, 0, 6, 100)]);
    bench.seal(&seal);
    assert_eq!(bench.segments(3), [segment(3, 0, 6, 100)]);
    assert_eq!(bench.topic(3).unwrap().sealed, 6);
    // one that has grown large is left as it is
    let large = sealing::MERGE_BELOW;
    bench.append(vec![item(3, 1, 7, 1)]);
    bench.seal(&planned(&bench, bench.index, large).unwrap());
    bench.append(vec![item(3, 1, 8, 1)]);
    bench.seal(&planned(&bench, bench.index, 100).unwrap());
    let made = [segment(3, 0, 7, large), Segment { before: 21, ..segment(3, 7, 1, 100) }];
    assert_eq!(bench.segments(3), made);
}

#[test]
fn a_seal_that_does_not_fit_changes_nothing() {
    let mut bench = filled();
    let seal = |through, segments: &[Segment]| Seal { through, segments: segments.to_vec() };
    let whole = [segment(3, 0, 3, 9), segment(4, 0, 1, 9)];
    bench.unsealed(seal(0, &[]), "entry 6 can't seal up to 0; it is sealed up to 0");
    bench.unsealed(seal(7, &whole), "entry 7 can't seal up to 7; it is sealed up to 0");
    let left_out = "event 0 of topic 0000000000000004 is not behind entry 3, and in no segment";
    bench.unsealed(seal(3, &whole[..1]), left_out);
    let left_out = "event 3 of topic 0000000000000003 is not behind entry 4, and in no segment";
    bench.unsealed(seal(4, &whole), left_out);
    let twice = "topic 0000000000000003 is not here, or named twice";
    bench.unsealed(seal(3, &[whole[0].clone(), whole[0].clone()]), twice);
    bench.unsealed(seal(3, &[segment(9, 0, 1, 9)]), "topic 0000000000000009 is not here, or named twice");
    let beyond = "a segment of topic 0000000000000003 to 7; one between 0 and 6 was expected";
    bench.unsealed(seal(5, &[segment(3, 0, 7, 9)]), beyond);
    let nothing = "a segment of topic 0000000000000003 to 0; one between 0 and 6 was expected";
    bench.unsealed(seal(5, &[segment(3, 0, 0, 9)]), nothing);
    let hash = Segment { hash: vec![1; 31].into(), ..segment(3, 0, 3, 9) };
    bench.unsealed(seal(3, &[hash]), "a segment of topic 0000000000000003 to 3; one between 0 and 6 was expected");
    let torn = "a segment of topic 0000000000000003 ends at 1, inside of what was appended together";
    bench.unsealed(seal(3, &[segment(3, 0, 1, 9)]), torn);
    let gap = "a segment of topic 0000000000000003 from 2; one that goes on at 0 was expected";
    bench.unsealed(seal(3, &[segment(3, 2, 1, 9)]), gap);
    let light = Segment { payload: 8, ..segment(3, 0, 3, 9) };
    let message = "a segment of topic 0000000000000003 holds 8 bytes of payload; 9 were appended";
    bench.unsealed(seal(3, &[light]), message);
    bench.seal(&seal(3, &whole));
    let index = bench.index + 1;
    bench.unsealed(seal(3, &whole), &format!("entry {index} can't seal up to 3; it is sealed up to 3"));
    // in the middle of a segment, or in the place of one that is not the last
    let gap = "a segment of topic 0000000000000003 from 1; one that goes on at 3 was expected";
    bench.unsealed(seal(5, &[segment(3, 1, 5, 9)]), gap);
    bench.seal(&seal(5, &[segment(3, 3, 3, 9)]));
    bench.append(vec![item(3, 1, 7, 1)]);
    let gap = "a segment of topic 0000000000000003 from 0; one that goes on at 6 was expected";
    bench.unsealed(seal(bench.index, &[segment(3, 0, 7, 9)]), gap);
}

#[test]
fn a_trim_lets_go_of_segments_and_of_what_is_still_in_the_log() {
    let mut bench = filled();
    bench.seal(&planned(&bench, 3, 1 << 20).unwrap());
    bench.seal(&planned(&bench, 4, 1 << 20).unwrap());
    let trimmed = |oldest| vec![Effect::Trimmed { topic: TopicId(3), oldest }];
    let stands = |bench: &Bench| {
        let topic = bench.topic(3).unwrap();
        (topic.oldest, topic.sealed, topic.kept(), bench.segments(3).len())
    };
    assert_eq!(stands(&bench), (0, 4, 18, 2));
    // inside of a segment, which stays
    assert_eq!(bench.trim(3, 2), trimmed(2));
    assert_eq!(stands(&bench), (2, 4, 12, 2));
    for nothing in [0, 2] {
        assert_eq!(bench.trim(3, nothing), []);
        assert_eq!(stands(&bench), (2, 4, 12, 2));
    }
    assert_eq!(bench.trim(9, 2), []);
    assert_eq!(bench.trim(3, 3), trimmed(3));
    assert_eq!(stands(&bench), (3, 4, 9, 1));
    // 4 and 5 were appended together and go together
    assert_eq!(bench.trim(3, 5), trimmed(4));
    assert_eq!(stands(&bench), (4, 4, 6, 0));
    assert_eq!(bench.trim(3, 5), []);
    assert_eq!(bench.trim(3, 99), trimmed(6));
    assert_eq!(stands(&bench), (6, 6, 0, 0));
    // what comes then goes on from there
    bench.append(vec![item(3, 1, 7, 1)]);
    bench.seal(&planned(&bench, bench.index, 100).unwrap());
    assert_eq!(bench.segments(3), [Segment { before: 18, ..segment(3, 6, 1, 100) }]);
    assert_eq!(stands(&bench), (6, 7, 3, 1));
}

#[test]
fn no_event_goes_that_a_trigger_has_yet_to_handle() {
    let triggers = [trigger(10, "one", "a"), trigger(11, "two", "a")];
    let mut bench = Bench::with(&[(3, "a")], &triggers);
    (1..=4).for_each(|sequence| drop(bench.append(vec![item(3, 1, sequence, 1)])));
    bench.put(keys().cursor(canal_proto::TriggerId(10), TopicId(3)), &Cursor::new(10, 3, 3));
    bench.put(keys().cursor(canal_proto::TriggerId(11), TopicId(3)), &Cursor::new(11, 3, 2));
    assert_eq!(bench.trim(3, 4), [Effect::Trimmed { topic: TopicId(3), oldest: 2 }]);
    // one that comes later begins at what is left
    let late = trigger(12, "late", "a");
    let late =
        TriggerSpec { info: TriggerInfo { start: canal_proto::catalog::Start::Earliest.into(), ..late.info }, ..late };
    bench.run(Kind::Spec(spec_of(20, &[(3, "a")], &[late])));
    assert_eq!(bench.cursor(12, 3), Some(Cursor::new(12, 3, 2)));
}

#[test]
fn a_replica_removes_what_is_in_segments_on_its_disk() {
    let mut bench = filled();
    bench.seal(&planned(&bench, 3, 1 << 20).unwrap());
    bench.seal(&planned(&bench, 4, 1 << 20).unwrap());
    for offset in [0, 4] {
        bench.put(keys().topic(Table::Inline, TopicId(3), offset), &Counter { value: 1 });
    }
    let inline = |bench: &Bench| bench.count(keys().one(Table::Inline));
    assert_eq!(sweep(&mut bench, 1, 9), 0, "no segment is on its disk yet");
    assert_eq!(sweep(&mut bench, 3, 1), 1);
    assert_eq!(sweep(&mut bench, 3, 9), 2);
    assert_eq!((bench.locators(3), bench.locators(4), inline(&bench)), (2, 0, 2));
    assert_eq!(sweep(&mut bench, 4, 9), 2, "the last locator that is sealed, and the event that came with a snapshot");
    assert_eq!((bench.locators(3), inline(&bench)), (1, 1));
    // what was let go in the log goes at once
    assert_eq!(bench.trim(3, 6), [Effect::Trimmed { topic: TopicId(3), oldest: 6 }]);
    assert_eq!(sweep(&mut bench, 0, 9), 2);
    assert_eq!((bench.locators(3), inline(&bench)), (0, 0));
    assert_eq!(bench.row::<Locator>(keys().topic(Table::Events, TopicId(3), 4)), None);
}
