//! The verdict: from what was acknowledged and what replicas and subscribers hold, whether every promise was kept.
//!
//! No IO. What the functions owe is what their sources in `examples/functions` promise:
//! - `smooth` makes one event of each reading: the mean of the sensor's last five, with the same key and round;
//! - `train` makes one model of each reading of the target from the eighth on, with the same round;
//! - `predict` makes one prediction of each model, with the same round;
//! - `score` makes one error of each reading of the target once a first prediction was there; it names the
//!   prediction's round, and is their difference to the bit.

use std::collections::BTreeMap;

use canal_proto::Event;
use canal_proto::event::Stored;

use super::layout::{self, ERROR, MODEL, PREDICTION, TARGET};
use super::traffic::Published;
use super::watch::{Log, Seen, round};

/// Readings of which `train` makes no model yet.
pub const UNTRAINED: usize = 7;
/// Readings in a mean of `smooth`.
const WINDOW: usize = 5;

/// All that was seen.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Names of the inputs.
    pub inputs: Vec<String>,
    /// What was acknowledged.
    pub published: Vec<Published>,
    /// Each topic as each of these replicas has it.
    pub replicas: BTreeMap<String, Vec<(String, Vec<Stored>)>>,
    /// What live subscribers saw.
    pub live: Vec<(String, Log)>,
    /// Topics of dead letters with the number of their events.
    pub dead: Vec<(String, u64)>,
}

/// What is wrong; nothing if all promises were kept. One line for each topic or rule at most.
pub fn problems(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |outcome: Result<(), String>| found.extend(outcome.err());
    for (topic, replicas) in &evidence.replicas {
        for (who, events) in replicas {
            note(well_formed(events).map_err(|why| format!("`{topic}` at {who}: {why}")));
        }
        note(alike(topic, replicas));
    }
    for published in &evidence.published {
        note(as_acknowledged(published, evidence.events(&published.topic)));
    }
    for (who, log) in &evidence.live {
        if let Some(why) = &log.ended {
            note(Err(format!("subscriber at {who} ended: {why}")));
            continue;
        }
        for topic in evidence.replicas.keys() {
            let saw = log.topics.get(topic).map(Vec::as_slice).unwrap_or_default();
            note(
                as_stored(saw, evidence.events(topic)).map_err(|why| format!("subscriber at {who}, `{topic}`: {why}")),
            );
        }
    }
    for name in &evidence.inputs {
        let (from, to) = (evidence.events(&layout::sensor(name)), evidence.events(&layout::smoothed(name)));
        note(smoothed(from, to).map_err(|why| format!("smooth, {name}: {why}")));
    }
    let [target, model, prediction, error] = [TARGET, MODEL, PREDICTION, ERROR].map(|topic| evidence.events(topic));
    let trained = target.get(UNTRAINED..).unwrap_or_default();
    note(same_rounds(trained, model).map_err(|why| format!("train: {why}")));
    note(same_rounds(model, prediction).map_err(|why| format!("predict: {why}")));
    note(scored(target, prediction, error).map_err(|why| format!("score: {why}")));
    for (topic, events) in &evidence.dead {
        note(if *events == 0 { Ok(()) } else { Err(format!("`{topic}` holds {events} dead letters")) });
    }
    found
}

impl Evidence {
    /// The events of a topic as the first replica has them; the others are compared with it.
    fn events(&self, topic: &str) -> &[Stored] {
        let first = self.replicas.get(topic).and_then(|replicas| replicas.first());
        first.map(|(_, events)| events.as_slice()).unwrap_or_default()
    }

    /// Events that functions emitted.
    pub fn effects(&self) -> usize {
        let of_functions = self.replicas.keys().filter(|topic| !self.published.iter().any(|p| p.topic == **topic));
        of_functions.map(|topic| self.events(topic).len()).sum()
    }
}

/// Offsets without gaps, and no producer's number twice or out of order.
pub(crate) fn well_formed(events: &[Stored]) -> Result<(), String> {
    let mut last: BTreeMap<&[u8], u64> = BTreeMap::new();
    for (offset, event) in (0..).zip(events) {
        if event.offset != offset {
            return Err(format!("offset {} where {offset} belongs", event.offset));
        }
        // what a function emitted in its own group has no number: its outcome is one entry
        if event.producer.is_empty() {
            continue;
        }
        let before = last.insert(&event.producer, event.sequence).unwrap_or_default();
        if event.sequence <= before {
            return Err(format!("a producer's number {} stands behind {before}, at offset {offset}", event.sequence));
        }
    }
    Ok(())
}

pub(crate) fn alike(topic: &str, replicas: &[(String, Vec<Stored>)]) -> Result<(), String> {
    let Some(((first, events), others)) = replicas.split_first() else {
        return Err(format!("`{topic}` was read from no replica"));
    };
    for (who, other) in others {
        if events.len() != other.len() {
            return Err(format!("`{topic}` has {} events at {first} and {} at {who}", events.len(), other.len()));
        }
        if let Some(at) = events.iter().zip(other).position(|(a, b)| a != b) {
            return Err(format!("`{topic}` differs at offset {at} between {first} and {who}"));
        }
    }
    Ok(())
}

/// Every acknowledged event is there once, in order, where its receipt says.
fn as_acknowledged(published: &Published, events: &[Stored]) -> Result<(), String> {
    let Published { topic, producer, sent } = published;
    if sent.len() != events.len() {
        return Err(format!("`{topic}`: {} events were acknowledged, {} are there", sent.len(), events.len()));
    }
    for (sent, stored) in sent.iter().zip(events) {
        let same = stored.event.payload == sent.payload.as_bytes()
            && round(&stored.event) == Some(sent.round)
            && stored.sequence == sent.sequence
            && stored.producer == producer.to_vec();
        if !same {
            return Err(format!(
                "`{topic}`: at offset {} stands another event than that of round {}",
                stored.offset, sent.round
            ));
        }
        if sent.offset.is_some_and(|offset| offset != stored.offset) {
            return Err(format!("`{topic}`: round {} has another offset than its receipt says", sent.round));
        }
    }
    Ok(())
}

pub(crate) fn as_stored(saw: &[Seen], events: &[Stored]) -> Result<(), String> {
    if saw.len() != events.len() {
        return Err(format!("saw {} of {} events", saw.len(), events.len()));
    }
    let differs = saw.iter().zip(events).find(|(saw, stored)| **saw != Seen::stored(stored));
    differs.map_or(Ok(()), |(_, stored)| Err(format!("saw something else at offset {}", stored.offset)))
}

fn number(event: &Event) -> Result<f64, String> {
    let text = std::str::from_utf8(&event.payload).map_err(|e| e.to_string())?;
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

fn same_rounds(causes: &[Stored], effects: &[Stored]) -> Result<(), String> {
    for (cause, effect) in causes.iter().zip(effects) {
        let (wanted, has) = (round(&cause.event), round(&effect.event));
        if wanted != has {
            return Err(format!("at offset {} stands round {has:?}, not {wanted:?}", effect.offset));
        }
        if cause.event.key != effect.event.key {
            return Err(format!("at offset {} stands another key than its cause's", effect.offset));
        }
    }
    if causes.len() == effects.len() {
        Ok(())
    } else {
        Err(format!("{} events follow from {} that should have one each", effects.len(), causes.len()))
    }
}

fn smoothed(readings: &[Stored], means: &[Stored]) -> Result<(), String> {
    same_rounds(readings, means)?;
    let values = readings.iter().map(|reading| number(&reading.event)).collect::<Result<Vec<f64>, _>>()?;
    for (at, mean) in means.iter().enumerate() {
        let window = values.get((at + 1).saturating_sub(WINDOW)..=at).unwrap_or_default();
        // the function's own arithmetic, so that the result is the same to the bit
        let wanted: f64 = window.iter().map(|reading| reading / window.len() as f64).sum();
        let has = number(&mean.event)?;
        if has.to_bits() != wanted.to_bits() {
            return Err(format!("at offset {at} stands {has}; the last readings make {wanted}"));
        }
    }
    Ok(())
}

fn scored(targets: &[Stored], predictions: &[Stored], errors: &[Stored]) -> Result<(), String> {
    if errors.len() > targets.len() {
        return Err(format!("{} errors of {} readings", errors.len(), targets.len()));
    }
    if predictions.is_empty() && !errors.is_empty() {
        return Err("errors without a prediction".into());
    }
    // once a reading has made one, every later one does
    let with_error = targets.get(targets.len() - errors.len()..).unwrap_or_default();
    same_rounds(with_error, errors)?;
    let predicted: BTreeMap<Option<u64>, &Stored> = predictions.iter().map(|p| (round(&p.event), p)).collect();
    for (target, error) in with_error.iter().zip(errors) {
        let header = error.event.headers.iter().find(|header| header.name == "predicted");
        let of = header.and_then(|header| std::str::from_utf8(&header.value).ok()?.parse().ok());
        let Some(prediction) = predicted.get(&of) else {
            return Err(format!("the error at offset {} is of no prediction that there is", error.offset));
        };
        let wanted = (number(&prediction.event)? - number(&target.event)?).abs();
        let has = number(&error.event)?;
        if has.to_bits() != wanted.to_bits() {
            return Err(format!("the error at offset {} is {has}, not {wanted}", error.offset));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
