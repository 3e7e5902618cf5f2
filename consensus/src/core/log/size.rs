//! How many bytes a log holds, about: counted in stretches of entries, so that it costs little and goes down with
//! compaction.

use std::collections::VecDeque;

/// Entries that are counted together. A log is cut inside a stretch as if its entries were alike.
const STRETCH: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    first: u64,
    count: u64,
    bytes: u64,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Bytes of its first `count` entries.
    fn share(&self, count: u64) -> u64 {
        let share = u128::from(self.bytes) * u128::from(count.min(self.count)) / u128::from(self.count.max(1));
        u64::try_from(share).unwrap_or(self.bytes)
    }
}

/// Bytes of the entries of a log.
#[derive(Debug, Clone)]
pub(super) struct LiveBytes {
    stretches: VecDeque<Stretch>,
    total: u64,
}

impl LiveBytes {
    /// Of a log `first..=last` that holds about so many bytes.
    pub(super) fn new(first: u64, last: u64, bytes: u64) -> Self {
        let count = last.saturating_add(1).saturating_sub(first);
        let mut live = Self { stretches: VecDeque::new(), total: 0 };
        if count > 0 {
            live.stretches.push_back(Stretch { first, count, bytes });
            live.total = bytes;
        }
        live
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn push(&mut self, index: u64, bytes: u64) {
        self.total = self.total.saturating_add(bytes);
        match self.stretches.back_mut() {
            Some(stretch) if stretch.count < STRETCH && stretch.end() == index => {
                stretch.count += 1;
                stretch.bytes += bytes;
            }
            _ => self.stretches.push_back(Stretch { first: index, count: 1, bytes }),
        }
    }

    /// The entries from `index` on are gone.
    pub(super) fn truncate(&mut self, index: u64) {
        while let Some(mut last) = self.stretches.pop_back() {
            if last.end() <= index {
                self.stretches.push_back(last);
                return;
            }
            self.total = self.total.saturating_sub(last.bytes);
            let kept = index.saturating_sub(last.first);
            if kept > 0 {
                last.bytes = last.share(kept);
                last.count = kept;
                self.total += last.bytes;
                self.stretches.push_back(last);
                return;
            }
        }
    }

    /// The entries up to `index` are gone.
    pub(super) fn compact(&mut self, index: u64) {
        while let Some(mut first) = self.stretches.pop_front() {
            if first.first > index {
                self.stretches.push_front(first);
                return;
            }
            let gone = (index + 1).saturating_sub(first.first).min(first.count);
            let bytes = first.share(gone);
            self.total = self.total.saturating_sub(bytes);
            if gone < first.count {
                first.first += gone;
                first.count -= gone;
                first.bytes -= bytes;
                self.stretches.push_front(first);
                return;
            }
        }
    }
}
