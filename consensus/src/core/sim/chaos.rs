//! Whatever a peer sends, a replica does not fall over: messages of every kind, with numbers near those that matter and
//! far from them, true ones among them that were changed. What they lead to may be nonsense; a panic is not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use canal_proto::PeerId;
use canal_proto::log::{Command, Kind, StateWrite};
use canal_proto::peer::{RaftEntry, RaftMessage, RaftSnapshot, Replica, Row, Rows, Seed};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::disk::Write;
use super::node::{Node, Step, common};
use super::rng::Rng;
use super::world::GROUP;
use super::{Sabotage, Setup};
use crate::convert;
use crate::core::group::{ChangeSet, Input, Output};
use crate::core::keys::{Keys, Table};
use crate::core::kv::WriteBatch;
use crate::core::rows::Applied;

const SETUP: Setup = Setup { peers: 3, wanted: 3, first: 3, sabotage: Sabotage::None };

/// A replica, and the last of what it said.
struct Victim {
    node: Node,
    rng: Rng,
    said: Vec<RaftMessage>,
    led: bool,
    filled: bool,
    logger: slog::Logger,
}

fn replica(id: u64) -> Replica {
    Replica { id, peer: vec![u8::try_from(id).unwrap(); 32], addresses: Vec::new() }
}

impl Victim {
    fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        let first = (1..=if seed.is_multiple_of(4) { 1 } else { 3 }).map(replica).collect();
        let replica = if seed.is_multiple_of(5) { 4 } else { 1 };
        let seed = Seed { group: GROUP.0, first, replica, mesh: vec![9; 16], ..Seed::default() };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = Node { seed: Some(seed), ..Node::default() };
        let mut victim = Self { node, rng, said: Vec::new(), led: false, filled: false, logger };
        victim.node.open(SETUP, 0, &victim.logger).unwrap();
        victim
    }

    /// A number as it may matter here, or any.
    fn number(&mut self) -> u64 {
        let status = self.node.group.as_ref().unwrap().status();
        let near = [0, 1, status.term, status.committed, status.applied, status.last, status.first, status.leader];
        let near = near[self.rng.below(near.len() as u64) as usize];
        match self.rng.below(20) {
            0..=9 => near,
            10..=13 => near + self.rng.below(4),
            14..=16 => near.saturating_sub(self.rng.below(4)),
            17 => 1 << self.rng.below(64),
            18 => u64::MAX - self.rng.below(3),
            _ => self.rng.next(),
        }
    }

    fn entry(&mut self, index: u64, term: u64) -> RaftEntry {
        let (mut entry_type, mut data) = (0, Vec::new());
        match self.rng.below(4) {
            0 => {}
            1 => {
                let write = StateWrite { bucket: "b".into(), ops: Vec::new() };
                data = Command { time_ms: 1, kind: Some(Kind::StateWrite(write)) }.encode_to_vec();
            }
            _ => {
                entry_type = 2;
                let mut change = ConfChangeV2::default();
                let singles = (0..self.rng.below(4)).map(|_| {
                    let mut single = ConfChangeSingle { node_id: self.rng.below(6), ..ConfChangeSingle::default() };
                    let kinds = [ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode];
                    single.set_change_type(kinds[self.rng.below(3) as usize]);
                    single
                });
                change.set_changes(singles.collect());
                data = change.write_to_bytes().unwrap();
            }
        }
        RaftEntry { entry_type, term, index, data: data.into(), ..RaftEntry::default() }
    }

    fn message(&mut self) -> RaftMessage {
        if let Some(said) = self.said.pop()
            && self.rng.chance(200)
        {
            return RaftMessage { from: said.to, to: said.from, ..said };
        }
        let own = self.node.seed.as_ref().unwrap().replica;
        let kinds = [3, 3, 3, 4, 4, 5, 6, 7, 7, 8, 8, 9, 14, 17, 18, 2, 15];
        let (index, log_term) = (self.number(), self.number());
        // terms only grow: a wild one makes everything after it old
        let wild = self.rng.chance(20);
        let now = self.node.group.as_ref().unwrap().status().term;
        let term =
            if wild { self.number() } else { (now + self.rng.below(16) / 14).saturating_sub(self.rng.below(10) / 9) };
        let mut message = RaftMessage {
            msg_type: kinds[self.rng.below(kinds.len() as u64) as usize],
            to: if self.rng.chance(980) { own } else { self.number() },
            from: 1 + self.rng.below(5),
            term,
            log_term,
            index,
            commit: self.number(),
            commit_term: if self.rng.chance(500) { 0 } else { self.number() },
            reject: self.rng.chance(300),
            reject_hint: self.number(),
            request_snapshot: if self.rng.chance(800) { 0 } else { self.number() },
            priority: if self.rng.chance(900) { 0 } else { self.rng.next() as i64 },
            context: self.rng.next().to_be_bytes().to_vec().into(),
            ..RaftMessage::default()
        };
        let straight = self.rng.chance(900);
        if message.msg_type == 8 && self.rng.chance(995) {
            // beyond the log, it would be the end of the run
            let last = self.node.group.as_ref().unwrap().status().last;
            message.commit = message.commit.min(last);
        }
        if message.msg_type == 3 {
            for n in 0..self.rng.below(5) {
                let (at, of) =
                    if straight { (index.wrapping_add(1 + n), term) } else { (self.number(), self.number()) };
                let entry = self.entry(at, of);
                message.entries.push(entry);
            }
        }
        if message.msg_type == 7 && self.rng.chance(950) {
            let ids = |rng: &mut Rng, most| -> Vec<u64> { (0..rng.below(most)).map(|_| rng.below(6)).collect() };
            let voters = if straight { vec![own, 2 + self.rng.below(2)] } else { ids(&mut self.rng, 4) };
            let log_term = if straight { log_term.clamp(1, term.max(1)) } else { log_term };
            let applied = Applied { index, term: log_term, began: 1 };
            let mut rows = common(&self.node.state);
            rows.push(Row { key: Keys(GROUP).one(Table::Applied), value: applied.encode_to_vec().into() });
            message.snapshot = Some(RaftSnapshot {
                data: Rows { rows }.encode_to_vec().into(),
                index,
                term: log_term,
                voters,
                learners: if straight { vec![] } else { ids(&mut self.rng, 3) },
                voters_outgoing: if straight { vec![] } else { ids(&mut self.rng, 3) },
                learners_next: if straight { vec![] } else { ids(&mut self.rng, 2) },
                auto_leave: self.rng.chance(200),
            });
        }
        message
    }

    fn input(&mut self) -> Option<Input> {
        Some(match self.rng.below(40) {
            0..=5 => Input::Tick,
            6 => Input::Campaign,
            7 => Input::Transfer(self.rng.below(6)),
            8 => Input::Unreachable(self.rng.below(6)),
            9 => Input::SnapshotLost(self.rng.below(6)),
            10 => Input::Change(0, ChangeSet { promote: vec![self.rng.below(6)], remove: vec![self.rng.below(6)] }),
            11 => Input::AddLearner(0, replica(self.rng.below(9))),
            12 => Input::Propose(0, Box::new(Kind::StateWrite(StateWrite::default()))),
            13 => Input::Read(self.rng.next()),
            _ => {
                let message = convert::from_wire(self.message()).ok()?;
                Input::Message(PeerId::from_public_key([7; 32]), Box::new(message))
            }
        })
    }

    /// A turn with some inputs. An error is an end in order: the peer says why and stops.
    fn turn(&mut self) -> Result<(), String> {
        for _ in 0..1 + self.rng.below(6) {
            if let Some(input) = self.input() {
                self.node.group.as_mut().unwrap().handle(input, 1);
            }
        }
        let node = &mut self.node;
        let group = node.group.as_mut().unwrap();
        let mut write = Write::default();
        if self.rng.chance(100) {
            node.state.flush();
            write.compact = group.compact(node.state.flushed_to(GROUP)).map_err(|e| e.0)?;
        }
        let persist = group.prepare(1);
        let mut outputs = group.take_outputs();
        let install = persist.as_ref().and_then(|persist| persist.install.clone());
        if let Some(persist) = persist {
            write = Write { compact: write.compact, ..persist.into() };
        }
        node.log.write(write, true);
        if let Some(install) = install {
            self.filled = true;
            for step in [Step::Remove, Step::Fill] {
                node.install(step, &install, SETUP)?;
            }
            node.install(Step::Finish, &install, SETUP)?;
            node.group.as_mut().unwrap().installed(&node.state.kv).map_err(|e| e.0)?;
        }
        let group = node.group.as_mut().unwrap();
        let mut batch = WriteBatch::default();
        group.persisted(&node.state.kv, &mut batch).map_err(|e| e.0)?;
        if let Some(hard_state) = group.must_persist() {
            node.log.write(Write { hard_state: Some(hard_state), sync: true, ..Write::default() }, true);
        }
        node.state.write(batch);
        let status = group.status();
        node.applied = node.applied.max(status.applied);
        self.led |= status.leader == status.replica;
        outputs.extend(group.take_outputs());
        for output in outputs {
            match output {
                Output::Send(messages) => self.said.extend(messages.into_iter().map(convert::to_wire)),
                Output::WantsSnapshot(point) => {
                    let data = node.freeze(SETUP);
                    node.group.as_mut().unwrap().handle(Input::SnapshotReady(point, data), 1);
                }
                Output::Forgotten { .. } => return Err("forgotten".into()),
                _ => {}
            }
        }
        if self.rng.chance(10) {
            self.node.crash(&mut self.rng);
            if self.rng.chance(300) {
                self.node.state.damage(&[]);
            }
            self.node.open(SETUP, 1, &self.logger)?;
        }
        self.said.truncate(64);
        Ok(())
    }
}

#[test]
fn no_message_makes_a_replica_panic() {
    let one: Option<u64> = std::env::var("CANAL_SEED").ok().map(|text| text.parse().unwrap());
    let seeds: u64 = std::env::var("CANAL_SEEDS").map_or(400, |text| text.parse().unwrap());
    let (mut turns, mut applied, mut led, mut filled) = (0, 0, 0, 0);
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let mut victim = Victim::new(seed);
        let run = catch_unwind(AssertUnwindSafe(|| {
            for turn in 0..300 {
                if victim.turn().is_err() {
                    return turn;
                }
            }
            300
        }));
        match run {
            Ok(survived) => turns += survived,
            Err(_) => panic!("seed {seed}: replay: CANAL_SEED={seed} cargo test -p canal-consensus --lib sim::chaos"),
        }
        applied += u64::from(victim.node.applied > 0);
        led += u64::from(victim.led);
        filled += u64::from(victim.filled);
    }
    let met = [turns / 20, applied, 4 * led, 4 * filled];
    assert!(one.is_some() || met.iter().all(|times| *times > seeds / 4), "{met:?} in {seeds} seeds");
}
