//! Publishes events to one topic, in order, each once.
//!
//! A publisher numbers its events 1, 2, 3 … and keeps each until its receipt has come. Whatever goes wrong on the
//! way — another leader, a connection that breaks, a batch that overtakes another — it sends what has no receipt
//! again, the oldest first, with the same numbers; the group appends each number once and refuses to skip one. So a
//! retry neither doubles nor reorders.
//!
//! **When it fails.** An event that exceeds a limit is refused before it gets a number, and harms nothing. Any other
//! final error — the topic is gone, or an event has no receipt within the deadline — fails the publisher as a whole:
//! every event without a receipt and every later one gets that error, since a number may not be skipped. To go on
//! without doubling, make a new one with [`PublisherOptions::identity`] (the same producer, the first sequence that
//! has no receipt) and publish the same events again, in the same order.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use canal_proto::limits::{MAX_PAYLOAD, RECEIPT_WINDOW};
use canal_proto::request::{Ask, EndProducer};
use canal_proto::{Code, Event, ProducerId, Receipt, TopicName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

#[cfg(feature = "queue")]
pub(crate) use self::window::Progress;
use self::window::{Item, Window, size};
use crate::Error;
use crate::backoff::random;
use crate::client::{Client, Target};

mod news;
mod pump;
mod window;

/// Bytes on their way at most, unless said otherwise: a hundred milliseconds at a gigabit a second.
const DEFAULT_WINDOW_BYTES: usize = 16 << 20;
/// Room that an event takes beside its content, on the wire and in memory.
const EVENT_OVERHEAD: usize = 64;

/// How a publisher behaves.
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    /// Takes up a producer again, with the first sequence to be used. None: a new producer, from 1.
    pub identity: Option<(ProducerId, u64)>,
    /// Events without a receipt at most; never more than [`RECEIPT_WINDOW`], so that each retry gets its receipt.
    pub window_events: usize,
    /// Their bytes at most; never less than one of the largest events.
    pub window_bytes: usize,
    /// How long an event may be without a receipt before the publisher fails. None: for ever. Unless said
    /// otherwise, the client's deadline.
    pub deadline: Deadline,
}

/// How long a publisher tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// As long as the client's calls.
    Client,
    /// This long for each event.
    After(Duration),
    /// Until it is dropped. Such a publisher can be made while the mesh can't be reached.
    Never,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        let window_events = usize::try_from(RECEIPT_WINDOW).unwrap_or(usize::MAX);
        Self { identity: None, window_events, window_bytes: DEFAULT_WINDOW_BYTES, deadline: Deadline::Client }
    }
}

/// Publishes to one topic. Dropped without [`Publisher::close`], it stops trying, and what had no receipt fails with
/// [`Code::Stopping`].
pub struct Publisher {
    client: Client,
    topic: String,
    producer: ProducerId,
    window: Arc<Window>,
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    window_bytes: usize,
    _task: AbortOnDropHandle<()>,
}

/// An event that was not taken, and why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// The event, to be given again.
    pub event: Event,
    /// Why: [`Code::WouldBlock`] when the window is full, [`Code::TooLarge`] when it exceeds a limit.
    pub error: Error,
}

impl Client {
    /// A publisher for a topic.
    ///
    /// # Errors
    /// `UnknownTopic`, `InvalidArgument`; those of [`Client::call`].
    pub async fn publisher(&self, topic: &str) -> Result<Publisher, Error> {
        self.publisher_with(topic, PublisherOptions::default()).await
    }

    /// A publisher for a topic, as these options say.
    ///
    /// # Errors
    /// As [`Client::publisher`].
    pub async fn publisher_with(&self, topic: &str, options: PublisherOptions) -> Result<Publisher, Error> {
        topic.parse::<TopicName>()?;
        let route = match self.route_until(topic, Instant::now() + self.options().deadline).await {
            Ok(route) => Some(route.topic),
            // it is looked for again when there is something to publish
            Err(error)
                if options.deadline == Deadline::Never && matches!(error.code, Code::Unreachable | Code::NoQuorum) =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        self.begin_publisher(topic, options, route)
    }

    /// A publisher that looks for its topic, unless it is known, when there is something to publish. Asks nobody.
    pub(crate) fn begin_publisher(
        &self,
        topic: &str,
        options: PublisherOptions,
        topic_id: Option<u64>,
    ) -> Result<Publisher, Error> {
        let (producer, first) = match options.identity {
            Some(identity) => identity,
            None => (ProducerId(random()?), 1),
        };
        if first == 0 {
            return Err(Error::new(Code::InvalidArgument, "sequences start at 1"));
        }
        let deadline = match options.deadline {
            Deadline::Client => Some(self.options().deadline),
            Deadline::After(deadline) => Some(deadline),
            Deadline::Never => None,
        };
        let window = Arc::new(Window::new(first));
        let pump = pump::Pump::new(self.clone(), topic.into(), topic_id, producer, deadline, Arc::clone(&window));
        let largest = size(&Event::default()) + MAX_PAYLOAD + (32 << 10);
        let window_bytes = options.window_bytes.clamp(largest, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let most = usize::try_from(RECEIPT_WINDOW).unwrap_or(usize::MAX);
        Ok(Publisher {
            client: self.clone(),
            topic: topic.into(),
            producer,
            window,
            events: Arc::new(Semaphore::new(options.window_events.clamp(1, most))),
            bytes: Arc::new(Semaphore::new(window_bytes)),
            window_bytes,
            _task: AbortOnDropHandle::new(tokio::spawn(pump.run())),
        })
    }
}

impl Publisher {
    /// The producer under which events are numbered.
    pub fn producer(&self) -> ProducerId {
        self.producer
    }

    /// The sequence that the next event will get.
    pub fn next_sequence(&self) -> u64 {
        self.window.next_sequence()
    }

    /// The error that ended this publisher, if one did.
    pub fn failure(&self) -> Option<Error> {
        self.window.failure()
    }

    /// What keeps the oldest event from its receipt, as far as that is known; none once a receipt has come.
    pub fn trouble(&self) -> Option<Error> {
        self.window.trouble()
    }

    /// How far the receipts are, to be waited for.
    #[cfg(feature = "queue")]
    pub(crate) fn progress(&self) -> tokio::sync::watch::Receiver<Progress> {
        self.window.watch()
    }

    /// Publishes one event and waits for its receipt.
    ///
    /// # Errors
    /// `TooLarge`; what failed the publisher (see the module's documentation).
    pub async fn publish(&self, event: Event) -> Result<Receipt, Error> {
        self.send(event).await?.await
    }

    /// Takes an event, as soon as there is room in the window, and returns its receipt to come. Events are
    /// published in the order in which they are taken.
    ///
    /// # Errors
    /// `TooLarge`; what failed the publisher.
    pub async fn send(&self, event: Event) -> Result<Pending, Error> {
        event.check()?;
        let closed = |_| Error::new(Code::Stopping, "the publisher is closed");
        let place = Arc::clone(&self.events).acquire_owned().await.map_err(closed)?;
        let room = Arc::clone(&self.bytes).acquire_many_owned(self.weight(&event)).await.map_err(closed)?;
        self.take(event, (place, room)).map_err(|refused| refused.error)
    }

    /// Takes an event if there is room in the window now.
    ///
    /// # Errors
    /// The event with `WouldBlock` when there is none, `TooLarge`, or what failed the publisher.
    // the caller needs the event back, and it is as large as it is
    #[expect(clippy::result_large_err, reason = "a refused event goes back to its owner")]
    pub fn try_publish(&self, event: Event) -> Result<Pending, Refused> {
        if let Err(error) = event.check() {
            return Err(Refused { event, error: error.into() });
        }
        let place = Arc::clone(&self.events).try_acquire_owned();
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(self.weight(&event));
        match (place, room) {
            (Ok(place), Ok(room)) => self.take(event, (place, room)),
            _ => {
                let error = Error::new(Code::WouldBlock, "the publisher's window is full: wait for receipts");
                Err(Refused { event, error: self.failure().unwrap_or(error) })
            }
        }
    }

    /// Waits until all events taken so far have their receipts.
    ///
    /// # Errors
    /// What failed the publisher.
    pub async fn flush(&self) -> Result<(), Error> {
        self.window.settled(self.window.next_sequence() - 1).await
    }

    /// Waits for all receipts, then tells the group that this producer will not come back.
    ///
    /// # Errors
    /// What failed the publisher; those of [`Client::call`].
    pub async fn close(self) -> Result<(), Error> {
        self.flush().await?;
        let last_sequence = self.window.next_sequence() - 1;
        // A copy of a retried request may still be on its way. As long as the group remembers the producer, it is
        // a duplicate; after an end it would look new. So this producer stays remembered.
        if last_sequence == 0 || self.window.has_retried() {
            return Ok(());
        }
        let end = EndProducer { topic: self.topic.clone(), producer: self.producer.to_vec().into(), last_sequence };
        self.client.call(Target::Topic(self.topic.clone()), Ask::EndProducer(end)).await.map(|_| ())
    }

    fn weight(&self, event: &Event) -> u32 {
        u32::try_from(size(event).min(self.window_bytes)).unwrap_or(u32::MAX)
    }

    #[expect(clippy::result_large_err, reason = "a refused event goes back to its owner")]
    fn take(&self, event: Event, room: (OwnedSemaphorePermit, OwnedSemaphorePermit)) -> Result<Pending, Refused> {
        let (reply, receiver) = oneshot::channel();
        let item = Item { event, reply, taken: Instant::now(), _room: room };
        match self.window.push(item) {
            Ok(sequence) => Ok(Pending { sequence, receiver }),
            Err((item, error)) => Err(Refused { event: item.event, error }),
        }
    }
}

/// A receipt to come.
pub struct Pending {
    sequence: u64,
    receiver: oneshot::Receiver<Result<Receipt, Error>>,
}

impl Pending {
    /// The event's sequence.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Future for Pending {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|outcome| {
            let dropped = |_| Error::new(Code::Stopping, "the publisher was dropped before the receipt came");
            outcome.map_err(dropped)?
        })
    }
}
