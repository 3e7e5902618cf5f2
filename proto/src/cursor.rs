//! How far a trigger has come in a topic: the replicated truth about which events are handled.
//!
//! The state machine of the topic's group keeps one [`Cursor`] for every trigger and topic that match, and changes
//! it only through [`Cursor::apply`]. The scheduler on the leader runs the same code ahead of the commit, on a
//! copy, so both sides agree on what an outcome does.
//!
//! Promises: an offset is handled once (a second outcome for it, or one of an attempt that was counted already,
//! changes nothing), and the row stays bounded: nothing at [`MAX_CURSOR_GAP`] or more above the low watermark is
//! accepted.

use bytes::Bytes;

use crate::catalog::{Start, TriggerInfo};
use crate::limits::MAX_CURSOR_GAP;
use crate::log::{Disposition, Outcome};

/// Bytes of a key's digest. Two keys that share a digest only wait for each other, so eight are plenty.
pub const KEY_DIGEST: usize = 8;

/// The first [`KEY_DIGEST`] bytes of the BLAKE3 of an event's key; empty for the empty key.
pub fn key_digest(key: &[u8]) -> Bytes {
    if key.is_empty() {
        return Bytes::new();
    }
    blake3::hash(key).as_bytes().iter().take(KEY_DIGEST).copied().collect()
}

/// How far one trigger has come in one topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Cursor {
    /// Trigger id.
    #[prost(uint64, tag = "1")]
    pub trigger: u64,
    /// Topic id.
    #[prost(uint64, tag = "2")]
    pub topic: u64,
    /// All offsets below are handled.
    #[prost(uint64, tag = "3")]
    pub low: u64,
    /// Offsets above `low` that are handled, in order; ranges neither overlap nor touch.
    #[prost(message, repeated, tag = "4")]
    pub done: Vec<Span>,
    /// Events that wait for another run, by offset.
    #[prost(message, repeated, tag = "5")]
    pub parked: Vec<Parked>,
    /// Outcomes that were applied. It only grows, so of two copies the one with more runs is the newer.
    #[prost(uint64, tag = "6")]
    pub runs: u64,
}

/// A range of offsets.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Span {
    /// The first.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// One behind the last.
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

/// An event whose run failed, and that is to be run again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Parked {
    /// Its offset.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Runs that failed.
    #[prost(uint32, tag = "2")]
    pub attempts: u32,
    /// Not again before this time, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "3")]
    pub not_before_ms: u64,
    /// [`key_digest`] of its key. Later events of the same non-empty key wait for it.
    #[prost(bytes = "bytes", tag = "4")]
    pub key_digest: Bytes,
}

impl Cursor {
    /// A cursor below which all is handled.
    pub fn new(trigger: u64, topic: u64, low: u64) -> Self {
        Self { trigger, topic, low, ..Self::default() }
    }

    /// Where a trigger begins in a topic whose next offset is `next`. A topic that is younger than the trigger is
    /// always taken from its first event.
    pub fn begin(trigger: &TriggerInfo, topic: u64, next: u64) -> Self {
        let latest = trigger.start == Start::Latest as i32 && topic < trigger.id;
        Self::new(trigger.id, topic, if latest { next } else { 0 })
    }

    /// Whether the event is handled.
    pub fn is_done(&self, offset: u64) -> bool {
        if offset < self.low {
            return true;
        }
        let at = self.done.partition_point(|span| span.end <= offset);
        self.done.get(at).is_some_and(|span| span.first <= offset)
    }

    /// The event's place among those that wait for another run.
    pub fn parked(&self, offset: u64) -> Option<&Parked> {
        let at = self.parked.binary_search_by_key(&offset, |parked| parked.offset).ok()?;
        self.parked.get(at)
    }

    /// Runs of the event that failed so far.
    pub fn attempts(&self, offset: u64) -> u32 {
        self.parked(offset).map_or(0, |parked| parked.attempts)
    }

    /// Offsets from the low watermark to behind the last event that is done or parked; at most
    /// [`MAX_CURSOR_GAP`].
    pub fn gap(&self) -> u64 {
        let done = self.done.last().map_or(0, |span| span.end);
        let parked = self.parked.last().map_or(0, |parked| parked.offset.saturating_add(1));
        done.max(parked).saturating_sub(self.low)
    }

    /// Whether the event is still to be handled and within [`MAX_CURSOR_GAP`] of the low watermark.
    pub fn is_open(&self, offset: u64) -> bool {
        offset.checked_sub(self.low).is_some_and(|above| above < MAX_CURSOR_GAP) && !self.is_done(offset)
    }

    /// Marks an open event as handled; false, and no change, if it is not [open](Self::is_open).
    pub fn finish(&mut self, offset: u64) -> bool {
        if !self.is_open(offset) {
            return false;
        }
        if let Ok(at) = self.parked.binary_search_by_key(&offset, |parked| parked.offset) {
            self.parked.remove(at);
        }
        let end = offset.saturating_add(1);
        let at = self.done.partition_point(|span| span.end < offset);
        let joins_right = |span: &Span| span.first == end;
        match self.done.get_mut(at) {
            Some(span) if span.end == offset => {
                span.end = end;
                if let Some(right) = self.done.get(at + 1).copied().filter(joins_right) {
                    self.done.remove(at + 1);
                    if let Some(span) = self.done.get_mut(at) {
                        span.end = right.end;
                    }
                }
            }
            Some(span) if joins_right(span) => span.first = offset,
            _ => self.done.insert(at, Span { first: offset, end }),
        }
        if let Some(first) = self.done.first().copied().filter(|span| span.first == self.low) {
            self.low = first.end;
            self.done.remove(0);
        }
        true
    }

    /// Has an open event wait for another run; false, and no change, if it is not [open](Self::is_open).
    pub fn park(&mut self, offset: u64, attempts: u32, not_before_ms: u64, key_digest: Bytes) -> bool {
        if !self.is_open(offset) {
            return false;
        }
        let parked = Parked { offset, attempts, not_before_ms, key_digest };
        match self.parked.binary_search_by_key(&offset, |parked| parked.offset) {
            Ok(at) => {
                if let Some(place) = self.parked.get_mut(at) {
                    *place = parked;
                }
            }
            Err(at) => self.parked.insert(at, parked),
        }
        true
    }

    /// Whether the outcome of this attempt would be applied: the event is open, and this is its next attempt.
    pub fn accepts(&self, offset: u64, attempt: u32) -> bool {
        self.is_open(offset) && self.attempts(offset).checked_add(1) == Some(attempt)
    }

    /// Applies what an outcome says about its event. False, and no change, if it comes too late: the event is
    /// handled, or this attempt of it was counted already. The caller checks the reads first.
    pub fn apply(&mut self, outcome: &Outcome) -> bool {
        if !self.accepts(outcome.offset, outcome.attempt) {
            return false;
        }
        let changed = match Disposition::try_from(outcome.disposition) {
            Ok(Disposition::Done | Disposition::Dead) => self.finish(outcome.offset),
            Ok(Disposition::Retry) => {
                self.park(outcome.offset, outcome.attempt, outcome.not_before_ms, outcome.key_digest.clone())
            }
            Err(_) => false,
        };
        if changed {
            self.runs = self.runs.saturating_add(1);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// What makes a cursor's row one row: ordered, apart, above `low`, within the gap, parked never done.
    fn check(cursor: &Cursor) {
        let mut floor = cursor.low;
        for span in &cursor.done {
            assert!(span.first > floor && span.end > span.first, "{cursor:?}");
            floor = span.end;
        }
        assert!(cursor.parked.windows(2).all(|pair| pair[0].offset < pair[1].offset), "{cursor:?}");
        assert!(cursor.parked.iter().all(|parked| !cursor.is_done(parked.offset)), "{cursor:?}");
        assert!(cursor.gap() <= MAX_CURSOR_GAP, "{cursor:?}");
    }

    #[test]
    fn a_row_is_pinned() {
        let mut cursor = Cursor::new(7, 3, 300);
        assert!(cursor.finish(302) && cursor.finish(303));
        assert!(cursor.park(300, 2, 1000, key_digest(b"k")));
        cursor.runs = 4;
        let mut want = b"\x08\x07\x10\x03\x18\xac\x02\x22\x06\x08\xae\x02\x10\xb0\x02".to_vec();
        want.extend_from_slice(b"\x2a\x12\x08\xac\x02\x10\x02\x18\xe8\x07\x22\x08");
        want.extend_from_slice(&blake3::hash(b"k").as_bytes()[..8]);
        want.extend_from_slice(b"\x30\x04");
        assert_eq!(cursor.encode_to_vec(), want);
        assert_eq!(Cursor::decode(want.as_slice()), Ok(cursor));
        assert_eq!(key_digest(b""), Bytes::new());
    }

    #[test]
    fn nothing_beyond_the_gap_is_taken() {
        let mut cursor = Cursor::new(1, 1, 10);
        assert!(!cursor.finish(10 + MAX_CURSOR_GAP) && !cursor.park(10 + MAX_CURSOR_GAP, 1, 0, Bytes::new()));
        assert!(cursor.finish(9 + MAX_CURSOR_GAP));
        assert_eq!(cursor.gap(), MAX_CURSOR_GAP);
        assert!(cursor.finish(10) && !cursor.finish(10) && !cursor.finish(3));
        assert_eq!((cursor.low, cursor.gap()), (11, MAX_CURSOR_GAP - 1));
    }

    #[test]
    fn an_attempt_counts_once() {
        let retry = Outcome { offset: 0, attempt: 1, disposition: Disposition::Retry as i32, ..Outcome::default() };
        let done = Outcome { offset: 0, attempt: 2, disposition: Disposition::Done as i32, ..Outcome::default() };
        let mut cursor = Cursor::new(1, 1, 0);
        assert!(!cursor.apply(&done), "the second attempt before the first");
        assert!(cursor.apply(&retry) && !cursor.apply(&retry));
        assert_eq!((cursor.attempts(0), cursor.runs), (1, 1));
        assert!(cursor.apply(&done) && !cursor.apply(&done));
        assert_eq!(cursor, Cursor { runs: 2, ..Cursor::new(1, 1, 1) });
        let unknown = Outcome { offset: 1, attempt: 1, disposition: 9, ..Outcome::default() };
        assert!(!cursor.apply(&unknown));
    }

    #[test]
    fn a_trigger_begins_where_it_says() {
        let at = |start: Start, topic| {
            Cursor::begin(&TriggerInfo { id: 5, start: start as i32, ..TriggerInfo::default() }, topic, 9).low
        };
        assert_eq!([at(Start::Latest, 4), at(Start::Latest, 6), at(Start::Earliest, 4)], [9, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_order_ends_at_the_same_row(order in Just((0..200u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut cursor = Cursor::new(1, 1, 0);
            let mut handled = BTreeSet::new();
            for offset in order {
                prop_assert!(cursor.finish(offset));
                handled.insert(offset);
                check(&cursor);
                prop_assert!((0..210).all(|at| cursor.is_done(at) == handled.contains(&at)));
            }
            prop_assert_eq!(cursor, Cursor::new(1, 1, 200));
        }

        #[test]
        fn a_row_is_what_its_history_says(steps in prop::collection::vec((0..1100u64, 0..3u32), 0..400)) {
            let mut cursor = Cursor::new(1, 1, 0);
            let (mut done, mut parked) = (BTreeSet::new(), std::collections::BTreeMap::new());
            for (offset, attempts) in steps {
                let open = cursor.is_open(offset);
                prop_assert!(!open || !done.contains(&offset));
                let took = if attempts == 0 { cursor.finish(offset) } else {
                    cursor.park(offset, attempts, 5, Bytes::new())
                };
                prop_assert_eq!(took, open);
                if took && attempts == 0 {
                    done.insert(offset);
                    parked.remove(&offset);
                } else if took {
                    parked.insert(offset, attempts);
                }
                check(&cursor);
            }
            for offset in 0..1200 {
                prop_assert_eq!(cursor.is_done(offset), done.contains(&offset));
                prop_assert_eq!(cursor.attempts(offset), parked.get(&offset).copied().unwrap_or(0));
            }
        }
    }
}
