//! Peers that are emptied where nobody can take what they held.

use canal_sdk::Code;
use canal_testnet::until;
use serde_json::Value;

use crate::common::{SOON, assert_numbered, canal, mesh, patient, read_back, received, send};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_which_groups_it_leaves_short_and_stops_before_a_minority() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    mesh.wait_group(group).await.unwrap();
    received(send(&patient(&client, "t").await, 0..50).await).await;
    let address = |number: usize| mesh.peer(number).unwrap().address().unwrap();

    // nobody takes the third replica, and that is said
    let ran = canal(&address(2), &["peer", "drain", "--wait", "170"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("moved  g: it has now 2 of 3 replicas: no other peer can take the third\n"), "{ran:?}");
    let last = ran.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("empty: nothing is left on this peer, it can be switched off. But fewer peers"),
        "{ran:?}"
    );
    assert!(last.contains("g with 2 of 3"), "{ran:?}");
    assert!(mesh.peer(2).unwrap().status().await.unwrap().groups.is_empty());

    // one more, and one replica of three would be left
    let refused = canal(&address(1), &["peer", "drain", "--wait", "170"], b"").await;
    assert_eq!(refused.code, Some(i32::from(Code::InUse.exit_code())), "{refused:?}");
    assert!(refused.stderr.contains("only 1 other peer is there to hold replicas"), "{refused:?}");
    assert!(refused.stderr.contains("g with 1 of 3") && refused.stderr.contains("--force"), "{refused:?}");
    assert!(!mesh.peer(1).unwrap().status().await.unwrap().info.draining, "nothing was done");

    // it can be had
    let ran = canal(&address(1), &["peer", "drain", "--force", "--wait", "170", "--json"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let moved = events.iter().find(|event| event["event"] == "moved" && event["group_name"] == "g").unwrap();
    assert_eq!((&moved["replicas"], &moved["replicas_wanted"]), (&1.into(), &3.into()), "{ran:?}");
    let short = events.last().unwrap()["short"].as_array().unwrap();
    assert!(short.iter().any(|group| group["group_name"] == "g" && group["replicas"] == 1), "{ran:?}");
    // the last one keeps what it has, whatever is asked of it
    let ran = canal(&address(0), &["peer", "drain"], b"").await;
    assert_eq!(ran.code, Some(i32::from(Code::InUse.exit_code())), "{ran:?}");
    assert!(ran.stderr.contains("g (no other peer is there to take it)"), "{ran:?}");

    // and all is made good when they may hold replicas again
    for number in 0..3 {
        let ran = canal(&address(number), &["peer", "drain", "--undo"], b"").await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    until("the group has its replicas again", 2 * SOON, async || {
        let status = client.group_status(group).await.map_err(|error| error.to_string())?;
        if status.voters.len() == 3 { Ok(()) } else { Err(format!("{:?}", status.voters)) }
    })
    .await
    .unwrap();
    let events = read_back(&mesh, &client, "t", 50, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 50);
}
