//! The files of the log, watched: how far each is written and synced, and what of it recovery wants to cut off.
//!
//! raft-engine does its own IO through a [`FileSystem`]; this one passes everything on and keeps the [`Mark`]. While the
//! log is opened, a cut of the last file is only made behind what was synced: one before that is damage, and is refused
//! with nothing changed on disk, since what comes behind the damage may yet be of use.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Read as _, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};

use super::mark::{self, Found, Mark, Note, Queue};

/// Why the files of the log are not what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage(pub String);

/// Where a file's header has its version (u64, big-endian), behind the name of the format. In version 2 the alignment of
/// what follows comes next (u64).
const VERSION_AT: u64 = 53;

/// Whether a file's header has the alignment that all files here have: none. No sum covers it, and raft-engine takes
/// memory for whatever stands there.
fn is_aligned(path: &Path) -> Result<bool> {
    let mut header = Vec::new();
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(VERSION_AT))?;
    file.take(16).read_to_end(&mut header)?;
    let version = header.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
    Ok(version != Some(2) || header.iter().skip(8).all(|byte| *byte == 0))
}

/// A file system that keeps the mark.
pub(super) struct Watched<S: FileSystem> {
    plain: S,
    dir: PathBuf,
    marks: Arc<Mutex<Marks<S::Handle>>>,
}

struct Marks<H> {
    note: Note,
    mark: Mark,
    /// What the note said when the log was opened; until it is open.
    opening: Option<Mark>,
    damage: Option<Damage>,
    ends: BTreeMap<(Queue, u64), End<H>>,
}

struct End<H> {
    plain: Arc<H>,
    written: u64,
    synced: u64,
    /// Syncs, or one for a file that was there when the log was opened.
    syncs: u64,
}

impl<S: FileSystem> Watched<S> {
    /// Looks at the files in `dir`, before the log is opened: whether all that were there are there.
    pub(super) fn new(plain: S, dir: &Path) -> Result<std::result::Result<Self, Damage>> {
        let (note, found) = Note::open(dir)?;
        let opening = match found {
            Found::Mark(mark) => mark,
            Found::None => Mark::default(),
            Found::Damaged => {
                tracing::error!(
                    file = %dir.join(mark::NAME).display(),
                    "the note of how far the log is synced is damaged: entries lost at the log's end would not be noticed \
                     this time. Check the disk"
                );
                Mark::default()
            }
        };
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(file) = mark::parse(&path) else { continue };
            if !is_aligned(&path)? {
                return Ok(Err(Damage(format!("the header of the file {} is damaged", mark::name(file.0, file.1)))));
            }
            files.insert(file);
        }
        for queue in [Queue::Append, Queue::Rewrite] {
            let span = opening.span(queue);
            let missing = (span.first.max(1)..=span.last).find(|number| !files.contains(&(queue, *number)));
            if let Some(number) = missing {
                return Ok(Err(Damage(format!("the file {} is missing", mark::name(queue, number)))));
            }
        }
        let marks = Marks { note, mark: opening, opening: Some(opening), damage: None, ends: BTreeMap::new() };
        Ok(Ok(Self { plain, dir: dir.to_owned(), marks: Arc::new(Mutex::new(marks)) }))
    }

    /// What was found that kept the log from being opened.
    pub(super) fn damage(&self) -> Option<Damage> {
        self.marks.lock().damage.clone()
    }

    /// The log is open, with these files. What recovery has read may never have been synced (the process died between the
    /// write and its sync, or that sync failed), and is acted upon from now on: so it is written again and synced first.
    pub(super) fn opened(&self) -> Result<()> {
        let mut marks = self.marks.lock();
        let noted = marks.opening.take().unwrap_or_default();
        for queue in [Queue::Append, Queue::Rewrite] {
            let numbers = marks.ends.keys().filter(|(of, _)| *of == queue).map(|(_, number)| *number).rev();
            // those before a gap were cleared, and are left to be used again
            let Some((last, first)) = numbers.fold(None, |run, number| match run {
                None => Some((number, number)),
                Some((last, first)) if number + 1 == first => Some((last, number)),
                run => run,
            }) else {
                continue;
            };
            let noted = noted.span(queue);
            for number in noted.last.max(first)..=last {
                let Some(end) = marks.ends.get_mut(&(queue, number)) else { continue };
                let from = if number == noted.last { noted.end } else { 0 };
                self.write_again((queue, number), from, end.written)?;
                (end.synced, end.syncs) = (end.written, 1);
            }
            let end = marks.ends.get(&(queue, last)).map_or(0, |end| end.synced);
            *marks.mark.of(queue) = mark::Span { first, last, end };
            marks.ends.retain(|(of, number), _| *of != queue || *number >= last);
        }
        let mark = marks.mark;
        marks.note.write(&mark)?;
        marks.note.sync()
    }

    /// Writes bytes of a file as they stand there, and syncs it. After a sync that failed, the system takes what it has in
    /// memory for what is on disk, and a later sync does nothing about it.
    fn write_again(&self, file: (Queue, u64), from: u64, to: u64) -> Result<()> {
        let path = self.dir.join(mark::name(file.0, file.1));
        // recovery may have it open for reading only
        let file = Arc::new(self.plain.open(&path, Permission::ReadWrite)?);
        let mut reader = self.plain.new_reader(file.clone())?;
        let mut writer = self.plain.new_writer(file.clone())?;
        reader.seek(SeekFrom::Start(from))?;
        writer.seek(SeekFrom::Start(from))?;
        std::io::copy(&mut reader.take(to.saturating_sub(from)), &mut writer)?;
        writer.flush()?;
        file.sync()
    }

    /// Syncs the files that are written to, and the note.
    pub(super) fn sync_all(&self) -> Result<()> {
        let marks = &mut *self.marks.lock();
        for end in marks.ends.values() {
            end.plain.sync()?;
        }
        marks.note.sync()
    }

    /// Syncs the note.
    pub(super) fn sync_note(&self) -> Result<()> {
        self.marks.lock().note.sync()
    }
}

impl<H> Marks<H> {
    fn end(&mut self, file: Option<(Queue, u64)>) -> Option<&mut End<H>> {
        self.ends.get_mut(&file?)
    }

    /// A file was synced as far as it was written before.
    fn synced(&mut self, (queue, number): (Queue, u64), written: u64) -> Result<()> {
        let Some(end) = self.ends.get_mut(&(queue, number)) else { return Ok(()) };
        end.synced = end.synced.max(written);
        end.syncs += 1;
        // the first sync of a new file comes before that of its directory
        let counts = end.syncs > 1 && self.opening.is_none();
        let (synced, span) = (end.synced, self.mark.of(queue));
        if !counts || number < span.last {
            return Ok(());
        }
        (span.last, span.end) = (number, synced);
        self.ends.retain(|(of, other), _| *of != queue || *other >= number);
        let mark = self.mark;
        self.note.write(&mark)
    }

    /// A file is about to go.
    fn goes(&mut self, path: &Path) -> Result<()> {
        let Some((queue, number)) = mark::parse(path) else { return Ok(()) };
        self.ends.remove(&(queue, number));
        let span = self.mark.of(queue);
        if self.opening.is_some() || number < span.first {
            return Ok(());
        }
        span.first = number + 1;
        let mark = self.mark;
        self.note.write(&mark)?;
        self.note.sync()
    }

    /// Whether recovery may cut a file here.
    fn may_cut(&mut self, file: Option<(Queue, u64)>, at: u64) -> bool {
        let (Some(opening), Some((queue, number))) = (self.opening, file) else { return true };
        let span = opening.span(queue);
        if number > span.last || (number == span.last && at >= span.end) {
            return true;
        }
        let name = mark::name(queue, number);
        let synced =
            if number == span.last { format!(" it was synced up to byte {}", span.end) } else { String::new() };
        self.damage = Some(Damage(format!("the file {name} can't be read from byte {at} on;{synced}")));
        false
    }
}

/// A file.
pub(super) struct File<H> {
    plain: Arc<H>,
    at: Option<(Queue, u64)>,
    path: PathBuf,
    marks: Arc<Mutex<Marks<H>>>,
}

impl<S: FileSystem> Watched<S> {
    fn file(&self, plain: S::Handle, path: &Path, there: bool) -> Result<File<S::Handle>> {
        let plain = Arc::new(plain);
        let at = mark::parse(path);
        if let Some(at) = at {
            let written = if there { plain.file_size()? as u64 } else { 0 };
            let end = End { plain: plain.clone(), written, synced: 0, syncs: 0 };
            self.marks.lock().ends.insert(at, end);
        }
        Ok(File { plain, at, path: path.to_owned(), marks: self.marks.clone() })
    }
}

impl<H: Handle> Handle for File<H> {
    fn truncate(&self, offset: usize) -> Result<()> {
        let mut marks = self.marks.lock();
        if !marks.may_cut(self.at, offset as u64) {
            return Err(Error::other(format!("{} is damaged", self.path.display())));
        }
        self.plain.truncate(offset)?;
        if let Some(end) = marks.end(self.at) {
            end.written = end.written.min(offset as u64);
        }
        Ok(())
    }

    fn file_size(&self) -> Result<usize> {
        self.plain.file_size()
    }

    fn sync(&self) -> Result<()> {
        let written = self.marks.lock().end(self.at).map_or(0, |end| end.written);
        self.plain.sync()?;
        match self.at {
            Some(at) => self.marks.lock().synced(at, written),
            None => Ok(()),
        }
    }
}

/// Writes a file.
pub(super) struct Writer<W, H> {
    plain: W,
    place: u64,
    at: Option<(Queue, u64)>,
    marks: Arc<Mutex<Marks<H>>>,
}

impl<W: Write, H> Write for Writer<W, H> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let length = self.plain.write(bytes)?;
        self.place += length as u64;
        // a file is written from front to back; one that is used again begins anew
        if let Some(end) = self.marks.lock().end(self.at) {
            end.written = self.place;
        }
        Ok(length)
    }

    fn flush(&mut self) -> Result<()> {
        self.plain.flush()
    }
}

impl<W: Seek, H> Seek for Writer<W, H> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.place = self.plain.seek(to)?;
        Ok(self.place)
    }
}

impl<W: WriteExt, H> WriteExt for Writer<W, H> {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.plain.truncate(offset)?;
        self.place = offset as u64;
        if let Some(end) = self.marks.lock().end(self.at) {
            end.written = end.written.min(offset as u64);
        }
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.plain.allocate(offset, size)
    }
}

impl<S: FileSystem> FileSystem for Watched<S> {
    type Handle = File<S::Handle>;
    type Reader = S::Reader;
    type Writer = Writer<S::Writer, S::Handle>;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<Self::Handle> {
        self.file(self.plain.create(&path)?, path.as_ref(), false)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<Self::Handle> {
        self.file(self.plain.open(&path, permission)?, path.as_ref(), true)
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.marks.lock().goes(path.as_ref())?;
        self.plain.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.marks.lock().goes(from.as_ref())?;
        self.plain.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> Result<Self::Reader> {
        self.plain.new_reader(handle.plain.clone())
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> Result<Self::Writer> {
        let plain = self.plain.new_writer(handle.plain.clone())?;
        Ok(Writer { plain, place: 0, at: handle.at, marks: self.marks.clone() })
    }
}
