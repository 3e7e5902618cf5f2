//! Durable subscriptions against scripted peers: nothing is lost, only what was not handled comes again, and one
//! subscriber has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use canal_proto::Code;
use canal_proto::request::From as Wire;
use canal_sdk::{Client, Delivered, Error, From, SubscribeOptions, Subscription};
use futures::StreamExt;
use tokio::time::{Instant, sleep};

use self::fake::Fake;

#[path = "support/fake.rs"]
mod fake;

fn named(name: &str) -> SubscribeOptions {
    SubscribeOptions { from: From::Earliest, durable: Some(name.into()), ..SubscribeOptions::default() }
}

async fn open(client: &Client, pattern: &str) -> Subscription {
    client.subscribe_with(pattern, named("n")).await.unwrap()
}

async fn take(events: &mut Subscription, count: usize) -> Vec<Delivered> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(events.next().await.unwrap().unwrap());
    }
    taken
}

fn offsets(events: &[Delivered]) -> Vec<u64> {
    events.iter().map(|delivered| delivered.offset).collect()
}

fn topic_with(events: u64) -> Fake {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    (0..events).for_each(|n| fake.append("t", &n.to_string()));
    fake
}

async fn failure(events: &mut Subscription) -> Error {
    loop {
        match events.next().await.expect("an error comes before the end") {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_behind_what_was_handled() {
    let fake = topic_with(10);
    let mut first = open(&fake.client(1), "t").await;
    let seen = take(&mut first, 6).await;
    first.handled(&seen[3]);
    first.close().await.unwrap();
    assert_eq!(fake.cursor("t", "n"), Some(4));
    // what was delivered and not handled comes again, and nothing else
    let mut second = open(&fake.client(2), "t").await;
    assert_eq!(offsets(&take(&mut second, 6).await), (4..10).collect::<Vec<_>>());
    // dropped without a word: it begins there again
    drop(second);
    let mut third = open(&fake.client(3), "t").await;
    assert_eq!(offsets(&take(&mut third, 1).await), [4]);
    // nothing is handled that was not delivered
    third.handled_before("t", 9);
    third.close().await.unwrap();
    assert_eq!(fake.cursor("t", "n"), Some(5));
}

#[tokio::test(start_paused = true)]
async fn events_count_as_handled_by_themselves_if_wanted() {
    let fake = topic_with(10);
    let options = SubscribeOptions { auto_handled: true, ..named("n") };
    let mut events = fake.client(1).subscribe_with("t", options).await.unwrap();
    take(&mut events, 6).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.cursor("t", "n"), Some(5), "the sixth may still be worked on");
    events.close().await.unwrap();
    assert_eq!(fake.cursor("t", "n"), Some(6));
}

#[tokio::test(start_paused = true)]
async fn the_latest_word_is_said_now_and_then() {
    let fake = topic_with(2_000);
    let mut events = open(&fake.client(1), "t").await;
    let begun = Instant::now();
    for _ in 0..2_000 {
        let delivered = events.next().await.unwrap().unwrap();
        events.handled(&delivered);
        sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed();
    events.close().await.unwrap();
    let said = fake.advances();
    assert_eq!(said.last(), Some(&2_000));
    assert!(said.is_sorted() && said.len() >= 10, "{said:?}");
    let most = took.as_millis() as usize / 100 + 2;
    assert!(said.len() <= most, "{} words in {took:?}", said.len());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_dies_is_no_other_subscriber() {
    let fake = topic_with(0);
    let mut events = open(&fake.client(1), "t").await;
    let mut next = 0;
    for victim in [1, 2, 3, 1, 2] {
        (next..next + 2).for_each(|n| fake.append("t", &n.to_string()));
        for delivered in take(&mut events, 2).await {
            assert_eq!(delivered.offset, next, "a reader that lives gets nothing twice");
            next += 1;
            if next % 2 == 1 {
                events.handled(&delivered);
            }
        }
        fake.kill(victim);
        fake.revive(victim % 3 + 1);
    }
    assert_eq!(next, 10);
    events.handled_before("t", 10);
    events.close().await.unwrap();
    assert_eq!(fake.cursor("t", "n"), Some(10));
    let asks = fake.subscribes();
    assert!(asks.len() > 3 && !asks[0].1.again && asks[1..].iter().all(|(_, ask)| ask.again), "{asks:?}");
    assert!(asks[1..].iter().all(|(_, ask)| matches!(ask.from, Some(Wire::Offset(_)))));
    assert!(asks.iter().all(|(_, ask)| ask.holder == asks[0].1.holder && ask.holder.len() == 16));
}

#[tokio::test(start_paused = true)]
async fn the_later_subscriber_has_it_and_the_earlier_ends() {
    let fake = topic_with(10);
    let mut earlier = open(&fake.client(1), "t").await;
    take(&mut earlier, 2).await;
    let mut later = open(&fake.client(2), "t").await;
    assert_eq!(failure(&mut earlier).await.code, Code::TakenOver);
    assert!(earlier.next().await.is_none());
    // it does not come back for it
    assert_eq!(offsets(&take(&mut later, 10).await), (0..10).collect::<Vec<_>>());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.subscribes().len(), 2);
    later.handled_before("t", 10);
    later.close().await.unwrap();
    assert_eq!(fake.cursor("t", "n"), Some(10));
}

#[tokio::test(start_paused = true)]
async fn who_was_cut_off_meanwhile_ends_too() {
    let fake = topic_with(10);
    let mut earlier = open(&fake.client(1), "t").await;
    take(&mut earlier, 10).await;
    // nobody can tell it: all its peers are gone when the other one opens
    (1..=3).for_each(|peer| fake.kill(peer));
    fake.revive(2);
    let mut later = open(&fake.client(2), "t").await;
    take(&mut later, 10).await;
    assert_eq!(failure(&mut earlier).await.code, Code::TakenOver);
    fake.append("t", "more");
    assert_eq!(offsets(&take(&mut later, 1).await), [10]);
}

#[tokio::test(start_paused = true)]
async fn close_says_when_it_cannot_be_committed_or_is_not_ours() {
    let fake = topic_with(3);
    let client = fake.client(1);
    let mut events = open(&client, "t").await;
    let seen = take(&mut events, 3).await;
    fake.decides(false);
    events.handled(&seen[2]);
    assert_eq!(events.close().await.unwrap_err().code, Code::NoQuorum);
    fake.decides(true);
    let mut events = open(&client, "t").await;
    let seen = take(&mut events, 3).await;
    let later = open(&client, "t").await;
    events.handled(&seen[2]);
    assert_eq!(events.close().await.unwrap_err().code, Code::TakenOver);
    later.close().await.unwrap();
    assert_eq!(fake.cursor("t", "n"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_pattern_has_a_cursor_in_each_topic_and_later_ones_begin_at_their_first_event() {
    let fake = Fake::new(3);
    fake.topic("s/a", 1);
    fake.topic("other", 1);
    (0..4).for_each(|n| fake.append("s/a", &n.to_string()));
    let client = fake.client(1);
    let options = SubscribeOptions { from: From::Latest, ..named("n") };
    let mut events = client.subscribe_with("s/+", options.clone()).await.unwrap();
    fake.topic("s/b", 1);
    (0..3).for_each(|n| fake.append("s/b", &n.to_string()));
    let seen = take(&mut events, 3).await;
    assert!(seen.iter().all(|delivered| &*delivered.topic == "s/b"));
    assert_eq!(offsets(&seen), [0, 1, 2]);
    events.handled(&seen[1]);
    fake.append("s/a", "4");
    let seen = take(&mut events, 1).await;
    events.handled(&seen[0]);
    events.close().await.unwrap();
    assert_eq!((fake.cursor("s/a", "n"), fake.cursor("s/b", "n")), (Some(5), Some(2)));
    assert_eq!(fake.cursor("other", "n"), None);
    let mut again = client.subscribe_with("s/+", options).await.unwrap();
    assert_eq!(offsets(&take(&mut again, 1).await), [2]);
}

#[tokio::test(start_paused = true)]
async fn what_retention_took_is_told_and_it_goes_on() {
    let fake = topic_with(10);
    let client = fake.client(1);
    let mut events = open(&client, "t").await;
    let seen = take(&mut events, 2).await;
    events.handled(&seen[1]);
    events.close().await.unwrap();
    fake.trim("t", 7);
    let mut events = open(&client, "t").await;
    assert_eq!(offsets(&take(&mut events, 3).await), [7, 8, 9]);
    let lost = events.take_lost();
    assert_eq!(lost.iter().map(|lost| (&*lost.topic, lost.first, lost.end)).collect::<Vec<_>>(), [("t", 2, 7)]);
    assert!(events.take_lost().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_cannot_be_one_is_refused() {
    let fake = topic_with(0);
    for name in [String::new(), "a b".into(), "a\n".into(), "x".repeat(129)] {
        let error = fake.client(1).subscribe_with("t", named(&name)).await.err().unwrap();
        assert_eq!(error.code, Code::InvalidArgument, "{name:?}");
    }
}
