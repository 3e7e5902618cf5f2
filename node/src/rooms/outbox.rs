//! The outbox: effects of this group's functions on topics of other groups.
//!
//! Each topic's queue is published there under the group's own producer id, with the numbers in the queue as sequences:
//! what is sent twice is appended once. An effect leaves the queue by an entry of this group, after the other group has
//! it on disk; a crash in between sends it again. A topic that can't be reached holds up its own queue only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use canal_consensus::GroupHandle;
use canal_proto::log::Kind;
use canal_proto::request::{Answer, Ask, Publish};
use canal_proto::{Code, TopicId};
use canal_sdk::Target;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::node::{Node, internal};

/// Effects sent at a time to one topic.
const BATCH: usize = 256;
/// Bytes sent at a time to one topic, about.
const BATCH_BYTES: usize = 1 << 20;
/// Queues that are worked on at a time.
const AT_ONCE: usize = 32;
/// Wait after a failure; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Empties the outbox for as long as the group is led here.
pub async fn run(node: Arc<Node>, group: GroupHandle) {
    let mut watch = group.watch();
    let mut running: JoinSet<(TopicId, bool)> = JoinSet::new();
    let mut busy: BTreeMap<TopicId, ()> = BTreeMap::new();
    let mut resting: BTreeMap<TopicId, (Instant, Duration)> = BTreeMap::new();
    loop {
        let status = watch.now();
        let now = Instant::now();
        if status.outbox > 0 {
            let view = group.view();
            let queues = match tokio::task::spawn_blocking(move || view.outbox_topics()).await {
                Ok(Ok(queues)) => queues,
                Ok(Err(error)) => {
                    tracing::error!(%error, "the outbox can't be read");
                    Vec::new()
                }
                Err(_) => return,
            };
            for (topic, _) in queues {
                let rests = resting.get(&topic).is_some_and(|(until, _)| *until > now);
                if running.len() < AT_ONCE && !rests && !busy.contains_key(&topic) {
                    busy.insert(topic, ());
                    let (node, group) = (node.clone(), group.clone());
                    running.spawn(async move { (topic, deliver(&node, &group, topic).await) });
                }
            }
        }
        let wake = resting.values().map(|(until, _)| *until).filter(|until| *until > now).min();
        tokio::select! {
            biased;
            Some(done) = running.join_next(), if !running.is_empty() => {
                let Ok((topic, delivered)) = done else { continue };
                busy.remove(&topic);
                if delivered {
                    resting.remove(&topic);
                } else {
                    let wait = resting.get(&topic).map_or(FIRST_WAIT, |(_, wait)| (*wait * 2).min(LONGEST_WAIT));
                    resting.insert(topic, (Instant::now() + wait, wait));
                }
            }
            more = watch.changed() => {
                if !more {
                    return;
                }
            }
            () = async { if let Some(wake) = wake { sleep_until(wake).await } else { std::future::pending().await } } => {}
        }
    }
}

/// Delivers the front of one queue; says whether that went well.
async fn deliver(node: &Node, group: &GroupHandle, topic: TopicId) -> bool {
    match try_deliver(node, group, topic).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(group = %group.seed().name, %topic, %error, "effects wait for another group");
            false
        }
    }
}

async fn try_deliver(node: &Node, group: &GroupHandle, topic: TopicId) -> Result<(), canal_sdk::Error> {
    let view = group.view();
    let front = tokio::task::spawn_blocking(move || view.outbox(topic, BATCH, BATCH_BYTES));
    let Some(batch) = front.await.map_err(internal)?.map_err(internal)? else { return Ok(()) };
    let name = batch.target.name.clone();
    let item = batch.item(group.id());
    let publish = Publish {
        topic: name.clone(),
        topic_id: item.topic,
        producer: item.producer,
        first_sequence: item.first_sequence,
        events: item.events,
        origin: item.origin,
    };
    let ack = match node.client.call(Target::Topic(name.clone()), Ask::Publish(publish)).await {
        Ok(Answer::Receipt(receipt)) => batch.acknowledged(u64::from(receipt.count)),
        Ok(_) => return Err(canal_sdk::Error::new(Code::Malformed, "a publish was answered with something else")),
        Err(error) if error.code == Code::UnknownTopic => {
            // only the catalog's leader is believed that a topic is gone for good
            let view = node.client.catalog(&name, &["topics"], true).await?;
            if view.topics.iter().any(|info| info.id == topic.0) {
                return Err(error);
            }
            let effects = batch.count();
            tracing::warn!(topic = %name, effects, "a topic is gone; its effects go to their dead-letter topics");
            Some(batch.refused())
        }
        Err(error) => return Err(error),
    };
    let Some(ack) = ack else {
        return Err(canal_sdk::Error::new(Code::Malformed, "a receipt says that nothing was taken"));
    };
    group.propose(Kind::OutboxAck(ack)).await.map_err(|e| node.refusal(group, e))?;
    Ok(())
}
