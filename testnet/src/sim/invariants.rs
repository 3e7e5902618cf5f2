//! What must hold in every run, whatever goes wrong: a file each, with its source.
//!
//! An invariant sees the world from outside ([`Seen`](super::seen::Seen), [`Look`](super::seen::Look)); it never asks the
//! code that it checks whether it is right. What it remembers is bounded by the run, and what it does for one event does
//! not grow with what happened before. Whoever breaks one says so in words, with numbers to look for in the trace.

use super::seen::Invariant;

mod acknowledged_durable;
mod client_answers;
mod effect_once;
mod election_safety;
#[cfg(test)]
mod fake;
mod gapless_offsets;
mod honest_disks;
mod leader_completeness;
mod leader_returns;
mod linearizable;
mod log_matching;
mod outbox_once;
mod producer_once;
mod read;
mod replicas_restored;
mod route_epoch;
mod state_machine_safety;
mod subscriber_order;

/// All of them, as they are at the beginning of a run.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<election_safety::ElectionSafety>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<leader_completeness::LeaderCompleteness>::default(),
        Box::<state_machine_safety::StateMachineSafety>::default(),
        Box::<gapless_offsets::GaplessOffsets>::default(),
        Box::<producer_once::ProducerOnce>::default(),
        Box::<acknowledged_durable::AcknowledgedDurable>::default(),
        Box::<effect_once::EffectOnce>::default(),
        Box::<outbox_once::OutboxOnce>::default(),
        Box::<route_epoch::RouteEpoch>::default(),
        Box::<linearizable::Linearizable>::default(),
        Box::<replicas_restored::ReplicasRestored>::default(),
        Box::<leader_returns::LeaderReturns>::default(),
        Box::<subscriber_order::SubscriberOrder>::default(),
        Box::<client_answers::ClientAnswers>::default(),
        Box::<honest_disks::HonestDisks>::default(),
    ]
}

/// One of them alone, or all.
pub fn asked(only: Option<&str>) -> Vec<Box<dyn Invariant>> {
    let mut asked = all();
    asked.retain(|invariant| only.is_none_or(|only| only == invariant.name()));
    asked
}

/// Says what is wrong unless it holds.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
