//! All subscribers of a topic see the same events at the same offsets, each without a gap.
//!
//! Source: DESIGN, promise 3 ("one order"). A subscriber may begin anywhere, and may be given again what it was given
//! before; behind what it has, the next offset comes next.

use std::collections::BTreeMap;

use super::ensure;
use super::read::{digest, hex};
use crate::sim::around::Machine;
use crate::sim::seen::{Invariant, Look, Seen};

/// What subscribers were given.
#[derive(Debug, Default)]
pub(super) struct SubscriberOrder {
    /// By topic and offset: producer, sequence, payload.
    events: BTreeMap<(u64, u64), u64>,
    /// By subscriber and topic: the first offset that it was given, and the next.
    spans: BTreeMap<(Machine, u64), (u64, u64)>,
}

impl Invariant for SubscriberOrder {
    fn name(&self) -> &'static str {
        "subscriber_order"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        let Seen::Delivered { client, topic, offset, producer, sequence, payload } = seen else { return Ok(()) };
        let event = digest(&[producer.as_slice(), &sequence.to_be_bytes(), payload].concat());
        let known = *self.events.entry((*topic, *offset)).or_insert(event);
        ensure(known == event, || {
            let (of, text) = (hex(producer), String::from_utf8_lossy(payload));
            format!(
                "client {client} got event {sequence} of {of} (`{text}`) at offset {offset} of topic {topic}; another got another"
            )
        })?;
        let (first, next) = self.spans.entry((*client, *topic)).or_insert((*offset, *offset));
        ensure((*first..=*next).contains(offset), || {
            format!("client {client} got offset {offset} of topic {topic}, after {first} to {next}")
        })?;
        *next = (*next).max(offset + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{World, caught, holds};
    use super::*;

    fn delivered(client: usize, offset: u64, payload: &str) -> Seen {
        let (producer, payload) = (vec![1; 16], payload.as_bytes().to_vec());
        Seen::Delivered { client, topic: 11, offset, producer, sequence: offset + 1, payload }
    }

    #[test]
    fn the_same_events_without_a_gap() {
        let world = World::default();
        let mut invariant = SubscriberOrder::default();
        let seen = [delivered(8, 0, "a"), delivered(8, 1, "b"), delivered(9, 1, "b"), delivered(9, 2, "c")];
        holds(&mut invariant, &world, &seen);
        holds(&mut invariant, &world, &[delivered(8, 1, "b"), delivered(8, 2, "c")]);
        caught(&mut invariant, &world, &[delivered(8, 4, "e")]);
        caught(&mut invariant, &world, &[delivered(9, 0, "a")]);
        caught(&mut invariant, &world, &[delivered(7, 1, "x")]);
    }
}
