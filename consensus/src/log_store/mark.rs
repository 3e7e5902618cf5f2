//! How far the log was on disk for certain: what tells a torn tail from damage.
//!
//! A crash may leave anything behind the last sync, and opening cuts that off. The same cut made *before* that place
//! would throw away votes and entries that this peer has promised to keep. So after each sync the place is noted in the
//! file `SYNCED`: which files each of raft-engine's two queues has, and up to where the last of them is synced.
//!
//! The note is written behind the sync and not synced itself on the hot path: it may be older than the log (after a loss
//! of power by a few seconds), never newer. What lies between an older note and the end of the log counts as a tail. The
//! one thing that may not be older is which files are gone, so that is synced before a file is removed or used again.
//!
//! Two slots are written in turn, each with a number and a sum, so a torn note leaves the one before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _};

/// The note's name in the log's directory.
pub(super) const NAME: &str = "SYNCED";
const MAGIC: &[u8; 8] = b"canalsyn";
const VERSION: u32 = 1;
/// Bytes of a slot that are used.
const SLOT: usize = 8 + 4 + 8 + 2 * 24 + SUM;
/// Where the second slot begins: a page apart, so that no write touches both.
const SECOND: u64 = 4096;
const SUM: usize = 8;

/// One of raft-engine's two queues of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// What is written.
    Append,
    /// What is still live in the oldest files, written again.
    Rewrite,
}

/// Queue and number of a file of the log, by its name.
pub(super) fn parse(path: &Path) -> Option<(Queue, u64)> {
    let name = path.file_name()?.to_str()?;
    let (number, queue) = match name.strip_suffix(".raftlog") {
        Some(number) => (number, Queue::Append),
        None => (name.strip_suffix(".rewrite")?, Queue::Rewrite),
    };
    Some((queue, number.parse().ok()?))
}

/// The name of a file of the log.
pub(super) fn name(queue: Queue, number: u64) -> String {
    match queue {
        Queue::Append => format!("{number:016}.raftlog"),
        Queue::Rewrite => format!("{number:016}.rewrite"),
    }
}

/// The files of a queue that are needed, and how far the last of them is synced. Numbers begin at 1; 0 when there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
    pub end: u64,
}

/// What a note says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub append: Span,
    pub rewrite: Span,
}

impl Mark {
    pub(super) fn of(&mut self, queue: Queue) -> &mut Span {
        match queue {
            Queue::Append => &mut self.append,
            Queue::Rewrite => &mut self.rewrite,
        }
    }

    pub(super) fn span(&self, queue: Queue) -> Span {
        match queue {
            Queue::Append => self.append,
            Queue::Rewrite => self.rewrite,
        }
    }

    fn encode(&self, number: u64) -> Vec<u8> {
        let mut slot = Vec::with_capacity(SLOT);
        slot.put_slice(MAGIC);
        slot.put_u32_le(VERSION);
        slot.put_u64_le(number);
        for span in [self.append, self.rewrite] {
            slot.put_u64_le(span.first);
            slot.put_u64_le(span.last);
            slot.put_u64_le(span.end);
        }
        let sum = blake3::hash(&slot);
        slot.put_slice(sum.as_bytes().get(..SUM).unwrap_or_default());
        slot
    }

    fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        let (mut body, sum) = slot.get(..SLOT)?.split_at_checked(SLOT - SUM)?;
        if blake3::hash(body).as_bytes().get(..SUM)? != sum || body.get(..8)? != MAGIC {
            return None;
        }
        body.advance(MAGIC.len());
        if body.get_u32_le() != VERSION {
            return None;
        }
        let number = body.get_u64_le();
        let mut span = || Span { first: body.get_u64_le(), last: body.get_u64_le(), end: body.get_u64_le() };
        Some((number, Self { append: span(), rewrite: span() }))
    }
}

/// The note on disk.
pub(super) struct Note {
    path: PathBuf,
    file: Option<File>,
    number: u64,
    /// Written since it was synced last.
    dirty: bool,
}

/// What was found of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none: the log is new, or of before there were notes.
    None,
    /// It can't be read.
    Damaged,
    /// It says this.
    Mark(Mark),
}

impl Note {
    /// Reads the note in a directory.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Found)> {
        let path = dir.join(NAME);
        let mut note = Self { path, file: None, number: 0, dirty: false };
        let mut bytes = Vec::new();
        match File::open(&note.path) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((note, Found::None)),
            Err(error) => return Err(error),
        };
        let second = usize::try_from(SECOND).unwrap_or(usize::MAX);
        let slots = [Some(&bytes[..]), bytes.get(second..)];
        let newest = slots.into_iter().flatten().filter_map(Mark::decode).max_by_key(|(number, _)| *number);
        let found = match newest {
            Some((number, mark)) => {
                note.number = number;
                Found::Mark(mark)
            }
            // a crash right behind the first opening
            None if bytes.iter().all(|byte| *byte == 0) => Found::None,
            None => Found::Damaged,
        };
        Ok((note, found))
    }

    /// Writes it down; not synced.
    pub(super) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
                // both slots have their place from now on, on a full disk too
                if file.metadata()?.len() < SECOND + SLOT as u64 {
                    file.write_all_at(&[0; SLOT], SECOND)?;
                    file.sync_all()?;
                }
                self.file.insert(file)
            }
        };
        self.number += 1;
        file.write_all_at(&mark.encode(self.number), (self.number % 2) * SECOND)?;
        self.dirty = true;
        #[cfg(test)]
        super::faults::note(&self.path, true);
        Ok(())
    }

    /// Syncs it, if there is something to sync.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.dirty) {
            file.sync_data()?;
            self.dirty = false;
            #[cfg(test)]
            super::faults::note(&self.path, false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    const MARK: Mark =
        Mark { append: Span { first: 1, last: 3, end: 77 }, rewrite: Span { first: 2, last: 2, end: 1 << 33 } };

    #[test]
    fn a_slot_is_pinned() {
        let bytes = MARK.encode(5);
        assert_eq!(&bytes[..20], b"canalsyn\x01\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(&bytes[20..28], 1u64.to_le_bytes());
        assert_eq!(&bytes[36..44], 77u64.to_le_bytes());
        assert_eq!(&bytes[60..68], (1u64 << 33).to_le_bytes());
        assert_eq!(bytes.len(), SLOT);
        assert_eq!(Mark::decode(&bytes), Some((5, MARK)));
        for bit in 0..SLOT * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Note::open(dir.path()).unwrap().1;
        assert_eq!(read(), Found::None);
        let mut note = Note::open(dir.path()).unwrap().0;
        let other = Mark { append: Span { end: 99, ..MARK.append }, ..MARK };
        note.write(&MARK).unwrap();
        assert_eq!(read(), Found::Mark(MARK));
        note.write(&other).unwrap();
        assert_eq!(read(), Found::Mark(other));
        // numbers go on after a restart
        let mut note = Note::open(dir.path()).unwrap().0;
        note.write(&MARK).unwrap();
        note.sync().unwrap();
        assert_eq!(read(), Found::Mark(MARK));
        let path = dir.path().join(NAME);
        let bytes = std::fs::read(&path).unwrap();
        let mut torn = bytes.clone();
        torn[usize::try_from(SECOND).unwrap() + 30] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(read(), Found::Mark(other), "the one before it");
        torn[30] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(read(), Found::Damaged);
    }

    #[test]
    fn files_are_told_by_their_names() {
        assert_eq!(parse(Path::new("/x/0000000000000012.raftlog")), Some((Queue::Append, 12)));
        assert_eq!(parse(Path::new(&name(Queue::Rewrite, 7))), Some((Queue::Rewrite, 7)));
        for other in ["LOCK", NAME, "0000000000000012.raftlog.reserved"] {
            assert_eq!(parse(Path::new(other)), None);
        }
    }
}
