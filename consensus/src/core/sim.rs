//! One group, simulated: a seed decides what the network, the disks, the peers and the clients do.
//!
//! A run has two halves. In the first, messages are lost, doubled and overtake each other, peers crash in the middle
//! of a turn or of an installation and forget what was not synced, disks are emptied, rows are lost, logs are cut, the mesh
//! falls apart, leaders change, replicas come, go and move. In the second all is mended, and the group has to serve again
//! within [`PATIENCE`] ticks, with a replica on each peer that should have one and on no other. [`oracle`] says what must
//! hold at any moment. The checks themselves are proven on groups that are broken on purpose ([`Sabotage`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::panic::{AssertUnwindSafe, catch_unwind};

mod admin;
mod chaos;
mod client;
mod disk;
mod node;
mod oracle;
mod rng;
mod scenarios;
mod world;

use world::{Tally, World};

/// Ticks during which things go wrong.
const TROUBLE: u64 = 400;
/// Ticks after which a mended group must serve: some elections, all of the clients' events, snapshots that are sent again
/// every 200 ticks, and a few moves one after the other.
const PATIENCE: u64 = 2000;

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
    /// A snapshot does not carry the producers' sequences.
    SnapshotWithoutProducers,
    /// The leader is told that a snapshot is installed before it is on disk.
    LooseInstall,
    /// A replica whose disk was emptied comes back under its old id.
    SameIdAgain,
}

/// What is simulated.
#[derive(Debug, Clone, Copy)]
struct Setup {
    /// Peers.
    peers: usize,
    /// How many of them should hold a replica.
    wanted: usize,
    /// Replicas that the group begins with.
    first: usize,
    sabotage: Sabotage,
}

impl Setup {
    fn honest(peers: usize, first: usize) -> Self {
        Self { peers, wanted: peers, first, sabotage: Sabotage::None }
    }

    /// With more peers than replicas, so that replicas move.
    fn moving(peers: usize, wanted: usize) -> Self {
        Self { peers, wanted, first: wanted, sabotage: Sabotage::None }
    }
}

fn simulate(seed: u64, setup: Setup) -> Result<(u64, Tally), String> {
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
fn attempt(seed: u64, setup: Setup) -> Result<(u64, Tally), String> {
    catch_unwind(AssertUnwindSafe(|| simulate(seed, setup))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    })
}

/// Runs as many seeds, or as many as `CANAL_SEEDS` says, or the one of `CANAL_SEED`. What happened in all of them.
fn check_seeds(name: &str, seeds: u64, setup: Setup) -> Tally {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let one: Option<u64> = number("CANAL_SEED");
    let range = one.map_or(0..number("CANAL_SEEDS").unwrap_or(seeds), |seed| seed..seed + 1);
    let mut all = Tally::default();
    for seed in range {
        match attempt(seed, setup) {
            Ok((_, tally)) => all += tally,
            Err(error) => panic!(
                "seed {seed}: {error}\nreplay: CANAL_SEED={seed} cargo test -p canal-consensus --lib sim::{name}"
            ),
        }
    }
    all
}

#[test]
fn three_replicas() {
    check_seeds("three_replicas", 60, Setup::honest(3, 3));
}

#[test]
fn five_replicas() {
    check_seeds("five_replicas", 25, Setup::honest(5, 5));
}

#[test]
fn one_replica_grows_to_three() {
    check_seeds("one_replica_grows_to_three", 50, Setup::honest(3, 1));
}

#[test]
fn three_replicas_grow_to_five() {
    check_seeds("three_replicas_grow_to_five", 25, Setup::honest(5, 3));
}

#[test]
fn three_replicas_move_among_five_peers() {
    let met = check_seeds("three_replicas_move_among_five_peers", 80, Setup::moving(5, 3));
    if std::env::var("CANAL_SEED").is_err() {
        // asked for, installed, cut short, logs cut, disks emptied, hollow replicas, joint configurations
        let Tally { asked, installed, cut_short, cuts, emptied, hollow, joint } = met;
        let met = [asked, installed, cut_short, cuts, emptied, hollow, joint];
        assert!(met.iter().all(|times| *times >= 5), "the seeds hardly meet what they are for: {met:?}");
    }
}

#[test]
fn one_replica_moves_among_three_peers() {
    check_seeds("one_replica_moves_among_three_peers", 40, Setup::moving(3, 1));
}

#[test]
fn a_seed_replays_to_the_byte() {
    for setup in [Setup::honest(3, 3), Setup::honest(3, 1), Setup::moving(4, 3)] {
        let runs: Vec<_> = (0..6).map(|seed| (attempt(seed, setup), attempt(seed, setup))).collect();
        assert!(runs.iter().all(|(one, two)| one == two), "{runs:?}");
        assert!(runs.windows(2).all(|pair| pair[0].0 != pair[1].0), "seeds make no difference: {runs:?}");
    }
}

#[test]
fn broken_groups_are_caught() {
    for (sabotage, seeds) in [
        (Sabotage::LyingDisks, 10),
        (Sabotage::ForgottenVotes, 300),
        (Sabotage::ForgottenProducers, 30),
        (Sabotage::SnapshotWithoutProducers, 30),
        (Sabotage::LooseInstall, 100),
        (Sabotage::SameIdAgain, 100),
    ] {
        let caught = (0..seeds).any(|seed| attempt(seed, Setup { sabotage, ..Setup::honest(3, 3) }).is_err());
        assert!(caught, "{seeds} seeds with {sabotage:?}, and no check noticed");
    }
}
