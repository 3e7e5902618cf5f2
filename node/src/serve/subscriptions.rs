//! What requests about durable subscriptions are answered with.

use canal_consensus::Reply;
use canal_proto::log::Kind;
use canal_proto::request::{Answer, SubscriptionAsk, Subscriptions, SubscriptionsAsk};
use canal_proto::{TopicId, WireError};

use crate::node::{Node, internal, unknown_topic};

/// Opens, moves or removes one; only the group's leader can.
pub async fn change(node: &Node, ask: SubscriptionAsk) -> Result<Answer, WireError> {
    let Some((group, topic)) = node.hosting(&ask.topic) else { return Err(node.elsewhere(&ask.topic).await) };
    let status = group.status();
    if !status.leads {
        return Err(node.not_leader(&status));
    }
    let mut change = ask.change;
    if change.topic != 0 && TopicId(change.topic) != topic {
        return Err(unknown_topic(&ask.topic));
    }
    change.topic = topic.0;
    match group.propose(Kind::Subscription(change)).await.map_err(|error| node.refusal(&group, error))? {
        Reply::Subscription(result) => result.map(Answer::Subscription),
        _ => Err(internal("the group gave another answer; this is a bug")),
    }
}

/// Lists those of a topic, or the one that is named, as this replica has them.
pub async fn list(node: &Node, ask: SubscriptionsAsk) -> Result<Answer, WireError> {
    let name = &ask.topic;
    let Some((group, topic)) = node.hosting(name) else { return Err(node.elsewhere(name).await) };
    let view = group.view();
    let row = view.topic(topic).map_err(internal)?.ok_or_else(|| unknown_topic(name))?;
    let subscriptions = match ask.name.as_str() {
        "" => view.subscriptions(topic).map_err(internal)?,
        one => view.subscription(topic, one).map_err(internal)?.into_iter().collect(),
    };
    Ok(Answer::Subscriptions(Subscriptions { subscriptions, head: row.next, oldest: row.oldest }))
}
