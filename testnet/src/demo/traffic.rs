//! Publishes the readings: one pipelined publisher a topic, each with a queue of its own.
//!
//! Latency is counted from the moment at which a reading was due, not from when there was room for it: an outage
//! shows in the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canal_sdk::publisher::Deadline;
use canal_sdk::{Client, Event, ProducerId, Publisher, PublisherOptions};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::layout::TARGET;
use super::readings::Readings;
use super::stats::Stats;

/// Readings that wait for a publisher: those of the longest outage at a usual rate. When it is full, the sensors wait.
const QUEUE: usize = 4096;

/// A reading on its way.
struct Reading {
    round: u64,
    value: f64,
    at: Instant,
}

/// A reading that was acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// Its round, from 1.
    pub round: u64,
    /// The payload.
    pub payload: String,
    /// The offset in its receipt.
    pub offset: Option<u64>,
    /// The producer's sequence.
    pub sequence: u64,
}

/// All that was published to one topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The topic.
    pub topic: String,
    /// The producer.
    pub producer: ProducerId,
    /// The readings, in order.
    pub sent: Vec<Sent>,
}

/// How many readings are streamed, and how.
#[derive(Debug, Clone, Copy)]
pub struct Pace<'a> {
    /// Rounds at most.
    pub rounds: u64,
    /// Rounds a second.
    pub rate: u32,
    /// How long a reading may be without its receipt before the run fails.
    pub deadline: Deadline,
    /// Ends the stream early.
    pub enough: &'a AtomicBool,
}

/// Streams readings, and returns once every reading has its receipt. The clients take turns.
///
/// # Errors
/// When a reading can't be made or published.
pub async fn stream(
    clients: &[Client],
    topics: &[String],
    mut readings: Readings,
    pace: Pace<'_>,
    stats: &Arc<Stats>,
) -> Result<Vec<Published>> {
    let Pace { rounds, rate, deadline, enough } = pace;
    let mut lines = JoinSet::new();
    let mut queues = Vec::new();
    for (at, (topic, client)) in topics.iter().zip(clients.iter().cycle()).enumerate() {
        let options = PublisherOptions { deadline, ..PublisherOptions::default() };
        let publisher =
            client.publisher_with(topic, options).await.with_context(|| format!("publishing to {topic}"))?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        queues.push((topic.clone(), queue));
        let (topic, stats) = (topic.clone(), Arc::clone(stats));
        lines.spawn(async move { (at, line(publisher, topic, receiver, stats).await) });
    }
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    // after a pause, what was missed is made up for
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    'rounds: for round in 1..=rounds {
        ticks.tick().await;
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let values = readings.next()?;
        for ((topic, queue), value) in queues.iter().zip(values) {
            let at = Instant::now();
            stats.made(topic, round, at, topic != TARGET);
            // it ended: its error is told below
            if queue.send(Reading { round, value, at }).await.is_err() {
                break 'rounds;
            }
        }
    }
    drop(queues);
    let mut published = Vec::new();
    while let Some(ended) = lines.join_next().await {
        let (at, line) = ended?;
        published.push((at, line?));
    }
    published.sort_by_key(|(at, _)| *at);
    Ok(published.into_iter().map(|(_, line)| line).collect())
}

/// Publishes what comes through a queue, many at a time.
async fn line(
    publisher: Publisher,
    topic: String,
    mut readings: mpsc::Receiver<Reading>,
    stats: Arc<Stats>,
) -> Result<Published> {
    let key = topic.rsplit('/').next().unwrap_or_default().to_owned();
    let producer = publisher.producer();
    let mut sent = Vec::new();
    let mut pending = FuturesOrdered::new();
    let mut open = true;
    while open || !pending.is_empty() {
        tokio::select! {
            biased;
            Some(receipt) = pending.next(), if !pending.is_empty() => {
                let done: Result<Sent> = receipt;
                sent.push(done.with_context(|| format!("publishing to {topic}"))?);
            }
            reading = readings.recv(), if open && pending.len() < QUEUE => {
                let Some(Reading { round, value, at }) = reading else {
                    open = false;
                    continue;
                };
                let payload = value.to_string();
                let event = Event::new(payload.clone()).with_key(key.clone()).with_header("round", round.to_string());
                let receipt = publisher.send(event).await.with_context(|| format!("publishing to {topic}"))?;
                let sequence = receipt.sequence();
                let (topic, stats) = (topic.clone(), Arc::clone(&stats));
                pending.push_back(async move {
                    let receipt = receipt.await?;
                    stats.acknowledged(&topic, at);
                    Ok(Sent { round, payload, offset: receipt.offset, sequence })
                });
            }
        }
    }
    publisher.close().await?;
    Ok(Published { topic, producer, sent })
}
