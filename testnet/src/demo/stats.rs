//! What is counted and timed while the demo runs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// Readings whose effect has not been seen yet, at most: what a run publishes in a long outage. Past that, the oldest
/// are not timed.
const MAX_TIMED: usize = 100_000;
/// The longest time that is told apart, in microseconds: ten minutes.
const LONGEST: u64 = 600_000_000;

/// Counters and clocks, shared by all tasks.
pub struct Stats(Mutex<Inner>);

struct Inner {
    published: u64,
    acknowledged: u64,
    effects: u64,
    publish: Histogram<u64>,
    effect: Histogram<u64>,
    made: HashMap<(String, u64), Instant>,
    outage: Option<Outage>,
}

struct Outage {
    began: Instant,
    topics: Vec<String>,
    first_ack: Option<Duration>,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The median.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// Where things stand.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Readings handed to publishers.
    pub published: u64,
    /// Receipts.
    pub acknowledged: u64,
    /// Events that functions emitted, as a subscriber saw them.
    pub effects: u64,
    /// From the reading to its receipt.
    pub publish: Latency,
    /// From the reading to the smoothed one.
    pub effect: Latency,
    /// From the kill of a leader to the first receipt of its group for a reading made after it.
    pub first_ack: Option<Duration>,
}

impl Stats {
    /// Nothing yet.
    ///
    /// # Errors
    /// When the histograms can't be made.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_max(LONGEST, 3);
        Ok(Self(Mutex::new(Inner {
            published: 0,
            acknowledged: 0,
            effects: 0,
            publish: histogram()?,
            effect: histogram()?,
            made: HashMap::new(),
            outage: None,
        })))
    }

    /// A reading was made for this topic. `followed` when a smoothed one will follow it.
    pub fn made(&self, topic: &str, round: u64, at: Instant, followed: bool) {
        let mut inner = self.0.lock();
        inner.published += 1;
        if followed && inner.made.len() < MAX_TIMED {
            inner.made.insert((topic.to_owned(), round), at);
        }
    }

    /// Its receipt came.
    pub fn acknowledged(&self, topic: &str, made: Instant) {
        let mut inner = self.0.lock();
        inner.acknowledged += 1;
        inner.publish.saturating_record(micros(made.elapsed()));
        if let Some(outage) = &mut inner.outage
            && made >= outage.began
            && outage.first_ack.is_none()
            && outage.topics.iter().any(|of_group| of_group == topic)
        {
            outage.first_ack = Some(outage.began.elapsed());
        }
    }

    /// A subscriber saw an event that a function emitted; `cause` is the reading that it is the first effect of.
    pub fn effect(&self, cause: Option<(String, u64)>) {
        let mut inner = self.0.lock();
        inner.effects += 1;
        if let Some(made) = cause.and_then(|cause| inner.made.remove(&cause)) {
            inner.effect.saturating_record(micros(made.elapsed()));
        }
    }

    /// The leader of the group with these topics was killed.
    pub fn killed(&self, topics: Vec<String>) {
        self.0.lock().outage = Some(Outage { began: Instant::now(), topics, first_ack: None });
    }

    /// Where things stand.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.0.lock();
        Snapshot {
            published: inner.published,
            acknowledged: inner.acknowledged,
            effects: inner.effects,
            publish: latency(&inner.publish),
            effect: latency(&inner.effect),
            first_ack: inner.outage.as_ref().and_then(|outage| outage.first_ack),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    Latency {
        count: histogram.len(),
        p50_us: histogram.value_at_quantile(0.5),
        p99_us: histogram.value_at_quantile(0.99),
        max_us: histogram.max(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_first_receipt_after_a_kill_is_that_of_a_later_reading_of_that_group() {
        let stats = Stats::new().unwrap();
        let before = Instant::now();
        stats.made("a", 1, before, true);
        stats.killed(vec!["a".into()]);
        stats.acknowledged("a", before);
        stats.acknowledged("b", Instant::now());
        assert_eq!(stats.snapshot().first_ack, None);
        stats.acknowledged("a", Instant::now());
        assert!(stats.snapshot().first_ack.is_some());
        stats.effect(Some(("a".into(), 1)));
        stats.effect(None);
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.published, snapshot.acknowledged, snapshot.effects), (1, 3, 2));
        assert_eq!((snapshot.publish.count, snapshot.effect.count), (3, 1));
    }
}
