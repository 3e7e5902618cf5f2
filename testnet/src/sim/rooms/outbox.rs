//! The outbox, as in the node: effects on topics of other groups are sent there, the front of each queue at a time, and
//! leave the queue once they are taken.

use std::collections::BTreeMap;

use canal_consensus::core::outgoing::{self, Batch};
use canal_consensus::{Refused, Reply, Status};
use canal_proto::log::Kind;
use canal_proto::{GroupId, TopicId};

use super::Place;
use super::timer::Timer;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};
use crate::sim::dht::Identities;
use crate::sim::seen::Seen;

/// Effects sent at a time to one topic.
const BATCH: usize = 256;
/// Bytes sent at a time to one topic, about.
const BATCH_BYTES: usize = 1 << 20;
/// Queues that are worked on at a time.
const AT_ONCE: usize = 32;
/// Wait after a failure; doubled up to the longest.
const FIRST_WAIT_MS: u64 = 50;
const LONGEST_WAIT_MS: u64 = 2000;
/// Machines that a batch is sent to before it rests.
const TRIES: usize = 6;

/// Empties the outbox for as long as the group is led here.
pub struct Room {
    peer: Machine,
    group: GroupId,
    identities: std::rc::Rc<Identities>,
    queues: BTreeMap<TopicId, Queue>,
    asked: BTreeMap<Token, TopicId>,
    tokens: Token,
    timer: Timer,
}

/// One topic's queue, as far as this leader has worked on it.
#[derive(Default)]
struct Queue {
    /// What is being delivered.
    batch: Option<Batch>,
    /// The question or proposal that is waited for.
    waits: Option<Token>,
    /// Who leads there, as far as is known.
    leader: Option<Machine>,
    /// Others that may know.
    others: Vec<Machine>,
    tries: usize,
    /// What was known led nowhere.
    fresh: bool,
    rests_until: u64,
    wait: u64,
}

impl Room {
    /// Of a group that has begun to be led.
    pub fn new(place: &Place, status: &Status) -> Self {
        Self {
            peer: place.peer,
            group: status.group,
            identities: place.identities.clone(),
            queues: BTreeMap::new(),
            asked: BTreeMap::new(),
            tokens: 0,
            timer: Timer::default(),
        }
    }

    fn token(&mut self, topic: TopicId) -> Token {
        self.tokens += 1;
        self.asked.insert(self.tokens, topic);
        if let Some(queue) = self.queues.get_mut(&topic) {
            queue.waits = Some(self.tokens);
        }
        self.tokens
    }

    /// Takes up the front of a queue.
    fn begin(&mut self, topic: TopicId, around: &mut dyn Around) {
        let Some(here) = around.replica() else { return };
        let Ok(Some(batch)) = outgoing::batch(here.kv(), self.group, topic, BATCH, BATCH_BYTES) else { return };
        let queue = self.queues.entry(topic).or_default();
        queue.batch = Some(batch);
        queue.tries = 0;
        self.send(topic, around);
    }

    /// Sends the batch to whoever may lead, or asks who does.
    fn send(&mut self, topic: TopicId, around: &mut dyn Around) {
        let Some(queue) = self.queues.get_mut(&topic) else { return };
        let Some(batch) = &queue.batch else { return };
        queue.tries += 1;
        if queue.tries > TRIES {
            return self.rest(topic, around);
        }
        match queue.leader.take().or_else(|| queue.others.pop()) {
            Some(to) => {
                let (group, count, first) = (self.group, batch.count(), batch.first);
                around.see(Seen::Sends { peer: self.peer, group, topic: topic.0, first, count });
                let append = Ask::Append(GroupId(batch.target.group), batch.item(group));
                // if it takes it, it is the one to go to next time
                queue.leader = Some(to);
                let token = self.token(topic);
                around.ask(token, to, append);
            }
            None => {
                let name = batch.target.name.clone();
                let ask = if queue.fresh { Ask::Afresh(name) } else { Ask::Route(name) };
                let token = self.token(topic);
                around.ask(token, self.peer, ask);
            }
        }
    }

    /// It did not work: later.
    fn rest(&mut self, topic: TopicId, around: &mut dyn Around) {
        let now = around.mono_ms();
        let Some(queue) = self.queues.get_mut(&topic) else { return };
        queue.batch = None;
        queue.waits = None;
        queue.fresh = true;
        queue.wait = if queue.wait == 0 { FIRST_WAIT_MS } else { (queue.wait * 2).min(LONGEST_WAIT_MS) };
        queue.rests_until = now + queue.wait;
        self.timer.wake_at(queue.rests_until, around);
    }

    /// The question of a queue, unless it was given up.
    fn answer_to(&mut self, token: Token) -> Option<TopicId> {
        let topic = self.asked.remove(&token)?;
        let queue = self.queues.get_mut(&topic)?;
        queue.waits.take_if(|waits| *waits == token).map(|_| topic)
    }

    fn sent(&mut self, topic: TopicId, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        let Some(queue) = self.queues.get_mut(&topic) else { return };
        match answer {
            Ok(Answer::Reply(Reply::Appended(results))) => {
                let Some(Ok(receipt)) = results.first() else {
                    // the topic has yet to be there, or another answer that time may change
                    return self.rest(topic, around);
                };
                let ack = queue.batch.as_ref().and_then(|batch| batch.acknowledged(u64::from(receipt.count)));
                let Some(ack) = ack else { return self.rest(topic, around) };
                let token = self.token(topic);
                if let Some(here) = around.replica() {
                    here.propose(token, Kind::OutboxAck(ack));
                }
            }
            Ok(Answer::Route(route)) => {
                let holder = |id: u64| route.replicas.iter().find(|replica| replica.id == id);
                queue.leader = holder(route.leader).and_then(|replica| self.identities.holder(replica));
                queue.others = route.replicas.iter().filter_map(|replica| self.identities.holder(replica)).collect();
                queue.others.retain(|other| Some(*other) != queue.leader);
                queue.fresh = false;
                if queue.leader.is_none() && queue.others.is_empty() {
                    return self.rest(topic, around);
                }
                self.send(topic, around);
            }
            Err(Failed::NotLeader(leader)) => {
                queue.leader = leader.filter(|leader| queue.leader != Some(*leader));
                queue.fresh = true;
                self.send(topic, around);
            }
            Err(Failed::NotHere | Failed::Silence) => {
                queue.leader = None;
                queue.fresh = true;
                self.send(topic, around);
            }
            Ok(_) | Err(Failed::Refused(_) | Failed::Error(_)) => self.rest(topic, around),
        }
    }
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let Some(here) = around.replica() else { return };
        if here.status().outbox == 0 {
            return;
        }
        let Ok(queues) = outgoing::queues(here.kv(), self.group) else { return };
        let mut next = u64::MAX;
        for (topic, _) in queues {
            let running = self.queues.values().filter(|queue| queue.waits.is_some()).count();
            let (busy, until) =
                self.queues.get(&topic).map_or((false, 0), |queue| (queue.waits.is_some(), queue.rests_until));
            if !busy && until > now {
                next = next.min(until);
            } else if !busy && running < AT_ONCE {
                self.begin(topic, around);
            }
        }
        if next < u64::MAX {
            self.timer.wake_at(next, around);
        }
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        if let Some(topic) = self.answer_to(token) {
            self.sent(topic, answer, around);
        }
    }

    fn proposed(&mut self, token: Token, reply: Result<Reply, Refused>, around: &mut dyn Around) {
        let Some(topic) = self.answer_to(token) else { return };
        if reply.is_err() {
            return self.rest(topic, around);
        }
        if let Some(queue) = self.queues.get_mut(&topic) {
            queue.batch = None;
            queue.wait = 0;
            queue.rests_until = 0;
        }
        self.wake(around);
    }

    fn describe(&self) -> String {
        let at: Vec<_> =
            self.queues.iter().map(|(topic, queue)| (topic.0, queue.batch.is_some(), queue.tries)).collect();
        format!("outbox of group {} on peer {}: (topic, under way, tries) {at:?}", self.group.0, self.peer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_proto::Receipt;
    use canal_proto::log::{AppendItem, OutboxAck};
    use canal_proto::request::Route;

    use super::*;
    use crate::sim::rooms::testing::World;

    fn append(world: &mut World) -> (Token, Machine, AppendItem) {
        let (token, to, Ask::Append(group, item)) = world.asks.remove(0) else { panic!("something else is asked") };
        assert_eq!(group, GroupId(3));
        (token, to, item)
    }

    #[test]
    fn an_effect_leaves_the_queue_when_the_other_group_has_it() {
        let mut world = World::new();
        let mut room = Room::new(&world.place(0), &world.here.status);
        room.wake(&mut world);
        assert!(world.asks.is_empty());
        world.here.emit_to(3, 21, "out/a", &["x", "y"]);
        room.wake(&mut world);
        room.wake(&mut world);
        let (token, to, Ask::Route(name)) = world.asks.remove(0) else { panic!("something else is asked") };
        assert_eq!((to, name.as_str(), world.asks.len()), (0, "out/a", 0));
        let replicas = vec![world.identities.replica(1, 1), world.identities.replica(2, 2)];
        room.answered(token, Ok(Answer::Route(Route { replicas, leader: 2, ..Route::default() })), &mut world);
        let (token, to, item) = append(&mut world);
        assert_eq!((to, item.first_sequence, item.events.len()), (2, 1, 2));
        room.answered(token, Err(Failed::NotLeader(Some(4))), &mut world);
        let (token, to, _) = append(&mut world);
        assert_eq!(to, 4);
        let receipt = Receipt { count: 1, ..Receipt::default() };
        room.answered(token, Ok(Answer::Reply(Reply::Appended(vec![Ok(receipt)]))), &mut world);
        let (token, Kind::OutboxAck(ack)) = world.here.proposed.remove(0) else { panic!("no acknowledgement") };
        assert_eq!(ack, OutboxAck { topic: 21, through: 1, refused: false });
        world.here.apply(Kind::OutboxAck(ack));
        room.proposed(token, Ok(Reply::Done), &mut world);
        let (_, to, item) = append(&mut world);
        assert_eq!((to, item.first_sequence, item.events.len()), (4, 2, 1));
        let sent = world.seen.iter().filter(|seen| matches!(seen, Seen::Sends { .. })).count();
        assert_eq!(sent, 3);
    }

    #[test]
    fn what_does_not_work_rests_and_is_sent_again() {
        let mut world = World::new();
        let mut room = Room::new(&world.place(0), &world.here.status);
        world.here.emit_to(3, 21, "out/a", &["x"]);
        room.wake(&mut world);
        let replicas = vec![world.identities.replica(1, 1)];
        let route = Answer::Route(Route { replicas, leader: 1, ..Route::default() });
        let mut tries = 0;
        while let Some((token, _, ask)) = world.asks.pop() {
            tries += 1;
            let answer = match ask {
                Ask::Append(..) => Err(Failed::Silence),
                _ => Ok(route.clone()),
            };
            room.answered(token, answer, &mut world);
        }
        assert!(tries <= 2 * TRIES);
        room.wake(&mut world);
        assert!(world.asks.is_empty());
        world.pass(FIRST_WAIT_MS);
        room.wake(&mut world);
        assert!(matches!(world.asks.as_slice(), [(_, 0, Ask::Afresh(_))]));
    }
}
