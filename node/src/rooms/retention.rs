//! Retention: what a topic's policy no longer keeps is let go, in order, as far as triggers have come.
//!
//! The decision is made from the rows each time anew, so nothing is lost when leadership goes, and one that was made
//! twice lets go of nothing more. A look costs a few reads for a topic that has a policy, and nothing for the others.

use std::time::Duration;

use canal_consensus::core::kv::KvError;
use canal_consensus::{GroupHandle, Reply};
use canal_proto::TopicId;
use canal_proto::log::{Kind, Trim};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::node::now_ms;

/// How often it is looked at: what is kept exceeds a policy by what comes in this time.
const LOOK: Duration = Duration::from_secs(2);

/// Looks at the group's topics for as long as it is led here.
pub async fn run(group: GroupHandle) {
    loop {
        sleep(LOOK).await;
        let status = group.status();
        let kept = status.spec.topics.iter().filter(|topic| topic.retention.is_some());
        let topics: Vec<TopicId> = kept.map(|topic| TopicId(topic.id)).collect();
        if !status.leads || topics.is_empty() {
            continue;
        }
        let here = group.clone();
        let Ok(trims) = spawn_blocking(move || decide(&here, &topics)).await else { continue };
        for trim in trims {
            match group.propose(Kind::Trim(trim)).await {
                Ok(Reply::Done) => {}
                Ok(_) => tracing::error!(group = %group.seed().name, "a trim got another answer; this is a bug"),
                // it is decided again, here or by whoever leads then
                Err(error) => tracing::debug!(group = %group.seed().name, %error, "nothing could be let go just now"),
            }
        }
    }
}

fn decide(group: &GroupHandle, topics: &[TopicId]) -> Vec<Trim> {
    let view = group.view();
    let sealing = group.is_sealing();
    let decided = |topic: TopicId| {
        let decision = view.retention(topic, now_ms())?;
        let row = if sealing { view.topic(topic)? } else { None };
        match row {
            Some(row) => Ok(decision.in_segments(&row)),
            None => Ok::<_, KvError>(decision),
        }
    };
    let mut trims = Vec::new();
    for topic in topics {
        match decided(*topic) {
            Ok(decision) => trims.extend(decision.trim),
            Err(error) => tracing::warn!(group = %group.seed().name, %topic, %error, "retention can't be decided"),
        }
    }
    trims
}
