//! Which faults a run makes, and in which order: a function of the seed. No IO, no clock.
//!
//! Kinds come from a shuffled deck, so that each comes as often as any other; every second round or so has a second fault
//! beside the first, one that takes no peer away. So two faults never take a majority away together, unless that is what
//! the fault is for ([`What::NoMajority`], [`What::KillAll`]).
//!
//! The plan is the same wherever it is carried out; what can't be done there (links on loopback, disks without the library
//! for it) is left out then. Real processes are not deterministic: the same plan does not make the same run.

use std::fmt;
use std::time::Duration;

use crate::sim::rng::Rng;

/// Whom a fault hits. Who leads is known only when it comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The peer with this number.
    Peer(usize),
    /// Who leads the group with this place among all groups.
    Leader(usize),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// SIGKILL; started again when the fault is over.
    Kill,
    /// The same, for longer than the mesh waits before it replaces the peer's replicas.
    Away,
    /// SIGSTOP; SIGCONT when it is over.
    Stop,
    /// No packet of other peers reaches it, or none of it reaches them, or both.
    Cut {
        /// What comes to it is lost.
        inward: bool,
        /// What it sends is lost.
        outward: bool,
    },
    /// It and one other peer are cut off from the rest.
    Split,
    /// Its links are slow.
    SlowLink {
        /// Time on the wire, each way.
        delay_ms: u32,
    },
    /// Its links lose packets.
    LossyLink {
        /// So many of a hundred.
        percent: u32,
    },
    /// Its disk takes so much longer for each sync.
    SlowDisk {
        /// Milliseconds.
        ms: u32,
    },
    /// Its disk fails to sync: the peer ends.
    FailingSync,
    /// Its disk is full: the peer ends.
    FullDisk,
    /// Its clock is wrong by this.
    Clock {
        /// Milliseconds; less than 0: behind.
        shift_ms: i64,
    },
    /// The replicas of a group go to other peers.
    Move,
    /// Its replicas go to other peers, and it may have some again when it is over.
    Drain,
    /// All peers are killed at once.
    KillAll,
    /// So many voters of a group are killed that no majority is left.
    NoMajority,
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub what: What,
    /// Whom it hits.
    pub target: Target,
    /// For how long.
    pub lasts: Duration,
    /// A number for what is left to be chosen when it comes to it.
    pub draw: u64,
}

/// One or two faults at a time, then a pause in which all is well.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// The faults; the second one hits another peer.
    pub faults: Vec<Fault>,
    /// From the first to the second.
    pub between: Duration,
    /// After the mesh is whole again.
    pub pause: Duration,
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Peers of the mesh.
    pub peers: usize,
    /// Its groups.
    pub groups: usize,
    /// How long the mesh waits before it replaces a peer's replicas.
    pub replaced_after: Duration,
    /// There is time for a peer to be away for that long.
    pub long: bool,
}

/// The rounds of a seed, without end.
pub struct Plan {
    rng: Rng,
    bounds: Bounds,
    first: Vec<Kind>,
    second: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    KillLeader,
    KillAny,
    Away,
    Stop,
    Isolate,
    OneWay,
    Split,
    SlowLink,
    LossyLink,
    SlowDisk,
    FailingSync,
    FullDisk,
    ClockAhead,
    ClockBehind,
    Move,
    Drain,
    KillAll,
    NoMajority,
}

const ALL: [Kind; 18] = [
    Kind::KillLeader,
    Kind::KillAny,
    Kind::Away,
    Kind::Stop,
    Kind::Isolate,
    Kind::OneWay,
    Kind::Split,
    Kind::SlowLink,
    Kind::LossyLink,
    Kind::SlowDisk,
    Kind::FailingSync,
    Kind::FullDisk,
    Kind::ClockAhead,
    Kind::ClockBehind,
    Kind::Move,
    Kind::Drain,
    Kind::KillAll,
    Kind::NoMajority,
];
/// Those that take no peer away: they may come beside another.
const MILD: [Kind; 7] = [
    Kind::SlowLink,
    Kind::LossyLink,
    Kind::SlowDisk,
    Kind::ClockAhead,
    Kind::ClockBehind,
    Kind::Move,
    Kind::KillLeader,
];
/// Of a thousand rounds, so many have two faults.
const TWO: u64 = 450;

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, bounds: Bounds) -> Self {
        Self { rng: Rng::new(seed), bounds, first: Vec::new(), second: Vec::new() }
    }

    fn draw(&mut self, of: &[Kind], second: bool) -> Option<Kind> {
        let deck = if second { &mut self.second } else { &mut self.first };
        if deck.is_empty() {
            deck.extend_from_slice(of);
            // Fisher and Yates
            for at in (1..deck.len()).rev() {
                let other = self.rng.index(at + 1);
                deck.swap(at, other);
            }
        }
        deck.pop()
    }

    fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.rng.between(low, high))
    }

    fn fault(&mut self, kind: Kind) -> Fault {
        let anyone = self.rng.index(self.bounds.peers);
        let leader = Target::Leader(self.rng.index(self.bounds.groups));
        // half of what hits one peer hits one that matters
        let someone = if self.rng.chance(500) { leader } else { Target::Peer(anyone) };
        let size = self.rng.next();
        let draw = self.rng.next();
        let pick = |low: u64, high: u64| low + size % (high - low + 1);
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let (what, target, (low, high)) = match kind {
            Kind::KillLeader => (What::Kill, leader, (500, 3_000)),
            Kind::KillAny => (What::Kill, Target::Peer(anyone), (500, 3_000)),
            Kind::Away => {
                let replaced = u64::try_from(self.bounds.replaced_after.as_millis()).unwrap_or_default();
                (What::Away, someone, (replaced + 3_000, replaced + 8_000))
            }
            Kind::Stop => (What::Stop, someone, (500, 5_000)),
            Kind::Isolate => (What::Cut { inward: true, outward: true }, someone, (1_000, 7_000)),
            Kind::OneWay => (
                What::Cut { inward: size.is_multiple_of(2), outward: !size.is_multiple_of(2) },
                someone,
                (1_000, 7_000),
            ),
            Kind::Split => (What::Split, someone, (1_000, 7_000)),
            Kind::SlowLink => (What::SlowLink { delay_ms: small(pick(20, 150)) }, someone, (3_000, 8_000)),
            Kind::LossyLink => (What::LossyLink { percent: small(pick(2, 20)) }, someone, (3_000, 8_000)),
            Kind::SlowDisk => (What::SlowDisk { ms: small(pick(20, 300)) }, someone, (3_000, 8_000)),
            Kind::FailingSync => (What::FailingSync, someone, (500, 2_000)),
            Kind::FullDisk => (What::FullDisk, someone, (500, 2_000)),
            Kind::ClockAhead => (What::Clock { shift_ms: jump(size) }, someone, (3_000, 8_000)),
            Kind::ClockBehind => (What::Clock { shift_ms: -jump(size) }, someone, (3_000, 8_000)),
            // the catalog's own group, the first, is placed by the mesh alone
            Kind::Move => (What::Move, Target::Leader(1 + anyone % (self.bounds.groups - 1).max(1)), (500, 1_000)),
            Kind::Drain => (What::Drain, someone, (4_000, 8_000)),
            Kind::KillAll => (What::KillAll, Target::Peer(anyone), (500, 3_000)),
            Kind::NoMajority => (What::NoMajority, leader, (2_000, 6_000)),
        };
        Fault { what, target, lasts: self.millis(low, high), draw }
    }
}

/// From a second to 40 days, each order of magnitude as likely as another.
fn jump(size: u64) -> i64 {
    let scale = [1_000, 60_000, 3_600_000, 86_400_000].get(usize::try_from(size % 4).unwrap_or_default());
    let times = i64::try_from(size / 4 % 40).unwrap_or_default() + 1;
    scale.copied().unwrap_or(1_000) * times
}

impl Iterator for Plan {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let kind = loop {
            let kind = self.draw(&ALL, false)?;
            if kind != Kind::Away || self.bounds.long {
                break kind;
            }
        };
        let mut faults = vec![self.fault(kind)];
        let alone = [Kind::KillAll, Kind::NoMajority, Kind::Split, Kind::Away].contains(&kind);
        if self.rng.chance(TWO) && !alone {
            let mild = MILD.contains(&kind);
            // a peer is killed only beside a fault that takes none away, and links have one fault at a time
            let links = [Kind::SlowLink, Kind::LossyLink];
            let other = loop {
                let other = self.draw(&MILD, true)?;
                let fits = other != Kind::KillLeader || (mild && kind != Kind::KillLeader && kind != Kind::SlowDisk);
                let cut = [Kind::Isolate, Kind::OneWay].contains(&kind) || links.contains(&kind);
                if fits && other != kind && !(cut && links.contains(&other)) {
                    break other;
                }
            };
            faults.push(self.fault(other));
        }
        let (between, pause) = (self.millis(100, 2_000), self.millis(500, 2_500));
        Some(Round { faults, between, pause })
    }
}

impl What {
    /// Its kind, as reports name it.
    pub fn kind(&self, target: Target) -> &'static str {
        match self {
            Self::Kill if matches!(target, Target::Leader(_)) => "kill-leader",
            Self::Kill => "kill",
            Self::Away => "away",
            Self::Stop => "stop",
            Self::Cut { inward: true, outward: true } => "partition",
            Self::Cut { .. } => "one-way-partition",
            Self::Split => "split",
            Self::SlowLink { .. } => "slow-link",
            Self::LossyLink { .. } => "lossy-link",
            Self::SlowDisk { .. } => "slow-disk",
            Self::FailingSync => "failing-sync",
            Self::FullDisk => "full-disk",
            Self::Clock { shift_ms } if *shift_ms < 0 => "clock-back",
            Self::Clock { .. } => "clock-forward",
            Self::Move => "move",
            Self::Drain => "drain",
            Self::KillAll => "kill-all",
            Self::NoMajority => "no-majority",
        }
    }

    /// It needs links that can be changed.
    pub fn needs_links(&self) -> bool {
        matches!(self, Self::Cut { .. } | Self::Split | Self::SlowLink { .. } | Self::LossyLink { .. })
    }

    /// It needs the library for disks and clocks.
    pub fn needs_shim(&self) -> bool {
        matches!(self, Self::SlowDisk { .. } | Self::FailingSync | Self::FullDisk | Self::Clock { .. })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("killed"),
            Self::Away => f.write_str("killed, for long"),
            Self::Stop => f.write_str("stopped"),
            Self::Cut { inward: true, outward: true } => f.write_str("cut off"),
            Self::Cut { inward: true, .. } => f.write_str("hears nobody"),
            Self::Cut { .. } => f.write_str("is heard by nobody"),
            Self::Split => f.write_str("cut off with one other"),
            Self::SlowLink { delay_ms } => write!(f, "links slow by {delay_ms} ms"),
            Self::LossyLink { percent } => write!(f, "links lose {percent} %"),
            Self::SlowDisk { ms } => write!(f, "disk slow by {ms} ms"),
            Self::FailingSync => f.write_str("disk fails to sync"),
            Self::FullDisk => f.write_str("disk is full"),
            Self::Clock { shift_ms } => write!(f, "clock off by {} s", shift_ms / 1000),
            Self::Move => f.write_str("replicas move"),
            Self::Drain => f.write_str("drains"),
            Self::KillAll => f.write_str("all killed"),
            Self::NoMajority => f.write_str("a majority killed"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::collections::BTreeSet;

    use super::*;

    fn plan(seed: u64, long: bool) -> Vec<Round> {
        let bounds = Bounds { peers: 5, groups: 4, replaced_after: Duration::from_secs(20), long };
        Plan::new(seed, bounds).take(200).collect()
    }

    #[test]
    fn a_seed_has_one_plan() {
        assert_eq!(plan(1, true), plan(1, true));
        assert_ne!(plan(1, true), plan(2, true));
    }

    #[test]
    fn every_kind_comes_and_a_second_fault_leaves_a_majority() {
        let rounds = plan(7, true);
        let kinds: BTreeSet<&str> =
            rounds.iter().flat_map(|round| &round.faults).map(|fault| fault.what.kind(fault.target)).collect();
        assert_eq!(kinds.len(), ALL.len(), "{kinds:?}");
        // within one deck
        let first: BTreeSet<&str> =
            rounds[..ALL.len()].iter().map(|r| r.faults[0].what.kind(r.faults[0].target)).collect();
        assert_eq!(first.len(), ALL.len(), "{first:?}");
        let takes_away = |what: &What| {
            !what.needs_links() && !matches!(what, What::SlowDisk { .. } | What::Clock { .. } | What::Move)
                || matches!(what, What::Cut { .. } | What::Split)
        };
        let two: Vec<_> = rounds.iter().filter(|round| round.faults.len() == 2).collect();
        assert!((50..120).contains(&two.len()), "{}", two.len());
        for round in two {
            let away = round.faults.iter().filter(|fault| takes_away(&fault.what)).count();
            assert!(away <= 1, "{round:?}");
        }
        assert!(plan(7, false).iter().all(|round| round.faults[0].what != What::Away));
        let ends = rounds.iter().flat_map(|round| &round.faults).map(|fault| fault.lasts).max().unwrap();
        assert!(ends <= Duration::from_secs(28), "{ends:?}");
    }

    #[test]
    fn clocks_jump_by_a_second_to_forty_days() {
        let jumps: BTreeSet<i64> = (0..1000).map(jump).collect();
        assert_eq!((jumps.first(), jumps.last()), (Some(&1_000), Some(&(40 * 86_400_000))));
    }
}
