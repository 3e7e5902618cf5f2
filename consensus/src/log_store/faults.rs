//! A disk for the log as no test can ask for it: it loses power, tears writes, fills up, and fails to sync.
//!
//! Faults are set by the directory of a log. What a loss of power would leave is known file by file, since a file is
//! kept as it was at its last sync; names of files count as durable at once, but a file that was removed may come back
//! ([`Recorded::removed`]). Beside a log in `dir`, a directory `dir.durable`, if there is one, receives a copy of each
//! file as often as it is synced.

use std::collections::BTreeMap;
use std::io::{Error, Result, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};

/// The errors of the operating system that disks give.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

static DISKS: Mutex<BTreeMap<PathBuf, Disk>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Disk {
    fail_syncs: bool,
    /// Bytes that there is still room for.
    room: Option<u64>,
    recorded: Option<Recorded>,
}

/// The content of files, by name.
pub type Content = BTreeMap<String, Arc<Vec<u8>>>;

/// What is known of the disk of a log.
#[derive(Default, Clone)]
pub struct Recorded {
    /// The files as they were synced last; empty ones were not.
    pub synced: Content,
    /// Files that were removed or renamed since the last call of [`recorded`], as they were synced.
    pub removed: Vec<(String, Arc<Vec<u8>>)>,
    /// The moments before each sync since the last call of [`recorded`].
    pub flights: Vec<Flight>,
    /// The note of how far the log is synced, as often as it was written since it was synced.
    pub notes: Vec<Vec<u8>>,
    /// Bytes that a sync did not get to the disk: no later one does, unless they are written again.
    lost: BTreeMap<String, Range<usize>>,
}

impl Recorded {
    /// What is on disk of a file when a sync has worked.
    fn synced(&self, name: &str, written: &[u8]) -> Vec<u8> {
        let mut content = written.to_vec();
        let before = self.synced.get(name).map(|before| before.as_slice()).unwrap_or_default();
        for at in self.lost.get(name).cloned().unwrap_or_default() {
            if let Some(byte) = content.get_mut(at) {
                *byte = before.get(at).copied().unwrap_or_default();
            }
        }
        content
    }

    /// A sync has failed.
    fn lose(&mut self, name: &str, written: &[u8]) {
        let before = self.synced.get(name).map(|before| before.as_slice()).unwrap_or_default();
        let same = written.iter().zip(before).take_while(|(new, old)| new == old).count();
        let lost = self.lost.entry(name.to_owned()).or_insert(same..same);
        *lost = lost.start.min(same)..lost.end.max(written.len());
    }

    /// Bytes are written, maybe again.
    fn wrote(&mut self, name: &str, at: Range<usize>) {
        let Some(lost) = self.lost.get_mut(name) else { return };
        if at.start <= lost.start && lost.start < at.end {
            lost.start = at.end.min(lost.end);
        }
    }
}

/// A moment right before a sync.
#[derive(Clone)]
pub struct Flight {
    /// The files as they were synced last.
    pub synced: Content,
    /// The file that is being synced, and all that was written to it.
    pub name: String,
    pub written: Arc<Vec<u8>>,
    /// As in [`Recorded`].
    pub notes: Vec<Vec<u8>>,
}

fn with<T>(path: &Path, then: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    DISKS.lock().get_mut(path.parent()?).map(then)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lets all syncs of the log in `dir` fail, or work again.
pub fn fail_syncs(dir: &Path, fail: bool) {
    DISKS.lock().entry(dir.to_owned()).or_default().fail_syncs = fail;
}

/// Fails if syncs in the directory of `path` do; for files that are none of the log's.
pub fn sync(path: &Path) -> Result<()> {
    match with(path, |disk| disk.fail_syncs) {
        Some(true) => Err(Error::from_raw_os_error(EIO)),
        _ => Ok(()),
    }
}

/// Leaves the disk of the log in `dir` room for so many more bytes, or for any number.
pub fn leave_room(dir: &Path, bytes: Option<u64>) {
    DISKS.lock().entry(dir.to_owned()).or_default().room = bytes;
}

/// Begins to record what the disk of the log in `dir` would hold.
pub fn record(dir: &Path) {
    DISKS.lock().entry(dir.to_owned()).or_default().recorded = Some(Recorded::default());
}

/// What is recorded; what happened since the last call is only told once.
pub fn recorded(dir: &Path) -> Recorded {
    let mut disks = DISKS.lock();
    let Some(recorded) = disks.get_mut(dir).and_then(|disk| disk.recorded.as_mut()) else { return Recorded::default() };
    let copy = recorded.clone();
    recorded.removed.clear();
    recorded.flights.clear();
    copy
}

/// The disk of the log in `from` has it in `to` from now on, and works.
pub fn goes_on_in(from: &Path, to: &Path) {
    let mut disks = DISKS.lock();
    let disk = disks.remove(from).unwrap_or_default();
    disks.insert(to.to_owned(), Disk { recorded: disk.recorded, ..Disk::default() });
}

/// Forgets all of a directory's faults.
pub fn forget(dir: &Path) {
    DISKS.lock().remove(dir);
}

/// The note was written, or synced.
pub fn note(path: &Path, written: bool) {
    with(path, |disk| {
        let Some(recorded) = &mut disk.recorded else { return };
        match written {
            true => recorded.notes.extend(std::fs::read(path)),
            false => drop(recorded.notes.drain(..recorded.notes.len().saturating_sub(1))),
        }
    });
}

/// Where the synced state of the log in `dir` is kept, if the directory exists.
pub fn durable(dir: &Path) -> PathBuf {
    let mut path = dir.as_os_str().to_owned();
    path.push(".durable");
    path.into()
}

type Plain = <DefaultFileSystem as FileSystem>::Handle;

pub struct Files;

pub struct File {
    plain: Arc<Plain>,
    path: PathBuf,
}

impl File {
    fn new(plain: Plain, path: &Path) -> Self {
        with(path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                recorded.synced.entry(name_of(path)).or_default();
            }
        });
        Self { plain: Arc::new(plain), path: path.to_owned() }
    }
}

impl Handle for File {
    fn truncate(&self, offset: usize) -> Result<()> {
        Handle::truncate(self.plain.as_ref(), offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.plain.file_size()
    }

    fn sync(&self) -> Result<()> {
        let durable = durable(self.path.parent().unwrap_or(&self.path));
        let watched = durable.exists() || with(&self.path, |disk| disk.recorded.is_some()) == Some(true);
        let written = Arc::new(if watched { std::fs::read(&self.path)? } else { Vec::new() });
        let name = name_of(&self.path);
        let fails = with(&self.path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                let (synced, notes) = (recorded.synced.clone(), recorded.notes.clone());
                recorded.flights.push(Flight { synced, name: name.clone(), written: written.clone(), notes });
            }
            if disk.fail_syncs
                && let Some(recorded) = &mut disk.recorded
            {
                recorded.lose(&name, &written);
            }
            disk.fail_syncs
        });
        if fails == Some(true) {
            return Err(Error::from_raw_os_error(EIO));
        }
        self.plain.sync()?;
        with(&self.path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                let content = recorded.synced(&name, &written);
                recorded.synced.insert(name.clone(), Arc::new(content));
            }
        });
        if durable.exists() {
            std::fs::write(durable.join(name), written.as_slice())?;
        }
        Ok(())
    }
}

pub struct Writer {
    plain: <DefaultFileSystem as FileSystem>::Writer,
    path: PathBuf,
}

impl Write for Writer {
    /// A full disk takes what there is room for, and then nothing.
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let length = with(&self.path, |disk| {
            let length =
                disk.room.map_or(bytes.len(), |room| bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            disk.room = disk.room.map(|room| room - length as u64);
            length
        });
        let length = length.unwrap_or(bytes.len());
        if length == 0 && !bytes.is_empty() {
            return Err(Error::from_raw_os_error(ENOSPC));
        }
        let at = usize::try_from(self.plain.stream_position()?).unwrap_or(usize::MAX);
        let length = self.plain.write(bytes.get(..length).unwrap_or_default())?;
        with(&self.path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                recorded.wrote(&name_of(&self.path), at..at.saturating_add(length));
            }
        });
        Ok(length)
    }

    fn flush(&mut self) -> Result<()> {
        self.plain.flush()
    }
}

impl Seek for Writer {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.plain.seek(to)
    }
}

impl WriteExt for Writer {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        WriteExt::truncate(&mut self.plain, offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        match with(&self.path, |disk| disk.room.is_some()) {
            Some(true) => Err(Error::from_raw_os_error(ENOSPC)),
            _ => self.plain.allocate(offset, size),
        }
    }
}

/// A file goes, or gets another name.
fn goes(path: &Path, to: Option<&Path>) {
    with(path, |disk| {
        let Some(recorded) = &mut disk.recorded else { return };
        let content = recorded.synced.remove(&name_of(path)).unwrap_or_default();
        recorded.removed.push((name_of(path), content.clone()));
        if let Some(to) = to {
            recorded.synced.insert(name_of(to), content);
        }
    });
}

impl FileSystem for Files {
    type Handle = File;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<File> {
        if with(path.as_ref(), |disk| disk.room == Some(0)) == Some(true) {
            return Err(Error::from_raw_os_error(ENOSPC));
        }
        Ok(File::new(DefaultFileSystem.create(&path)?, path.as_ref()))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<File> {
        Ok(File::new(DefaultFileSystem.open(&path, permission)?, path.as_ref()))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        goes(path.as_ref(), None);
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        goes(from.as_ref(), Some(to.as_ref()));
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<File>) -> Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.plain.clone())
    }

    fn new_writer(&self, handle: Arc<File>) -> Result<Self::Writer> {
        Ok(Writer { plain: DefaultFileSystem.new_writer(handle.plain.clone())?, path: handle.path.clone() })
    }
}
