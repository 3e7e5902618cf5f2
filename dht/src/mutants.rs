//! Deliberate bugs, for proving that the simulator's invariants notice them. Compiled with the feature `mutants` only, which
//! nothing but `canal-testnet`'s feature of the same name turns on; no build of `canal` has any of it.
//!
//! At most one is active, in the thread that activated it: a simulation runs in one thread, and others are not concerned.

use std::cell::Cell;

/// A deliberate bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A route record takes the place of a newer one.
    StaleRoute,
}

thread_local! {
    static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// From now on this bug is active in this thread, and no other.
pub fn activate(mutant: Option<Mutant>) {
    ACTIVE.set(mutant);
}

/// Whether a bug is active.
pub(crate) fn is(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}
