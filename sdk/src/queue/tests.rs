//! The queue against a model, over a medium that can crash; and what its thread promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::rows::EVENT_OVERHEAD;
use super::store::tests::disk::{Dice, Disk};
use super::*;

/// What may happen to a queue.
#[derive(Debug, Clone)]
enum Step {
    /// Commands that arrive together.
    Turn(Vec<Asked>),
    /// It is closed and opened again.
    Reopen,
    /// The power fails, and everything that was not synced is lost or torn.
    Crash(u64),
}

#[derive(Debug, Clone)]
enum Asked {
    Put {
        topic: usize,
        sizes: Vec<usize>,
    },
    /// A receipt comes for so many events from the oldest on.
    Settle {
        topic: usize,
        events: u64,
    },
    /// The topic is made anew under its name.
    Remade {
        topic: usize,
    },
    /// What waits is given up.
    Discard {
        topic: usize,
    },
}

const TOPICS: [&str; 3] = ["a", "a/b", "b"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let put = (0..3usize, prop::collection::vec(0..3000usize, 1..4));
    let asked = prop_oneof![
        3 => put.prop_map(|(topic, sizes)| Asked::Put { topic, sizes }),
        2 => (0..3usize, 0..6u64).prop_map(|(topic, events)| Asked::Settle { topic, events }),
        1 => (0..3usize).prop_map(|topic| Asked::Remade { topic }),
        1 => (0..3usize).prop_map(|topic| Asked::Discard { topic }),
    ];
    let step = prop_oneof![
        8 => prop::collection::vec(asked, 1..6).prop_map(Step::Turn),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..25)
}

/// The next sequence, and what waits: sequence and event.
type Topic = (u64, VecDeque<(u64, Event)>);

#[derive(Default)]
struct Model {
    topics: BTreeMap<&'static str, Topic>,
}

impl Model {
    fn waits(&self) -> (u64, u64) {
        let events = self.topics.values().flat_map(|(_, waiting)| waiting);
        events
            .fold((0, 0), |(count, bytes), (_, event)| (count + 1, bytes + event.encoded_len() as u64 + EVENT_OVERHEAD))
    }

    fn check(&self, keeper: &mut Keeper, producers: &mut BTreeMap<String, ProducerId>) {
        let shown = keeper.shared().waiting();
        assert_eq!(shown.len(), self.topics.len());
        for (shown, (topic, (next, waiting))) in shown.iter().zip(&self.topics) {
            assert_eq!(shown.topic, *topic);
            assert_eq!(shown.first + shown.events, *next, "{topic}: the next sequence");
            assert_eq!(shown.events, waiting.len() as u64, "{topic}: events");
            assert_eq!(shown.oldest_ms, waiting.front().map(|(_, event)| event.time_ms), "{topic}: the oldest's time");
            let producer = *producers.entry((*topic).to_owned()).or_insert(shown.producer);
            assert_eq!(producer, shown.producer, "{topic}: the producer stays");
            let (reply, mut read) = oneshot::channel();
            let (topic, from) = ((*topic).to_owned(), shown.first);
            keeper.take(vec![Command::Read { topic, from, max: usize::MAX, max_bytes: usize::MAX, reply }]);
            let events: Vec<Event> = waiting.iter().map(|(_, event)| event.clone()).collect();
            assert_eq!(read.try_recv().unwrap().unwrap(), events);
        }
        assert_eq!(shown.iter().map(|shown| shown.bytes).sum::<u64>(), self.waits().1, "bytes");
    }
}

const ROOM: QueueOptions = QueueOptions { max_events: 20, max_bytes: 20_000 };

fn follow(steps: Vec<Step>) {
    let mut disk = Disk::default();
    let open = |disk: &Disk| Keeper::new(Store::over(disk.clone()).unwrap(), ROOM).unwrap();
    let mut keeper = open(&disk);
    let (mut model, mut producers, mut time) = (Model::default(), BTreeMap::new(), 0);
    // topics made so far, and of each name that was found, the sequences that were earlier producers'
    let (mut made, mut bases) = (0, BTreeMap::new());
    for step in steps {
        match step {
            Step::Reopen => {
                drop(keeper);
                keeper = open(&disk);
            }
            Step::Crash(seed) => {
                let image = disk.crashed(disk.written(), &mut Dice(seed | 1));
                drop(keeper);
                disk = image;
                keeper = open(&disk);
            }
            Step::Turn(asked) => {
                // bytes are given back at the end of a turn
                let (_, mut bytes_before) = model.waits();
                let (mut turn, mut answers, mut added) = (Vec::new(), Vec::new(), 0);
                for asked in asked {
                    match asked {
                        Asked::Put { topic, sizes } => {
                            let topic = TOPICS[topic];
                            time += 1;
                            let event = |size| Event { time_ms: time, ..Event::new(vec![b'x'; size]) };
                            let events: Vec<Event> = sizes.into_iter().map(event).collect();
                            let size: u64 = events.iter().map(|e| e.encoded_len() as u64 + EVENT_OVERHEAD).sum();
                            let count = events.len() as u64;
                            let fits = model.waits().0 + count <= ROOM.max_events
                                && bytes_before + added + size <= ROOM.max_bytes;
                            let (reply, answer) = oneshot::channel();
                            let encoded = events.iter().map(Event::encode_to_vec).collect();
                            turn.push(Command::Put { topic: topic.into(), events: encoded, reply });
                            let mut expected = None;
                            if fits {
                                added += size;
                                let (next, waiting) = model.topics.entry(topic).or_insert((1, VecDeque::new()));
                                expected = Some(*next..*next + count);
                                waiting.extend((*next..).zip(events));
                                *next += count;
                            }
                            answers.push((answer, expected));
                        }
                        Asked::Settle { topic, events } => {
                            let topic = TOPICS[topic];
                            let Some((_, waiting)) = model.topics.get_mut(topic) else { continue };
                            let Some((first, _)) = waiting.front() else { continue };
                            let through = first + events;
                            waiting.retain(|(sequence, _)| *sequence > through);
                            let (reply, _) = oneshot::channel();
                            turn.push(Command::Settle { topic: topic.into(), through, reply });
                        }
                        Asked::Remade { topic } => {
                            made += 1;
                            if let Some((next, waiting)) = model.topics.get(TOPICS[topic]) {
                                let first = waiting.front().map_or(*next, |(sequence, _)| *sequence);
                                let again = bases.contains_key(TOPICS[topic]);
                                bases.insert(TOPICS[topic], if again { first - 1 } else { 0 });
                                if again {
                                    producers.remove(TOPICS[topic]);
                                }
                            }
                            let (reply, _) = oneshot::channel();
                            turn.push(Command::Bind { topic: TOPICS[topic].into(), id: made, group: 1, reply });
                        }
                        Asked::Discard { topic } => {
                            model.topics.remove(TOPICS[topic]);
                            producers.remove(TOPICS[topic]);
                            bases.remove(TOPICS[topic]);
                            // a commit of its own gives all bytes back that were given up before it
                            (bytes_before, added) = (model.waits().1, 0);
                            let (reply, _) = oneshot::channel();
                            turn.push(Command::Discard { topic: TOPICS[topic].into(), reply });
                        }
                    }
                }
                keeper.take(turn);
                for (mut answer, expected) in answers {
                    match (answer.try_recv().unwrap(), expected) {
                        (Ok(sequences), Some(expected)) => assert_eq!(sequences, expected),
                        (Err(error), None) => assert_eq!(error.code, Code::WouldBlock),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        model.check(&mut keeper, &mut producers);
        for shown in keeper.shared().waiting() {
            assert_eq!(shown.base, bases.get(shown.topic.as_str()).copied().unwrap_or(0), "{shown:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_is_what_its_model_is(steps in steps()) {
        follow(steps);
    }
}

#[tokio::test]
async fn puts_that_arrive_together_share_a_sync_and_are_durable_when_they_return() {
    let disk = Disk::default();
    let queue = Queue::begin(Store::over(disk.clone()).unwrap(), QueueOptions::default(), None).unwrap();
    let before = disk.synced();
    let puts = (0..200).map(|n| {
        let (queue, disk) = (queue.clone(), disk.clone());
        async move {
            let sequence = queue.put("t", Event::new(n.to_string())).await.unwrap();
            (sequence, disk.written())
        }
    });
    let put = futures::future::join_all(puts).await;
    assert!(disk.synced() - before < 100, "{} syncs for 200 puts", disk.synced() - before);
    let mut sequences: Vec<u64> = put.iter().map(|(sequence, _)| *sequence).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=200).collect::<Vec<_>>());
    // whatever was not synced when a put returned is lost, and its event is there all the same
    for (sequence, written) in put.into_iter().step_by(20) {
        let keeper = Keeper::new(Store::over(disk.crashed(written, &mut Dice(5))).unwrap(), QueueOptions::default());
        let waiting = keeper.unwrap().shared().waiting();
        assert!(waiting[0].events >= sequence, "{waiting:?} lacks {sequence}");
    }
}

#[tokio::test]
async fn a_disk_that_fails_is_told_from_then_on() {
    let disk = Disk::default();
    let queue = Queue::begin(Store::over(disk.clone()).unwrap(), QueueOptions::default(), None).unwrap();
    queue.put("t", Event::new("kept")).await.unwrap();
    disk.fail();
    for _ in 0..2 {
        let error = queue.put("t", Event::new("lost")).await.unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(error.message.contains("see whether the disk is full or damaged"), "{error}");
    }
    assert_eq!(queue.emptied().await.unwrap_err().code, Code::Internal);
    assert_eq!(queue.len(), 1);
}

#[tokio::test]
async fn who_can_not_open_it_sees_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let seen = async |events: u64| {
        for _ in 0..500 {
            match Queue::status(dir.path()) {
                Some(status) if status.waiting.iter().map(|waiting| waiting.events).sum::<u64>() == events => {
                    return status;
                }
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
        panic!("{events} events are not shown")
    };
    let queue = Queue::open(dir.path(), QueueOptions::default()).unwrap();
    assert!(seen(0).await.waiting.is_empty());
    for n in 1..=5 {
        queue.put("t", Event::new(n.to_string())).await.unwrap();
    }
    // the last of several changes within a second is shown as well
    let status = seen(5).await;
    assert_eq!((status.process, status.waiting), (std::process::id(), queue.waiting()));
    drop(queue);
    assert_eq!(Queue::status(dir.path()), None);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("status")), "{left:?}");
}

#[tokio::test]
async fn an_event_gets_the_time_at_which_it_was_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path(), QueueOptions::default()).unwrap();
    let before = now_ms();
    queue.put("a", Event::new("now")).await.unwrap();
    queue.put("b", Event { time_ms: 77, ..Event::new("then") }).await.unwrap();
    let after = now_ms();
    let oldest: Vec<u64> = queue.waiting().iter().map(|waiting| waiting.oldest_ms.unwrap()).collect();
    assert!(oldest[0] >= before && oldest[0] <= after && oldest[1] == 77, "{oldest:?}");
}

#[tokio::test]
async fn what_can_not_be_put_in_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let none = Queue::open(dir.path(), QueueOptions { max_events: 0, ..QueueOptions::default() });
    assert_eq!(none.err().unwrap().code, Code::InvalidArgument);
    let queue = Queue::open(dir.path(), QueueOptions { max_events: 2, max_bytes: 0 }).unwrap();
    let large = Event::new(vec![0; canal_proto::limits::MAX_PAYLOAD + 1]);
    assert_eq!(queue.put("t", large).await.unwrap_err().code, Code::TooLarge);
    assert_eq!(queue.put("t/+", Event::new("x")).await.unwrap_err().code, Code::InvalidArgument);
    // one of the largest always fits
    queue.put("t", Event::new(vec![0; canal_proto::limits::MAX_PAYLOAD])).await.unwrap();
    assert_eq!(queue.put_all("t", vec![Event::new("1"), Event::new("2")]).await.unwrap_err().code, Code::WouldBlock);
    assert_eq!(queue.put("t", Event::new("1")).await.unwrap(), 2);
    assert_eq!(queue.put("t", Event::new("2")).await.unwrap_err().code, Code::WouldBlock);
    assert_eq!((queue.len(), queue.is_empty()), (2, false));
}
