//! A replica under whatever another peer sends it.

use std::cell::RefCell;
use std::rc::Rc;

use canal_consensus::convert;
use canal_consensus::core::group::{Group, Input, Install, Origin, Output, Persist};
use canal_consensus::core::keys::end_of;
use canal_consensus::core::kv::{Kv as _, KvError, MemoryKv, WriteBatch};
use canal_consensus::core::log::{Compacted, LogReader};
use canal_proto::log::{Kind, StateWrite};
use canal_proto::peer::{RaftMessage, Rows, Seed};
use canal_proto::{GroupId, PeerId};
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::bytes::Parts;
use super::history::{GROUP, TICKS, seed};

/// Steps of one input.
const MAX_STEPS: usize = 200;

/// Who sends.
const SENDER: PeerId = PeerId::from_public_key([2; 32]);

/// A log in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Rc<RefCell<Image>>);

#[derive(Debug, Clone, Default)]
struct Image {
    /// Index of the last entry that is gone.
    before: u64,
    entries: Vec<Entry>,
    hard_state: HardState,
    compacted: Option<Compacted>,
}

impl Image {
    fn place(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.before + 1)?).ok()
    }

    fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        let place = self.place(first.index);
        // what the log store refuses, as it would end the peer
        assert!(place.is_some_and(|place| place <= self.entries.len()), "an append that leaves a gap");
        self.entries.truncate(place.unwrap_or(0));
        self.entries.extend(entries);
    }
}

impl Log {
    /// A log with so many entries.
    pub(super) fn of(last: u64) -> Self {
        let entries = (1..=last).map(|index| Entry { index, term: 1, ..Entry::default() }).collect();
        Self(Rc::new(RefCell::new(Image { entries, ..Image::default() })))
    }
}

impl LogReader for Log {
    fn entries(&self, _: GroupId, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, KvError> {
        let image = self.0.borrow();
        let mut found: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let entry = image.place(index).and_then(|place| image.entries.get(place));
            let entry = entry.ok_or_else(|| KvError(format!("entry {index} is not in the log")))?;
            bytes += entry.data.len() as u64;
            if max_bytes.is_some_and(|max| bytes > max) && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, _: GroupId, index: u64) -> Result<Option<u64>, KvError> {
        let image = self.0.borrow();
        Ok(image.place(index).and_then(|place| image.entries.get(place)).map(|entry| entry.term))
    }
}

struct Victim {
    seed: Seed,
    log: Log,
    kv: MemoryKv,
    group: Group<Log>,
    logger: slog::Logger,
}

/// Messages to a replica of three (or, when the first byte is odd, of one), each with its length before it; an empty one
/// is a tick, one that can't be read some other input. It may refuse them, ask for help or stop in order: its commit index
/// never goes back, what it has applied is committed, and its votes are on disk before they are told.
pub fn replica(data: &[u8]) -> bool {
    let mut parts = Parts(data);
    let alone = parts.byte() % 2 == 1;
    let mut first = seed();
    if alone {
        first.first.truncate(1);
    }
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let (log, kv) = (Log::default(), MemoryKv::default());
    let Ok(group) = open(&first, &log, &kv, &logger) else { return false };
    let mut victim = Victim { seed: first, log, kv, group, logger };
    let mut heard = false;
    for _ in 0..MAX_STEPS {
        let Some(part) = parts.part() else { return heard };
        match RaftMessage::decode(part) {
            Ok(wire) if !part.is_empty() => {
                // most of an input is meant for this replica, whatever a mutation made of its address
                let wire = RaftMessage { to: if wire.to > 9 { 1 } else { wire.to }, ..wire };
                let Ok(message) = convert::from_wire(wire) else { continue };
                heard = true;
                victim.group.handle(Input::Message(SENDER, Box::new(message)), 1);
            }
            _ => victim.other(part),
        }
        if victim.turn().is_err() {
            return heard;
        }
    }
    heard
}

fn open(seed: &Seed, log: &Log, kv: &MemoryKv, logger: &slog::Logger) -> Result<Group<Log>, KvError> {
    let image = log.0.borrow().clone();
    let origin = Origin {
        seed: seed.clone(),
        reader: log.clone(),
        hard_state: image.hard_state,
        last: image.before + image.entries.len() as u64,
        log_bytes: 0,
        compacted: image.compacted,
    };
    Group::open(origin, TICKS, kv, logger)
}

impl Victim {
    fn other(&mut self, part: &[u8]) {
        let input = match part.len() % 4 {
            0 => Input::Tick,
            1 => Input::Campaign,
            2 => Input::Propose(1, Box::new(Kind::StateWrite(StateWrite::default()))),
            _ => {
                // the machine stops and starts again
                if let Ok(group) = open(&self.seed, &self.log, &self.kv, &self.logger) {
                    self.group = group;
                }
                return;
            }
        };
        self.group.handle(input, 1);
    }

    /// A turn as a peer takes it. An error is an end in order: the peer says why and stops.
    fn turn(&mut self) -> Result<(), KvError> {
        let before = self.group.status();
        let persist = self.group.prepare(1);
        let mut outputs = self.group.take_outputs();
        if let Some(Persist { entries, hard_state, install, .. }) = persist {
            let mut image = self.log.0.borrow_mut();
            image.append(entries);
            if let Some(hard_state) = hard_state {
                image.hard_state = hard_state;
            }
            drop(image);
            if let Some(install) = install {
                self.install(&install)?;
            }
        }
        let mut batch = WriteBatch::default();
        self.group.persisted(&self.kv, &mut batch)?;
        if let Some(hard_state) = self.group.must_persist() {
            self.log.0.borrow_mut().hard_state = hard_state;
        }
        self.kv.write(&batch);
        outputs.extend(self.group.take_outputs());
        let status = self.group.status();
        assert!(status.committed >= before.committed && status.applied >= before.applied, "it went back");
        assert!(status.applied <= status.committed && status.committed <= status.last, "applied and not committed");
        assert!(status.term >= before.term, "its term went back");
        let disk = self.log.0.borrow().hard_state.clone();
        for output in outputs {
            let Output::Send(messages) = output else { continue };
            for message in messages {
                let grants = message.msg_type == raft::eraftpb::MessageType::MsgRequestVoteResponse && !message.reject;
                assert!(
                    !grants || (disk.term == message.term && disk.vote == message.to),
                    "a vote that is not on disk"
                );
            }
        }
        Ok(())
    }

    fn install(&mut self, install: &Install) -> Result<(), KvError> {
        let prefix = GROUP.0.to_be_bytes();
        let rows = self.kv.scan(&prefix, &end_of(&prefix), usize::MAX, false)?;
        self.kv.write(&WriteBatch { ops: rows.into_iter().map(|(key, _)| (key, None)).collect() });
        let rows = Rows::decode(install.data.clone()).map_err(|e| KvError(e.to_string()))?.rows;
        let row = |row: canal_proto::peer::Row| ([&prefix[..], &row.key].concat().into(), Some(row.value));
        self.kv.write(&WriteBatch { ops: rows.into_iter().map(row).collect() });
        let (compacted, hard_state) = install.finish(&self.seed, &self.kv)?;
        let image = Image { before: compacted.index, entries: Vec::new(), hard_state, compacted: Some(compacted) };
        *self.log.0.borrow_mut() = image;
        self.group.installed(&self.kv)
    }
}
