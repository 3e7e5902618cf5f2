//! Queues against scripted peers: once, in order, however the device and the mesh come and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;
use std::time::Duration;

use canal_proto::error::WireError;
use canal_proto::{Code, Event};
use canal_sdk::queue::{Queue, QueueOptions, Waiting};

use self::fake::{Behaviour, Fake};

#[path = "support/fake.rs"]
mod fake;

fn open(dir: &Path) -> Queue {
    Queue::open(dir, QueueOptions::default()).unwrap()
}

fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("e{n}")).collect()
}

/// Puts the first in alone and the others in together, so that it takes two syncs.
async fn put_all(queue: &Queue, topic: &str, range: std::ops::Range<u32>) {
    let mut events = names(range).into_iter().map(Event::new);
    queue.put(topic, events.next().unwrap()).await.unwrap();
    queue.put_all(topic, events.collect()).await.unwrap();
}

fn waiting(queue: &Queue, topic: &str) -> Waiting {
    queue.waiting().into_iter().find(|waiting| waiting.topic == topic).unwrap()
}

/// Waits until a topic's trouble has this code, and returns whether it has stopped.
async fn troubled(queue: &Queue, topic: &str, code: Code) -> bool {
    let troubled = async {
        loop {
            match waiting(queue, topic).trouble {
                Some(trouble) if trouble.error.code == code => return trouble.stopped,
                _ => {
                    // the queue's thread syncs in real time, and the paused clock would be hours ahead of it: it stands still
                    // while something blocks
                    let real = || std::thread::sleep(Duration::from_millis(5));
                    tokio::task::spawn_blocking(real).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), troubled).await.expect("the trouble is told")
}

#[tokio::test(start_paused = true)]
async fn what_was_put_in_while_cut_off_is_handed_over_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(3);
    fake.topic("t", 1);
    (1..=3).for_each(|peer| fake.kill(peer));
    let queue = open(dir.path());
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "t", 0..2500).await;
    assert!(!troubled(&queue, "t", Code::Unreachable).await);
    assert_eq!((waiting(&queue, "t").events, queue.handed_over()), (2500, 0));
    (1..=3).for_each(|peer| fake.revive(peer));
    fake.lead(3);
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..2500));
    let left = waiting(&queue, "t");
    assert_eq!((left.events, left.bytes, left.oldest_ms, left.trouble), (0, 0, None, None));
    assert_eq!((left.first, queue.handed_over()), (2501, 2500));
    assert!(fake.batches().len() < 60, "{:?}", fake.batches());
    // and it goes on
    put_all(&queue, "t", 2500..2510).await;
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..2510));
    handing_over.stop().await;
    assert_eq!(fake.count("end"), 0, "the producer stays known");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_restarts_all_the_time_doubles_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let mut put = 0;
    for restart in 0..12_u32 {
        let queue = open(dir.path());
        put_all(&queue, "t", put..put + 30).await;
        put += 30;
        // the request takes effect, its answer does not arrive
        fake.behave(1, Behaviour::HangUpAfter(1 + restart % 4));
        if restart % 3 == 1 {
            fake.lead(u64::from(restart) % 3 + 1);
        }
        let handing_over = queue.hand_over(fake.client(2)).unwrap();
        queue.progressed(u64::from(restart % 4) * 7).await;
        handing_over.stop().await;
        // the other end of what is dropped here has its lock when the next one opens
        drop(queue);
    }
    fake.behave(1, Behaviour::Well);
    let queue = open(dir.path());
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..put));
    handing_over.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_receipt_before_a_crash_is_a_duplicate_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let queue = open(dir.path());
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "t", 0..1).await;
    queue.emptied().await.unwrap();
    // appended, but the device never hears of it
    fake.behave(1, Behaviour::Silent);
    put_all(&queue, "t", 1..5).await;
    while fake.logged("t").len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    handing_over.stop().await;
    assert_eq!(queue.len(), 4);
    drop(queue);
    fake.behave(1, Behaviour::Well);
    let queue = open(dir.path());
    put_all(&queue, "t", 5..8).await;
    let _handing_over = queue.hand_over(fake.client(1)).unwrap();
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..8));
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_does_not_exist_yet_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(3);
    fake.topic("there", 1);
    let queue = open(dir.path());
    let _handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "later", 0..3).await;
    put_all(&queue, "there", 0..3).await;
    assert!(!troubled(&queue, "later", Code::UnknownTopic).await);
    // nobody waits for it
    while waiting(&queue, "there").events > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fake.topic("later", 1);
    queue.emptied().await.unwrap();
    assert_eq!((fake.logged("later"), fake.logged("there")), (names(0..3), names(0..3)));
    assert_eq!(waiting(&queue, "later").trouble, None);
}

#[tokio::test(start_paused = true)]
async fn leaders_that_change_all_the_time_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let queue = open(dir.path());
    let _handing_over = queue.hand_over(fake.client(1)).unwrap();
    for round in 0..20_u32 {
        put_all(&queue, "t", round * 20..(round + 1) * 20).await;
        let leader = u64::from(round) % 3 + 1;
        if round % 2 == 0 {
            fake.lead(leader);
        } else {
            fake.kill(leader);
            fake.lead(leader % 3 + 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
            fake.revive(leader);
        }
    }
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..400));
}

#[tokio::test(start_paused = true)]
async fn a_producer_that_was_ended_stops_its_topic_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    fake.topic("t", 1);
    fake.topic("other", 1);
    let queue = open(dir.path());
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "t", 0..3).await;
    queue.emptied().await.unwrap();
    fake.forget_producers("t");
    put_all(&queue, "t", 3..5).await;
    put_all(&queue, "other", 0..2).await;
    assert!(troubled(&queue, "t", Code::SequenceGap).await);
    let gap = waiting(&queue, "t").trouble.unwrap().error.message;
    assert!(gap.contains("goes on at event 4 of its producer") && gap.contains("it was ended"), "{gap}");
    assert!(gap.contains("`canal queue rm` gives up what waits"), "{gap}");
    assert_eq!(queue.emptied().await.unwrap_err().code, Code::SequenceGap, "only what is stopped is left");
    assert_eq!((fake.logged("t"), fake.logged("other")), (names(0..3), names(0..2)));
    assert_eq!(waiting(&queue, "t").events, 2);
    // it is told after a restart too, and put to as before
    handing_over.stop().await;
    drop(queue);
    let queue = open(dir.path());
    assert!(waiting(&queue, "t").trouble.unwrap().stopped);
    put_all(&queue, "t", 5..6).await;
    assert_eq!(waiting(&queue, "t").events, 3);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_made_again_gets_what_waits_from_a_new_producer() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let queue = open(dir.path());
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "t", 0..3).await;
    queue.emptied().await.unwrap();
    let before = waiting(&queue, "t");
    fake.remove_topic("t");
    fake.topic("t", 1);
    // the publisher stands, and takes the topic for the one before
    put_all(&queue, "t", 3..5).await;
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(3..5));
    let after = waiting(&queue, "t");
    assert!(after.producer != before.producer && after.topic_id > before.topic_id, "{before:?}, {after:?}");
    assert_eq!((before.base, after.base, after.first), (0, 3, 6));
    handing_over.stop().await;
    drop(queue);

    // appended without a receipt, then the topic goes, then the device restarts: twice
    for from in [6, 20] {
        let queue = open(dir.path());
        let handing_over = queue.hand_over(fake.client(1)).unwrap();
        put_all(&queue, "t", from - 1..from).await;
        queue.emptied().await.unwrap();
        fake.behave(1, Behaviour::Silent);
        let seen = fake.logged("t").len();
        put_all(&queue, "t", from..from + 4).await;
        while fake.logged("t").len() <= seen {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        handing_over.stop().await;
        drop(queue);
        fake.remove_topic("t");
        fake.behave(1, Behaviour::Well);
        let queue = open(dir.path());
        let handing_over = queue.hand_over(fake.client(1)).unwrap();
        assert!(!troubled(&queue, "t", Code::UnknownTopic).await);
        fake.topic("t", 1);
        put_all(&queue, "t", from + 4..from + 6).await;
        queue.emptied().await.unwrap();
        assert_eq!(fake.logged("t"), names(from..from + 6));
        // and once more it is the same topic: nothing is numbered anew
        let producer = waiting(&queue, "t").producer;
        handing_over.stop().await;
        let handing_over = queue.hand_over(fake.client(1)).unwrap();
        put_all(&queue, "t", from + 6..from + 8).await;
        queue.emptied().await.unwrap();
        assert_eq!((waiting(&queue, "t").producer, fake.logged("t")), (producer, names(from..from + 8)));
        handing_over.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_topic_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let queue = Queue::open(dir.path(), QueueOptions { max_events: 5, ..QueueOptions::default() }).unwrap();
    put_all(&queue, "nowhere", 0..5).await;
    let error = queue.put("t", Event::new("e0")).await.unwrap_err();
    assert_eq!(error.code, Code::WouldBlock);
    assert!(error.message.contains("5 events and") && error.message.contains("for `nowhere`"), "{error}");
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    assert_eq!(queue.discard("nowhere").await.unwrap_err().code, Code::InUse);
    handing_over.stop().await;
    assert_eq!(queue.discard("nowhere").await.unwrap(), 5);
    assert_eq!(queue.discard("nowhere").await.unwrap_err().code, Code::UnknownTopic);
    assert!(queue.waiting().is_empty() && queue.is_empty());
    drop(queue);
    // it stays so, and the topic may be put to again
    let queue = open(dir.path());
    assert!(queue.waiting().is_empty());
    let _handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "t", 0..3).await;
    put_all(&queue, "nowhere", 0..2).await;
    fake.topic("nowhere", 1);
    queue.emptied().await.unwrap();
    assert_eq!((fake.logged("t"), fake.logged("nowhere")), (names(0..3), names(0..2)));
}

#[tokio::test(start_paused = true)]
async fn a_topic_with_too_many_producers_is_told_clearly_and_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let full = WireError::new(Code::TooManyProducers, "the topic has 100000 producers").with_detail(100_000);
    fake.behave(1, Behaviour::Errors(vec![full.clone()]));
    // a publisher of its own gets the error as it is
    let publisher = fake.client(1).publisher("t").await.unwrap();
    let error = publisher.publish(Event::new("x")).await.unwrap_err();
    assert_eq!((error.code, error.detail), (Code::TooManyProducers, 100_000));
    assert_eq!(publisher.publish(Event::new("y")).await.unwrap_err(), error);
    drop(publisher);
    fake.behave(1, Behaviour::Errors(vec![full]));
    let queue = open(dir.path());
    let _handing_over = queue.hand_over(fake.client(1)).unwrap();
    put_all(&queue, "t", 0..2).await;
    assert!(!troubled(&queue, "t", Code::TooManyProducers).await);
    assert_eq!(queue.len(), 2);
    // by now, one has ended
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..2));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_would_block_until_something_is_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let queue = Queue::open(dir.path(), QueueOptions { max_events: 3, ..QueueOptions::default() }).unwrap();
    put_all(&queue, "t", 0..3).await;
    let error = queue.put("t", Event::new("e3")).await.unwrap_err();
    assert_eq!(error.code, Code::WouldBlock);
    assert!(error.message.starts_with("the queue is full: 3 events of 3"), "{error}");
    let _handing_over = queue.hand_over(fake.client(1)).unwrap();
    queue.emptied().await.unwrap();
    put_all(&queue, "t", 3..6).await;
    queue.emptied().await.unwrap();
    assert_eq!(fake.logged("t"), names(0..6));
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_handed_over_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    let queue = open(dir.path());
    let handing_over = queue.hand_over(fake.client(1)).unwrap();
    assert_eq!(queue.hand_over(fake.client(1)).err().unwrap().code, Code::InUse);
    assert_eq!(Queue::open(dir.path(), QueueOptions::default()).err().unwrap().code, Code::InUse);
    handing_over.stop().await;
    drop(queue.hand_over(fake.client(1)).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_publisher_without_a_deadline_can_be_made_while_cut_off() {
    use canal_sdk::PublisherOptions;
    use canal_sdk::publisher::Deadline;
    let fake = Fake::new(1);
    fake.topic("t", 1);
    fake.kill(1);
    let client = fake.client(1);
    assert_eq!(client.publisher("t").await.err().unwrap().code, Code::Unreachable);
    let options = PublisherOptions { deadline: Deadline::Never, ..PublisherOptions::default() };
    let publisher = client.publisher_with("t", options.clone()).await.unwrap();
    let pending = publisher.send(Event::new("e0")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(publisher.trouble().unwrap().code, Code::Unreachable);
    fake.revive(1);
    assert_eq!(pending.await.unwrap().offset, Some(0));
    assert_eq!(publisher.trouble(), None);
    // what is known to be wrong is said at once
    assert_eq!(client.publisher_with("absent", options).await.err().unwrap().code, Code::UnknownTopic);
}
