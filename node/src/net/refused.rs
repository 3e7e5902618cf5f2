//! What this peer refused, counted by reason: nothing that comes from outside is dropped without a trace.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A connection above the number that a peer has.
    Connections,
    /// A stream above the number that a peer serves.
    Streams,
    /// Another version of the protocol, another mesh or namespace.
    Incompatible,
    /// What can't be read: garbage, a length above the limit, an end within a frame, no greeting where one belongs.
    Malformed,
    /// A greeting, or the rest of a frame, that did not come in time.
    Late,
    /// Answers or events that were not taken in time.
    Unread,
    /// More under way than this peer has room for.
    Busy,
}

impl Reason {
    const ALL: [Self; 7] =
        [Self::Connections, Self::Streams, Self::Incompatible, Self::Malformed, Self::Late, Self::Unread, Self::Busy];

    /// Its name in JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Streams => "streams",
            Self::Incompatible => "incompatible",
            Self::Malformed => "malformed",
            Self::Late => "late",
            Self::Unread => "unread",
            Self::Busy => "busy",
        }
    }
}

/// The counts, since the start.
#[derive(Debug, Default)]
pub struct Refused([AtomicU64; Reason::ALL.len()]);

impl Refused {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        if let Some(count) = self.0.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All reasons with their counts.
    pub fn all(&self) -> impl Iterator<Item = (Reason, u64)> {
        let count = |reason: Reason| self.0.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed));
        Reason::ALL.into_iter().map(move |reason| (reason, count(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_count_of_its_own() {
        let refused = Refused::default();
        Reason::ALL.into_iter().for_each(|reason| refused.count(reason));
        refused.count(Reason::Busy);
        let counts: Vec<_> = refused.all().map(|(reason, count)| (reason.name(), count)).collect();
        assert_eq!(counts.first(), Some(&("connections", 1)));
        assert_eq!(counts.last(), Some(&("busy", 2)));
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 8);
    }
}
