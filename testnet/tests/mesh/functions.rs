//! A function that loops for ever hurts nobody else, and its events end as dead letters.

use canal_proto::TopicName;
use canal_proto::catalog::{Start, TriggerInfo};
use canal_proto::log::Disposition;
use canal_sdk::subscription::NOBODY;
use canal_sdk::{From, FunctionLimits};
use canal_testnet::until;

use crate::common::{
    SOON, assert_delivered, assert_numbered, collect, endless, fire, forward, mesh, patient, read_back, received, send,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_function_ends_as_dead_letters_and_holds_up_nobody() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "in", "g", 1).await.unwrap();
    mesh.create_topic(&client, "out", "g", 1).await.unwrap();
    client.deploy("endless", endless(), FunctionLimits::default()).await.unwrap();
    let trigger = TriggerInfo {
        name: "endless".into(),
        function: "endless".into(),
        patterns: vec!["in".into()],
        start: Start::Earliest.into(),
        max_attempts: 2,
        backoff_ms: 10,
        ..TriggerInfo::default()
    };
    client.create_trigger(trigger).await.unwrap();
    fire(&client, "forward", forward("out"), "in").await;
    // what a function emits in its own group has no producer
    let subscriber = collect(&client, "out", From::Earliest, &[("out", 2)]).await;
    let publisher = patient(&client, "in").await;
    received(send(&publisher, 0..2).await).await;
    let dead = TopicName::dead_letters("endless");
    until("both events are dead letters", SOON, async || {
        let next = client.topic_status(&dead).await.map_err(|error| error.to_string())?.next;
        if next == 2 { Ok(()) } else { Err(format!("{next} dead letters")) }
    })
    .await
    .unwrap();
    let forwarded = read_back(&mesh, &client, "out", 2, 1).await;
    assert_numbered("out", forwarded.iter().map(|stored| (stored.offset, &stored.event)), 2);
    let seen = subscriber.await.unwrap();
    assert_delivered("the subscriber", &seen, "out", 2);
    assert!(seen["out"].iter().all(|delivered| (delivered.producer, delivered.sequence) == (NOBODY, 0)));
    let letters = read_back(&mesh, &client, &dead, 2, 1).await;
    let payloads: Vec<&[u8]> = letters.iter().map(|stored| stored.event.payload.as_ref()).collect();
    assert_eq!(payloads, [b"0", b"1"]);
    // each run left its record, the newest first
    let records = client.activations(group, "endless", 10).await.unwrap();
    let ends: Vec<_> = records.iter().map(|record| (record.offset, record.attempt, record.disposition)).collect();
    let (retry, dead) = (Disposition::Retry as i32, Disposition::Dead as i32);
    assert_eq!(ends, [(1, 2, dead), (1, 1, retry), (0, 2, dead), (0, 1, retry)]);
    assert!(records.iter().all(|record| !record.error.is_empty()), "{records:?}");
}
