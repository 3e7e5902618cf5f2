//! What the group hosts.

use canal_proto::catalog::Start;
use canal_proto::log::{OutcomeResult, StateOp, StateWrite};

use super::runs::outcome;
use super::seals::sweep;
use super::*;
use crate::core::keys::Locals;

#[test]
fn a_new_topic_begins_at_zero_and_a_removed_one_leaves_nothing() {
    let mut bench = Bench::default();
    let (reply, effects) = bench.run(Kind::Spec(spec_of(5, &[(3, "a"), (4, "b")], &[])));
    let head = |topic| Effect::Head { topic: TopicId(topic), next: 0 };
    assert_eq!((reply, effects), (Reply::Done, vec![head(3), head(4), Effect::Spec]));
    assert_eq!(bench.topic(3), Some(Topic::default()));
    bench.append(vec![item(3, 1, 1, 2), item(4, 1, 1, 1)]);
    let (_, effects) = bench.run(Kind::Spec(spec_of(6, &[(4, "b")], &[])));
    assert_eq!(effects, [Effect::Spec]);
    // what it leaves is the replica's own, which removes it a few rows at a time
    let locals = Locals::load(&bench.kv, GROUP).unwrap();
    assert!(locals.is_local(&keys().topic(Table::Events, TopicId(3), 0)));
    while sweep(&mut bench, 0, 1) > 0 {}
    assert_eq!(bench.count(keys().one(Table::Gone)), 0);
    for table in [Table::Topics, Table::Events, Table::Producers] {
        assert_eq!(bench.count(keys().topic_only(table, TopicId(3))), 0, "{table:?}");
        assert_eq!(bench.count(keys().topic_only(table, TopicId(4))), 1, "{table:?}");
    }
    assert_eq!(
        bench.topic(4),
        Some(Topic { next: 1, bytes: 3, producers: 1, ..Topic::default() }),
        "what stays keeps its rows"
    );
}

#[test]
fn a_version_that_is_not_newer_is_ignored() {
    let mut bench = Bench::default();
    bench.run(Kind::Spec(spec_of(5, &[(3, "a")], &[])));
    let before = bench.kv.snapshot();
    for version in [4, 5] {
        assert_eq!(bench.run(Kind::Spec(spec_of(version, &[], &[]))), (Reply::Done, vec![]));
        assert_eq!(bench.kv.snapshot(), before);
    }
}

#[test]
fn cursors_begin_where_the_trigger_says_and_stay() {
    let mut bench = Bench::with(&[(3, "a/x")], &[]);
    bench.append(vec![item(3, 1, 1, 4)]);
    let late = trigger(10, "late", "a/#");
    let mut early = trigger(11, "early", "a/x");
    early.info.start = Start::Earliest.into();
    let triggers = [late, early];
    bench.run(Kind::Spec(spec_of(11, &[(3, "a/x")], &triggers)));
    assert_eq!(bench.cursor(10, 3), Some(Cursor::new(10, 3, 4)));
    assert_eq!(bench.cursor(11, 3), Some(Cursor::new(11, 3, 0)));
    // a topic that is younger than its trigger is taken from its first event; one that doesn't match is not taken
    bench.append(vec![item(3, 1, 5, 1)]);
    bench.run(Kind::Spec(spec_of(20, &[(3, "a/x"), (20, "a/y"), (21, "b")], &triggers)));
    assert_eq!(bench.cursor(10, 20), Some(Cursor::new(10, 20, 0)));
    assert_eq!(bench.cursor(10, 3), Some(Cursor::new(10, 3, 4)), "a cursor that stands is not begun again");
    assert_eq!(bench.count(keys().one(Table::Cursors)), 3);
    bench.run(Kind::Spec(spec_of(22, &[(20, "a/y"), (21, "b")], &triggers)));
    assert_eq!(bench.count(keys().one(Table::Cursors)), 1);
}

#[test]
fn a_removed_trigger_leaves_neither_cursor_nor_records_but_its_state() {
    let both = [trigger(10, "one", "a"), trigger(11, "two", "a")];
    let mut bench = Bench::with(&[(3, "a")], &both);
    bench.append(vec![item(3, 1, 1, 1)]);
    let op = StateOp { key: "k".into(), value: Some("v".into()) };
    bench.run(Kind::StateWrite(StateWrite { bucket: "one".into(), ops: vec![op] }));
    for id in [10, 11] {
        let (reply, _) = bench.run(Kind::Outcomes(canal_proto::log::Outcomes { outcomes: vec![outcome(id, 3, 0)] }));
        assert!(matches!(reply, Reply::Outcomes(results, _) if results == [OutcomeResult::Applied]));
    }
    bench.run(Kind::Spec(spec_of(30, &[(3, "a")], &both[1..])));
    for table in [Table::Cursors, Table::Activations, Table::ActivationCount] {
        assert_eq!(bench.count(keys().make(table, &[&10u64.to_be_bytes()])), 0, "{table:?}");
        assert_eq!(bench.count(keys().make(table, &[&11u64.to_be_bytes()])), 1, "{table:?}");
    }
    assert_eq!(bench.kv.get(&keys().state("one", "k")).unwrap(), Some("v".into()));
}
