//! Publishers against scripted peers: once, in order, bounded, whatever happens on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use canal_proto::error::WireError;
use canal_proto::{Code, Event};
use canal_sdk::publisher::Deadline;
use canal_sdk::{Pending, Publisher, PublisherOptions};

use self::fake::{Behaviour, Fake, IntoEvent};

#[path = "support/fake.rs"]
mod fake;

fn names(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("e{n}")).collect()
}

async fn send_all(publisher: &Publisher, names: &[String]) -> Vec<Pending> {
    let mut pending = Vec::new();
    for name in names {
        pending.push(publisher.send(Event::new(name.clone())).await.unwrap());
    }
    pending
}

async fn check_receipts(pending: Vec<Pending>) {
    for (offset, pending) in (0..).zip(pending) {
        assert_eq!(pending.sequence(), offset + 1);
        let receipt = pending.await.unwrap();
        assert_eq!((receipt.offset, receipt.count), (Some(offset), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn events_are_batched_by_arrival_and_each_gets_its_receipt() {
    let fake = Fake::new(3);
    fake.topic("t", 2);
    let publisher = fake.client(1).publisher("t").await.unwrap();
    let names = names(3000);
    let pending = send_all(&publisher, &names).await;
    publisher.flush().await.unwrap();
    check_receipts(pending).await;
    assert_eq!(fake.logged("t"), names);
    assert!(fake.batches().len() < 100, "{:?}", fake.batches());
    assert!(fake.batches().iter().all(|(_, count)| *count <= 1024));
    publisher.close().await.unwrap();
    assert_eq!(fake.count("end"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_in_mid_publish_neither_doubles_nor_reorders() {
    for after in 1..12 {
        let fake = Fake::new(3);
        fake.topic("t", 2);
        let publisher = fake.client(1).publisher("t").await.unwrap();
        let names = names(40);
        let mut pending = Vec::new();
        for (n, name) in names.iter().enumerate() {
            if n == 5 {
                // the request takes effect, its answer does not arrive
                fake.behave(2, Behaviour::HangUpAfter(after));
            }
            pending.push(publisher.send(Event::new(name.clone())).await.unwrap());
            tokio::task::yield_now().await;
        }
        check_receipts(pending).await;
        assert_eq!(fake.logged("t"), names);
        let batches = fake.batches();
        for (first, count) in &batches {
            // a retry keeps its sequences: the same first sequence comes with the same count
            assert!(batches.iter().all(|(f, c)| f != first || c == count), "{batches:?}");
        }
        publisher.close().await.unwrap();
        let retried = batches.windows(2).any(|pair| pair[1].0 <= pair[0].0);
        assert_eq!(fake.count("end"), usize::from(!retried), "after {after}: {batches:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn leaders_that_change_all_the_time_cost_nothing() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let publisher = fake.client(1).publisher("t").await.unwrap();
    let names = names(300);
    let mut pending = Vec::new();
    for (n, name) in names.iter().enumerate() {
        match n % 30 {
            10 => fake.lead(n as u64 / 30 % 3 + 1),
            20 => {
                fake.kill(n as u64 / 30 % 3 + 1);
                fake.lead((n as u64 / 30 + 1) % 3 + 1);
            }
            29 => fake.revive(n as u64 / 30 % 3 + 1),
            _ => {}
        }
        pending.push(publisher.send(Event::new(name.clone())).await.unwrap());
        if n % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    check_receipts(pending).await;
    assert_eq!(fake.logged("t"), names);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_falls_silent_is_left_and_nothing_doubles() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let publisher = fake.client(2).publisher("t").await.unwrap();
    publisher.publish("e0".into_event()).await.unwrap();
    // it appends what it gets, but no answer ever arrives
    fake.behave(1, Behaviour::Silent);
    let pending = publisher.send("e1".into_event()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fake.lead(3);
    let receipt = pending.await.unwrap();
    assert_eq!((receipt.offset, receipt.duplicate), (Some(1), true));
    assert_eq!(fake.logged("t"), ["e0", "e1"]);
}

#[tokio::test(start_paused = true)]
async fn the_others_are_asked_about_a_silent_leader_before_it_is_given_up() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let publisher = fake.client(2).publisher("t").await.unwrap();
    publisher.publish("e0".into_event()).await.unwrap();
    fake.behave(1, Behaviour::Silent);
    let begun = tokio::time::Instant::now();
    let pending = publisher.send("e1".into_event()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    // as long as they name the silent one, nothing is sent twice
    assert_eq!(fake.published_at(), [1, 1]);
    fake.lead(3);
    pending.await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
    assert_eq!((fake.published_at(), fake.logged("t").len()), (vec![1, 1, 3], 2));
}

#[tokio::test(start_paused = true)]
async fn a_full_window_blocks_and_gives_the_event_back() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let client = fake.client(1);
    let options = PublisherOptions { window_events: 2, ..PublisherOptions::default() };
    let publisher = client.publisher_with("t", options).await.unwrap();
    fake.behave(1, Behaviour::Silent);
    let first = publisher.try_publish("a".into_event()).unwrap();
    let second = publisher.try_publish("b".into_event()).unwrap();
    let refused = publisher.try_publish("c".into_event()).err().unwrap();
    assert_eq!((refused.error.code, refused.event), (Code::WouldBlock, "c".into_event()));
    fake.behave(1, Behaviour::Well);
    assert_eq!(first.await.unwrap().offset, Some(0));
    assert_eq!(second.await.unwrap().offset, Some(1));
    publisher.try_publish("c".into_event()).unwrap().await.unwrap();
    let options = PublisherOptions { window_bytes: 0, ..PublisherOptions::default() };
    let publisher = client.publisher_with("t", options).await.unwrap();
    let one = publisher.try_publish(Event::new(vec![0; 1 << 20])).unwrap();
    assert_eq!(publisher.try_publish(Event::new(vec![0; 1 << 20])).err().unwrap().error.code, Code::WouldBlock);
    one.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_exceeds_a_limit_is_refused_and_harms_nothing() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let publisher = fake.client(1).publisher("t").await.unwrap();
    let large = Event::new(vec![0; (1 << 20) + 1]);
    assert_eq!(publisher.publish(large.clone()).await.unwrap_err().code, Code::TooLarge);
    assert_eq!(publisher.try_publish(large).err().unwrap().error.code, Code::TooLarge);
    assert_eq!(publisher.publish("a".into_event()).await.unwrap().offset, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_final_error_fails_all_and_the_identity_can_be_taken_up_again() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(1);
    let publisher = client.publisher("t").await.unwrap();
    publisher.publish("e0".into_event()).await.unwrap();
    fake.behave(1, Behaviour::Silent);
    let begun = tokio::time::Instant::now();
    let lost = send_all(&publisher, &["e1".into(), "e2".into()]).await;
    let first_lost = lost[0].sequence();
    for pending in lost {
        assert_eq!(pending.await.unwrap_err().code, Code::NoQuorum);
    }
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(publisher.publish("e3".into_event()).await.unwrap_err().code, Code::NoQuorum);
    assert_eq!(publisher.flush().await.unwrap_err().code, Code::NoQuorum);
    assert_eq!(publisher.failure().unwrap().code, Code::NoQuorum);
    // both had been appended; a third one is new
    fake.behave(1, Behaviour::Well);
    let options =
        PublisherOptions { identity: Some((publisher.producer(), first_lost)), ..PublisherOptions::default() };
    let again = client.publisher_with("t", options).await.unwrap();
    let pending = send_all(&again, &["e1".into(), "e2".into(), "e3".into()]).await;
    for (offset, pending) in (1..).zip(pending) {
        assert_eq!(pending.await.unwrap().offset, Some(offset));
    }
    assert_eq!(fake.logged("t"), ["e0", "e1", "e2", "e3"]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_gone_fails_the_publisher() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(1);
    let publisher = client.publisher("t").await.unwrap();
    publisher.publish("a".into_event()).await.unwrap();
    client.remove_topic("t").await.unwrap();
    assert_eq!(publisher.publish("b".into_event()).await.unwrap_err().code, Code::UnknownTopic);
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_a_publisher_waits_for_its_mesh() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(1);
    let options = PublisherOptions { deadline: Deadline::Never, ..PublisherOptions::default() };
    let publisher = client.publisher_with("t", options).await.unwrap();
    (1..=3).for_each(|peer| fake.kill(peer));
    let pending = publisher.send("a".into_event()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    fake.revive(3);
    fake.lead(3);
    assert_eq!(pending.await.unwrap().offset, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_busy_leader_is_asked_again() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let publisher = fake.client(1).publisher("t").await.unwrap();
    publisher.publish("e0".into_event()).await.unwrap();
    fake.behave(1, Behaviour::Errors(vec![WireError::new(Code::WouldBlock, "full"); 5]));
    publisher.publish("e1".into_event()).await.unwrap();
    assert_eq!(fake.logged("t"), ["e0", "e1"]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_publisher_says_so() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let publisher = fake.client(1).publisher("t").await.unwrap();
    fake.behave(1, Behaviour::Silent);
    let pending = publisher.send("a".into_event()).await.unwrap();
    drop(publisher);
    assert_eq!(pending.await.unwrap_err().code, Code::Stopping);
}
