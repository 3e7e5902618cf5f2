#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use canal_proto::catalog::Retention;
use canal_proto::event::Event;
use canal_proto::log::{Append, AppendItem, Command, GroupSpec, Kind, Seal, TopicSpec, Trim};
use canal_proto::{ContentHash, MeshId};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use raft::eraftpb::Entry;
use tempfile::TempDir;

use super::*;
use crate::core::log::Compacted;
use crate::core::machine::{Place, Reply};
use crate::core::sealing;
use crate::log_store::GroupWrite;
use crate::state_store::{self, Backend};

pub(crate) const GROUP: GroupId = GroupId(9);
pub(crate) const TOPICS: [TopicId; 2] = [TopicId(3), TopicId(4)];

/// A replica without Raft: entries are written to a real log and applied by the state machine to a real store.
pub(crate) struct Bench {
    pub dir: TempDir,
    pub kv: Arc<dyn StateStore>,
    pub log: LogStore,
    pub files: Files,
    pub index: u64,
    pub published: [Vec<Event>; 2],
}

impl Bench {
    pub fn new(backend: Backend) -> Self {
        let bench = Self::empty(backend);
        let mut batch = WriteBatch::default();
        let mut txn = Txn::new(GROUP, bench.kv.as_ref(), &mut batch);
        TOPICS.iter().for_each(|topic| txn.put(Keys(GROUP).topic_only(Table::Topics, *topic), &Topic::default()));
        bench.kv.write(&batch).unwrap();
        bench
    }

    /// A replica that has nothing.
    pub fn empty(backend: Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| -> std::path::PathBuf { Path::join(dir.path(), name) };
        let kv = state_store::open(&at("state"), backend, 8 << 20).unwrap();
        let log = LogStore::open(&at("log"), log_store::Options::small()).unwrap();
        let files = Files::open(&at("files")).unwrap();
        Self { dir, kv, log, files, index: 0, published: Default::default() }
    }

    pub fn view(&self) -> View {
        View::new(GROUP, self.kv.clone(), self.log.clone(), self.files.clone())
    }

    /// Commits and applies a command.
    pub fn command(&mut self, kind: Kind) -> Reply {
        self.index += 1;
        let command = Command { time_ms: 1000 + self.index, kind: Some(kind) };
        let entry = Entry { index: self.index, term: 1, data: command.encode_to_vec().into(), ..Entry::default() };
        let write = GroupWrite { group: GROUP, entries: vec![entry], ..GroupWrite::default() };
        self.log.write(&[write], true).unwrap();
        let place = Place { mesh: MeshId([1; 16]), group: GROUP, namespace: "n", index: self.index, term: 1 };
        let mut batch = WriteBatch::default();
        let mut txn = Txn::new(GROUP, self.kv.as_ref(), &mut batch);
        let (reply, _) = machine::apply(&mut txn, place, &command).unwrap();
        txn.put(
            Keys(GROUP).one(Table::Applied),
            &crate::core::rows::Applied { index: self.index, ..crate::core::rows::Applied::default() },
        );
        self.kv.write(&batch).unwrap();
        reply
    }

    /// Publishes events of these sizes to each of the topics, in one entry.
    pub fn publish(&mut self, sizes: [&[usize]; 2]) {
        let mut items = Vec::new();
        for ((topic, sizes), published) in TOPICS.iter().zip(sizes).zip(&mut self.published) {
            if sizes.is_empty() {
                continue;
            }
            let first_sequence = published.len() as u64 + 1;
            let event = |(n, size): (usize, &usize)| Event {
                time_ms: 1000 + self.index,
                ..Event::new(vec![(first_sequence as usize + n) as u8; *size])
            };
            let events: Vec<_> = sizes.iter().enumerate().map(event).collect();
            published.extend(events.clone());
            let producer = Bytes::from_static(&[7; 16]);
            items.push(AppendItem { topic: topic.0, producer, first_sequence, events, origin: 0 });
        }
        let Reply::Appended(results) = self.command(Kind::Append(Append { items })) else { panic!() };
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Moves what was published up to an entry to segments.
    pub fn seal(&mut self, through: u64) {
        let Some(plan) = sealing::plan(self.kv.as_ref(), GROUP, through).unwrap() else { return };
        let view = self.view();
        let segment = |part: &sealing::Part| {
            let mut writer = self.files.segment(part.topic, part.first).unwrap();
            while writer.next() < part.end {
                let replaced = part.replaces.as_ref().filter(|replaced| writer.next() < replaced.end());
                let events = match replaced {
                    Some(replaced) => self.files.events(replaced, writer.next(), 50, 1 << 20).unwrap(),
                    None => view.events(part.topic, writer.next(), 50, 1 << 20).unwrap(),
                };
                for stored in events {
                    if stored.offset < part.end {
                        writer.push(&stored).unwrap();
                    }
                }
            }
            writer.finish().unwrap()
        };
        let segments = plan.parts.iter().map(segment).collect();
        assert_eq!(self.command(Kind::Seal(Seal { through: plan.through, segments })), Reply::Sealed(Ok(())));
    }

    /// Cuts the log up to an entry, and removes rows that are not needed any more.
    pub fn compact(&self, index: u64) {
        let compact = Some(Compacted { index, term: 1, ..Compacted::default() });
        self.log.write(&[GroupWrite { group: GROUP, compact, ..GroupWrite::default() }], true).unwrap();
        let gone = sealing::sealed_locators(self.kv.as_ref(), GROUP, index, usize::MAX / 2).unwrap();
        self.kv.write(&WriteBatch { ops: gone.into_iter().map(|key| (key, None)).collect() }).unwrap();
    }

    /// What stands at an offset.
    pub fn stored(&self, topic: usize, offset: u64) -> Stored {
        let event = self.published[topic][usize::try_from(offset).unwrap()].clone();
        Stored { offset, event, producer: Bytes::from_static(&[7; 16]), sequence: offset + 1 }
    }

    /// Reads everything from every offset, and some readings with limits.
    pub fn reads_all(&self, oldest: [u64; 2]) {
        let view = self.view();
        for (n, topic) in TOPICS.into_iter().enumerate() {
            let next = self.published[n].len() as u64;
            assert_eq!(view.oldest(topic).unwrap(), oldest[n]);
            for from in 0..next + 2 {
                for (max, max_bytes) in [(usize::MAX, usize::MAX), (1, 1), (3, 5000), (0, 1)] {
                    let found = view.events(topic, from, max, max_bytes);
                    if from < oldest[n] {
                        assert!(
                            matches!(found, Err(Error::OutOfRange { oldest: told }) if told == oldest[n]),
                            "{found:?}"
                        );
                        continue;
                    }
                    let mut bytes = 0;
                    let fits = |stored: &Stored| {
                        bytes += stored.event.encoded_len();
                        bytes <= max_bytes || stored.offset == from
                    };
                    let wanted = (from..next).map(|offset| self.stored(n, offset));
                    let wanted: Vec<_> = wanted.take(max).take_while(fits).collect();
                    assert!(found.unwrap() == wanted, "topic {n} from {from}, {max} events, {max_bytes} bytes");
                }
            }
        }
    }
}

#[test]
fn events_are_found_wherever_they_are() {
    let mut bench = Bench::new(Backend::Fjall);
    bench.reads_all([0, 0]);
    bench.publish([&[10, 20], &[]]);
    bench.publish([&[5], &[40_000, 3, 0]]);
    bench.reads_all([0, 0]);
    bench.seal(2);
    // both in a segment and in the log
    bench.reads_all([0, 0]);
    bench.compact(2);
    bench.publish([&[7, 7], &[1]]);
    bench.reads_all([0, 0]);
    bench.publish([&[1], &[]]);
    bench.publish([&[2; 30], &[]]);
    bench.seal(5);
    bench.compact(4);
    bench.reads_all([0, 0]);
    assert_eq!(bench.view().sealed_through().unwrap(), 5);
    assert_eq!(bench.view().sealed(TOPICS[0]).unwrap(), 6);
    assert_eq!(bench.view().segments(TOPICS[0]).unwrap().len(), 1, "the small one was made anew");
    bench.command(Kind::Trim(Trim { topic: TOPICS[0].0, before: 4 }));
    bench.reads_all([4, 0]);
    assert_eq!(bench.view().all_segments().unwrap().len(), 2);
}

#[test]
fn a_segment_that_is_not_here_is_read_from_the_log_or_elsewhere() {
    let mut bench = Bench::new(Backend::Fjall);
    bench.publish([&[10; 5], &[1]]);
    bench.publish([&[10; 5], &[1]]);
    bench.seal(2);
    let segment = bench.view().segments(TOPICS[0]).unwrap().remove(0);
    let hash = ContentHash::from_slice(&segment.hash).unwrap();
    let file = bench.files.whole(&hash).unwrap().unwrap();
    bench.files.remove(&hash).unwrap();
    bench.reads_all([0, 0]);
    bench.publish([&[10; 5], &[1]]);
    bench.compact(2);
    let view = bench.view();
    for from in [0, 4, 9] {
        assert!(matches!(view.events(TOPICS[0], from, 100, 1 << 20), Err(Error::Lacking)), "{from}");
    }
    assert_eq!(view.events(TOPICS[0], 10, 100, 1 << 20).unwrap().len(), 5);
    assert_eq!(view.events(TOPICS[1], 0, 100, 1 << 20).unwrap().len(), 3, "the other topic's segment is here");
    bench.files.put(&file).unwrap();
    bench.reads_all([0, 0]);
    // damaged, and told
    let path = bench.dir.path().join("files").join(hash.to_string());
    let mut damaged = file.to_vec();
    damaged[60] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(matches!(view.events(TOPICS[0], 0, 100, 1 << 20), Err(Error::Lacking)));
    assert_eq!(bench.files.take_damaged(), [hash]);
}

#[derive(Debug, Clone)]
enum Step {
    Publish(Vec<usize>, Vec<usize>),
    Seal(u8),
    Compact(u8),
    Trim(bool, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = || proptest::collection::vec(prop_oneof![9 => 0_usize..50, 1 => 30_000_usize..300_000], 0..6);
    let step = prop_oneof![
        5 => (sizes(), sizes()).prop_map(|(a, b)| Step::Publish(a, b)),
        2 => any::<u8>().prop_map(Step::Seal),
        2 => any::<u8>().prop_map(Step::Compact),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(topic, part)| Step::Trim(topic, part)),
        1 => Just(Step::Seal(0)),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Every event is read as it was published, whatever is sealed, cut and trimmed in between.
#[test]
fn sealing_and_cutting_change_no_event() {
    let mut runner = TestRunner::new(Config { cases: 25, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&steps(), |steps| {
        let mut bench = Bench::new(Backend::Fjall);
        let mut oldest = [0, 0];
        for step in steps {
            match step {
                Step::Publish(a, b) if a.is_empty() && b.is_empty() => {}
                Step::Publish(a, b) => bench.publish([&a, &b]),
                Step::Seal(back) => bench.seal(bench.index.saturating_sub((back % 4).into())),
                Step::Compact(back) => {
                    let sealed = bench.view().sealed_through().unwrap();
                    let first = bench.log.load(GROUP).unwrap().unwrap_or_default().first;
                    let index = sealed.saturating_sub((back % 3).into());
                    if index >= first.max(1) {
                        bench.compact(index);
                    }
                }
                Step::Trim(topic, part) => {
                    let n = usize::from(topic);
                    let before = bench.published[n].len() as u64 * u64::from(part) / 255;
                    bench.command(Kind::Trim(Trim { topic: TOPICS[n].0, before }));
                    // whole entries go, or events of a segment
                    let now = bench.view().oldest(TOPICS[n]).unwrap();
                    assert!((oldest[n]..=before.max(oldest[n])).contains(&now));
                    oldest[n] = now;
                }
            }
        }
        bench.reads_all(oldest);
        Ok(())
    });
    ran.unwrap();
}

/// An event's age is how long it has been here, whatever the device says that made it.
#[test]
fn age_begins_when_an_event_is_appended() {
    let mut bench = Bench::new(Backend::Fjall);
    let retention = Some(Retention { age_ms: 100, ..Retention::default() });
    let topics = TOPICS.map(|topic| TopicSpec { id: topic.0, name: topic.to_string(), retention });
    bench.command(Kind::Spec(GroupSpec { version: 1, topics: topics.to_vec(), ..GroupSpec::default() }));
    let begun = 1000 + bench.index;
    for (sequence, time_ms) in (1..).zip([0, 1, u64::MAX, 1001]) {
        let events = vec![Event { time_ms, ..Event::new("event") }];
        let item = AppendItem {
            topic: TOPICS[0].0,
            producer: vec![1; 16].into(),
            first_sequence: sequence,
            events,
            origin: 0,
        };
        bench.command(Kind::Append(Append { items: vec![item] }));
    }
    let goes = |bench: &Bench, now_ms: u64| {
        let decision = bench.view().retention(TOPICS[0], now_ms).unwrap();
        decision.trim.map(|trim| trim.before)
    };
    assert_eq!(
        (goes(&bench, begun + 101), goes(&bench, begun + 103), goes(&bench, begun + 200)),
        (None, Some(2), Some(4))
    );
}
