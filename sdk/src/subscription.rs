//! Reads the events of a topic, or of all topics that a pattern matches: history first, then live, without a gap or
//! a double.
//!
//! Each topic is read from one peer: the one by which the client entered the mesh, which fetches the events once for
//! all its subscribers, else a replica of the topic's group. When it fails, or says nothing for three seconds, another
//! goes on at the next offset. The subscription counts offsets itself: what it has delivered is dropped, and if an event
//! is missing, that is an error and the end of the subscription, never a silent jump. Order holds within a topic.
//!
//! A peer sends what the reader has room for ([`SubscribeOptions::credit`]): who reads slowly lags alone, and
//! [`Subscription::lag`] says by how much. Nothing is dropped for it.
//!
//! A **durable** subscription has a name, and its group keeps how far it is: whoever opens it again goes on behind the
//! last event that was [`Subscription::handled`]. Events that were delivered and not handled come again, others do not.
//! Of two subscribers of one name the later has it; the earlier ends with [`Code::TakenOver`].
//!
//! Once it stands, a subscription has no deadline: it reconnects for as long as it lives.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use canal_proto::event::Stored;
use canal_proto::limits::MAX_SUBSCRIPTION_NAME;
use canal_proto::request::DEFAULT_CREDIT;
use canal_proto::{Code, Event, Pattern, ProducerId, TopicId};
use futures::Stream;
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use self::shared::{Durable, Shared, Terms};
use crate::Error;
use crate::backoff::random;
use crate::client::Client;

mod feed;
mod flow;
mod named;
mod pattern;
mod shared;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the oldest event there is.
    Earliest,
    /// With the next event.
    Latest,
    /// At this offset. Only for a plain topic.
    Offset(u64),
}

/// How a subscription behaves.
#[derive(Debug, Clone)]
pub struct SubscribeOptions {
    /// Where it begins; of a durable one: where it begins when its name is new.
    pub from: From,
    /// Name under which the group keeps how far the subscription is. With a pattern, in each topic.
    pub durable: Option<String>,
    /// Bytes of events that may wait here for the reader, of all topics together. (A topic gets at least 64 KiB of it,
    /// and an event always comes, however large it is.)
    pub credit: u64,
    /// Of a durable one: an event counts as handled when the next one is asked for, or at [`Subscription::close`].
    pub auto_handled: bool,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { from: From::Latest, durable: None, credit: DEFAULT_CREDIT, auto_handled: false }
    }
}

/// An event as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The event's offset in the topic.
    pub offset: u64,
    /// The event.
    pub event: Event,
    /// Who published it; [`NOBODY`] for what a function emitted in its own group.
    pub producer: ProducerId,
    /// The producer's sequence; 0 for what a function emitted in its own group.
    pub sequence: u64,
}

/// The producer of events that a function emitted in its own group: they are part of the entry that carries all
/// effects of the run, and need no number to be there once.
pub const NOBODY: ProducerId = ProducerId([0; 16]);

impl Delivered {
    fn new(topic: &Arc<str>, stored: Stored) -> Result<Self, Error> {
        let Stored { offset, event, producer, sequence } = stored;
        let producer = match producer.as_ref() {
            [] => NOBODY,
            id => ProducerId::from_slice(id).map_err(|e| Error::malformed(e.to_string()))?,
        };
        Ok(Self { topic: Arc::clone(topic), offset, event, producer, sequence })
    }

    /// The event as it travels.
    pub fn into_stored(self) -> Stored {
        let producer = if self.producer == NOBODY { Vec::new() } else { self.producer.to_vec() };
        Stored { offset: self.offset, event: self.event, producer: producer.into(), sequence: self.sequence }
    }
}

/// How far a reader is in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLag {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The topic.
    pub id: TopicId,
    /// Offset of the oldest event that could be read when the subscription last connected.
    pub oldest: u64,
    /// Offset of the event that the reader gets next.
    pub next: u64,
    /// Offset that the topic's next event will get, as far as the peers have told.
    pub head: u64,
}

impl TopicLag {
    /// Events that the reader has yet to get.
    pub fn events(&self) -> u64 {
        self.head.saturating_sub(self.next)
    }
}

/// How far a reader is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lag {
    /// Each topic that is read, by name.
    pub topics: Vec<TopicLag>,
}

impl Lag {
    /// Events that the reader has yet to get, of all topics.
    pub fn total(&self) -> u64 {
        self.topics.iter().map(TopicLag::events).sum()
    }
}

/// Events that a durable subscription can't have any more: they were let go before it came to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The topic's name.
    pub topic: Arc<str>,
    /// Offset of the first of them.
    pub first: u64,
    /// Offset behind the last of them.
    pub end: u64,
}

/// Events of one topic, each with what it costs of the window.
type Batch = Result<(Arc<Shared>, Vec<(u64, Delivered)>), Error>;

/// What is left of a batch.
struct Current {
    shared: Arc<Shared>,
    events: std::vec::IntoIter<(u64, Delivered)>,
}

/// A stream of events. After an error it ends.
pub struct Subscription {
    batches: mpsc::UnboundedReceiver<Batch>,
    current: Option<Current>,
    terms: Arc<Terms>,
    auto_handled: bool,
    /// The event that was handed out last, and the offset behind it.
    last: Option<(Arc<Shared>, u64)>,
    failed: bool,
    _task: AbortOnDropHandle<()>,
}

impl Client {
    /// Subscribes to a topic, or to all topics, present and future, that a pattern with wildcards matches. Topics
    /// that appear later are read from their first event. Returns when the subscription stands: what is published
    /// from then on will be seen.
    ///
    /// # Errors
    /// `UnknownTopic` (only for a plain name), `OutOfRange`, `InvalidArgument`; those of [`Client::call`].
    pub async fn subscribe(&self, pattern: &str, from: From) -> Result<Subscription, Error> {
        self.subscribe_with(pattern, SubscribeOptions { from, ..SubscribeOptions::default() }).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub async fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription, Error> {
        let pattern: Pattern = pattern.parse()?;
        let SubscribeOptions { from, durable, credit, auto_handled } = options;
        let durable = match durable {
            Some(name) => Some(Durable { name: check_name(name)?, holder: random()? }),
            None => None,
        };
        let terms = Terms::new(self.clone(), durable, credit);
        // bounded by the windows of the feeds: an event is only sent where there is room for it
        let (batches, receiver) = mpsc::unbounded_channel();
        let (opened, stands) = oneshot::channel();
        let task = if pattern.is_plain() {
            let feed = feed::Feed::new(Arc::clone(&terms), pattern.as_str(), 0, from, batches);
            tokio::spawn(feed.run(opened))
        } else if matches!(from, From::Offset(_)) {
            let message = "an offset belongs to one topic: subscribe to a pattern from earliest or latest";
            return Err(Error::new(Code::InvalidArgument, message));
        } else {
            tokio::spawn(pattern::Topics::new(Arc::clone(&terms), pattern, from, batches).run(opened))
        };
        let task = AbortOnDropHandle::new(task);
        stands.await.map_err(|_| Error::new(Code::Internal, "the subscription ended before it stood"))??;
        Ok(Subscription {
            batches: receiver,
            current: None,
            terms,
            auto_handled,
            last: None,
            failed: false,
            _task: task,
        })
    }
}

fn check_name(name: String) -> Result<String, Error> {
    let wrong = if name.is_empty() {
        "the name of a durable subscription is empty: give it one".to_owned()
    } else if name.len() > MAX_SUBSCRIPTION_NAME {
        format!(
            "the name of a durable subscription has {} bytes; at most {MAX_SUBSCRIPTION_NAME} are allowed",
            name.len()
        )
    } else if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "the name of a durable subscription has blanks or control characters; leave them out".to_owned()
    } else {
        return Ok(name);
    };
    Err(Error::new(Code::InvalidArgument, wrong))
}

impl Subscription {
    /// How far the reader is behind, by topic and in all.
    pub fn lag(&self) -> Lag {
        self.terms.lag()
    }

    /// Everything up to this event is handled, in its topic: a durable subscription does not get it again. It is committed
    /// soon, the latest word only; [`Self::close`] waits for it.
    pub fn handled(&self, delivered: &Delivered) {
        self.handled_before(&delivered.topic, delivered.offset + 1);
    }

    /// The same by numbers: everything before this offset is handled. A lower one than before changes nothing, and so does
    /// what was not delivered yet; without effect when the subscription is not durable.
    pub fn handled_before(&self, topic: &str, offset: u64) {
        if self.terms.durable.is_some()
            && let Some(shared) = self.terms.find(topic)
        {
            shared.handle(offset);
        }
    }

    /// Events that this durable subscription has lost since the last call, because it was too far behind for the topic's
    /// retention. (Any other ends with `OutOfRange` instead.)
    pub fn take_lost(&mut self) -> Vec<Lost> {
        self.terms.topics().iter().flat_map(|shared| shared.take_lost()).collect()
    }

    /// Ends the subscription once all that was handled is committed. What a dropped one has handled a moment before may
    /// come again.
    ///
    /// # Errors
    /// `NoQuorum` when it can't be committed within the client's deadline, `TakenOver`.
    pub async fn close(mut self) -> Result<(), Error> {
        if self.terms.durable.is_none() || self.failed {
            return Ok(());
        }
        if self.auto_handled {
            self.handle_last();
        }
        let deadline = self.terms.client.options().deadline;
        let topics = self.terms.topics();
        let batches = &mut self.batches;
        let ended = async {
            loop {
                match batches.recv().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return std::future::pending().await,
                }
            }
        };
        let flushed = async {
            tokio::select! {
                biased;
                _ = join_all(topics.iter().map(|shared| shared.flushed())) => Ok(()),
                error = ended => error,
            }
        };
        timeout(deadline, flushed).await.unwrap_or_else(|_| {
            let message = "what was handled could not be committed within the deadline; those events will come again";
            Err(Error::new(Code::NoQuorum, message))
        })
    }

    fn handle_last(&mut self) {
        if let Some((shared, next)) = self.last.take() {
            shared.handle(next);
        }
    }
}

impl Stream for Subscription {
    type Item = Result<Delivered, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.auto_handled {
            this.handle_last();
        }
        loop {
            if let Some(current) = &mut this.current
                && let Some((cost, delivered)) = current.events.next()
            {
                current.shared.on_read(delivered.offset, cost);
                this.last = this.auto_handled.then(|| (Arc::clone(&current.shared), delivered.offset + 1));
                return Poll::Ready(Some(Ok(delivered)));
            }
            if this.failed {
                return Poll::Ready(None);
            }
            match this.batches.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Ok((shared, events)))) => {
                    this.current = Some(Current { shared, events: events.into_iter() });
                }
                Poll::Ready(Some(Err(error))) => {
                    this.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}
