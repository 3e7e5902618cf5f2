//! What happens to a group's history: it moves to segments, leaves the log, and comes back wherever it is needed.
//!
//! Whole services with small thresholds. What is checked: every replica serves every offset, with the same bytes, however
//! it came by them; a log stays short, and what a restart takes does not grow with the history; and whatever a crash leaves
//! in between is finished or done again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mesh.rs"]
mod mesh;

use std::time::Duration;

use bytes::Bytes;
use canal_consensus::core::group::Install;
use canal_consensus::{ChangeSet, Error, History, Refused, Status, log_store::LogStore, view};
use canal_proto::event::Stored;
use canal_proto::log::{AppendItem, GroupSpec, Kind, TopicSpec, Trim};
use canal_proto::peer::{Manifest, Piece};
use canal_proto::{Event, TopicId};
use mesh::*;
use prost::Message as _;

/// A second topic, into which little comes: its segments are merged.
const SLOW: TopicId = TopicId(8);
/// Events of a batch.
const BATCH: u64 = 50;

/// Seals after some hundred entries, and cuts as soon as that is on disk.
fn small() -> History {
    History {
        seal_bytes: 64 << 10,
        seal_entries: 200,
        log_bytes: 4 << 20,
        log_entries: 10_000,
        flush: Duration::from_millis(60),
        grace: Duration::from_millis(200),
    }
}

fn batch(topic: TopicId, first: u64, count: u64) -> AppendItem {
    let event = |sequence: u64| {
        let mut event = Event::new(format!("event {sequence} of {topic} {}", "x".repeat(100)).into_bytes());
        event.key = Bytes::from(format!("k{}", sequence % 7));
        event
    };
    let events = (first..first + count).map(event).collect();
    AppendItem { topic: topic.0, producer: Bytes::from_static(&[1; 16]), first_sequence: first, events, origin: 0 }
}

impl Mesh {
    /// Hosts both topics.
    async fn host_both(&self, version: u64) {
        let topic = |id: TopicId| TopicSpec { id: id.0, name: format!("t{}", id.0), ..TopicSpec::default() };
        let spec = GroupSpec { version, topics: vec![topic(TOPIC), topic(SLOW)], ..GroupSpec::default() };
        self.propose(Kind::Spec(spec)).await;
    }

    async fn propose(&self, kind: Kind) {
        loop {
            let leader = self.leader().await;
            match self.group(leader).propose(kind.clone()).await {
                Ok(_) => return,
                Err(Error::Refused(Refused::NotLeader | Refused::Uncertain | Refused::Busy)) => {}
                Err(error) => panic!("refused: {error}"),
            }
        }
    }

    async fn append(&self, item: AppendItem) {
        loop {
            let leader = self.leader().await;
            let answer = match self.group(leader).append(item.clone()) {
                Ok(appending) => appending.receipt().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(_) => return,
                Err(Error::Refused(Refused::NotLeader | Refused::Uncertain | Refused::Busy) | Error::Stopped) => {}
                Err(error) => panic!("refused: {error}"),
            }
        }
    }

    /// Publishes events `first..=last` to the topic, and a few to the slow one.
    async fn fill(&self, first: u64, last: u64) {
        let mut next = first;
        while next <= last {
            let count = BATCH.min(last + 1 - next);
            self.append(batch(TOPIC, next, count)).await;
            self.append(batch(SLOW, next.div_ceil(BATCH), 1)).await;
            next += count;
        }
    }

    /// All that a replica has of a topic.
    fn read(&self, n: u8, topic: TopicId) -> Vec<Stored> {
        self.try_read(n, topic).unwrap_or_else(|error| panic!("peer {n}: {error}"))
    }

    fn try_read(&self, n: u8, topic: TopicId) -> Result<Vec<Stored>, view::Error> {
        let view = self.group(n).view();
        let mut at = view.oldest(topic)?;
        let mut all = Vec::new();
        loop {
            let events = view.events(topic, at, 300, 64 << 10)?;
            let Some(last) = events.last() else { return Ok(all) };
            at = last.offset + 1;
            all.extend(events);
        }
    }

    /// Every replica of these serves all events, with the same bytes.
    fn assert_same(&self, peers: &[u8], last: u64) {
        for topic in [TOPIC, SLOW] {
            let count = if topic == TOPIC { last } else { last.div_ceil(BATCH) };
            let first = self.read(peers[0], topic);
            assert_eq!(first.len() as u64, count, "topic {topic} at peer {}", peers[0]);
            for (event, offset) in first.iter().zip(0..) {
                assert_eq!(event.offset, offset);
                assert_eq!(event.sequence, offset + 1);
                assert_eq!(event.event.payload, batch(topic, offset + 1, 1).events[0].payload);
            }
            for n in &peers[1..] {
                assert!(self.read(*n, topic) == first, "topic {topic}: peer {n} differs from peer {}", peers[0]);
            }
        }
    }

    /// Waits until the logs of these peers begin behind an index.
    async fn cut_beyond(&self, peers: &[u8], index: u64) {
        let peers = peers.to_vec();
        self.until(|statuses| peers.iter().all(|n| statuses.get(n).is_some_and(|s| s.first > index)).then_some(()))
            .await;
    }

    async fn applied(&self, n: u8, index: u64) {
        self.until(|statuses| statuses.get(&n).filter(|status| status.applied >= index).map(drop)).await;
    }

    /// Adds a replica on a peer, and waits until it votes.
    async fn grow(&self, n: u8) -> u64 {
        self.change(async |group| group.add_learner(replica(0, n)).await).await;
        let id = self
            .until(|statuses| {
                let configuration = &leading(statuses)?.configuration;
                configuration.replicas.iter().find(|held| held.peer == peer(n).to_vec()).map(|held| held.id)
            })
            .await;
        let first: Vec<_> = (1..=3).map(|n| replica(n.into(), n)).collect();
        self.handle(n).create(seed(&first, id)).await.unwrap();
        let caught_up =
            |leader: &Status| leader.progress.get(&id).is_some_and(|p| p.matched + 5 > leader.last && !p.snapshot);
        self.until(|statuses| leading(statuses).filter(|leader| caught_up(leader)).map(drop)).await;
        self.change(async |group| group.promote(id).await).await;
        let votes = |leader: &Status| leader.configuration.voters.contains(&id);
        self.until(|statuses| leading(statuses).filter(|leader| votes(leader)).map(drop)).await;
        id
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_leaves_the_log_and_every_replica_serves_all_of_it() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 12_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        mesh.assert_same(&[1, 2, 3], 12_000);
        for n in 1..=3 {
            let totals = mesh.handle(n).totals();
            assert!(totals.segments > 3 && totals.differing == 0, "{totals:?}");
            let slow = mesh.group(n).view().segments(SLOW).unwrap();
            assert_eq!(slow.len(), 1, "the slow topic's events stay together: {slow:?}");
        }
        // all at once, and again from what is on disk
        mesh.stop(&[1, 2, 3]);
        for n in 1..=3 {
            mesh.start(n).unwrap();
            let status = mesh.group(n).status();
            assert!(status.first > applied.saturating_sub(60), "the log is as short as it was");
        }
        mesh.assert_same(&[1, 2, 3], 12_000);
        mesh.fill(12_001, 12_500).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3], 12_500);
        for n in 1..=3 {
            assert_eq!(mesh.moved_aside(n).len(), 0);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_is_filled_by_a_snapshot_and_follows() {
    within(async {
        let mesh = Mesh::of_three_with(4, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 8_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        let id = mesh.grow(4).await;
        assert!(mesh.handle(4).totals().installed >= 1);
        mesh.fill(8_001, 9_000).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3, 4], 9_000);
        // it has all that a leader needs
        let leader = mesh.leader().await;
        if leader != 4 {
            mesh.group(leader).transfer(id);
            mesh.until(|statuses| statuses.get(&4).filter(|status| status.leads).map(drop)).await;
        }
        mesh.fill(9_001, 12_000).await;
        mesh.settled().await;
        let applied = mesh.group(4).status().applied;
        mesh.cut_beyond(&[1, 2, 3, 4], applied.saturating_sub(60)).await;
        mesh.assert_same(&[4, 1, 2, 3], 12_000);
        assert!((1..=4).all(|n| mesh.handle(n).totals().differing == 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_for_long_is_filled() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 3_000).await;
        let leader = mesh.leader().await;
        let away = if leader == 3 { 2 } else { 3 };
        let others: Vec<u8> = (1..=3).filter(|n| *n != away).collect();
        mesh.stop(&[away]);
        mesh.fill(3_001, 9_000).await;
        let applied = mesh.group(leader).status().applied;
        mesh.cut_beyond(&others, applied.saturating_sub(60)).await;
        mesh.start(away).unwrap();
        mesh.fill(9_001, 9_300).await;
        mesh.settled().await;
        assert!(mesh.handle(away).totals().installed >= 1);
        mesh.assert_same(&[1, 2, 3], 9_300);
        let again = mesh.group(mesh.leader().await).append(batch(TOPIC, 1, 1)).unwrap().receipt().await.unwrap();
        assert!(again.duplicate, "what was deduplicated stays so");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_state_is_filled_by_the_others() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 5_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        let lost = if mesh.leader().await == 1 { 2 } else { 1 };
        mesh.stop(&[lost]);
        std::fs::remove_dir_all(mesh.dir(lost).join("state")).unwrap();
        mesh.start(lost).unwrap();
        assert!(mesh.group(lost).status().hollow);
        mesh.fill(5_001, 5_500).await;
        mesh.until(|statuses| statuses.get(&lost).filter(|status| !status.hollow).map(drop)).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3], 5_500);
        assert!(mesh.handle(lost).totals().installed >= 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_was_cut_off_and_whose_files_are_gone_is_begun_anew() {
    within(async {
        let mut mesh = Mesh::of_three_with(4, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 4_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        mesh.grow(4).await;
        mesh.settled().await;
        // as after a crash between the record and the rows: the record is there, and the rows are anything
        let status = mesh.group(4).status();
        let install = Install {
            index: status.applied,
            term: status.term,
            data: Manifest { rows: vec![Piece { hash: vec![7; 32].into(), size: 9 }], ..Manifest::default() }
                .encode_to_vec()
                .into(),
            own_term: status.term,
            vote: 0,
        };
        mesh.stop(&[4]);
        {
            let log = LogStore::open(&mesh.dir(4).join("log"), canal_consensus::log_store::Options::small()).unwrap();
            let write = canal_consensus::log_store::GroupWrite {
                group: GROUP,
                installing: Some(Some(install.record())),
                ..canal_consensus::log_store::GroupWrite::default()
            };
            log.write(&[write], true).unwrap();
        }
        std::fs::remove_dir_all(mesh.dir(4).join("state")).unwrap();
        mesh.start(4).unwrap();
        // its pieces are not there, so it can't be done from them: the group fills it
        mesh.until(|statuses| statuses.get(&4).filter(|status| !status.hollow).map(drop)).await;
        mesh.fill(4_001, 4_100).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3, 4], 4_100);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_lets_go_leaves_rows_and_files() {
    within(async {
        let mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 6_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        let before = mesh.handle(1).totals();
        mesh.propose(Kind::Trim(Trim { topic: TOPIC.0, before: 5_000 })).await;
        for n in 1..=3 {
            let group = mesh.group(n);
            while group.view().oldest(TOPIC).unwrap() < 5_000 {
                tokio::time::timeout(Duration::from_millis(100), group.watch().changed()).await.ok();
            }
            let mut totals = mesh.handle(n).totals();
            while totals.segments * 2 > before.segments {
                tokio::task::yield_now().await;
                totals = mesh.handle(n).totals();
            }
            let refused = group.view().events(TOPIC, 10, 1, 1).unwrap_err().to_string();
            assert!(refused.contains("the oldest event that there is has offset 5000"), "{refused}");
        }
        for n in 2..=3 {
            assert!(mesh.read(n, TOPIC) == mesh.read(1, TOPIC));
        }
        assert_eq!(mesh.read(1, TOPIC).len(), 1_000);
        assert_eq!(mesh.read(1, SLOW).len(), 120);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_leaves_nothing_and_may_not_come_back() {
    within(async {
        let mut mesh = Mesh::of_three_with(4, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 3_000).await;
        let id = mesh.grow(4).await;
        mesh.settled().await;
        let leader = mesh.leader().await;
        let gone: u64 = if leader == 3 { 2 } else { 3 };
        let n = u8::try_from(gone).unwrap();
        let mut watch = mesh.group(n).watch();
        mesh.change(async |group| group.change(ChangeSet { promote: Vec::new(), remove: vec![gone] }).await).await;
        mesh.until(|statuses| {
            leading(statuses).filter(|leader| !leader.configuration.voters.contains(&gone)).map(drop)
        })
        .await;
        assert!(mesh.handle(n).remove(GROUP, id).await.is_err(), "another id");
        mesh.handle(n).remove(GROUP, gone).await.unwrap();
        mesh.handle(n).remove(GROUP, gone).await.unwrap();
        while watch.changed().await {}
        assert!(mesh.handle(n).group(GROUP).is_none());
        let first: Vec<_> = (1..=3).map(|n| replica(n.into(), n)).collect();
        let refused = mesh.handle(n).create(seed(&first, gone)).await.unwrap_err().to_string();
        assert!(refused.contains("it may not come back"), "{refused}");
        while mesh.handle(n).totals().segments > 0 {
            tokio::task::yield_now().await;
        }
        mesh.stop(&[n]);
        mesh.start(n).unwrap();
        assert!(mesh.handle(n).group(GROUP).is_none());
        assert!(mesh.handle(n).create(seed(&first, gone)).await.is_err());
        // a new one has a new id
        mesh.fill(3_001, 5_000).await;
        mesh.grow(n).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3, 4], 5_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_lost_is_made_or_fetched_again() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 4_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        mesh.stop(&[2]);
        let mut lost = 0;
        for entry in std::fs::read_dir(mesh.dir(2).join("files")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
            lost += 1;
        }
        assert!(lost > 0);
        mesh.start(2).unwrap();
        // (files that are counted may be of segments whose place a later one has taken)
        while [TOPIC, SLOW].iter().any(|topic| mesh.try_read(2, *topic).is_err()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        mesh.assert_same(&[1, 2, 3], 4_000);
        // and goes on to be cut
        mesh.fill(4_001, 6_000).await;
        mesh.settled().await;
        let applied = mesh.group(2).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        mesh.applied(2, applied).await;
        mesh.assert_same(&[1, 2, 3], 6_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_stop_and_start_in_the_middle_of_sealing_and_filling() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        let mut next = 1;
        for round in 0..8u8 {
            mesh.fill(next, next + 699).await;
            next += 700;
            // without waiting for anything: whatever is under way is cut off
            let down: Vec<u8> = match round % 4 {
                0 => vec![1, 2, 3],
                n => vec![n],
            };
            mesh.stop(&down);
            if down.len() == 1 {
                mesh.fill(next, next + 999).await;
                next += 1_000;
            }
            down.iter().for_each(|n| mesh.start(*n).unwrap());
        }
        mesh.fill(next, next + 199).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3], next + 199);
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        mesh.assert_same(&[1, 2, 3], next + 199);
        assert!((1..=3).all(|n| mesh.handle(n).totals().differing == 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_its_budget_a_peer_seals_before_it_is_due() {
    within(async {
        // never due by themselves
        let history =
            History { seal_bytes: 1 << 40, seal_entries: 1 << 40, log_bytes: 1 << 40, log_entries: 2_500, ..small() };
        let mesh = Mesh::of_three_with(3, history).await;
        mesh.host_both(2).await;
        for first in 1..=6_000 {
            mesh.append(batch(SLOW, first, 1)).await;
        }
        mesh.settled().await;
        mesh.cut_beyond(&[1, 2, 3], 2_000).await;
        for n in 1..=3 {
            assert_eq!(mesh.read(n, SLOW).len(), 6_000);
            assert!(mesh.handle(n).totals().log_entries <= 4_500);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_comes_back_from_another_replica() {
    within(async {
        let mut mesh = Mesh::of_three_with(3, small()).await;
        mesh.host_both(2).await;
        mesh.fill(1, 4_000).await;
        mesh.settled().await;
        let applied = mesh.group(1).status().applied;
        mesh.cut_beyond(&[1, 2, 3], applied.saturating_sub(60)).await;
        let segments = mesh.group(2).view().segments(TOPIC).unwrap();
        let hash = canal_proto::ContentHash::from_slice(&segments[0].hash).unwrap();
        mesh.stop(&[2]);
        let file = mesh.dir(2).join("files").join(hash.to_string());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[200] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        mesh.start(2).unwrap();
        // whoever reads it finds out, and is told to read elsewhere; then it is there again
        let view = mesh.group(2).view();
        let mut damaged = 0;
        while view.events(TOPIC, 0, 1, 1).is_err() {
            damaged += 1;
            tokio::task::yield_now().await;
        }
        assert!(damaged > 0);
        mesh.fill(4_001, 4_500).await;
        mesh.settled().await;
        mesh.assert_same(&[1, 2, 3], 4_500);
    })
    .await;
}
