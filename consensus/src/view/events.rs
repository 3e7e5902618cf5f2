//! Where events are found: in segments, in the log, or in rows that came with a snapshot.
//!
//! An event below its topic's sealed offset is in a segment, and its file is looked at first. When the file is not here
//! yet, the log may still have the event; its locator says where. A replica that was filled by a snapshot has no log
//! of what came before, so the snapshot brought the events that were not in segments as rows of their own.
//!
//! Rows, files and log change while they are read: a segment may be named, its file made and its entries cut from the
//! log in between. So what seems to be nowhere is looked for once more before it counts as lacking.

use std::ops::Range;

use bytes::Bytes;
use canal_proto::event::Stored;
use canal_proto::log::{Command, Kind, Segment};
use canal_proto::{ContentHash, GroupId, TopicId};
use prost::Message as _;

use super::Error;
use crate::core::keys::{Keys, Table, end_of, tail_number};
use crate::core::kv::{Kv, KvError};
use crate::core::rows::{Locator, Topic};
use crate::core::txn::decode;
use crate::files::{self, Files};
use crate::log_store::LogStore;
use raft::eraftpb::Entry;

/// Events that are read from rows at a time: the largest fill 16 MiB.
const INLINE_ROWS: usize = 16;

/// What a peer holds beside rows: entries of logs, and files.
pub trait Content {
    /// An entry; none when it is not in the log.
    ///
    /// # Errors
    /// When the log fails, or the entry is damaged.
    fn entry(&self, group: GroupId, index: u64) -> Result<Option<Entry>, Error>;

    /// Whether a file is here.
    fn contains(&self, hash: &ContentHash) -> bool;

    /// As [`Files::events`].
    ///
    /// # Errors
    /// As there.
    fn segment(&self, segment: &Segment, from: u64, max: usize, bytes: usize) -> Result<Vec<Stored>, files::Error>;
}

/// The content of the stores on a disk.
pub(crate) struct OnDisk<'a> {
    pub log: &'a LogStore,
    pub files: &'a Files,
}

impl Content for OnDisk<'_> {
    fn entry(&self, group: GroupId, index: u64) -> Result<Option<Entry>, Error> {
        Ok(self.log.entry(group, index)?)
    }

    fn contains(&self, hash: &ContentHash) -> bool {
        self.files.contains(hash) || self.files.is_damaged(hash)
    }

    fn segment(&self, segment: &Segment, from: u64, max: usize, bytes: usize) -> Result<Vec<Stored>, files::Error> {
        self.files.events(segment, from, max, bytes)
    }
}

/// Finds the events of a group.
pub struct Source<'a> {
    /// The group.
    pub group: GroupId,
    /// Its rows.
    pub kv: &'a dyn Kv,
    /// What else there is of it.
    pub content: &'a dyn Content,
}

/// Events at consecutive offsets, as many as were asked for.
struct Batch {
    events: Vec<Stored>,
    next: u64,
    max: usize,
    bytes: usize,
    max_bytes: usize,
}

impl Batch {
    /// Takes the next event; one that came before is left out. `false`: it does not follow on, or there is no room.
    fn push(&mut self, stored: Stored) -> bool {
        if stored.offset < self.next {
            return true;
        }
        self.bytes = self.bytes.saturating_add(stored.event.encoded_len());
        if stored.offset > self.next || self.is_full() || (self.bytes > self.max_bytes && !self.events.is_empty()) {
            self.max = self.events.len();
            return false;
        }
        self.next += 1;
        self.events.push(stored);
        true
    }

    fn is_full(&self) -> bool {
        self.events.len() >= self.max
    }
}

impl Source<'_> {
    fn keys(&self) -> Keys {
        Keys(self.group)
    }

    /// At most `max` events of a topic from offset `from` on, and no more than about `max_bytes` (one in any case).
    /// Empty when there is none yet.
    ///
    /// # Errors
    /// As [`super::View::events`].
    pub fn events(&self, topic: TopicId, from: u64, max: usize, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        match self.look(topic, from, max, max_bytes) {
            Err(Error::Lacking) => self.look(topic, from, max, max_bytes),
            result => result,
        }
    }

    fn look(&self, topic: TopicId, from: u64, max: usize, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        let key = self.keys().topic_only(Table::Topics, topic);
        let Some(row) = self.kv.get(&key)? else { return Ok(Vec::new()) };
        let row: Topic = decode(&key, row)?;
        if from < row.oldest {
            return Err(Error::OutOfRange { oldest: row.oldest });
        }
        let mut batch = Batch { events: Vec::new(), next: from, max, bytes: 0, max_bytes };
        while batch.next < row.next && !batch.is_full() {
            let before = batch.next;
            if before >= row.sealed || !self.read_segment(topic, &mut batch)? {
                match self.read_log(topic, &mut batch) {
                    // what stands before it is whole; the next read begins with it
                    Err(_) if !batch.events.is_empty() => break,
                    read => read?,
                }
            }
            if batch.next == before {
                break;
            }
        }
        if batch.events.is_empty() && from < row.next && max > 0 { Err(Error::Lacking) } else { Ok(batch.events) }
    }

    /// Reads on in the segment that has the next event. `false`: there is none, or its file is not here or damaged.
    fn read_segment(&self, topic: TopicId, batch: &mut Batch) -> Result<bool, Error> {
        let prefix = self.keys().topic_only(Table::Segments, topic);
        let behind = self.keys().topic(Table::Segments, topic, batch.next.saturating_add(1));
        let Some((key, value)) = self.kv.scan(&prefix, &behind, 1, true)?.pop() else { return Ok(false) };
        let mut segment: Segment = decode(&key, value)?;
        let here =
            |segment: &Segment| ContentHash::from_slice(&segment.hash).is_ok_and(|hash| self.content.contains(&hash));
        if !here(&segment) {
            // it takes over the events of one before it, whose file stays until the new one is made
            let key = self.keys().topic(Table::Replaced, topic, segment.first);
            let Some(value) = self.kv.get(&key)? else { return Ok(false) };
            segment = decode(&key, value)?;
        }
        if segment.end() <= batch.next || !here(&segment) {
            return Ok(false);
        }
        let bytes = batch.max_bytes.saturating_sub(batch.bytes);
        match self.content.segment(&segment, batch.next, batch.max - batch.events.len(), bytes) {
            Ok(events) => {
                let _ = events.into_iter().all(|stored| batch.push(stored));
                Ok(true)
            }
            Err(files::Error::Missing(_)) => Ok(false),
            Err(error @ files::Error::Damaged { .. }) => {
                tracing::debug!(%topic, %error, "a segment is damaged; its events are read elsewhere");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads on by the locators of what is in the log, or came with a snapshot. Changes nothing if there is none.
    fn read_log(&self, topic: TopicId, batch: &mut Batch) -> Result<(), Error> {
        let prefix = self.keys().topic_only(Table::Events, topic);
        let behind = self.keys().topic(Table::Events, topic, batch.next.saturating_add(1));
        let Some((start, _)) = self.kv.scan(&prefix, &behind, 1, true)?.pop() else { return Ok(()) };
        let left = batch.max - batch.events.len();
        for (key, value) in self.kv.scan(&start, &end_of(&prefix), left.saturating_add(1), false)? {
            let locator: Locator = decode(&key, value)?;
            let base = tail_number(&key);
            let end = base.saturating_add(locator.count.into());
            if end <= batch.next {
                continue;
            }
            if base > batch.next || batch.is_full() {
                break;
            }
            match self.at(topic, base, locator)? {
                Some(events) => {
                    let _ = events.into_iter().all(|stored| batch.push(stored));
                }
                None => self.read_inline(topic, end, batch)?,
            }
            if batch.next < end {
                break;
            }
        }
        Ok(())
    }

    /// The run of events in the log that an event was appended with, and when that was; `None` when the log does not have it.
    ///
    /// # Errors
    /// When a store fails or is damaged.
    pub(super) fn appended(&self, topic: TopicId, offset: u64) -> Result<Option<(Range<u64>, u64)>, Error> {
        let prefix = self.keys().topic_only(Table::Events, topic);
        let behind = self.keys().topic(Table::Events, topic, offset.saturating_add(1));
        let Some((key, value)) = self.kv.scan(&prefix, &behind, 1, true)?.pop() else { return Ok(None) };
        let locator: Locator = decode(&key, value)?;
        let base = tail_number(&key);
        let run = base..base.saturating_add(locator.count.into());
        let Some(entry) = self.content.entry(self.group, locator.index)?.filter(|_| run.contains(&offset)) else {
            return Ok(None);
        };
        Ok(Command::decode(entry.data).ok().map(|command| (run, command.time_ms)))
    }

    /// The events that stand at one place of the log, if the log still has it.
    fn at(&self, topic: TopicId, base: u64, locator: Locator) -> Result<Option<Vec<Stored>>, Error> {
        let Some(entry) = self.content.entry(self.group, locator.index)? else { return Ok(None) };
        let damaged = |what: &dyn std::fmt::Display| {
            let place = format!("group {}: entry {} of the log", self.group, locator.index);
            KvError(format!(
                "{place} is damaged: {what}; remove this peer's data directory and let it join as a new peer"
            ))
        };
        let command = Command::decode(entry.data).map_err(|error| damaged(&error))?;
        let part = locator.part as usize;
        let events = match command.kind {
            Some(Kind::Append(mut append)) if part < append.items.len() => {
                let item = append.items.swap_remove(part);
                let numbered = item.events.into_iter().zip(base..).zip(item.first_sequence..);
                let producer = item.producer;
                numbered
                    .map(|((event, offset), sequence)| Stored { offset, event, producer: producer.clone(), sequence })
                    .collect()
            }
            Some(Kind::Outcomes(mut outcomes)) if part < outcomes.outcomes.len() => {
                let outcome = outcomes.outcomes.swap_remove(part);
                let here = outcome.emits.into_iter().filter(|emit| emit.target.topic == topic.0);
                here.zip(base..)
                    .map(|(emit, offset)| Stored { offset, event: emit.event, producer: Bytes::new(), sequence: 0 })
                    .collect()
            }
            _ => return Err(damaged(&"it should hold events").into()),
        };
        Ok(Some(events))
    }

    /// Reads on in the rows that came with a snapshot, up to `end`.
    fn read_inline(&self, topic: TopicId, end: u64, batch: &mut Batch) -> Result<(), Error> {
        while batch.next < end && !batch.is_full() {
            let from = self.keys().topic(Table::Inline, topic, batch.next);
            let behind = self.keys().topic(Table::Inline, topic, end);
            let rows = self.kv.scan(&from, &behind, INLINE_ROWS, false)?;
            let before = batch.next;
            for (key, value) in rows {
                if !batch.push(decode(&key, value)?) {
                    return Ok(());
                }
            }
            if batch.next == before {
                return Ok(());
            }
        }
        Ok(())
    }
}
