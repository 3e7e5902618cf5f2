//! What a subscriber says while it is served: the latest word of each kind, read at all times, so that it never waits
//! for this side to take its words.

use bytes::BytesMut;
use canal_proto::request::{Say, SubscriberFrame};
use canal_proto::{Code, WireError, frame};
use canal_sdk::BoxStream;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::{Notify, watch};

/// Bytes read at a time: a few words.
const READ: usize = 1 << 10;

/// What was said and not acted upon.
pub struct Said {
    credit: Mutex<u64>,
    /// Wakes whoever sends.
    pub wake: Notify,
    handled: watch::Sender<u64>,
    committed: Mutex<(u64, bool)>,
}

impl Said {
    /// Nothing was said; the cursor is here.
    pub fn new() -> Self {
        Self {
            credit: Mutex::new(0),
            wake: Notify::new(),
            handled: watch::Sender::new(0),
            committed: Mutex::new((0, false)),
        }
    }

    /// Credit that was granted since the last call.
    pub fn take_credit(&self) -> u64 {
        std::mem::take(&mut self.credit.lock())
    }

    /// The cursor is committed at this offset.
    pub fn on_committed(&self, next: u64) {
        let mut committed = self.committed.lock();
        *committed = (next.max(committed.0), true);
        self.wake.notify_one();
    }

    /// A commit that the subscriber has not been told of.
    pub fn take_committed(&self) -> Option<u64> {
        let mut committed = self.committed.lock();
        std::mem::take(&mut committed.1).then_some(committed.0)
    }

    /// What is handled and not committed.
    pub fn uncommitted(&self) -> Option<u64> {
        let handled = *self.handled.borrow();
        (handled > self.committed.lock().0).then_some(handled)
    }

    /// Waits for something that is handled and not committed.
    pub async fn handled(&self) -> u64 {
        let mut handled = self.handled.subscribe();
        loop {
            handled.mark_unchanged();
            if let Some(next) = self.uncommitted() {
                return next;
            }
            // the sender is this value's own, and stays
            let _ = handled.changed().await;
        }
    }

    /// Reads until the subscriber has closed its side (`None`) or says what can't be read.
    pub async fn listen(&self, mut read: ReadHalf<BoxStream>) -> Option<WireError> {
        let mut bytes = BytesMut::new();
        loop {
            match frame::decode::<SubscriberFrame>(&mut bytes) {
                Ok(Some(SubscriberFrame { say: Some(Say::Credit(more)) })) => {
                    let mut credit = self.credit.lock();
                    *credit = credit.saturating_add(more);
                    self.wake.notify_one();
                }
                Ok(Some(SubscriberFrame { say: Some(Say::Handled(next)) })) => {
                    self.handled.send_if_modified(|handled| {
                        let newer = next > *handled;
                        *handled = next.max(*handled);
                        newer
                    });
                }
                Ok(Some(SubscriberFrame { say: None })) => {
                    return Some(WireError::new(Code::Malformed, "a word that this version does not know"));
                }
                Err(error) => return Some(WireError::new(Code::Malformed, error.to_string())),
                Ok(None) if bytes.len() >= READ => {
                    return Some(WireError::new(Code::Malformed, "a word is only a few bytes"));
                }
                Ok(None) => {
                    bytes.reserve(READ);
                    match read.read_buf(&mut bytes).await {
                        Ok(0) | Err(_) => return None,
                        Ok(_) => {}
                    }
                }
            }
        }
    }
}
