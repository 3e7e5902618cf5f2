//! Leaders that are killed again and again while events flow through two groups.

use canal_sdk::From;
use canal_testnet::until;

use crate::common::{
    SOON, assert_delivered, assert_numbered, collect, fire, forward, mesh, patient, read_back, received, send,
};

/// Events of a run.
const EVENTS: u64 = 10_000;
/// Kills of a run: half of them in the group that is published to, half in the one that the function emits to.
const KILLS: u64 = 6;

async fn killed_again_and_again(peers: usize) {
    let mesh = mesh(peers).await;
    let client = mesh.client(0).await.unwrap();
    let first = mesh.create_topic(&client, "chain/in", "first", 3).await.unwrap();
    let second = mesh.create_topic(&client, "chain/out", "second", 3).await.unwrap();
    fire(&client, "forward", forward("chain/out"), "chain/in").await;
    let all = usize::try_from(EVENTS).unwrap();
    let counts = [("chain/in", all), ("chain/out", all)];
    let mut subscribers = Vec::new();
    for peer in 0..peers.min(3) {
        let subscriber = mesh.client(peer).await.unwrap();
        subscribers.push(collect(&subscriber, "chain/#", From::Earliest, &counts).await);
    }
    let publisher = patient(&mesh.client(peers - 1).await.unwrap(), "chain/in").await;
    let slice = EVENTS / KILLS;
    let mut sent = Vec::new();
    for kill in 0..KILLS {
        let (begin, end) = (kill * slice, if kill + 1 == KILLS { EVENTS } else { (kill + 1) * slice });
        let middle = (begin + end) / 2;
        sent.push(send(&publisher, begin..middle).await);
        // these are on their way
        let group = if kill % 2 == 0 { first } else { second };
        let leader = mesh.leader(group).await.unwrap();
        mesh.peer(leader).unwrap().kill().unwrap();
        sent.push(send(&publisher, middle..end).await);
        tokio::time::timeout(2 * SOON, publisher.flush()).await.expect("it goes on without its leader").unwrap();
        mesh.restart(leader).await.unwrap();
        // with two of three voters gone at a time nothing could go on
        mesh.wait_ready().await.unwrap();
        mesh.leader(first).await.unwrap();
        mesh.leader(second).await.unwrap();
    }
    let mut acknowledged = 0;
    for sent in sent {
        acknowledged += received(sent).await;
    }
    assert_eq!(acknowledged, EVENTS);
    until("the function has handled all", 2 * SOON, async || {
        let next = client.topic_status("chain/out").await.map_err(|error| error.to_string())?.next;
        if next >= EVENTS { Ok(()) } else { Err(format!("{next} effects of {EVENTS}")) }
    })
    .await
    .unwrap();
    for (number, subscriber) in subscribers.into_iter().enumerate() {
        let seen = tokio::time::timeout(2 * SOON, subscriber).await.unwrap().unwrap();
        assert_delivered(&format!("subscriber {number}"), &seen, "chain/in", EVENTS);
        assert_delivered(&format!("subscriber {number}"), &seen, "chain/out", EVENTS);
    }
    for topic in ["chain/in", "chain/out"] {
        let events = read_back(&mesh, &client, topic, all, 3).await;
        assert_numbered(topic, events.iter().map(|stored| (stored.offset, &stored.event)), EVENTS);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_peers_lose_double_and_swap_nothing() {
    killed_again_and_again(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_peers_lose_double_and_swap_nothing() {
    killed_again_and_again(5).await;
}
