//! The rows of a queue's store, and how its counting goes on. No IO.
//!
//! Of a topic, the events that wait have consecutive sequences, [`TopicRow::first`] up to but without
//! [`TopicRow::next`]. What is counted is derived from these rows alone, and every change of a row is one atomic batch
//! with the events that it speaks of, so a store that opens is always right.

use std::collections::BTreeMap;
use std::ops::Range;

use canal_proto::{Code, TopicId};

use super::QueueOptions;
use crate::Error;

/// What an event takes in the store beside its own bytes, about: its key, and its share of a page.
pub(super) const EVENT_OVERHEAD: u64 = 64;
/// Topics that a queue remembers: each has a producer for ever, and a publisher of up to a few megabytes while its
/// events are handed over.
pub(super) const MAX_TOPICS: usize = 256;

/// A topic: who publishes to it, and what waits.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct TopicRow {
    /// The producer, 16 bytes. It stays the same for as long as the topic does.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) producer: Vec<u8>,
    /// Sequence of the oldest event without a receipt.
    #[prost(uint64, tag = "2")]
    pub(super) first: u64,
    /// Sequence that the next event gets.
    #[prost(uint64, tag = "3")]
    pub(super) next: u64,
    /// Bytes of the events that wait, as they are stored, with [`EVENT_OVERHEAD`] for each.
    #[prost(uint64, tag = "4")]
    pub(super) bytes: u64,
    /// What went wrong last, since the last receipt.
    #[prost(message, optional, tag = "5")]
    pub(super) trouble: Option<TroubleRow>,
    /// Id of the topic that the producer publishes to. 0: nothing was sent to any yet, or by a program that did not
    /// note it.
    #[prost(uint64, tag = "6")]
    pub(super) topic: u64,
    /// Id of its group.
    #[prost(uint64, tag = "7")]
    pub(super) group: u64,
    /// What has to be taken from a sequence here to have the producer's: those up to this one were an earlier
    /// producer's, for an earlier topic of this name.
    #[prost(uint64, tag = "8")]
    pub(super) base: u64,
}

/// Why events are not handed over.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct TroubleRow {
    /// The error's code.
    #[prost(enumeration = "Code", tag = "1")]
    pub(super) code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub(super) message: String,
    /// Nothing is tried any more.
    #[prost(bool, tag = "3")]
    pub(super) stopped: bool,
}

impl TopicRow {
    pub(super) fn waiting(&self) -> u64 {
        self.next.saturating_sub(self.first)
    }
}

/// What waits, by topic, and what may be added.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    pub(super) topics: BTreeMap<String, TopicRow>,
}

impl Ledger {
    /// Events and bytes that wait.
    pub(super) fn totals(&self) -> (u64, u64) {
        let rows = self.topics.values();
        rows.fold((0, 0), |(events, bytes), row| (events + row.waiting(), bytes + row.bytes))
    }

    /// Gives sequences to events of these sizes, all or none; `producer` is for a topic that is new.
    pub(super) fn admit(
        &mut self,
        topic: &str,
        sizes: &[u64],
        options: &QueueOptions,
        producer: impl FnOnce() -> Result<[u8; 16], Error>,
    ) -> Result<Range<u64>, Error> {
        let (events, bytes) = self.totals();
        let (more, size) = (sizes.len() as u64, sizes.iter().map(|size| size + EVENT_OVERHEAD).sum::<u64>());
        if events + more > options.max_events || bytes + size > options.max_bytes {
            let full_of_events = events + more > options.max_events;
            let message = format!(
                "the queue is full: {events} events of {} and {bytes} bytes of {} wait{}; put it in again when some \
                 have been handed over, or give the queue more room",
                options.max_events,
                options.max_bytes,
                self.crowded_by(topic, full_of_events)
            );
            return Err(Error::new(Code::WouldBlock, message));
        }
        if !self.topics.contains_key(topic) {
            if self.topics.len() >= MAX_TOPICS {
                let message = format!(
                    "the queue has {MAX_TOPICS} topics, which is the most: use another directory for `{topic}`"
                );
                return Err(Error::new(Code::TooLarge, message));
            }
            let producer = producer()?.to_vec();
            self.topics.insert(topic.to_owned(), TopicRow { producer, first: 1, next: 1, ..TopicRow::default() });
        }
        // it is there: it was just looked for or inserted
        let row = self.topics.entry(topic.to_owned()).or_default();
        let first = row.next;
        row.next += more;
        row.bytes += size;
        Ok(first..row.next)
    }

    /// Which other topic takes most of the room, if one does, and what keeps it.
    fn crowded_by(&self, topic: &str, full_of_events: bool) -> String {
        let share = |row: &TopicRow| if full_of_events { row.waiting() } else { row.bytes };
        let Some((name, row)) = self.topics.iter().max_by_key(|(_, row)| share(row)).filter(|(name, _)| *name != topic)
        else {
            return String::new();
        };
        let why = row.trouble.as_ref().map_or_else(String::new, |trouble| {
            let stopped = if trouble.stopped { "which has stopped: " } else { "" };
            format!(" ({stopped}{})", trouble.message)
        });
        format!(
            ", {} events and {} bytes of them for `{name}`{why}, which `canal queue rm` can discard",
            row.waiting(),
            row.bytes
        )
    }

    /// Says which topic has this name now, before anything is sent to it; tells whether that was news.
    ///
    /// A topic that was made again under its name has a larger id. Nothing of the events that wait was ever sent to it,
    /// so it gets a new producer, which begins at 1 with the oldest of them. To the same topic only the same producer
    /// ever publishes, and never to an older one: either could double what it has.
    pub(super) fn bind(
        &mut self,
        name: &str,
        topic: u64,
        group: u64,
        producer: impl FnOnce() -> Result<[u8; 16], Error>,
    ) -> Result<bool, Error> {
        let Some(row) = self.topics.get_mut(name) else { return Ok(false) };
        match row.topic {
            known if (known, row.group) == (topic, group) => return Ok(false),
            0 => {}
            known if known < topic => {
                row.producer = producer()?.to_vec();
                row.base = row.first.saturating_sub(1);
                row.trouble = None;
            }
            known => {
                let message = format!(
                    "the mesh names an older `{name}` (topic {}) than this queue has published to (topic {}): either \
                     what is known of it is about to be renewed, or this is another mesh, which needs a queue of its \
                     own; `canal queue rm` gives up what waits",
                    TopicId(topic),
                    TopicId(known)
                );
                return Err(Error::new(Code::UnknownTopic, message));
            }
        }
        (row.topic, row.group) = (topic, group);
        Ok(true)
    }

    /// Forgets a topic and what waits for it, and returns which events those are.
    pub(super) fn discard(&mut self, topic: &str) -> Result<Range<u64>, Error> {
        let row = self.topics.remove(topic).ok_or_else(|| {
            Error::new(
                Code::UnknownTopic,
                format!("the queue has nothing for `{topic}`: `canal queue ls` lists what it has"),
            )
        })?;
        Ok(row.first..row.next)
    }

    /// Forgets the events of a topic up to this sequence, which have receipts, and returns which they are. Their bytes
    /// are counted until [`Ledger::release`].
    pub(super) fn settle(&mut self, topic: &str, through: u64) -> Range<u64> {
        let Some(row) = self.topics.get_mut(topic) else { return 0..0 };
        let gone = row.first..(through + 1).clamp(row.first, row.next);
        if !gone.is_empty() {
            row.first = gone.end;
            row.trouble = None;
        }
        gone
    }

    /// Counts bytes that are gone.
    pub(super) fn release(&mut self, topic: &str, sizes: impl IntoIterator<Item = u64>) {
        if let Some(row) = self.topics.get_mut(topic) {
            let size: u64 = sizes.into_iter().map(|size| size + EVENT_OVERHEAD).sum();
            row.bytes = row.bytes.saturating_sub(size);
        }
    }

    /// Notes what went wrong; tells whether that was news.
    pub(super) fn note(&mut self, topic: &str, trouble: Option<TroubleRow>) -> bool {
        let Some(row) = self.topics.get_mut(topic) else { return false };
        let kind = |trouble: &Option<TroubleRow>| trouble.as_ref().map(|trouble| (trouble.code, trouble.stopped));
        let news = kind(&row.trouble) != kind(&trouble);
        if news {
            row.trouble = trouble;
        }
        news
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use prost::Message;

    use super::*;

    const ROOM: QueueOptions = QueueOptions { max_events: 3, max_bytes: 1000 };

    #[test]
    fn a_row_keeps_its_bytes() {
        let trouble = TroubleRow { code: Code::SequenceGap.into(), message: "no".into(), stopped: true };
        let trouble = Some(trouble);
        let row = TopicRow { producer: vec![7; 16], first: 2, next: 300, bytes: 5, trouble, ..TopicRow::default() };
        let bytes = row.encode_to_vec();
        let golden = [
            &[0x0a, 16][..],
            &[7; 16],
            &[0x10, 2, 0x18, 0xac, 0x02, 0x20, 5, 0x2a, 8, 0x08, 16, 0x12, 2, b'n', b'o', 0x18, 1],
        ]
        .concat();
        assert_eq!(bytes, golden);
        assert_eq!(TopicRow::decode(bytes.as_slice()).unwrap(), row);
        let bound = TopicRow { topic: 9, group: 300, base: 1, ..TopicRow::default() };
        assert_eq!(bound.encode_to_vec(), [0x30, 9, 0x38, 0xac, 0x02, 0x40, 1]);
    }

    #[test]
    fn a_topic_that_was_made_again_gets_a_new_producer_and_the_same_one_never() {
        let mut ledger = Ledger::default();
        ledger.admit("a", &[1, 1], &ROOM, || Ok([1; 16])).unwrap();
        let row = |ledger: &Ledger| {
            let row = &ledger.topics["a"];
            (row.producer[0], row.first, row.next, row.base, row.topic)
        };
        assert!(ledger.bind("a", 5, 7, || Ok([2; 16])).unwrap(), "it was found");
        assert_eq!(row(&ledger), (1, 1, 3, 0, 5));
        ledger.settle("a", 1);
        assert!(!ledger.bind("a", 5, 7, || Ok([2; 16])).unwrap(), "it is the same");
        assert_eq!(row(&ledger), (1, 2, 3, 0, 5));
        ledger.note("a", Some(TroubleRow { code: Code::UnknownTopic.into(), ..TroubleRow::default() }));
        assert!(ledger.bind("a", 9, 7, || Ok([2; 16])).unwrap(), "it is another");
        assert_eq!((row(&ledger), &ledger.topics["a"].trouble), ((2, 2, 3, 1, 9), &None));
        // hints of before, and another mesh: neither changes a thing
        for (topic, group) in [(5, 7), (9, 8), (1, 1)] {
            let error = ledger.bind("a", topic, group, || Ok([3; 16])).unwrap_err();
            assert_eq!(error.code, Code::UnknownTopic);
            assert!(error.message.starts_with("the mesh names an older `a`"), "{error}");
        }
        assert_eq!(row(&ledger), (2, 2, 3, 1, 9));
        assert!(!ledger.bind("b", 1, 1, || Ok([3; 16])).unwrap());
    }

    #[test]
    fn what_is_full_says_which_other_topic_takes_the_room() {
        let mut ledger = Ledger::default();
        ledger.admit("a", &[1], &ROOM, || Ok([1; 16])).unwrap();
        ledger.admit("b", &[1, 1], &ROOM, || Ok([1; 16])).unwrap();
        let full = |ledger: &mut Ledger, topic: &str| {
            let error = ledger.admit(topic, &[1], &ROOM, || Ok([1; 16])).unwrap_err();
            assert_eq!(error.code, Code::WouldBlock);
            error.message
        };
        assert!(
            full(&mut ledger, "a")
                .contains("1000 wait, 2 events and 130 bytes of them for `b`, which `canal queue rm`")
        );
        assert!(full(&mut ledger, "b").contains("bytes of 1000 wait; put it in"), "its own topic is no news");
        let gap = TroubleRow { code: Code::SequenceGap.into(), message: "a gap".into(), stopped: true };
        ledger.note("b", Some(gap));
        assert!(full(&mut ledger, "c").contains("for `b` (which has stopped: a gap), which"));
        assert_eq!(ledger.discard("c").unwrap_err().code, Code::UnknownTopic);
        assert_eq!(ledger.discard("b").unwrap(), 1..3);
        assert_eq!(ledger.totals(), (1, 65));
        assert_eq!(ledger.admit("b", &[1], &ROOM, || Ok([4; 16])).unwrap(), 1..2, "it begins anew");
        assert_eq!(ledger.topics["b"].producer, [4; 16]);
    }

    #[test]
    fn sequences_are_given_without_gaps_and_never_again() {
        let mut ledger = Ledger::default();
        let producer = || Ok([1; 16]);
        assert_eq!(ledger.admit("a", &[1, 1], &ROOM, producer).unwrap(), 1..3);
        assert_eq!(ledger.admit("b", &[1], &ROOM, producer).unwrap(), 1..2);
        let full = ledger.admit("a", &[1], &ROOM, producer).unwrap_err();
        assert_eq!(full.code, Code::WouldBlock);
        assert!(full.message.starts_with("the queue is full: 3 events of 3 and 195 bytes of 1000 wait"), "{full}");
        assert_eq!(ledger.settle("a", 1), 1..2);
        assert_eq!(ledger.settle("a", 1), 2..2);
        ledger.release("a", [1]);
        assert_eq!(ledger.admit("a", &[1], &ROOM, producer).unwrap(), 3..4);
        // a receipt beyond what is there, and a topic that is not
        assert_eq!((ledger.settle("a", 99), ledger.settle("c", 1)), (2..4, 0..0));
        ledger.release("a", [1, 1]);
        assert_eq!(ledger.totals(), (1, 65));
        assert_eq!(ledger.admit("a", &[1000], &ROOM, producer).unwrap_err().code, Code::WouldBlock);
        assert_eq!(ledger.admit("a", &[800], &ROOM, || Ok([2; 16])).unwrap(), 4..5);
        assert_eq!(ledger.topics["a"].producer, [1; 16]);
    }

    #[test]
    fn topics_are_bounded() {
        let mut ledger = Ledger::default();
        let options = QueueOptions::default();
        for n in 0..MAX_TOPICS {
            ledger.admit(&n.to_string(), &[1], &options, || Ok([1; 16])).unwrap();
        }
        assert_eq!(ledger.admit("more", &[1], &options, || Ok([1; 16])).unwrap_err().code, Code::TooLarge);
        assert_eq!(ledger.admit("0", &[1], &options, || Ok([1; 16])).unwrap(), 2..3);
    }

    #[test]
    fn trouble_is_noted_once_and_forgotten_with_the_next_receipt() {
        let mut ledger = Ledger::default();
        ledger.admit("a", &[1, 1], &ROOM, || Ok([1; 16])).unwrap();
        let trouble =
            |code: Code, message: &str| Some(TroubleRow { code: code.into(), message: message.into(), stopped: false });
        assert!(ledger.note("a", trouble(Code::Unreachable, "1")));
        assert!(!ledger.note("a", trouble(Code::Unreachable, "2")));
        assert!(ledger.note("a", trouble(Code::UnknownTopic, "3")));
        assert!(!ledger.note("b", trouble(Code::UnknownTopic, "3")));
        ledger.settle("a", 0);
        assert!(ledger.topics["a"].trouble.is_some());
        ledger.settle("a", 1);
        assert!(ledger.topics["a"].trouble.is_none());
    }
}
