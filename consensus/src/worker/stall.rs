//! How long publishing to a group stood still.

use std::time::{Duration, Instant};

/// A publish that comes this soon after leadership came is taken to have waited for it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Watches the publishes of one group at the replica that leads it.
#[derive(Debug)]
pub(crate) struct Stall {
    waiting: usize,
    moved: Instant,
    /// Leadership came then, and nothing was published since.
    fresh: Option<Instant>,
    longest: Duration,
}

impl Stall {
    pub(crate) fn new(now: Instant) -> Self {
        Self { waiting: 0, moved: now, fresh: None, longest: Duration::ZERO }
    }

    /// This replica leads now; `heard` is when it last heard of the leader before.
    pub(crate) fn leads(&mut self, heard: Instant, now: Instant) {
        self.moved = heard;
        self.fresh = Some(now);
    }

    /// A publish has come.
    pub(crate) fn asked(&mut self, now: Instant) {
        let waited = self.fresh.take().is_some_and(|since| now.duration_since(since) < AT_ONCE);
        if self.waiting == 0 && !waited {
            self.moved = now;
        }
        self.waiting += 1;
    }

    /// A publish was answered; `done` when it is in the log, and not refused.
    pub(crate) fn answered(&mut self, done: bool, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        if done {
            self.longest = self.longest.max(now.duration_since(self.moved));
            self.moved = now;
        }
    }

    /// The longest time since the last call, with the one that is running.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        let running = if self.waiting > 0 { now.duration_since(self.moved) } else { Duration::ZERO };
        std::mem::take(&mut self.longest).max(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_somebody_waited_counts() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut stall = Stall::new(start);
        stall.asked(at(1000));
        stall.asked(at(1001));
        stall.answered(true, at(1005));
        stall.answered(true, at(1040));
        assert_eq!(stall.take(at(5000)), Duration::from_millis(35));
        assert_eq!(stall.take(at(6000)), Duration::ZERO);
        stall.asked(at(7000));
        assert_eq!(stall.take(at(7200)), Duration::from_millis(200));
        stall.answered(false, at(7300));
        assert_eq!(stall.take(at(8000)), Duration::ZERO);
        // the one before died at 9.0 s, this one leads from 9.8 s on, and publishers come back at once
        stall.leads(at(9000), at(9800));
        stall.asked(at(9850));
        stall.answered(true, at(9860));
        assert_eq!(stall.take(at(9900)), Duration::from_millis(860));
        stall.leads(at(20_000), at(20_500));
        stall.asked(at(60_000));
        stall.answered(true, at(60_003));
        assert_eq!(stall.take(at(60_003)), Duration::from_millis(3));
    }
}
