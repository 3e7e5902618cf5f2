//! The harness is proven: deliberate bugs, and how many seeds it takes until an invariant notices each.
//!
//! A bug sits where the real code decides, in a core (`canal_consensus::mutants`, `canal_dht::mutants`) or in the
//! simulated driver around the cores (asked with [`is`]). All of it needs the feature `mutants`, which is off in every other
//! build; without it nothing can be activated, and [`is`] is `false` when the code is compiled.
//!
//! A bug counts as caught when an invariant says so. The same run without the bug has to pass: otherwise it was not the bug.

use anyhow::Result;

#[cfg(feature = "mutants")]
mod hunt;
#[cfg(feature = "mutants")]
mod list;
#[cfg(all(test, feature = "mutants"))]
mod tests;

#[cfg(feature = "mutants")]
pub use hunt::{Caught, Hunt, hunt};
#[cfg(feature = "mutants")]
pub use list::{ALL, Bug};

/// Seeds in which each bug has to be caught, unless the command line says otherwise.
pub const BOUND: u64 = 200;

/// A deliberate bug of the simulated driver: those of the cores are in their crates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The rows of cursors are written apart from those of the effects, in a batch of their own behind them.
    CursorApart,
    /// A leader is told that a snapshot is installed before its rows are durable.
    SnapshotAckedEarly,
    /// Nobody replaces replicas that are gone or lost.
    NeverReplaces,
    /// One peer writes other bytes to its log than it was sent.
    StoresOther,
    /// One peer gives subscribers other bytes than were published.
    GivesOther,
}

/// Whether a bug is active in this thread.
#[cfg(feature = "mutants")]
pub fn is(mutant: Mutant) -> bool {
    list::is(mutant)
}

/// Whether a bug is active in this thread: never, in this build.
#[cfg(not(feature = "mutants"))]
pub const fn is(_: Mutant) -> bool {
    false
}

/// `canal-testnet sim mutants`: prints the table of bugs, or of one. `false` when one was not caught within so many seeds.
///
/// # Errors
/// When this build has no bugs in it.
#[cfg(not(feature = "mutants"))]
pub fn run(_: u64, _: Option<&str>, _: Option<&str>) -> Result<bool> {
    anyhow::bail!(
        "this build has no deliberate bugs; make one that has: cargo run -p canal-testnet --features mutants -- sim mutants"
    )
}

/// `canal-testnet sim mutants`: prints the table of bugs, or of one. `false` when one was not caught within so many seeds.
///
/// # Errors
/// When there is no such bug.
#[cfg(feature = "mutants")]
pub fn run(seeds: u64, only: Option<&str>, by: Option<&str>) -> Result<bool> {
    hunt::table(seeds, only, by)
}
