//! The bugs, and the runs that bring each out: few kinds of faults, strongly, and short.

use std::cell::Cell;

use canal_consensus::mutants::Mutant as Consensus;
use canal_dht::mutants::Mutant as Dht;

use super::Mutant as Driver;
use crate::sim::faults::{Kind, Plan};
use crate::sim::setup::{Limits, Setup};

/// Where a bug is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Consensus(Consensus),
    Dht(Dht),
    Driver(Driver),
}

/// A deliberate bug.
#[derive(Debug, Clone, Copy)]
pub struct Bug {
    /// What it is called.
    pub name: &'static str,
    /// What it does.
    pub text: &'static str,
    /// The invariants that have to notice it, each alone.
    pub by: &'static [&'static str],
    place: Place,
    /// What goes wrong in the runs that look for it.
    faults: &'static [Kind],
    peers: usize,
    /// Milliseconds for which things go wrong.
    fault_ms: u64,
    /// Rows are seldom flushed, and logs often cut.
    cuts: bool,
}

const fn bug(
    name: &'static str,
    text: &'static str,
    by: &'static [&'static str],
    place: Place,
    faults: &'static [Kind],
) -> Bug {
    Bug { name, text, by, place, faults, peers: 3, fault_ms: 15_000, cuts: false }
}

impl Bug {
    const fn lasting(self, fault_ms: u64) -> Self {
        Self { fault_ms, ..self }
    }

    const fn with_cuts(self) -> Self {
        Self { cuts: true, ..self }
    }
}

/// All of them.
pub const ALL: &[Bug] = &[
    bug(
        "ack-before-sync",
        "a follower acknowledges entries before they are synced",
        &["acknowledged_durable", "honest_disks", "leader_completeness"],
        Place::Consensus(Consensus::AckBeforeSync),
        &[Kind::SlowDisk, Kind::CrashInTurn, Kind::PowerCut, Kind::Unrest],
    )
    .lasting(40_000),
    bug(
        "forgotten-vote",
        "a replica that starts does not know whom it voted for",
        &["election_safety"],
        Place::Consensus(Consensus::ForgottenVote),
        &[Kind::Unrest, Kind::Crash],
    ),
    bug(
        "dedup-lost-in-snapshot",
        "a snapshot does not carry the producers' sequences",
        &["state_machine_safety", "producer_once"],
        Place::Consensus(Consensus::DedupLostInSnapshot),
        &[Kind::Crash, Kind::LostRows, Kind::Unrest, Kind::Loss],
    )
    .lasting(40_000),
    bug(
        "outbox-removed-early",
        "effects leave the outbox before the other group has them",
        &["outbox_once", "effect_once"],
        Place::Consensus(Consensus::OutboxRemovedEarly),
        &[Kind::Loss, Kind::Delay],
    ),
    bug(
        "stale-route",
        "a route record takes the place of a newer one",
        &["route_epoch"],
        Place::Dht(Dht::StaleRoute),
        &[Kind::Delay, Kind::Duplicate, Kind::Unrest],
    ),
    bug(
        "cursor-apart",
        "a cursor is committed apart from the effects",
        &["state_machine_safety", "effect_once"],
        Place::Driver(Driver::CursorApart),
        &[Kind::Crash, Kind::CrashInTurn],
    ),
    bug(
        "truncates-matching",
        "a follower cuts its log behind entries that it was sent again",
        &["acknowledged_durable"],
        Place::Consensus(Consensus::TruncatesMatching),
        &[Kind::Duplicate, Kind::Delay, Kind::Loss],
    ),
    bug(
        "deposed-read",
        "a leader that was deposed serves a read",
        &["linearizable"],
        Place::Consensus(Consensus::DeposedRead),
        &[Kind::Partition, Kind::Pause],
    )
    .lasting(40_000),
    bug(
        "short-memory",
        "a retry is appended again when others have published since",
        &["producer_once"],
        Place::Consensus(Consensus::ShortMemory),
        &[Kind::Loss],
    ),
    bug(
        "cuts-unflushed",
        "the log is cut before the rows are flushed as far",
        &["acknowledged_durable"],
        Place::Consensus(Consensus::CutsUnflushed),
        &[Kind::Crash],
    )
    .with_cuts(),
    bug(
        "snapshot-acked-early",
        "a snapshot is acknowledged before its rows are durable",
        &["acknowledged_durable"],
        Place::Driver(Driver::SnapshotAckedEarly),
        &[Kind::Crash, Kind::LostRows, Kind::CrashInInstall],
    ),
    bug(
        "reads-unchecked",
        "effects stand although what the run read has changed since",
        &["linearizable"],
        Place::Consensus(Consensus::ReadsUnchecked),
        &[Kind::Delay],
    ),
    bug(
        "offset-skipped",
        "now and then an offset is left out",
        &["gapless_offsets"],
        Place::Consensus(Consensus::OffsetSkipped),
        &[Kind::Delay],
    ),
    bug(
        "gives-up-standing",
        "who has once known a leader does not stand for election",
        &["leader_returns"],
        Place::Consensus(Consensus::GivesUpStanding),
        &[Kind::Crash, Kind::PowerCut],
    ),
    bug(
        "cursors-lost-in-snapshot",
        "a snapshot does not carry where durable subscriptions are",
        &["client_answers"],
        Place::Consensus(Consensus::CursorsLostInSnapshot),
        &[Kind::Crash, Kind::LostRows, Kind::Unrest],
    ),
    bug(
        "never-replaces",
        "replicas that are lost are not replaced",
        &["replicas_restored"],
        Place::Driver(Driver::NeverReplaces),
        &[Kind::EmptyDisk],
    ),
    bug(
        "stores-other",
        "one peer writes other bytes to its log than it was sent",
        &["log_matching"],
        Place::Driver(Driver::StoresOther),
        &[Kind::Delay],
    ),
    bug(
        "gives-other",
        "one peer gives subscribers other bytes than were published",
        &["subscriber_order"],
        Place::Driver(Driver::GivesOther),
        &[Kind::Delay],
    ),
];

thread_local! {
    static ACTIVE: Cell<Option<Driver>> = const { Cell::new(None) };
}

/// Whether a bug of the driver is active in this thread.
pub(super) fn is(mutant: Driver) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// A bug that is active in this thread until this goes.
#[derive(Debug)]
pub struct Active;

impl Drop for Active {
    fn drop(&mut self) {
        activate(None);
    }
}

fn activate(place: Option<Place>) {
    let (mut consensus, mut dht, mut driver) = (None, None, None);
    match place {
        Some(Place::Consensus(mutant)) => consensus = Some(mutant),
        Some(Place::Dht(mutant)) => dht = Some(mutant),
        Some(Place::Driver(mutant)) => driver = Some(mutant),
        None => {}
    }
    canal_consensus::mutants::activate(consensus);
    canal_dht::mutants::activate(dht);
    ACTIVE.set(driver);
}

impl Bug {
    /// Makes it active.
    pub fn activate(&self) -> Active {
        activate(Some(self.place));
        Active
    }

    /// The run of a seed that may bring it out, looked at by one invariant.
    pub fn setup(&self, seed: u64, asked: &'static str) -> Setup {
        let plan = |plan: Plan, kind: &Kind| plan.with(*kind);
        let drawn = Setup::with_peers(seed, self.peers);
        let few = Limits { seal_entries: 20, flush_ms: 5000, log_entries: 100, ..drawn.limits };
        Setup {
            faults: self.faults.iter().fold(Plan::default(), plan),
            fault_ms: self.fault_ms,
            leisure: 1,
            asked: Some(asked),
            limits: if self.cuts { few } else { drawn.limits },
            ..drawn
        }
    }
}
