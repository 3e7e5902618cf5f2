//! Retention: what a policy does not keep goes, on every replica, and nothing goes that a trigger has yet to handle.

use canal_proto::request::TopicStatus;
use canal_sdk::{Client, Code, FunctionLimits, GroupId};
use canal_testnet::{Testnet, until};
use serde_json::Value;

use crate::common::{Mesh, Ran, SOON, canal, forward, numbered, patient, prepared};

/// A mesh that makes segments of little.
async fn sealing(peers: usize) -> Mesh {
    let mesh = prepared(peers, &["--seal-kb", "16"]).await;
    mesh.start_all().await.unwrap();
    mesh.wait_ready().await.unwrap();
    mesh
}

async fn ran(peer: &str, arguments: &[&str]) -> Value {
    let ran = canal(peer, &[arguments, &["--json"]].concat(), b"").await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Publishes events one by one, so that each is an entry of its own.
async fn publish(client: &Client, topic: &str, range: std::ops::Range<u64>) {
    let publisher = patient(client, topic).await;
    for n in range {
        assert_eq!(publisher.publish(numbered(n)).await.unwrap().offset, Some(n));
    }
    publisher.close().await.unwrap();
}

/// Waits until a topic's oldest event is this one.
async fn oldest(client: &Client, topic: &str, oldest: u64) -> TopicStatus {
    until(&format!("the oldest event of {topic} is {oldest}"), SOON, async || {
        let status = client.topic_status(topic).await.map_err(|error| error.to_string())?;
        if status.oldest == oldest { Ok(status) } else { Err(format!("{status:?}")) }
    })
    .await
    .unwrap()
}

/// Waits until every replica of a topic says that its oldest event is this one, and refuses the one before.
async fn refused_everywhere(net: &Testnet, topic: &str, oldest: u64) {
    for peer in net.peers() {
        let address = peer.address().unwrap();
        let before = (oldest - 1).to_string();
        let Ran { code, stdout, stderr } = until(&format!("peer {} refuses it", peer.number()), SOON, async || {
            let ran = canal(&address, &["sub", topic, "--from", &before, "--count", "1"], b"").await;
            if ran.code == Some(0) { Err(format!("{ran:?}")) } else { Ok(ran) }
        })
        .await
        .unwrap();
        assert_eq!(code, Some(i32::from(Code::OutOfRange.exit_code())), "{stderr}");
        assert!(stdout.is_empty() && stderr.contains(&format!("oldest is {oldest}")), "{stderr}");
        let from = oldest.to_string();
        let first = ran(&address, &["sub", topic, "--from", &from, "--count", "1"]).await;
        assert_eq!((first["offset"].as_u64(), first["payload"].as_str()), (Some(oldest), Some(from.as_str())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_events_are_kept_on_every_replica() {
    let mesh = sealing(3).await;
    let client = mesh.client(0).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    let create = ["topic", "create", "t", "--group", "g", "--replicas", "3", "--retain-events", "40"];
    let created = ran(&address, &create).await;
    assert_eq!(created["retention"]["events"], 40);
    let again = ran(&address, &create).await;
    assert_eq!(again["existed"], true);
    let info = client.topic_status("t").await.unwrap();
    mesh.wait_group(GroupId(info.group)).await.unwrap();

    publish(&client, "t", 0..100).await;
    let status = oldest(&client, "t", 60).await;
    assert_eq!((status.next, status.kept_bytes), (100, 40 * 2));
    refused_everywhere(&mesh, "t", 60).await;

    // what comes then makes room for itself; less is kept when that is said
    publish(&client, "t", 100..110).await;
    oldest(&client, "t", 70).await;
    let set = ran(&address, &["topic", "set", "t", "--retain-events", "10"]).await;
    assert_eq!(set["retention"]["events"], 10);
    oldest(&client, "t", 100).await;
    refused_everywhere(&mesh, "t", 100).await;
    let shown = ran(&address, &["topic", "info", "t"]).await;
    assert_eq!((shown["oldest"].as_u64(), shown["kept_bytes"].as_u64()), (Some(100), Some(10 * 3)));

    // without a bound, nothing goes any more
    let set = ran(&address, &["topic", "set", "t", "--retain-events", "0"]).await;
    assert_eq!(set["retention"], Value::Null);
    publish(&client, "t", 110..200).await;
    assert_eq!(client.topic_status("t").await.unwrap().oldest, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_go_with_their_events() {
    let mesh = sealing(1).await;
    let client = mesh.client(0).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    let publisher = patient(&client, "t").await;
    let mut sealed = TopicStatus::default();
    for half in [0..200u64, 200..400] {
        let end = half.end;
        let mut pending = Vec::new();
        for n in half {
            pending.push(publisher.send(canal_sdk::Event::new(format!("{n:04000}"))).await.unwrap());
        }
        for receipt in pending {
            receipt.await.unwrap();
        }
        // less than the peer makes a segment of may stay in the log
        sealed = until("nearly all of it is in segments", SOON, async || {
            let status = client.topic_status("t").await.map_err(|error| error.to_string())?;
            if status.sealed + 8 >= end { Ok(status) } else { Err(format!("{status:?}")) }
        })
        .await
        .unwrap();
    }
    assert_eq!((sealed.oldest, sealed.kept_bytes), (0, 400 * 4000));
    assert!(sealed.segments > 1 && sealed.segment_bytes > 0, "{sealed:?}");

    let set = ran(&address, &["topic", "set", "t", "--retain-bytes", "200000"]).await;
    assert_eq!(set["retention"]["bytes"], 200_000);
    let kept = until("no more is kept than is allowed", SOON, async || {
        let status = client.topic_status("t").await.map_err(|error| error.to_string())?;
        if status.kept_bytes <= 200_000 { Ok(status) } else { Err(format!("{status:?}")) }
    });
    let kept = kept.await.unwrap();
    assert!(kept.segments < sealed.segments, "{kept:?}");
    // all events are of one size, so the bytes say how many there are
    assert_eq!(kept.kept_bytes, (400 - kept.oldest) * 4000);
    let from = kept.oldest.to_string();
    let count = (400 - kept.oldest).to_string();
    let read = canal(&address, &["sub", "t", "--from", &from, "--count", &count, "--json"], b"").await;
    let offsets: Vec<u64> = read
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["offset"].as_u64().unwrap())
        .collect();
    assert_eq!(offsets, (kept.oldest..400).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stays_until_every_trigger_has_handled_it() {
    let mesh = sealing(1).await;
    let client = mesh.client(0).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    ran(&address, &["topic", "create", "in", "--group", "g", "--replicas", "1", "--retain-events", "5"]).await;
    mesh.create_topic(&client, "out", "g", 1).await.unwrap();
    client.deploy("f", forward("out"), FunctionLimits::default()).await.unwrap();
    let create = ["trigger", "create", "slow", "--on", "in", "--fn", "f", "--from", "earliest"];
    ran(&address, &create).await;
    client.pause_trigger("slow", true).await.unwrap();

    publish(&client, "in", 0..30).await;
    let held = until("the trigger is named", SOON, async || {
        let shown = ran(&address, &["topic", "info", "in"]).await;
        if shown["held_by"] == "slow" { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert_eq!(held.await.unwrap()["oldest"], 0);

    client.pause_trigger("slow", false).await.unwrap();
    oldest(&client, "in", 25).await;
    assert_eq!(client.topic_status("out").await.unwrap().next, 30, "each event was handled");
    let shown = ran(&address, &["topic", "info", "in"]).await;
    assert_eq!(shown["held_by"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_go_by_how_long_they_are_here() {
    let mesh = sealing(1).await;
    let client = mesh.client(0).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    mesh.create_topic(&client, "beside", "g", 1).await.unwrap();
    publish(&client, "t", 0..7).await;
    ran(&address, &["topic", "set", "t", "--retain-age", "1s"]).await;
    oldest(&client, "t", 7).await;
    ran(&address, &["topic", "set", "t", "--retain-age", "1d"]).await;
    // by their device's clock these are of 1970, and of a time far ahead
    let publisher = patient(&client, "t").await;
    for n in 7..20 {
        let time_ms = if n < 14 { 1000 + n } else { u64::MAX };
        let event = canal_sdk::Event { time_ms, ..numbered(n) };
        assert_eq!(publisher.publish(event).await.unwrap().offset, Some(n));
    }
    // whoever looks at the other topic has looked at this one
    publish(&client, "beside", 0..3).await;
    ran(&address, &["topic", "set", "beside", "--retain-events", "1"]).await;
    oldest(&client, "beside", 2).await;
    assert_eq!(client.topic_status("t").await.unwrap().oldest, 7);
    // other bounds stay when one is set
    let set = ran(&address, &["topic", "set", "t", "--retain-events", "4", "--replicas", "1"]).await;
    assert_eq!((set["retention"]["events"].as_u64(), set["retention"]["age_ms"].as_u64()), (Some(4), Some(86_400_000)));
    assert_eq!(set["other_topics"], serde_json::json!(["beside"]));
    oldest(&client, "t", 16).await;
    let nothing = canal(&address, &["topic", "set", "t"], b"").await;
    assert_eq!(nothing.code, Some(i32::from(Code::InvalidArgument.exit_code())), "{nothing:?}");
}
