//! The verdict: from what was acknowledged, read and seen, and what the replicas hold, whether every promise was kept. No
//! IO.
//!
//! What the demo's application owes is checked by [`crate::demo::check`], over all topics: offsets without gaps, replicas
//! alike, live subscribers that saw just that, and each function's effects once for each event. Here is the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use canal_proto::event::Stored;

use super::load::{Line, Queued};
use super::readers::{History as Registers, Session};
use crate::demo::check::{self as application, Evidence};
use crate::demo::watch::Seen;
use crate::sim::linear::{self, Operation, Verdict};

/// A time in which a group had no majority.
#[derive(Debug, Clone, PartialEq)]
pub struct Silence {
    /// The topic of a publisher that went on publishing to it.
    pub topic: String,
    /// From when on too few were alive.
    pub from: Duration,
    /// When the first of them was started again.
    pub until: Duration,
}

/// All that is known of a run.
#[derive(Debug, Default)]
pub struct History {
    /// The application: what was published to it, and what all topics hold.
    pub application: Evidence,
    /// What the other publishers have published.
    pub lines: Vec<Line>,
    /// What went through queues on disk.
    pub queued: Vec<Queued>,
    /// What durable subscribers saw, with the topic that they read.
    pub sessions: Vec<(String, Vec<Session>)>,
    /// What clients did with registers.
    pub registers: Registers,
    /// Function state that counts events: its name, what it says, and the topic whose events it counts.
    pub counts: Vec<(String, u64, String)>,
    /// Times without a majority.
    pub silences: Vec<Silence>,
}

/// What is wrong; nothing if all promises were kept.
pub fn problems(history: &History) -> Vec<String> {
    let mut found = application::problems(&history.application);
    let mut note = |outcome: Result<(), String>| found.extend(outcome.err());
    for line in &history.lines {
        let own = |why| format!("{}, to `{}`: {why}", line.name, line.topic);
        note(as_published(line, events(history, &line.topic)).map_err(own));
    }
    for queued in &history.queued {
        let own = |why| format!("the queue, to `{}`: {why}", queued.topic);
        note(as_queued(queued, events(history, &queued.topic)).map_err(own));
    }
    let topics: BTreeSet<&str> = history.lines.iter().map(|line| line.topic.as_str()).collect();
    for topic in topics {
        note(known(history, topic).map_err(|why| format!("`{topic}`: {why}")));
        note(in_time(history, topic).map_err(|why| format!("`{topic}`: {why}")));
    }
    for (topic, sessions) in &history.sessions {
        note(once_handled(sessions, events(history, topic)).map_err(|why| format!("durable, `{topic}`: {why}")));
    }
    let mut registers: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    for (register, operation) in &history.registers {
        registers.entry(register).or_default().push(operation.clone());
    }
    for (register, mut operations) in registers {
        operations.sort_by_key(|operation| operation.invoked);
        note(match linear::check(&operations) {
            Verdict::Linearizable => Ok(()),
            Verdict::Wrong(why) => Err(format!("register {register} is not linearizable: {why}")),
            Verdict::Undecided => Err(format!("register {register}: {} operations are too many", operations.len())),
        });
    }
    for (name, count, topic) in &history.counts {
        let events = events(history, topic).len() as u64;
        let wrong = format!("{name} is {count} after {events} events of `{topic}`");
        note(if *count == events { Ok(()) } else { Err(wrong) });
    }
    for silence in &history.silences {
        note(kept_silent(silence, &history.lines));
    }
    found
}

fn events<'a>(history: &'a History, topic: &str) -> &'a [Stored] {
    let replicas = history.application.replicas.get(topic);
    replicas.and_then(|replicas| replicas.first()).map(|(_, events)| events.as_slice()).unwrap_or_default()
}

/// What this producer has in the topic is its sequences from 1 on, each with its payload.
fn in_sequence<'a>(
    producer: &[u8],
    payload: impl Fn(u64) -> String,
    events: &'a [Stored],
) -> Result<Vec<&'a Stored>, String> {
    let own: Vec<&Stored> = events.iter().filter(|stored| stored.producer == producer).collect();
    for (wanted, stored) in (1..).zip(&own) {
        let (has, offset) = (stored.sequence, stored.offset);
        if has < wanted {
            return Err(format!("event {has} is there again, at offset {offset}"));
        }
        if has > wanted {
            return Err(format!("event {has} stands at offset {offset}, where {wanted} belongs"));
        }
        if stored.event.payload != payload(wanted).as_bytes() {
            return Err(format!("event {wanted}, at offset {offset}, has another payload"));
        }
    }
    Ok(own)
}

/// Every acknowledged event is there, once, in order, where its receipt says. One without a receipt may be there.
fn as_published(line: &Line, events: &[Stored]) -> Result<(), String> {
    let own = in_sequence(&line.producer.to_vec(), |sequence| line.payload(sequence), events)?;
    if own.len() > line.sent.len() {
        return Err(format!("{} events are there, {} were published", own.len(), line.sent.len()));
    }
    let mut missing = 0;
    for (number, sent) in (1..).zip(&line.sent) {
        let Some((_, offset)) = sent.receipt else {
            missing += 1;
            continue;
        };
        let Some(stored) = usize::try_from(number - 1).ok().and_then(|at| own.get(at)) else {
            return Err(format!("event {number} was acknowledged and is not there"));
        };
        if let Some(offset) = offset
            && offset != stored.offset
        {
            return Err(format!("event {number} is at offset {}, its receipt says {offset}", stored.offset));
        }
    }
    if missing > 0 {
        return Err(format!("{missing} of {} events were never acknowledged", line.sent.len()));
    }
    Ok(())
}

fn as_queued(queued: &Queued, events: &[Stored]) -> Result<(), String> {
    let own = in_sequence(&queued.producer.to_vec(), Queued::payload, events)?;
    let there = own.len() as u64;
    if queued.left > 0 {
        return Err(format!("{} of {} events were never handed over", queued.left, queued.put));
    }
    if there == queued.put { Ok(()) } else { Err(format!("{there} events are there, {} were put in", queued.put)) }
}

/// Nobody else has published to this topic.
fn known(history: &History, topic: &str) -> Result<(), String> {
    let lines = history.lines.iter().filter(|line| line.topic == topic).map(|line| line.producer.to_vec());
    let queues = history.queued.iter().filter(|queue| queue.topic == topic).map(|queue| queue.producer.to_vec());
    let producers: BTreeSet<Vec<u8>> = lines.chain(queues).collect();
    let stranger = events(history, topic).iter().find(|stored| !producers.contains(stored.producer.as_ref()));
    stranger.map_or(Ok(()), |stored| Err(format!("nobody has published what stands at offset {}", stored.offset)))
}

/// Publishes are linearizable: what was sent when another event already had its receipt stands behind that one.
fn in_time(history: &History, topic: &str) -> Result<(), String> {
    let of = |line: &Line, number: usize| format!("event {} of {}", number + 1, line.name);
    let (mut sent, mut receipts) = (Vec::new(), Vec::new());
    for line in history.lines.iter().filter(|line| line.topic == topic) {
        for (number, event) in line.sent.iter().enumerate() {
            let Some((at, Some(offset))) = event.receipt else { continue };
            sent.push((event.sent, offset, line, number));
            receipts.push((at, offset, line, number));
        }
    }
    sent.sort_by_key(|(at, ..)| *at);
    receipts.sort_by_key(|(at, ..)| *at);
    let mut receipts = receipts.into_iter().peekable();
    let mut last: Option<(u64, &Line, usize)> = None;
    for (at, offset, line, number) in sent {
        while let Some((_, offset, line, number)) = receipts.next_if(|(received, ..)| *received < at) {
            if last.is_none_or(|(last, ..)| last < offset) {
                last = Some((offset, line, number));
            }
        }
        if let Some((before, other, other_number)) = last.filter(|(before, ..)| *before >= offset) {
            let (late, early) = (of(line, number), of(other, other_number));
            return Err(format!(
                "{late} is at {offset}, though {early}, at {before}, had its receipt when it was sent"
            ));
        }
    }
    Ok(())
}

/// A durable subscriber saw everything, in order, and nothing again that it had handled in time.
fn once_handled(sessions: &[Session], events: &[Stored]) -> Result<(), String> {
    let (mut next, mut handled) = (0, 0);
    for (number, session) in (1..).zip(sessions) {
        let mut last: Option<u64> = None;
        for seen in &session.seen {
            let offset = seen.offset;
            match last {
                None if offset < handled => {
                    return Err(format!("opening {number} began at {offset}, though all before {handled} was handled"));
                }
                None if offset > next => {
                    return Err(format!("opening {number} began at {offset}, though {next} was not seen yet"));
                }
                Some(last) if offset != last + 1 => {
                    return Err(format!("in opening {number}, {offset} came behind {last}"));
                }
                _ => {}
            }
            let stored = usize::try_from(offset).ok().and_then(|at| events.get(at));
            if stored.map(Seen::stored) != Some(*seen) {
                return Err(format!("in opening {number}, what came as {offset} is not what is stored"));
            }
            last = Some(offset);
        }
        next = next.max(last.map_or(0, |last| last + 1));
        handled = handled.max(session.handled.unwrap_or_default());
    }
    let all = events.len() as u64;
    if next == all { Ok(()) } else { Err(format!("saw {next} of {all} events")) }
}

/// Without a majority nothing is acknowledged.
fn kept_silent(silence: &Silence, lines: &[Line]) -> Result<(), String> {
    for line in lines.iter().filter(|line| line.topic == silence.topic) {
        let sent = (1..).zip(&line.sent).filter(|(_, sent)| sent.sent >= silence.from);
        for (number, sent) in sent {
            if sent.receipt.is_some_and(|(at, _)| at < silence.until) {
                return Err(format!(
                    "event {number} of {} was acknowledged by `{}` while it had no majority",
                    line.name, line.topic
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
