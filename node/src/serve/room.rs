//! What requests and their answers take on this peer, of one conversation and of all together.
//!
//! A request has its room, for its own bytes and for the largest answer that it may get, from before it begins until the
//! answer is written; so a client that asks and never reads holds its share and no more. A conversation whose share is
//! used up is not read for a while. When the room of all is used up, a request is refused with `WouldBlock`: others must
//! not wait for those who fill it.
//!
//! What has arrived of a frame that is not whole has a room of its own, beyond a small buffer that everybody has.

use std::sync::Arc;

use canal_proto::limits::{BLOB_CHUNK, MAX_FRAME, MAX_PIECE, MAX_STATE_VALUE};
use canal_proto::request::Ask;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room is given in units of this many bytes.
const UNIT: usize = 1 << 10;
/// Of all conversations together: sixteen that use all of their share, or thousands that use what is usual.
const MAX_ALL: usize = 256 << 20;
/// For frames that have arrived in part, of all conversations: those who send half of one must not keep out the others.
const MAX_RECEIVING: usize = 64 << 20;
/// Of one conversation: four of the largest requests or answers.
const MAX_SHARE: usize = 4 * MAX_FRAME;
/// What answers take that hold no data: receipts, errors, routes.
const SMALL: usize = 1 << 10;
/// Lists: of topics, peers, groups. Larger ones are rare, and few of them are made at a time.
const LIST: usize = 256 << 10;

/// Room of all conversations.
#[derive(Clone)]
pub struct Room {
    under_way: Arc<Semaphore>,
    receiving: Arc<Semaphore>,
}

/// Room of one conversation.
pub struct Share {
    own: Arc<Semaphore>,
    all: Room,
}

/// Room that is held until this is dropped.
pub struct Held {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Default for Room {
    fn default() -> Self {
        let of = |bytes: usize| Arc::new(Semaphore::new(bytes / UNIT));
        Self { under_way: of(MAX_ALL), receiving: of(MAX_RECEIVING) }
    }
}

impl Room {
    /// A conversation's share.
    pub fn share(&self) -> Share {
        Share { own: Arc::new(Semaphore::new(MAX_SHARE / UNIT)), all: self.clone() }
    }

    /// Room for so many bytes of a frame that is not whole, if there is.
    pub fn receive(&self, bytes: usize) -> Option<Held> {
        let all = self.receiving.clone().try_acquire_many_owned(units(bytes)).ok()?;
        Some(Held { _own: None, _all: Some(all) })
    }
}

impl Share {
    /// Waits until the conversation has room for a request. `None` inside: all together have none.
    pub async fn hold(&self, bytes: usize) -> Option<Held> {
        let units = units(bytes);
        let own = self.own.clone().acquire_many_owned(units).await.ok();
        let all = self.all.under_way.clone().try_acquire_many_owned(units).ok()?;
        Some(Held { _own: own, _all: Some(all) })
    }

    /// Room for what is there anyway: an error text.
    pub fn none() -> Held {
        Held { _own: None, _all: None }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.min(MAX_SHARE).div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

/// Bytes that the answer to a request may take, about.
pub fn answer_bytes(ask: Option<&Ask>) -> usize {
    match ask {
        Some(Ask::Piece(ask)) => usize::try_from(ask.length).unwrap_or(MAX_PIECE).min(MAX_PIECE),
        Some(Ask::Blob(_)) => BLOB_CHUNK,
        Some(Ask::StateGet(_)) => MAX_STATE_VALUE,
        Some(Ask::StateList(_) | Ask::Activations(_)) => MAX_FRAME,
        Some(
            Ask::Catalog(_)
            | Ask::Peers(_)
            | Ask::PeerStatus(_)
            | Ask::GroupStatus(_)
            | Ask::Gossip(_)
            | Ask::Subscriptions(_)
            | Ask::Producers(_),
        ) => LIST,
        _ => SMALL,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_conversation_waits_for_its_own_and_is_refused_what_others_hold() {
        let room = Room::default();
        let shares: Vec<Share> = (0..MAX_ALL / MAX_SHARE).map(|_| room.share()).collect();
        let mut held = Vec::new();
        for share in &shares {
            held.push(share.hold(usize::MAX).await.unwrap());
        }
        // its own share: it waits
        let waited = timeout(Duration::from_millis(20), shares[0].hold(1)).await;
        assert!(waited.is_err());
        // somebody else: it is refused at once
        assert!(room.share().hold(1).await.is_none());
        // but what arrives has room of its own
        let half: Vec<_> = (0..MAX_RECEIVING / MAX_SHARE).map(|_| room.receive(MAX_SHARE).unwrap()).collect();
        assert!(room.receive(1).is_none());
        drop(half);
        assert!(room.receive(1).is_some());
        held.pop();
        assert!(room.share().hold(1).await.is_some());
    }
}
