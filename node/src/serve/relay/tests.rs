//! Relays over scripted replicas.

use std::time::Duration;

use canal_sdk::{BetweenPeers, Options};

use self::fake::Fake;
use super::*;

#[path = "../../../../sdk/tests/support/fake.rs"]
mod fake;

/// A mesh of so many replicas, and how a peer asks there.
fn mesh(peers: u64) -> (Fake, Client) {
    let fake = Fake::new(peers);
    fake.topic("t", 1);
    let us = BetweenPeers { mesh: None, addresses: Vec::new() };
    let client = fake.client_with(1, Options { between_peers: Some(us), ..Options::default() });
    (fake, client)
}

async fn read(relayed: &mut Relayed, next: &mut u64, count: usize) {
    let mut left = count;
    while left > 0 {
        tokio::time::timeout(Duration::from_secs(20), relayed.ready(*next)).await.unwrap().unwrap();
        for event in relayed.read(*next, 1).iter().take(left) {
            assert_eq!(event.offset, *next);
            *next += 1;
            left -= 1;
        }
    }
}

#[tokio::test]
async fn however_many_read_one_upstream_serves_them_and_ends_with_the_last() {
    let (fake, client) = mesh(1);
    let relays = Arc::new(Relays::default());
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push((relays.open(&client, "t").await.unwrap().unwrap(), 0));
    }
    for n in 0..50 {
        fake.append("t", &n.to_string());
    }
    for (relayed, next) in &mut readers {
        read(relayed, next, 50).await;
    }
    assert_eq!(fake.subscribes().len(), 1);
    assert!(!fake.subscribes()[0].1.relay, "a relay reads from replicas");
    let bytes: u64 = readers[0].0.read(0, u64::MAX).iter().map(Encoded::cost).sum();
    assert_eq!(relays.came_in(), bytes);
    drop(readers);
    let mut again = relays.open(&client, "t").await.unwrap().unwrap();
    fake.append("t", "50");
    read(&mut again, &mut 50, 1).await;
    assert_eq!(fake.subscribes().len(), 2, "nothing was kept for nobody");
    assert_eq!(relays.topics.lock().len(), 1);
}

#[tokio::test]
async fn who_is_behind_the_ring_reads_on_its_own_until_it_meets_it() {
    let (fake, client) = mesh(1);
    for n in 0..100 {
        fake.append("t", &n.to_string());
    }
    let relays = Arc::new(Relays::default());
    let mut new = relays.open(&client, "t").await.unwrap().unwrap();
    let mut old = relays.open(&client, "t").await.unwrap().unwrap();
    assert_eq!((new.next(), new.topic_and_head().1), (100, 100), "a relay begins with what is new");
    let mut behind = 0;
    read(&mut old, &mut behind, 60).await;
    assert!(old.late.is_some());
    old.pause();
    read(&mut old, &mut behind, 40).await;
    fake.append("t", "100");
    let mut next = 100;
    read(&mut new, &mut next, 1).await;
    read(&mut old, &mut behind, 1).await;
    assert!(old.late.is_none(), "it has met the ring");
    assert_eq!((next, behind), (101, 101));
    // the relay's own, and one range before and after the pause
    assert_eq!(fake.subscribes().len(), 3);
}

#[tokio::test]
async fn another_replica_goes_on_and_the_end_of_the_topic_is_told() {
    let (fake, client) = mesh(3);
    let relays = Arc::new(Relays::default());
    let mut relayed = relays.open(&client, "t").await.unwrap().unwrap();
    let mut next = 0;
    for n in 0..6 {
        fake.append("t", &n.to_string());
        read(&mut relayed, &mut next, 1).await;
        let at = fake.subscribes().last().unwrap().0;
        fake.kill(at);
        fake.revive(at % 3 + 1);
    }
    assert!(fake.subscribes().len() >= 6);
    client.remove_topic("t").await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), relayed.ready(next)).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::UnknownTopic);
    assert_eq!(relays.open(&client, "t").await.unwrap().err().unwrap().code(), Code::UnknownTopic);
}

#[tokio::test]
async fn there_are_only_so_many() {
    let (fake, client) = mesh(1);
    let relays = Arc::new(Relays::default());
    let mut held = Vec::new();
    for n in 0..MAX_RELAYS {
        fake.topic(&format!("t{n}"), 1);
        held.push(relays.open(&client, &format!("t{n}")).await.unwrap().unwrap());
    }
    assert!(relays.open(&client, "t").await.is_none());
    assert_eq!(relays.share(), ALL_RINGS_BYTES / MAX_RELAYS, "all rings together keep to their bytes");
    held.pop();
    assert!(relays.open(&client, "t").await.is_some());
}
