//! What must hold, whatever happens: told of everything from outside, it knows no internals of a replica.
//!
//! Election safety, log matching and state machine safety are figure 3 of "In Search of an Understandable Consensus
//! Algorithm" (Ongaro, Ousterhout, 2014); reads are linearizable as in section 6.4 of Ongaro's thesis.

use std::collections::BTreeMap;

use canal_proto::log::{Command, Kind};
use canal_proto::peer::Row;
use raft::eraftpb::Entry;

use super::disk::Image;

/// What was broken.
pub(super) type Check = Result<(), String>;

/// Everything that was promised so far.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    leaders: BTreeMap<u64, u64>,
    applied: Vec<Entry>,
    states: BTreeMap<u64, Vec<Row>>,
    acked: BTreeMap<(usize, u64), u64>,
    /// Behind the highest offset that was acknowledged.
    pub(super) head: u64,
    /// Reads that were confirmed.
    pub(super) reads: u64,
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

impl Oracle {
    /// Election safety: at most one leader a term.
    pub(super) fn leads(&mut self, term: u64, replica: u64) -> Check {
        let known = *self.leaders.entry(term).or_insert(replica);
        ensure(known == replica, || format!("replicas {known} and {replica} both lead term {term}"))
    }

    /// State machine safety: all replicas apply the same entry at an index, in order, also again after a restart.
    pub(super) fn applies(&mut self, entry: &Entry) -> Check {
        let at = entry.index as usize - 1;
        if at == self.applied.len() {
            self.applied.push(entry.clone());
        }
        let known = self.applied.get(at);
        ensure(known == Some(entry), || format!("entry {} was applied as {known:?} and as {entry:?}", entry.index))
    }

    /// The entry that was applied at an index.
    pub(super) fn entry(&self, index: u64) -> Option<&Entry> {
        self.applied.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }

    /// Its term.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        self.entry(index).map(|entry| entry.term)
    }

    /// Whoever has applied so much has the same rows, whether entry by entry or from a snapshot.
    pub(super) fn state(&mut self, index: u64, rows: &[Row]) -> Check {
        let known = self.states.entry(index).or_insert_with(|| rows.to_vec());
        ensure(known == rows, || {
            let only = |one: &[Row], other: &[Row]| one.iter().filter(|row| !other.contains(row)).cloned().collect();
            let (one, other): (Vec<Row>, Vec<Row>) = (only(known, rows), only(rows, known));
            format!("two replicas have applied {index} entries and come to other rows: {one:?}, {other:?}")
        })
    }

    /// Log matching, on what is still in two logs; and of what is gone from one, the other has what was applied.
    pub(super) fn logs_match(&self, one: &Image, other: &Image) -> Check {
        let low = one.before().max(other.before()) + 1;
        let high = one.last().min(other.last());
        let alike = |index: &u64| one.get(*index).map(|e| e.term) == other.get(*index).map(|e| e.term);
        let Some(highest) = (low..=high).rev().find(alike) else { return Ok(()) };
        for index in low..=highest {
            ensure(one.get(index) == other.get(index), || {
                format!("two logs are alike at entry {highest}, but not at {index} before it")
            })?;
        }
        Ok(())
    }

    /// An event has one offset, whoever answers.
    pub(super) fn acks(&mut self, client: usize, first: u64, offset: Option<u64>, count: u64) -> Check {
        let offset = offset.ok_or("a retry inside the window got no offset")?;
        for n in 0..count {
            let known = *self.acked.entry((client, first + n)).or_insert(offset + n);
            ensure(known == offset + n, || {
                format!("event {} of client {client} was acknowledged at {known} and at {}", first + n, offset + n)
            })?;
            self.head = self.head.max(offset + n + 1);
        }
        Ok(())
    }

    /// A gap is only answered to what really skips, and an acknowledged sequence is never expected again.
    pub(super) fn gap(&self, client: usize, sent: u64, expected: u64) -> Check {
        ensure(expected < sent && !self.acked.contains_key(&(client, expected)), || {
            format!("client {client} sent {sent} and was told that {expected} is next, which was acknowledged")
        })
    }

    /// A confirmed read sees everything that was acknowledged before it began.
    pub(super) fn reads(&mut self, floor: u64, seen: u64) -> Check {
        self.reads += 1;
        ensure(seen >= floor, || format!("a read saw {seen} events after {floor} were acknowledged"))
    }

    /// At the end: the topic holds every acknowledged event at its offset, none twice, each producer's in order.
    pub(super) fn topic(&self, events: &[(usize, u64)]) -> Check {
        let mut last = BTreeMap::new();
        for (offset, (client, sequence)) in events.iter().enumerate() {
            let before = last.insert(*client, *sequence).unwrap_or(0);
            ensure(*sequence == before + 1, || {
                format!("client {client}: event {sequence} stands at offset {offset}, after event {before}")
            })?;
        }
        for ((client, sequence), offset) in &self.acked {
            let found = events.get(*offset as usize);
            ensure(found == Some(&(*client, *sequence)), || {
                format!("event {sequence} of client {client}, acknowledged at {offset}: found {found:?}")
            })?;
        }
        Ok(())
    }

    /// Events acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.acked.len()
    }
}

/// The events that stand at one place of an entry: client and sequence, as payloads say.
pub(super) fn events_at(entry: &Entry, part: u32) -> Result<Vec<(usize, u64)>, String> {
    use prost::Message as _;
    let command = Command::decode(entry.data.clone()).map_err(|e| e.to_string())?;
    let Some(Kind::Append(append)) = command.kind else { return Err(format!("entry {} has no events", entry.index)) };
    let item = append.items.get(part as usize).ok_or("a locator points behind the entry")?;
    let client = usize::from(item.producer[0]);
    let read = |event: &canal_proto::Event| u64::from_be_bytes(event.payload[..8].try_into().unwrap());
    Ok(item.events.iter().map(|event| (client, read(event))).collect())
}
