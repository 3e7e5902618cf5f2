//! Reads the events of a topic, or of all topics that a pattern matches: history first, then live, without a gap or
//! a double.
//!
//! Each topic is read from one replica of its group: one that is connected already, else the first that answers. When
//! it fails, another goes on at the next offset. The subscription counts offsets itself: what it has delivered is
//! dropped, and if an event is missing, that is an error and the end of the subscription, never a silent jump.
//! Order holds within a topic. Who reads slowly is waited for, down to the peer; nothing is dropped for it.
//!
//! Once it stands, a subscription has no deadline: it reconnects for as long as it lives.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use canal_proto::event::Stored;
use canal_proto::{Code, Event, Pattern, ProducerId};
use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::Error;
use crate::client::Client;

mod feed;
mod pattern;

/// Batches that wait for the reader: one that it works on, and a few so that the network need not wait for it.
const BUFFERED_BATCHES: usize = 4;

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
}

type Batch = Result<Vec<Delivered>, Error>;

/// A stream of events. After an error it ends.
pub struct Subscription {
    batches: mpsc::Receiver<Batch>,
    current: std::vec::IntoIter<Delivered>,
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
        let pattern: Pattern = pattern.parse()?;
        let (batches, receiver) = mpsc::channel(BUFFERED_BATCHES);
        let (opened, stands) = oneshot::channel();
        let task = if pattern.is_plain() {
            let feed = feed::Feed::new(self.clone(), pattern.as_str(), 0, from, batches);
            tokio::spawn(feed.run(opened))
        } else if matches!(from, From::Offset(_)) {
            let message = "an offset belongs to one topic: subscribe to a pattern from earliest or latest";
            return Err(Error::new(Code::InvalidArgument, message));
        } else {
            tokio::spawn(pattern::Topics::new(self.clone(), pattern, from, batches).run(opened))
        };
        let task = AbortOnDropHandle::new(task);
        stands.await.map_err(|_| Error::new(Code::Internal, "the subscription ended before it stood"))??;
        Ok(Subscription { batches: receiver, current: Vec::new().into_iter(), failed: false, _task: task })
    }
}

impl Stream for Subscription {
    type Item = Result<Delivered, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(delivered) = self.current.next() {
                return Poll::Ready(Some(Ok(delivered)));
            }
            if self.failed {
                return Poll::Ready(None);
            }
            match self.batches.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Ok(batch))) => self.current = batch.into_iter(),
                Poll::Ready(Some(Err(error))) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}
