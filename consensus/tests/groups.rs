//! Groups of whole services: real logs, real state, real threads; only the network is a table in memory.
//!
//! What is checked is what a client may count on: an acknowledged event is there once, in its place, on every replica,
//! whatever was stopped, lost or damaged meanwhile within what the group tolerates; and what the group can't tolerate
//! is refused in words. Every wait is for a change of a replica's status, under one deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use canal_consensus::{
    Error, GroupHandle, Handle, Options, Outgoing, Refused, Service, Status, Ticks, log_store, state_store,
};
use canal_proto::log::{AppendItem, GroupSpec, Kind, TopicSpec};
use canal_proto::peer::{RaftEnvelope, Replica, Seed};
use canal_proto::{Event, GroupId, PeerId, Receipt, TopicId};
use parking_lot::RwLock;
use tempfile::TempDir;
use tokio::task::JoinSet;

const GROUP: GroupId = GroupId(5);
const TOPIC: TopicId = TopicId(7);
/// Far above what any test takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Above all that is read at once.
const MANY: usize = 1 << 20;

/// The peers that can be reached.
#[derive(Default)]
struct Table(RwLock<BTreeMap<PeerId, Handle>>);

/// One peer's way to the others.
struct Wire {
    from: PeerId,
    table: Arc<Table>,
}

impl Outgoing for Wire {
    fn send(&self, to: &Replica, envelope: RaftEnvelope) {
        // the handle is not cloned: once a peer is out of the table, nobody but its owner has its stores open
        if let Some(handle) = self.table.0.read().get(&to.peer_id().unwrap()) {
            handle.receive(self.from, vec![envelope]);
        }
    }
}

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn replica(id: u64, n: u8) -> Replica {
    Replica { id, peer: peer(n).to_vec(), addresses: Vec::new() }
}

fn seed(first: &[Replica], id: u64) -> Seed {
    Seed {
        group: GROUP.0,
        name: "g".into(),
        namespace: "default".into(),
        first: first.to_vec(),
        replica: id,
        mesh: vec![9; 16],
    }
}

fn payload(sequence: u64) -> Vec<u8> {
    format!("event {sequence}").into_bytes()
}

fn item(sequence: u64) -> AppendItem {
    AppendItem {
        topic: TOPIC.0,
        producer: Bytes::from_static(&[1; 16]),
        first_sequence: sequence,
        events: vec![Event::new(payload(sequence))],
    }
}

/// Peers `1..`, each with a directory that outlives its service.
struct Mesh {
    dirs: Vec<TempDir>,
    running: BTreeMap<u8, Service>,
    table: Arc<Table>,
}

impl Mesh {
    fn new(peers: u8) -> Self {
        let dirs = (0..peers).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut mesh = Self { dirs, running: BTreeMap::new(), table: Arc::default() };
        (1..=peers).for_each(|n| mesh.start(n).unwrap());
        mesh
    }

    /// Three peers with a group of three that has a leader and a topic.
    async fn of_three() -> Self {
        let mesh = Self::new(3);
        let first: Vec<Replica> = (1..=3).map(|n| replica(n.into(), n)).collect();
        for n in [3, 2, 1] {
            mesh.handle(n).create(seed(&first, n.into())).await.unwrap();
        }
        mesh.host_topic().await;
        mesh
    }

    fn dir(&self, n: u8) -> &Path {
        self.dirs[usize::from(n) - 1].path()
    }

    fn start(&mut self, n: u8) -> Result<(), Error> {
        let options = Options {
            dir: self.dir(n).to_owned(),
            backend: state_store::DEFAULT_BACKEND,
            cache: 8 << 20,
            log: log_store::Options::small(),
            tick: Duration::from_millis(15),
            ticks: Ticks { election: 10, heartbeat: 2 },
        };
        let wire = Wire { from: peer(n), table: self.table.clone() };
        let (service, handle) = Service::open(options, Arc::new(wire))?;
        self.running.insert(n, service);
        self.table.0.write().insert(peer(n), handle);
        Ok(())
    }

    /// Stops these peers at one time. They are cut off first, so that none can hand anything on.
    fn stop(&mut self, peers: &[u8]) {
        let gone: Vec<_> = peers.iter().map(|n| self.table.0.write().remove(&peer(*n)).unwrap()).collect();
        drop(gone);
        std::thread::scope(|scope| {
            for n in peers {
                let service = self.running.remove(n).unwrap();
                scope.spawn(move || drop(service));
            }
        });
    }

    fn handle(&self, n: u8) -> Handle {
        self.table.0.read()[&peer(n)].clone()
    }

    /// The replica of a running peer. To be let go before the peer is stopped.
    fn group(&self, n: u8) -> GroupHandle {
        self.handle(n).group(GROUP).unwrap()
    }

    fn groups(&self) -> Vec<(u8, GroupHandle)> {
        self.running.keys().filter_map(|n| Some((*n, self.handle(*n).group(GROUP)?))).collect()
    }

    /// Waits until `found` finds something in the statuses of the running replicas.
    async fn until<T>(&self, found: impl Fn(&BTreeMap<u8, Status>) -> Option<T>) -> T {
        loop {
            let mut statuses = BTreeMap::new();
            let mut changes = JoinSet::new();
            for (n, group) in self.groups() {
                let mut watch = group.watch();
                statuses.insert(n, watch.now());
                changes.spawn(async move { watch.changed().await });
            }
            if let Some(found) = found(&statuses) {
                return found;
            }
            assert!(changes.join_next().await.unwrap().unwrap(), "a worker stopped: {statuses:?}");
        }
    }

    async fn leader(&self) -> u8 {
        self.until(|statuses| {
            let leads = statuses.iter().filter(|(_, status)| status.leads);
            leads.max_by_key(|(_, status)| status.term).map(|(n, _)| *n)
        })
        .await
    }

    /// Waits until every running replica has applied all that the leader has.
    async fn settled(&self) {
        self.until(|statuses| {
            let leader = leading(statuses)?;
            let same = |status: &Status| status.applied == leader.last && status.term == leader.term;
            statuses.values().all(same).then_some(())
        })
        .await;
    }

    /// Proposes the topic until a leader has taken it; a spec that is applied twice does no harm.
    async fn host_topic(&self) {
        let topics = vec![TopicSpec { id: TOPIC.0, name: "t".into(), ..TopicSpec::default() }];
        let spec = GroupSpec { version: 1, topics, ..GroupSpec::default() };
        loop {
            let leader = self.leader().await;
            match self.group(leader).propose(Kind::Spec(spec.clone())).await {
                Ok(_) => return,
                Err(Error::Refused(Refused::NotLeader)) => {}
                Err(error) => panic!("the spec was refused: {error}"),
            }
        }
    }

    /// Asks leaders for a change of the configuration until one has taken it. After an election it may stand already,
    /// and is then refused as such: the caller waits to see it stand.
    async fn change(&self, ask: impl AsyncFn(GroupHandle) -> Result<(), Error>) {
        loop {
            let leader = self.leader().await;
            match ask(self.group(leader)).await {
                Ok(()) | Err(Error::Refused(Refused::Configuration(_))) => return,
                Err(Error::Refused(Refused::NotLeader)) => {}
                Err(error) => panic!("the change was refused: {error}"),
            }
        }
    }

    /// Publishes as a client does: any replica, then the next, with the same sequence until one has a receipt.
    async fn publish(&self, sequence: u64) -> Receipt {
        loop {
            for (n, group) in self.groups() {
                let answer = match group.append(item(sequence)) {
                    Ok(appending) => appending.receipt().await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(receipt) => return receipt,
                    Err(Error::Refused(Refused::NotLeader | Refused::Busy)) => {}
                    Err(error) => panic!("peer {n} refused sequence {sequence}: {error}"),
                }
            }
            self.leader().await;
        }
    }

    /// What a replica has applied: exactly the events `1..=last`, once each, in order, without a gap.
    fn assert_holds(&self, n: u8, last: u64) {
        let events = self.group(n).view().events(TOPIC, 0, MANY, MANY).unwrap();
        let got: Vec<_> = events.iter().map(|e| (e.offset, e.sequence, e.event.payload.to_vec())).collect();
        let want: Vec<_> = (1..=last).map(|sequence| (sequence - 1, sequence, payload(sequence))).collect();
        assert_eq!(got, want, "peer {n}");
        assert_eq!(self.group(n).head(TOPIC), Some(last), "peer {n}");
    }

    /// Directories of state that was moved aside.
    fn moved_aside(&self, n: u8) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir(n)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("state.damaged")).collect()
    }
}

/// The leader's status; of the newest term, as an old leader may not know yet that it is deposed.
fn leading(statuses: &BTreeMap<u8, Status>) -> Option<&Status> {
    statuses.values().filter(|status| status.leads).max_by_key(|status| status.term)
}

async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, test).await.expect("the deadline passed")
}

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
        assert!(matches!(cut_off, Ok(_) | Err(Error::Stopped | Error::Refused(Refused::NotLeader))), "{cut_off:?}");
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
        assert!(error.contains("remove this peer's data directory"), "{error}");
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
