//! A publisher as the SDK is one: a window of batches, sent again from the first that has no receipt.

use std::collections::BTreeMap;

use bytes::Bytes;
use canal_proto::Event;
use canal_proto::log::AppendItem;

use super::rng::Rng;
use crate::core::group::Ticket;

/// The topic that everything goes to.
pub(super) const TOPIC: u64 = 7;
/// Batches on their way.
const WINDOW: usize = 3;
/// Ticks after which a batch is sent again.
const PATIENCE: u64 = 30;

#[derive(Debug)]
pub(super) struct Client {
    id: usize,
    next: u64,
    acked: u64,
    goal: u64,
    sent: BTreeMap<Ticket, u64>,
    again: bool,
    /// The peer that it talks to.
    pub(super) peer: usize,
}

impl Client {
    pub(super) fn new(id: usize, goal: u64) -> Self {
        Self { id, next: 1, acked: 0, goal, sent: BTreeMap::new(), again: false, peer: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.acked >= self.goal
    }

    pub(super) fn more(&mut self, events: u64) {
        self.goal += events;
    }

    /// The next batch, if one is to be sent now. Where a retry cuts its batches is left to chance.
    pub(super) fn send(&mut self, now: u64, ticket: Ticket, rng: &mut Rng) -> Option<(AppendItem, u64)> {
        if self.again || self.sent.values().any(|deadline| *deadline <= now) {
            self.again = false;
            self.sent.clear();
            self.next = self.acked + 1;
        }
        if self.sent.len() >= WINDOW || self.next > self.goal {
            return None;
        }
        let first = self.next;
        let count = (1 + rng.below(3)).min(self.goal + 1 - first);
        let events = (first..first + count).map(|sequence| Event::new(sequence.to_be_bytes().to_vec())).collect();
        self.next += count;
        self.sent.insert(ticket, now + PATIENCE);
        let producer = Bytes::from(vec![u8::try_from(self.id).unwrap(); 16]);
        Some((AppendItem { topic: TOPIC, producer, first_sequence: first, events, origin: 0 }, count))
    }

    pub(super) fn receipt(&mut self, ticket: Ticket, first: u64, asked: u64, covered: u64) {
        if first <= self.acked + 1 {
            self.acked = self.acked.max(first + covered - 1);
        }
        if self.sent.remove(&ticket).is_some() && (covered < asked || first > self.acked) {
            self.again = true;
        }
    }

    pub(super) fn refused(&mut self, ticket: Ticket, peer: usize) {
        if self.sent.remove(&ticket).is_some() {
            self.again = true;
            self.peer = peer;
        }
    }
}
