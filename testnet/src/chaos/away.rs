//! For how long a group did not acknowledge, by what a publisher that never paused saw. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::load::Line;
use super::storm::Made;

/// Of several times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Times {
    /// The median.
    pub median_ms: f64,
    /// The 99th percentile (the nearest rank: of fewer than 100, the worst).
    pub p99_ms: f64,
    /// The worst.
    pub worst_ms: f64,
}

impl Times {
    /// Of these; none of none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort();
        let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
        let rank = |share: usize| times.get((times.len() * share).div_ceil(100).saturating_sub(1)).map(ms);
        Some(Self { median_ms: rank(50)?, p99_ms: rank(99)?, worst_ms: ms(times.last()?) })
    }
}

/// What one kind of fault cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// The kind.
    pub kind: &'static str,
    /// How often it was made.
    pub count: usize,
    /// From the begin of the fault (where all or a majority were killed: from when they are started again) to the first
    /// receipt of an event that was published after it, of the group that took longest.
    pub next_ack: Option<Times>,
    /// The longest time without any receipt of a group, from then until the mesh was whole again.
    pub longest: Option<Times>,
    /// From the end of the fault until the mesh was whole again.
    pub whole: Option<Times>,
}

/// What each kind of fault cost, by the publishers of these lines.
pub fn costs(made: &[Made], probes: &[Line]) -> Vec<Cost> {
    let mut kinds: BTreeMap<&'static str, Vec<&Made>> = BTreeMap::new();
    for made in made {
        kinds.entry(made.kind).or_default().push(made);
    }
    let cost = |(kind, all): (&'static str, Vec<&Made>)| Cost {
        kind,
        count: all.len(),
        next_ack: Times::of(all.iter().filter_map(|made| worst(probes, |line| next_ack(line, made.hope))).collect()),
        longest: Times::of(all.iter().filter_map(|made| worst(probes, |line| longest(line, made))).collect()),
        whole: Times::of(all.iter().filter_map(|made| Some(made.whole?.saturating_sub(made.ended))).collect()),
    };
    kinds.into_iter().map(cost).collect()
}

fn worst(probes: &[Line], of: impl Fn(&Line) -> Option<Duration>) -> Option<Duration> {
    probes.iter().filter_map(of).max()
}

fn next_ack(line: &Line, from: Duration) -> Option<Duration> {
    let first = line.sent.partition_point(|sent| sent.sent < from);
    let (at, _) = line.sent.get(first..)?.iter().find_map(|sent| sent.receipt)?;
    Some(at.saturating_sub(from))
}

fn longest(line: &Line, made: &Made) -> Option<Duration> {
    let until = made.whole.unwrap_or(made.ended);
    let mut last = made.hope;
    let mut longest = Duration::ZERO;
    // receipts come in order
    for (at, _) in line.sent.iter().filter_map(|sent| sent.receipt).filter(|(at, _)| *at >= made.hope) {
        if last >= until {
            break;
        }
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    (last > made.hope).then_some(longest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_sdk::ProducerId;

    use super::super::load::Sent;
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(Times::of(Vec::new()), None);
        let times = Times::of((1..=200).rev().map(ms).collect()).unwrap();
        assert_eq!(times, Times { median_ms: 100.0, p99_ms: 198.0, worst_ms: 200.0 });
        assert_eq!(Times::of(vec![ms(7)]).unwrap(), Times { median_ms: 7.0, p99_ms: 7.0, worst_ms: 7.0 });
    }

    #[test]
    fn what_is_sent_before_a_fault_does_not_count_as_its_next_receipt() {
        // an event each 10 ms, each with its receipt after 2, but none from 95 to 400
        let sent = (0..100).map(|n| {
            let sent = ms(n * 10);
            let at = if n * 10 + 2 > 95 && n * 10 + 2 < 400 { ms(400) } else { sent + ms(2) };
            Sent { sent, receipt: Some((at, Some(n))) }
        });
        let line = Line { name: "p".into(), topic: "t".into(), producer: ProducerId([1; 16]), sent: sent.collect() };
        let made = Made {
            kind: "kill",
            what: String::new(),
            began: ms(85),
            hope: ms(85),
            ended: ms(500),
            whole: Some(ms(600)),
            silent: None,
        };
        assert_eq!(next_ack(&line, ms(85)), Some(ms(7)), "the event of 90 went through");
        assert_eq!(next_ack(&line, ms(95)), Some(ms(305)));
        assert_eq!(longest(&line, &made), Some(ms(308)), "from 92 to 400");
        let cost = costs(&[made], &[line]).remove(0);
        assert_eq!((cost.kind, cost.count, cost.whole.unwrap().worst_ms), ("kill", 1, 100.0));
        assert_eq!(next_ack(&Line { sent: Vec::new(), ..line_of() }, ms(0)), None);
    }

    fn line_of() -> Line {
        Line { name: "p".into(), topic: "t".into(), producer: ProducerId([1; 16]), sent: Vec::new() }
    }
}
