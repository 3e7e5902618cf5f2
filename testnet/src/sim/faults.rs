//! What goes wrong in a run: a plan drawn from the seed.
//!
//! Each run has a few kinds of faults, strongly, rather than all of them weakly: a bug that needs one kind again and again
//! drowns in the others' noise. Rates are per simulated second, or in a thousand of the chances that there are.

use super::rng::Rng;

/// A kind of fault. [`Kind::name`] is what people and tallies call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Messages are lost.
    Loss,
    /// Messages come twice.
    Duplicate,
    /// Messages come late, and out of order.
    Delay,
    /// The peers are parted in two.
    Partition,
    /// What one peer sends to some others does not arrive, what they send does.
    OneWay,
    /// One peer is cut off from all.
    Isolation,
    /// A process stands still for a while.
    Pause,
    /// Clocks differ, and run at different speeds.
    Skew,
    /// A clock jumps.
    Jump,
    /// A process dies; writes that were not synced are lost.
    Crash,
    /// A process dies inside a turn, between two of its steps.
    CrashInTurn,
    /// A process dies inside the taking over of a snapshot.
    CrashInInstall,
    /// All peers die at once, as in a power cut.
    PowerCut,
    /// Syncing takes long.
    SlowDisk,
    /// Rows are found damaged at a start.
    LostRows,
    /// A bit of a file flips.
    FlippedFile,
    /// A bit of the log flips.
    FlippedLog,
    /// A disk is emptied.
    EmptyDisk,
    /// A peer leaves for good.
    Leave,
    /// A peer joins.
    Join,
    /// Replicas should be elsewhere.
    Move,
    /// Leadership is handed over, or a replica stands for election.
    Unrest,
    /// What peers fetch from each other does not come.
    FailedFetch,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Loss,
        Self::Duplicate,
        Self::Delay,
        Self::Partition,
        Self::OneWay,
        Self::Isolation,
        Self::Pause,
        Self::Skew,
        Self::Jump,
        Self::Crash,
        Self::CrashInTurn,
        Self::CrashInInstall,
        Self::PowerCut,
        Self::SlowDisk,
        Self::LostRows,
        Self::FlippedFile,
        Self::FlippedLog,
        Self::EmptyDisk,
        Self::Leave,
        Self::Join,
        Self::Move,
        Self::Unrest,
        Self::FailedFetch,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Duplicate => "duplicate",
            Self::Delay => "delay",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Isolation => "isolation",
            Self::Pause => "pause",
            Self::Skew => "skew",
            Self::Jump => "jump",
            Self::Crash => "crash",
            Self::CrashInTurn => "crash in a turn",
            Self::CrashInInstall => "crash in an installation",
            Self::PowerCut => "power cut",
            Self::SlowDisk => "slow disk",
            Self::LostRows => "lost rows",
            Self::FlippedFile => "flipped file",
            Self::FlippedLog => "flipped log",
            Self::EmptyDisk => "emptied disk",
            Self::Leave => "leave",
            Self::Join => "join",
            Self::Move => "move",
            Self::Unrest => "unrest",
            Self::FailedFetch => "failed fetch",
        }
    }

    /// How strong it may be: what the number means, each kind says where it is used.
    fn strengths(self) -> [u64; 2] {
        match self {
            // in a thousand messages
            Self::Loss => [20, 150],
            Self::Duplicate => [50, 200],
            Self::Delay => [50, 300],
            Self::FailedFetch => [200, 600],
            // in a thousand turns with a synced write
            Self::CrashInTurn => [2, 10],
            // in a thousand steps
            Self::CrashInInstall => [150, 400],
            // milliseconds at most
            Self::Skew => [2000, 100_000],
            Self::SlowDisk => [40, 400],
            // in a thousand crashes
            Self::LostRows | Self::EmptyDisk | Self::FlippedLog => [250, 700],
            // in all
            Self::Leave => [1, 1],
            Self::Join => [1, 2],
            // in a thousand of a peer's seconds
            Self::Crash => [15, 60],
            Self::Pause => [15, 60],
            Self::Jump => [15, 60],
            Self::FlippedFile => [30, 120],
            // in a thousand of the mesh's seconds
            Self::Partition | Self::OneWay | Self::Isolation => [80, 250],
            Self::PowerCut => [20, 60],
            Self::Move => [40, 120],
            Self::Unrest => [100, 600],
        }
    }

    /// Whether it does nothing without crashes.
    fn needs_crashes(self) -> bool {
        matches!(self, Self::LostRows | Self::EmptyDisk | Self::FlippedLog)
    }
}

/// What goes wrong in a run, and how much.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    strengths: std::collections::BTreeMap<Kind, u64>,
    /// Peers that join while things go wrong.
    pub joins: usize,
    /// Peers that leave for good.
    pub leaves: usize,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(rng: &mut Rng, peers: usize) -> Self {
        let mut left: Vec<Kind> = Kind::ALL.to_vec();
        let mut plan = Self::default();
        for _ in 0..rng.between(2, 6) {
            let kind = left.swap_remove(rng.index(left.len()));
            plan.add(kind, rng);
            if kind.needs_crashes() && !plan.has(Kind::CrashInTurn) {
                plan.add(Kind::Crash, rng);
            }
        }
        plan.joins = usize::try_from(plan.strength(Kind::Join)).unwrap_or_default();
        // somebody has to be left to take over
        plan.leaves = if peers + plan.joins >= 5 { usize::from(plan.has(Kind::Leave)) } else { 0 };
        plan
    }

    fn add(&mut self, kind: Kind, rng: &mut Rng) {
        let [weak, strong] = kind.strengths();
        self.strengths.insert(kind, rng.between(weak, strong));
    }

    /// The same, with one kind more at its strongest.
    pub fn with(mut self, kind: Kind) -> Self {
        let [_, strong] = kind.strengths();
        self.strengths.insert(kind, strong);
        self
    }

    /// How strong a kind is in this run; 0: it is not in it.
    pub fn strength(&self, kind: Kind) -> u64 {
        self.strengths.get(&kind).copied().unwrap_or_default()
    }

    /// Whether a kind is in it.
    pub fn has(&self, kind: Kind) -> bool {
        self.strength(kind) > 0
    }

    /// One line.
    pub fn describe(&self) -> String {
        let kinds: Vec<String> =
            self.strengths.iter().map(|(kind, strength)| format!("{} {strength}", kind.name())).collect();
        if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") }
    }
}
