//! Single runs that a seed would meet too seldom: every message and every crash is placed by hand.

use bytes::Bytes;
use canal_proto::log::{AppendItem, GroupSpec, Kind, TopicSpec};
use canal_proto::peer::{Replica, Seed};
use canal_proto::{Event, GroupId, PeerId};
use raft::eraftpb::Message;

use super::disk::Write;
use super::node::{Node, Step};
use super::rng::Rng;
use super::{Sabotage, Setup};
use crate::core::group::{Group, Input, Output, Refused, SnapshotPoint, Status, Ticket};
use crate::core::kv::WriteBatch;
use crate::core::machine::Reply;

mod changes;
mod filling;

const SETUP: Setup = Setup { peers: 3, wanted: 3, first: 3, sabotage: Sabotage::None };

type Answer = (usize, Ticket, Result<Reply, Refused>);

/// Replicas whose messages wait until they are delivered.
struct Bench {
    nodes: Vec<Node>,
    network: Vec<(usize, Message)>,
    answers: Vec<Answer>,
    others: Vec<(usize, Output)>,
    /// Snapshots that were asked for, as they were then.
    frozen: Vec<(usize, SnapshotPoint, Bytes)>,
}

fn replica(id: u64) -> Replica {
    Replica { id, peer: vec![u8::try_from(id).unwrap(); 32], addresses: Vec::new() }
}

fn logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

fn arrives(from: usize, message: Message) -> Input {
    let peer = PeerId::from_public_key([u8::try_from(from + 1).unwrap(); 32]);
    Input::Message(peer, Box::new(message))
}

fn append(sequence: u64) -> AppendItem {
    let events = vec![Event::new(sequence.to_be_bytes().to_vec())];
    AppendItem { topic: 7, producer: Bytes::from_static(&[1; 16]), first_sequence: sequence, events, origin: 0 }
}

fn spec() -> Kind {
    let topics = vec![TopicSpec { id: 7, name: "t".into(), ..TopicSpec::default() }];
    Kind::Spec(GroupSpec { version: 1, topics, ..GroupSpec::default() })
}

impl Bench {
    /// Replicas 1 to `first`, of which the first has been told to lead, and a topic.
    fn new(first: u64) -> Self {
        let mut bench = Self {
            nodes: Vec::new(),
            network: Vec::new(),
            answers: Vec::new(),
            others: Vec::new(),
            frozen: Vec::new(),
        };
        (1..=first).for_each(|id| bench.add(first, id));
        bench.turn(0, vec![Input::Campaign]);
        bench.settle();
        bench.turn(0, vec![Input::Propose(1, Box::new(spec()))]);
        bench.settle();
        assert_eq!(bench.answer(1), Ok(Reply::Done));
        bench
    }

    fn add(&mut self, first: u64, id: u64) {
        let first = (1..=first).map(replica).collect();
        let seed = Seed { group: 1, first, replica: id, mesh: vec![9; 16], ..Seed::default() };
        let mut node = Node { seed: Some(seed), ..Node::default() };
        node.open(SETUP, 0, &logger()).unwrap();
        assert_eq!(node.group.as_ref().unwrap().id(), GroupId(1));
        self.nodes.push(node);
    }

    fn group(&mut self, at: usize) -> &mut Group<super::disk::MemoryLog> {
        self.nodes[at].group.as_mut().unwrap()
    }

    fn status(&self, at: usize) -> Status {
        self.nodes[at].group.as_ref().unwrap().status()
    }

    fn turn(&mut self, at: usize, inputs: Vec<Input>) {
        inputs.into_iter().for_each(|input| self.group(at).handle(input, 0));
        loop {
            let persist = self.group(at).prepare(0);
            self.take_outputs(at);
            let node = &mut self.nodes[at];
            let group = node.group.as_mut().unwrap();
            if let Some(persist) = persist {
                node.installing = persist.install.clone().map(|install| (0, Step::Remove, install));
                node.log.write(persist, true);
            }
            let mut batch = WriteBatch::default();
            group.persisted(&node.state.kv, &mut batch).unwrap();
            if let Some(hard_state) = group.must_persist() {
                node.log.write(Write { hard_state: Some(hard_state), sync: true, ..Write::default() }, true);
            }
            node.state.write(batch);
            self.take_outputs(at);
            if !self.group(at).has_work() {
                return;
            }
        }
    }

    fn take_outputs(&mut self, at: usize) {
        for output in self.group(at).take_outputs() {
            match output {
                Output::Send(messages) => self.network.extend(messages.into_iter().map(|m| (at, m))),
                Output::Reply(ticket, reply) => self.answers.push((at, ticket, reply)),
                Output::Effect(_) => {}
                Output::WantsSnapshot(point) => self.frozen.push((at, point, self.nodes[at].freeze(SETUP))),
                other => self.others.push((at, other)),
            }
        }
    }

    /// Delivers what `may` says, one message a turn, until nothing more is on its way; the rest stays.
    fn deliver(&mut self, may: impl Fn(usize, usize) -> bool) {
        let may = |from: usize, message: &Message| may(from, message.to as usize - 1);
        while let Some(at) = self.network.iter().position(|(from, message)| may(*from, message)) {
            let (from, message) = self.network.remove(at);
            let to = message.to as usize - 1;
            if to < self.nodes.len() {
                self.turn(to, vec![arrives(from, message)]);
            }
        }
    }

    fn settle(&mut self) {
        self.deliver(|_, _| true);
    }

    fn tick(&mut self, at: usize) {
        self.turn(at, vec![Input::Tick]);
    }

    /// The machine loses everything that it may lose, and starts again.
    fn lose_power(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        // the seed with which nothing unsynced is left is as good as any
        let mut rng = (0..).map(Rng::new).find(|rng| (0..8).all(|n| rng.clone().below(n + 2) == 0)).unwrap();
        let mut first = rng.clone();
        node.group = None;
        node.installing = None;
        node.log.crash(&mut first);
        node.state.crash(&mut rng);
        node.open(SETUP, 0, &logger()).unwrap();
        self.turn(at, Vec::new());
    }

    fn answer(&self, ticket: Ticket) -> Result<Reply, Refused> {
        self.answers.iter().find(|(_, known, _)| *known == ticket).map(|(_, _, reply)| reply.clone()).unwrap()
    }

    fn leads(&self, at: usize) -> bool {
        self.status(at).leads
    }
}

#[test]
fn a_publish_that_meets_the_news_of_a_new_leader_is_not_acknowledged_with_its_entry() {
    let mut bench = Bench::new(3);
    bench.turn(0, vec![Input::Append(2, append(1))]);
    bench.settle();
    assert!(matches!(bench.answer(2), Ok(Reply::Appended(_))));
    bench.turn(0, vec![Input::Transfer(2)]);
    // 2 is elected by 3; 1 hears nothing of it
    bench.deliver(|from, to| from == 0 || (from, to) == (2, 1) || (from, to) == (1, 2));
    assert!(bench.leads(0) && bench.leads(1));
    let other = AppendItem { producer: Bytes::from_static(&[2; 16]), ..append(1) };
    bench.turn(1, vec![Input::Append(3, other)]);
    bench.deliver(|from, to| (from, to) == (2, 1) || (from, to) == (1, 2));
    for _ in 0..2 {
        bench.tick(1);
        bench.deliver(|from, to| (from, to) == (2, 1) || (from, to) == (1, 2));
    }
    assert!(matches!(bench.answer(3), Ok(Reply::Appended(_))));
    // now all of it arrives at once, with a publish behind it
    let (late, rest) = bench.network.drain(..).partition(|(_, message)| message.to == 1);
    bench.network = rest;
    let late: Vec<(usize, Message)> = late;
    let mut inputs: Vec<_> = late.into_iter().map(|(from, message)| arrives(from, message)).collect();
    inputs.push(Input::Append(4, append(2)));
    inputs.push(Input::AddLearner(5, replica(9)));
    inputs.push(Input::Propose(6, Box::new(spec())));
    bench.turn(0, inputs);
    let status = bench.status(0);
    assert!(status.term > 1 && status.leader != 1, "{status:?}");
    for ticket in 4..=6 {
        assert_eq!(bench.answer(ticket), Err(Refused::NotLeader), "ticket {ticket}");
    }
}

#[test]
fn a_replica_that_forgets_what_it_applied_does_not_lead_by_an_old_configuration() {
    let mut bench = Bench::new(1);
    for id in 2..=3 {
        bench.turn(0, vec![Input::AddLearner(id, replica(id))]);
        bench.add(1, id);
        for _ in 0..4 {
            bench.tick(0);
            bench.settle();
        }
        assert_eq!(bench.answer(id), Ok(Reply::Done));
        assert_eq!(bench.status(id as usize - 1).applied, bench.status(0).applied);
    }
    for (ticket, id) in [(4, 2), (5, 3)] {
        bench.turn(0, vec![Input::Promote(ticket, id)]);
        bench.settle();
        assert_eq!(bench.answer(ticket), Ok(Reply::Done));
    }
    assert_eq!(bench.status(2).configuration.voters, [1, 2, 3]);
    // nothing of the first replica's state was flushed, nor was the index up to which the log is committed
    bench.lose_power(0);
    for _ in 0..40 {
        bench.tick(0);
        bench.deliver(|from, to| from == to);
        bench.network.retain(|(from, message)| *from != 0 && message.to != 1);
        assert!(!bench.leads(0), "alone, it leads by the configuration that it began with");
    }
    for _ in 0..60 {
        bench.tick(1);
        bench.tick(2);
        bench.deliver(|from, to| from != 0 && to != 0);
    }
    assert!(bench.leads(1) || bench.leads(2), "two of three are a majority");
    // and once it hears of the others, it follows
    for _ in 0..10 {
        (0..3).for_each(|at| bench.tick(at));
        bench.settle();
    }
    let status = |at: usize| bench.status(at);
    assert_eq!((status(0).applied, status(0).leader), (status(1).applied, status(1).leader));
    assert_eq!(status(0).configuration, status(1).configuration);
}

#[test]
fn a_voter_that_was_alone_once_does_not_lead_alone_again() {
    let mut bench = Bench::new(1);
    bench.turn(0, vec![Input::AddLearner(2, replica(2))]);
    bench.add(1, 2);
    for _ in 0..4 {
        bench.tick(0);
        bench.settle();
    }
    bench.turn(0, vec![Input::Promote(3, 2)]);
    assert_eq!(bench.answer(3), Ok(Reply::Done));
    assert_eq!(bench.status(0).configuration.voters, [1, 2]);
    // the other has not heard of it; this one forgets all that it may forget
    bench.network.clear();
    bench.lose_power(0);
    for _ in 0..40 {
        assert!(!bench.leads(0), "it leads by the configuration that it began with");
        bench.tick(0);
        bench.network.clear();
    }
}
