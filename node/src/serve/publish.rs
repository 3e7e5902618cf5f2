//! Publishing: checks what came, puts it before the group that hosts the topic, and waits for the receipt.

use canal_consensus::{Appending, GroupHandle};
use canal_proto::limits::{MAX_BATCH_EVENTS, MAX_ENTRY};
use canal_proto::log::AppendItem;
use canal_proto::request::{Answer, Publish};
use canal_proto::{Code, ProducerId, TopicName, WireError};
use prost::Message;

use super::leaders;
use crate::node::{Node, unknown_topic};

/// A publish that is under way, or was refused at once.
pub enum Begun {
    /// Its events stand behind those of earlier publishes.
    Appending(GroupHandle, Appending),
    /// The topic's group, which has a replica here, has no leader at the moment.
    Leaderless(GroupHandle, Box<Publish>, bool),
    /// This peer does not host the topic.
    Elsewhere(String),
    /// It can't be taken.
    Refused(WireError),
}

/// Begins a publish.
pub fn begin(node: &Node, ask: Publish, between_peers: bool) -> Begun {
    match check(node, ask, between_peers) {
        Ok(begun) => begun,
        Err(error) => Begun::Refused(error),
    }
}

fn check(node: &Node, ask: Publish, between_peers: bool) -> Result<Begun, WireError> {
    let invalid = |message: String| WireError::new(Code::InvalidArgument, message);
    let name: TopicName = ask.topic.parse().map_err(|e: canal_proto::name::Error| invalid(e.to_string()))?;
    if name.is_system() && !between_peers {
        return Err(invalid(format!("`{name}` is the system's; only the mesh itself publishes to it")));
    }
    ProducerId::from_slice(&ask.producer).map_err(|e| invalid(e.to_string()))?;
    if ask.events.len() > MAX_BATCH_EVENTS {
        let message = format!("{} events in one publish; at most {MAX_BATCH_EVENTS} are allowed", ask.events.len());
        return Err(WireError::new(Code::TooLarge, message).with_detail(MAX_BATCH_EVENTS as u64));
    }
    for event in &ask.events {
        event.check()?;
    }
    let size = ask.encoded_len();
    // what the entry adds around one publish is far below this margin
    if size > MAX_ENTRY - 4096 {
        let message =
            format!("a publish of {size} bytes; at most {} fit an entry: send fewer events", MAX_ENTRY - 4096);
        return Err(WireError::new(Code::TooLarge, message).with_detail(MAX_ENTRY as u64 - 4096));
    }
    let Some((group, topic)) = node.hosting(name.as_str()) else { return Ok(Begun::Elsewhere(ask.topic)) };
    if ask.topic_id != 0 && ask.topic_id != topic.0 {
        return if ask.topic_id > topic.0 { Ok(Begun::Elsewhere(ask.topic)) } else { Err(unknown_topic(&ask.topic)) };
    }
    let status = group.status();
    if leaders::is_lost(&group, &status) && !node.is_stopping() {
        return Ok(Begun::Leaderless(group, Box::new(ask), between_peers));
    }
    if !status.leads || node.is_stopping() {
        return Err(node.not_leader(&status));
    }
    let origin = if between_peers { ask.origin } else { 0 };
    let Publish { producer, first_sequence, events, .. } = ask;
    let item = AppendItem { topic: topic.0, producer, first_sequence, events, origin };
    let appending = group.append(item).map_err(|e| node.refusal(&group, e))?;
    Ok(Begun::Appending(group, appending))
}

/// Waits for what a publish comes to.
pub async fn finish(node: &Node, begun: Begun) -> Result<Answer, WireError> {
    let begun = match begun {
        Begun::Leaderless(group, ask, between_peers) => {
            let Ok(_place) = node.waiting.try_acquire() else { return Err(node.not_leader(&group.status())) };
            leaders::found(&group).await;
            // others of this conversation may be first: the group takes no event out of turn
            begin(node, *ask, between_peers)
        }
        begun => begun,
    };
    match begun {
        // it has waited enough
        Begun::Leaderless(group, ..) => Err(node.not_leader(&group.status())),
        Begun::Appending(group, appending) => {
            appending.receipt().await.map(Answer::Receipt).map_err(|e| node.refusal(&group, e))
        }
        Begun::Elsewhere(name) => Err(node.elsewhere(&name).await),
        Begun::Refused(error) => Err(error),
    }
}
