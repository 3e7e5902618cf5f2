//! A subscriber that is behind the ring reads a range of its own from a replica, until it meets the ring.

use std::collections::VecDeque;
use std::sync::Arc;

use canal_proto::limits::MAX_DELIVERY;
use canal_proto::{Code, WireError};
use canal_sdk::{Client, From, SubscribeOptions};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Relays;
use crate::serve::subscribe::batch::{Encoded, encode};

/// Bytes that one of them holds, about, at each of two places: with [`super::MAX_LATE`] of them, 64 MiB.
const LATE_BYTES: u64 = 128 << 10;

/// A range on its way.
pub struct Late {
    batches: mpsc::Receiver<Result<Vec<Encoded>, WireError>>,
    buffer: VecDeque<Encoded>,
    _task: AbortOnDropHandle<()>,
}

impl Late {
    /// Begins to read at this offset, as soon as there is room for one more that is late.
    pub fn begin(relays: &Arc<Relays>, client: &Client, topic: &str, next: u64) -> Self {
        let (sender, batches) = mpsc::channel(1);
        let task = tokio::spawn(run(Arc::clone(relays), client.clone(), topic.to_owned(), next, sender));
        Self { batches, buffer: VecDeque::new(), _task: AbortOnDropHandle::new(task) }
    }

    /// Returns when there is something to take. May be dropped and called again.
    pub async fn ready(&mut self) -> Result<(), WireError> {
        while self.buffer.is_empty() {
            match self.batches.recv().await {
                Some(batch) => self.buffer.extend(batch?),
                None => return Err(WireError::new(Code::Stopping, "the range came to an end; go on elsewhere")),
            }
        }
        Ok(())
    }

    /// Takes events until they have so many bytes: one at least, if there is any.
    pub fn take(&mut self, max_bytes: u64) -> Vec<Encoded> {
        let mut bytes = 0;
        let mut taken = Vec::new();
        while bytes < max_bytes
            && let Some(event) = self.buffer.pop_front()
        {
            bytes += event.cost();
            taken.push(event);
        }
        taken
    }
}

async fn run(
    relays: Arc<Relays>,
    client: Client,
    topic: String,
    next: u64,
    sender: mpsc::Sender<Result<Vec<Encoded>, WireError>>,
) {
    // never closed: the value is this program's own
    let Ok(_room) = relays.late.acquire().await else { return };
    let options = SubscribeOptions { from: From::Offset(next), credit: LATE_BYTES, ..SubscribeOptions::default() };
    let mut subscription = match client.subscribe_with(&topic, options).await {
        Ok(subscription) => subscription,
        Err(error) => return drop(sender.send(Err(error.into())).await),
    };
    while let Some(first) = subscription.next().await {
        let mut events = Vec::new();
        let mut next = Some(first);
        let mut failed = None;
        while let Some(delivered) = next.take() {
            match delivered {
                Ok(delivered) => events.push(delivered.into_stored()),
                Err(error) => failed = Some(error),
            }
            if events.len() < MAX_DELIVERY && failed.is_none() {
                next = subscription.next().now_or_never().flatten();
            }
        }
        let events = encode(&events);
        relays.on_in(&events);
        if sender.send(Ok(events)).await.is_err() {
            return;
        }
        if let Some(error) = failed {
            return drop(sender.send(Err(error.into())).await);
        }
    }
}
