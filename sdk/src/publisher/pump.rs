//! The task of a publisher: sends what is queued, in order, until each event has its receipt.
//!
//! It is in one of two states. *Finding*: the oldest batch alone goes through [`Client::call_until`], which follows
//! redirects and tries replicas until one answers as the leader. *Flowing*: on the conversation with that leader,
//! several batches are under way in order. Any trouble while flowing leads back to finding, with everything that has
//! no receipt still at hand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use canal_proto::request::{Answer, Ask, Publish, Route};
use canal_proto::{Code, Event, ProducerId, Receipt};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};

use super::news;
use super::window::{Batch, Window};
use crate::Error;
use crate::backoff::Backoff;
use crate::client::{Client, Target};
use crate::connection::Connection;

/// Publish requests under way: enough to fill the time of a round trip, few enough that batches grow under load.
const PIPELINE: usize = 8;
/// Silence after which the other replicas are asked whether they know another leader: some times what a healthy quorum
/// takes, and less than they need to elect one.
const DOUBT: Duration = Duration::from_millis(250);
/// Silence after which another leader is looked for, whatever they say.
const SILENCE: Duration = Duration::from_secs(1);
/// How long the leader is looked for at a time when there is no deadline.
const FINDING: Duration = Duration::from_secs(10);
/// Times that a new leader may deny what an earlier one had acknowledged (it may still be applying its log) before
/// that is believed.
const MAX_GAPS: u32 = 5;

pub(super) struct Pump {
    client: Client,
    topic: String,
    /// None: not found yet.
    topic_id: Option<u64>,
    producer: ProducerId,
    deadline: Option<Duration>,
    window: Arc<Window>,
    /// Sent at least once, or about to be; the oldest first.
    batches: VecDeque<Batch>,
    backoff: Backoff,
    gaps: u32,
    /// What went wrong last, since the last receipt.
    trouble: Option<Error>,
}

async fn told(news: &mut Option<BoxFuture<'static, Option<Route>>>) -> Option<Route> {
    match news {
        Some(news) => news.await,
        None => std::future::pending().await,
    }
}

type Replies = FuturesOrdered<BoxFuture<'static, Result<Answer, Error>>>;

impl Pump {
    pub(super) fn new(
        client: Client,
        topic: String,
        topic_id: Option<u64>,
        producer: ProducerId,
        deadline: Option<Duration>,
        window: Arc<Window>,
    ) -> Self {
        let (batches, backoff) = (VecDeque::new(), Backoff::new());
        Self { client, topic, topic_id, producer, deadline, window, batches, backoff, gaps: 0, trouble: None }
    }

    pub(super) async fn run(mut self) {
        loop {
            let outcome = match self.find().await {
                Ok(connection) => self.flow(&connection).await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::debug!(topic = self.topic, %error, "publisher failed");
                self.window.fail(&error);
                for item in self.batches.drain(..).flat_map(|batch| batch.items) {
                    drop(item.reply.send(Err(error.clone())));
                }
                return;
            }
        }
    }

    /// Waits for something to send, and returns the conversation with the leader that took it.
    async fn find(&mut self) -> Result<Connection, Error> {
        while self.batches.is_empty() {
            let filled = self.window.filled.notified();
            match self.window.cut() {
                Some(batch) => self.batches.push_back(batch),
                None => filled.await,
            }
        }
        loop {
            let end = self.expiry().unwrap_or_else(|| Instant::now() + FINDING);
            if end <= Instant::now() {
                return Err(self.too_late());
            }
            let Some(topic_id) = self.topic_id else {
                match self.client.route_until(&self.topic, end).await {
                    Ok(route) => self.topic_id = Some(route.topic),
                    Err(error) => self.reconsider(error).await?,
                }
                continue;
            };
            let Some(ask) = self.request(0, topic_id) else {
                return Err(Error::unexpected("a publish"));
            };
            self.note_sent(0);
            match self.client.call_until(Target::Topic(self.topic.clone()), ask, end).await {
                Ok(answered) => {
                    if answered.repeated {
                        self.window.note_retry();
                    }
                    let Answer::Receipt(receipt) = answered.answer else {
                        return Err(Error::unexpected("a publish"));
                    };
                    self.settle(receipt)?;
                    self.backoff.reset();
                    self.gaps = 0;
                    return Ok(answered.connection);
                }
                Err(error) => self.reconsider(error).await?,
            }
        }
    }

    /// Waits before the next try, or gives the error back when it is final.
    async fn reconsider(&mut self, error: Error) -> Result<(), Error> {
        match error.code {
            Code::SequenceGap if self.gaps < MAX_GAPS => self.gaps += 1,
            Code::NoQuorum | Code::Unreachable if self.expiry().is_none() => {}
            _ => return Err(error),
        }
        self.note_trouble(error);
        sleep(self.backoff.next()).await;
        Ok(())
    }

    /// Sends batch after batch to the leader. Returns when another leader has to be found.
    async fn flow(&mut self, connection: &Connection) -> Result<(), Error> {
        let mut replies = Replies::new();
        let mut heard = Instant::now();
        let mut news: Option<BoxFuture<'static, Option<Route>>> = None;
        let mut doubt_at = heard + DOUBT;
        loop {
            while replies.len() < PIPELINE {
                if replies.is_empty() {
                    heard = Instant::now();
                    doubt_at = heard + DOUBT;
                }
                if self.batches.len() == replies.len() {
                    self.batches.extend(self.window.cut());
                }
                let Some(ask) = self.topic_id.and_then(|topic_id| self.request(replies.len(), topic_id)) else {
                    break;
                };
                let left = self.expiry().map_or(FINDING, |end| end.saturating_duration_since(Instant::now()));
                match connection.begin(ask, left).await {
                    Ok(reply) => {
                        self.note_sent(replies.len());
                        replies.push_back(Box::pin(reply.answer()));
                    }
                    Err(error) if error.code == Code::TooLarge => return Err(error),
                    Err(_) => return Ok(()),
                }
            }
            tokio::select! {
                biased;
                Some(answer) = replies.next(), if !replies.is_empty() => {
                    heard = Instant::now();
                    (news, doubt_at) = (None, heard + DOUBT);
                    match answer {
                        // less than the batch: the rest has to be sent again, before what is under way
                        Ok(Answer::Receipt(receipt)) => if !self.settle(receipt)? { return Ok(()) },
                        Ok(Answer::Error(error)) => return self.interrupted(connection, error.into()).await,
                        Ok(_) => return Err(Error::unexpected("a publish")),
                        Err(_) => return Ok(()),
                    }
                }
                () = self.window.filled.notified(), if replies.len() < PIPELINE => {}
                () = sleep_until(doubt_at), if news.is_none() && !replies.is_empty() => {
                    news = Some(news::ask(self.client.clone(), self.topic.clone(), connection.peer()).boxed());
                }
                told = told(&mut news), if news.is_some() => {
                    news = None;
                    if let Some(route) = told {
                        tracing::debug!(topic = self.topic, leader = route.leader, "another leader is known");
                        self.client.routes().put(&self.topic, route);
                        return Ok(());
                    }
                    // nobody knows more at the moment
                    doubt_at = Instant::now() + DOUBT;
                }
                () = sleep_until(heard + SILENCE), if !replies.is_empty() => {
                    self.client.routes().suspect(&self.topic, connection.peer());
                    return Ok(());
                }
            }
        }
    }

    /// The leader refused a batch. What is final is met again, and decided, by the oldest batch alone.
    async fn interrupted(&mut self, connection: &Connection, error: Error) -> Result<(), Error> {
        match error.code {
            Code::NotLeader => self.client.routes().redirect(&self.topic, &error),
            Code::NoQuorum | Code::Stopping => self.client.routes().suspect(&self.topic, connection.peer()),
            Code::WouldBlock => sleep(self.backoff.next()).await,
            _ => {}
        }
        tracing::debug!(topic = self.topic, %error, "publisher looks for the leader");
        self.note_trouble(error);
        Ok(())
    }

    fn note_trouble(&mut self, error: Error) {
        self.window.note_trouble(&error);
        self.trouble = Some(error);
    }

    /// Until when the oldest event may be without a receipt.
    fn expiry(&self) -> Option<Instant> {
        let oldest = self.batches.front().and_then(|batch| batch.items.front());
        Some(oldest.map_or_else(Instant::now, |item| item.taken) + self.deadline?)
    }

    fn too_late(&mut self) -> Error {
        let why = self.trouble.take().map_or_else(|| "the leader is silent".to_owned(), |error| error.message);
        Error::new(Code::NoQuorum, format!("no receipt within the deadline ({why}): the event may be stored or not"))
    }

    fn note_sent(&mut self, at: usize) {
        if self.batches.get_mut(at).is_some_and(|batch| std::mem::replace(&mut batch.tried, true)) {
            self.window.note_retry();
        }
    }

    /// The request for the batch at this place.
    fn request(&self, at: usize, topic_id: u64) -> Option<Ask> {
        let batch = self.batches.get(at)?;
        let events: Vec<Event> = batch.items.iter().map(|item| item.event.clone()).collect();
        Some(Ask::Publish(Publish {
            topic: self.topic.clone(),
            topic_id,
            producer: self.producer.to_vec().into(),
            first_sequence: batch.first,
            events,
            origin: 0,
        }))
    }

    /// Hands out receipts for the oldest batch. A receipt may cover its beginning only; the answer is whether it
    /// covered all.
    fn settle(&mut self, receipt: Receipt) -> Result<bool, Error> {
        let Some(batch) = self.batches.front_mut() else {
            return Err(Error::unexpected("a publish"));
        };
        let covered = receipt.count as usize;
        if covered == 0 || covered > batch.items.len() {
            let sent = batch.items.len();
            return Err(Error::malformed(format!("the receipt covers {covered} events, {sent} were sent")));
        }
        for (at, item) in (0..).zip(batch.items.drain(..covered)) {
            let one = Receipt { offset: receipt.offset.map(|first| first + at), count: 1, ..receipt };
            // nobody has to wait for a receipt
            drop(item.reply.send(Ok(one)));
        }
        self.trouble = None;
        batch.first += covered as u64;
        let (through, whole) = (batch.first - 1, batch.items.is_empty());
        if whole {
            self.batches.pop_front();
        }
        self.window.note_receipts(through);
        Ok(whole)
    }
}
