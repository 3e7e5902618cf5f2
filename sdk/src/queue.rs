//! A queue on disk, for publishers that lose their mesh.
//!
//! What is put in is durable on this device when [`Queue::put`] returns, whether there is a mesh or not. Each topic has
//! a producer of its own, whose numbers are given here and kept with the events; [`Queue::hand_over`] publishes what
//! waits, the oldest first, with these numbers, and an event leaves the queue when its receipt has come. A group
//! appends each number once, so nothing is doubled, lost or reordered, however often the device restarts, whoever leads
//! the group, and wherever a crash falls: after the receipt and before the removal, the event is sent again and
//! answered as a duplicate.
//!
//! A topic that is removed and made again under its name is another one: what still waits is published to it by a new
//! producer, in the same order.
//!
//! The queue is bounded over all topics; when it is full, a put is refused with [`Code::WouldBlock`] and nothing is
//! dropped. One process has it open at a time. What keeps a topic's events waiting is told by [`Queue::waiting`]; a topic
//! never holds up another while there is room, and one that never gets its receipts can be given up with
//! [`Queue::discard`].
//!
//! ```no_run
//! use canal_sdk::queue::{Queue, QueueOptions};
//! use canal_sdk::transport::libp2p::Libp2p;
//! use canal_sdk::{Client, Event, Options};
//! use std::sync::Arc;
//!
//! # async fn example() -> Result<(), canal_sdk::Error> {
//! let queue = Queue::open("/var/lib/sensor/queue", QueueOptions::default())?;
//! // a client that connects when it can
//! let client =
//!     Client::with_transport(Arc::new(Libp2p::new()?), vec!["10.0.0.1:4040".into()], Options::default());
//! let handing_over = queue.hand_over(client)?;
//! queue.put("plant/line1/temperature", Event::new("21.5")).await?;
//! queue.emptied().await?;
//! handing_over.stop().await;
//! # Ok(())
//! # }
//! ```

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use canal_proto::{Code, Event, ProducerId, TopicName};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

pub use self::hand_over::HandOver;
use self::hand_over::Place;
use self::keeper::{Command, Keeper, MAX_TURN, Shared};
use self::rows::TroubleRow;
pub use self::status::Status;
use self::store::Store;
use crate::Error;
use crate::client::Client;

mod hand_over;
mod keeper;
mod rows;
mod status;
mod store;

/// Events that wait at most, unless said otherwise: a reading a second for eleven days.
const DEFAULT_MAX_EVENTS: u64 = 1_000_000;
/// Their bytes at most, unless said otherwise: what the smallest devices have to spare.
const DEFAULT_MAX_BYTES: u64 = 256 << 20;
/// Room for one of the largest events.
const MIN_BYTES: u64 = 2 << 20;

/// How much a queue keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// Events without a receipt at most, of all topics together.
    pub max_events: u64,
    /// Their bytes at most, as they are stored; never less than one of the largest events takes. The file may be twice
    /// as large.
    pub max_bytes: u64,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { max_events: DEFAULT_MAX_EVENTS, max_bytes: DEFAULT_MAX_BYTES }
    }
}

/// What waits of a topic. A topic that was put to once stays listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// The topic.
    pub topic: String,
    /// The producer under which its events are published.
    pub producer: ProducerId,
    /// Id of the topic that they are for; 0: it has not been found yet.
    pub topic_id: u64,
    /// The queue's sequence of the oldest event without a receipt; of the next one when none waits.
    pub first: u64,
    /// Sequences up to this one were those of earlier producers, for earlier topics of this name: the oldest event is
    /// published as `first - base`.
    pub base: u64,
    /// Events without a receipt.
    pub events: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// Time of the oldest, in milliseconds since 1970-01-01 UTC.
    pub oldest_ms: Option<u64>,
    /// What went wrong last, since the last receipt.
    pub trouble: Option<Trouble>,
}

/// Why a topic's events are not handed over.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// The error.
    pub error: Error,
    /// Nothing is tried any more for this topic until the hand-over is begun anew; else it goes on by itself.
    pub stopped: bool,
}

impl From<&TroubleRow> for Trouble {
    fn from(row: &TroubleRow) -> Self {
        let error = Error::new(Code::try_from(row.code).unwrap_or(Code::Unspecified), row.message.clone());
        Self { error, stopped: row.stopped }
    }
}

/// A durable queue of events to be published. Clones share it; dropping the last one closes it.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

struct Inner {
    commands: Option<mpsc::Sender<Command>>,
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    handing_over: AtomicBool,
}

impl Queue {
    /// Opens the queue in a directory, and makes it if there is none. Blocks while it reads the disk: after a crash, as
    /// long as it takes to read the file once.
    ///
    /// # Errors
    /// `InUse` when it is open already, here or in another process; `InvalidArgument` for options that hold nothing;
    /// `Incompatible` when another version wrote it; `Internal` when the disk refuses.
    pub fn open(dir: impl AsRef<Path>, options: QueueOptions) -> Result<Self, Error> {
        Self::begin(Store::open(dir.as_ref())?, options, Some(dir.as_ref()))
    }

    /// Whether there is a queue in this directory.
    pub fn exists(dir: impl AsRef<Path>) -> bool {
        Store::exists(dir.as_ref())
    }

    /// What waits in a queue that somebody else has open, here or in another process, as that one last wrote it: within
    /// a second of each change. None when nobody has it open, or has had it for a moment only.
    pub fn status(dir: impl AsRef<Path>) -> Option<Status> {
        status::read(dir.as_ref(), Store::owner(dir.as_ref())?)
    }

    /// `dir` is where the status is written.
    fn begin(store: Store, options: QueueOptions, dir: Option<&Path>) -> Result<Self, Error> {
        if options.max_events == 0 {
            return Err(Error::new(Code::InvalidArgument, "a queue of no events holds nothing: give it room for some"));
        }
        let options = QueueOptions { max_bytes: options.max_bytes.max(MIN_BYTES), ..options };
        let mut keeper = Keeper::new(store, options)?;
        if let Some(dir) = dir {
            keeper.write_status(dir)?;
        }
        let shared = keeper.shared();
        let (commands, receiver) = mpsc::channel(MAX_TURN);
        let thread = std::thread::Builder::new().name("canal-queue".into()).spawn(move || keeper.run(receiver));
        let thread = thread
            .map_err(|error| Error::new(Code::Internal, format!("the queue's thread can't be started: {error}")))?;
        let (commands, keeper) = (Some(commands), Some(thread));
        Ok(Self(Arc::new(Inner { commands, shared, keeper, handing_over: AtomicBool::new(false) })))
    }

    /// Puts an event in. It is on disk, synced, when this returns its sequence. An event without a time gets that of
    /// now. Puts that are under way together share a sync. One that is dropped before it returns may have been put in.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; `TooLarge`, `InvalidArgument` (the topic's name); `Internal` when the disk
    /// has failed: whether the event is in the queue is then only known when it is opened again.
    pub async fn put(&self, topic: &str, event: Event) -> Result<u64, Error> {
        self.put_all(topic, vec![event]).await.map(|sequences| sequences.start)
    }

    /// Puts several events of a topic in, in this order: all or none.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub async fn put_all(&self, topic: &str, events: Vec<Event>) -> Result<Range<u64>, Error> {
        topic.parse::<TopicName>()?;
        let now = now_ms();
        let mut encoded = Vec::with_capacity(events.len());
        for mut event in events {
            event.check()?;
            if event.time_ms == 0 {
                event.time_ms = now;
            }
            encoded.push(event.encode_to_vec());
        }
        self.ask(|reply| Command::Put { topic: topic.to_owned(), events: encoded, reply }).await
    }

    /// Gives up what waits for a topic, and forgets the topic: how many events that were. What is put in later begins
    /// anew. Events that were sent and have no receipt may have been published.
    ///
    /// # Errors
    /// `UnknownTopic` when nothing was ever put in for it; `InUse` while the queue is handed over; `Internal` when the
    /// disk has failed.
    pub async fn discard(&self, topic: &str) -> Result<u64, Error> {
        if self.0.handing_over.swap(true, Ordering::SeqCst) {
            return Err(Error::new(Code::InUse, "this queue is being handed over: stop that first"));
        }
        let _place = Place(self.clone());
        self.ask(|reply| Command::Discard { topic: topic.to_owned(), reply }).await
    }

    /// What waits, by topic.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.0.shared.waiting()
    }

    /// Events that wait, of all topics.
    pub fn len(&self) -> u64 {
        self.waiting().iter().map(|waiting| waiting.events).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands over what waits and what will be put in, until the result is stopped or dropped. The client need not be
    /// connected, and the topics need not exist yet.
    ///
    /// # Errors
    /// `InUse` when that is being done already.
    pub fn hand_over(&self, client: Client) -> Result<HandOver, Error> {
        if self.0.handing_over.swap(true, Ordering::SeqCst) {
            return Err(Error::new(Code::InUse, "this queue is being handed over already: stop that first"));
        }
        Ok(HandOver::begin(self.clone(), client))
    }

    /// Waits until nothing waits.
    ///
    /// # Errors
    /// What stopped a topic, when all that still waits is of topics that are stopped; `Internal` when the disk failed.
    pub async fn emptied(&self) -> Result<(), Error> {
        let mut changed = self.0.shared.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(error) = self.0.shared.failed() {
                return Err(error);
            }
            let mut waiting = self.waiting();
            waiting.retain(|waiting| waiting.events > 0);
            let Some(first) = waiting.first() else { return Ok(()) };
            let is_stopped = |waiting: &Waiting| waiting.trouble.as_ref().is_some_and(|trouble| trouble.stopped);
            if waiting.iter().all(is_stopped)
                && let Some(trouble) = &first.trouble
            {
                return Err(trouble.error.clone());
            }
            // the sender is in `shared`
            drop(changed.changed().await);
        }
    }

    /// Events that got their receipts since the queue was opened.
    pub fn handed_over(&self) -> u64 {
        self.0.shared.settled()
    }

    /// Waits until more than `since` events got their receipts.
    pub async fn progressed(&self, since: u64) {
        let mut changed = self.0.shared.changed.subscribe();
        // the sender is in `shared`
        drop(changed.wait_for(|_| self.handed_over() > since).await);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command) -> Result<T, Error> {
        let ended = || Error::new(Code::Stopping, "the queue's thread has ended: open the queue again");
        let (reply, answer) = oneshot::channel();
        let commands = self.0.commands.as_ref().ok_or_else(ended)?;
        commands.send(command(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl Drop for Inner {
    /// Waits for the write that is under way, so that the queue can be opened again at once.
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the queue's thread has panicked");
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // zero would be no time
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
#[path = "queue/tests.rs"]
mod tests;
