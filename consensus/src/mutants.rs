//! Deliberate bugs, for proving that the simulator's invariants notice them. Compiled with the feature `mutants` only, which
//! nothing but `canal-testnet`'s feature of the same name turns on; no build of `canal` has any of it.
//!
//! At most one is active, in the thread that activated it: a simulation runs in one thread, and others are not concerned.

use std::cell::Cell;

/// A deliberate bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A follower acknowledges entries before they are synced.
    AckBeforeSync,
    /// A replica that starts does not know whom it voted for.
    ForgottenVote,
    /// A snapshot does not carry the producers' sequences.
    DedupLostInSnapshot,
    /// An acknowledgement takes effects out of the outbox that were not delivered yet.
    OutboxRemovedEarly,
    /// A follower that is sent entries which it has, cuts its log behind them.
    TruncatesMatching,
    /// A leader answers reads without asking a majority whether it still leads.
    DeposedRead,
    /// The log is cut although the rows are not flushed as far.
    CutsUnflushed,
    /// A retry is only recognised while its producer's last event is the newest of the topic.
    ShortMemory,
    /// An outcome is applied also when what its run read has changed since.
    ReadsUnchecked,
    /// Now and then an offset is left out.
    OffsetSkipped,
    /// A replica that has known a leader does not stand any more.
    GivesUpStanding,
    /// A snapshot does not carry where durable subscriptions are.
    CursorsLostInSnapshot,
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
