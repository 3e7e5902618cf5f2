//! A publisher that never pauses, and what its receipts tell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use canal_sdk::publisher::{Deadline, Pending, Publisher, PublisherOptions};
use canal_sdk::{Client, Event};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Receipts that are waited for, beyond what the publisher's own window holds.
const MAX_PENDING: usize = 8192;

/// A publisher at work. Dropped, it stops.
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    acked: watch::Receiver<u64>,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<Result<()>>,
}

/// What receipts have told since the last mark.
#[derive(Debug, Default)]
struct Seen {
    mark: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    longest: Duration,
    next: Option<u64>,
    torn: bool,
}

impl Seen {
    fn mark(&mut self, at: Instant) {
        (self.mark, self.first, self.longest) = (Some(at), None, Duration::ZERO);
    }

    fn acked(&mut self, published: Instant, now: Instant, offset: Option<u64>) {
        if let Some(last) = self.last {
            self.longest = self.longest.max(now.saturating_duration_since(last));
        }
        self.last = Some(now);
        if self.first.is_none() && self.mark.is_some_and(|mark| published > mark) {
            self.first = Some(now);
        }
        // one publisher, one topic: each event is where it belongs, once
        self.torn |= self.next.is_some() && offset != self.next;
        self.next = offset.map(|offset| offset + 1);
    }
}

impl Load {
    /// Begins to publish to a topic, an event each `every`.
    ///
    /// # Errors
    /// When there is no such topic.
    pub async fn start(client: &Client, topic: &str, every: Duration) -> Result<Self> {
        // a publisher's defaults but for its patience: what is measured is how long it has to wait
        let options = PublisherOptions { deadline: Deadline::Never, ..PublisherOptions::default() };
        let publisher = client.publisher_with(topic, options).await?;
        let (stop, stopped) = oneshot::channel();
        let (pending, receipts) = mpsc::channel(MAX_PENDING);
        let (count, acked) = watch::channel(0);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(publish(publisher, every, pending, stopped));
        tasks.spawn(collect(receipts, seen.clone(), count));
        Ok(Self { seen, acked, stop, tasks })
    }

    /// Waits for so many receipts more.
    ///
    /// # Errors
    /// When they do not come in time.
    pub async fn flows(&self, count: u64, patience: Duration) -> Result<()> {
        let mut acked = self.acked.clone();
        let goal = *acked.borrow() + count;
        match tokio::time::timeout(patience, acked.wait_for(|acked| *acked >= goal)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("the publisher has failed"),
            Err(_) => bail!("no receipts came within {} s", patience.as_secs()),
        }
    }

    /// From now on, only events that are published after this moment count.
    pub fn mark(&self, at: Instant) {
        self.seen.lock().mark(at);
    }

    /// When the first event that was published after the mark had its receipt.
    ///
    /// # Errors
    /// When the publisher has failed.
    pub async fn first_ack(&self) -> Result<Instant> {
        let mut acked = self.acked.clone();
        let seen = self.seen.clone();
        acked.wait_for(|_| seen.lock().first.is_some()).await.map_err(|_| anyhow!("the publisher has failed"))?;
        self.seen.lock().first.ok_or_else(|| anyhow!("no receipt"))
    }

    /// The longest time between two receipts since the mark.
    pub fn longest_gap(&self) -> Duration {
        self.seen.lock().longest
    }

    /// Whether each event so far is at the offset after the one before.
    pub fn is_whole(&self) -> bool {
        !self.seen.lock().torn
    }

    /// Stops, and waits for the receipts that are still to come.
    ///
    /// # Errors
    /// When the publisher has failed.
    pub async fn finish(self) -> Result<()> {
        let Self { stop, mut tasks, .. } = self;
        drop(stop);
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn publish(
    publisher: Publisher,
    every: Duration,
    pending: mpsc::Sender<(Instant, Pending)>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        let receipt = publisher.send(Event::new("x")).await?;
        if pending.send((now, receipt)).await.is_err() {
            break;
        }
    }
    publisher.flush().await?;
    Ok(())
}

async fn collect(
    mut receipts: mpsc::Receiver<(Instant, Pending)>,
    seen: Arc<Mutex<Seen>>,
    count: watch::Sender<u64>,
) -> Result<()> {
    while let Some((published, pending)) = receipts.recv().await {
        let receipt = pending.await?;
        seen.lock().acked(published, Instant::now(), receipt.offset);
        count.send_modify(|count| *count += 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_published_after_the_mark_counts_and_gaps_begin_before_it() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut seen = Seen::default();
        seen.acked(at(0), at(1), Some(7));
        seen.mark(at(10));
        seen.acked(at(9), at(701), Some(8));
        assert_eq!(seen.first, None);
        seen.acked(at(11), at(705), Some(9));
        seen.acked(at(12), at(706), Some(10));
        assert_eq!((seen.first, seen.longest, seen.torn), (Some(at(705)), Duration::from_millis(700), false));
        seen.acked(at(13), at(707), Some(12));
        assert!(seen.torn);
    }
}
