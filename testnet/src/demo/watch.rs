//! Watches while the demo runs: live subscribers, and who leads the groups.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use canal_proto::Event;
use canal_proto::event::Stored;
use canal_sdk::{Delivered, GroupId, Subscription};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::stats::Stats;
use crate::Testnet;

/// Between two looks at the groups: short against an election.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// An event as it was seen: enough to tell whether it was the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its offset.
    pub offset: u64,
    /// A hash of its producer, sequence and content.
    pub hash: u64,
}

impl Seen {
    fn new(offset: u64, producer: &[u8], sequence: u64, event: &Event) -> Self {
        let mut hasher = DefaultHasher::new();
        // what a function emitted in its own group has no producer
        let producer = if producer.iter().all(|byte| *byte == 0) { &[] } else { producer };
        (producer, sequence, &event.key[..], &event.payload[..]).hash(&mut hasher);
        for header in &event.headers {
            (&header.name, &header.value[..]).hash(&mut hasher);
        }
        Self { offset, hash: hasher.finish() }
    }

    /// As a replica has it.
    pub fn stored(stored: &Stored) -> Self {
        Self::new(stored.offset, &stored.producer, stored.sequence, &stored.event)
    }

    /// As a subscriber got it.
    pub fn delivered(delivered: &Delivered) -> Self {
        Self::new(delivered.offset, &delivered.producer.to_vec(), delivered.sequence, &delivered.event)
    }
}

/// What a live subscriber saw, by topic.
#[derive(Debug, Default)]
pub struct Log {
    /// The events, in the order in which they came.
    pub topics: BTreeMap<String, Vec<Seen>>,
    /// Why it ended, if it did.
    pub ended: Option<String>,
}

/// A live subscriber. It ends when this is dropped.
pub struct Watcher {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Reads a subscription; what functions emitted is counted if there are stats for it.
    pub fn start(mut subscription: Subscription, stats: Option<Arc<Stats>>) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        let task = tokio::spawn(async move {
            while let Some(event) = subscription.next().await {
                match event {
                    Ok(delivered) => {
                        if let Some(stats) = &stats {
                            count(&delivered, stats);
                        }
                        let seen = Seen::delivered(&delivered);
                        shared.lock().topics.entry(delivered.topic.to_string()).or_default().push(seen);
                    }
                    Err(error) => {
                        shared.lock().ended = Some(error.to_string());
                        return;
                    }
                }
            }
            shared.lock().ended = Some("the subscription ended".into());
        });
        Self { log, task }
    }

    /// Events seen of a topic.
    pub fn count(&self, topic: &str) -> usize {
        self.log.lock().topics.get(topic).map_or(0, Vec::len)
    }

    /// Why it ended, if it did.
    pub fn ended(&self) -> Option<String> {
        self.log.lock().ended.clone()
    }

    /// Ends it, and returns what it saw.
    pub fn finish(self) -> Log {
        self.task.abort();
        std::mem::take(&mut self.log.lock())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn count(delivered: &Delivered, stats: &Stats) {
    let topic: &str = &delivered.topic;
    if let Some(name) = topic.strip_prefix("demo/smoothed/") {
        stats.effect(round(&delivered.event).map(|round| (super::layout::sensor(name), round)));
    } else if !topic.starts_with("demo/sensor/") && topic != super::layout::TARGET {
        stats.effect(None);
    }
}

/// The round that an event carries.
pub fn round(event: &Event) -> Option<u64> {
    let header = event.headers.iter().find(|header| header.name == "round")?;
    std::str::from_utf8(&header.value).ok()?.parse().ok()
}

/// Who leads the groups, and how often that changed.
#[derive(Debug, Clone, Default)]
pub struct Leaders(Arc<Mutex<BTreeMap<GroupId, Lead>>>);

#[derive(Debug, Clone, Copy, Default)]
struct Lead {
    term: u64,
    leader: u64,
    changes: u64,
}

impl Leaders {
    /// Looks at these groups until the future is dropped.
    pub async fn watch(&self, net: &Testnet, groups: &[GroupId]) {
        loop {
            for group in groups {
                // no answer: an election is on its way, the next look will tell
                if let Ok((_, status)) = net.led(*group).await {
                    self.note(*group, status.term, status.leader);
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn note(&self, group: GroupId, term: u64, leader: u64) {
        let mut all = self.0.lock();
        let lead = all.entry(group).or_default();
        // a replica that lags tells an earlier term
        if leader != 0 && term > lead.term {
            lead.changes += u64::from(lead.leader != 0 && lead.leader != leader);
            lead.term = term;
            lead.leader = leader;
        }
    }

    /// Changes of the leader of all groups.
    pub fn changes(&self) -> u64 {
        self.0.lock().values().map(|lead| lead.changes).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_change_is_another_leader_at_a_later_term() {
        let leaders = Leaders::default();
        let group = GroupId(1);
        for (term, leader) in [(1, 1), (1, 1), (2, 0), (2, 2), (1, 1), (3, 2), (4, 1)] {
            leaders.note(group, term, leader);
        }
        leaders.note(GroupId(2), 1, 3);
        assert_eq!(leaders.changes(), 2);
    }

    #[test]
    fn what_is_seen_differs_when_anything_differs() {
        let event = Event::new("1").with_key("k").with_header("round", "7");
        let seen = |event: &Event, sequence| Seen::new(0, &[1; 16], sequence, event);
        assert_eq!(seen(&event, 1), seen(&event.clone(), 1));
        assert_ne!(seen(&event, 1), seen(&event, 2));
        assert_ne!(seen(&event, 1), seen(&event.clone().with_header("x", ""), 1));
        assert_eq!(round(&event), Some(7));
    }
}
