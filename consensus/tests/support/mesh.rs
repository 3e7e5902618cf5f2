//! Peers of whole services for tests: real logs, real state, real threads; only the network is a table in memory.
#![allow(dead_code, reason = "no test needs all of it")]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use canal_consensus::{
    Error, Fetch, Fetching, GroupHandle, Handle, History, Options, Outgoing, Refused, Service, Status, Ticks,
    log_store, state_store,
};
use canal_proto::log::{AppendItem, GroupSpec, Kind, TopicSpec};
use canal_proto::peer::{RaftEnvelope, Replica, Seed};
use canal_proto::request::PieceAsk;
use canal_proto::{Code, Event, GroupId, PeerId, Receipt, TopicId, WireError};
use parking_lot::{Mutex, RwLock};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub const GROUP: GroupId = GroupId(5);
pub const TOPIC: TopicId = TopicId(7);
/// Far above what any test takes on a slow machine.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Above all that is read at once.
pub const MANY: usize = 1 << 20;

tokio::task_local! {
    /// How the replicas stood when a test last looked, for when it comes to no end.
    static SEEN: Arc<Mutex<String>>;
}

/// The peers that can be reached.
#[derive(Default)]
pub struct Table {
    pub peers: RwLock<BTreeMap<PeerId, Handle>>,
    /// Pieces of files that were asked for.
    pub asked: AtomicU64,
    /// Pieces that are given before no more are; none: all are.
    pub left: Mutex<Option<u64>>,
}

/// One peer's way to the others.
pub struct Wire {
    from: PeerId,
    table: Arc<Table>,
}

impl Outgoing for Wire {
    fn send(&self, to: &Replica, envelope: RaftEnvelope) {
        // the handle is not cloned: once a peer is out of the table, nobody but its owner has its stores open
        if let Some(handle) = self.table.peers.read().get(&to.peer_id().unwrap()) {
            handle.receive(self.from, vec![envelope]);
        }
    }
}

impl Fetch for Wire {
    fn fetch(&self, from: PeerId, _: Vec<String>, ask: PieceAsk) -> Fetching {
        self.table.asked.fetch_add(1, Ordering::Relaxed);
        let handle = self.table.peers.read().get(&from).cloned();
        let gives = match &mut *self.table.left.lock() {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        };
        let answer = match handle.filter(|_| gives) {
            Some(handle) => handle.read_piece(&ask),
            None => Err(WireError::new(Code::Unreachable, "the peer is away")),
        };
        Box::pin(async move { answer })
    }
}

pub fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

pub fn replica(id: u64, n: u8) -> Replica {
    Replica { id, peer: peer(n).to_vec(), addresses: Vec::new() }
}

pub fn seed(first: &[Replica], id: u64) -> Seed {
    Seed {
        group: GROUP.0,
        name: "g".into(),
        namespace: "default".into(),
        first: first.to_vec(),
        replica: id,
        mesh: vec![9; 16],
    }
}

pub fn payload(sequence: u64) -> Vec<u8> {
    format!("event {sequence}").into_bytes()
}

pub fn item(sequence: u64) -> AppendItem {
    AppendItem {
        topic: TOPIC.0,
        producer: Bytes::from_static(&[1; 16]),
        first_sequence: sequence,
        events: vec![Event::new(payload(sequence))],
        origin: 0,
    }
}

/// Peers `1..`, each with a directory that outlives its service.
pub struct Mesh {
    // stopped before their directories go
    pub running: BTreeMap<u8, Service>,
    pub table: Arc<Table>,
    pub history: History,
    pub dirs: Vec<TempDir>,
}

impl Mesh {
    pub fn new(peers: u8) -> Self {
        Self::with(peers, History::default())
    }

    pub fn with(peers: u8, history: History) -> Self {
        let dirs = (0..peers).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut mesh = Self { dirs, running: BTreeMap::new(), table: Arc::default(), history };
        (1..=peers).for_each(|n| mesh.start(n).unwrap());
        mesh
    }

    /// Three peers with a group of three that has a leader and a topic.
    pub async fn of_three() -> Self {
        Self::of_three_with(3, History::default()).await
    }

    /// More peers than three, of which three have the group.
    pub async fn of_three_with(peers: u8, history: History) -> Self {
        let mesh = Self::with(peers, history);
        let first: Vec<Replica> = (1..=3).map(|n| replica(n.into(), n)).collect();
        for n in [3, 2, 1] {
            mesh.handle(n).create(seed(&first, n.into())).await.unwrap();
        }
        mesh.host_topic().await;
        mesh
    }

    pub fn dir(&self, n: u8) -> &Path {
        self.dirs[usize::from(n) - 1].path()
    }

    pub fn start(&mut self, n: u8) -> Result<(), Error> {
        let options = Options {
            peer: peer(n),
            dir: self.dir(n).to_owned(),
            backend: state_store::DEFAULT_BACKEND,
            cache: 8 << 20,
            log: log_store::Options::small(),
            tick: Duration::from_millis(15),
            ticks: Ticks { election: 10, heartbeat: 2 },
            history: self.history,
        };
        let wire = Arc::new(Wire { from: peer(n), table: self.table.clone() });
        let (service, handle) = Service::open(options, wire.clone(), wire)?;
        self.running.insert(n, service);
        self.table.peers.write().insert(peer(n), handle);
        Ok(())
    }

    /// Stops these peers at one time. They are cut off first, so that none can hand anything on.
    pub fn stop(&mut self, peers: &[u8]) {
        let gone: Vec<_> = peers.iter().map(|n| self.table.peers.write().remove(&peer(*n)).unwrap()).collect();
        drop(gone);
        std::thread::scope(|scope| {
            for n in peers {
                let service = self.running.remove(n).unwrap();
                scope.spawn(move || drop(service));
            }
        });
    }

    pub fn handle(&self, n: u8) -> Handle {
        self.table.peers.read()[&peer(n)].clone()
    }

    /// The replica of a running peer. To be let go before the peer is stopped.
    pub fn group(&self, n: u8) -> GroupHandle {
        self.handle(n).group(GROUP).unwrap()
    }

    pub fn groups(&self) -> Vec<(u8, GroupHandle)> {
        self.running.keys().filter_map(|n| Some((*n, self.handle(*n).group(GROUP)?))).collect()
    }

    /// Waits until `found` finds something in the statuses of the running replicas.
    pub async fn until<T>(&self, found: impl Fn(&BTreeMap<u8, Status>) -> Option<T>) -> T {
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
            SEEN.with(|seen| *seen.lock() = format!("{statuses:#?}"));
            assert!(changes.join_next().await.unwrap().unwrap(), "a worker stopped: {statuses:?}");
        }
    }

    pub async fn leader(&self) -> u8 {
        self.until(|statuses| {
            let leads = statuses.iter().filter(|(_, status)| status.leads);
            leads.max_by_key(|(_, status)| status.term).map(|(n, _)| *n)
        })
        .await
    }

    /// Waits until every running replica has applied all that the leader has.
    pub async fn settled(&self) {
        self.until(|statuses| {
            let leader = leading(statuses)?;
            let same = |status: &Status| status.applied == leader.last && status.term == leader.term;
            statuses.values().all(same).then_some(())
        })
        .await;
    }

    /// Proposes the topic until a leader has taken it; a spec that is applied twice does no harm.
    pub async fn host_topic(&self) {
        let topics = vec![TopicSpec { id: TOPIC.0, name: "t".into(), ..TopicSpec::default() }];
        let spec = GroupSpec { version: 1, topics, ..GroupSpec::default() };
        loop {
            let leader = self.leader().await;
            match self.group(leader).propose(Kind::Spec(spec.clone())).await {
                Ok(_) => return,
                Err(Error::Refused(Refused::NotLeader | Refused::Uncertain)) => {}
                Err(error) => panic!("the spec was refused: {error}"),
            }
        }
    }

    /// Asks leaders for a change of the configuration until one has taken it. After an election it may stand already,
    /// and is then refused as such: the caller waits to see it stand.
    pub async fn change(&self, ask: impl AsyncFn(GroupHandle) -> Result<(), Error>) {
        loop {
            let leader = self.leader().await;
            match ask(self.group(leader)).await {
                Ok(()) | Err(Error::Refused(Refused::Configuration(_))) => return,
                Err(Error::Refused(Refused::NotLeader | Refused::Uncertain)) => {}
                Err(error) => panic!("the change was refused: {error}"),
            }
        }
    }

    /// Publishes as a client does: any replica, then the next, with the same sequence until one has a receipt.
    pub async fn publish(&self, sequence: u64) -> Receipt {
        loop {
            for (n, group) in self.groups() {
                let answer = match group.append(item(sequence)) {
                    Ok(appending) => appending.receipt().await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(receipt) => return receipt,
                    Err(Error::Refused(Refused::NotLeader | Refused::Uncertain | Refused::Busy)) => {}
                    Err(error) => panic!("peer {n} refused sequence {sequence}: {error}"),
                }
            }
            self.leader().await;
        }
    }

    /// What a replica has applied: exactly the events `1..=last`, once each, in order, without a gap.
    pub fn assert_holds(&self, n: u8, last: u64) {
        let events = self.group(n).view().events(TOPIC, 0, MANY, MANY).unwrap();
        let got: Vec<_> = events.iter().map(|e| (e.offset, e.sequence, e.event.payload.to_vec())).collect();
        let want: Vec<_> = (1..=last).map(|sequence| (sequence - 1, sequence, payload(sequence))).collect();
        assert_eq!(got, want, "peer {n}");
        assert_eq!(self.group(n).head(TOPIC), Some(last), "peer {n}");
    }

    /// Directories of state that was moved aside.
    pub fn moved_aside(&self, n: u8) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir(n)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("state.damaged")).collect()
    }
}

/// The leader's status; of the newest term, as an old leader may not know yet that it is deposed.
pub fn leading(statuses: &BTreeMap<u8, Status>) -> Option<&Status> {
    statuses.values().filter(|status| status.leads).max_by_key(|status| status.term)
}

pub async fn within<T>(test: impl Future<Output = T>) -> T {
    let seen = Arc::new(Mutex::new(String::new()));
    let test = SEEN.scope(seen.clone(), test);
    match tokio::time::timeout(DEADLINE, test).await {
        Ok(done) => done,
        Err(_) => panic!("the deadline passed; what was seen last: {}", seen.lock()),
    }
}
