//! Peers that die under a publisher, and all of them at once.

use canal_sdk::{From, PublisherOptions};
use canal_testnet::until;

use crate::common::{
    SOON, assert_delivered, assert_numbered, collect, fire, forward, mesh, numbered, patient, read_back, received, send,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_whose_peer_dies_retries_without_doubling() {
    let mesh = mesh(3).await;
    let admin = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&admin, "t", "g", 3).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let survivor = mesh.client((leader + 1) % 3).await.unwrap();
    // it enters the mesh at the leader, and publishes to the leader
    let publisher = patient(&mesh.client(leader).await.unwrap(), "t").await;
    received(send(&publisher, 0..100).await).await;
    let under_way = send(&publisher, 100..3_000).await;
    mesh.peer(leader).unwrap().kill().unwrap();
    let later = send(&publisher, 3_000..3_500).await;
    assert_eq!(received(under_way).await + received(later).await, 3_400);
    let events = read_back(&mesh, &survivor, "t", 3_500, 2).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 3_500);
    let producers: std::collections::BTreeSet<_> = events.iter().map(|stored| stored.producer.to_vec()).collect();
    assert_eq!(producers, [publisher.producer().to_vec()].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_dies_itself_is_taken_up_without_doubling() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    let publisher = patient(&client, "t").await;
    received(send(&publisher, 0..100).await).await;
    let producer = publisher.producer();
    drop(publisher);
    // it only remembers that half of them were acknowledged
    let options = PublisherOptions { identity: Some((producer, 51)), ..PublisherOptions::default() };
    let again = client.publisher_with("t", options).await.unwrap();
    for n in 50..150 {
        let receipt = again.publish(numbered(n)).await.unwrap();
        assert_eq!((receipt.offset, receipt.duplicate), (Some(n), n < 100), "event {n}");
    }
    let events = read_back(&mesh, &client, "t", 150, 1).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_all_peers_died_at_once_nothing_acknowledged_is_gone() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "chain/in", "first", 3).await.unwrap();
    mesh.create_topic(&client, "chain/out", "second", 3).await.unwrap();
    fire(&client, "forward", forward("chain/out"), "chain/in").await;
    let counts = [("chain/in", 2_000), ("chain/out", 2_000)];
    let subscriber = collect(&mesh.client(1).await.unwrap(), "chain/+", From::Earliest, &counts).await;
    let publisher = patient(&mesh.client(2).await.unwrap(), "chain/in").await;
    received(send(&publisher, 0..1_000).await).await;
    let under_way = send(&publisher, 1_000..1_900).await;
    mesh.kill_all().unwrap();
    let before: Vec<_> = mesh.peers().iter().map(|peer| (peer.address().unwrap(), peer.id().unwrap())).collect();
    mesh.start_all().await.unwrap();
    let after: Vec<_> = mesh.peers().iter().map(|peer| (peer.address().unwrap(), peer.id().unwrap())).collect();
    assert_eq!(before, after, "peers keep their addresses and ids");
    mesh.wait_ready().await.unwrap();
    // the same publisher, which was never told: it only found its peers gone for a while
    let later = send(&publisher, 1_900..2_000).await;
    assert_eq!(received(under_way).await + received(later).await, 1_000);
    let fresh = mesh.client(0).await.unwrap();
    until("the function has handled all", SOON, async || {
        let next = fresh.topic_status("chain/out").await.map_err(|error| error.to_string())?.next;
        if next >= 2_000 { Ok(()) } else { Err(format!("{next} effects")) }
    })
    .await
    .unwrap();
    let seen = subscriber.await.unwrap();
    for topic in ["chain/in", "chain/out"] {
        assert_delivered("the subscriber", &seen, topic, 2_000);
        let events = read_back(&mesh, &fresh, topic, 2_000, 3).await;
        assert_numbered(topic, events.iter().map(|stored| (stored.offset, &stored.event)), 2_000);
    }
}
