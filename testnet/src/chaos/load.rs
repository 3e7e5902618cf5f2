//! Publishers that number what they publish, and remember when each event was sent and when its receipt came.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use canal_sdk::publisher::Deadline;
use canal_sdk::queue::{Queue, QueueOptions};
use canal_sdk::{Client, Code, Event, ProducerId, PublisherOptions};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout_at};

use crate::sim::rng::Rng;

/// For the receipts of the last events, once the mesh is whole.
pub const RECEIPTS: Duration = Duration::from_secs(120);
/// Between two moments at which the device with the queue loses its power, in seconds at most.
const POWERED: u64 = 12;

/// Between two tries of what is in use.
const AGAIN: Duration = Duration::from_millis(50);

/// When what happens, for all that runs.
#[derive(Clone)]
pub struct Clock {
    /// The begin of the run.
    pub began: Instant,
    /// It is time to end.
    pub enough: Arc<AtomicBool>,
}

impl Clock {
    /// Beginning now.
    pub fn start() -> Self {
        Self { began: Instant::now(), enough: Arc::default() }
    }

    /// Time since the begin.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether it is time to end.
    pub fn is_over(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }
}

/// An event that was published. Its sequence is its place, from 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sent {
    /// When it was given to the publisher.
    pub sent: Duration,
    /// When its receipt came, and the offset in it; none: never.
    pub receipt: Option<(Duration, Option<u64>)>,
}

/// What one producer has published to one topic.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name, with which its payloads begin.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// The producer.
    pub producer: ProducerId,
    /// Its events, in order.
    pub sent: Vec<Sent>,
}

impl Line {
    /// Payload of the event with this sequence.
    pub fn payload(&self, sequence: u64) -> String {
        payload(&self.name, sequence)
    }
}

fn payload(name: &str, sequence: u64) -> String {
    format!("{name} {sequence}")
}

/// Publishes until it is time to end, and waits for the receipts.
///
/// # Errors
/// When the publisher can't be had, or fails for good.
pub async fn publish(client: Client, topic: String, name: String, every: Duration, clock: Clock) -> Result<Line> {
    let options = PublisherOptions { deadline: Deadline::Never, ..PublisherOptions::default() };
    let publisher = client.publisher_with(&topic, options).await.with_context(|| format!("publishing to {topic}"))?;
    let producer = publisher.producer();
    let mut line = Line { name, topic, producer, sent: Vec::new() };
    let mut pending = FuturesOrdered::new();
    let mut received = 0;
    let mut ticks = interval(every);
    // who was held up does not make up for it: that would be another load
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut end = None;
    while end.is_none() || !pending.is_empty() {
        tokio::select! {
            biased;
            Some(receipt) = pending.next(), if !pending.is_empty() => {
                let receipt: Result<_, canal_sdk::Error> = receipt;
                let (at, offset) = receipt.with_context(|| format!("publishing to {}", line.topic))?;
                if let Some(sent) = line.sent.get_mut(received) {
                    sent.receipt = Some((at, offset));
                }
                received += 1;
            }
            _ = ticks.tick(), if end.is_none() => {
                if clock.is_over() {
                    end = Some(Instant::now() + RECEIPTS);
                    continue;
                }
                let number = line.sent.len() as u64 + 1;
                let sent = clock.now();
                let event = Event::new(payload(&line.name, number)).with_key(line.name.clone());
                let receipt = publisher.send(event).await.with_context(|| format!("publishing to {}", line.topic))?;
                ensure!(receipt.sequence() == number, "event {number} of {} has sequence {}", line.name, receipt.sequence());
                line.sent.push(Sent { sent, receipt: None });
                let clock = clock.clone();
                pending.push_back(async move {
                    let receipt = receipt.await?;
                    Ok((clock.now(), receipt.offset))
                });
            }
            () = late(end), if end.is_some() => break,
        }
    }
    Ok(line)
}

async fn late(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

/// What went through a queue on disk.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The topic.
    pub topic: String,
    /// The producer under which it was handed over.
    pub producer: ProducerId,
    /// Events that were put in: sequences from 1.
    pub put: u64,
    /// How often the queue was closed and opened again.
    pub restarts: u64,
    /// Events that were still waiting at the end.
    pub left: u64,
}

impl Queued {
    /// Its name, with which its payloads begin.
    pub const NAME: &'static str = "queue";

    /// Payload of the event with this sequence.
    pub fn payload(sequence: u64) -> String {
        payload(Self::NAME, sequence)
    }
}

/// A device with a queue: puts events in until it is time to end, and closes and opens it at times of the random
/// numbers. Then waits until the queue is empty.
///
/// # Errors
/// When the queue fails.
pub async fn queue(
    dir: PathBuf,
    client: Client,
    topic: String,
    every: Duration,
    clock: Clock,
    mut rng: Rng,
) -> Result<Queued> {
    let mut put = 0;
    let mut restarts = 0;
    while !clock.is_over() {
        let queue = open(&dir).await?;
        let handing_over = queue.hand_over(client.clone())?;
        let until = Instant::now() + Duration::from_secs(rng.between(POWERED / 4, POWERED));
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !clock.is_over() && Instant::now() < until {
            ticks.tick().await;
            let sequence = queue.put(&topic, Event::new(Queued::payload(put + 1))).await?;
            put += 1;
            ensure!(sequence == put, "the queue gave event {put} the sequence {sequence}");
        }
        // half of the times without waiting for what is under way
        if rng.chance(500) {
            handing_over.stop().await;
        } else {
            drop(handing_over);
        }
        restarts += 1;
    }
    let queue = open(&dir).await?;
    let handing_over = queue.hand_over(client)?;
    let emptied = timeout_at((Instant::now() + RECEIPTS).into(), queue.emptied()).await;
    if let Ok(Err(error)) = emptied {
        return Err(error).context("handing over what was queued");
    }
    handing_over.stop().await;
    let waiting =
        queue.waiting().into_iter().find(|waiting| waiting.topic == topic).context("the queue is forgotten")?;
    Ok(Queued { topic, producer: waiting.producer, put, restarts, left: waiting.events })
}

/// The queue of before may still be closing: what is under way holds it.
async fn open(dir: &Path) -> Result<Queue> {
    let end = Instant::now() + RECEIPTS;
    loop {
        let dir = dir.to_owned();
        match tokio::task::spawn_blocking(move || Queue::open(dir, QueueOptions::default())).await? {
            Err(error) if error.code == Code::InUse && Instant::now() < end => sleep(AGAIN).await,
            opened => return opened.context("opening the queue"),
        }
    }
}
