//! The thread on which all groups of a peer take their turns.
//!
//! A turn: take what has arrived; let every group that has something to do say what it wants on disk; write that for
//! all groups together and sync once; then let them apply, answer and send. Applied state is written once a turn, in
//! one batch, and not synced: the log is, and it is replayed from wherever the state was.
//!
//! What takes long happens on other threads and is reported back as an input: files ([`crate::sealer`]), what other
//! peers give ([`crate::transfer`]), making applied state durable ([`flusher`]). `history` says what they do and when.
//!
//! A store that fails stops the thread for good: a replica whose disk can't be trusted must not vote.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use canal_proto::log::{AppendItem, Kind, Seal};
use canal_proto::peer::{Manifest, RaftEnvelope, Replica, Seed};
use canal_proto::{GroupId, PeerId, TopicId};
use raft::eraftpb::Entry;
use tokio::sync::oneshot;

use crate::compaction::History;
use crate::core::group::{ChangeSet, Group, Input, Refused, SnapshotPoint, Ticket, Ticks};
use crate::core::kv::KvError;
use crate::core::log::LogReader;
use crate::core::machine::Reply;
use crate::handle::{self, Error, Inner, MAX_INBOX, Options, Outgoing, Shared};
use crate::log_store::{Compacted, LogStore, text_of};
use crate::scrub::Scrub;
use crate::sealer::{Made, Pool};
use crate::transfer::{Fetch, Transfer};

mod damage;
mod flusher;
mod history;
mod open;
mod reports;
mod requests;
pub(crate) mod stall;
mod turn;

use flusher::Flusher;

/// How often a peer looks whether logs are to be sealed or cut, and files to go.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Answers a request.
pub(crate) type Responder = oneshot::Sender<Result<Reply, Refused>>;

/// A request to one group.
pub(crate) enum Command {
    Append(AppendItem, Responder),
    Propose(Box<Kind>, Responder),
    Read(Responder),
    AddLearner(Replica, Responder),
    Promote(u64, Responder),
    Change(ChangeSet, Responder),
    Transfer(u64),
    Unreachable(u64),
}

/// What the worker is told.
pub(crate) enum Request {
    Group(GroupId, Command),
    Message(PeerId, Box<RaftEnvelope>),
    Create(Box<Seed>, oneshot::Sender<Result<(), Error>>),
    Remove(GroupId, u64, oneshot::Sender<Result<(), Error>>),
    Report(Report),
    Stop,
}

/// What became of work on another thread.
#[derive(Debug)]
pub(crate) enum Report {
    /// The files of a seal that may be proposed now; `None`: there is nothing to seal.
    Sealed { group: GroupId, result: Result<Option<Seal>, String> },
    /// The files of a seal that was applied.
    Made { group: GroupId, number: u64, result: Result<Made, KvError> },
    /// A snapshot was written.
    Dumped { group: GroupId, point: SnapshotPoint, result: Result<Manifest, String> },
    /// A snapshot's rows are in the state.
    Installed { group: GroupId, result: Result<(), crate::dump::Error> },
    /// Rows that were not needed any more are gone.
    Forgotten { group: GroupId, result: Result<(), KvError> },
    /// The rows of a group are gone; `false`: some are left.
    Cleared { group: GroupId, result: Result<bool, KvError> },
    /// Files that nothing names are gone; `true`: some may have to go later.
    Swept { result: Result<bool, KvError> },
    /// A task of files to be fetched has ended.
    Fetched { group: GroupId, number: u64, result: Result<(), String> },
    /// State up to these indexes is durable, by group and replica.
    Flushed { applied: BTreeMap<GroupId, (u64, u64)>, result: Result<(), Error> },
}

/// Who waits for the answer to a ticket.
enum Waiter {
    /// A client.
    Client(Responder),
    /// A client that publishes.
    Publisher(Responder),
    /// This driver: it has proposed a seal.
    Seal,
}

impl LogReader for LogStore {
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError> {
        LogStore::entries(self, group, low, high, max_bytes).map_err(|e| KvError(e.to_string()))
    }

    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, KvError> {
        LogStore::term(self, group, index).map_err(|e| KvError(e.to_string()))
    }
}

struct Member {
    group: Group<LogStore>,
    shared: Arc<Shared>,
    history: History,
    leads: bool,
    /// The last other replica that was known to lead; 0 before any was.
    leader: u64,
    /// Something of its log can't be read.
    unreadable: bool,
}

impl Member {
    /// Tells those who ask from other threads whether a seal is under way.
    fn tell_sealing(&self) {
        self.shared.sealing.store(self.history.is_sealing(), Ordering::Release);
    }
}

/// A replica that is to be removed once the work on its files is done.
struct Leaving {
    group: GroupId,
    replica: u64,
    responder: oneshot::Sender<Result<(), Error>>,
}

/// The worker.
pub(crate) struct Worker {
    inner: Arc<Inner>,
    requests: Receiver<Request>,
    outgoing: Arc<dyn Outgoing>,
    pool: Pool,
    transfer: Transfer,
    flusher: Flusher,
    scrub: Scrub,
    peer: PeerId,
    tick: Duration,
    ticks: Ticks,
    limits: handle::History,
    logger: slog::Logger,
    members: BTreeMap<GroupId, Member>,
    dirty: BTreeSet<GroupId>,
    waiters: HashMap<Ticket, (GroupId, Waiter)>,
    next_ticket: Ticket,
    /// Cuts of logs that the next turn writes.
    cuts: BTreeMap<GroupId, Compacted>,
    /// Groups whose rows are to be removed, and whether that is under way.
    clearing: BTreeMap<GroupId, bool>,
    leaving: Vec<Leaving>,
    /// Jobs that the files threads have.
    running: usize,
    /// The group whose work was begun last: the next ones come first.
    served: GroupId,
    /// Files may be there that nothing names, and when they are looked for.
    sweep: Option<Instant>,
    sweeping: bool,
    /// The logs are longer than their budget.
    pressed: bool,
    next_task: u64,
    flushing: bool,
    stopping: bool,
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Worker {
    /// Opens the replicas that the stores hold, and starts the other threads.
    pub(crate) fn open(
        inner: Arc<Inner>,
        requests: Receiver<Request>,
        outgoing: Arc<dyn Outgoing>,
        fetch: Arc<dyn Fetch>,
        options: &Options,
    ) -> Result<Self, Error> {
        let pool = Pool::start(&inner, options.history.grace).map_err(Error::Thread)?;
        let reporter = inner.clone();
        let report = move |report| {
            // fails only when the worker is gone, and nobody wants to know any more
            let _ = reporter.inbox.send(Request::Report(report));
        };
        let transfer = Transfer::start(inner.files.clone(), fetch, report).map_err(Error::Thread)?;
        let flusher = Flusher::start(&inner).map_err(Error::Thread)?;
        let scrub = Scrub::start(&inner).map_err(Error::Thread)?;
        let mut worker = Self {
            inner,
            requests,
            outgoing,
            pool,
            transfer,
            flusher,
            scrub,
            peer: options.peer,
            tick: options.tick,
            ticks: options.ticks,
            limits: options.history,
            // raft-rs logs every step of every election; what a user needs to know, the peer says itself
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            members: BTreeMap::new(),
            dirty: BTreeSet::new(),
            waiters: HashMap::new(),
            next_ticket: 1,
            cuts: BTreeMap::new(),
            clearing: BTreeMap::new(),
            leaving: Vec::new(),
            running: 0,
            served: GroupId(0),
            sweep: Some(Instant::now()),
            sweeping: false,
            pressed: false,
            next_task: 1,
            flushing: false,
            stopping: false,
        };
        worker.open_all()?;
        Ok(worker)
    }

    /// Takes turns until told to stop, or until a store fails.
    pub(crate) fn run(mut self) {
        // what is taken for granted and does not hold (a store that lies, say) must not leave a peer that seems to live
        let ended = catch_unwind(AssertUnwindSafe(|| self.turns().map_err(|error| error.to_string())));
        let ended = ended.unwrap_or_else(|panic| Err(format!("the raft thread panicked: {}", text_of(panic.as_ref()))));
        if let Err(error) = ended {
            tracing::error!(%error, "the stores of this peer failed; its groups stop and no longer vote");
            self.inner.failed.send_replace(Some(error));
        }
        for (_, (_, waiter)) in self.waiters.drain() {
            if let Waiter::Client(responder) = waiter {
                // it may be in the log, and on its way to the others: whoever must not do it twice has to know
                let _ = responder.send(Err(Refused::Uncertain));
            }
        }
        let Self { inner, requests, pool, transfer, flusher, scrub, .. } = self;
        // nobody listens any more, so the other threads end with what they do at the moment
        drop(requests);
        drop((transfer, pool, flusher, scrub));
        if let Err(error) = inner.kv.flush() {
            tracing::warn!(%error, "applied state was not flushed; it is replayed from the log at the next start");
        }
    }

    fn turns(&mut self) -> Result<(), Error> {
        let mut next_tick = Instant::now() + self.tick;
        let mut next_flush = Instant::now() + self.limits.flush;
        let mut next_look = Instant::now();
        while !self.stopping {
            if self.dirty.is_empty() {
                match self.requests.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                    Ok(request) => self.take(request)?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
            for _ in 0..MAX_INBOX {
                let Ok(request) = self.requests.try_recv() else { break };
                self.take(request)?;
            }
            let now = Instant::now();
            if now >= next_tick {
                // ticks that were missed are not made up for: a peer that was paused must not rush to an election
                next_tick = now + self.tick;
                self.tick_all();
            }
            self.turn()?;
            if now >= next_flush {
                next_flush = now + self.limits.flush;
                self.flush();
            }
            if now >= next_look {
                next_look = now + LOOK_EVERY.min(self.limits.flush);
                self.look(now)?;
            }
        }
        Ok(())
    }

    fn tick_all(&mut self) {
        let now = now_ms();
        for (id, member) in &mut self.members {
            member.group.handle(Input::Tick, now);
            if member.group.has_work() {
                self.dirty.insert(*id);
            }
        }
    }

    fn ticket(&mut self, id: GroupId, waiter: Waiter) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiters.insert(ticket, (id, waiter));
        ticket
    }

    /// The next offsets of a group's topics, as the rows have them.
    fn heads(&self, id: GroupId, topics: impl Iterator<Item = u64>) -> Result<BTreeMap<TopicId, u64>, Error> {
        let view = self.inner.view(id);
        let mut heads = BTreeMap::new();
        for topic in topics.map(TopicId) {
            if let Some(row) = view.topic(topic)? {
                heads.insert(topic, row.next);
            }
        }
        Ok(heads)
    }
}

#[cfg(test)]
mod tests;
