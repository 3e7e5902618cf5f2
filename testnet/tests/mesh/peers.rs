//! Peers that get to know each other, come back with an older disk or none, and are emptied.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use canal_proto::peer::PeerInfo;
use canal_proto::request::{GroupStatus, PeerStatus};
use canal_sdk::{Code, GroupId, PeerId, Publisher};
use canal_testnet::until;
use serde_json::Value;

use crate::common::{Mesh, SOON, assert_numbered, canal, mesh, patient, read_back, received, send};

/// How a peer stands, soon.
async fn stands(mesh: &Mesh, peer: usize, what: &str, wanted: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
    until(&format!("peer {peer} {what}"), 2 * SOON, async || {
        let status = mesh.peer(peer).unwrap().status().await.map_err(|error| error.to_string())?;
        let groups: Vec<_> = status.groups.iter().map(|group| (&group.name, group.replica, group.leader)).collect();
        let text = format!("boot {}, knows {}, {groups:?}", status.info.boot, status.known);
        if wanted(&status) { Ok(status) } else { Err(text) }
    })
    .await
    .unwrap()
}

fn group_of(status: &PeerStatus, group: GroupId) -> Option<&GroupStatus> {
    status.groups.iter().find(|status| status.id == group.0)
}

/// The id of the replica that a peer holds in a group, as the group's leader has it.
async fn replica_of(mesh: &Mesh, group: GroupId, peer: PeerId) -> Option<u64> {
    let status = mesh.wait_group(group).await.unwrap();
    status.replicas.iter().find(|replica| replica.peer_id() == Ok(peer)).map(|replica| replica.id)
}

/// Waits until a peer holds a voting replica of a group under another id than this, and has all of it.
async fn filled_again(mesh: &Mesh, group: GroupId, peer: usize, before: u64) {
    let id = mesh.peer(peer).unwrap().id().unwrap();
    until(&format!("peer {peer} is filled again"), 2 * SOON, async || {
        let (_, leader) = mesh.led(group).await?;
        let replica = leader.replicas.iter().find(|replica| replica.peer_id() == Ok(id)).map(|replica| replica.id);
        assert!(replica.is_none_or(|replica| replica >= before), "an older id came back");
        let Some(new) = replica.filter(|replica| *replica != before) else {
            return Err(format!("its replica is {replica:?} of {:?}", leader.voters));
        };
        let status = mesh.peer(peer).unwrap().status().await.map_err(|error| error.to_string())?;
        let own = group_of(&status, group).ok_or("it has no replica yet")?;
        if leader.voters.contains(&new) && own.replica == new && own.applied >= leader.applied {
            return Ok(());
        }
        Err(format!("replica {new} of voters {:?}, {} of {}", leader.voters, own.applied, leader.applied))
    })
    .await
    .unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_peers_know_each_other_and_notice_who_goes() {
    let mesh = mesh(7).await;
    let ids: BTreeSet<Vec<u8>> = mesh.peers().iter().map(|peer| peer.id().unwrap().to_vec()).collect();
    for number in 0..7 {
        stands(&mesh, number, "knows all", |status| status.known == 7).await;
        let known: Vec<PeerInfo> = mesh.peer(number).unwrap().client().await.unwrap().peers().await.unwrap();
        assert_eq!(known.iter().map(|info| info.peer.clone()).collect::<BTreeSet<_>>(), ids);
        assert!(known.iter().all(|info| info.boot == 1 && info.revision > 0 && !info.addresses.is_empty()));
    }
    // round trips were measured: everybody has moved in the space of them
    until("coordinates are found", SOON, async || {
        let known = mesh.peer(0).unwrap().client().await.map_err(|e| e.to_string())?.peers().await;
        let known = known.map_err(|e| e.to_string())?;
        let moved = known.iter().filter_map(|info| info.coordinate).filter(|at| at.x.hypot(at.y) > 0.0).count();
        if moved == 7 { Ok(()) } else { Err(format!("{moved} of 7 have moved")) }
    })
    .await
    .unwrap();

    let gone = mesh.peer(6).unwrap();
    let id = gone.id().unwrap();
    gone.kill().unwrap();
    for number in 0..6 {
        stands(&mesh, number, "misses one", |status| status.known == 6).await;
    }
    let listed = canal(&mesh.peer(3).unwrap().address().unwrap(), &["peer", "ls", "--json"], b"").await;
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let silent = listed.iter().find(|info| info["id"] == id.to_string()).expect("it is not forgotten yet");
    assert!(silent["heard_ms_ago"].as_u64().unwrap() >= 10_000, "{silent}");

    mesh.restart(6).await.unwrap();
    mesh.wait_ready().await.unwrap();
    let status = stands(&mesh, 6, "is back", |status| status.known == 7).await;
    assert_eq!(status.info.boot, 2, "its second start");
    for number in 0..6 {
        until("its new start is known", SOON, async || {
            let client = mesh.peer(number).unwrap().client().await.map_err(|error| error.to_string())?;
            let known = client.peers().await.map_err(|error| error.to_string())?;
            let boot = known.iter().find(|info| info.peer == id.to_vec()).map(|info| info.boot);
            if boot == Some(2) { Ok(()) } else { Err(format!("start {boot:?}")) }
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_peers_that_begin_together_know_each_other() {
    let _room = crate::common::room(5).await;
    let options = canal_testnet::Options::new(crate::common::program());
    let net = canal_testnet::Testnet::prepare(&canal_testnet::Scenario::of(5), options).unwrap();
    net.start_all().await.unwrap();
    let up = Instant::now();
    for peer in net.peers() {
        until("it knows five", SOON, async || {
            let known = peer.status().await.map_err(|error| error.to_string())?.known;
            if known == 5 { Ok(()) } else { Err(format!("{known} known")) }
        })
        .await
        .unwrap();
    }
    let took = up.elapsed();
    // about a second on an idle machine: told, not asserted, since this one may be busy
    println!("five peers knew each other {took:?} after the last of them was up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_an_older_disk_never_votes_by_it_and_is_filled_again() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    received(send(&publisher, 0..300).await).await;
    let leader = mesh.leader(group).await.unwrap();
    let old = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    let peer = mesh.peer(old).unwrap();
    let id = peer.id().unwrap();
    let replica = replica_of(&mesh, group, id).await.expect("it holds a replica");

    // a copy of the disk is taken between two starts
    peer.terminate(SOON).await.unwrap();
    let backup = mesh.dir().join("backup");
    copy(peer.data(), &backup);
    mesh.restart(old).await.unwrap();
    received(send(&publisher, 300..600).await).await;
    stands(&mesh, old, "has the newer events", |status| {
        group_of(status, group).is_some_and(|group| group.topics.iter().any(|topic| topic.next == 600))
    })
    .await;

    // the third has no messages of a follower; it is told by gossip
    let seen = mesh.peer(other).unwrap().data().join("seen-starts.json");
    until("the third knows of the second start", SOON, async || {
        let seen: Value = serde_json::from_slice(&std::fs::read(&seen).unwrap()).map_err(|e| e.to_string())?;
        let boot = &seen[id.to_string()]["boot"];
        if boot == 2 { Ok(()) } else { Err(format!("{boot}")) }
    })
    .await
    .unwrap();

    // the peer is set back, while the leader of that time is away: only the third knows
    mesh.peer(leader).unwrap().kill().unwrap();
    peer.kill().unwrap();
    std::fs::remove_dir_all(peer.data()).unwrap();
    std::fs::rename(&backup, peer.data()).unwrap();
    mesh.restart(old).await.unwrap();
    stands(&mesh, old, "begins anew, with nothing", |status| status.groups.is_empty()).await;
    assert!(peer.data().join("forgotten-1/log").is_dir(), "what it held is kept");
    assert_eq!(std::fs::read_to_string(peer.data().join("boot")).unwrap(), "3\n");
    // with its old vote there would be a majority, and a leader
    stands(&mesh, other, "has no leader", |status| group_of(status, group).is_some_and(|group| group.leader == 0))
        .await;

    mesh.restart(leader).await.unwrap();
    filled_again(&mesh, group, old, replica).await;
    received(send(&publisher, 600..700).await).await;
    let events = read_back(&mesh, &client, "t", 700, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_an_older_disk_keeps_what_nobody_else_has() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let alone = mesh.create_topic(&client, "alone", "lonely", 1).await.unwrap();
    received(send(&patient(&client, "alone").await, 0..50).await).await;
    let old = mesh.leader(alone).await.unwrap();
    let peer = mesh.peer(old).unwrap();
    peer.terminate(SOON).await.unwrap();
    let backup = mesh.dir().join("backup");
    copy(peer.data(), &backup);
    mesh.restart(old).await.unwrap();
    let other = mesh.client((old + 1) % 3).await.unwrap();
    received(send(&patient(&other, "t").await, 0..50).await).await;
    let seen = mesh.peer((old + 1) % 3).unwrap().data().join("seen-starts.json");
    let id = peer.id().unwrap();
    until("another knows of the second start", SOON, async || {
        let seen: Value = serde_json::from_slice(&std::fs::read(&seen).unwrap()).map_err(|e| e.to_string())?;
        let boot = &seen[id.to_string()]["boot"];
        if boot == 2 { Ok(()) } else { Err(format!("{boot}")) }
    })
    .await
    .unwrap();

    peer.kill().unwrap();
    std::fs::remove_dir_all(peer.data()).unwrap();
    std::fs::rename(&backup, peer.data()).unwrap();
    // it may be told before it serves
    drop(mesh.restart(old).await);
    peer.ended(SOON).await.unwrap();
    let log = std::fs::read_to_string(peer.log()).unwrap();
    let told = "Groups that need what this peer holds: lonely; nothing was touched";
    assert!(log.contains(told) && log.contains("--discard-damaged"), "{log}");
    assert!(peer.data().join("log").is_dir() && !peer.data().join("forgotten-1").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_set_back_within_one_start_is_noticed_by_its_leader() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    let mut count = 0;
    // only the leader of that time knows; when a busy machine makes the group elect another, it is tried again
    while !is_set_back_and_noticed(&mesh, group, &publisher, &mut count).await {
        assert!(count < 5000, "no leader stays");
    }
    received(send(&publisher, count..count + 50).await).await;
    let events = read_back(&mesh, &client, "t", usize::try_from(count).unwrap() + 50, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), count + 50);
}

/// Sets a follower's disk back to an image of it, and waits until it is filled again; `false` when the group has another
/// leader than before by then.
async fn is_set_back_and_noticed(mesh: &Mesh, group: GroupId, publisher: &Publisher, count: &mut u64) -> bool {
    received(send(publisher, *count..*count + 100).await).await;
    mesh.wait_group(group).await.unwrap();
    let (leader, before) = until("a leader", SOON, async || mesh.led(group).await).await.unwrap();
    let old = (leader + 1) % 3;
    let peer = mesh.peer(old).unwrap();
    let id = peer.id().unwrap();
    let replica = replica_of(mesh, group, id).await.expect("it holds a replica");
    // an image of the disk while the process runs
    peer.stop().unwrap();
    let backup = mesh.dir().join(format!("backup-{count}"));
    copy(peer.data(), &backup);
    peer.cont().unwrap();
    received(send(publisher, *count + 100..*count + 400).await).await;
    *count += 400;
    let next = *count;
    stands(mesh, old, "has the newer events", |status| {
        group_of(status, group).is_some_and(|group| group.topics.iter().any(|topic| topic.next == next))
    })
    .await;
    peer.kill().unwrap();
    std::fs::remove_dir_all(peer.data()).unwrap();
    std::fs::rename(&backup, peer.data()).unwrap();
    // its count of starts goes on as if nothing had happened
    mesh.restart(old).await.unwrap();
    let noticed = until("it is noticed", 2 * SOON, async || {
        if peer.data().join("forgotten-1/log").is_dir() {
            return Ok(true);
        }
        let (_, now) = mesh.led(group).await?;
        if now.term != before.term { Ok(false) } else { Err(format!("replica {replica} of {:?}", now.voters)) }
    });
    let noticed = noticed.await.unwrap();
    if noticed {
        filled_again(mesh, group, old, replica).await;
    }
    noticed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_kept_only_its_key_is_filled_again() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    received(send(&publisher, 0..300).await).await;
    // the first one founded the mesh; it comes back by the others
    let peer = mesh.peer(0).unwrap();
    let id = peer.id().unwrap();
    let replica = replica_of(&mesh, group, id).await.expect("it holds a replica");
    peer.kill().unwrap();
    let under_way = send(&publisher, 300..400).await;
    for entry in std::fs::read_dir(peer.data()).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            // the port is only so that this test finds it again
            "identity" | "ports.json" => {}
            _ if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
            _ => std::fs::remove_file(path).unwrap(),
        }
    }
    mesh.restart(0).await.unwrap();
    assert_eq!(peer.id().unwrap(), id, "it is the same peer");
    filled_again(&mesh, group, 0, replica).await;
    received(under_way).await;
    let client = mesh.client(1).await.unwrap();
    let events = read_back(&mesh, &client, "t", 400, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_emptied_while_events_are_published() {
    let mesh = mesh(4).await;
    let admin = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&admin, "t", "g", 3).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let elsewhere = mesh.client((leader + 1) % 4).await.unwrap();
    let publisher = patient(&elsewhere, "t").await;
    received(send(&publisher, 0..200).await).await;
    let peer = mesh.peer(leader).unwrap();
    let (id, address) = (peer.id().unwrap(), peer.address().unwrap());

    let publishing = async {
        for n in 0..40 {
            received(send(&publisher, 200 + n * 20..220 + n * 20).await).await;
        }
    };
    let drain = ["peer", "drain", "--wait", "170", "--json"];
    let (ran, ()) = tokio::join!(canal(&address, &drain, b""), publishing);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["event"] == "moved" && event["group_name"] == "g"), "{ran:?}");
    assert_eq!(events.last().unwrap()["event"], "empty");
    let status = peer.status().await.unwrap();
    assert!(status.groups.is_empty() && status.info.draining);
    let whole = mesh.wait_group(group).await.unwrap();
    assert_eq!(whole.voters.len(), 3);
    assert!(whole.replicas.iter().all(|replica| replica.peer_id() != Ok(id)));
    let events = read_back(&mesh, &elsewhere, "t", 1000, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 1000);

    // it is still being emptied after a restart, until somebody gives that up
    assert!(peer.terminate(SOON).await.unwrap().success());
    mesh.restart(leader).await.unwrap();
    stands(&mesh, leader, "is being emptied", |status| status.info.draining).await;
    let ran = canal(&peer.address().unwrap(), &["peer", "drain", "--undo"], b"").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "the peer is no longer being emptied\n"), "{ran:?}");
    stands(&mesh, leader, "may hold replicas", |status| !status.info.draining).await;
    let info = canal(&peer.address().unwrap(), &["peer", "info", "--json"], b"").await;
    let info: Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!((&info["peer"]["draining"], &info["peer"]["boot"]), (&false.into(), &2.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_move_is_said_with_its_reason() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    let ran = canal(&address, &["peer", "drain"], b"").await;
    assert_eq!(ran.code, Some(i32::from(Code::InUse.exit_code())), "{ran:?}");
    assert!(ran.stderr.contains("g (no other peer is there to take it)"), "{ran:?}");
    // and nothing is lost by it
    received(send(&patient(&client, "t").await, 0..10).await).await;
}
