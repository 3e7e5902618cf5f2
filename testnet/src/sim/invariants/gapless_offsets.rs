//! The events of a topic stand at the offsets 0, 1, 2 … without gaps, from its oldest event to its next offset, at every
//! replica that can be asked.
//!
//! Source: DESIGN, words ("topic: … offsets 0, 1, 2 … without gaps") and promise 3. During the run the topics' rows are
//! looked at, and of one replica and topic at a time the events, seldom: to read all of a topic grows with the run.

use std::collections::BTreeMap;

use canal_consensus::core::rows::Topic;
use canal_proto::event::Stored;
use canal_proto::{GroupId, TopicId};

use super::ensure;
use super::read::{Standing, standing, topic, topics, voters};
use crate::sim::seen::{Invariant, Look};

/// Looks (of a simulated second each) between two readings of a topic.
const READ_EVERY: u64 = 10;

/// What was seen of topics.
#[derive(Debug, Default)]
pub(super) struct GaplessOffsets {
    looks: u64,
    /// By group, replica and topic: how far its rows had come, and the topic's next and oldest offset.
    heads: BTreeMap<(GroupId, u64, TopicId), (u64, u64, u64)>,
}

impl GaplessOffsets {
    fn rows(&mut self, group: GroupId, id: TopicId, (replica, status): &Standing<'_>) -> Result<(), String> {
        let Some(row) = topic(replica.as_ref(), group, id)? else { return Ok(()) };
        let Topic { oldest, sealed, next, .. } = row;
        let name = status.replica;
        ensure(oldest <= sealed && sealed <= next, || {
            format!("topic {id} at replica {name} of group {group}: oldest {oldest}, sealed {sealed}, next {next}")
        })?;
        let now = (status.applied, next, oldest);
        let known = self.heads.insert((group, name, id), now);
        // a crash may set a replica back, to fewer entries and fewer events
        let grows = known.is_none_or(|(applied, head, low)| applied > now.0 || (head <= now.1 && low <= now.2));
        ensure(grows, || format!("topic {id} at replica {name} of group {group} went from {known:?} to {now:?}"))
    }
}

/// Whether events follow on from each other, and from the row's bounds as far as they are there.
fn follow_on(events: &[Stored], row: &Topic, whole: bool) -> Result<(), String> {
    for pair in events.windows(2) {
        if let [one, two] = pair {
            ensure(two.offset == one.offset + 1, || format!("offset {} is followed by {}", one.offset, two.offset))?;
        }
    }
    let first = events.first().map_or(row.next, |event| event.offset);
    let end = events.last().map_or(first, |event| event.offset + 1);
    ensure(end <= row.next && first >= row.oldest, || format!("events {first} to {end} are not within {row:?}"))?;
    ensure(!whole || (first == row.oldest && end == row.next), || {
        format!("events {first} to {end} are all that there is of {row:?}")
    })
}

fn read(group: GroupId, id: TopicId, (replica, status): &Standing<'_>, whole: bool) -> Result<(), String> {
    let Some(row) = topic(replica.as_ref(), group, id)? else { return Ok(()) };
    let found = follow_on(&replica.events(id), &row, whole);
    found.map_err(|text| format!("topic {id} at replica {} of group {group}: {text}", status.replica))
}

impl Invariant for GaplessOffsets {
    fn name(&self) -> &'static str {
        "gapless_offsets"
    }

    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        self.looks += 1;
        let turn = (self.looks.is_multiple_of(READ_EVERY)).then_some(self.looks / READ_EVERY);
        let mut at = 0;
        for group in look.groups() {
            let mut standing = standing(look, group);
            let topics = topics(&standing);
            standing.retain(|(_, status)| !status.hollow && !status.installing);
            for (id, _) in &topics {
                standing.iter().try_for_each(|replica| self.rows(group, *id, replica))?;
                if turn.is_some_and(|turn| turn % 4 == at % 4)
                    && let Some(replica) = standing.get(self.looks as usize % standing.len().max(1))
                {
                    read(group, *id, replica, false)?;
                }
                at += 1;
            }
        }
        Ok(())
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            let voters = voters(look, group);
            for (id, _) in topics(&voters) {
                voters.iter().try_for_each(|voter| read(group, id, voter, true))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use canal_consensus::core::keys::{Keys, Table};

    use super::super::fake::{GROUP, World, stored};
    use super::*;

    const TOPIC: u64 = 11;

    fn world(offsets: &[u64], row: Topic) -> World {
        let mut world = World::three();
        world.add(GROUP, &[(TOPIC, "in/a")]);
        let events: Vec<Stored> = offsets.iter().map(|offset| stored(*offset, 1, offset + 1, "")).collect();
        world.each(GROUP, |fake| {
            fake.fill(GROUP, TOPIC, events.clone());
            fake.put(Keys(GROUP).topic_only(Table::Topics, TopicId(TOPIC)), &row);
        });
        world
    }

    fn end(offsets: &[u64], row: Topic) -> Result<(), String> {
        GaplessOffsets::default().end(&world(offsets, row))
    }

    #[test]
    fn every_offset_has_an_event_in_the_end() {
        let row = |oldest, next| Topic { oldest, sealed: oldest, next, ..Topic::default() };
        assert_eq!(end(&[], row(0, 0)), Ok(()));
        assert_eq!(end(&[0, 1, 2], row(0, 3)), Ok(()));
        assert_eq!(end(&[5, 6], row(5, 7)), Ok(()));
        assert!(end(&[0, 2], row(0, 3)).is_err());
        assert!(end(&[0, 1], row(0, 3)).is_err());
        assert!(end(&[1, 2], row(0, 3)).is_err());
        assert!(end(&[], row(0, 3)).is_err());
        assert!(end(&[0, 1, 2, 3], row(0, 3)).is_err());
    }

    #[test]
    fn one_replica_that_lacks_an_event_is_enough() {
        let mut world = world(&[0, 1, 2], Topic { next: 3, ..Topic::default() });
        world.one(3).events.insert(TOPIC, vec![stored(0, 1, 1, ""), stored(2, 1, 3, "")]);
        assert!(GaplessOffsets::default().end(&world).is_err());
        let looks = |world: &World| {
            let mut invariant = GaplessOffsets::default();
            (0..300).try_for_each(|_| invariant.look(world))
        };
        assert!(looks(&world).is_err());
        world.one(3).events.insert(TOPIC, Vec::new());
        assert!(looks(&world).is_ok(), "what is not there yet may come");
    }

    #[test]
    fn a_topic_does_not_shrink() {
        let row = |next| Topic { next, ..Topic::default() };
        let mut invariant = GaplessOffsets::default();
        let mut at = |applied: u64, next: u64| {
            let mut world = world(&[], row(next));
            world.each(GROUP, |fake| fake.status.applied = applied);
            invariant.look(&world).is_ok()
        };
        assert!(at(5, 2) && at(6, 3) && at(4, 1) && at(6, 3));
        assert!(!at(7, 2));
    }
}
