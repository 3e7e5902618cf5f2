//! Damaged disks: what is noticed, what is mended, by whom, and what a peer says that can't go on.
//!
//! A bit is flipped in the files of a peer that is stopped. What is checked: no wrong event is ever served, no replica that
//! has lost what it promised takes part again, what others have comes back and is counted, and what nobody else has is
//! never thrown away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mesh.rs"]
mod mesh;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use canal_consensus::{ChangeSet, Damage, Error, History};
use mesh::*;

/// The files below a directory whose names end so.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn flip(file: &Path, at: usize, bit: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(file, bytes).unwrap();
}

/// Flips a bit of these bytes, where they stand in the files of this kind.
fn flip_in(dir: &Path, end: &str, of: &[u8]) {
    let places = files(dir, end).into_iter().filter_map(|file| {
        let bytes = std::fs::read(&file).unwrap();
        let at = bytes.windows(of.len()).position(|window| window == of)?;
        Some((file, at))
    });
    let (file, at) = places.max().expect("it is there");
    flip(&file, at + of.len() / 2, 3);
}

/// All below a directory, without the zeros that files of the log are made longer by.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let trimmed = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        bytes
    };
    files(dir, "")
        .into_iter()
        .filter(|path| !path.ends_with("LOCK"))
        .map(|path| (path.clone(), trimmed(&path)))
        .collect()
}

fn small() -> History {
    History {
        seal_bytes: 32 << 10,
        seal_entries: 100,
        log_bytes: 4 << 20,
        log_entries: 10_000,
        flush: Duration::from_millis(60),
        grace: Duration::from_millis(200),
    }
}

async fn alone(history: History, events: u64) -> Mesh {
    let mesh = Mesh::with(1, history);
    mesh.handle(1).create(seed(&[replica(1, 1)], 1)).await.unwrap();
    mesh.host_topic().await;
    publish(&mesh, 1, events).await;
    mesh
}

async fn publish(mesh: &Mesh, first: u64, last: u64) {
    for sequence in first..=last {
        mesh.publish(sequence).await;
    }
}

fn refused(mesh: &mut Mesh, n: u8) -> Damage {
    match mesh.start(n) {
        Err(Error::Damaged(damage)) => damage,
        Err(error) => panic!("refused otherwise: {error}"),
        Ok(()) => panic!("it started"),
    }
}

/// Waits until the counts of a peer are so.
async fn counted(mesh: &Mesh, n: u8, found: u64, repaired: u64) {
    loop {
        let totals = mesh.handle(n).totals();
        if (totals.damage_found, totals.damage_repaired) == (found, repaired) {
            return;
        }
        assert!(totals.damage_found <= found && totals.damage_repaired <= repaired, "{totals:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The last thing that this peer has promised is gone from the end of its log: it looks as a torn write does.
fn damage_the_end_of_the_log(mesh: &Mesh, n: u8) {
    let file = files(&mesh.dir(n).join("log"), ".raftlog").pop().unwrap();
    let end = std::fs::read(&file).unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    flip(&file, end - 6, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_not_cut_and_a_peer_that_is_needed_says_so_and_stays_down() {
    within(async {
        let mut mesh = alone(History::default(), 30).await;
        mesh.stop(&[1]);
        let whole = content(&mesh.dir(1).join("log"));
        for damage in
            [damage_the_end_of_the_log, |mesh: &Mesh, n| flip_in(&mesh.dir(n).join("log"), ".raftlog", b"\x01\x02")]
        {
            let copy = tempfile::tempdir().unwrap();
            for path in whole.keys() {
                std::fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            damage(&mesh, 1);
            let damaged = content(&mesh.dir(1).join("log"));
            if damaged == whole {
                continue;
            }
            for _ in 0..2 {
                let found = match mesh.start(1) {
                    Err(Error::Damaged(found)) => found,
                    Err(error) => panic!("refused otherwise: {error}"),
                    // in a payload: found when it is read
                    Ok(()) => {
                        mesh.stop(&[1]);
                        break;
                    }
                };
                assert!(!found.heals());
                let text = found.to_string();
                for part in
                    ["the raft log in", "is damaged", "Groups that need what this peer holds: g;", "--discard-damaged"]
                {
                    assert!(text.contains(part), "{part}: {text}");
                }
                assert!(content(&mesh.dir(1).join("log")) == damaged, "nothing was touched");
            }
            for file in std::fs::read_dir(copy.path()).unwrap().map(Result::unwrap) {
                std::fs::copy(file.path(), mesh.dir(1).join("log").join(file.file_name())).unwrap();
            }
        }
        // restored, it goes on
        mesh.start(1).unwrap();
        publish(&mesh, 31, 31).await;
        mesh.assert_holds(1, 31);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_groups_have_majorities_elsewhere_may_begin_anew() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        publish(&mesh, 1, 30).await;
        mesh.settled().await;
        mesh.stop(&[2]);
        damage_the_end_of_the_log(&mesh, 2);
        let damage = refused(&mut mesh, 2);
        assert!(damage.heals(), "{damage}");
        // the same for a log that is not there at all
        std::fs::remove_dir_all(mesh.dir(2).join("log")).unwrap();
        let damage = refused(&mut mesh, 2);
        assert!(damage.heals() && damage.to_string().contains("there is applied state, but no log"), "{damage}");
        // with the state gone as well, nobody knows
        std::fs::remove_dir_all(mesh.dir(2).join("state")).unwrap();
        std::fs::create_dir_all(mesh.dir(2).join("log")).unwrap();
        std::fs::write(mesh.dir(2).join("log/0000000000000001.raftlog"), [7; 100]).unwrap();
        std::fs::write(mesh.dir(2).join("log/0000000000000002.raftlog"), [7; 100]).unwrap();
        let damage = refused(&mut mesh, 2);
        assert!(!damage.heals() && damage.to_string().contains("can't be found out"), "{damage}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_can_not_read_its_log_takes_no_part_and_is_replaced() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        publish(&mesh, 1, 60).await;
        mesh.settled().await;
        let damaged = (1..=3).find(|n| !mesh.group(*n).status().leads).unwrap();
        mesh.stop(&[damaged]);
        flip_in(&mesh.dir(damaged).join("log"), ".raftlog", b"event 30");
        mesh.start(damaged).unwrap();
        // nobody asks for that entry: it is found all the same
        mesh.until(|statuses| statuses.get(&damaged).filter(|status| status.forgotten).map(drop)).await;
        counted(&mesh, damaged, 1, 0).await;
        let before = mesh.group(damaged).status();
        publish(&mesh, 61, 80).await;
        let after = mesh.group(damaged).status();
        assert!(!after.leads && after.term == before.term && after.last == before.last, "{after:?}");
        // what its leader does about it
        let change = ChangeSet { promote: Vec::new(), remove: vec![damaged.into()] };
        mesh.change(async |group| group.change(change.clone()).await).await;
        mesh.until(|statuses| leading(statuses).filter(|l| l.configuration.voters.len() == 2 && !l.joint).map(drop))
            .await;
        mesh.change(async |group| group.add_learner(replica(0, damaged)).await).await;
        let id = mesh
            .until(|statuses| {
                let configuration = &leading(statuses)?.configuration;
                let added = configuration.replicas.iter().find(|r| r.id > 3 && r.peer == peer(damaged).to_vec())?;
                configuration.learners.contains(&added.id).then_some(added.id)
            })
            .await;
        mesh.handle(damaged).remove(GROUP, damaged.into()).await.unwrap();
        let first: Vec<_> = (1..=3).map(|n| replica(n.into(), n)).collect();
        loop {
            match mesh.handle(damaged).create(seed(&first, id)).await {
                Ok(()) => break,
                Err(Error::Refused(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
        let caught_up = |leader: &canal_consensus::Status| leader.matched.get(&id) == Some(&leader.last);
        mesh.until(|statuses| leading(statuses).filter(|leader| caught_up(leader)).map(drop)).await;
        mesh.change(async |group| group.promote(id).await).await;
        mesh.until(|statuses| leading(statuses).filter(|l| l.configuration.voters.contains(&id) && !l.joint).map(drop))
            .await;
        publish(&mesh, 81, 81).await;
        mesh.settled().await;
        (1..=3).for_each(|n| mesh.assert_holds(n, 81));
        counted(&mesh, damaged, 1, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_goes_on_with_what_it_can_read() {
    within(async {
        let mut mesh = alone(History::default(), 60).await;
        mesh.stop(&[1]);
        flip_in(&mesh.dir(1).join("log"), ".raftlog", b"event 30");
        mesh.start(1).unwrap();
        counted(&mesh, 1, 1, 0).await;
        publish(&mesh, 61, 70).await;
        let view = mesh.group(1).view();
        for offset in (0..70).filter(|offset| *offset != 29) {
            let events = view.events(TOPIC, offset, 1, MANY).unwrap();
            assert_eq!(events[0].event.payload, payload(offset + 1));
        }
        let error = view.events(TOPIC, 29, 1, MANY).unwrap_err().to_string();
        assert!(error.contains("the raft log in") && error.contains("is damaged"), "{error}");
        assert_eq!(view.events(TOPIC, 20, MANY, MANY).unwrap().len(), 9, "up to it");
        assert!(!mesh.group(1).status().forgotten);
    })
    .await;
}

/// A replica can't begin without entries that it has yet to apply.
#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_does_not_begin_without_what_it_has_yet_to_apply() {
    within(async {
        let mut mesh = alone(History::default(), 30).await;
        mesh.stop(&[1]);
        flip_in(&mesh.dir(1).join("log"), ".raftlog", b"event 12");
        std::fs::remove_dir_all(mesh.dir(1).join("state")).unwrap();
        let damage = refused(&mut mesh, 1);
        let text = damage.to_string();
        assert!(
            !damage.heals() && text.starts_with("the raft log of group g is damaged: group 0000000000000005:"),
            "{text}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_state_that_nobody_can_make_again_is_not_touched() {
    within(async {
        let mut mesh = alone(small(), 400).await;
        mesh.until(|statuses| statuses.get(&1).filter(|status| status.first > 200).map(drop)).await;
        mesh.stop(&[1]);
        let state = files(&mesh.dir(1).join("state"), "");
        let saved: Vec<_> = state.iter().map(|path| std::fs::read(path).unwrap()).collect();
        for path in state.iter().filter(|path| !path.ends_with("BACKEND")) {
            std::fs::write(path, vec![0xa5; 5000]).unwrap();
        }
        let damage = refused(&mut mesh, 1);
        let text = damage.to_string();
        assert!(!damage.heals(), "{text}");
        for part in ["fjall cannot open the state in", "it was cut", "Restore the data directory from a copy"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(mesh.moved_aside(1), Vec::<PathBuf>::new());
        for (path, bytes) in state.iter().zip(saved) {
            std::fs::write(path, bytes).unwrap();
        }
        mesh.start(1).unwrap();
        mesh.settled().await;
        mesh.assert_holds(1, 400);
    })
    .await;
}

/// Whatever bit of the state is flipped: it is noticed at once, or when it is read, or it does no harm.
#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_bit_of_the_state_changes_what_is_served() {
    within(async {
        let mut mesh = alone(History::default(), 40).await;
        let mut random = 7u64;
        let mut next = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % bound.max(1)
        };
        let mut last = 40;
        let mut noticed = 0;
        let tries = std::env::var("CANAL_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(25);
        for _ in 0..tries {
            mesh.stop(&[1]);
            let all = files(&mesh.dir(1).join("state"), "");
            let file = &all[next(all.len())];
            let bytes = std::fs::read(file).unwrap();
            if let Some(end) = bytes.iter().rposition(|byte| *byte != 0) {
                flip(file, next(end + 1), next(8));
            }
            // it may fail while it runs, and once more: the next start knows
            for attempt in 0.. {
                mesh.start(1).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                noticed += mesh.handle(1).totals().damage_found;
                let handle = mesh.handle(1);
                let served = async {
                    mesh.settled().await;
                    mesh.publish(last + 1).await;
                };
                tokio::select! {
                    biased;
                    reason = handle.failed() => {
                        drop(handle);
                        assert!(attempt < 2, "{}: {reason}", file.display());
                        mesh.stop(&[1]);
                    }
                    () = served => break,
                }
            }
            last += 1;
            mesh.assert_holds(1, last);
        }
        assert!(noticed > 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_found_made_good_and_counted() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        publish(&mesh, 1, 400).await;
        mesh.settled().await;
        mesh.until(|statuses| statuses.values().all(|status| status.first > 150).then_some(())).await;
        // until nothing more is sealed, and so no segment takes the place of another
        let rests = |n| mesh.group(n).status().applied - mesh.group(n).view().sealed_through().unwrap() < 100;
        while !(1..=3).all(rests) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let oldest = mesh.group(1).view().segments(TOPIC).unwrap().remove(0);
        mesh.settled().await;
        let name = canal_proto::ContentHash::from_slice(&oldest.hash).unwrap().to_string();
        while !files(&mesh.dir(2).join("files"), &name).iter().any(|path| path.ends_with(&name)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        mesh.stop(&[2]);
        let of_two = files(&mesh.dir(2).join("files"), "");
        let file = of_two.iter().find(|path| path.ends_with(&name)).expect("it has that segment");
        let whole = std::fs::read(file).unwrap();
        flip(file, whole.len() / 2, 5);
        mesh.start(2).unwrap();
        counted(&mesh, 2, 1, 1).await;
        assert!(std::fs::read(file).unwrap() == whole, "it is what it was");
        mesh.settled().await;
        (1..=3).for_each(|n| mesh.assert_holds(n, 400));
    })
    .await;
}

/// Adds a replica that learns, on a peer.
async fn add(mesh: &Mesh, n: u8) {
    mesh.change(async |group| group.add_learner(replica(0, n)).await).await;
    let named = |statuses: &BTreeMap<u8, canal_consensus::Status>| {
        let configuration = &leading(statuses)?.configuration;
        configuration.replicas.iter().find(|held| held.peer == peer(n).to_vec()).map(|held| held.id)
    };
    let id = mesh.until(named).await;
    let first: Vec<_> = (1..=3).map(|n| replica(n.into(), n)).collect();
    mesh.handle(n).create(seed(&first, id)).await.unwrap();
}

/// The whole files of a peer that are no segments of the leader's.
fn pieces_of_rows(mesh: &Mesh, n: u8, leader: u8) -> Vec<PathBuf> {
    let segments = mesh.group(leader).view().all_segments().unwrap();
    let of_rows = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let hash = name.parse::<canal_proto::ContentHash>();
        hash.is_ok_and(|hash| segments.iter().all(|segment| segment.hash[..] != hash.0[..]))
    };
    files(&mesh.dir(n).join("files"), "").into_iter().filter(of_rows).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_damaged_where_it_is_taken_over_is_asked_for_again() {
    within(async {
        let mesh = Mesh::of_three_with(4, small()).await;
        publish(&mesh, 1, 400).await;
        mesh.settled().await;
        mesh.until(|statuses| statuses.values().all(|status| status.first > 150).then_some(())).await;
        // the rows come first
        *mesh.table.left.lock() = Some(1);
        add(&mesh, 4).await;
        let leader = mesh.leader().await;
        let rows = loop {
            if let Some(rows) = pieces_of_rows(&mesh, 4, leader).pop() {
                break rows;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        flip(&rows, 40, 2);
        *mesh.table.left.lock() = None;
        mesh.until(|statuses| statuses.get(&4).filter(|status| status.applied >= 400).map(drop)).await;
        mesh.settled().await;
        assert!(mesh.handle(4).totals().damage_found >= 1);
        (1..=4).for_each(|n| mesh.assert_holds(n, 400));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_damaged_before_it_is_given_is_written_again() {
    within(async {
        let mesh = Mesh::of_three_with(4, small()).await;
        publish(&mesh, 1, 400).await;
        mesh.settled().await;
        mesh.until(|statuses| statuses.values().all(|status| status.first > 150).then_some(())).await;
        *mesh.table.left.lock() = Some(0);
        add(&mesh, 4).await;
        let leader = mesh.leader().await;
        while mesh.handle(leader).totals().written == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let rows = pieces_of_rows(&mesh, leader, leader);
        assert!(!rows.is_empty());
        rows.iter().for_each(|file| flip(file, 40, 2));
        *mesh.table.left.lock() = None;
        mesh.until(|statuses| statuses.get(&4).filter(|status| status.applied >= 400).map(drop)).await;
        mesh.settled().await;
        assert!(mesh.handle(leader).totals().written >= 2);
        (1..=4).for_each(|n| mesh.assert_holds(n, 400));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_copy_of_a_damaged_segment_stays_and_is_read_where_it_is_whole() {
    within(async {
        let mut mesh = alone(small(), 400).await;
        mesh.until(|statuses| statuses.get(&1).filter(|status| status.first > 150).map(drop)).await;
        // until nothing more is sealed, and so no segment takes the place of another
        let rests = || mesh.group(1).status().applied - mesh.group(1).view().sealed_through().unwrap() < 100;
        while !rests() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let group = mesh.group(1);
        let oldest = group.view().segments(TOPIC).unwrap().remove(0);
        drop(group);
        mesh.stop(&[1]);
        let name = canal_proto::ContentHash::from_slice(&oldest.hash).unwrap().to_string();
        let file = mesh.dir(1).join("files").join(name);
        flip_in(&mesh.dir(1).join("files"), file.file_name().unwrap().to_str().unwrap(), b"event 42");
        mesh.start(1).unwrap();
        counted(&mesh, 1, 1, 0).await;
        publish(&mesh, 401, 560).await;
        let view = mesh.group(1).view();
        let mut lost = 0;
        for offset in 0..560 {
            match view.events(TOPIC, offset, 1, MANY) {
                Ok(events) => assert_eq!(events[0].event.payload, payload(offset + 1)),
                Err(error) => {
                    assert!((oldest.first..oldest.end()).contains(&offset), "{offset}: {error}");
                    lost += 1;
                }
            }
        }
        assert!((1..=oldest.count).contains(&lost), "{lost}");
        assert!(file.exists(), "it may be mended by hand");
        // what comes later is moved to segments, and leaves the log, all the same
        let first = mesh.group(1).status().first;
        publish(&mesh, 561, 900).await;
        mesh.until(|statuses| statuses.get(&1).filter(|status| status.first > first + 150).map(drop)).await;
    })
    .await;
}
