//! Topics without a replica here, for subscribers here: one subscription at a replica a topic, however many read.
//!
//! What comes from there is kept in a ring for all of them, bounded in bytes. Who is behind the ring reads a range of its
//! own from a replica until it meets the ring; so nobody holds up another, and an event crosses to this peer once. A relay
//! ends with its last subscriber. It reads from replicas only, never from another relay; when its replica is gone, it
//! goes on at the next offset at another one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use canal_proto::limits::MAX_DELIVERY;
use canal_proto::{Code, WireError};
use canal_sdk::{Client, Delivered, Error, From, SubscribeOptions, Subscription};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::late::Late;
use self::ring::{Position, Ring};
use crate::serve::subscribe::batch::{Encoded, encode};

mod late;
mod ring;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod tests;

/// Bytes of events kept for the subscribers of one topic: some seconds of a busy one.
const RING_BYTES: usize = 4 << 20;
/// Bytes of events in all rings together, beside one event each: a small part of a small device's memory.
const ALL_RINGS_BYTES: usize = 64 << 20;
/// Topics relayed at a time: each has a stream. Above it, clients go to a replica themselves.
const MAX_RELAYS: usize = 256;
/// Subscribers that read ranges of their own at a time; others wait for their turn.
pub const MAX_LATE: usize = 256;
/// Bytes on their way from a replica to a ring.
const UPSTREAM_CREDIT: u64 = 1 << 20;
/// For a replica to be found: less than a client waits.
const OPEN_TIMEOUT: Duration = Duration::from_millis(2500);
/// How often the head of a topic is looked at that brings no events.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// All relays of this peer.
pub struct Relays {
    topics: Mutex<HashMap<String, Weak<Relay>>>,
    late: Semaphore,
    came_in: AtomicU64,
    went_out: AtomicU64,
}

impl Default for Relays {
    fn default() -> Self {
        Self {
            topics: Mutex::default(),
            late: Semaphore::new(MAX_LATE),
            came_in: AtomicU64::new(0),
            went_out: AtomicU64::new(0),
        }
    }
}

/// How a relay stands.
#[derive(Debug, Clone)]
enum State {
    Opening,
    Open {
        topic: u64,
        /// Grows with each batch, so that readers wake.
        head: u64,
        next: u64,
    },
    Ended(WireError),
}

struct Relay {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    name: String,
    ring: Mutex<Ring>,
    state: watch::Sender<State>,
}

impl Relays {
    /// Bytes of events that came in from other peers.
    pub fn came_in(&self) -> u64 {
        self.came_in.load(Ordering::Relaxed)
    }

    /// Bytes of these events that went out to subscribers.
    pub fn went_out(&self) -> u64 {
        self.went_out.load(Ordering::Relaxed)
    }

    fn on_in(&self, events: &[Encoded]) {
        self.came_in.fetch_add(events.iter().map(Encoded::cost).sum(), Ordering::Relaxed);
    }

    /// Events were sent to a subscriber.
    pub fn on_out(&self, events: &[Encoded]) {
        self.went_out.fetch_add(events.iter().map(Encoded::cost).sum(), Ordering::Relaxed);
    }

    /// One more subscriber of a topic; the first one begins its relay. `None` when there are as many as there may be.
    ///
    /// # Errors
    /// Those of subscribing at a replica; `NoQuorum` when none was found soon.
    pub async fn open(self: &Arc<Self>, client: &Client, topic: &str) -> Option<Result<Relayed, WireError>> {
        let relay = self.find_or_begin(client, topic)?;
        let mut state = relay.shared.state.subscribe();
        let opened = timeout(OPEN_TIMEOUT, state.wait_for(|state| !matches!(state, State::Opening))).await;
        let opened = opened.ok().and_then(Result::ok).map(|opened| opened.clone());
        let Some(opened) = opened else {
            let message = format!("no replica of `{topic}` was found in time; try again");
            return Some(Err(WireError::new(Code::NoQuorum, message)));
        };
        Some(match opened {
            State::Ended(error) => Err(error),
            _ => Ok(Relayed { relays: Arc::clone(self), relay, client: client.clone(), state, late: None }),
        })
    }

    fn find_or_begin(self: &Arc<Self>, client: &Client, topic: &str) -> Option<Arc<Relay>> {
        let mut topics = self.topics.lock();
        if let Some(relay) = topics.get(topic).and_then(Weak::upgrade)
            && !matches!(*relay.shared.state.borrow(), State::Ended(_))
        {
            return Some(relay);
        }
        topics.retain(|name, relay| relay.strong_count() > 0 && name != topic);
        if topics.len() >= MAX_RELAYS {
            return None;
        }
        let shared = Arc::new(Shared {
            name: topic.to_owned(),
            ring: Mutex::new(Ring::new(0)),
            state: watch::Sender::new(State::Opening),
        });
        let task = tokio::spawn(run(Arc::clone(self), Arc::clone(&shared), client.clone()));
        let relay = Arc::new(Relay { shared, _task: AbortOnDropHandle::new(task) });
        topics.insert(topic.to_owned(), Arc::downgrade(&relay));
        Some(relay)
    }

    /// What each ring may hold.
    fn share(&self) -> usize {
        (ALL_RINGS_BYTES / self.topics.lock().len().max(1)).min(RING_BYTES)
    }
}

/// Fills a ring for as long as somebody reads it.
async fn run(relays: Arc<Relays>, shared: Arc<Shared>, client: Client) {
    let options = SubscribeOptions { from: From::Latest, credit: UPSTREAM_CREDIT, ..SubscribeOptions::default() };
    let error = match client.subscribe_with(&shared.name, options).await {
        Ok(subscription) => fill(&relays, &shared, subscription).await,
        Err(error) => error,
    };
    shared.state.send_replace(State::Ended(error.into()));
}

async fn fill(relays: &Relays, shared: &Shared, mut subscription: Subscription) -> Error {
    if let Some(topic) = subscription.lag().topics.first() {
        *shared.ring.lock() = Ring::new(topic.next);
        shared.tell(&subscription);
    }
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let first = tokio::select! {
            biased;
            first = subscription.next() => first,
            _ = looks.tick() => {
                shared.tell(&subscription);
                continue;
            }
        };
        let mut events = Vec::new();
        let ended = collect(first, &mut subscription, &mut events);
        let events = encode(&events.into_iter().map(Delivered::into_stored).collect::<Vec<_>>());
        relays.on_in(&events);
        let limit = relays.share();
        let mut ring = shared.ring.lock();
        events.into_iter().for_each(|event| ring.push(event, limit));
        drop(ring);
        shared.tell(&subscription);
        if let Some(error) = ended {
            return error;
        }
    }
}

/// Takes what is there; gives the error back with which the subscription ended.
fn collect(
    first: Option<Result<Delivered, Error>>,
    subscription: &mut Subscription,
    events: &mut Vec<Delivered>,
) -> Option<Error> {
    let mut next = Some(first);
    while let Some(delivered) = next.take() {
        match delivered {
            Some(Ok(delivered)) => events.push(delivered),
            Some(Err(error)) => return Some(error),
            None => return Some(Error::new(Code::Stopping, "the subscription at the replica has ended")),
        }
        if events.len() < MAX_DELIVERY {
            next = subscription.next().now_or_never();
        }
    }
    None
}

impl Shared {
    /// Tells the readers how the topic stands, if that is news.
    fn tell(&self, subscription: &Subscription) {
        let lag = subscription.lag();
        let Some(lag) = lag.topics.first() else { return };
        let next = self.ring.lock().next();
        let head = lag.head.max(next);
        self.state.send_if_modified(|state| {
            let news = !matches!(state, State::Open { head: known, next: at, .. } if (*known, *at) == (head, next));
            *state = State::Open { topic: lag.id.0, head, next };
            news
        });
    }
}

/// One subscriber's end of a relay.
pub struct Relayed {
    relays: Arc<Relays>,
    relay: Arc<Relay>,
    client: Client,
    state: watch::Receiver<State>,
    late: Option<Late>,
}

impl Relayed {
    /// The topic's id, and the offset that its next event gets, as far as is known here.
    pub fn topic_and_head(&self) -> (u64, u64) {
        match *self.state.borrow() {
            State::Open { topic, head, .. } => (topic, head),
            _ => (0, self.relay.shared.ring.lock().next()),
        }
    }

    /// Offset behind the latest event that is here.
    pub fn next(&self) -> u64 {
        self.relay.shared.ring.lock().next()
    }

    /// Returns when the event at this offset can be read here. May be dropped and called again.
    ///
    /// # Errors
    /// When it never will.
    pub async fn ready(&mut self, next: u64) -> Result<(), WireError> {
        loop {
            self.state.mark_unchanged();
            let position = self.relay.shared.ring.lock().position(next);
            match position {
                Position::Here => {
                    self.late = None;
                    return Ok(());
                }
                Position::Behind => {
                    let Self { relays, relay, client, late, .. } = self;
                    let late = late.get_or_insert_with(|| Late::begin(relays, client, &relay.shared.name, next));
                    return late.ready().await;
                }
                Position::Ahead => {
                    self.late = None;
                    if let State::Ended(error) = &*self.state.borrow() {
                        return Err(error.clone());
                    }
                    if self.state.changed().await.is_err() {
                        return Err(WireError::new(Code::Stopping, "this peer is shutting down; go on at another"));
                    }
                }
            }
        }
    }

    /// Events from this offset on, which [`Self::ready`] was asked for.
    pub fn read(&mut self, next: u64, max_bytes: u64) -> Vec<Encoded> {
        match &mut self.late {
            Some(late) => late.take(max_bytes),
            None => self.relay.shared.ring.lock().read(next, MAX_DELIVERY, max_bytes),
        }
    }

    /// The subscriber takes nothing for now: what it was to get next is not held for it.
    pub fn pause(&mut self) {
        self.late = None;
    }

    /// Events were sent.
    pub fn on_out(&self, events: &[Encoded]) {
        self.relays.on_out(events);
    }
}
