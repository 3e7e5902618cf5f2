//! Effects that other groups have taken, or refused.

use canal_proto::log::{Emit, OutboxAck, Outcome};

use super::runs::{bench, emit, outcome};
use super::*;
use crate::core::rows::OutboxTopic;

fn ack(topic: u64, through: u64, refused: bool) -> Kind {
    Kind::OutboxAck(OutboxAck { topic, through, refused })
}

/// A group with these effects in its outbox.
fn filled(emits: Vec<Emit>) -> Bench {
    let mut bench = bench(1);
    bench.one(Outcome { emits, ..outcome(10, 3, 0) }, OutcomeResult::Applied);
    bench
}

#[test]
fn what_was_taken_leaves_once() {
    let mut bench = filled(vec![emit(50, 8, "x"), emit(50, 8, "y"), emit(50, 8, "z"), emit(51, 8, "o")]);
    assert_eq!(bench.run(ack(50, 2, false)), (Reply::Done, vec![Effect::Outbox(2)]));
    assert_eq!([1, 2, 3].map(|at| bench.outbox(50, at)), [None, None, Some(emit(50, 8, "z"))]);
    assert_eq!(bench.queue(50), Some(OutboxTopic { last: 3, acked: 2 }));
    let before = bench.kv.snapshot();
    // repeated, older, of a topic that has no queue
    for nothing in [ack(50, 2, false), ack(50, 1, true), ack(60, 1, false)] {
        assert_eq!(bench.run(nothing), (Reply::Done, vec![]));
        assert_eq!(bench.kv.snapshot(), before);
    }
    // further than there is
    assert_eq!(bench.run(ack(50, 9, false)), (Reply::Done, vec![Effect::Outbox(1)]));
    assert_eq!(bench.queue(50), Some(OutboxTopic { last: 3, acked: 3 }));
    assert_eq!(bench.outbox(51, 1), Some(emit(51, 8, "o")));
    assert_eq!(bench.outbox_len(), Some(1));
}

#[test]
fn what_was_refused_goes_to_its_dead_letter_topic_and_from_there_nowhere() {
    let mut bench = filled(vec![emit(50, 8, "x"), emit(50, 8, "y"), emit(50, 8, "z")]);
    let (_, effects) = bench.run(ack(50, 2, true));
    assert_eq!(effects, [Effect::Outbox(1), Effect::Outbox(3)]);
    let dead = |payload| {
        let emit = emit(50, 8, payload);
        Emit { target: emit.dead.clone(), event: emit.event.with_header("canal-undeliverable", "t50"), ..emit }
    };
    assert_eq!([1, 2].map(|at| bench.outbox(90, at)), [Some(dead("x")), Some(dead("y"))]);
    assert_eq!([1, 2, 3].map(|at| bench.outbox(50, at)), [None, None, Some(emit(50, 8, "z"))]);
    assert_eq!(bench.queue(50), Some(OutboxTopic { last: 3, acked: 2 }));
    assert_eq!(bench.queue(90), Some(OutboxTopic { last: 2, acked: 0 }));
    assert_eq!(bench.outbox_len(), Some(3));
    let (_, effects) = bench.run(ack(90, 2, true));
    assert_eq!(effects, [Effect::Outbox(1)]);
    assert_eq!(bench.queue(90), None, "a topic that is gone needs no numbers");
    assert_eq!(bench.count(keys().one(Table::Outbox)), 1);
    assert_eq!(bench.outbox_len(), Some(1));
}
