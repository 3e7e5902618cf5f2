//! The rows of a group's applied state, as they are stored. `docs/format.md` lists them with their keys.

use bytes::Bytes;
use canal_proto::catalog::GroupInfo;
use canal_proto::limits::RECEIPT_WINDOW;
use canal_proto::log::Emit;
use canal_proto::peer::Replica;

/// How far the state is: written in the same batch as what the entries changed.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Applied {
    /// Index of the last entry applied.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Index of the first entry of that term.
    #[prost(uint64, tag = "3")]
    pub began: u64,
}

/// The group's configuration as of the applied index.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Configuration {
    /// Voters.
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    /// Learners.
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    /// Voters of the outgoing half of a joint configuration.
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Learners once the outgoing half is gone.
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    /// Whether Raft leaves the joint configuration by itself.
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
    /// Index of the entry that made it; 0 for the first.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// All replicas that it names.
    #[prost(message, repeated, tag = "7")]
    pub replicas: Vec<Replica>,
    /// The largest replica id that was ever used.
    #[prost(uint64, tag = "8")]
    pub last_id: u64,
}

/// A topic.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Topic {
    /// Offset that the next event gets.
    #[prost(uint64, tag = "1")]
    pub next: u64,
    /// Bytes of payload appended.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Producers remembered.
    #[prost(uint64, tag = "3")]
    pub producers: u64,
    /// Offset of the oldest event that can be read; never above `sealed`.
    #[prost(uint64, tag = "4")]
    pub oldest: u64,
    /// Events before this offset are in segments, or gone. Locators below it are the replica's own; never above `next`.
    #[prost(uint64, tag = "5")]
    pub sealed: u64,
    /// Bytes of payload that went with the events before `oldest`. Inside a segment they are taken to be spread evenly.
    #[prost(uint64, tag = "6")]
    pub trimmed: u64,
}

impl Topic {
    /// Bytes of payload that are kept.
    pub fn kept(&self) -> u64 {
        self.bytes.saturating_sub(self.trimmed)
    }
}

/// Where a run of consecutive events stands in the Raft log.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Locator {
    /// Index of the entry.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Number of the append item or of the outcome in it.
    #[prost(uint32, tag = "2")]
    pub part: u32,
    /// Events.
    #[prost(uint32, tag = "3")]
    pub count: u32,
    /// Bytes of payload appended to the topic before them.
    #[prost(uint64, tag = "4")]
    pub before: u64,
}

/// What is remembered of a producer in a topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Producer {
    /// Its last sequence.
    #[prost(uint64, tag = "1")]
    pub last: u64,
    /// Where its latest events went, oldest first.
    #[prost(message, repeated, tag = "2")]
    pub runs: Vec<Run>,
}

/// Consecutive sequences at consecutive offsets.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Run {
    /// First sequence.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Its offset.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Events.
    #[prost(uint64, tag = "3")]
    pub count: u64,
}

impl Producer {
    /// Notes that the next `count` sequences went to `offset` and on.
    pub fn note(&mut self, offset: u64, count: u64) {
        let sequence = self.last + 1;
        self.last += count;
        match self.runs.last_mut() {
            Some(run) if run.offset + run.count == offset => run.count += count,
            _ => self.runs.push(Run { sequence, offset, count }),
        }
        let oldest = self.last.saturating_sub(RECEIPT_WINDOW);
        let outside = self.runs.iter().take_while(|run| run.sequence + run.count <= oldest + 1).count();
        self.runs.drain(..outside.max(self.runs.len().saturating_sub(MAX_RUNS)));
    }

    /// Offset of a sequence that was appended, and how many sequences follow on from it at the following offsets.
    pub fn find(&self, sequence: u64) -> Option<(u64, u64)> {
        self.runs
            .iter()
            .find(|run| (run.sequence..run.sequence + run.count).contains(&sequence))
            .map(|run| (run.offset + (sequence - run.sequence), run.sequence + run.count - sequence))
    }
}

/// Runs remembered of a producer. The row is written with each of its publishes, so it has to stay small; a publisher has
/// far fewer requests on their way than this, and each is one run.
pub const MAX_RUNS: usize = 256;

/// An effect that waits to be delivered to another group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutboxRow {
    /// The effect.
    #[prost(message, required, tag = "1")]
    pub emit: Emit,
}

/// What an outbox knows of a topic elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OutboxTopic {
    /// Sequence of the last effect that was put in.
    #[prost(uint64, tag = "1")]
    pub last: u64,
    /// Sequence of the last effect that was taken out.
    #[prost(uint64, tag = "2")]
    pub acked: u64,
}

/// A counter.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Counter {
    /// Its value.
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

/// A group as the catalog stores it.
pub type CatalogGroup = GroupInfo;

/// A component whose pieces have begun to arrive.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BlobRow {
    /// The piece.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_finds_what_it_sent_within_the_window() {
        let mut producer = Producer::default();
        producer.note(10, 3);
        producer.note(13, 2);
        producer.note(20, 1);
        assert_eq!(producer.runs.len(), 2);
        assert_eq!(producer.find(1), Some((10, 5)));
        assert_eq!(producer.find(5), Some((14, 1)));
        assert_eq!(producer.find(6), Some((20, 1)));
        assert_eq!(producer.find(7), None);
        for at in 0..MAX_RUNS as u64 {
            producer.note(100 + 2 * at, 1);
        }
        assert_eq!(producer.find(6), None);
        assert_eq!(producer.find(7), Some((100, 1)));
        assert_eq!(producer.runs.len(), MAX_RUNS);
        producer.note(10_000, RECEIPT_WINDOW);
        assert_eq!(producer.find(7), None);
        assert_eq!(producer.runs.len(), 1);
    }
}
