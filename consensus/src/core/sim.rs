//! One group, simulated: a seed decides what the network, the disks, the peers and the clients do.
//!
//! A run has two halves. In the first, messages are lost, doubled and overtake each other, peers crash in the middle
//! of a turn and forget what was not synced, the mesh falls apart, leaders change, replicas are added. In the second
//! all is mended, and the group has to serve again within [`PATIENCE`] ticks. [`oracle`] says what must hold at any
//! moment. The checks themselves are proven on groups that are broken on purpose ([`Sabotage`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::panic::{AssertUnwindSafe, catch_unwind};

mod client;
mod disk;
mod oracle;
mod rng;
mod scenarios;
mod world;

use world::World;

/// Ticks during which things go wrong.
const TROUBLE: u64 = 400;
/// Ticks after which a mended group must serve: some elections, and all of the clients' events.
const PATIENCE: u64 = 1000;

/// A group that breaks a promise, so that the checks are seen to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    None,
    /// Disks say that they have synced, and have not.
    LyingDisks,
    /// A restarted replica does not know whom it voted for.
    ForgottenVotes,
    /// A restarted replica does not know the producers' sequences.
    ForgottenProducers,
}

/// What is simulated.
#[derive(Debug, Clone, Copy)]
struct Setup {
    /// Peers, all of which hold a replica in the end.
    peers: usize,
    /// Replicas that the group begins with.
    first: usize,
    sabotage: Sabotage,
}

impl Setup {
    fn honest(peers: usize, first: usize) -> Self {
        Self { peers, first, sabotage: Sabotage::None }
    }
}

fn simulate(seed: u64, setup: Setup) -> Result<u64, String> {
    let mut world = World::new(seed, setup)?;
    for _ in 0..TROUBLE {
        world.step()?;
    }
    world.heal();
    for _ in 0..PATIENCE {
        world.step()?;
        if world.is_well() {
            return world.finish();
        }
    }
    Err(format!("it does not serve again within {PATIENCE} ticks: {}", world.describe()))
}

/// As [`simulate`]; a panic of raft-rs, which checks some things itself, is a failure like any other.
fn attempt(seed: u64, setup: Setup) -> Result<u64, String> {
    catch_unwind(AssertUnwindSafe(|| simulate(seed, setup))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    })
}

fn check_seeds(name: &str, seeds: u64, setup: Setup) {
    let one = std::env::var("CANAL_SEED").ok().map(|text| text.parse().expect("CANAL_SEED is a number"));
    let range = one.map_or(0..seeds, |seed| seed..seed + 1);
    for seed in range {
        if let Err(error) = attempt(seed, setup) {
            panic!("seed {seed}: {error}\nreplay: CANAL_SEED={seed} cargo test -p canal-consensus --lib sim::{name}");
        }
    }
}

#[test]
fn three_replicas() {
    check_seeds("three_replicas", 150, Setup::honest(3, 3));
}

#[test]
fn five_replicas() {
    check_seeds("five_replicas", 60, Setup::honest(5, 5));
}

#[test]
fn one_replica_grows_to_three() {
    check_seeds("one_replica_grows_to_three", 150, Setup::honest(3, 1));
}

#[test]
fn three_replicas_grow_to_five() {
    check_seeds("three_replicas_grow_to_five", 60, Setup::honest(5, 3));
}

#[test]
fn a_seed_replays_to_the_byte() {
    for setup in [Setup::honest(3, 3), Setup::honest(3, 1)] {
        let runs: Vec<_> = (0..6).map(|seed| (attempt(seed, setup), attempt(seed, setup))).collect();
        assert!(runs.iter().all(|(one, two)| one == two), "{runs:?}");
        assert!(runs.windows(2).all(|pair| pair[0].0 != pair[1].0), "seeds make no difference: {runs:?}");
    }
}

#[test]
fn broken_groups_are_caught() {
    for (sabotage, seeds) in
        [(Sabotage::LyingDisks, 10), (Sabotage::ForgottenVotes, 300), (Sabotage::ForgottenProducers, 30)]
    {
        let caught = (0..seeds).any(|seed| attempt(seed, Setup { peers: 3, first: 3, sabotage }).is_err());
        assert!(caught, "{seeds} seeds with {sabotage:?}, and no check noticed");
    }
}
