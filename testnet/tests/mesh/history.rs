//! History leaves the logs and stays readable everywhere: at those who were there, who were away, and who come new.

use canal_proto::catalog::{Change, SetGroup};
use canal_proto::request::GroupStatus;
use canal_sdk::{Client, GroupId};
use canal_testnet::{Testnet, until};

use crate::common::{SOON, assert_numbered, patient, prepared, read_back, received, send};

/// Waits until a peer's replica is as wanted.
async fn stands(
    net: &Testnet,
    n: usize,
    group: GroupId,
    what: &str,
    wanted: impl Fn(&GroupStatus) -> bool,
) -> GroupStatus {
    until(&format!("peer {n}: {what}"), SOON, async || {
        let status = net.peer(n).unwrap().status().await.map_err(|error| error.to_string())?;
        let found = status.groups.into_iter().find(|status| status.id == group.0).ok_or("no replica")?;
        if wanted(&found) {
            Ok(found)
        } else {
            let GroupStatus { first, applied, last, leader, .. } = found;
            Err(format!("first {first}, applied {applied}, last {last}, leader {leader}"))
        }
    })
    .await
    .unwrap()
}

/// Publishes a range, some thousands at a time, each lot acknowledged before the next.
async fn publish(publisher: &canal_sdk::Publisher, range: std::ops::Range<u64>) {
    for from in range.clone().step_by(5_000) {
        received(send(publisher, from..(from + 5_000).min(range.end)).await).await;
    }
}

async fn assert_all(net: &Testnet, client: &Client, count: u64, replicas: usize) {
    let events = read_back(net, client, "t", usize::try_from(count).unwrap(), replicas).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_left_the_log_are_readable_at_every_replica() {
    let mesh = prepared(4, &["--seal-kb", "128"]).await;
    mesh.restart(0).await.unwrap();
    for n in [1, 2] {
        mesh.restart(n).await.unwrap();
    }
    mesh.wait_ready().await.unwrap();
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    publish(&publisher, 0..50_000).await;
    for n in 0..3 {
        let status = stands(&mesh, n, group, "the log is cut", |status| status.first > status.applied / 2).await;
        assert!(status.log_bytes < 2 << 20, "{}", status.log_bytes);
    }
    assert_all(&mesh, &client, 50_000, 3).await;

    // one is away until what it lacks is in nobody's log any more
    let leader = mesh.leader(group).await.unwrap();
    let away = if leader == 2 { 1 } else { 2 };
    let had = stands(&mesh, away, group, "it stands", |_| true).await.last;
    mesh.peer(away).unwrap().kill().unwrap();
    publish(&publisher, 50_000..70_000).await;
    for n in (0..3).filter(|n| *n != away) {
        stands(&mesh, n, group, "the log is cut behind what is away", |status| status.first > had + 1).await;
    }
    mesh.restart(away).await.unwrap();
    let last = stands(&mesh, leader, group, "it stands", |_| true).await.applied;
    stands(&mesh, away, group, "it is filled", |status| status.applied >= last).await;
    assert_all(&mesh, &client, 70_000, 3).await;

    // a peer that was never there gets a replica with all of the history
    mesh.restart(3).await.unwrap();
    client.change(Change::SetGroup(SetGroup { group: group.0, replicas: 4, placement: None })).await.unwrap();
    // it dies while it is filled, with some of the files here, and goes on with the others
    for _ in 0..2 {
        until("some files have come", SOON, async || {
            let status = mesh.peer(3).unwrap().status().await.map_err(|error| error.to_string())?;
            if status.segments > 0 { Ok(()) } else { Err("none".to_owned()) }
        })
        .await
        .unwrap();
        mesh.peer(3).unwrap().kill().unwrap();
        mesh.restart(3).await.unwrap();
    }
    stands(&mesh, 3, group, "it votes", |status| status.voters.contains(&status.replica)).await;
    publish(&publisher, 70_000..71_000).await;
    assert_all(&mesh, &client, 71_000, 4).await;

    // all at once, in the middle of whatever they do
    let under_way = send(&publisher, 71_000..75_000).await;
    mesh.kill_all().unwrap();
    mesh.start_all().await.unwrap();
    mesh.wait_ready().await.unwrap();
    received(under_way).await;
    let fresh = mesh.client(0).await.unwrap();
    assert_all(&mesh, &fresh, 75_000, 4).await;
}
