//! Outcomes of runs.

use canal_proto::cursor::{Parked, Span, key_digest};
use canal_proto::digest;
use canal_proto::limits::{MAX_ACTIVATIONS, MAX_CURSOR_GAP, MAX_OUTBOX};
use canal_proto::log::{
    ActivationRecord, Disposition, Emit, Outcome, Outcomes, ReadCheck, ScanCheck, StateOp, StateWrite,
};

use super::*;
use crate::core::rows::{Counter, Locator, OutboxRow, OutboxTopic};

/// A first run that did nothing and succeeded.
pub(super) fn outcome(trigger: u64, topic: u64, offset: u64) -> Outcome {
    let record = ActivationRecord { trigger: "one".into(), offset, attempt: 1, ..ActivationRecord::default() };
    Outcome { trigger, topic, offset, attempt: 1, record, bucket: "one".into(), ..Outcome::default() }
}

pub(super) fn emit(topic: u64, group: u64, payload: &'static str) -> Emit {
    Emit {
        target: Target { topic, group, name: format!("t{topic}") },
        event: Event::new(payload),
        dead: Target { topic: 90, group: GROUP.0, name: "$dead/one".into() },
    }
}

fn put(key: &str, value: &'static str) -> StateOp {
    StateOp { key: key.into(), value: Some(value.into()) }
}

/// One trigger, 10, on topic 3 with `events` events; topic 4 beside it.
pub(super) fn bench(events: usize) -> Bench {
    let mut bench = Bench::with(&[(3, "a"), (4, "b")], &[trigger(10, "one", "a")]);
    bench.append(vec![item(3, 1, 1, events)]);
    bench
}

impl Bench {
    pub(super) fn outcomes(&mut self, outcomes: Vec<Outcome>) -> (Vec<OutcomeResult>, Vec<Cursor>, Vec<Effect>) {
        match self.run(Kind::Outcomes(Outcomes { outcomes })) {
            (Reply::Outcomes(results, cursors), effects) => (results, cursors, effects),
            other => panic!("{other:?}"),
        }
    }

    /// Applies one outcome and asserts that it came to `want`; when refused, that nothing changed.
    #[track_caller]
    pub(super) fn one(&mut self, outcome: Outcome, want: OutcomeResult) {
        let before = self.kv.snapshot();
        let (results, _, effects) = self.outcomes(vec![outcome]);
        assert_eq!(results, [want]);
        if want != OutcomeResult::Applied {
            assert_eq!(effects, []);
            assert_eq!(self.kv.snapshot(), before);
        }
    }

    fn state(&self, key: &str) -> Option<Bytes> {
        self.kv.get(&keys().state("one", key)).unwrap()
    }

    pub(super) fn outbox(&self, topic: u64, sequence: u64) -> Option<Emit> {
        self.row::<OutboxRow>(keys().topic(Table::Outbox, TopicId(topic), sequence)).map(|row| row.emit)
    }

    pub(super) fn outbox_len(&self) -> Option<u64> {
        self.row::<Counter>(keys().one(Table::OutboxCount)).map(|counter| counter.value)
    }

    pub(super) fn queue(&self, topic: u64) -> Option<OutboxTopic> {
        self.row(keys().topic_only(Table::OutboxTopics, TopicId(topic)))
    }
}

#[test]
fn all_of_an_outcome_stands() {
    let mut bench = bench(2);
    bench.run(Kind::StateWrite(StateWrite { bucket: "one".into(), ops: vec![put("old", "1")] }));
    let mut run = outcome(10, 3, 0);
    run.writes = vec![put("k", "v"), StateOp { key: "old".into(), value: None }];
    run.emits = vec![emit(4, 7, "ab"), emit(50, 8, "x"), emit(4, 7, "c"), emit(50, 8, "y"), emit(51, 9, "z")];
    let (results, cursors, effects) = bench.outcomes(vec![run.clone()]);
    assert_eq!(results, [OutcomeResult::Applied]);
    let cursor = Cursor { runs: 1, ..Cursor::new(10, 3, 1) };
    assert_eq!(cursors, std::slice::from_ref(&cursor));
    assert_eq!(effects, [Effect::Head { topic: TopicId(4), next: 2 }, Effect::Outbox(3)]);
    assert_eq!(bench.cursor(10, 3), Some(cursor));
    assert_eq!((bench.state("k"), bench.state("old")), (Some("v".into()), None));
    // local events stand in this entry; what goes elsewhere waits in a queue per topic
    assert_eq!(bench.topic(4), Some(Topic { next: 2, bytes: 3, ..Topic::default() }));
    let locator = bench.row::<Locator>(keys().topic(Table::Events, TopicId(4), 0));
    assert_eq!(locator, Some(Locator { index: 4, part: 0, count: 2, before: 0 }));
    let queued = [bench.outbox(50, 1), bench.outbox(50, 2), bench.outbox(51, 1)];
    assert_eq!(queued, [emit(50, 8, "x"), emit(50, 8, "y"), emit(51, 9, "z")].map(Some));
    assert_eq!(bench.queue(50), Some(OutboxTopic { last: 2, acked: 0 }));
    assert_eq!(bench.queue(51), Some(OutboxTopic { last: 1, acked: 0 }));
    assert_eq!(bench.outbox_len(), Some(3));
    let record = bench.row(keys().make(Table::Activations, &[&10u64.to_be_bytes(), &1u64.to_be_bytes()]));
    assert_eq!(record, Some(ActivationRecord { number: 1, ..run.record.clone() }));
    bench.one(run, OutcomeResult::Obsolete);
}

#[test]
fn a_read_that_changed_is_a_conflict() {
    let mut bench = bench(3);
    bench.run(Kind::StateWrite(StateWrite { bucket: "one".into(), ops: vec![put("k", "v")] }));
    let reads = |offset, key: &str, seen: Option<&[u8]>| Outcome {
        reads: vec![ReadCheck { key: key.into(), digest: digest::value(seen) }],
        ..outcome(10, 3, offset)
    };
    bench.one(reads(0, "k", Some(b"w")), OutcomeResult::Conflict);
    bench.one(reads(0, "k", None), OutcomeResult::Conflict);
    bench.one(reads(0, "none", Some(b"")), OutcomeResult::Conflict);
    bench.one(reads(0, "k", Some(b"v")), OutcomeResult::Applied);
    bench.one(reads(1, "none", None), OutcomeResult::Applied);
}

#[test]
fn a_range_that_changed_is_a_conflict() {
    let mut bench = bench(3);
    let ops = vec![put("p/1", "a"), put("p/2", "b"), put("q", "c")];
    bench.run(Kind::StateWrite(StateWrite { bucket: "one".into(), ops }));
    bench.run(Kind::StateWrite(StateWrite { bucket: "other".into(), ops: vec![put("p/0", "z")] }));
    let scans = |offset, limit, rows: &[(&str, &[u8])]| Outcome {
        scans: vec![ScanCheck { prefix: "p/".into(), limit, digest: digest::rows(rows.iter().copied()) }],
        ..outcome(10, 3, offset)
    };
    bench.one(scans(0, 9, &[("p/1", b"a")]), OutcomeResult::Conflict);
    bench.one(scans(0, 9, &[("p/1", b"a"), ("p/2", b"B")]), OutcomeResult::Conflict);
    bench.one(scans(0, 9, &[("p/1", b"a"), ("p/2", b"b")]), OutcomeResult::Applied);
    bench.one(scans(1, 1, &[("p/1", b"a")]), OutcomeResult::Applied);
    let remove = StateOp { key: "p/1".into(), value: None };
    bench.run(Kind::StateWrite(StateWrite { bucket: "one".into(), ops: vec![remove] }));
    bench.one(scans(2, 1, &[("p/1", b"a")]), OutcomeResult::Conflict);
    bench.one(scans(2, 1, &[("p/2", b"b")]), OutcomeResult::Applied);
}

#[test]
fn what_comes_too_late_or_too_early_changes_nothing() {
    let mut bench = bench(2);
    bench.one(outcome(11, 3, 0), OutcomeResult::Obsolete);
    bench.one(outcome(10, 4, 0), OutcomeResult::Obsolete);
    bench.one(Outcome { attempt: 2, ..outcome(10, 3, 0) }, OutcomeResult::Obsolete);
    bench.one(Outcome { attempt: 0, ..outcome(10, 3, 0) }, OutcomeResult::Obsolete);
    let odd = Outcome { disposition: 9, emits: vec![emit(4, 7, "x")], ..outcome(10, 3, 0) };
    bench.one(odd, OutcomeResult::Obsolete);
    bench.one(outcome(10, 3, MAX_CURSOR_GAP), OutcomeResult::Blocked);
    bench.one(Outcome { emits: vec![emit(99, 7, "x")], ..outcome(10, 3, 0) }, OutcomeResult::Conflict);
    bench.one(outcome(10, 3, 1), OutcomeResult::Applied);
    let done = vec![Span { first: 1, end: 2 }];
    assert_eq!(bench.cursor(10, 3), Some(Cursor { done, runs: 1, ..Cursor::new(10, 3, 0) }));
    bench.one(outcome(10, 3, 1), OutcomeResult::Obsolete);
    // no event stands there: whatever the run saw, it was not the event that will come
    bench.one(outcome(10, 3, 2), OutcomeResult::Obsolete);
    bench.append(vec![item(3, 1, 3, 1)]);
    bench.one(outcome(10, 3, 2), OutcomeResult::Applied);
}

#[test]
fn after_a_refused_outcome_the_rest_of_the_entry_is_refused() {
    use OutcomeResult::{Applied, Conflict};
    let mut bench = bench(4);
    let stale = Outcome {
        reads: vec![ReadCheck { key: "k".into(), digest: digest::value(Some(b"v")) }],
        writes: vec![put("k", "stale")],
        ..outcome(10, 3, 1)
    };
    let first = Outcome { writes: vec![put("k", "first")], ..outcome(10, 3, 0) };
    // the second outcome sees what the first wrote
    let (results, cursors, _) = bench.outcomes(vec![first, stale, outcome(10, 3, 2)]);
    assert_eq!(results, [Applied, Conflict, Conflict]);
    assert_eq!(cursors, [Cursor { runs: 1, ..Cursor::new(10, 3, 1) }]);
    assert_eq!(bench.state("k"), Some("first".into()));
}

#[test]
fn a_failed_run_parks_its_event_and_the_last_one_finishes_it() {
    let mut bench = bench(2);
    let digest = key_digest(b"key");
    let failed = Outcome {
        disposition: Disposition::Retry.into(),
        not_before_ms: 1234,
        key_digest: digest.clone(),
        ..outcome(10, 3, 0)
    };
    bench.one(failed.clone(), OutcomeResult::Applied);
    let parked = vec![Parked { offset: 0, attempts: 1, not_before_ms: 1234, key_digest: digest }];
    assert_eq!(bench.cursor(10, 3), Some(Cursor { parked, runs: 1, ..Cursor::new(10, 3, 0) }));
    bench.one(failed, OutcomeResult::Obsolete);
    let dead = Outcome {
        attempt: 2,
        disposition: Disposition::Dead.into(),
        emits: vec![emit(4, 7, "dead")],
        ..outcome(10, 3, 0)
    };
    bench.one(dead, OutcomeResult::Applied);
    assert_eq!(bench.cursor(10, 3), Some(Cursor { runs: 2, ..Cursor::new(10, 3, 1) }));
    assert_eq!(bench.topic(4).unwrap().next, 1);
    let prefix = keys().make(Table::Activations, &[&10u64.to_be_bytes(), &2u64.to_be_bytes()]);
    assert_eq!(bench.row::<ActivationRecord>(prefix).unwrap().disposition(), Disposition::Dead);
}

#[test]
fn a_full_outbox_blocks_what_would_go_elsewhere_and_nothing_else() {
    let mut bench = bench(3);
    bench.put(keys().one(Table::OutboxCount), &Counter { value: MAX_OUTBOX - 1 });
    let run = |offset, emits| Outcome { emits, ..outcome(10, 3, offset) };
    bench.one(run(0, vec![emit(50, 8, "x"), emit(50, 8, "y")]), OutcomeResult::Blocked);
    bench.one(run(0, vec![emit(50, 8, "x")]), OutcomeResult::Applied);
    assert_eq!(bench.outbox_len(), Some(MAX_OUTBOX));
    bench.one(run(1, vec![emit(50, 8, "x")]), OutcomeResult::Blocked);
    bench.one(run(1, vec![emit(4, 7, "x")]), OutcomeResult::Applied);
}

#[test]
fn the_newest_records_are_kept() {
    let extra = 3;
    let mut bench = bench(1 + (MAX_ACTIVATIONS + extra) as usize);
    let runs = (0..MAX_ACTIVATIONS + extra).map(|offset| outcome(10, 3, offset)).collect();
    let (results, _, _) = bench.outcomes(runs);
    assert!(results.iter().all(|result| *result == OutcomeResult::Applied));
    let record = |number: u64| {
        let key = keys().make(Table::Activations, &[&10u64.to_be_bytes(), &number.to_be_bytes()]);
        bench.row::<ActivationRecord>(key).map(|record| (record.number, record.offset))
    };
    assert_eq!(bench.count(keys().one(Table::Activations)) as u64, MAX_ACTIVATIONS);
    assert_eq!((record(extra), record(extra + 1)), (None, Some((extra + 1, extra))));
    assert_eq!(record(MAX_ACTIVATIONS + extra), Some((MAX_ACTIVATIONS + extra, MAX_ACTIVATIONS + extra - 1)));
}
