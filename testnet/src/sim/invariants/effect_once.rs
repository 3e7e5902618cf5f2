//! Each event has the effects of its functions once: none is lost, none stands twice.
//!
//! Source: DESIGN, promise 4 ("a function's effects happen once") and 5 ("failing events go to a dead-letter topic after
//! their retries"). The simulated functions ([`functions`](crate::sim::rooms::functions)) leave traces that can be counted:
//! `count` counts in a row, notes in another how often it saw an event, and emits to another group; `copy` emits to a third
//! group, or fails for good. While the run goes on, what subscribers see may hold no effect twice; in the end there is
//! exactly one for each event.

use std::collections::{BTreeMap, BTreeSet};

use canal_consensus::core::keys::Keys;
use canal_consensus::core::kv::Kv as _;
use canal_proto::cursor::Cursor;
use canal_proto::event::Stored;
use canal_proto::{GroupId, TopicId, TriggerId};

use super::ensure;
use super::read::{row, topic, voters};
use crate::sim::rooms::spec::{COPY, COUNT, COUNT_BUCKET, TOUCH};
use crate::sim::seen::{Invariant, Look, Replica, Seen};
use crate::sim::setup::{DEAD, IN_A, IN_B, LOGS, OUT, OUT_A, WORK, logs_topic};

/// Offsets for which `copy` fails for good are the multiples of this.
const ALWAYS_FAILS: u64 = 50;

/// Where effects were seen.
#[derive(Debug, Default)]
pub(super) struct EffectOnce {
    /// By topic and payload: the offset at which it stands.
    effects: BTreeMap<(u64, Vec<u8>), u64>,
}

/// Whether the event is what a function made, by its payload.
fn is_effect(topic: TopicId, payload: &[u8]) -> bool {
    topic == DEAD || payload.starts_with(b"count:") || payload.starts_with(b"copy:")
}

/// The payloads of a topic's effects, each once.
fn effects(id: TopicId, events: &[Stored]) -> Result<BTreeSet<Vec<u8>>, String> {
    let mut found = BTreeSet::new();
    for event in events.iter().filter(|event| is_effect(id, &event.event.payload)) {
        let new = found.insert(event.event.payload.to_vec());
        ensure(new, || {
            let payload = String::from_utf8_lossy(&event.event.payload);
            format!("effect `{payload}` is in topic {id} again at offset {}", event.offset)
        })?;
    }
    Ok(found)
}

/// Whether those that there are, are those that there should be.
fn same(id: TopicId, found: &BTreeSet<Vec<u8>>, due: &BTreeSet<Vec<u8>>) -> Result<(), String> {
    let text = |payload: Option<&Vec<u8>>| payload.map(|payload| String::from_utf8_lossy(payload).into_owned());
    let (lost, more) = (text(due.difference(found).next()), text(found.difference(due).next()));
    ensure(lost.is_none() && more.is_none(), || {
        format!("topic {id} lacks effect {lost:?}, or has {more:?} without a cause")
    })
}

/// The number in a row of function state.
fn number(replica: &dyn Replica, key: &str) -> Result<u64, String> {
    let value = replica.kv().get(&Keys(WORK).state(COUNT_BUCKET, key)).map_err(|e| e.0)?;
    let text = value.as_ref().and_then(|value| std::str::from_utf8(value).ok());
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// Whether a trigger has handled all events of a topic.
fn is_through(replica: &dyn Replica, trigger: u64, id: TopicId, next: u64) -> Result<(), String> {
    let cursor: Option<Cursor> = row(replica, &Keys(WORK).cursor(TriggerId(trigger), id))?;
    let low = cursor.as_ref().map_or(0, |cursor| cursor.low);
    ensure(low == next, || format!("trigger {trigger} has handled {low} of {next} events of topic {id}: {cursor:?}"))
}

/// The dead letters of `copy`: each leads back to an event that fails for good, and none is missing.
fn dead_letters(events: &[Stored], next: u64) -> Result<(), String> {
    let header = |event: &Stored, name: &str| {
        let header = event.event.headers.iter().find(|header| header.name == name);
        header.map(|header| String::from_utf8_lossy(&header.value).into_owned()).unwrap_or_default()
    };
    let mut found = BTreeSet::new();
    for event in events {
        let at = (header(event, "canal-trigger"), header(event, "canal-topic"), header(event, "canal-offset"));
        let offset: Option<u64> = at.2.parse().ok().filter(|_| (at.0.as_str(), at.1.as_str()) == ("copy", "in/b"));
        let due = offset.filter(|offset| *offset < next && offset.is_multiple_of(ALWAYS_FAILS));
        ensure(due.is_some_and(|offset| found.insert(offset)), || {
            format!("the dead letter at offset {} is one too many: {at:?}", event.offset)
        })?;
    }
    let lost = (0..next).step_by(ALWAYS_FAILS as usize).find(|offset| !found.contains(offset));
    ensure(lost.is_none(), || format!("event {lost:?} of in/b fails for good, and is no dead letter"))
}

fn events(look: &dyn Look, group: GroupId, id: TopicId) -> Vec<Stored> {
    voters(look, group).first().map(|(replica, _)| replica.events(id)).unwrap_or_default()
}

impl Invariant for EffectOnce {
    fn name(&self) -> &'static str {
        "effect_once"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        let Seen::Delivered { topic, offset, payload, .. } = seen else { return Ok(()) };
        if !is_effect(TopicId(*topic), payload) {
            return Ok(());
        }
        let known = *self.effects.entry((*topic, payload.clone())).or_insert(*offset);
        ensure(known == *offset, || {
            let payload = String::from_utf8_lossy(payload);
            format!("effect `{payload}` stands in topic {topic} at offsets {known} and {offset}")
        })
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        let voters = voters(look, WORK);
        let Some((replica, _)) = voters.first() else { return Err("nobody can be asked what functions did".into()) };
        let replica = replica.as_ref();
        let mut counted = BTreeSet::new();
        let mut copied = BTreeSet::new();
        for id in [IN_A, IN_B] {
            let Some(row) = topic(replica, WORK, id)? else { continue };
            is_through(replica, COUNT, id, row.next)?;
            let of = id.0;
            let count = number(replica, &format!("count/{of}"))?;
            ensure(count == row.next, || format!("topic {id} has {} events, of which {count} were counted", row.next))?;
            for offset in 0..row.next {
                let times = number(replica, &format!("seen/{of}/{offset}"))?;
                ensure(times == 1, || format!("event {offset} of topic {id} was counted {times} times"))?;
                counted.insert(format!("count:{of}:{offset}").into_bytes());
            }
            if id == IN_A {
                is_through(replica, TOUCH, id, row.next)?;
            }
            if id == IN_B {
                is_through(replica, COPY, id, row.next)?;
                let copies = (0..row.next).filter(|offset| !offset.is_multiple_of(ALWAYS_FAILS));
                copied.extend(copies.map(|offset| format!("copy:{of}:{offset}").into_bytes()));
                dead_letters(&replica.events(DEAD), row.next)?;
            }
        }
        same(OUT_A, &effects(OUT_A, &events(look, OUT, OUT_A))?, &counted)?;
        let logs = logs_topic(LOGS);
        same(logs, &effects(logs, &events(look, LOGS, logs))?, &copied)
    }
}

#[cfg(test)]
mod tests {
    use canal_proto::Event;

    use super::super::fake::{World, stored};
    use super::*;

    /// What functions leave behind that have handled one event of `in/a` and 52 of `in/b`.
    struct Run {
        counted: u64,
        times: u64,
        low: u64,
        out: Vec<String>,
        logs: Vec<String>,
        dead: Vec<u64>,
    }

    impl Run {
        fn good() -> Self {
            let counts = (0..52).map(|offset| format!("count:12:{offset}"));
            let copies = (0..52).filter(|offset| offset % 50 != 0).map(|offset| format!("copy:12:{offset}"));
            Self {
                counted: 52,
                times: 1,
                low: 52,
                out: counts.chain(["count:11:0".to_owned()]).collect(),
                logs: ["something else".to_owned()].into_iter().chain(copies).collect(),
                dead: vec![0, 50],
            }
        }

        fn end(&self) -> Result<(), String> {
            let mut world = World::three();
            for group in [WORK, OUT, LOGS] {
                world.add(group, &[]);
            }
            let plain = |count: u64| (0..count).map(|offset| stored(offset, 1, offset + 1, "p")).collect::<Vec<_>>();
            let texts = |texts: &[String]| {
                (0..).zip(texts).map(|(offset, text)| stored(offset, 2, offset + 1, text)).collect::<Vec<_>>()
            };
            world.each(WORK, |fake| {
                fake.fill(WORK, IN_A.0, plain(1));
                fake.fill(WORK, IN_B.0, plain(52));
                let dead = |(offset, of): (u64, &u64)| {
                    let event = Event::new(format!("p:{of}")).with_header("canal-trigger", "copy");
                    let event = event.with_header("canal-topic", "in/b").with_header("canal-offset", of.to_string());
                    Stored { offset, event, ..Stored::default() }
                };
                fake.fill(WORK, DEAD.0, (0..).zip(&self.dead).map(dead).collect());
                for (trigger, id, low) in
                    [(COUNT, IN_A, 1), (TOUCH, IN_A, 1), (COUNT, IN_B, self.low), (COPY, IN_B, 52)]
                {
                    fake.put(Keys(WORK).cursor(TriggerId(trigger), id), &Cursor::new(trigger, id.0, low));
                }
                let mut row = |key: String, value: u64| {
                    fake.put_bytes(Keys(WORK).state(COUNT_BUCKET, &key), value.to_string().into_bytes());
                };
                row("count/11".into(), 1);
                row("seen/11/0".into(), self.times);
                row("count/12".into(), self.counted);
                (0..52).for_each(|offset| row(format!("seen/12/{offset}"), 1));
            });
            world.each(OUT, |fake| fake.fill(OUT, OUT_A.0, texts(&self.out)));
            world.each(LOGS, |fake| fake.fill(LOGS, logs_topic(LOGS).0, texts(&self.logs)));
            EffectOnce::default().end(&world)
        }
    }

    #[test]
    fn each_event_has_its_effects_in_the_end() {
        assert_eq!(Run::good().end(), Ok(()));
        let broken = |change: fn(&mut Run)| {
            let mut run = Run::good();
            change(&mut run);
            run.end().is_err()
        };
        assert!(broken(|run| run.counted = 51));
        assert!(broken(|run| run.times = 2));
        assert!(broken(|run| run.low = 51));
        assert!(broken(|run| run.out.truncate(52)));
        assert!(broken(|run| run.out.push("count:12:3".into())));
        assert!(broken(|run| run.out.push("count:12:52".into())));
        assert!(broken(|run| run.logs.truncate(30)));
        assert!(broken(|run| run.logs.push("copy:12:50".into())));
        assert!(broken(|run| run.logs.push("copy:12:7".into())));
        assert!(broken(|run| run.dead = vec![0]));
        assert!(broken(|run| run.dead = vec![0, 50, 50]));
        assert!(broken(|run| run.dead = vec![0, 49, 50]));
    }

    #[test]
    fn an_effect_that_is_delivered_twice_is_seen_at_once() {
        let delivered = |offset, payload: &str| {
            let payload = payload.as_bytes().to_vec();
            Seen::Delivered { client: 9, topic: OUT_A.0, offset, producer: vec![2; 16], sequence: 1, payload }
        };
        let world = World::three();
        let tell = |seen: &[Seen]| {
            seen.iter()
                .try_fold(EffectOnce::default(), |mut invariant, seen| invariant.see(seen, &world).map(|()| invariant))
        };
        assert!(tell(&[delivered(0, "count:11:0"), delivered(0, "count:11:0"), delivered(1, "count:11:1")]).is_ok());
        assert!(tell(&[delivered(3, "aa:1"), delivered(4, "aa:1")]).is_ok());
        assert!(tell(&[delivered(0, "count:11:0"), delivered(1, "count:11:0")]).is_err());
    }
}
