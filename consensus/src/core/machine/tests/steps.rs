//! Steps in which the replicas changed.

use canal_proto::limits::MAX_STEPS;
use canal_proto::log::Step;

use super::runs::emit;
use super::*;
use crate::core::rows::OutboxTopic;

fn step(bench: &Bench, number: u64) -> Option<Step> {
    bench.row(keys().make(Table::Steps, &[&number.to_be_bytes()]))
}

#[test]
fn a_step_is_numbered_and_reported_once() {
    let mut bench = Bench::with(&[(4, "$mesh/steps")], &[]);
    let joined = Step { number: 99, what: "joined".into(), replica: 2, ended_ms: 5, ..Step::default() };
    assert_eq!(bench.run(Kind::Step(joined.clone())), (Reply::Done, vec![Effect::Step(1)]));
    assert_eq!(step(&bench, 1), Some(Step { number: 1, ..joined.clone() }));
    // even for a topic of this group
    let told = Step { report: Some(emit(4, GROUP.0, "x")), ..joined.clone() };
    assert_eq!(bench.run(Kind::Step(told)), (Reply::Done, vec![Effect::Outbox(1), Effect::Step(2)]));
    assert_eq!(step(&bench, 2), Some(Step { number: 2, ..joined.clone() }), "the report is in the outbox alone");
    assert_eq!(bench.outbox(4, 1), Some(emit(4, GROUP.0, "x")));
    assert_eq!(bench.queue(4), Some(OutboxTopic { last: 1, acked: 0 }));
    (2..=MAX_STEPS).for_each(|_| drop(bench.run(Kind::Step(joined.clone()))));
    assert_eq!(bench.count(keys().one(Table::Steps)) as u64, MAX_STEPS);
    assert_eq!((step(&bench, 1), step(&bench, MAX_STEPS + 1).map(|step| step.number)), (None, Some(MAX_STEPS + 1)));
}
