//! Hands a queue over to the mesh: a task for each topic, so that one that waits never holds up another.
//!
//! A topic's task feeds a publisher that takes up the topic's producer at the oldest event without a receipt and never
//! gives up. Receipts come in order; what they cover is removed in one commit while the next ones arrive. When the
//! publisher fails, the error is kept with the topic, and after a pause another publisher begins where the receipts end.
//!
//! Before anything is sent to a topic, its id is kept with the producer, and every publish names it. So one that was
//! removed and made again is told from the one that has the producer's events: it answers that the named one is gone, is
//! looked for anew, and gets a producer of its own once that is on disk.
//!
//! Two errors don't pass by themselves: a topic that does not know this producer's earlier events any more
//! (`SequenceGap`) is stopped, since going on under another name could double what it has; a topic that has as many
//! producers as it may (`TooManyProducers`) is asked again now and then, since others may end.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use canal_proto::{Code, Event};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::keeper::Command;
use super::rows::TroubleRow;
use super::{Queue, Waiting};
use crate::Error;
use crate::client::Client;
use crate::publisher::{Deadline, PublisherOptions};

/// Events read from disk at a time, and their bytes: small against the publisher's window.
const CHUNK_EVENTS: usize = 512;
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of a topic on their way at most: two requests, so that one is under way while the other is answered.
const WINDOW_BYTES: usize = 2 << 20;
/// The first pause after an error that may pass, and the longest: a topic may be created at any moment, and a device
/// that waits for it should neither miss that for long nor ask all the time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a topic is looked for at a time.
const FINDING: Duration = Duration::from_secs(10);
/// The pause when the topic has too many producers: some have to be ended by somebody.
const CROWDED_PAUSE: Duration = Duration::from_secs(60);

/// A queue that is being handed over. Dropping this stops it soon; nothing is lost.
pub struct HandOver {
    /// Its end stops the task.
    running: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Lets the next one begin.
pub(super) struct Place(pub(super) Queue);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.handing_over.store(false, Ordering::SeqCst);
    }
}

impl HandOver {
    pub(super) fn begin(queue: Queue, client: Client) -> Self {
        let place = Place(queue);
        let (running, stopped) = oneshot::channel();
        Self { running: Some(running), task: tokio::spawn(run(place, client, stopped)) }
    }

    /// Stops it, and returns when it has stopped and let go of the queue.
    pub async fn stop(mut self) {
        drop(self.running.take());
        // it has no result
        drop(self.task.await);
    }
}

/// Starts a task for each topic as it appears, until the other end of `stopped` is gone.
async fn run(place: Place, client: Client, mut stopped: oneshot::Receiver<()>) {
    let queue = &place.0;
    let mut known = BTreeSet::new();
    let mut lines = JoinSet::new();
    let mut changed = queue.0.shared.changed.subscribe();
    while queue.0.shared.failed().is_none() {
        changed.mark_unchanged();
        for Waiting { topic, .. } in queue.waiting() {
            if known.insert(topic.clone()) {
                let line = Line { queue: queue.clone(), client: client.clone(), topic: Arc::from(topic) };
                lines.spawn(line.run());
            }
        }
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            // the sender is in the queue
            _ = changed.changed() => {}
        }
    }
    lines.shutdown().await;
}

/// A topic's task.
struct Line {
    queue: Queue,
    client: Client,
    topic: Arc<str>,
}

impl Line {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut gone = false;
        loop {
            let Some(waiting) = self.wanted().await else { return };
            let Err(error) = self.attempt(&waiting, gone).await else { return };
            let error = self.explained(error);
            gone = error.code == Code::UnknownTopic;
            tracing::debug!(topic = %self.topic, %error, "events wait in the queue");
            let stopped = error.code == Code::SequenceGap;
            let crowded = error.code == Code::TooManyProducers;
            self.note(&error, stopped).await;
            if stopped {
                return;
            }
            let handed_over = self.queue.0.shared.of(&self.topic).is_some_and(|now| now.first > waiting.first);
            // whoever can't be reached was looked for all the time
            if handed_over || matches!(error.code, Code::Unreachable | Code::NoQuorum) {
                pause = FIRST_PAUSE;
            }
            sleep(if crowded { CROWDED_PAUSE } else { pause }).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits until the topic has events; none when the disk failed.
    async fn wanted(&self) -> Option<Waiting> {
        let mut changed = self.queue.0.shared.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.queue.0.shared.failed().is_some() {
                return None;
            }
            if let Some(waiting) = self.queue.0.shared.of(&self.topic).filter(|waiting| waiting.events > 0) {
                return Some(waiting);
            }
            drop(changed.changed().await);
        }
    }

    /// Publishes to the topic that is known; to the one that has the name now when none is, or when that one is gone.
    async fn attempt(&self, waiting: &Waiting, gone: bool) -> Result<(), Error> {
        if waiting.topic_id != 0 && !gone {
            return self.publish(waiting).await;
        }
        let end = Instant::now() + FINDING;
        let route = self.client.resolve_until(self.topic.to_string(), gone, end).await?;
        let topic = self.topic.to_string();
        let bind = |reply| Command::Bind { topic, id: route.topic, group: route.group, reply };
        self.queue.ask(bind).await?;
        match self.queue.0.shared.of(&self.topic) {
            Some(waiting) => self.publish(&waiting).await,
            None => Ok(()),
        }
    }

    /// Says of a gap what it means here.
    fn explained(&self, error: Error) -> Error {
        let Some(waiting) = self.queue.0.shared.of(&self.topic).filter(|_| error.code == Code::SequenceGap) else {
            return error;
        };
        let (next, known) = (waiting.first.saturating_sub(waiting.base), error.detail);
        let what = match known {
            1 => "has forgotten it: it was ended, though events were left here".to_owned(),
            _ => {
                format!("knows it only up to {}: it has lost events that it had acknowledged", known.saturating_sub(1))
            }
        };
        let message = format!(
            "the queue goes on at event {next} of its producer {}, and `{}` {what}. Nothing more is sent to it, since \
             it may have been published already; `canal queue rm` gives up what waits, and later events begin anew",
            waiting.producer, self.topic
        );
        Error { message, ..error }
    }

    /// Publishes until the publisher fails. `Ok` when the disk failed, which the queue tells.
    async fn publish(&self, waiting: &Waiting) -> Result<(), Error> {
        let options = PublisherOptions {
            identity: Some((waiting.producer, waiting.first.saturating_sub(waiting.base))),
            window_bytes: WINDOW_BYTES,
            deadline: Deadline::Never,
            ..PublisherOptions::default()
        };
        let publisher = self.client.begin_publisher(&self.topic, options, Some(waiting.topic_id))?;
        let mut progress = publisher.progress();
        let mut changed = self.queue.0.shared.changed.subscribe();
        // what was read and not taken by the publisher; the next to be read; all before this were removed
        let mut chunk: VecDeque<Event> = VecDeque::new();
        let (mut next, mut removed) = (waiting.first, waiting.first);
        let mut removing: Option<BoxFuture<'static, Result<u64, Error>>> = None;
        loop {
            if chunk.is_empty() {
                changed.mark_unchanged();
                if self.queue.0.shared.of(&self.topic).is_some_and(|waiting| waiting.first + waiting.events > next) {
                    chunk = self.read(next).await?.into();
                    next += chunk.len() as u64;
                }
            }
            while let Some(event) = chunk.pop_front() {
                if let Err(refused) = publisher.try_publish(event) {
                    if refused.error.code != Code::WouldBlock {
                        return Err(refused.error);
                    }
                    chunk.push_front(refused.event);
                    break;
                }
            }
            let now = progress.borrow_and_update().clone();
            let through = now.through + waiting.base;
            if removing.is_none() && through >= removed {
                removing = Some(self.settle(through).boxed());
            }
            if let Some(error) = now.failed {
                // what has receipts is not sent again
                if let Some(removing) = removing {
                    removing.await?;
                }
                return Err(error);
            }
            // the publisher has yet to find out whether a gap is one
            if let Some(error) = now.trouble.filter(|error| error.code != Code::SequenceGap) {
                self.note(&error, false).await;
            }
            tokio::select! {
                biased;
                Some(done) = maybe(&mut removing) => {
                    removing = None;
                    removed = done? + 1;
                }
                moved = progress.changed() => if moved.is_err() { return Ok(()) },
                _ = changed.changed(), if chunk.is_empty() => {
                    if self.queue.0.shared.failed().is_some() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn settle(&self, through: u64) -> impl Future<Output = Result<u64, Error>> + Send + use<> {
        let (queue, topic) = (self.queue.clone(), self.topic.to_string());
        async move {
            queue.ask(|reply| Command::Settle { topic, through, reply }).await?;
            Ok(through)
        }
    }

    async fn read(&self, from: u64) -> Result<Vec<Event>, Error> {
        let topic = self.topic.to_string();
        let read = |reply| Command::Read { topic, from, max: CHUNK_EVENTS, max_bytes: CHUNK_BYTES, reply };
        self.queue.ask(read).await
    }

    /// Keeps the error with the topic, unless it is known.
    async fn note(&self, error: &Error, stopped: bool) {
        let known = self.queue.0.shared.of(&self.topic).and_then(|waiting| waiting.trouble);
        if known.is_some_and(|known| known.error.code == error.code && known.stopped == stopped) {
            return;
        }
        let row = TroubleRow { code: error.code.into(), message: error.message.clone(), stopped };
        let (topic, trouble) = (self.topic.to_string(), Some(row));
        // an error of the disk is told by the queue itself
        drop(self.queue.ask(|reply| Command::Note { topic, trouble, reply }).await);
    }
}

async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => std::future::pending().await,
    }
}
