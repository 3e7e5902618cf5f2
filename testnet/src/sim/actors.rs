//! Clients: what publishes, subscribes, reads, writes and looks up while a simulation runs, each on a machine of its own behind
//! the peers. They behave as the SDK does, and tell what they do and are told ([`Seen`](super::seen::Seen)); whether that is
//! right is for the invariants to say.
//!
//! What a client alone can see to be wrong (a receipt that covers nothing, a cursor that went back) it tells as
//! [`Seen::Broken`](super::seen::Seen::Broken).

use canal_proto::{GroupId, TopicId};

use super::around::Actor;
use super::rng::Rng;
use super::rooms::spec;
use super::setup::{self, Setup};

mod alarm;
mod auditor;
mod calls;
mod durable;
#[cfg(test)]
mod fake;
mod finder;
mod producer;
pub mod register;
mod subscriber;

use producer::{Pace, Producer};
use register::{Register, Written};

/// A topic, and where it is.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its id.
    pub topic: TopicId,
    /// Its group.
    pub group: GroupId,
}

/// Clients that read and write registers: enough that operations meet.
const REGISTERS: usize = 4;

/// The clients of a run.
pub fn make(setup: &Setup, rng: &mut Rng) -> Vec<Box<dyn Actor>> {
    let mut actors: Vec<Box<dyn Actor>> = Vec::new();
    let lines: Vec<Line> = setup
        .groups
        .iter()
        .flat_map(|plan| spec::topics(plan.id).into_iter().map(|(id, name)| (plan.id, id, name)))
        .map(|(group, id, name)| Line { name, topic: TopicId(id), group })
        .collect();
    for line in &lines {
        match line.topic {
            setup::IN_A | setup::IN_B => {
                for _ in 0..rng.between(1, 2) {
                    actors.push(Box::new(Producer::new(line.clone(), identity(rng), calm(setup, rng))));
                }
            }
            setup::DEAD | setup::OUT_A => {}
            _ => actors.push(Box::new(Producer::new(line.clone(), identity(rng), busy(setup, rng)))),
        }
        actors.push(Box::new(subscriber::Subscriber::new(line.clone())));
    }
    let published: Vec<&Line> =
        lines.iter().filter(|line| ![setup::DEAD, setup::OUT_A].contains(&line.topic)).collect();
    if let Some(line) = rng.pick(&published) {
        actors.push(Box::new(Producer::new(line.clone(), identity(rng), calm(setup, rng)).queued()));
    }
    if let Some(line) = rng.pick(&published) {
        actors.push(Box::new(durable::Durable::new(line.clone())));
    }
    let written = Written::default();
    for _ in 0..REGISTERS {
        actors.push(Box::new(Register::new(setup::WORK, written.clone())));
    }
    actors.push(Box::new(finder::Finder::new(lines.clone())));
    actors.push(Box::new(auditor::Auditor::new(lines)));
    actors
}

/// A producer that functions fire for.
fn calm(setup: &Setup, rng: &mut Rng) -> Pace {
    Pace { every_ms: rng.between(300, 1500) * setup.leisure, burst: 4, batch: 3, for_ms: setup.fault_ms }
}

/// A producer that fills a log.
fn busy(setup: &Setup, rng: &mut Rng) -> Pace {
    Pace { every_ms: rng.between(100, 500) * setup.leisure, burst: 24, batch: 8, for_ms: setup.fault_ms }
}

/// The id of a producer.
fn identity(rng: &mut Rng) -> [u8; 16] {
    let (high, low) = (u128::from(rng.next()), u128::from(rng.next()));
    (high << 64 | low).to_be_bytes()
}

#[cfg(test)]
mod tests;
