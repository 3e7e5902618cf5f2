//! The way in: a service that owns the worker thread, and cheap handles.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use canal_proto::log::{AppendItem, Kind};
use canal_proto::peer::{RaftEnvelope, Replica, Seed};
use canal_proto::{Code, GroupId, MeshId, PeerId, Receipt, TopicId, WireError};
use crossbeam_channel::{Sender, TrySendError};
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use crate::core::group::{Refused, Status, Ticks};
use crate::core::kv::KvError;
use crate::core::machine::Reply;
use crate::log_store::{self, LogStore};
use crate::state_store::{self, Backend, StateStore};
use crate::view::View;
use crate::worker::{self, Command, Request, Responder};

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
    /// Directory for logs and state.
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
    /// The thread can't be started.
    #[error("the raft thread can't be started: {0}")]
    Thread(std::io::Error),
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

/// What is shared about one group.
pub(crate) struct Shared {
    pub(crate) mesh: Option<MeshId>,
    pub(crate) seed: Seed,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) heads: RwLock<BTreeMap<TopicId, u64>>,
}

pub(crate) struct Inner {
    pub(crate) inbox: Sender<Request>,
    pub(crate) groups: RwLock<BTreeMap<GroupId, Arc<Shared>>>,
    pub(crate) members: watch::Sender<u64>,
    pub(crate) failed: watch::Sender<Option<String>>,
    pub(crate) dropped: AtomicU64,
    pub(crate) kv: Arc<dyn StateStore>,
    pub(crate) log: LogStore,
}

/// Owns the worker thread; dropping it stops the worker.
pub struct Service {
    inner: Arc<Inner>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    /// Opens the stores, brings the replicas found there to life, and starts the worker.
    ///
    /// # Errors
    /// When a store can't be opened or contradicts itself; the text says what to do.
    pub fn open(options: Options, outgoing: Arc<dyn Outgoing>) -> Result<(Self, Handle), Error> {
        let log = LogStore::open(&options.dir.join("log"), options.log.clone())?;
        let kv = open_state(&options)?;
        let (inbox, requests) = crossbeam_channel::bounded(MAX_INBOX);
        let inner = Arc::new(Inner {
            inbox,
            groups: RwLock::default(),
            members: watch::Sender::new(0),
            failed: watch::Sender::new(None),
            dropped: AtomicU64::new(0),
            kv,
            log,
        });
        let worker = worker::Worker::open(inner.clone(), requests, outgoing, &options)?;
        let thread =
            std::thread::Builder::new().name("raft".into()).spawn(move || worker.run()).map_err(Error::Thread)?;
        Ok((Self { inner: inner.clone(), thread: Some(thread) }, Handle { inner }))
    }
}

/// Opens the applied state. State that is damaged is moved aside and made again from the logs, which are whole: the
/// replicas begin with no state and apply everything once more.
fn open_state(options: &Options) -> Result<Arc<dyn StateStore>, Error> {
    let dir = options.dir.join("state");
    let damaged = match state_store::open(&dir, options.backend, options.cache) {
        Ok(store) => return Ok(store),
        Err(error @ state_store::Error::Open { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let aside = (1..).map(|n| options.dir.join(format!("state.damaged-{n}"))).find(|path| !path.exists());
    let Some(aside) = aside else { return Err(damaged.into()) };
    tracing::error!(error = %damaged, aside = %aside.display(), "the applied state is damaged; it is moved aside and made again from the log");
    if std::fs::rename(&dir, &aside).is_err() {
        return Err(damaged.into());
    }
    Ok(state_store::open(&dir, options.backend, options.cache)?)
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
    /// Creates a replica with an empty log. A replica that exists already is left as it is.
    ///
    /// # Errors
    /// When the group has a replica of another id here, or the store fails.
    pub async fn create(&self, seed: Seed) -> Result<(), Error> {
        let (responder, answer) = oneshot::channel();
        self.inner.inbox.send(Request::Create(Box::new(seed), responder)).map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// The groups with a replica here.
    pub fn groups(&self) -> Vec<GroupHandle> {
        let ids: Vec<GroupId> = self.inner.groups.read().keys().copied().collect();
        ids.into_iter().filter_map(|id| self.group(id)).collect()
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

    /// Returns when a group was added since the last call on this clone of the watcher.
    pub fn membership(&self) -> Membership {
        Membership { changes: self.inner.members.subscribe() }
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

/// Tells when groups come.
pub struct Membership {
    changes: watch::Receiver<u64>,
}

impl Membership {
    /// Returns when a group was added that was not there at the last call.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Talks to one group.
#[derive(Clone)]
pub struct GroupHandle {
    id: GroupId,
    inner: Arc<Inner>,
    shared: Arc<Shared>,
}

impl GroupHandle {
    /// The group.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// The mesh that the replica was created in.
    pub fn mesh(&self) -> Option<MeshId> {
        self.shared.mesh
    }

    /// The group's name, and what else the replica was created with.
    pub fn seed(&self) -> &Seed {
        &self.shared.seed
    }

    /// How this replica stands.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Watches how this replica stands.
    pub fn watch(&self) -> Watch {
        Watch { status: self.shared.status.subscribe() }
    }

    /// Offset that the next event of a topic gets, as this replica has applied it.
    pub fn head(&self, topic: TopicId) -> Option<u64> {
        self.shared.heads.read().get(&topic).copied()
    }

    /// Reads of what this replica has applied.
    pub fn view(&self) -> View {
        View::new(self.id, self.inner.kv.clone(), self.inner.log.clone())
    }

    fn begin(&self, make: impl FnOnce(Responder) -> Command) -> Result<Asked, Error> {
        let (responder, answer) = oneshot::channel();
        match self.inner.inbox.try_send(Request::Group(self.id, make(responder))) {
            Ok(()) => Ok(Asked(answer)),
            Err(TrySendError::Full(_)) => Err(Refused::Busy.into()),
            Err(TrySendError::Disconnected(_)) => Err(Error::Stopped),
        }
    }

    async fn ask(&self, make: impl FnOnce(Responder) -> Command) -> Result<Reply, Error> {
        self.begin(make)?.answer().await
    }

    /// Puts events behind those of earlier calls, and returns at once. [`Appending::receipt`] waits until they are
    /// committed and applied here.
    ///
    /// # Errors
    /// [`Error::Refused`] when the worker is busy.
    pub fn append(&self, item: AppendItem) -> Result<Appending, Error> {
        self.begin(|responder| Command::Append(item, responder)).map(Appending)
    }

    /// Proposes a command; returns when it is committed and applied here.
    ///
    /// # Errors
    /// As [`Appending::receipt`].
    pub async fn propose(&self, kind: Kind) -> Result<Reply, Error> {
        self.ask(|responder| Command::Propose(Box::new(kind), responder)).await
    }

    /// Returns when everything that was acknowledged before the call is applied here, confirmed by a majority.
    ///
    /// # Errors
    /// [`Error::Refused`] when this replica does not lead.
    pub async fn read(&self) -> Result<(), Error> {
        self.ask(Command::Read).await.map(|_| ())
    }

    /// Adds a replica that learns; its id is chosen by the group.
    ///
    /// # Errors
    /// [`Error::Refused`] when this replica does not lead, or another change is under way.
    pub async fn add_learner(&self, replica: Replica) -> Result<(), Error> {
        self.ask(|responder| Command::AddLearner(replica, responder)).await.map(|_| ())
    }

    /// Lets a learner vote.
    ///
    /// # Errors
    /// As [`Self::add_learner`].
    pub async fn promote(&self, id: u64) -> Result<(), Error> {
        self.ask(|responder| Command::Promote(id, responder)).await.map(|_| ())
    }

    /// Hands leadership to a replica, if this one leads. Watch the status to see it happen.
    pub fn transfer(&self, to: u64) {
        let _ = self.inner.inbox.send(Request::Group(self.id, Command::Transfer(to)));
    }

    /// Says that a replica could not be reached.
    pub fn unreachable(&self, id: u64) {
        let _ = self.inner.inbox.try_send(Request::Group(self.id, Command::Unreachable(id)));
    }
}

struct Asked(oneshot::Receiver<Result<Reply, Refused>>);

impl Asked {
    async fn answer(self) -> Result<Reply, Error> {
        Ok(self.0.await.map_err(|_| Error::Stopped)??)
    }
}

/// Events on their way into the log.
pub struct Appending(Asked);

impl Appending {
    /// Waits until the events are committed and applied here.
    ///
    /// # Errors
    /// [`Error::Refused`] when this replica does not lead or is busy, [`Error::Answer`] with the state machine's
    /// reason. After `NotLeader` the events may or may not have been appended: send them again with the same
    /// sequence.
    pub async fn receipt(self) -> Result<Receipt, Error> {
        match self.0.answer().await? {
            Reply::Appended(mut results) => Ok(results.pop().unwrap_or_else(|| Err(no_answer()))?),
            _ => Err(no_answer().into()),
        }
    }
}

fn no_answer() -> WireError {
    WireError::new(Code::Internal, "the state machine gave no answer; this is a bug")
}

/// Watches one group.
pub struct Watch {
    status: watch::Receiver<Status>,
}

impl Watch {
    /// The status now; the next [`Self::changed`] waits for another.
    pub fn now(&mut self) -> Status {
        self.status.borrow_and_update().clone()
    }

    /// Returns when the status has changed since [`Self::now`]; `false` when nobody can change it any more. A worker that
    /// has failed is told of by [`Handle::failed`], not here.
    pub async fn changed(&mut self) -> bool {
        self.status.changed().await.is_ok()
    }
}
