//! A durable subscription while it is served here: opened at the group's leader, its cursor moved several times a
//! second, and its loss noticed.

use std::time::Duration;

use bytes::Bytes;
use canal_consensus::GroupHandle;
use canal_proto::log::{Advance, Subscription, SubscriptionChange, SubscriptionOp};
use canal_proto::request::{Answer, Ask, From, Subscribe, SubscriptionAsk, SubscriptionsAsk};
use canal_proto::{Code, TopicId, WireError};
use canal_sdk::Target;
use tokio::time::{sleep, timeout};

use super::said::Said;
use crate::node::{Node, internal};

/// Between two moves of a cursor: what is handled meanwhile is one move.
const MOVE_EVERY: Duration = Duration::from_millis(200);
/// Wait after a move that came to nothing; the group may be electing.
const RETRY: Duration = Duration::from_millis(200);
/// Between two looks at a row here, however often the group changes.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two looks at a row elsewhere.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// For the last move, after the subscriber has gone.
const LAST_MOVE: Duration = Duration::from_secs(5);

/// A durable subscription that is open here.
pub struct Durable {
    topic: String,
    topic_id: u64,
    name: String,
    holder: Bytes,
    session: u64,
}

impl Durable {
    /// Opens it, by the group's leader.
    pub async fn open(node: &Node, ask: &Subscribe, topic_id: u64) -> Result<(Self, Subscription), WireError> {
        let begin = match ask.from {
            Some(From::Offset(offset)) => offset,
            Some(From::Latest(_)) => u64::MAX,
            Some(From::Earliest(_)) | None => 0,
        };
        let mut holder = ask.holder.clone();
        if holder.is_empty() {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map_err(internal)?;
            holder = Bytes::copy_from_slice(&bytes);
        }
        let mut durable = Self { topic: ask.topic.clone(), topic_id, name: ask.durable.clone(), holder, session: 0 };
        let row = durable.change(node, SubscriptionOp::Open(begin), ask.again).await?;
        durable.session = row.session;
        Ok((durable, row))
    }

    async fn change(&self, node: &Node, op: SubscriptionOp, again: bool) -> Result<Subscription, WireError> {
        let change = SubscriptionChange {
            topic: self.topic_id,
            name: self.name.clone(),
            op: Some(op),
            holder: self.holder.clone(),
            again,
        };
        let ask = Ask::Subscription(SubscriptionAsk { topic: self.topic.clone(), change });
        match node.client.call(Target::Topic(self.topic.clone()), ask).await? {
            Answer::Subscription(row) => Ok(row),
            _ => Err(internal("a change of a durable subscription was answered with something else")),
        }
    }

    /// Moves the cursor for as long as that can be; returns why it no longer can.
    pub async fn keep_moving(&self, node: &Node, said: &Said) -> WireError {
        loop {
            let next = said.handled().await;
            match self.advance(node, next).await {
                Ok(row) => {
                    said.on_committed(row.next);
                    sleep(MOVE_EVERY).await;
                }
                Err(error) if is_final(&error) => return error,
                Err(error) => {
                    tracing::debug!(topic = %self.topic, name = %self.name, %error, "a cursor waits to be moved");
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn advance(&self, node: &Node, next: u64) -> Result<Subscription, WireError> {
        self.change(node, SubscriptionOp::Advance(Advance { session: self.session, next }), false).await
    }

    /// The subscriber has gone: what it has said to be handled is still moved.
    pub async fn last_move(&self, node: &Node, said: &Said) {
        if let Some(next) = said.uncommitted() {
            // whoever opens it next begins a little earlier, if this fails
            let _ = timeout(LAST_MOVE, self.advance(node, next)).await;
        }
    }

    /// Returns when somebody else has opened it, or it was removed.
    pub async fn lost(&self, node: &Node, replica: Option<GroupHandle>) -> WireError {
        match replica {
            Some(group) => self.lost_here(&group).await,
            None => self.lost_elsewhere(node).await,
        }
    }

    async fn lost_here(&self, group: &GroupHandle) -> WireError {
        let mut watch = group.watch();
        let mut seen = false;
        loop {
            watch.now();
            match group.view().subscription(TopicId(self.topic_id), &self.name) {
                Ok(row) => {
                    if let Some(error) = self.judge(row.as_ref(), &mut seen) {
                        return error;
                    }
                }
                Err(error) => tracing::debug!(name = %self.name, %error, "a cursor can't be read"),
            }
            if !watch.changed().await {
                // the source says so
                return std::future::pending().await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn lost_elsewhere(&self, node: &Node) -> WireError {
        let mut seen = false;
        loop {
            sleep(ASK_EVERY).await;
            let ask = Ask::Subscriptions(SubscriptionsAsk { topic: self.topic.clone(), name: self.name.clone() });
            let Ok(Answer::Subscriptions(rows)) = node.client.call(Target::Topic(self.topic.clone()), ask).await else {
                continue;
            };
            // a peer that does not know the name in the ask gives all
            let row = rows.subscriptions.iter().find(|row| row.name == self.name);
            if let Some(error) = self.judge(row, &mut seen) {
                return error;
            }
        }
    }

    /// What a row says, at a replica that may lag: an older one says nothing.
    fn judge(&self, row: Option<&Subscription>, seen: &mut bool) -> Option<WireError> {
        match row {
            Some(row) if row.session < self.session => None,
            Some(row) if row.session != self.session && row.holder != self.holder => {
                let message =
                    format!("the durable subscription `{}` was opened elsewhere since; this one ends", self.name);
                Some(WireError::new(Code::TakenOver, message))
            }
            Some(_) => {
                *seen = true;
                None
            }
            None if *seen => {
                let message = format!("the durable subscription `{}` was removed", self.name);
                Some(WireError::new(Code::UnknownSubscription, message))
            }
            None => None,
        }
    }
}

fn is_final(error: &WireError) -> bool {
    matches!(
        error.code(),
        Code::TakenOver | Code::UnknownSubscription | Code::UnknownTopic | Code::OutOfRange | Code::InvalidArgument
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn row(session: u64, holder: &'static [u8]) -> Subscription {
        Subscription { session, holder: Bytes::from_static(holder), ..Subscription::default() }
    }

    #[test]
    fn only_another_holder_takes_it_over_and_only_what_was_there_is_removed() {
        let durable =
            Durable { topic: "t".into(), topic_id: 1, name: "n".into(), holder: Bytes::from_static(b"us"), session: 7 };
        let mut seen = false;
        let mut judge = |row: Option<&Subscription>| durable.judge(row, &mut seen).map(|error| error.code());
        assert_eq!(judge(None), None, "a replica that lags has yet to see it");
        assert_eq!(judge(Some(&row(6, b"them"))), None, "older than our opening");
        assert_eq!(judge(Some(&row(7, b"us"))), None);
        assert_eq!(judge(Some(&row(8, b"us"))), None, "we have asked twice");
        assert_eq!(judge(Some(&row(9, b"them"))), Some(Code::TakenOver));
        assert_eq!(judge(None), Some(Code::UnknownSubscription));
    }
}
