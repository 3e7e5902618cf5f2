//! How much a peer may send before the reader has read: a window of bytes. No IO, no clock.
//!
//! Both sides count the same thing, [`canal_proto::request::Events::cost`]. A peer sends an event as long as anything is
//! left, so at most the window and one event are held here for a reader that does not read.

/// The window of one topic, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Bytes that have arrived.
    received: u64,
    /// Bytes that may have arrived once all that was granted is used.
    allowed: u64,
}

impl Window {
    /// A new peer takes over: what the last one was granted and has not sent is void. Gives the credit to begin with,
    /// which is never zero: on the wire that stands for the default.
    pub(super) fn open(&mut self, consumed: u64, limit: u64) -> u64 {
        let credit = (consumed + limit).saturating_sub(self.received).max(1);
        self.allowed = self.received + credit;
        credit
    }

    /// An event has arrived.
    pub(super) fn receive(&mut self, cost: u64) {
        self.received += cost;
    }

    /// What to grant now that the reader has consumed so many bytes in all: nothing before it is a quarter of the window,
    /// so that it is said four times a window and not for each event.
    pub(super) fn grant(&mut self, consumed: u64, limit: u64) -> Option<u64> {
        let free = (consumed + limit).saturating_sub(self.allowed);
        if free < threshold(limit) {
            return None;
        }
        self.allowed += free;
        Some(free)
    }
}

/// Bytes consumed after which the window is looked at again.
pub(super) fn threshold(limit: u64) -> u64 {
    (limit / 4).max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn what_is_held_for_a_reader_is_the_window_and_one_event() {
        let (mut window, mut consumed) = (Window::default(), 0);
        let (mut credit, mut sent): (i64, u64) = (window.open(0, 100).try_into().unwrap(), 0);
        for round in 0..1000_u64 {
            // the peer: sends while anything is left
            while credit > 0 {
                let cost = 7 + round % 90;
                credit -= i64::try_from(cost).unwrap();
                sent += cost;
                window.receive(cost);
                assert!(sent - consumed <= 100 + cost, "{} held", sent - consumed);
            }
            // the reader: always something, now and then all
            consumed += (sent - consumed).min(1 + round % 60);
            credit += i64::try_from(window.grant(consumed, 100).unwrap_or(0)).unwrap();
        }
        consumed = sent;
        credit += i64::try_from(window.grant(consumed, 100).unwrap_or(0)).unwrap();
        assert!(credit > 75, "a reader that has read all is never stuck: {credit}");
    }

    #[test]
    fn it_is_granted_in_quarters() {
        let mut window = Window::default();
        assert_eq!(window.open(0, 100), 100);
        window.receive(50);
        assert_eq!(window.grant(24, 100), None);
        assert_eq!(window.grant(25, 100), Some(25));
        assert_eq!(window.grant(50, 100), Some(25));
    }

    #[test]
    fn a_new_peer_begins_with_what_is_free() {
        let mut window = Window::default();
        window.open(0, 100);
        window.receive(80);
        assert_eq!(window.open(30, 100), 50);
        window.receive(70);
        // nothing is free, but one event may always come
        assert_eq!(window.open(30, 100), 1);
    }

    #[test]
    fn a_window_that_shrinks_gives_nothing_until_it_has_shrunk() {
        let mut window = Window::default();
        window.open(0, 100);
        window.receive(100);
        assert_eq!(window.grant(60, 20), None);
        assert_eq!(window.grant(100, 20), Some(20));
    }
}
