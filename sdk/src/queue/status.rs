//! A small file beside a queue that says what waits, for those who can't open the queue because its owner has it.
//!
//! A thread writes it when something has changed, at most once a [`PAUSE`], and puts it in place whole. It is not synced: it
//! is for people, and nothing is built on it. It goes when the queue is closed; one that a crash leaves names a process
//! that does not have the lock.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use canal_proto::{Code, ProducerId};
use parking_lot::{Condvar, Mutex};
use prost::Message;

use super::keeper::Shared;
use super::rows::TroubleRow;
use super::{Trouble, Waiting, now_ms};
use crate::Error;

const FILE: &str = "queue.status";
const NEW_FILE: &str = "queue.status.new";
/// What is in the file, as docs/format.md says it.
const VERSION: u32 = 1;
/// Between two writes at least: people look no faster, and a sensor's flash wears.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes that are read at most: all topics with the longest names and errors.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of an error that are written at most.
const MAX_ERROR: usize = 1 << 10;

/// What the owner of a queue last wrote of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The owner's process.
    pub process: u32,
    /// When it was written, in milliseconds since 1970-01-01 UTC. Nothing has changed since, but for the last second.
    pub written_ms: u64,
    /// What waited.
    pub waiting: Vec<Waiting>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusFile {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    process: u32,
    #[prost(uint64, tag = "3")]
    written_ms: u64,
    #[prost(message, repeated, tag = "4")]
    topics: Vec<WaitingRow>,
}

#[derive(Clone, PartialEq, Message)]
struct WaitingRow {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(bytes = "vec", tag = "2")]
    producer: Vec<u8>,
    #[prost(uint64, tag = "3")]
    topic_id: u64,
    #[prost(uint64, tag = "4")]
    first: u64,
    #[prost(uint64, tag = "5")]
    base: u64,
    #[prost(uint64, tag = "6")]
    events: u64,
    #[prost(uint64, tag = "7")]
    bytes: u64,
    #[prost(uint64, optional, tag = "8")]
    oldest_ms: Option<u64>,
    #[prost(message, optional, tag = "9")]
    trouble: Option<TroubleRow>,
}

impl From<Waiting> for WaitingRow {
    fn from(waiting: Waiting) -> Self {
        let trouble = waiting.trouble.map(|trouble| {
            let mut message = trouble.error.message;
            message.truncate(message.floor_char_boundary(MAX_ERROR));
            TroubleRow { code: trouble.error.code.into(), message, stopped: trouble.stopped }
        });
        Self {
            topic: waiting.topic,
            producer: waiting.producer.to_vec(),
            topic_id: waiting.topic_id,
            first: waiting.first,
            base: waiting.base,
            events: waiting.events,
            bytes: waiting.bytes,
            oldest_ms: waiting.oldest_ms,
            trouble,
        }
    }
}

impl WaitingRow {
    fn read(self) -> Option<Waiting> {
        Some(Waiting {
            topic: self.topic,
            producer: ProducerId::from_slice(&self.producer).ok()?,
            topic_id: self.topic_id,
            first: self.first,
            base: self.base,
            events: self.events,
            bytes: self.bytes,
            oldest_ms: self.oldest_ms,
            trouble: self.trouble.as_ref().map(Trouble::from),
        })
    }
}

/// What this process has written last in this directory; none when it has not yet.
pub(super) fn read(dir: &Path, process: u32) -> Option<Status> {
    let mut bytes = Vec::new();
    File::open(dir.join(FILE)).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    let file = StatusFile::decode(bytes.as_slice()).ok()?;
    if (file.version, file.process) != (VERSION, process) {
        return None;
    }
    let waiting = file.topics.into_iter().map(WaitingRow::read).collect::<Option<_>>()?;
    Some(Status { process, written_ms: file.written_ms, waiting })
}

#[derive(Default)]
struct Wanted {
    news: bool,
    closed: bool,
}

/// Writes the file when it is told that there is news. Dropping it removes the file.
pub(super) struct Writer {
    wanted: Arc<(Mutex<Wanted>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(dir: PathBuf, shared: Arc<Shared>) -> Result<Self, Error> {
        let wanted = Arc::<(Mutex<Wanted>, Condvar)>::default();
        let theirs = Arc::clone(&wanted);
        let thread = std::thread::Builder::new().name("canal-queue-status".into());
        let thread = thread.spawn(move || run(&dir, &shared, &theirs));
        let thread = thread
            .map_err(|error| Error::new(Code::Internal, format!("the queue's thread can't be started: {error}")))?;
        Ok(Self { wanted, thread: Some(thread) })
    }

    pub(super) fn tell(&self) {
        self.wanted.0.lock().news = true;
        self.wanted.1.notify_all();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.wanted.0.lock().closed = true;
        self.wanted.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // it has no result
            drop(thread.join());
        }
    }
}

fn run(dir: &Path, shared: &Shared, (wanted, changed): &(Mutex<Wanted>, Condvar)) {
    loop {
        let mut now = wanted.lock();
        changed.wait_while(&mut now, |now| !now.news && !now.closed);
        if now.closed {
            break;
        }
        now.news = false;
        drop(now);
        if let Err(error) = write(dir, shared.waiting()) {
            tracing::debug!(%error, queue = %dir.display(), "the queue's status can't be written");
        }
        changed.wait_while_for(&mut wanted.lock(), |now| !now.closed, PAUSE);
    }
    // whoever looks now may open the queue
    drop(std::fs::remove_file(dir.join(FILE)));
}

fn write(dir: &Path, waiting: Vec<Waiting>) -> std::io::Result<()> {
    let topics = waiting.into_iter().map(WaitingRow::from).collect();
    let file = StatusFile { version: VERSION, process: std::process::id(), written_ms: now_ms(), topics };
    std::fs::write(dir.join(NEW_FILE), file.encode_to_vec())?;
    std::fs::rename(dir.join(NEW_FILE), dir.join(FILE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn one() -> Waiting {
        let error = Error::new(Code::SequenceGap, "é".repeat(MAX_ERROR));
        Waiting {
            topic: "a/b".into(),
            producer: ProducerId([7; 16]),
            topic_id: 5,
            first: 9,
            base: 2,
            events: 3,
            bytes: 200,
            oldest_ms: Some(1),
            trouble: Some(Trouble { error, stopped: true }),
        }
    }

    #[test]
    fn what_is_written_is_read_by_whoever_knows_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        assert_eq!(read(dir.path(), own), None);
        write(dir.path(), vec![one()]).unwrap();
        let status = read(dir.path(), own).unwrap();
        let trouble = Trouble { error: Error::new(Code::SequenceGap, "é".repeat(MAX_ERROR / 2)), stopped: true };
        assert_eq!(status.waiting, [Waiting { trouble: Some(trouble), ..one() }]);
        assert!(status.process == own && status.written_ms <= now_ms());
        assert_eq!(read(dir.path(), own + 1), None, "another had it before");
        std::fs::write(dir.path().join(FILE), b"something else").unwrap();
        assert_eq!(read(dir.path(), own), None);
    }

    #[test]
    fn the_file_keeps_its_bytes() {
        let trouble = Some(Trouble { error: Error::new(Code::SequenceGap, "no"), stopped: true });
        let topics = vec![WaitingRow::from(Waiting { trouble, ..one() })];
        let file = StatusFile { version: 1, process: 300, written_ms: 4, topics };
        let row = [
            &[0x0a, 3, b'a', b'/', b'b', 0x12, 16][..],
            &[7; 16],
            &[0x18, 5, 0x20, 9, 0x28, 2, 0x30, 3, 0x38, 0xc8, 0x01, 0x40, 1],
            &[0x4a, 8, 0x08, 16, 0x12, 2, b'n', b'o', 0x18, 1],
        ]
        .concat();
        let golden = [&[0x08, 1, 0x10, 0xac, 0x02, 0x18, 4, 0x22, u8::try_from(row.len()).unwrap()][..], &row].concat();
        assert_eq!(file.encode_to_vec(), golden);
    }
}
