//! The latest events of one topic, shared by all its subscribers here. No IO, no clock.

use std::collections::VecDeque;

use crate::serve::subscribe::batch::Encoded;

/// Consecutive events, bounded in bytes: the oldest go first, and the latest always stays.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<Encoded>,
    /// Offset that comes after the last event.
    next: u64,
    bytes: usize,
}

/// Where an offset is, seen from the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The ring has let go of it, or never had it.
    Behind,
    /// The ring has it.
    Here,
    /// It is yet to come.
    Ahead,
}

impl Ring {
    /// An empty ring whose first event will be this one.
    pub fn new(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// Offset of the oldest event.
    pub fn first(&self) -> u64 {
        self.events.front().map_or(self.next, |event| event.offset)
    }

    /// Offset behind the latest event.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Where an offset is.
    pub fn position(&self, offset: u64) -> Position {
        if offset >= self.next {
            Position::Ahead
        } else if offset < self.first() {
            Position::Behind
        } else {
            Position::Here
        }
    }

    /// Takes an event, and lets go of the oldest above so many bytes. One that does not follow on makes the ring begin
    /// anew: what it holds is always without a gap.
    pub fn push(&mut self, event: Encoded, limit: usize) {
        if event.offset != self.next {
            self.events.clear();
            self.bytes = 0;
        }
        self.next = event.offset + 1;
        self.bytes += event.bytes.len();
        self.events.push_back(event);
        while self.bytes > limit && self.events.len() > 1 {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
        }
    }

    /// Events from an offset on, until they have so many bytes or there are so many: one at least, if the ring has it.
    pub fn read(&self, from: u64, max: usize, max_bytes: u64) -> Vec<Encoded> {
        let Some(skip) = from.checked_sub(self.first()) else { return Vec::new() };
        let mut bytes = 0;
        let behind = self.events.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(max);
        behind
            .take_while(|event| {
                let fits = bytes < max_bytes;
                bytes += event.cost();
                fits
            })
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use bytes::Bytes;

    fn event(offset: u64, size: usize) -> Encoded {
        Encoded { offset, bytes: Bytes::from(vec![1; size]) }
    }

    fn offsets(events: &[Encoded]) -> Vec<u64> {
        events.iter().map(|event| event.offset).collect()
    }

    #[test]
    fn the_latest_events_are_kept_within_the_bytes() {
        let mut ring = Ring::new(5);
        assert_eq!((ring.first(), ring.position(4), ring.position(5)), (5, Position::Behind, Position::Ahead));
        for offset in 5..25 {
            ring.push(event(offset, 10), 100);
            assert!(ring.bytes <= 100);
        }
        assert_eq!((ring.first(), ring.next()), (15, 25));
        assert_eq!(offsets(&ring.read(0, 99, 999)), Vec::<u64>::new(), "what it let go of is not passed over");
        assert_eq!(offsets(&ring.read(15, 99, 999)), (15..25).collect::<Vec<_>>());
        assert_eq!(offsets(&ring.read(23, 99, 999)), [23, 24]);
        assert_eq!(offsets(&ring.read(25, 99, 999)), Vec::<u64>::new());
        assert_eq!((ring.position(14), ring.position(15)), (Position::Behind, Position::Here));
    }

    #[test]
    fn a_read_is_bounded_in_events_and_bytes_and_gives_one_at_least() {
        let mut ring = Ring::new(0);
        (0..10).for_each(|offset| ring.push(event(offset, 10), 1000));
        assert_eq!(offsets(&ring.read(2, 3, 999)), [2, 3, 4]);
        assert_eq!(offsets(&ring.read(2, 99, 1)), [2]);
        assert_eq!(offsets(&ring.read(2, 99, 20)), [2, 3]);
        assert_eq!(offsets(&ring.read(2, 99, 21)), [2, 3, 4]);
    }

    #[test]
    fn one_event_stays_however_large_it_is_and_a_gap_begins_anew() {
        let mut ring = Ring::new(0);
        ring.push(event(0, 10), 100);
        ring.push(event(1, 1000), 100);
        assert_eq!((ring.first(), ring.next()), (1, 2));
        ring.push(event(7, 10), 100);
        assert_eq!((ring.first(), ring.next(), ring.bytes), (7, 8, 10));
    }
}
