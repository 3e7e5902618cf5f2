//! A durable subscriber that comes and goes, and clients that read and write registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use canal_sdk::{Client, Consistency, From, GroupId, SubscribeOptions, Subscription};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout, timeout_at};

use super::load::Clock;
use crate::demo::watch::Seen;
use crate::sim::linear::{Action, Operation};
use crate::sim::rng::Rng;

/// For a subscription to stand, and for its last words to be committed.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the durable subscriber to see the last event, once all publishers have ended.
const LAST: Duration = Duration::from_secs(120);
/// Between two tries of what was refused.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a register is used: a short history is quickly checked.
const REGISTER_LIFE: Duration = Duration::from_secs(15);
/// Registers in use at a time.
const REGISTERS: u64 = 4;

/// What a durable subscriber saw from its opening to its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Session {
    /// The events, in order.
    pub seen: Vec<Seen>,
    /// It was closed in order, and everything before this offset is handled: it must not come again.
    pub handled: Option<u64>,
}

/// A durable subscriber of one topic that opens at one of the clients, reads for a moment, ends in order or not, and opens
/// again; until it has seen everything before the offset that `goal` says in the end.
///
/// # Errors
/// When the subscription ends by itself, or does not come to the goal.
pub async fn durable(
    clients: Vec<Client>,
    topic: String,
    name: String,
    mut goal: watch::Receiver<Option<u64>>,
    mut rng: Rng,
) -> Result<Vec<Session>> {
    let mut sessions: Vec<Session> = Vec::new();
    let mut next = 0;
    let mut end = None;
    loop {
        let last = *goal.borrow_and_update();
        if last.is_some_and(|goal| next >= goal) {
            return Ok(sessions);
        }
        if let Some(goal) = last {
            let end = *end.get_or_insert_with(|| Instant::now() + LAST);
            if Instant::now() >= end {
                bail!("a durable subscriber of `{topic}` saw {next} of {goal} events");
            }
        }
        let Some(client) = clients.get(rng.index(clients.len())) else { bail!("there is no client") };
        let options =
            SubscribeOptions { from: From::Earliest, durable: Some(name.clone()), ..SubscribeOptions::default() };
        let Ok(Ok(mut events)) = timeout(PATIENCE, client.subscribe_with(&topic, options)).await else {
            sleep(AGAIN).await;
            continue;
        };
        let mut session = Session::default();
        let until = Instant::now() + Duration::from_millis(rng.between(500, 6_000));
        read(&mut events, &mut session, until, &mut goal).await?;
        if let Some(last) = session.seen.last() {
            next = next.max(last.offset + 1);
        }
        if rng.chance(600) && timeout(PATIENCE, events.close()).await.is_ok_and(|closed| closed.is_ok()) {
            session.handled = session.seen.last().map(|last| last.offset + 1);
        }
        sessions.push(session);
    }
}

async fn read(
    events: &mut Subscription,
    session: &mut Session,
    until: Instant,
    goal: &mut watch::Receiver<Option<u64>>,
) -> Result<()> {
    while let Ok(event) = timeout_at(until.into(), events.next()).await {
        let Some(event) = event else { bail!("a durable subscription ended without a word") };
        let event = match event {
            Ok(event) => event,
            Err(error) => bail!("a durable subscription ended: {error}"),
        };
        events.handled(&event);
        session.seen.push(Seen::delivered(&event));
        if goal.borrow().is_some_and(|goal| event.offset + 1 >= goal) {
            return Ok(());
        }
    }
    Ok(())
}

/// What clients did with one register.
pub type History = Vec<(String, Operation)>;

/// Orders the begins and ends of operations of all clients: what ended before another began has the lower number.
pub type Moments = Arc<AtomicU64>;

/// One client of registers: reads and writes them until it is time to end, one operation at a time.
pub async fn register(
    client: Client,
    group: GroupId,
    number: usize,
    moments: Moments,
    clock: Clock,
    mut rng: Rng,
) -> History {
    let state = client.state(group, "chaos-registers");
    let moment = || moments.fetch_add(1, Ordering::SeqCst);
    let mut history = Vec::new();
    let mut operation = 0;
    while !clock.is_over() {
        operation += 1;
        let age = clock.now().as_secs() / REGISTER_LIFE.as_secs();
        let key = format!("{age}/{}", rng.below(REGISTERS));
        let who = (number, operation);
        let invoked = moment();
        if rng.chance(500) {
            let value = format!("{number}:{operation}").into_bytes();
            let written = state.put(&key, value.clone()).await;
            // one that failed may have taken effect, or may yet
            let returned = written.is_ok().then(moment);
            history.push((key, Operation { who, action: Action::Write(value), invoked, returned }));
        } else if let Ok(value) = state.get(&key, Consistency::Linearizable).await {
            let returned = Some(moment());
            let action = Action::Read(value.map(|value| value.to_vec()));
            history.push((key, Operation { who, action, invoked, returned }));
        }
        sleep(Duration::from_millis(rng.between(20, 150))).await;
    }
    history
}
