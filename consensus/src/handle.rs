//! The way in: a service that owns the threads, and cheap handles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use canal_proto::limits::MAX_PIECE;
use canal_proto::peer::{RaftEnvelope, Replica, Seed};
use canal_proto::request::{PieceAsk, PieceData};
use canal_proto::{Code, ContentHash, GroupId, PeerId, WireError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use crate::core::group::{Refused, Ticks, is_needed};
use crate::core::kv::KvError;
use crate::core::sealing::{SEAL_BYTES, SEAL_ENTRIES};
use crate::damage::{self, Damage};
use crate::files::{self, Files};
use crate::log_store::{self, LogStore};
use crate::sealer::{Counts, GRACE};
use crate::state_store::{self, Backend, StateStore};
use crate::transfer::Fetch;
use crate::view::View;
use crate::worker::{self, Request};

mod group;

pub(crate) use group::Shared;
pub use group::{Appending, GroupHandle, Watch};

/// Inputs that wait for the worker. One turn takes at most all of them; above it a client is told "would block", and a
/// Raft message is dropped, which Raft repairs.
pub(crate) const MAX_INBOX: usize = 8192;

/// Where messages for other peers go. Called on the worker's thread: it must not block, and drops what it can't take.
pub trait Outgoing: Send + Sync + 'static {
    /// Sends a message to the peer that holds `to`.
    fn send(&self, to: &Replica, envelope: RaftEnvelope);
}

/// How the groups of a peer are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// This peer.
    pub peer: PeerId,
    /// Directory for logs, state and files.
    pub dir: PathBuf,
    /// Where applied state is kept.
    pub backend: Backend,
    /// Memory for reading applied state, in bytes.
    pub cache: u64,
    /// How the Raft logs are kept.
    pub log: log_store::Options,
    /// Length of a tick.
    pub tick: Duration,
    /// Election and heartbeat, in ticks.
    pub ticks: Ticks,
    /// When events move from the logs to segments.
    pub history: History,
}

/// When events move from the logs to segments, and files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Bytes of a group's log that are not in segments, above which its leader seals them.
    pub seal_bytes: u64,
    /// Entries, likewise.
    pub seal_entries: u64,
    /// Bytes of all logs of the peer above which the longest are sealed before they come to that.
    pub log_bytes: u64,
    /// Entries, likewise: raft-engine holds some 100 bytes of memory for each.
    pub log_entries: u64,
    /// How often applied state is made durable. It bounds what a restart replays, and how soon the log can be cut.
    pub flush: Duration,
    /// How long a file stays that nothing names any more.
    pub grace: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self {
            seal_bytes: SEAL_BYTES,
            seal_entries: SEAL_ENTRIES,
            log_bytes: 256 << 20,
            log_entries: 1_000_000,
            flush: Duration::from_secs(5),
            grace: GRACE,
        }
    }
}

/// Why the groups can't be run, or a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The logs can't be opened.
    #[error(transparent)]
    Log(#[from] log_store::Error),
    /// The state can't be opened.
    #[error(transparent)]
    State(#[from] state_store::Error),
    /// The state can't be read.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The files can't be opened.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A thread can't be started.
    #[error("a thread of the groups can't be started: {0}")]
    Thread(std::io::Error),
    /// A store is damaged, and nothing was touched.
    #[error("{0}")]
    Damaged(Damage),
    /// The request was not taken, or given up.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A typed answer of the state machine.
    #[error(transparent)]
    Answer(#[from] WireError),
    /// The worker has stopped; its log says why.
    #[error("the groups of this peer have stopped")]
    Stopped,
}

/// What the logs and files of all groups of a peer come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries in the logs.
    pub log_entries: u64,
    /// Their bytes, about.
    pub log_bytes: u64,
    /// Files: segments, and pieces of snapshots while they are handed out or taken over.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Segments made here that were not what the group agreed on, since the start: above 0, a disk is failing.
    pub differing: u64,
    /// Damage found on this peer's disk since the start: files, logs of groups, state.
    pub damage_found: u64,
    /// Damage that was made good since the start, from the log or by other replicas.
    pub damage_repaired: u64,
    /// Snapshots written here since the start.
    pub written: u64,
    /// Snapshots taken over here since the start.
    pub installed: u64,
}

pub(crate) struct Inner {
    /// Whoever waits for an answer to what is in it when the worker ends is told: this channel, unlike others, lets go of
    /// its content with its receiver.
    pub(crate) inbox: SyncSender<Request>,
    pub(crate) groups: RwLock<BTreeMap<GroupId, Arc<Shared>>>,
    pub(crate) members: watch::Sender<u64>,
    pub(crate) failed: watch::Sender<Option<String>>,
    pub(crate) forgotten: watch::Sender<BTreeSet<GroupId>>,
    pub(crate) dropped: AtomicU64,
    pub(crate) logs: Mutex<(u64, u64)>,
    pub(crate) counts: Counts,
    pub(crate) kv: Arc<dyn StateStore>,
    pub(crate) log: LogStore,
    pub(crate) files: Files,
}

impl Inner {
    pub(crate) fn view(&self, group: GroupId) -> View {
        View::new(group, self.kv.clone(), self.log.clone(), self.files.clone())
    }
}

/// Owns the threads; dropping it stops them.
pub struct Service {
    inner: Arc<Inner>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    /// Opens the stores, brings the replicas found there to life, and starts the threads.
    ///
    /// # Errors
    /// When a store can't be opened or contradicts itself; the text says what to do.
    pub fn open(options: Options, outgoing: Arc<dyn Outgoing>, fetch: Arc<dyn Fetch>) -> Result<(Self, Handle), Error> {
        let log = match LogStore::open(&options.dir.join("log"), options.log.clone()) {
            Ok(log) => log,
            Err(error @ log_store::Error::Damaged { .. }) => {
                return Err(Error::Damaged(damage::judge(&options, error.to_string())));
            }
            Err(error) => return Err(error.into()),
        };
        let (kv, lost) = open_state(&options, &log)?;
        let files = Files::open(&options.dir.join("files"))?;
        let (inbox, requests) = std::sync::mpsc::sync_channel(MAX_INBOX);
        let inner = Arc::new(Inner {
            inbox,
            groups: RwLock::default(),
            members: watch::Sender::new(0),
            failed: watch::Sender::new(None),
            forgotten: watch::Sender::default(),
            dropped: AtomicU64::new(0),
            logs: Mutex::default(),
            counts: Counts::of_damage(lost),
            kv,
            log,
            files,
        });
        let worker = worker::Worker::open(inner.clone(), requests, outgoing, fetch, &options)?;
        let thread =
            std::thread::Builder::new().name("raft".into()).spawn(move || worker.run()).map_err(Error::Thread)?;
        Ok((Self { inner: inner.clone(), thread: Some(thread) }, Handle { inner }))
    }
}

/// Opens the applied state, and says whether it was lost. State that is damaged is moved aside: a replica whose log is
/// whole makes it again from that, one whose log was cut is filled by a snapshot of its group. Where there is nobody to fill
/// it, nothing is touched.
fn open_state(options: &Options, log: &LogStore) -> Result<(Arc<dyn StateStore>, bool), Error> {
    let dir = options.dir.join("state");
    let damaged = match state_store::open(&dir, options.backend, options.cache) {
        Ok(store) => return Ok((store, false)),
        Err(error @ state_store::Error::Open { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let mut needed = BTreeSet::new();
    for group in log.groups()? {
        let loaded = log.load(group)?.unwrap_or_default();
        let alone = |compacted: log_store::Compacted| compacted.configuration.replicas.len() < 2;
        if loaded.compacted.is_some_and(alone) && loaded.installing.is_none() {
            needed.insert(group.to_string());
        }
    }
    if !needed.is_empty() {
        let reason = format!("{damaged}. The log alone does not make the state again: it was cut");
        return Err(Error::Damaged(Damage { reason, needed, unknown: false }));
    }
    let aside = (1..).map(|n| options.dir.join(format!("state.damaged-{n}"))).find(|path| !path.exists());
    let Some(aside) = aside else { return Err(damaged.into()) };
    tracing::error!(
        error = %damaged, aside = %aside.display(),
        "the applied state is damaged; it is moved aside and made again from the logs, or by the other replicas"
    );
    if std::fs::rename(&dir, &aside).is_err() {
        return Err(damaged.into());
    }
    Ok((state_store::open(&dir, options.backend, options.cache)?, true))
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.inner.inbox.send(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Talks to all groups of this peer.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

impl Handle {
    async fn request<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request) -> Result<T, Error> {
        let (responder, answer) = oneshot::channel();
        self.inner.inbox.send(make(responder)).map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Creates a replica with an empty log. A replica that exists already is left as it is.
    ///
    /// # Errors
    /// When the group has a replica of another id here, a replica with this id or a larger one was removed here, or the
    /// store fails.
    pub async fn create(&self, seed: Seed) -> Result<(), Error> {
        self.request(|responder| Request::Create(Box::new(seed), responder)).await
    }

    /// Destroys a replica that its group has let go: its log, its rows and, in time, its files. It can't be created
    /// again; a replica with a larger id can. One that is not here is taken as destroyed.
    ///
    /// # Errors
    /// When the group has a replica of another id here, or the store fails.
    pub async fn remove(&self, group: GroupId, replica: u64) -> Result<(), Error> {
        self.request(|responder| Request::Remove(group, replica, responder)).await
    }

    /// The groups with a replica here.
    pub fn groups(&self) -> Vec<GroupHandle> {
        let ids: Vec<GroupId> = self.inner.groups.read().keys().copied().collect();
        ids.into_iter().filter_map(|id| self.group(id)).collect()
    }

    /// Names of the groups that can't go on without what this peer holds: the voters beside it are no majority.
    pub fn needed(&self) -> BTreeSet<String> {
        let needed = |group: &GroupHandle| {
            let status = group.status();
            is_needed(&status.configuration, status.replica).then(|| group.seed().name.clone())
        };
        self.groups().iter().filter_map(needed).collect()
    }

    /// A group, if it has a replica here.
    pub fn group(&self, id: GroupId) -> Option<GroupHandle> {
        let shared = self.inner.groups.read().get(&id).cloned()?;
        Some(GroupHandle { id, inner: self.inner.clone(), shared })
    }

    /// Takes messages from another peer. What does not fit the inbox is dropped and counted: Raft sends it again.
    pub fn receive(&self, peer: PeerId, messages: Vec<RaftEnvelope>) {
        for envelope in messages {
            if let Err(TrySendError::Full(_)) = self.inner.inbox.try_send(Request::Message(peer, Box::new(envelope))) {
                self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Raft messages dropped because the inbox was full.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Part of a segment or of a snapshot, for another peer. It reads a file, so not on a thread that must not wait.
    ///
    /// # Errors
    /// `NotHere` when there is no such file here, `InvalidArgument` when the hash is none.
    pub fn read_piece(&self, ask: &PieceAsk) -> Result<PieceData, WireError> {
        let hash =
            ContentHash::from_slice(&ask.hash).map_err(|e| WireError::new(Code::InvalidArgument, e.to_string()))?;
        let length = usize::try_from(ask.length).unwrap_or(MAX_PIECE).min(MAX_PIECE);
        let not_here = || WireError::new(Code::NotHere, format!("file {hash} is not here; ask another replica"));
        let size = self.inner.files.size(&hash).ok_or_else(not_here)?;
        if ask.offset == 0 {
            // whoever gets damaged bytes finds that out at the end, and nobody here would
            self.inner.files.check(&hash).map_err(|e| WireError::new(Code::Internal, e.to_string()))?;
        }
        let read = self.inner.files.read(&hash, ask.offset, length);
        let data = read.map_err(|e| WireError::new(Code::Internal, e.to_string()))?.ok_or_else(not_here)?;
        Ok(PieceData { data, size })
    }

    /// What logs and files come to, as of the last second.
    pub fn totals(&self) -> Totals {
        let (log_entries, log_bytes) = *self.inner.logs.lock();
        let (segments, segment_bytes) = self.inner.files.count_and_bytes();
        let counts = &self.inner.counts;
        let (found, repaired) = self.inner.files.found_and_repaired();
        Totals {
            log_entries,
            log_bytes,
            segments,
            segment_bytes,
            differing: counts.differing.load(Ordering::Relaxed),
            damage_found: found + counts.damage_found.load(Ordering::Relaxed),
            damage_repaired: repaired + counts.damage_repaired.load(Ordering::Relaxed),
            written: counts.written.load(Ordering::Relaxed),
            installed: counts.installed.load(Ordering::Relaxed),
        }
    }

    /// Returns when a group was added or removed since the last call on this clone of the watcher.
    pub fn membership(&self) -> Membership {
        Membership { changes: self.inner.members.subscribe() }
    }

    /// What this peer held was damaged, and moved aside before this start: counted, until its replicas are here again.
    pub fn begun_anew(&self) {
        self.inner.counts.damage_found.fetch_add(1, Ordering::Relaxed);
        self.inner.counts.mending.store(true, Ordering::Relaxed);
    }

    /// Watches for replicas here that were found to have forgotten what they acknowledged. They take no part any more.
    pub fn forgotten(&self) -> Forgotten {
        Forgotten { groups: self.inner.forgotten.subscribe() }
    }

    /// Returns when the worker has stopped by itself, with the reason: the peer must stop as well.
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the groups of this peer have stopped".to_owned(),
        }
    }
}

/// Tells when groups come and go.
pub struct Membership {
    changes: watch::Receiver<u64>,
}

impl Membership {
    /// Returns when a group was added or removed since the last call.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells of replicas that have forgotten.
pub struct Forgotten {
    groups: watch::Receiver<BTreeSet<GroupId>>,
}

impl Forgotten {
    /// The groups whose replica here has forgotten.
    pub fn now(&mut self) -> BTreeSet<GroupId> {
        self.groups.borrow_and_update().clone()
    }

    /// Returns when they have changed since [`Self::now`].
    pub async fn changed(&mut self) {
        if self.groups.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
