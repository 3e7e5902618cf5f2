//! What the reader of a subscription and its feeds know of each other: one [`Shared`] a topic, one [`Terms`] for all.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use canal_proto::TopicId;
use canal_proto::request::Opened;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{Lag, Lost, TopicLag, flow};
use crate::client::Client;

/// The smallest window of a topic: with [`super::pattern::MAX_TOPICS`] topics, 64 MiB are held at most beside one event
/// each.
const MIN_CREDIT: u64 = 64 << 10;
/// Ranges of lost events that are remembered a topic until somebody asks.
const MAX_LOST: usize = 16;

/// Who a durable subscription is.
pub(super) struct Durable {
    pub(super) name: String,
    /// Stands for this subscriber, however often it connects.
    pub(super) holder: [u8; 16],
}

/// What all feeds of a subscription share.
pub(super) struct Terms {
    pub(super) client: Client,
    pub(super) durable: Option<Durable>,
    credit: u64,
    topics: Mutex<Vec<Arc<Shared>>>,
}

impl Terms {
    pub(super) fn new(client: Client, durable: Option<Durable>, credit: u64) -> Arc<Self> {
        Arc::new(Self { client, durable, credit: credit.max(1), topics: Mutex::default() })
    }

    /// Bytes that may wait for the reader of one topic: the subscription's credit is shared by its topics.
    pub(super) fn window(&self) -> u64 {
        let topics = self.topics.lock().len().max(1) as u64;
        (self.credit / topics).max(MIN_CREDIT.min(self.credit))
    }

    pub(super) fn add(&self, topic: &str) -> Arc<Shared> {
        let shared = Arc::new(Shared::new(topic));
        self.topics.lock().push(Arc::clone(&shared));
        shared
    }

    pub(super) fn remove(&self, shared: &Arc<Shared>) {
        self.topics.lock().retain(|other| !Arc::ptr_eq(other, shared));
    }

    pub(super) fn topics(&self) -> Vec<Arc<Shared>> {
        self.topics.lock().clone()
    }

    pub(super) fn find(&self, topic: &str) -> Option<Arc<Shared>> {
        self.topics.lock().iter().find(|shared| *shared.topic == *topic).cloned()
    }

    pub(super) fn lag(&self) -> Lag {
        let mut topics: Vec<TopicLag> = self.topics.lock().iter().filter_map(|shared| shared.lag()).collect();
        topics.sort_by(|a, b| a.topic.cmp(&b.topic));
        Lag { topics }
    }
}

/// One topic.
pub(super) struct Shared {
    pub(super) topic: Arc<str>,
    /// Wakes the feed: the window or the cursor may move.
    pub(super) wake: Notify,
    /// Bytes that the reader has taken, in all.
    consumed: AtomicU64,
    /// `consumed` when the feed is woken next.
    wake_at: AtomicU64,
    stands: AtomicBool,
    id: AtomicU64,
    oldest: AtomicU64,
    /// Offset that the reader gets next.
    read: AtomicU64,
    head: AtomicU64,
    /// Everything before this offset is handled; 0: nothing was said.
    handled: AtomicU64,
    /// The feed has been woken for `handled`.
    told: AtomicBool,
    /// The reader waits until `handled` is committed.
    flush: AtomicBool,
    committed: watch::Sender<u64>,
    lost: Mutex<Vec<Range<u64>>>,
}

impl Shared {
    fn new(topic: &str) -> Self {
        Self {
            topic: topic.into(),
            wake: Notify::new(),
            consumed: AtomicU64::new(0),
            wake_at: AtomicU64::new(0),
            stands: AtomicBool::new(false),
            id: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            read: AtomicU64::new(0),
            head: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            told: AtomicBool::new(false),
            flush: AtomicBool::new(false),
            committed: watch::Sender::new(0),
            lost: Mutex::default(),
        }
    }

    /// A peer has accepted the subscription; `next` is the offset that comes first.
    pub(super) fn on_opened(&self, opened: &Opened, next: u64) {
        self.id.store(opened.topic, Ordering::Relaxed);
        self.oldest.store(opened.oldest, Ordering::Relaxed);
        self.on_head(opened.head);
        if !self.stands.load(Ordering::Acquire) {
            self.read.store(next, Ordering::Relaxed);
            self.committed.send_replace(opened.cursor);
            self.stands.store(true, Ordering::Release);
        }
    }

    pub(super) fn on_head(&self, head: u64) {
        self.head.fetch_max(head, Ordering::Relaxed);
    }

    pub(super) fn on_committed(&self, next: u64) {
        self.committed.send_if_modified(|committed| {
            let newer = next > *committed;
            *committed = next.max(*committed);
            newer
        });
    }

    /// Events that are gone before they could be read.
    pub(super) fn on_lost(&self, range: Range<u64>) {
        tracing::warn!(topic = %self.topic, first = range.start, end = range.end, "events are gone before they were read");
        self.read.fetch_max(range.end, Ordering::Relaxed);
        let mut lost = self.lost.lock();
        let full = lost.len() >= MAX_LOST;
        match lost.last_mut() {
            Some(last) if full => last.end = range.end,
            _ => lost.push(range),
        }
    }

    pub(super) fn take_lost(&self) -> Vec<Lost> {
        let lost = std::mem::take(&mut *self.lost.lock());
        lost.into_iter()
            .map(|range| Lost { topic: Arc::clone(&self.topic), first: range.start, end: range.end })
            .collect()
    }

    /// The reader has taken an event.
    pub(super) fn on_read(&self, offset: u64, cost: u64) {
        self.read.store(offset + 1, Ordering::Relaxed);
        self.on_consumed(cost);
    }

    /// Bytes need no room any more.
    pub(super) fn on_consumed(&self, cost: u64) {
        let consumed = self.consumed.fetch_add(cost, Ordering::Relaxed) + cost;
        if consumed >= self.wake_at.load(Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Bytes that need no room any more; wakes the feed when the window of this size has room to grant again.
    pub(super) fn consumed(&self, window: u64) -> u64 {
        let consumed = self.consumed.load(Ordering::Relaxed);
        self.wake_at.store(consumed + flow::threshold(window), Ordering::Relaxed);
        // what was read between the two looks must not be slept over
        self.consumed.load(Ordering::Relaxed)
    }

    /// The reader has handled everything before this offset, of what it was given.
    pub(super) fn handle(&self, next: u64) {
        let next = next.min(self.read.load(Ordering::Relaxed));
        if self.handled.fetch_max(next, Ordering::Relaxed) < next && !self.told.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// What is handled; the feed is woken when more is.
    pub(super) fn handled(&self) -> u64 {
        self.told.store(false, Ordering::Release);
        self.handled.load(Ordering::Acquire)
    }

    /// Whether the reader waits for the cursor.
    pub(super) fn is_flushing(&self) -> bool {
        self.flush.load(Ordering::Relaxed)
    }

    /// Returns when all that was handled is committed.
    pub(super) async fn flushed(&self) {
        let handled = self.handled.load(Ordering::Relaxed);
        self.flush.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        let mut committed = self.committed.subscribe();
        // the sender is this value's own, and stays
        let _ = committed.wait_for(|committed| *committed >= handled).await;
    }

    pub(super) fn committed(&self) -> u64 {
        *self.committed.borrow()
    }

    fn lag(&self) -> Option<TopicLag> {
        self.stands.load(Ordering::Acquire).then(|| TopicLag {
            topic: Arc::clone(&self.topic),
            id: TopicId(self.id.load(Ordering::Relaxed)),
            oldest: self.oldest.load(Ordering::Relaxed),
            next: self.read.load(Ordering::Relaxed),
            head: self.head.load(Ordering::Relaxed),
        })
    }
}
