//! What has no receipt yet: a queue that publishing calls fill and the publisher's task empties. No IO.
//!
//! Once a batch has been cut for sending, it keeps its boundaries over every retry, so that a group has appended all
//! of it or nothing.

use std::collections::VecDeque;

use canal_proto::limits::MAX_BATCH_EVENTS;
use canal_proto::{Event, Receipt};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use super::EVENT_OVERHEAD;
use crate::Error;

/// Bytes of one request, about: a quarter of a frame, so that several are under way before a frame could be full.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// An event and whoever waits for its receipt.
pub(super) struct Item {
    pub(super) event: Event,
    pub(super) reply: oneshot::Sender<Result<Receipt, Error>>,
    pub(super) taken: Instant,
    pub(super) _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Events that travel in one request.
pub(super) struct Batch {
    pub(super) first: u64,
    pub(super) items: VecDeque<Item>,
    /// It was sent before.
    pub(super) tried: bool,
}

pub(super) fn size(event: &Event) -> usize {
    let headers: usize = event.headers.iter().map(|h| h.name.len() + h.value.len() + EVENT_OVERHEAD / 8).sum();
    event.payload.len() + event.key.len() + event.trace.len() + headers + EVENT_OVERHEAD
}

struct Queue {
    items: VecDeque<Item>,
    next_sequence: u64,
    retried: bool,
}

/// How far the receipts are.
#[derive(Clone)]
pub(crate) struct Progress {
    /// All up to this sequence have receipts.
    pub(crate) through: u64,
    /// What ended the publisher.
    pub(crate) failed: Option<Error>,
    /// What went wrong last, since the last receipt.
    pub(crate) trouble: Option<Error>,
}

/// Shared between publishing calls and the task.
pub(super) struct Window {
    queue: Mutex<Queue>,
    progress: watch::Sender<Progress>,
    pub(super) filled: Notify,
}

impl Window {
    pub(super) fn new(first: u64) -> Self {
        let progress = Progress { through: first - 1, failed: None, trouble: None };
        Self {
            queue: Mutex::new(Queue { items: VecDeque::new(), next_sequence: first, retried: false }),
            progress: watch::Sender::new(progress),
            filled: Notify::new(),
        }
    }

    /// Gives an event its sequence; gives it back when the publisher has failed.
    #[expect(clippy::result_large_err, reason = "a refused event goes back to its owner")]
    pub(super) fn push(&self, item: Item) -> Result<u64, (Item, Error)> {
        let mut queue = self.queue.lock();
        // under the lock, so that nothing slips in behind the failure
        if let Some(error) = self.failure() {
            return Err((item, error));
        }
        let sequence = queue.next_sequence;
        queue.next_sequence += 1;
        queue.items.push_back(item);
        drop(queue);
        self.filled.notify_one();
        Ok(sequence)
    }

    /// What is queued, up to a batch.
    pub(super) fn cut(&self) -> Option<Batch> {
        let mut queue = self.queue.lock();
        let first = queue.next_sequence - queue.items.len() as u64;
        let mut items = VecDeque::new();
        let mut bytes = 0;
        while let Some(item) = queue.items.front() {
            bytes += size(&item.event);
            if !items.is_empty() && (bytes > MAX_BATCH_BYTES || items.len() == MAX_BATCH_EVENTS) {
                break;
            }
            items.extend(queue.items.pop_front());
        }
        (!items.is_empty()).then_some(Batch { first, items, tried: false })
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.queue.lock().next_sequence
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.progress.borrow().failed.clone()
    }

    pub(super) fn note_retry(&self) {
        self.queue.lock().retried = true;
    }

    pub(super) fn has_retried(&self) -> bool {
        self.queue.lock().retried
    }

    pub(super) fn note_receipts(&self, through: u64) {
        self.progress.send_modify(|progress| {
            progress.through = through;
            progress.trouble = None;
        });
    }

    pub(super) fn note_trouble(&self, error: &Error) {
        self.progress.send_modify(|progress| progress.trouble = Some(error.clone()));
    }

    pub(super) fn trouble(&self) -> Option<Error> {
        self.progress.borrow().trouble.clone()
    }

    #[cfg(feature = "queue")]
    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Fails what is queued, and everything that comes after.
    pub(super) fn fail(&self, error: &Error) {
        let items = {
            let mut queue = self.queue.lock();
            self.progress.send_modify(|progress| progress.failed = Some(error.clone()));
            std::mem::take(&mut queue.items)
        };
        for item in items {
            drop(item.reply.send(Err(error.clone())));
        }
    }

    /// Waits until all up to this sequence have receipts.
    pub(super) async fn settled(&self, sequence: u64) -> Result<(), Error> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.through >= sequence || progress.failed.is_some()).await;
        match reached {
            Ok(progress) if progress.through >= sequence => Ok(()),
            Ok(progress) => Err(progress.failed.clone().unwrap_or_else(|| Error::unexpected("a publish"))),
            Err(_) => Err(Error::new(canal_proto::Code::Stopping, "the publisher was dropped")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::sync::Arc;

    use canal_proto::Code;
    use tokio::sync::Semaphore;

    use super::*;

    fn item(payload: usize) -> Item {
        let room = Arc::new(Semaphore::new(2));
        let permit = || Arc::clone(&room).try_acquire_owned().unwrap();
        Item {
            event: Event::new(vec![0; payload]),
            reply: oneshot::channel().0,
            taken: Instant::now(),
            _room: (permit(), permit()),
        }
    }

    #[tokio::test]
    async fn batches_are_cut_by_count_and_by_bytes_in_order() {
        let window = Window::new(5);
        for n in 0..MAX_BATCH_EVENTS as u64 + 1 {
            assert_eq!(window.push(item(1)).ok().unwrap(), 5 + n);
        }
        let (one, two) = (window.cut().unwrap(), window.cut().unwrap());
        assert_eq!((one.first, one.items.len()), (5, MAX_BATCH_EVENTS));
        assert_eq!((two.first, two.items.len()), (5 + MAX_BATCH_EVENTS as u64, 1));
        assert!(window.cut().is_none());
        for _ in 0..3 {
            assert!(window.push(item(MAX_BATCH_BYTES / 2 - EVENT_OVERHEAD)).is_ok());
        }
        assert_eq!(window.cut().unwrap().items.len(), 2);
    }

    #[tokio::test]
    async fn a_failure_reaches_what_waits_and_what_comes_after() {
        let window = Window::new(1);
        let (reply, receiver) = oneshot::channel();
        assert!(window.push(Item { reply, ..item(1) }).is_ok());
        let error = Error::new(Code::UnknownTopic, "gone");
        window.fail(&error);
        assert_eq!(receiver.await.unwrap(), Err(error.clone()));
        assert_eq!(window.push(item(1)).err().unwrap().1, error);
        assert_eq!(window.settled(1).await, Err(error));
    }
}
