//! What came out, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::Options;
use super::idle::Cost;

/// One kill.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Number of the peer that was killed.
    pub peer: usize,
    /// From the kill to the receipt of an event that was published after it.
    pub first_ack_ms: f64,
    /// The longest time between two receipts around the kill.
    pub longest_gap_ms: f64,
    /// From the kill until a survivor was seen not to follow the killed leader any more.
    pub stands_ms: Option<f64>,
    /// From the kill until one was seen to know a new leader.
    pub leads_ms: Option<f64>,
}

/// Times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// How many.
    pub count: usize,
    /// The shortest.
    pub min_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile, by nearest rank: of fewer than a hundred it is the longest.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Times {
    /// Of these; all 0 when there are none.
    pub fn of(times: impl Iterator<Item = f64>) -> Self {
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        let count = times.len();
        let rank = |hundredths: usize| {
            let rank = (count * hundredths).div_ceil(100).max(1);
            times.get(rank - 1).copied().unwrap_or(0.0)
        };
        Self { count, min_ms: rank(0), p50_ms: rank(50), p99_ms: rank(99), max_ms: rank(100) }
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    peers: u32,
    idle_groups: u32,
    idle: Vec<Cost>,
    rounds: Vec<Round>,
    first_ack: Times,
    longest_gap: Times,
    /// From the kill until a survivor stands for election.
    notice: Times,
    /// From there until one leads.
    election: Times,
    /// From there until the publisher has its receipt.
    publisher: Times,
}

impl Report {
    pub fn new(options: &Options, idle: Vec<Cost>, rounds: Vec<Round>) -> Self {
        let times = |part: fn(&Round) -> Option<f64>| Times::of(rounds.iter().filter_map(part));
        Self {
            peers: options.peers,
            idle_groups: options.idle_groups,
            first_ack: times(|round| Some(round.first_ack_ms)),
            longest_gap: times(|round| Some(round.longest_gap_ms)),
            notice: times(|round| round.stands_ms),
            election: times(|round| Some(round.leads_ms? - round.stands_ms?)),
            publisher: times(|round| Some(round.first_ack_ms - round.leads_ms?)),
            idle,
            rounds,
        }
    }
}

impl Report {
    /// Times from a kill to the first receipt of an event that was published after it.
    pub fn first_ack(&self) -> Times {
        self.first_ack
    }
}

/// What the peers cost at rest.
pub fn idle(groups: u32, costs: &[Cost]) -> String {
    let mut text = format!("at rest, with {groups} groups that have nothing to do:");
    for cost in costs {
        text.push_str(&format!(
            "\n  peer {}: {} replicas, leads {}; {:.2} s of processor time a minute ({:.1} % of a core); raft: {:.0} \
             messages/s in {:.0} frames/s, {:.1} KB/s",
            cost.peer,
            cost.replicas,
            cost.leads,
            cost.cpu_s_per_min,
            cost.cpu_s_per_min / 0.6,
            cost.raft_messages_per_s,
            cost.raft_frames_per_s,
            cost.raft_bytes_per_s / 1000.0
        ));
    }
    text
}

fn part(ms: Option<f64>) -> String {
    ms.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.0}"))
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let election = self.leads_ms.zip(self.stands_ms).map(|(leads, stands)| leads - stands);
        let publisher = self.leads_ms.map(|leads| self.first_ack_ms - leads);
        write!(
            f,
            "peer {} killed; first receipt after {:.0} ms (noticed {}, election {}, publisher {}); longest gap {:.0} ms",
            self.peer,
            self.first_ack_ms,
            part(self.stands_ms),
            part(election),
            part(publisher),
            self.longest_gap_ms
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("first receipt after the kill", self.first_ack),
            ("longest gap between receipts", self.longest_gap),
            ("  until a survivor stands", self.notice),
            ("  until one leads", self.election),
            ("  until the receipt is here", self.publisher),
        ];
        write!(
            f,
            "{:<30} {:>8} {:>8} {:>8} {:>8}   ({} rounds)",
            "ms",
            "least",
            "median",
            "p99",
            "worst",
            self.rounds.len()
        )?;
        rows.iter().try_for_each(|(name, times)| {
            let Times { min_ms, p50_ms, p99_ms, max_ms, .. } = times;
            write!(f, "\n{name:<30} {min_ms:>8.0} {p50_ms:>8.0} {p99_ms:>8.0} {max_ms:>8.0}")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]
    use super::*;

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let times = Times::of((1..=200).rev().map(f64::from));
        assert_eq!(
            (times.count, times.min_ms, times.p50_ms, times.p99_ms, times.max_ms),
            (200, 1.0, 100.0, 198.0, 200.0)
        );
        let few = Times::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((few.p50_ms, few.p99_ms), (2.0, 3.0));
        assert_eq!(Times::of(std::iter::empty()).max_ms, 0.0);
    }
}
