//! Reads and writes that claim linearizability are linearizable: rows of a bucket as registers, and publishes to a topic. An
//! offset says where in the one order a publish took effect, so those need no search: an event that is sent when another is
//! known to stand at an offset, by a receipt or because a subscriber has it, stands behind that one.
//!
//! Source: Herlihy and Wing, "Linearizability" (1990); Ongaro's thesis (2014), section 6.4, for reads by a leader that has
//! confirmed its leadership. The history is checked as a whole in the end, by [`crate::sim::linear`].

use std::collections::{BTreeMap, VecDeque};

use super::ensure;
use super::read::hex;
use crate::sim::linear::History;
use crate::sim::seen::{Invariant, Look, Seen};

/// What was sent at once: its first sequence, and the first offset that was free then.
type Sent = (u64, u64);

/// The history of all registers, and of all topics.
#[derive(Debug, Default)]
pub(super) struct Linearizable {
    history: History,
    /// By topic: the first offset at which nobody is known to stand.
    free: BTreeMap<u64, u64>,
    /// By topic and producer.
    sent: BTreeMap<(u64, Vec<u8>), VecDeque<Sent>>,
}

impl Linearizable {
    fn stands(&mut self, topic: u64, offset: u64) {
        let free = self.free.entry(topic).or_default();
        *free = (*free).max(offset + 1);
    }

    /// The events from sequence `first` on stand from `offset` on.
    fn published(&mut self, topic: u64, producer: &[u8], first: u64, count: u64, offset: u64) -> Result<(), String> {
        let Some(sent) = self.sent.get_mut(&(topic, producer.to_vec())) else { return Ok(()) };
        while sent.get(1).is_some_and(|(next, _)| *next <= first) {
            sent.pop_front();
        }
        for (begin, free) in sent.iter().take_while(|(begin, _)| *begin < first + count) {
            let sequence = first.max(*begin);
            let at = offset + (sequence - first);
            ensure(at >= *free, || {
                let of = hex(producer);
                format!(
                    "event {sequence} of producer {of} stands in topic {topic} at {at}, though an event stood at {} before \
                     it was sent",
                    free - 1
                )
            })?;
        }
        Ok(())
    }
}

impl Invariant for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Invoked { .. } | Seen::Returned { .. } | Seen::Lost { .. } => self.history.see(seen),
            Seen::Publishes { topic, producer, first, .. } => {
                let free = self.free.get(topic).copied().unwrap_or_default();
                self.sent.entry((*topic, producer.clone())).or_default().push_back((*first, free));
            }
            Seen::Acknowledged { topic, producer, first, count, offset: Some(offset), .. } => {
                self.published(*topic, producer, *first, *count, *offset)?;
                self.stands(*topic, offset + count.saturating_sub(1));
            }
            Seen::Delivered { topic, offset, .. } => self.stands(*topic, *offset),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, _: &dyn Look) -> Result<(), String> {
        let found = self.history.check();
        ensure(found.is_ok(), || found.err().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{World, caught, holds};
    use super::*;

    fn write(operation: u64, value: u8) -> [Seen; 2] {
        let write = Some(vec![value]);
        [
            Seen::Invoked { client: 9, operation, register: "r".into(), write },
            Seen::Returned { client: 9, operation, read: None },
        ]
    }

    fn read(operation: u64, value: u8) -> [Seen; 2] {
        [
            Seen::Invoked { client: 8, operation, register: "r".into(), write: None },
            Seen::Returned { client: 8, operation, read: Some(vec![value]) },
        ]
    }

    fn sent(producer: u8, first: u64, count: u8) -> Seen {
        let payloads = vec![Vec::new(); count.into()];
        Seen::Publishes { client: 9, topic: 1, producer: vec![producer], first, payloads }
    }

    fn receipt(producer: u8, first: u64, count: u64, offset: u64) -> Seen {
        Seen::Acknowledged { client: 9, topic: 1, producer: vec![producer], first, count, offset: Some(offset) }
    }

    #[test]
    fn what_is_sent_later_stands_behind() {
        let world = World::three();
        // what is sent at once may stand in any order
        let at_once = [sent(1, 1, 2), sent(2, 1, 1), receipt(2, 1, 1, 5), receipt(1, 1, 2, 3)];
        holds(&mut Linearizable::default(), &world, &at_once);
        let later = [sent(1, 1, 1), receipt(1, 1, 1, 5), sent(2, 1, 1), receipt(2, 1, 1, 6)];
        holds(&mut Linearizable::default(), &world, &later);
        let before = [sent(1, 1, 1), receipt(1, 1, 1, 5), sent(2, 1, 1), receipt(2, 1, 1, 4)];
        caught(&mut Linearizable::default(), &world, &before);
        // one receipt for what was sent before and after
        let both =
            |offset| [sent(2, 1, 1), sent(1, 1, 1), receipt(1, 1, 1, 5), sent(2, 2, 1), receipt(2, 1, 2, offset)];
        holds(&mut Linearizable::default(), &world, &both(6));
        caught(&mut Linearizable::default(), &world, &both(3));
        let producer = Vec::new();
        let seen = Seen::Delivered { client: 8, topic: 1, offset: 7, producer, sequence: 0, payload: Vec::new() };
        caught(&mut Linearizable::default(), &world, &[seen, sent(1, 1, 1), receipt(1, 1, 1, 7)]);
    }

    #[test]
    fn a_read_sees_the_write_before_it() {
        let world = World::three();
        holds(&mut Linearizable::default(), &world, &[write(1, 1), read(1, 1), write(2, 2), read(2, 2)].concat());
        caught(&mut Linearizable::default(), &world, &[write(1, 1), write(2, 2), read(1, 1)].concat());
    }
}
