//! What the functions of a run do: pure functions of the event and the rows that they see.
//!
//! `count` adds 1 to the row `count/TOPIC` of its bucket, writes to the row `seen/TOPIC/OFFSET` how many times it was
//! written, and emits `count:TOPIC:OFFSET` to `out/a`. `copy` emits `copy:TOPIC:OFFSET` to `logs`, and keeps the offsets that
//! it copied lately in [`LATEST`] rows, which it reads as a range; it fails the first time where the offset is divisible by
//! [`RETRIED`], and always where it is divisible by [`FAILING`]. `touch` reads one of the rows that clients write, and writes
//! what it has read: a client that has written meanwhile must not find its value gone.

use bytes::Bytes;
use canal_consensus::core::keys::{Keys, end_of};
use canal_consensus::core::kv::Kv;
use canal_proto::GroupId;
use canal_proto::event::Event;
use canal_proto::log::{StateOp, Status, Target};
use canal_triggers::core::state::{self, Reads, Seen};
use canal_triggers::core::{Run, RunResult};

use crate::sim::actors::register;
use crate::sim::rooms::spec;
use crate::sim::setup;

/// Offsets that `copy` fails at first.
pub const RETRIED: u64 = 7;
/// Offsets that `copy` always fails at.
pub const FAILING: u64 = 50;
/// Rows that `copy` keeps.
pub const LATEST: u64 = 4;
/// Rows that `copy` asks for: more than there are.
const ASKED: u32 = 8;
/// How long a run says that it took; nobody looks.
const DURATION_US: u64 = 100;

/// The applied rows of a group.
pub struct Rows<'a> {
    /// All of them.
    pub kv: &'a dyn Kv,
    /// The group.
    pub group: GroupId,
}

impl Rows<'_> {
    fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, String> {
        self.kv.get(&Keys(self.group).state(bucket, key)).map_err(|e| e.to_string())
    }

    fn scan(&self, bucket: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Bytes)>, String> {
        let from = Keys(self.group).state(bucket, prefix);
        let rows = self.kv.scan(&from, &end_of(&from), limit, false).map_err(|e| e.to_string())?;
        let skip = Keys::state_prefix_len(bucket);
        let name = |key: Bytes| String::from_utf8_lossy(key.get(skip..).unwrap_or_default()).into_owned();
        Ok(rows.into_iter().map(|(key, value)| (name(key), value)).collect())
    }
}

/// A run that has begun.
pub struct Running {
    run: Run,
    start_ms: u64,
    reads: Reads,
    /// What is in the row that was read first.
    first: Option<Bytes>,
    unavailable: bool,
}

impl Running {
    /// A run that can't be tried.
    pub fn unavailable(run: Run, start_ms: u64) -> Self {
        Self { run, start_ms, reads: Reads::default(), first: None, unavailable: true }
    }

    /// Begins a run: it reads the first of its rows.
    pub fn begin(run: Run, start_ms: u64, rows: &Rows<'_>) -> Self {
        let mut running = Self { run, start_ms, reads: Reads::default(), first: None, unavailable: false };
        let first = match running.run.trigger.info.id {
            spec::COUNT => Some(count_key(running.run.topic.id)),
            spec::TOUCH => Some(touched_key(running.run.event.offset)),
            _ => None,
        };
        running.first = first.and_then(|key| running.value(rows, &key));
        running
    }

    /// Names the run.
    pub fn ticket(&self) -> u64 {
        self.run.ticket
    }

    /// Ends the run: it reads the rest of its rows, and comes to its effects.
    pub fn end(mut self, rows: &Rows<'_>) -> RunResult {
        let (topic, offset) = (self.run.topic.id, self.run.event.offset);
        let result = RunResult { start_ms: self.start_ms, duration_us: DURATION_US, ..RunResult::default() };
        if self.unavailable {
            return RunResult { unavailable: true, status: Status::NotRun, ..result };
        }
        let result = match self.run.trigger.info.id {
            spec::COUNT => {
                let seen = seen_key(topic, offset);
                let times = number(self.value(rows, &seen));
                let count = number(self.first.take());
                let write = |key, number: u64| StateOp { key, value: Some(number.to_string().into()) };
                let writes = vec![write(count_key(topic), count + 1), write(seen, times + 1)];
                let target = Target { topic: setup::OUT_A.0, group: setup::OUT.0, name: "out/a".into() };
                let emits = vec![(target, Event::new(format!("count:{topic}:{offset}")))];
                RunResult { writes, emits, ..result }
            }
            spec::TOUCH => {
                let write = |value| StateOp { key: touched_key(offset), value: Some(value) };
                RunResult { writes: self.first.take().map(write).into_iter().collect(), ..result }
            }
            _ if offset.is_multiple_of(FAILING) => failed(result, "it always fails here"),
            _ if offset.is_multiple_of(RETRIED) && self.run.attempt == 1 => failed(result, "it fails here at first"),
            _ => {
                self.range(rows, "copied/");
                let key = format!("copied/{}", offset % LATEST);
                let writes = vec![StateOp { key, value: Some(offset.to_string().into()) }];
                let logs = setup::logs_topic(setup::LOGS);
                let target = Target { topic: logs.0, group: setup::LOGS.0, name: "logs".into() };
                let emits = vec![(target, Event::new(format!("copy:{topic}:{offset}")))];
                RunResult { writes, emits, ..result }
            }
        };
        let (reads, scans) = self.reads.finish();
        RunResult { reads, scans, unavailable: self.unavailable, ..result }
    }

    fn value(&mut self, rows: &Rows<'_>, key: &str) -> Option<Bytes> {
        let value = state::row(&self.run.overlay, key, || rows.get(&self.run.bucket, key));
        match value.map(|value| (self.reads.compare(key, value.as_deref()), value)) {
            Ok((Seen::New | Seen::Same, value)) => {
                self.reads.note(key, value.as_deref());
                value
            }
            Ok((Seen::Changed, _)) | Err(_) => {
                self.unavailable = true;
                None
            }
        }
    }

    fn range(&mut self, rows: &Rows<'_>, prefix: &str) {
        let below = |limit| rows.scan(&self.run.bucket, prefix, limit);
        match state::range(&self.run.overlay, prefix, ASKED as usize, below) {
            Ok(found) => self.reads.note_range(prefix, ASKED, &found),
            Err(_) => self.unavailable = true,
        }
    }
}

fn failed(result: RunResult, error: &str) -> RunResult {
    RunResult { status: Status::Error, error: error.into(), ..result }
}

/// The number in a row: 0 when there is none.
fn number(value: Option<Bytes>) -> u64 {
    let text = value.map(|value| String::from_utf8_lossy(&value).into_owned());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The row that `touch` writes again.
fn touched_key(offset: u64) -> String {
    (offset % register::KEYS as u64).to_string()
}

/// The row of how many events `count` has counted in a topic.
pub fn count_key(topic: u64) -> String {
    format!("count/{topic}")
}

/// The row of how many times `count` has counted an event.
pub fn seen_key(topic: u64, offset: u64) -> String {
    format!("seen/{topic}/{offset}")
}
