//! A mesh in one thread, in simulated time, whose every step a seed decides: many peers, groups, functions and clients over
//! the real cores, while things go wrong.
//!
//! What is not a core is modelled: the network ([`network`]), disks ([`disk`]), clocks, and the driver around the groups
//! ([`peer`]), which does what the product's does in the same order. The rooms of a peer ([`rooms`]) and clients
//! ([`actors`]) act through [`around`]; invariants ([`invariants`]) see everything through [`seen`]. The same seed makes the
//! same run, to the last message.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use canal_consensus::{Refused, Reply};

pub mod actors;
pub mod around;
pub mod cli;
pub mod dht;
pub mod disk;
pub mod faults;
pub mod invariants;
pub mod linear;
pub mod mutants;
pub mod network;
pub mod peer;
pub mod queue;
pub mod rng;
pub mod rooms;
pub mod seen;
pub mod setup;
pub mod trace;
pub mod world;

#[cfg(test)]
mod tests;

pub use setup::Setup;

/// What happened in a run, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leaders that were elected.
    pub elections: u64,
    /// Events whose producers have their receipts.
    pub acks: u64,
    /// Events that subscribers received.
    pub delivered: u64,
    /// Outcomes of functions that were applied.
    pub activations: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What else a run is about: snapshots, seals, cuts of logs, ….
    pub counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn see(&mut self, seen: &seen::Seen) {
        match seen {
            seen::Seen::Acknowledged { count, .. } => self.acks += count,
            seen::Seen::Delivered { .. } => self.delivered += 1,
            _ => {}
        }
    }

    fn proposed(&mut self, reply: &Result<Reply, Refused>) {
        if let Ok(Reply::Outcomes(results, _)) = reply {
            self.activations += results.len() as u64;
        }
    }

    fn fault(&mut self, kind: faults::Kind) {
        *self.faults.entry(kind.name()).or_default() += 1;
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Adds what happened in another run.
    pub fn add(&mut self, other: &Self) {
        self.elections += other.elections;
        self.acks += other.acks;
        self.delivered += other.delivered;
        self.activations += other.activations;
        for (to, from) in [(&mut self.faults, &other.faults), (&mut self.counts, &other.counts)] {
            for (name, count) in from {
                *to.entry(name).or_default() += count;
            }
        }
    }
}

/// What did not hold in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The invariant.
    pub invariant: &'static str,
    /// What was seen.
    pub text: String,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What all that happened comes to: the same seed, the same number.
    pub trace: u64,
    /// How long it lasted, in simulated milliseconds.
    pub simulated_ms: u64,
    /// What happened.
    pub tally: Tally,
    /// What did not hold, if anything.
    pub failure: Option<Failure>,
}

/// Runs a seed as set up. A panic in it is a failure like any other.
pub fn run(setup: &Setup) -> Outcome {
    let seed = setup.seed;
    let ended = catch_unwind(AssertUnwindSafe(|| world::World::new(setup.clone()).run()));
    ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = format!("a panic: {}", text.unwrap_or_default());
        let failure = Some(Failure { invariant: "no panic", text, at_ms: 0 });
        Outcome { seed, trace: 0, simulated_ms: 0, tally: Tally::default(), failure }
    })
}
