//! Groups of whole services: real logs, real state, real threads; only the network is a table in memory.
//!
//! What is checked is what a client may count on: an acknowledged event is there once, in its place, on every replica,
//! whatever was stopped, lost or damaged meanwhile within what the group tolerates; and what the group can't tolerate
//! is refused in words. Every wait is for a change of a replica's status, under one deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mesh.rs"]
mod mesh;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use canal_consensus::{Error, Refused, Status};
use mesh::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_group_serves_while_its_leader_is_restarted() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        for sequence in 1..=100 {
            assert_eq!(mesh.publish(sequence).await.offset, Some(sequence - 1));
        }
        let leader = mesh.leader().await;
        // one is on its way when the leader goes: it may or may not have been appended
        let cut_off = mesh.group(leader).append(item(101)).unwrap();
        mesh.stop(&[leader]);
        let cut_off = cut_off.receipt().await;
        assert!(
            matches!(cut_off, Ok(_) | Err(Error::Stopped | Error::Refused(Refused::NotLeader | Refused::Uncertain))),
            "{cut_off:?}"
        );
        for sequence in 101..=150 {
            assert_eq!(mesh.publish(sequence).await.offset, Some(sequence - 1));
        }
        mesh.start(leader).unwrap();
        for sequence in 151..=200 {
            assert_eq!(mesh.publish(sequence).await.offset, Some(sequence - 1));
        }
        mesh.settled().await;
        for n in 1..=3 {
            mesh.assert_holds(n, 200);
            assert_eq!(mesh.moved_aside(n), Vec::<PathBuf>::new());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_gone_when_all_stop_at_once() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        let mut last = mesh.publish(1).await;
        for sequence in 2..=60 {
            last = mesh.publish(sequence).await;
        }
        assert_eq!((last.offset, last.duplicate), (Some(59), false));
        mesh.stop(&[1, 2, 3]);
        for n in 1..=3 {
            mesh.start(n).unwrap();
        }
        let again = mesh.publish(60).await;
        assert_eq!((again.offset, again.duplicate), (last.offset, true));
        assert_eq!(mesh.publish(61).await.offset, Some(60));
        mesh.settled().await;
        for n in 1..=3 {
            mesh.assert_holds(n, 61);
            assert_eq!(mesh.moved_aside(n), Vec::<PathBuf>::new());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_from_one_to_three_and_goes_on_without_its_first() {
    within(async {
        let mut mesh = Mesh::new(3);
        let first = [replica(1, 1)];
        mesh.handle(1).create(seed(&first, 1)).await.unwrap();
        mesh.host_topic().await;
        for sequence in 1..=20 {
            mesh.publish(sequence).await;
        }
        for n in [2, 3] {
            mesh.change(async |group| group.add_learner(replica(0, n)).await).await;
            let id = mesh
                .until(|statuses| {
                    let configuration = &leading(statuses)?.configuration;
                    let added = configuration.replicas.iter().find(|held| held.peer == peer(n).to_vec())?;
                    configuration.learners.contains(&added.id).then_some(added.id)
                })
                .await;
            mesh.handle(n).create(seed(&first, id)).await.unwrap();
            let caught_up = |leader: &Status| leader.matched.get(&id) == Some(&leader.last);
            mesh.until(|statuses| leading(statuses).filter(|leader| caught_up(leader)).map(drop)).await;
            mesh.change(async |group| group.promote(id).await).await;
            let votes = |leader: &Status| leader.configuration.voters.contains(&id);
            mesh.until(|statuses| leading(statuses).filter(|leader| votes(leader)).map(drop)).await;
        }
        mesh.publish(21).await;
        mesh.settled().await;
        (1..=3).for_each(|n| mesh.assert_holds(n, 21));
        mesh.stop(&[1]);
        for sequence in 22..=40 {
            assert_eq!(mesh.publish(sequence).await.offset, Some(sequence - 1));
        }
        mesh.settled().await;
        [2, 3].into_iter().for_each(|n| mesh.assert_holds(n, 40));
        // the first, above all, must not believe that it is still alone
        mesh.stop(&[2, 3]);
        for n in 1..=3 {
            mesh.start(n).unwrap();
            assert_eq!(mesh.group(n).status().configuration.voters.len(), 3, "peer {n}");
        }
        assert_eq!(mesh.publish(41).await.offset, Some(40));
        mesh.settled().await;
        (1..=3).for_each(|n| mesh.assert_holds(n, 41));
    })
    .await;
}

/// The files below a directory, except the one that names the backend.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "BACKEND" {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Replaces a file by garbage.
fn overwrite(file: &Path) {
    let length = std::fs::metadata(file).unwrap().len().clamp(64, 1 << 20);
    std::fs::write(file, vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
}

/// A peer whose group has no other replica: what it has afterwards can only come from its own log.
async fn alone() -> Mesh {
    let mesh = Mesh::new(1);
    mesh.handle(1).create(seed(&[replica(1, 1)], 1)).await.unwrap();
    mesh.host_topic().await;
    for sequence in 1..=30 {
        mesh.publish(sequence).await;
    }
    mesh
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_state_is_moved_aside_and_made_again_from_the_log() {
    within(async {
        let mut mesh = alone().await;
        mesh.stop(&[1]);
        let state = files(&mesh.dir(1).join("state"));
        assert!(!state.is_empty());
        state.iter().for_each(|file| overwrite(file));
        mesh.start(1).unwrap();
        mesh.settled().await;
        assert_eq!(mesh.moved_aside(1), [mesh.dir(1).join("state.damaged-1")]);
        mesh.assert_holds(1, 30);
        let again = mesh.publish(30).await;
        assert_eq!((again.offset, again.duplicate), (Some(29), true));
        assert_eq!(mesh.publish(31).await.offset, Some(30));
        mesh.assert_holds(1, 31);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_single_file_of_the_state_is_needed() {
    within(async {
        let mut mesh = alone().await;
        let mut damaged = 0;
        loop {
            mesh.stop(&[1]);
            // whether the backend notices or gets by with what is left is its own affair; the answer is not
            let Some(file) = files(&mesh.dir(1).join("state")).into_iter().nth(damaged) else { break };
            overwrite(&file);
            damaged += 1;
            mesh.start(1).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            mesh.settled().await;
            mesh.assert_holds(1, 30);
            let again = mesh.publish(30).await;
            assert_eq!((again.offset, again.duplicate), (Some(29), true), "{}", file.display());
        }
        assert!(damaged > 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_without_its_log_is_refused() {
    within(async {
        let mut mesh = alone().await;
        mesh.stop(&[1]);
        std::fs::remove_dir_all(mesh.dir(1).join("log")).unwrap();
        let error = mesh.start(1).unwrap_err().to_string();
        assert!(error.contains("there is applied state, but no log"), "{error}");
        assert!(error.contains("Groups that need what this peer holds: g;"), "{error}");
        assert!(error.contains("Restore the data directory from a copy"), "{error}");
        // a refusal that made an empty log must not let the next start through
        let error = mesh.start(1).unwrap_err().to_string();
        assert!(error.contains("there is applied state, but no log"), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_leader_confirms_reads() {
    within(async {
        let mesh = Mesh::of_three().await;
        mesh.publish(1).await;
        mesh.settled().await;
        loop {
            let leader = mesh.leader().await;
            let term = mesh.group(leader).status().term;
            let mut answers = BTreeMap::new();
            for n in 1..=3 {
                answers.insert(n, mesh.group(n).read().await);
            }
            if mesh.groups().iter().any(|(_, group)| group.status().term != term) {
                // there was an election in between, so the answers are of more than one leader
                mesh.settled().await;
                continue;
            }
            assert!(matches!(answers.remove(&leader), Some(Ok(()))), "the leader, peer {leader}");
            for (n, answer) in answers {
                assert!(matches!(answer, Err(Error::Refused(Refused::NotLeader))), "peer {n}: {answer:?}");
            }
            mesh.assert_holds(leader, 1);
            return;
        }
    })
    .await;
}
