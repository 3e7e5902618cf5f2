//! Disks that fail under real peers: flipped bits in the files of one that is stopped, and syncs that fail while it runs.

use std::path::{Path, PathBuf};

use canal_proto::request::PeerStatus;
use canal_sdk::{Client, GroupId};
use canal_testnet::faults::Faults;
use canal_testnet::{Options, Scenario, Testnet, until};

use crate::common::{SOON, assert_numbered, patient, prepared, program, read_back, received, room, send};

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 16;
    std::fs::write(file, bytes).unwrap();
}

/// In the middle of the largest segment.
fn damage_a_segment(data: &Path) {
    let size = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let file = files(&data.join("files")).into_iter().max_by_key(size).unwrap();
    flip(&file, usize::try_from(size(&file)).unwrap() / 2);
}

/// All of the rows.
fn damage_the_rows(data: &Path) {
    for file in files(&data.join("state")).iter().filter(|path| !path.ends_with("BACKEND")) {
        std::fs::write(file, [0xa5; 5000]).unwrap();
    }
}

/// The last thing that the peer has written to its log and synced.
fn damage_the_end_of_the_log(data: &Path) {
    let logs = files(&data.join("log"));
    let file = logs.iter().rfind(|path| path.extension().is_some_and(|end| end == "raftlog")).unwrap();
    let note = std::fs::read(data.join("log/SYNCED")).unwrap();
    let slot = |at: usize| {
        let number = |at: usize| u64::from_le_bytes(note[at..at + 8].try_into().unwrap());
        (number(at + 12), number(at + 36))
    };
    let (_, synced) = slot(0).max(slot(4096));
    flip(file, usize::try_from(synced).unwrap() - 10);
}

/// An event that is in the log and nowhere else yet.
fn damage_an_entry(data: &Path) {
    let wanted = b"the one in the log";
    for file in files(&data.join("log")) {
        let bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            return flip(&file, at + 5);
        }
    }
    panic!("the event is not in the log");
}

async fn mended(net: &Testnet, n: usize) -> PeerStatus {
    until("the damage is found and made good", SOON, async || {
        let status = net.peer(n).unwrap().status().await.map_err(|error| error.to_string())?;
        let (found, repaired) = (status.damage_found, status.damage_repaired);
        if found > 0 && found == repaired { Ok(status) } else { Err(format!("{found} found, {repaired} repaired")) }
    })
    .await
    .unwrap()
}

async fn assert_all(net: &Testnet, client: &Client, count: u64) {
    until("three replicas hold all", SOON, async || {
        let status = client.topic_status("t").await.map_err(|error| error.to_string())?;
        let group = net.wait_group(GroupId(status.group)).await.map_err(|error| error.to_string())?;
        let voters = group.voters.len();
        if voters == 3 && group.replicas.len() == 3 { Ok(()) } else { Err(format!("{voters} voters")) }
    })
    .await
    .unwrap();
    let events = read_back(net, client, "t", usize::try_from(count).unwrap(), 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), count);
}

/// A follower is killed, its disk is damaged, the others go on, and it comes back.
async fn comes_back_from(damage: fn(&Path), sealed: bool) {
    let mesh = prepared(3, &["--seal-kb", "128"]).await;
    mesh.start_all().await.unwrap();
    mesh.wait_ready().await.unwrap();
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    let mut count = 500;
    received(send(&publisher, 0..count).await).await;
    if sealed {
        received(send(&publisher, count..12_000).await).await;
        count = 12_000;
        until("there are segments everywhere", SOON, async || {
            for n in 0..3 {
                let status = mesh.peer(n).unwrap().status().await.map_err(|error| error.to_string())?;
                let first = status.groups.iter().find(|found| found.id == group.0).map_or(0, |found| found.first);
                if status.segments == 0 || first < 2 {
                    return Err(format!("peer {n}: {} segments, the log begins at {first}", status.segments));
                }
            }
            Ok(())
        })
        .await
        .unwrap();
    }
    let leader = mesh.leader(group).await.unwrap();
    let other = (1..3).find(|n| *n != leader).unwrap();
    mesh.peer(other).unwrap().kill().unwrap();
    damage(mesh.peer(other).unwrap().data());
    let under_way = send(&publisher, count..count + 300).await;
    mesh.restart(other).await.unwrap();
    assert_eq!(received(under_way).await, 300);
    mended(&mesh, other).await;
    assert_all(&mesh, &client, count + 300).await;
    let text = crate::common::canal(&mesh.peer(other).unwrap().address().unwrap(), &["peer", "info"], b"").await.stdout;
    assert!(text.contains("disk damage") && text.contains("1 found, 1 repaired"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_of_a_segment_is_flipped() {
    comes_back_from(damage_a_segment, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_are_damaged() {
    comes_back_from(damage_the_rows, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_log_is_damaged() {
    comes_back_from(damage_the_end_of_the_log, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_the_log_is_damaged() {
    let mesh = prepared(3, &[]).await;
    mesh.start_all().await.unwrap();
    mesh.wait_ready().await.unwrap();
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    received(send(&publisher, 0..300).await).await;
    mesh.create_topic(&client, "u", "g", 3).await.unwrap();
    patient(&client, "u").await.publish(canal_sdk::Event::new("the one in the log")).await.unwrap();
    received(send(&publisher, 300..600).await).await;
    let leader = mesh.leader(group).await.unwrap();
    let other = (1..3).find(|n| *n != leader).unwrap();
    until("it has all of it", SOON, async || {
        let status = mesh.peer(other).unwrap().status().await.map_err(|error| error.to_string())?;
        let here = status.groups.iter().filter(|status| status.id == group.0);
        // of the two topics it is the one that was made first
        let next = here.flat_map(|status| &status.topics).min_by_key(|topic| topic.id).map_or(0, |topic| topic.next);
        if next == 600 { Ok(()) } else { Err(format!("{next}")) }
    })
    .await
    .unwrap();
    mesh.peer(other).unwrap().kill().unwrap();
    damage_an_entry(mesh.peer(other).unwrap().data());
    mesh.restart(other).await.unwrap();
    received(send(&publisher, 600..900).await).await;
    let status = mended(&mesh, other).await;
    let ids: Vec<u64> = status.groups.iter().filter(|found| found.id == group.0).map(|found| found.replica).collect();
    assert!(ids.iter().all(|id| *id > 3), "it came back under a new id: {ids:?}");
    assert_all(&mesh, &client, 900).await;
    let u = read_back(&mesh, &client, "u", 1, 3).await;
    assert_eq!(u[0].event.payload, "the one in the log".as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_syncs_fail_ends_and_another_leads_and_nothing_is_lost() {
    let _room = room(3).await;
    let options = Options { faults: true, ..Options::new(program()) };
    let mesh = Testnet::start(&Scenario::of(3), options).await.unwrap();
    if let Err(reason) = canal_testnet::faults::available() {
        eprintln!("not tried: {reason}");
        return;
    }
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let survivor = mesh.client((leader + 1) % 3).await.unwrap();
    let publisher = patient(&survivor, "t").await;
    received(send(&publisher, 0..500).await).await;
    let peer = mesh.peer(leader).unwrap();
    peer.faults(&Faults { fail_sync: true, ..Faults::default() }).unwrap();
    let under_way = send(&publisher, 500..1_500).await;
    assert_eq!(received(under_way).await, 1_000);
    let status = peer.ended(SOON).await.unwrap();
    assert!(!status.success(), "{status}");
    let logs = peer.logs().unwrap();
    assert!(logs.contains("the stores of this peer failed; its groups stop and no longer vote"), "{logs}");
    assert!(peer.faults_made().unwrap().failed > 0);
    // its disk works again
    peer.faults(&Faults::default()).unwrap();
    mesh.restart(leader).await.unwrap();
    received(send(&publisher, 1_500..1_600).await).await;
    assert_all(&mesh, &survivor, 1_600).await;
}
