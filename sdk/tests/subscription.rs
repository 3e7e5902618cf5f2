//! Subscriptions against scripted peers: no gap, no double, whoever serves them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use canal_proto::Code;
use canal_proto::request::From as Wire;
use canal_sdk::{Delivered, From, SubscribeOptions, Subscription};
use futures::StreamExt;

use self::fake::{Behaviour, Fake};

#[path = "support/fake.rs"]
mod fake;

async fn take(events: &mut Subscription, count: usize) -> Vec<(String, u64, String)> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let Delivered { topic, offset, event, .. } = events.next().await.unwrap().unwrap();
        taken.push((topic.to_string(), offset, String::from_utf8(event.payload.to_vec()).unwrap()));
    }
    taken
}

fn row(topic: &str, offset: u64, payload: &str) -> (String, u64, String) {
    (topic.into(), offset, payload.into())
}

#[tokio::test(start_paused = true)]
async fn history_comes_first_then_what_is_new() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    (0..5).for_each(|n| fake.append("t", &n.to_string()));
    let client = fake.client(1);
    let mut all = client.subscribe("t", From::Earliest).await.unwrap();
    let mut some = client.subscribe("t", From::Offset(4)).await.unwrap();
    let mut new = client.subscribe("t", From::Latest).await.unwrap();
    fake.append("t", "5");
    let expected: Vec<_> = (0..6).map(|n| row("t", n, &n.to_string())).collect();
    assert_eq!(take(&mut all, 6).await, expected);
    assert_eq!(take(&mut some, 2).await, expected[4..]);
    assert_eq!(take(&mut new, 1).await, expected[5..]);
}

#[tokio::test(start_paused = true)]
async fn another_replica_goes_on_without_gap_or_double() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(1);
    let mut events = client.subscribe("t", From::Latest).await.unwrap();
    let mut offset = 0;
    for victim in [1, 2, 3, 1, 2, 3] {
        for _ in 0..3 {
            fake.append("t", &offset.to_string());
            assert_eq!(take(&mut events, 1).await, [row("t", offset, &offset.to_string())]);
            offset += 1;
        }
        fake.kill(victim);
        tokio::time::sleep(Duration::from_millis(10)).await;
        // published while nobody serves the subscriber
        fake.append("t", &offset.to_string());
        fake.revive((victim + 1) % 3 + 1);
        assert_eq!(take(&mut events, 1).await, [row("t", offset, &offset.to_string())]);
        offset += 1;
    }
    let asked = fake.subscribed();
    assert!(matches!(asked[0], (_, Some(Wire::Latest(_)))));
    assert!(asked[1..].iter().all(|(_, from)| matches!(from, Some(Wire::Offset(_)))), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_is_passed_over_or_waited_for() {
    let fake = Fake::new(2);
    fake.topic("t", 1);
    (0..4).for_each(|n| fake.append("t", &n.to_string()));
    fake.lag(2, 1);
    let mut events = fake.client(1).subscribe("t", From::Earliest).await.unwrap();
    take(&mut events, 4).await;
    fake.kill(1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(fake.subscribed().len() > 3);
    fake.lag(2, 100);
    fake.append("t", "4");
    assert_eq!(take(&mut events, 1).await, [row("t", 4, "4")]);
}

#[tokio::test(start_paused = true)]
async fn doubles_are_dropped_and_a_gap_is_an_error() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    (0..4).for_each(|n| fake.append("t", &n.to_string()));
    fake.tamper(|events| events.iter().flat_map(|event| [event.clone(), event.clone()]).collect());
    let client = fake.client(1);
    let mut events = client.subscribe("t", From::Earliest).await.unwrap();
    let offsets: Vec<u64> = take(&mut events, 4).await.into_iter().map(|(_, offset, _)| offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3]);
    fake.tamper(|events| events.into_iter().filter(|event| event.offset != 1).collect());
    let mut events = client.subscribe("t", From::Earliest).await.unwrap();
    take(&mut events, 1).await;
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!((error.code, error.detail), (Code::OutOfRange, 2));
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pattern_picks_up_new_topics_from_their_first_event() {
    let fake = Fake::new(3);
    fake.topic("s/a", 1);
    fake.topic("other", 1);
    fake.append("s/a", "old");
    let client = fake.client(2);
    let mut events = client.subscribe("s/+", From::Latest).await.unwrap();
    fake.append("other", "no");
    fake.append("s/a", "new");
    assert_eq!(take(&mut events, 1).await, [row("s/a", 1, "new")]);
    fake.topic("s/b", 1);
    fake.append("s/b", "first");
    fake.append("s/b", "second");
    assert_eq!(take(&mut events, 2).await, [row("s/b", 0, "first"), row("s/b", 1, "second")]);
    // a topic that is removed and created again is another one; the subscription lives on
    client.remove_topic("s/b").await.unwrap();
    fake.kill(1);
    fake.kill(3);
    fake.lead(2);
    fake.topic("s/b", 2);
    fake.append("s/b", "again");
    assert_eq!(take(&mut events, 1).await, [row("s/b", 0, "again")]);
    fake.append("s/a", "still");
    assert_eq!(take(&mut events, 1).await, [row("s/a", 2, "still")]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_subscribed_to_says_why() {
    let fake = Fake::new(2);
    fake.topic("t", 1);
    let client = fake.client(1);
    for (pattern, from, code) in [
        ("nowhere", From::Earliest, Code::UnknownTopic),
        ("t/#/x", From::Earliest, Code::InvalidArgument),
        ("t/#", From::Offset(1), Code::InvalidArgument),
        ("t", From::Offset(7), Code::OutOfRange),
    ] {
        assert_eq!(client.subscribe(pattern, from).await.err().unwrap().code, code, "{pattern}");
    }
    (1..=2).for_each(|peer| fake.kill(peer));
    assert_eq!(client.subscribe("t", From::Earliest).await.err().unwrap().code, Code::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_the_peer_back() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let payload = "x".repeat(40_000);
    (0..200).for_each(|_| fake.append("t", &payload));
    let mut events = fake.client(1).subscribe("t", From::Earliest).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    // nobody reads: the events stay with the peer, the stream stands, and all of them come in the end
    assert_eq!(take(&mut events, 200).await.len(), 200);
    assert_eq!(fake.subscribed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_slow_reader_is_bounded_and_it_is_told_how_far_it_lags() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let payload = "x".repeat(10_000);
    (0..100).for_each(|_| fake.append("t", &payload));
    let options = SubscribeOptions { from: From::Earliest, credit: 100_000, ..SubscribeOptions::default() };
    let mut events = fake.client(1).subscribe_with("t", options).await.unwrap();
    take(&mut events, 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.subscribes()[0].1.credit, 100_000);
    assert_eq!(fake.granted(), 0, "one event of ten is no quarter of the window");
    let lag = events.lag();
    assert_eq!((lag.total(), lag.topics[0].next, lag.topics[0].head), (99, 1, 100));
    take(&mut events, 99).await;
    assert_eq!(events.lag().total(), 0);
    let granted = fake.granted();
    assert!((900_000..=1_010_000).contains(&granted), "as much as was read: {granted}");
    fake.append("t", "last");
    assert_eq!(take(&mut events, 1).await, [row("t", 100, "last")]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_left() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let mut events = fake.client(1).subscribe("t", From::Latest).await.unwrap();
    // for minutes it only says that it stands
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(fake.subscribed().len(), 1);
    fake.behave(1, Behaviour::Silent);
    fake.append("t", "0");
    let since = tokio::time::Instant::now();
    assert_eq!(take(&mut events, 1).await, [row("t", 0, "0")]);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_ne!(fake.subscribed()[1].0, 1);
}

#[tokio::test(start_paused = true)]
async fn the_peer_that_was_named_comes_first_and_may_fetch_the_events() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    fake.lead(2);
    fake.without_replica(3);
    let client = fake.client(3);
    let mut events = client.subscribe("t", From::Earliest).await.unwrap();
    let (peer, ask) = fake.subscribes()[0].clone();
    assert_eq!((peer, ask.relay), (3, true));
    fake.append("t", "0");
    assert_eq!(take(&mut events, 1).await, [row("t", 0, "0")]);
    // without it, a replica serves: which fetches nothing
    fake.kill(3);
    fake.append("t", "1");
    assert_eq!(take(&mut events, 1).await, [row("t", 1, "1")]);
    let (peer, ask) = fake.subscribes().last().unwrap().clone();
    assert!(peer != 3 && !ask.relay);
}

#[tokio::test(start_paused = true)]
async fn an_offset_that_is_no_longer_kept_is_an_error_that_names_the_oldest() {
    let fake = Fake::new(2);
    fake.topic("t", 1);
    (0..4).for_each(|n| fake.append("t", &n.to_string()));
    fake.trim("t", 2);
    let client = fake.client(1);
    let error = client.subscribe("t", From::Offset(1)).await.err().unwrap();
    assert_eq!((error.code, error.detail), (Code::OutOfRange, 2));
    let mut events = client.subscribe("t", From::Earliest).await.unwrap();
    assert_eq!(take(&mut events, 2).await, [row("t", 2, "2"), row("t", 3, "3")]);
}
