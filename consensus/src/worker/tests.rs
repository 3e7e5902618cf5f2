//! Peers of a group whose disks fail while they run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;
use std::time::Duration;

use canal_proto::log::{Kind, StateOp, StateWrite};

use crate::log_store::faults;
use crate::{Error, History, Refused};

#[path = "../../tests/support/mesh.rs"]
mod mesh;

use mesh::*;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

impl Mesh {
    /// Starts a peer on what its process has left on its disk when it ended. (This process still holds the directory.)
    fn start_on_a_copy(&mut self, n: u8) {
        let image = tempfile::tempdir().unwrap();
        copy(self.dir(n), image.path());
        let _ = std::fs::remove_file(image.path().join("log/LOCK"));
        self.dirs[usize::from(n) - 1] = image;
        self.start(n).unwrap();
    }

    /// The two followers.
    async fn followers(&self) -> (u8, u8) {
        let leader = self.leader().await;
        let mut others = (1..=3).filter(|n| *n != leader);
        (others.next().unwrap(), others.next().unwrap())
    }
}

/// A follower whose disk fails says nothing of what it could not write, never again anything, and the peer says why.
async fn fails(fail: impl Fn(&Path), says: &str) {
    let mut mesh = Mesh::of_three().await;
    for sequence in 1..=20 {
        mesh.publish(sequence).await;
    }
    mesh.settled().await;
    let leader = mesh.leader().await;
    let (failing, other) = mesh.followers().await;
    // from now on nothing is committed without the one that fails
    mesh.stop(&[other]);
    fail(&mesh.dir(failing).join("log"));
    let id = u64::from(failing);
    let known = mesh.group(failing).status();
    let waiting = mesh.group(leader).append(item(21)).unwrap();
    let reason = mesh.handle(failing).failed().await;
    assert!(
        reason.contains(says) && reason.contains("check the disk and its free space, then restart the peer"),
        "{reason}"
    );
    // its thread has ended; what it has sent is in the leader's inbox before what comes now
    let later = mesh.group(leader).append(item(22)).unwrap();
    mesh.until(|statuses| {
        statuses.get(&leader).filter(|status| status.last >= known.last + 2 || !status.leads).map(drop)
    })
    .await;
    let status = mesh.group(leader).status();
    assert!(status.committed <= known.last, "{status:?}");
    assert!(status.matched.get(&id).is_none_or(|matched| *matched <= known.last), "{status:?}");
    let refused = mesh.group(failing).read().await.unwrap_err();
    assert!(matches!(refused, Error::Stopped), "{refused}");
    // for good: the disk works again, and it still says nothing
    faults::forget(&mesh.dir(failing).join("log"));
    let refused = match mesh.group(failing).append(item(21)) {
        Ok(appending) => appending.receipt().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert!(matches!(refused, Error::Stopped), "{refused}");
    assert_eq!(mesh.group(leader).status().committed, status.committed);
    drop((waiting, later));
    // the others go on without it
    mesh.stop(&[failing]);
    mesh.start(other).unwrap();
    for sequence in 21..=40 {
        assert_eq!(mesh.publish(sequence).await.offset, Some(sequence - 1));
    }
    // and it goes on from what it has, once its disk works again
    mesh.start_on_a_copy(failing);
    mesh.publish(41).await;
    mesh.settled().await;
    (1..=3).for_each(|n| mesh.assert_holds(n, 41));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_silences_a_follower_for_good() {
    within(fails(|log| faults::fail_syncs(log, true), "Input/output error")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_while_a_worker_ends_is_answered() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        let (failing, _) = mesh.followers().await;
        let group = mesh.group(failing);
        let (asked, done) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut waiting = Vec::new();
            // until nobody takes it any more
            while !matches!(group.append(item(1)).map(|appending| waiting.push(appending)), Err(Error::Stopped)) {
                std::thread::yield_now();
            }
            let _ = asked.send(waiting);
        });
        faults::fail_syncs(&mesh.dir(failing).join("log"), true);
        let leader = mesh.leader().await;
        mesh.group(leader).append(item(1)).unwrap().receipt().await.unwrap();
        for appending in done.await.unwrap() {
            drop(appending.receipt().await);
        }
        mesh.stop(&[failing]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_silences_a_follower_and_loses_nothing() {
    within(fails(|log| faults::leave_room(log, Some(30)), "No space left")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_sync_fails_is_followed_by_another_and_nothing_acknowledged_is_lost() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        for sequence in 1..=20 {
            mesh.publish(sequence).await;
        }
        let leader = mesh.leader().await;
        faults::fail_syncs(&mesh.dir(leader).join("log"), true);
        // it may be committed by the other two, but not by this one's word
        let cut_off = mesh.group(leader).append(item(21)).unwrap();
        let reason = mesh.handle(leader).failed().await;
        assert!(reason.contains("Input/output error"), "{reason}");
        assert!(matches!(cut_off.receipt().await, Ok(_) | Err(Error::Stopped)));
        mesh.stop(&[leader]);
        for sequence in 21..=40 {
            assert_eq!(mesh.publish(sequence).await.offset, Some(sequence - 1));
        }
        mesh.settled().await;
        (1..=3).filter(|n| *n != leader).for_each(|n| mesh.assert_holds(n, 40));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_others_may_have_when_the_sync_fails_is_uncertain() {
    within(async {
        let mut mesh = Mesh::of_three().await;
        let leader = mesh.leader().await;
        faults::fail_syncs(&mesh.dir(leader).join("log"), true);
        let row = StateOp { key: "row".into(), value: Some("value".into()) };
        let write = Kind::StateWrite(StateWrite { bucket: "bucket".into(), ops: vec![row] });
        // whoever is told that it was not done, does it again: over what others have written meanwhile
        let written = mesh.group(leader).propose(write).await;
        assert!(matches!(written, Err(Error::Refused(Refused::Uncertain))), "{written:?}");
        mesh.stop(&[leader]);
        mesh.publish(1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_files_can_not_be_synced_ends() {
    within(async {
        let often = History { seal_entries: 20, flush: Duration::from_millis(60), ..History::default() };
        let mut mesh = Mesh::of_three_with(3, often).await;
        let (failing, _) = mesh.followers().await;
        faults::fail_syncs(&mesh.dir(failing).join("files"), true);
        for sequence in 1..=60 {
            mesh.publish(sequence).await;
        }
        let reason = mesh.handle(failing).failed().await;
        assert!(reason.contains("cannot sync the files") && reason.contains("restart the peer"), "{reason}");
        mesh.stop(&[failing]);
        for sequence in 61..=80 {
            mesh.publish(sequence).await;
        }
        // it makes the segments anew
        faults::forget(&mesh.dir(failing).join("files"));
        mesh.start_on_a_copy(failing);
        mesh.publish(81).await;
        mesh.settled().await;
        (1..=3).for_each(|n| mesh.assert_holds(n, 81));
    })
    .await;
}
