//! How the rest of a peer talks to one group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TrySendError;
use std::time::Instant;

use canal_proto::log::{AppendItem, Kind};
use canal_proto::peer::{Replica, Seed};
use canal_proto::{Code, GroupId, MeshId, Receipt, TopicId, WireError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::{Error, Inner};
use crate::core::group::{ChangeSet, Refused, Status};
use crate::core::machine::Reply;
use crate::view::View;
use crate::worker::stall::Stall;
use crate::worker::{Command, Request, Responder};

/// What is shared about one group.
pub(crate) struct Shared {
    pub(crate) mesh: Option<MeshId>,
    pub(crate) seed: Seed,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) heads: RwLock<BTreeMap<TopicId, u64>>,
    /// When the leader here last heard of each replica, and since when it leads.
    pub(crate) heard: Mutex<Heard>,
    pub(crate) stall: Mutex<Stall>,
    /// The replica was removed.
    pub(crate) gone: AtomicBool,
    /// Events are being moved from the log to segments here.
    pub(crate) sealing: AtomicBool,
}

/// Of whom a leader has heard.
pub(crate) struct Heard {
    pub(crate) since: Instant,
    pub(crate) last: BTreeMap<u64, Instant>,
}

/// Replicas of which it is remembered when they were last heard of: many times those that a group has. Who sends under ever
/// new ids must not fill the memory.
const MAX_HEARD: usize = 64;

impl Heard {
    /// A replica was heard of.
    pub(crate) fn note(&mut self, replica: u64) {
        self.last.insert(replica, Instant::now());
        if self.last.len() > MAX_HEARD
            && let Some(oldest) = self.last.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id)
        {
            self.last.remove(&oldest);
        }
    }
}

impl Shared {
    pub(crate) fn new(seed: Seed, status: Status, heads: BTreeMap<TopicId, u64>) -> Self {
        let now = Instant::now();
        Self {
            mesh: MeshId::from_slice(&seed.mesh).ok(),
            seed,
            status: watch::Sender::new(status),
            heads: RwLock::new(heads),
            heard: Mutex::new(Heard { since: now, last: BTreeMap::new() }),
            stall: Mutex::new(Stall::new(now)),
            gone: AtomicBool::new(false),
            sealing: AtomicBool::new(false),
        }
    }
}

/// Talks to one group.
#[derive(Clone)]
pub struct GroupHandle {
    pub(super) id: GroupId,
    pub(super) inner: Arc<Inner>,
    pub(super) shared: Arc<Shared>,
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

    /// Whether events are being moved from the log to segments. Of what is in the log, nothing may go meanwhile: the segments
    /// would not fit any more.
    pub fn is_sealing(&self) -> bool {
        self.shared.sealing.load(Ordering::Acquire)
    }

    /// Watches how this replica stands.
    pub fn watch(&self) -> Watch {
        Watch { status: self.shared.status.subscribe(), shared: self.shared.clone() }
    }

    /// Offset that the next event of a topic gets, as this replica has applied it.
    pub fn head(&self, topic: TopicId) -> Option<u64> {
        self.shared.heads.read().get(&topic).copied()
    }

    /// Reads of what this replica has applied.
    pub fn view(&self) -> View {
        self.inner.view(self.id)
    }

    /// Milliseconds since the leader here last heard of a replica, or since it leads if it has not; 0 for itself.
    pub fn silent_ms(&self, replica: u64) -> u64 {
        if replica == self.shared.seed.replica {
            return 0;
        }
        let heard = self.shared.heard.lock();
        let last = heard.last.get(&replica).map_or(heard.since, |last| (*last).max(heard.since));
        u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The longest time for which publishes to this group waited here and none was answered, since the last call; in
    /// milliseconds. A leader that has just begun counts from when it last heard of the one before.
    pub fn stall(&self) -> u64 {
        let longest = self.shared.stall.lock().take(Instant::now());
        u64::try_from(longest.as_millis()).unwrap_or(u64::MAX)
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

    /// Changes who votes and who belongs to the group, in one step.
    ///
    /// # Errors
    /// As [`Self::add_learner`].
    pub async fn change(&self, change: ChangeSet) -> Result<(), Error> {
        self.ask(|responder| Command::Change(change, responder)).await.map(|_| ())
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
    shared: Arc<Shared>,
}

impl Watch {
    /// The status now; the next [`Self::changed`] waits for another.
    pub fn now(&mut self) -> Status {
        self.status.borrow_and_update().clone()
    }

    /// Returns when the status has changed since [`Self::now`]; `false` when the replica was removed, and nobody can
    /// change it any more. A worker that has failed is told of by [`super::Handle::failed`], not here.
    pub async fn changed(&mut self) -> bool {
        !self.shared.gone.load(Ordering::Acquire)
            && self.status.changed().await.is_ok()
            && !self.shared.gone.load(Ordering::Acquire)
    }
}
