//! Subscriptions over patterns: history, then live, at a replica that does not lead.

use canal_sdk::From;
use canal_testnet::until;

use crate::common::{SOON, assert_delivered, collect, mesh, numbered, patient, received, send};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_gives_history_then_live_at_a_follower() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "w/a", "g", 3).await.unwrap();
    mesh.create_topic(&client, "w/b", "g", 3).await.unwrap();
    mesh.create_topic(&client, "other/a", "g", 3).await.unwrap();
    let (a, b) = (patient(&client, "w/a").await, patient(&client, "w/b").await);
    received(send(&a, 0..300).await).await;
    received(send(&b, 0..300).await).await;
    let leader = mesh.leader(group).await.unwrap();
    // it talks to that peer only, which holds a replica and does not lead
    let follower = mesh.peer((leader + 1) % 3).unwrap().client().await.unwrap();
    let counts = [("w/a", 600), ("w/b", 600), ("w/c", 100)];
    let (more_a, more_b) = (send(&a, 300..450).await, send(&b, 300..450).await);
    let history = collect(&follower, "w/+", From::Earliest, &counts).await;
    let (rest_a, rest_b) = (send(&a, 450..600).await, send(&b, 450..600).await);
    // a topic that appears later is read from its first event
    mesh.create_topic(&client, "w/c", "g", 3).await.unwrap();
    let c = patient(&client, "w/c").await;
    for sent in [more_a, more_b, rest_a, rest_b, send(&c, 0..100).await] {
        received(sent).await;
    }
    let seen = history.await.unwrap();
    assert_delivered("the pattern", &seen, "w/a", 600);
    assert_delivered("the pattern", &seen, "w/b", 600);
    assert_delivered("the pattern", &seen, "w/c", 100);
    assert_eq!(seen.len(), 3, "only what the pattern matches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_begins_where_it_is_told() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    let publisher = patient(&client, "t").await;
    received(send(&publisher, 0..20).await).await;
    let latest = collect(&client, "t", From::Latest, &[("t", 10)]).await;
    let middle = collect(&client, "t", From::Offset(7), &[("t", 23)]).await;
    received(send(&publisher, 20..30).await).await;
    for (seen, first) in [(latest, 20), (middle, 7)] {
        let seen = seen.await.unwrap();
        let offsets: Vec<u64> = seen["t"].iter().map(|delivered| delivered.offset).collect();
        assert_eq!(offsets, (first..30).collect::<Vec<_>>());
        assert_eq!(seen["t"][0].event.payload, numbered(first).payload);
    }
    until("the peer remembers one producer", SOON, async || {
        let producers = client.topic_status("t").await.map_err(|error| error.to_string())?.producers;
        if producers == 1 { Ok(()) } else { Err(format!("{producers}")) }
    })
    .await
    .unwrap();
}
