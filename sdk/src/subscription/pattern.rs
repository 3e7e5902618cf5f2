//! The topics that a pattern matches: one feed each, and a look at the catalog every second for new ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use canal_proto::{Code, Pattern};
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::feed::Feed;
use super::shared::Terms;
use super::{Batch, From};
use crate::Error;

/// How soon a new topic is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Topics that one subscription reads: each has a stream of its own.
pub(super) const MAX_TOPICS: usize = 1024;

pub(super) struct Topics {
    terms: Arc<Terms>,
    pattern: Pattern,
    from: From,
    batches: mpsc::UnboundedSender<Batch>,
    /// One feed a topic: its id, whether it stood, and how it ended.
    feeds: JoinSet<(u64, bool, Option<Error>)>,
    running: BTreeSet<u64>,
    /// Topics that were read until they were removed, while a catalog that lags may still list them.
    removed: BTreeSet<u64>,
}

type Standing = oneshot::Receiver<Result<(), Error>>;

impl Topics {
    pub(super) fn new(terms: Arc<Terms>, pattern: Pattern, from: From, batches: mpsc::UnboundedSender<Batch>) -> Self {
        Self {
            terms,
            pattern,
            from,
            batches,
            feeds: JoinSet::new(),
            running: BTreeSet::new(),
            removed: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self, opened: oneshot::Sender<Result<(), Error>>) {
        let stands = match self.look(self.from).await {
            // a topic that is removed while we look is no reason to fail
            Ok(feeds) => join_all(feeds).await.into_iter().flatten().find_map(|result| match result {
                Err(error) if error.code != Code::UnknownTopic => Some(error),
                _ => None,
            }),
            Err(error) => Some(error),
        };
        if let Some(error) = stands {
            return drop(opened.send(Err(error)));
        }
        drop(opened.send(Ok(())));
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.batches.closed() => return,
                Some(ended) = self.feeds.join_next(), if !self.feeds.is_empty() => {
                    if let Some(error) = self.on_ended(ended) {
                        return drop(self.batches.send(Err(error)));
                    }
                }
                _ = ticks.tick() => {
                    if let Err(error) = self.look(From::Earliest).await
                        && !matches!(error.code, Code::NoQuorum | Code::Unreachable)
                    {
                        return drop(self.batches.send(Err(error)));
                    }
                }
            }
        }
    }

    /// A feed has ended: gives the error back that ends the subscription.
    fn on_ended(&mut self, ended: Result<(u64, bool, Option<Error>), JoinError>) -> Option<Error> {
        if let Ok((id, ..)) = &ended {
            self.running.remove(id);
        }
        match ended {
            // a topic that was removed has no more events
            Ok((id, true, Some(error))) if error.code == Code::UnknownTopic => {
                self.removed.insert(id);
                None
            }
            Ok((_, true, error)) => error,
            // its group may only just be coming up: if the topic is still listed, the next look begins it again
            Ok((_, false, Some(error)))
                if matches!(error.code, Code::UnknownTopic | Code::NoQuorum | Code::Unreachable) =>
            {
                None
            }
            Ok((_, false, error)) => error,
            Err(error) => Some(Error::new(Code::Internal, format!("a subscription's task failed: {error}"))),
        }
    }

    /// Begins a feed for each topic that is not read yet.
    async fn look(&mut self, from: From) -> Result<Vec<Standing>, Error> {
        let topics = self.terms.client.topics(self.pattern.as_str()).await?;
        let listed: BTreeSet<u64> = topics.iter().map(|topic| topic.id).collect();
        self.removed.retain(|id| listed.contains(id));
        let mut begun = Vec::new();
        for topic in topics {
            if !self.pattern.matches(&topic.name)
                || self.running.contains(&topic.id)
                || self.removed.contains(&topic.id)
            {
                continue;
            }
            if self.running.len() >= MAX_TOPICS {
                let message = format!("`{}` matches more than {MAX_TOPICS} topics: narrow it", self.pattern);
                return Err(Error::new(Code::TooLarge, message));
            }
            let (opened, standing) = oneshot::channel();
            let feed = Feed::new(Arc::clone(&self.terms), &topic.name, topic.id, from, self.batches.clone());
            self.feeds.spawn(async move {
                let (stood, error) = feed.run_among(opened).await;
                (topic.id, stood, error)
            });
            self.running.insert(topic.id);
            begun.push(standing);
        }
        Ok(begun)
    }
}
