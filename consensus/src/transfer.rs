//! Fetching files from other peers: the pieces and segments of a snapshot, and segments that came out wrong here.
//!
//! A thread of its own with a small runtime. A task brings a list of files; a few requests of it are under way at a
//! time, a few tasks at a time, the others wait. What has arrived of a file is kept, also across restarts, and asked
//! for no more; a file counts only once its bytes have the hash that names it. When no source gives a file, the task
//! fails as a whole, and is begun again by whoever still wants it: Raft repeats its manifest.
//!
//! Writing blocks this thread and nobody else.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use canal_proto::limits::MAX_PIECE;
use canal_proto::peer::Piece;
use canal_proto::request::{PieceAsk, PieceData};
use canal_proto::{ContentHash, GroupId, PeerId, WireError};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::files::Files;
use crate::worker::Report;

/// Tasks under way at a time: a peer that comes back fills its groups a few at a time, and serves the others meanwhile.
const TASKS: usize = 4;
/// Files of one task under way at a time: enough to fill a link of some milliseconds, and no more in memory than this
/// many pieces.
const FILES: usize = 4;
/// Tasks that wait. Above it a task fails at once; Raft repeats its manifest.
const MAX_WAITING: usize = 4096;
/// How often a source is asked again for a file after it failed.
const ATTEMPTS: usize = 3;
/// Wait before a source is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// For one request: a piece of a MiB over a slow link.
const REQUEST: Duration = Duration::from_secs(20);

/// The answer that is on its way.
pub type Fetching = Pin<Box<dyn Future<Output = Result<PieceData, WireError>> + Send>>;

/// Asks other peers for parts of files. Called on a runtime that is not the caller's; what needs another has to go there
/// by itself.
pub trait Fetch: Send + Sync + 'static {
    /// Asks a peer, which can be reached at these addresses as far as is known.
    fn fetch(&self, from: PeerId, addresses: Vec<String>, ask: PieceAsk) -> Fetching;
}

/// A peer that may have the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<String>,
}

/// Files to be fetched.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) group: GroupId,
    /// Names the task in its group; a later one takes the place of those before it.
    pub(crate) number: u64,
    pub(crate) pieces: Vec<Piece>,
    /// Those to ask, the best first.
    pub(crate) sources: Vec<Source>,
}

enum Order {
    Fetch(Task),
    Cancel(GroupId),
}

/// Takes tasks; dropping it ends the thread, whatever is under way.
pub(crate) struct Transfer {
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Transfer {
    /// Starts the thread. What becomes of a task is told by `report`, which may block.
    pub(crate) fn start(
        files: Files,
        fetch: Arc<dyn Fetch>,
        report: impl Fn(Report) + Send + 'static,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        // bounded by the worker: a task and a cancellation a group at a time
        let (orders, receiver) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("transfer".into()).spawn(move || {
            let room = Room { files, fetch, running: JoinSet::new(), tasks: BTreeMap::new(), waiting: VecDeque::new() };
            runtime.block_on(room.run(receiver, report));
        })?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Begins a task; another one of its group is given up.
    pub(crate) fn begin(&self, task: Task) {
        let _ = self.orders.send(Order::Fetch(task));
    }

    /// Gives up the task of a group. Nothing is reported of it, unless it has ended already.
    pub(crate) fn cancel(&self, group: GroupId) {
        let _ = self.orders.send(Order::Cancel(group));
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let (closed, _) = mpsc::unbounded_channel();
        self.orders = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Room {
    files: Files,
    fetch: Arc<dyn Fetch>,
    running: JoinSet<(GroupId, u64, Result<(), String>)>,
    tasks: BTreeMap<GroupId, (u64, AbortHandle)>,
    waiting: VecDeque<Task>,
}

impl Room {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>, report: impl Fn(Report)) {
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Fetch(task)) => {
                        self.cancel(task.group);
                        if self.waiting.len() >= MAX_WAITING {
                            let result = Err("too many groups wait to be filled".to_owned());
                            report(Report::Fetched { group: task.group, number: task.number, result });
                        } else {
                            self.waiting.push_back(task);
                        }
                    }
                    Some(Order::Cancel(group)) => self.cancel(group),
                    None => return,
                },
                Some(ended) = self.running.join_next() => {
                    // a task that was given up has nothing to say
                    let Ok((group, number, result)) = ended else { continue };
                    if self.tasks.get(&group).is_some_and(|(running, _)| *running == number) {
                        self.tasks.remove(&group);
                        report(Report::Fetched { group, number, result });
                    }
                }
            }
            while self.tasks.len() < TASKS
                && let Some(task) = self.waiting.pop_front()
            {
                let (group, number) = (task.group, task.number);
                let (files, fetch) = (self.files.clone(), self.fetch.clone());
                let running = self.running.spawn(async move { (group, number, fetch_all(files, fetch, task).await) });
                self.tasks.insert(group, (number, running));
            }
        }
    }

    fn cancel(&mut self, group: GroupId) {
        self.waiting.retain(|task| task.group != group);
        if let Some((_, running)) = self.tasks.remove(&group) {
            running.abort();
        }
    }
}

async fn fetch_all(files: Files, fetch: Arc<dyn Fetch>, task: Task) -> Result<(), String> {
    let mut lacking = task.pieces.into_iter();
    let mut running: JoinSet<Result<(), String>> = JoinSet::new();
    loop {
        while running.len() < FILES
            && let Some(piece) = lacking.next()
        {
            running.spawn(fetch_one(files.clone(), fetch.clone(), task.sources.clone(), piece));
        }
        match running.join_next().await {
            Some(Ok(result)) => result?,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Ok(()),
        }
    }
}

/// Fetches one file from the first source that gives it.
async fn fetch_one(files: Files, fetch: Arc<dyn Fetch>, sources: Vec<Source>, piece: Piece) -> Result<(), String> {
    let hash = ContentHash::from_slice(&piece.hash).map_err(|e| e.to_string())?;
    let mut last = "nobody is known to have it".to_owned();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(AGAIN).await;
        }
        for source in &sources {
            if files.contains(&hash) {
                return Ok(());
            }
            match fetch_from(&files, fetch.as_ref(), source, &piece).await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("peer {}: {error}", source.peer),
            }
        }
    }
    Err(format!("file {hash} could not be fetched: {last}"))
}

async fn fetch_from(files: &Files, fetch: &dyn Fetch, source: &Source, piece: &Piece) -> Result<(), String> {
    let mut partial = files.receive(piece).map_err(|e| e.to_string())?;
    while partial.next() < piece.size {
        let left = usize::try_from(piece.size - partial.next()).unwrap_or(usize::MAX);
        let length = u32::try_from(left.min(MAX_PIECE)).unwrap_or(u32::MAX);
        let ask = PieceAsk { hash: piece.hash.clone(), offset: partial.next(), length };
        let asked = fetch.fetch(source.peer, source.addresses.clone(), ask);
        let part = match tokio::time::timeout(REQUEST, asked).await {
            Ok(answer) => answer.map_err(|e| e.to_string())?,
            Err(_) => return Err("it did not answer in time".to_owned()),
        };
        if part.size != piece.size || part.data.is_empty() || part.data.len() as u64 > u64::from(length) {
            return Err("it gave something else than was asked for".to_owned());
        }
        partial.write(&part.data).map_err(|e| e.to_string())?;
    }
    partial.finish().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
