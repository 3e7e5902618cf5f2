//! Looks at durable subscriptions, and removes them.

use canal_proto::Code;
use canal_proto::log::{SubscriptionChange, SubscriptionOp};
use canal_proto::request::{Answer, Ask, SubscriptionAsk, Subscriptions, SubscriptionsAsk};

use crate::Error;
use crate::client::{Client, Target};

impl Client {
    /// The durable subscriptions of a topic, with how far they are.
    ///
    /// # Errors
    /// `UnknownTopic`; those of [`Client::call`].
    pub async fn subscriptions(&self, topic: &str) -> Result<Subscriptions, Error> {
        let ask = Ask::Subscriptions(SubscriptionsAsk { topic: topic.to_owned(), name: String::new() });
        match self.call(Target::Topic(topic.to_owned()), ask).await? {
            Answer::Subscriptions(subscriptions) => Ok(subscriptions),
            _ => Err(Error::unexpected("a question for durable subscriptions")),
        }
    }

    /// Removes a durable subscription of a topic. Who has it open is told, and ends.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownSubscription`; those of [`Client::call`].
    pub async fn remove_subscription(&self, topic: &str, name: &str) -> Result<(), Error> {
        let change = SubscriptionChange {
            name: name.to_owned(),
            op: Some(SubscriptionOp::Remove(true)),
            ..SubscriptionChange::default()
        };
        let ask = Ask::Subscription(SubscriptionAsk { topic: topic.to_owned(), change });
        match self.call(Target::Topic(topic.to_owned()), ask).await {
            Ok(Answer::Subscription(_) | Answer::Done(_)) => Ok(()),
            Ok(_) => Err(Error::unexpected("the removal of a durable subscription")),
            // this very call had removed it, and its first answer was lost
            Err(error) if error.code == Code::UnknownSubscription && error.repeated => Ok(()),
            Err(error) => Err(error),
        }
    }
}
